//! Switches: parts of a pipeline that can be turned on for some events, without a reload.
//!
//! ```toml
//! [switch.secure-firehose]
//! status = "selective"      # or "on", "off"
//! percent = 10              # of all keys, always the same ones: 20 keeps the first 10
//! by = "forum"
//! include = ["cnn"]         # on, whatever the percentage
//! exclude = []              # off, whatever else
//!
//! [switches]
//! url = "redis://127.0.0.1:6379"
//! key = "glue.switches"     # a hash: name -> on | off | inherit | percentage | JSON of the keys above
//! ```
//!
//! The file gives a switch's initial state. The hash, if configured, has precedence; a message on the pub/sub channel
//! of the same name triggers a reread, which also happens every few seconds. While Redis is unreachable, the last known
//! state applies. [`live`] reads the tables and follows the hash; here is what a switch decides.

pub mod live;

use std::sync::Arc;

use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;

use crate::event::Event;
use crate::field::FieldPath;

/// Percentages are exact to a hundredth.
const STEPS: u64 = 10_000;

/// State of a switch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub status: Status,
    pub percent: f64,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// For switches that carry a value, such as `route.force`.
    pub value: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Off,
    On,
    Selective,
}

#[derive(Debug)]
pub struct Switch {
    name: String,
    /// Set once, from the file.
    by: RwLock<Option<FieldPath>>,
    file: RwLock<State>,
    live: RwLock<Option<State>>,
}

impl Switch {
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            by: RwLock::default(),
            file: RwLock::default(),
            live: RwLock::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn define(&self, state: State, by: Option<FieldPath>) {
        *self.file.write() = state;
        *self.by.write() = by;
    }

    /// Sets the state from the hash; `None` inherits from the file.
    pub fn set_live(&self, state: Option<State>) {
        let before = std::mem::replace(&mut *self.live.write(), state.clone());
        if before != state {
            tracing::info!("switch {}: now {}", self.name, self.describe());
        }
    }

    pub fn state(&self) -> State {
        self.live.read().clone().unwrap_or_else(|| self.file.read().clone())
    }

    pub fn is_on(&self, event: &Event) -> bool {
        let live = self.live.read();
        let file;
        let state = match &*live {
            Some(state) => state,
            None => {
                file = self.file.read();
                &*file
            }
        };
        match state.status {
            Status::Off => false,
            Status::On => true,
            Status::Selective => self.selects(state, event),
        }
    }

    fn selects(&self, state: &State, event: &Event) -> bool {
        let by = self.by.read();
        let Some(value) = by.as_ref().and_then(|by| by.get(event)) else {
            return false;
        };
        let Some(key) = event.digits.scalar(&value) else {
            return false;
        };
        if state.exclude.iter().any(|one| *one == *key) {
            return false;
        }
        state.include.iter().any(|one| *one == *key) || self.share_of(&key) < state.percent * 100.0
    }

    /// From 0 to 9999, constant for a switch and key, and independent of other switches.
    fn share_of(&self, key: &str) -> f64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.name.as_bytes()).update(b"\0").update(key.as_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u32::try_from(u64::from_le_bytes(bytes) % STEPS).map_or(0.0, f64::from)
    }

    /// A one-line summary for display.
    pub fn describe(&self) -> String {
        let State {
            status,
            percent,
            include,
            exclude,
            value,
        } = self.state();
        let source = if self.live.read().is_some() { "live" } else { "file" };
        let value = value.map_or(String::new(), |value| format!(", value \"{value}\""));
        match status {
            Status::Off => format!("off ({source})"),
            Status::On => format!("on{value} ({source})"),
            Status::Selective => {
                format!("selective: {percent} %, include {include:?}, exclude {exclude:?}{value} ({source})")
            }
        }
    }
}

