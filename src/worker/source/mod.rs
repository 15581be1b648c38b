//! Sources: where events come from.
//!
//! A source runs on a thread of its own, claims as much as its [`Credit`] allows, gives each event its id and hands it to
//! its [`Feed`]. It learns through the event's [`Handle`](crate::finalizer::Handle) how it went, and acknowledges where that is possible. A queue
//! fits the same shape: claim a batch where `file` reads lines, finish a batch where `file` moves its checkpoint.
//!
//! Each source is one file. [`KINDS`] is the table of them.

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
use crate::config::cycle::Endpoint;
use crate::config::section::Section;
use crate::config::value::ByteSize;
use crate::credit::Credit;
use crate::engine::{Feed, Stop};
use crate::finalizer::Parked;
use crate::ops::finding::Finding;

/// What a source promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// An event is repeated until it is accepted, also over crashes.
    AtLeastOnce,
    /// A crash loses what is in flight, and whoever sent it has not been told that it is safe.
    Unacknowledged,
    /// A crash loses what is in flight.
    BestEffort,
}

/// How much may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `max_in_flight = 1024`: events claimed and not yet durably acknowledged.
    pub events: usize,
    /// `max_bytes = "32MiB"`: their raw size.
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

/// What a running source works with.
pub struct Context {
    /// As the configuration has it.
    pub name: String,
    /// A directory that survives restarts.
    pub state_dir: PathBuf,
    pub feed: Feed,
    pub stop: Stop,
}

pub type Run = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// A source as configured.
pub trait Source: Send {
    fn limits(&self) -> Limits;

    fn guarantee(&self) -> Guarantee;

    /// Does every event have an id that is the same in every delivery?
    fn gives_ids(&self) -> bool {
        true
    }

    /// Do events come in an order that holds over crashes and hand-overs?
    fn keeps_order(&self) -> bool {
        true
    }

    /// Do events bring their channels?
    fn gives_channels(&self) -> bool {
        false
    }

    /// Is it ready as soon as it runs, or will it say when?
    fn starts_ready(&self) -> bool {
        true
    }

    /// May it hold up its thread, as reading and writing files does? Then it gets one of its own.
    fn may_block(&self) -> bool {
        true
    }

    /// Where it takes connections, if it does: that stays open over a reload.
    fn listens(&self) -> Option<SocketAddr> {
        None
    }

    /// From where, if a sink of this worker might write there.
    fn reads(&self) -> Option<Endpoint> {
        None
    }

    /// How what it reads from is set up, if that can be asked.
    fn examine(&self) -> Option<Examination<'_>> {
        None
    }

    /// What was put in up to a moment and is not done, if the queue can be asked.
    fn open_since(&self, _until: Timestamp) -> Option<Operation<'_, Open>> {
        None
    }

    /// What it has parked with its broker, if it does that.
    fn parked(&self) -> Option<Box<dyn ParkedEvents>> {
        None
    }

    /// Claims until it is told to stop or there is nothing more, then sees what is in flight to its end.
    fn run(self: Box<Self>, context: Context) -> Run;
}

/// The dead letters that a source keeps with its broker, for operators.
pub trait ParkedEvents {
    fn list(&self) -> Operation<'_, Vec<ParkedEvent>>;

    /// Queues them again, as new events, and returns how many there were.
    fn retry(&self, ids: Vec<String>) -> Operation<'_, u64>;

    /// Forgets them, and returns how many there were.
    fn forget(&self, ids: Vec<String>) -> Operation<'_, u64>;
}

pub type Examination<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;

pub type Operation<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + 'a>>;

/// What is open in a queue.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Up to the moment that was asked for.
    pub events: u64,
    /// When the oldest of them was put in.
    pub oldest: Option<Timestamp>,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct ParkedEvent {
    /// what `retry` and `forget` know it by.
    pub id: String,
    /// JSON, as [`reason_json`] makes it.
    pub reason: String,
    /// The event as it came in.
    pub raw: Vec<u8>,
}

/// Why an event was parked, for those who find it with the broker.
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

/// One line of the table of sources.
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

/// An epoch for ids that restart with every process: now, and in any case later than the last one.
fn next_epoch(context: &Context) -> io::Result<u64> {
    let path = context.state_dir.join(format!("{}.epoch.json", context.name));
    let last: Option<u64> = checkpoint::load(&path)?;
    let epoch = last.map_or(0, |last| last + 1).max(Timestamp::now().0);
    checkpoint::store(&path, &epoch)?;
    Ok(epoch)
}
