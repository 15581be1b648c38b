//! The delivery's state: one value in each process, borrowed for short steps.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use push_stream_core::store::{Worker, Zone};

use super::asking::Asking;
use super::changes::Control;
use super::compression::Compression;
use super::contexts::Neighbours;
use super::disconnect_log::DisconnectLog;
use super::events::Events;
use super::handover::sessions::Handover;
use super::inbox::Inbox;
use super::local_counters::{LocalCounters, Reported};
use super::registry::Registry;
use super::subjects::Dismissals;
use super::subscriber::SubscriberId;
use super::timer_wheel::TimerWheel;
use super::top_channels::TopChannels;
use crate::config::Settings;
use crate::ffi::cell::ProcessCell;

/// All delivery state of this process.
pub static PROCESS: ProcessCell<Delivery> = ProcessCell::empty();

/// One worker's part of the delivery.
pub struct Delivery {
    pub zone: Zone,
    /// None while no slot of the zone is free.
    pub worker: Option<Worker>,
    pub settings: Rc<Settings>,
    pub registry: Registry,
    pub inbox: Inbox,
    pub compression: Compression,
    pub timer_wheel: TimerWheel,
    /// Indices of subscribers whose timer has expired and that are not handled yet.
    pub due: VecDeque<u32>,
    /// Subscribers to try to detach once none of their request's handlers is running.
    pub settling: Vec<SubscriberId>,
    /// Detached subscribers whose TLS could not be taken over yet.
    pub tls_held: Vec<SubscriberId>,
    pub neighbours: Neighbours,
    /// Start of the last slice of work, if that left more to do.
    pub slice_before: Option<Instant>,
    pub events: &'static Events,
    pub shutdown: Shutdown,
    pub counters: Counters,
    pub local_counters: LocalCounters,
    pub top_channels: TopChannels,
    pub handover: Handover,
    /// Commands for this worker that are being obeyed, and its own requests that wait for answers.
    pub control: Control,
    pub dismissals: Dismissals,
    pub asking: Asking,
    pub reported: Reported,
    pub disconnect_log: DisconnectLog,
}

/// Counts of slow readers and ended subscribers in this worker.
#[derive(Default)]
pub struct Counters {
    /// Messages dropped by the policies `skip` and `latest`.
    pub dropped: u64,
    /// Connections closed by the policy `close`.
    pub too_slow: u64,
    /// Subscribers ended since memory was last given back, now and at the last tick.
    pub ended: usize,
    pub ended_before: usize,
    /// When memory was last given back.
    pub trimmed_ms: u64,
}

/// Progress of the shutdown.
#[derive(Default)]
pub struct Shutdown {
    /// When it began and when all subscribers must have ended.
    pub span: Option<(u64, u64)>,
    /// Subscribers up to this index have been ended.
    pub next: u32,
}

impl Shutdown {
    pub fn begun(&self) -> bool {
        self.span.is_some()
    }
}
