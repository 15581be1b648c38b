//! `filter`: keeps the events for which a condition holds, and drops the others on purpose.
//!
//! ```toml
//! approved = { type = "filter", keep = "approved and not author.banned" }
//! ```
//!
//! The condition is a minijinja expression over the fields and `_event.id`, `.time`, `.type`, `.channels`; missing
//! values are false. A condition that cannot be evaluated, such as the sum of a number and a list, parks the event.

use std::sync::Arc;

use super::expression::Condition;
use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::Event;

pub const KIND: Kind = Kind {
    name: "filter",
    about: "keeps the events for which a condition holds",
    read,
};

struct Filter(Condition);

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    Some(Arc::new(Filter(section.required("keep")?)))
}

impl Stage for Filter {
    fn run(&self, event: &mut Event) -> Flow {
        match self.0.holds(event) {
            Ok(true) => Flow::Next,
            Ok(false) => Flow::Drop("filter"),
            Err(reason) => Flow::Park(reason),
        }
    }
}
