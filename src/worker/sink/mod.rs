//! Sinks: the outputs of a worker.
//!
//! A sink is configured once, started once ([`Sink::start`]: sinks' publishers, health shared by all lanes) and opened
//! by every lane ([`RunningSink::open`]: that lane's own connections). [`LaneSink::deliver`] takes the event at once,
//! and its future ends when the event is settled there, all retries included. A sink that keeps the order of these
//! calls declares it ([`RunningSink::keeps_order`]) and may then group events freely; for any other, the lane keeps
//! events of one key from overtaking each other. A sink that wants the order of the source over all lanes gives out
//! reservations ([`RunningSink::reserve`]).
//!
//! Each sink is one file. [`KINDS`] lists them.

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
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::engine::sequencer::Reservation;
use crate::engine::settlement::SinkAck;
pub use crate::engine::settlement::Verdict;
use crate::engine::spawn::Spawn;
use crate::event::{Event, OrderedId};
use crate::ops::finding::{Examination, Operation};
use crate::ops::metrics::Metrics;

pub type Delivery = Pin<Box<dyn Future<Output = Verdict>>>;

/// A configured sink.
pub trait Sink: Send + Sync {
    /// Must it accept an event before the source may discard it?
    fn is_required(&self) -> bool {
        true
    }

    /// Does it publish to channels? Then `validate` wants a `route` stage before it.
    fn needs_channels(&self) -> bool {
        false
    }

    /// Does it need ids that are the same in every delivery? Then `validate` refuses a source without them.
    fn needs_ids(&self) -> bool {
        false
    }

    /// Its servers, for connectivity checks.
    fn addresses(&self) -> Vec<(Address, Option<Tls>)> {
        Vec::new()
    }

    /// Where it writes, if a source of this worker might read there.
    fn writes(&self) -> Vec<Endpoint> {
        Vec::new()
    }

    /// Checks beyond connectivity, if available.
    fn examine(&self) -> Option<Examination<'_>> {
        None
    }

    /// The newest id in a channel, if it publishes to channels whose ids have an order.
    fn newest_id<'a>(&'a self, _channel: &'a str) -> Option<Operation<'a, Option<OrderedId>>> {
        None
    }

    /// The same sink with stale events refused instead of accepted; `None` if it never accepts stale events.
    fn refusing_stale(&self) -> Option<Arc<dyn Sink>> {
        None
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>>;
}

/// Everything a sink needs to start.
pub struct Scene<'a> {
    /// The configured name.
    pub name: &'a str,
    pub metrics: &'a Metrics,
    /// Does every event that reaches this sink have an id?
    pub has_ids: bool,
    pub spawn: &'a mut dyn Spawn,
}

impl Scene<'_> {
    /// Runs this task on one of the engine's threads, watched under this name.
    pub fn run<F>(&mut self, name: String, work: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        self.spawn.spawn(name, Box::new(|| Box::pin(work())));
    }
}

/// The part of a running sink that all lanes share.
pub trait RunningSink: Send + Sync {
    fn open(&self) -> Rc<dyn LaneSink>;

    /// Are events settled in the order in which they are handed over?
    fn keeps_order(&self) -> bool {
        false
    }

    /// A place in the order of the source, if the sink uses it. Called for each event before it goes to a lane.
    fn reserve(&self) -> Option<Reservation> {
        None
    }
}

/// One lane's part of a sink.
pub trait LaneSink {
    /// The event is sealed: every attempt sends the same body.
    fn deliver(&self, event: Arc<Event>, reservation: Option<Reservation>) -> Delivery;

    /// Can it settle events without a task of the lane?
    fn direct(&self) -> Option<&dyn DirectSink> {
        None
    }
}

/// A sink that settles events in its own task.
pub trait DirectSink {
    /// As [`LaneSink::deliver`]; the verdict goes to `sink_ack`.
    fn hand_over(&self, event: Arc<Event>, reservation: Option<Reservation>, sink_ack: SinkAck);
}

/// An entry of the table of sinks.
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
