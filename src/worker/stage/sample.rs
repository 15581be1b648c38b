//! `sample`: lets a share of the events through.
//!
//! ```toml
//! some = { type = "sample", percent = 5, by = "thread" }
//! ```
//!
//! All events with the same value of `by` (default `_event.id`) are treated alike, also on redelivery and after a
//! restart.

use std::sync::Arc;

use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::event::Event;
use crate::field::FieldPath;

pub const KIND: Kind = Kind {
    name: "sample",
    about: "lets a share of the events through",
    read,
};

struct Sample {
    percent: u64,
    by: FieldPath,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let percent = section.required::<usize>("percent");
    if percent.is_some_and(|percent| percent > 100) {
        section.complain_at("percent", "must be from 0 to 100");
    }
    let by = section
        .optional("by")
        .or_else(|| FieldPath::from_text("_event.id").ok());
    Some(Arc::new(Sample {
        percent: percent? as u64,
        by: by?,
    }))
}

impl Stage for Sample {
    fn run(&self, event: &mut Event) -> Flow {
        let value = self.by.get(event);
        let key = value
            .as_deref()
            .and_then(|value| event.digits.scalar(value))
            .unwrap_or_default();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
        match u64::from_le_bytes(bytes) % 100 < self.percent {
            true => Flow::Next,
            false => Flow::Drop("sample"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;

    #[test]
    fn about_the_share_comes_through_and_always_the_same() {
        let stage = Sample {
            percent: 20,
            by: FieldPath::from_text("_event.id").unwrap(),
        };
        let passes = |n| {
            let mut event = Event::new(EventId::new(1, n), Timestamp(0), "".into());
            matches!(stage.run(&mut event), Flow::Next)
        };
        let chosen: Vec<u64> = (0..1000).filter(|&n| passes(n)).collect();
        assert!((140..260).contains(&chosen.len()), "{}", chosen.len());
        assert!(chosen.iter().all(|&n| passes(n)));
    }
}