impl State {
    /// Parses a field of the hash: a word, a percentage, or JSON. `Ok(None)` inherits.
    pub fn parse(text: &str, base: &Self) -> Result<Option<Self>, String> {
        let status = match text.trim() {
            "" | "inherit" => return Ok(None),
            "on" => Some(Status::On),
            "off" => Some(Status::Off),
            _ => None,
        };
        if let Some(status) = status {
            return Ok(Some(Self { status, ..base.clone() }));
        }
        let wrong = || format!("\"{text}\" is not on, off, inherit, a percentage or JSON");
        let value: Value = serde_json::from_str(text.trim().trim_end_matches('%')).map_err(|_| wrong())?;
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            status: Option<Status>,
            percent: Option<f64>,
            include: Option<Vec<String>>,
            exclude: Option<Vec<String>>,
            value: Option<String>,
        }
        let written = match value {
            Value::Number(percent) => Written {
                status: Some(Status::Selective),
                percent: percent.as_f64(),
                include: None,
                exclude: None,
                value: None,
            },
            Value::Object(_) => serde_json::from_value(value).map_err(|error| format!("\"{text}\": {error}"))?,
            _ => return Err(wrong()),
        };
        let percent = written.percent.unwrap_or(base.percent);
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("{percent} is not from 0 to 100"));
        }
        let implied = if written.percent.is_some() {
            Status::Selective
        } else {
            base.status
        };
        Ok(Some(Self {
            status: written.status.unwrap_or(implied),
            percent,
            include: written.include.unwrap_or_else(|| base.include.clone()),
            exclude: written.exclude.unwrap_or_else(|| base.exclude.clone()),
            value: written.value.or_else(|| base.value.clone()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::json;

    fn event(forum: &str) -> Event {
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        event.fields = Some(json!({"forum": forum}));
        event
    }

    fn switch(state: State) -> Arc<Switch> {
        let switch = Switch::new("s");
        switch.define(state, FieldPath::from_text("forum").ok());
        switch
    }

    fn selective(percent: f64) -> State {
        State {
            status: Status::Selective,
            percent,
            ..State::default()
        }
    }

    #[test]
    fn raising_the_percentage_keeps_those_who_were_in() {
        let chosen = |percent| {
            let switch = switch(selective(percent));
            (0..2000)
                .filter(|n| switch.is_on(&event(&n.to_string())))
                .collect::<Vec<_>>()
        };
        let (ten, twenty) = (chosen(10.0), chosen(20.0));
        assert!((150..250).contains(&ten.len()), "{}", ten.len());
        assert!((330..470).contains(&twenty.len()), "{}", twenty.len());
        assert!(ten.iter().all(|key| twenty.contains(key)));
        assert_eq!((chosen(0.0).len(), chosen(100.0).len()), (0, 2000));
    }

    #[test]
    fn lists_have_precedence_and_an_event_without_key_is_out() {
        let switch = switch(State {
            include: vec!["cnn".into()],
            exclude: vec!["bbc".into()],
            ..selective(0.0)
        });
        assert!(switch.is_on(&event("cnn")));
        switch.set_live(State::parse("100", &switch.state()).unwrap());
        assert!(switch.is_on(&event("x")) && !switch.is_on(&event("bbc")));
        let empty = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        assert!(!switch.is_on(&empty));
    }

    #[test]
    fn the_hash_has_precedence_until_it_says_inherit() {
        let switch = switch(State::default());
        let base = switch.state();
        for (text, on) in [
            ("on", true),
            ("off", false),
            ("inherit", false),
            ("{\"percent\": 100}", true),
            ("50.5 %", false),
        ] {
            switch.set_live(State::parse(text, &base).unwrap());
            assert_eq!(
                switch.is_on(&event("never-in-half")),
                on || (text == "50.5 %" && switch.share_of("never-in-half") < 5050.0),
                "{text}"
            );
        }
        for bad in ["maybe", "101", "{\"percnt\": 1}", "[]"] {
            assert!(State::parse(bad, &base).is_err(), "{bad}");
        }
    }
}
