//! `assert`: checks a condition at this point, in tests and live.
//!
//! ```toml
//! checked = { type = "assert", that = "message is string and author.ip is undefined", mode = "fail" }
//! ```
//!
//! An event that fails it is counted (`mode = "count"`, default; as an error of type `assertion`), logged, too
//! (`"alert"`; at most one line in ten seconds), or parked (`"fail"`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::expression::Condition;
use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::Event;

pub const KIND: Kind = Kind {
    name: "assert",
    about: "counts, tells or parks what should not be",
    read,
};

/// A failure that repeats for each event is logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Count,
    Alert,
    Fail,
}

struct Assert {
    name: String,
    that: Condition,
    mode: Mode,
    told: Mutex<Option<Instant>>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let that = section.required("that");
    let words = [("count", Mode::Count), ("alert", Mode::Alert), ("fail", Mode::Fail)];
    Some(Arc::new(Assert {
        mode: section.choice("mode", &words, Mode::Count),
        name: section.name().to_owned(),
        that: that?,
        told: Mutex::default(),
    }))
}

impl Stage for Assert {
    fn run(&self, event: &mut Event) -> Flow {
        let complaint = match self.that.holds(event) {
            Ok(true) => return Flow::Next,
            Ok(false) => format!("it does not hold that {}", self.that.text()),
            Err(error) => error,
        };
        match self.mode {
            Mode::Count => {}
            Mode::Alert => self.tell(event, &complaint),
            Mode::Fail => return Flow::Park(complaint),
        }
        Flow::Doubtful("assertion")
    }
}

impl Assert {
    fn tell(&self, event: &Event, complaint: &str) {
        let mut told = self.told.lock();
        if told.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            *told = Some(Instant::now());
            tracing::error!("stage {}: event {}: {complaint}", self.name, event.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::json;

    #[test]
    fn only_what_fails_is_parked() {
        let run = |mode, fields| {
            let stage = Assert {
                name: "a".into(),
                that: Condition::from_text("author.ip is undefined").unwrap(),
                mode,
                told: Mutex::default(),
            };
            let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
            event.fields = Some(fields);
            stage.run(&mut event)
        };
        assert!(matches!(run(Mode::Fail, json!({"author": {}})), Flow::Next));
        let bad = || json!({"author": {"ip": "192.0.2.1"}});
        assert!(matches!(run(Mode::Count, bad()), Flow::Doubtful(_)));
        assert!(matches!(run(Mode::Alert, bad()), Flow::Doubtful(_)));
        assert!(matches!(run(Mode::Fail, bad()), Flow::Park(reason) if reason.contains("author.ip is undefined")));
    }
}
