//! Stages: what happens to an event between source and sinks.
//!
//! A stage is synchronous, pure and shared by all lanes: no I/O, no waiting, no state that one event leaves for the
//! next. That is what lets a lane run a whole pipeline inline and repeat it after a panic.
//!
//! Each stage is one file: its configuration, how it is read, how it runs, its tests. [`KINDS`] is the table of them.

pub mod anonymise;
pub mod clean_html;
pub mod format;
pub mod parse_json;
pub mod route;

use std::sync::Arc;

use crate::config::section::Section;
use crate::event::Event;
use crate::field::FieldPath;

/// What to do with an event after a stage.
#[derive(Debug)]
pub enum Flow {
    /// Hand it to the next stage.
    Next,
    /// Leave it out on purpose. The reason is a metrics label: a few words, no data.
    Drop(&'static str),
    /// Put it in the dead-letter file.
    Park(String),
    /// Go on with these instead. The pipeline numbers their ids.
    Split(Vec<Event>),
}

pub trait Stage: Send + Sync {
    fn run(&self, event: &mut Event) -> Flow;

    /// Does it work on parsed fields? Then `validate` wants a `parse_json` before it.
    fn needs_fields(&self) -> bool {
        true
    }

    /// Does it parse the raw bytes into fields?
    fn gives_fields(&self) -> bool {
        false
    }

    /// Does it choose channels? A sink that publishes needs one of these before it.
    fn gives_channels(&self) -> bool {
        false
    }

    /// The order it asks for, if it has a say in that.
    fn order(&self) -> Option<Order> {
        None
    }
}

/// Which events of a pipeline must stay in the order of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// All of them.
    Source,
    /// Those with the same value in this field of the incoming event. Events without it keep order among themselves.
    By(FieldPath),
    /// None.
    Unordered,
}

/// One line of the table of stages.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Arc<dyn Stage>>,
}

pub const KINDS: &[Kind] = &[
    parse_json::KIND,
    anonymise::KIND,
    clean_html::KIND,
    format::KIND,
    route::KIND,
];

/// What to do about a field that is missing, null or of the wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Null,
    Skip,
    Park,
}
