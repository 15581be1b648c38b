//! `gate`: lets through the events for which a switch is on.
//!
//! ```toml
//! some = { type = "gate", switch = "secure-firehose" }
//! ```
//!
//! `gate = "secure-firehose"` in a pipeline inserts such a stage right after its `parse_json`.

use std::sync::Arc;

use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::Event;
use crate::switch::Switch;

pub const KIND: Kind = Kind {
    name: "gate",
    about: "lets through what a switch is on for",
    read,
};

pub struct Gate(Arc<Switch>);

impl Gate {
    pub fn new(switch: Arc<Switch>) -> Self {
        Self(switch)
    }
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    if !section.has("switch") {
        section.required::<String>("switch");
    }
    Some(Arc::new(Gate(section.switch("switch")?)))
}

impl Stage for Gate {
    fn run(&self, event: &mut Event) -> Flow {
        match self.0.is_on(event) {
            true => Flow::Next,
            false => Flow::Drop("gate"),
        }
    }
}
