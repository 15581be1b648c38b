//! Sources: the inputs of a worker.
//!
//! A source runs as a task of its own, claims as many events as its [`Credit`] allows, gives each an id and hands it to
//! its [`Feed`]. The event's [`Handle`](crate::finalizer::Handle) reports the outcome, which the source acknowledges
//! where that is possible. A queue fits the same shape: it claims a batch where `file` reads lines, and finishes a
//! batch where `file` moves its checkpoint.
//!
//! Each source is one file. [`KINDS`] lists them.

pub mod amqp;
pub mod file;
pub mod follow;
pub mod http_in;
pub mod nats;
mod open;
mod queue_driver;
pub mod recorded;
pub mod redis_pubsub;
pub mod redis_streams;
pub mod spool;
pub mod stdin;
pub mod thoonk;
mod trouble;
mod watch;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;

use crate::checkpoint;
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::config::value::ByteSize;
use crate::credit::Credit;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::finalizer::Parked;
pub use crate::ops::finding::{Examination, Operation};

/// Delivery guarantee of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// An event is repeated until it is accepted, also across crashes.
    AtLeastOnce,
    /// A crash loses events in flight, whose senders have had no acknowledgement yet.
    Unacknowledged,
    /// A crash loses events in flight.
    BestEffort,
}

/// Bounds on events in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `max_in_flight = 1024`: events claimed and not yet durably acknowledged.
    pub events: usize,
    /// `max_bytes = "32MiB"`: their total raw size.
    pub bytes: usize,
}

impl Limits {
    pub fn read(section: &Section<'_>) -> Self {
        let events = section.or("max_in_flight", 1024);
        let ByteSize(bytes) = section.or("max_bytes", ByteSize(32 << 20));
        if events == 0 || events > Credit::MAX_BYTES {
            section.complain_at("max_in_flight", "must be from 1 to 4294967295");
        }
        if bytes == 0 || bytes > Credit::MAX_BYTES {
            section.complain_at("max_bytes", "must be from 1B to 4294967295B");
        }
        Self { events, bytes }
    }
}

/// Everything a running source needs.
pub struct Context {
    /// The configured name.
    pub name: String,
    /// A directory that survives restarts.
    pub state_dir: PathBuf,
    pub feed: Feed,
    pub stop: Stop,
}

pub type Run = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// A configured source.
pub trait Source: Send {
    fn limits(&self) -> Limits;

    fn guarantee(&self) -> Guarantee;

    /// Does every event have an id that is the same in every delivery?
    fn gives_ids(&self) -> bool {
        true
    }

    /// Do events come in an order that holds across crashes and hand-overs?
    fn keeps_order(&self) -> bool {
        true
    }

    /// Do events carry their channels?
    fn gives_channels(&self) -> bool {
        false
    }

    /// Is it ready as soon as it runs, or does it report readiness itself?
    fn starts_ready(&self) -> bool {
        true
    }

    /// May it block its thread, as file I/O does? Then it gets a thread of its own.
    fn may_block(&self) -> bool {
        true
    }

    /// Its listening address, if any: the listener stays open over a reload.
    fn listens(&self) -> Option<SocketAddr> {
        None
    }

    /// What it reads from, if a sink of this worker might write there.
    fn reads(&self) -> Option<Endpoint> {
        None
    }

    /// Checks the setup of its input, if that can be queried.
    fn examine(&self) -> Option<Examination<'_>> {
        None
    }

    /// Events queued up to a moment and not finished, if the queue can be queried.
    fn open_since(&self, _until: Timestamp) -> Option<Operation<'_, Open>> {
        None
    }

    /// Its dead letters at the broker, if it stores any there.
    fn parked(&self) -> Option<Box<dyn ParkedEvents>> {
        None
    }

    /// Claims until told to stop or the input ends, then waits for the events in flight.
    fn run(self: Box<Self>, context: Context) -> Run;
}

/// The dead letters that a source keeps with its broker, for operators.
pub trait ParkedEvents {
    fn list(&self) -> Operation<'_, Vec<ParkedEvent>>;

    /// Queues them again, as new events, and returns their number.
    fn retry(&self, ids: Vec<String>) -> Operation<'_, u64>;

    /// Deletes them, and returns their number.
    fn forget(&self, ids: Vec<String>) -> Operation<'_, u64>;
}

/// Unfinished events of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Number of events queued up to the requested moment.
    pub events: u64,
    /// When the oldest of them was queued.
    pub oldest: Option<Timestamp>,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct ParkedEvent {
    /// Id for `retry` and `forget`.
    pub id: String,
    /// JSON, as [`reason_json`] makes it.
    pub reason: String,
    /// The original input.
    pub raw: Vec<u8>,
}

/// The reason for parking, as stored with the broker.
fn reason_json(parked: &Parked) -> String {
    serde_json::json!({
        "reason": parked.text,
        "component": parked.component,
        "pipeline": parked.pipeline,
        "event_id": parked.id,
        "attempts": parked.attempts,
        "parked": Timestamp::now().to_string(),
    })
    .to_string()
}

/// An entry of the table of sources.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Box<dyn Source>>,
}

pub const KINDS: &[Kind] = &[
    thoonk::KIND,
    redis_streams::KIND,
    amqp::KIND,
    nats::KIND,
    redis_pubsub::KIND,
    file::KIND,
    http_in::KIND,
    stdin::KIND,
];

/// An epoch for ids that restart with every process: the current time, but always later than the last epoch.
fn next_epoch(context: &Context) -> io::Result<u64> {
    let path = context.state_dir.join(format!("{}.epoch.json", context.name));
    let last: Option<u64> = checkpoint::load(&path)?;
    let epoch = last.map_or(0, |last| last + 1).max(Timestamp::now().0);
    checkpoint::store(&path, &epoch)?;
    Ok(epoch)
}
