//! Sinks: where events end.
//!
//! A sink is configured once, started once ([`Sink::start`]: sinks' publishers, health shared by all lanes) and opened by every
//! lane ([`RunningSink::open`]: connections of that lane's own). [`LaneSink::deliver`] takes the event at once, and its future ends when the event is
//! settled there, all retries included. A sink that keeps the order of these calls says so ([`RunningSink::keeps_order`]) and may then group events as
//! it likes; for any other, the lane keeps events of one key from overtaking each other. A sink that wants the order of the source over all
//! lanes gives out reservations ([`RunningSink::reserve`]).
//!
//! Each sink is one file. [`KINDS`] is the table of them.

pub mod file;
pub mod http_push;
pub mod null;
pub mod redis_stream;
pub mod webhook;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::client::{Address, Tls};
use crate::config::cycle::Endpoint;
use crate::config::section::Section;
use crate::engine::lane_thread::LaneThreads;
use crate::engine::sequencer::Reservation;
use crate::engine::settlement::SinkAck;
use crate::event::{Event, OrderedId};
use crate::ops::metrics::Metrics;
use crate::ops::watchdog::Watchdog;
use crate::source::{Examination, Operation};

/// How a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Another worker has the claim by now: nothing more was sent, and nothing is known.
    Released,
    /// No further attempt will be made; the event is to be parked.
    Refused {
        reason: String,
        attempts: u32,
    },
}

pub type Delivery = Pin<Box<dyn Future<Output = Verdict>>>;

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

    /// Is it of no use without ids that are the same in every delivery? Then `validate` refuses a source that has none.
    fn needs_ids(&self) -> bool {
        false
    }

    /// Whom it talks to, for a look whether they are there.
    fn addresses(&self) -> Vec<(Address, Option<Tls>)> {
        Vec::new()
    }

    /// Where events go that a source of this worker might read.
    fn writes(&self) -> Vec<Endpoint> {
        Vec::new()
    }

    /// More than whether they are there, if that can be asked.
    fn examine(&self) -> Option<Examination<'_>> {
        None
    }

    /// The newest id in a channel, if it publishes to channels whose ids have an order.
    fn newest_id<'a>(&'a self, _channel: &'a str) -> Option<Operation<'a, Option<OrderedId>>> {
        None
    }

    /// The same sink, for which an event that comes too late is not as good as one that was taken; if it may have thought so.
    fn refusing_stale(&self) -> Option<Arc<dyn Sink>> {
        None
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>>;
}

/// What a sink starts with.
pub struct Scene<'a> {
    /// The name the user gave.
    pub name: &'a str,
    pub metrics: &'a Metrics,
    pub watchdog: &'a Arc<Watchdog>,
    /// Does every event that comes here have an id?
    pub has_ids: bool,
    pub threads: &'a mut LaneThreads,
}

impl Scene<'_> {
    /// Has one of the engine's threads do this, watched under this name.
    pub fn run<F>(&mut self, name: String, work: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let beat = self.watchdog.watch(name);
        self.threads.take_next().sink(work, beat);
    }
}

/// A sink that has what all lanes share.
pub trait RunningSink: Send + Sync {
    fn open(&self) -> Rc<dyn LaneSink>;

    /// Are events settled there in the order in which they are handed over?
    fn keeps_order(&self) -> bool {
        false
    }

    /// A place in the order of the source, if it wants one. Called for each event before any lane has it.
    fn reserve(&self) -> Option<Reservation> {
        None
    }
}

/// One lane's end of a sink.
pub trait LaneSink {
    /// The event is sealed: its body is what is sent, however often.
    fn deliver(&self, event: Arc<Event>, reservation: Option<Reservation>) -> Delivery;

    /// Does it need no task of the lane to settle an event?
    fn direct(&self) -> Option<&dyn DirectSink> {
        None
    }
}

/// A sink that settles events in a task of its own.
pub trait DirectSink {
    /// As [`LaneSink::deliver`]; the verdict goes to `sink_ack`.
    fn hand_over(&self, event: Arc<Event>, reservation: Option<Reservation>, sink_ack: SinkAck);
}

/// One line of the table of sinks.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Arc<dyn Sink>>,
}

pub const KINDS: &[Kind] = &[
    http_push::KIND,
    file::KIND,
    redis_stream::KIND,
    webhook::KIND,
    null::KIND,
];
