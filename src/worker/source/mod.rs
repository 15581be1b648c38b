//! Sources: where events come from.
//!
//! A source runs on a thread of its own, claims as much as its [`Credit`](crate::credit::Credit) allows, gives each event its id and hands it to
//! its [`Feed`]. It learns through the event's [`Handle`](crate::finalizer::Handle) how it went, and acknowledges where that is possible. A queue
//! fits the same shape: claim a batch where `file` reads lines, finish a batch where `file` moves its checkpoint.
//!
//! Each source is one file. [`KINDS`] is the table of them.

pub mod file;
pub mod follow;
pub mod http_in;
pub mod spool;
pub mod stdin;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use crate::checkpoint;
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::config::value::ByteSize;
use crate::credit::Credit;
use crate::engine::{Feed, Stop};

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

    /// Claims until it is told to stop or there is nothing more, then sees what is in flight to its end.
    fn run(self: Box<Self>, context: Context) -> Run;
}

/// One line of the table of sources.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Box<dyn Source>>,
}

pub const KINDS: &[Kind] = &[file::KIND, http_in::KIND, stdin::KIND];

/// An epoch for ids that restart with every process: now, and in any case later than the last one.
fn next_epoch(context: &Context) -> io::Result<u64> {
    let path = context.state_dir.join(format!("{}.epoch.json", context.name));
    let last: Option<u64> = checkpoint::load(&path)?;
    let epoch = last.map_or(0, |last| last + 1).max(Timestamp::now().0);
    checkpoint::store(&path, &epoch)?;
    Ok(epoch)
}
