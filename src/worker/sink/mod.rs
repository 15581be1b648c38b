//! Sinks: where events end.
//!
//! A sink is configured once, started once ([`Sink::start`]: threads, health shared by all lanes) and opened by every
//! lane ([`RunningSink::open`]: connections of that lane's own). [`LaneSink::deliver`] returns when the event is settled
//! there, all retries included; the lane keeps events of one key from overtaking each other. How a sink groups the events of
//! different keys that wait for it at the same time is its own affair.
//!
//! Each sink is one file. [`KINDS`] is the table of them.

pub mod file;
pub mod http_push;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::section::Section;
use crate::event::Event;
use crate::ops::metrics::Metrics;

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// No further attempt will be made; the event is to be parked.
    Refused {
        reason: String,
        attempts: u32,
    },
}

pub type Delivery<'a> = Pin<Box<dyn Future<Output = Verdict> + 'a>>;

/// A sink as configured.
pub trait Sink: Send + Sync {
    /// Must it accept an event before the source may forget it?
    fn is_required(&self) -> bool {
        true
    }

    /// Does it publish to channels? Then `validate` wants a `route` stage before it.
    fn needs_channels(&self) -> bool {
        false
    }

    fn start(&self, name: &str, metrics: &Metrics) -> io::Result<Arc<dyn RunningSink>>;
}

/// A sink that has what all lanes share.
pub trait RunningSink: Send + Sync {
    fn open(&self) -> Rc<dyn LaneSink>;
}

/// One lane's end of a sink.
pub trait LaneSink {
    /// The event is sealed: its body is what is sent, however often.
    fn deliver<'a>(&'a self, event: &'a Event) -> Delivery<'a>;
}

/// One line of the table of sinks.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Arc<dyn Sink>>,
}

pub const KINDS: &[Kind] = &[http_push::KIND, file::KIND];
