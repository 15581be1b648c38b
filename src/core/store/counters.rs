//! Counters outside of the lock: summed over all workers of all generations, since the zone was created.
//!
//! Each counter is one atomic word, so that a death loses at most what a worker had not added yet. Workers accumulate
//! per-subscriber counts locally, and add the sums here.

use std::sync::atomic::Ordering;

use super::layout::{COUNTERS, FANOUT_BUCKETS, FANOUT_FIRST, FANOUT_SUM, slot};
use super::memory::Memory;
use super::{Refusal, Worker};

/// Declares the counters, each with its number in the zone, and a list of them.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A counter. Its number is its place in the zone, and stays when others are added or removed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name = $number,)*
        }

        impl Counter {
            pub const ALL: &[Counter] = &[$(Counter::$name),*];
        }

        const _: () = {
            $(assert!($number < FANOUT_SUM);)*
        };
    };
}

counters! {
    /// Messages delivered, counted per subscriber.
    Delivered = 0,
    /// Subscribers that were sent a gap notice.
    GapNotice = 1,
    /// Slow readers whose connection was closed.
    SlowClose = 2,
    /// Slow readers that skipped their oldest messages, once for each time that room was made.
    SlowSkip = 3,
    /// Slow readers that skipped all but the newest message.
    SlowLatest = 4,
    /// Workers signalled by another process.
    WakeupSignal = 5,
    /// Workers that had messages of their own to take.
    WakeupOwn = 6,
    /// Workers that found messages in the tick, without a signal.
    WakeupTimer = 7,
    /// Messages refused: the zone is full.
    RefusedFull = 8,
    /// A limit, such as that of channels.
    RefusedLimit = 9,
    /// The request or line was not a valid message.
    RefusedInvalid = 10,
    /// The channel does not accept publishers.
    RefusedForbidden = 11,
    /// An earlier line of the same batch was refused.
    RefusedDependency = 12,
    /// The event id was not above the channel's newest.
    RefusedOutOfOrder = 13,
    /// Messages skipped because their id was already accepted.
    Duplicate = 14,
    /// Subscriptions refused: a limit, such as that of subscribers of a channel.
    SubscriberLimit = 15,
    /// The subscriber may not follow or create the channel.
    SubscriberForbidden = 16,
    /// The request was not a valid subscription.
    SubscriberInvalid = 17,
    /// The zone is full.
    SubscriberFull = 18,
    /// The worker could not serve the subscriber.
    SubscriberUnavailable = 19,
    /// Streams ended, by cause.
    ClosedByClient = 20,
    ClosedByCloseFrame = 21,
    ClosedForViolation = 22,
    ClosedDeadPeer = 23,
    ClosedTimedOut = 24,
    ClosedTooSlow = 25,
    ClosedWriteFailed = 26,
    ClosedTtl = 27,
    ClosedChannelDeleted = 28,
    ClosedDismissed = 29,
    ClosedWorkerExit = 30,
    /// Subscribers that a leaving worker handed over to another one.
    HandedOver = 31,
}

const _: () = assert!(FANOUT_BUCKETS == Fanout::BOUNDS_MS.len() + 1);

/// Fan-out latency: time from a message's publication until a worker had sent it to the last of its subscribers. One
/// observation per message and worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fanout {
    /// Observations in each bucket: up to its bound and above the previous one.
    pub buckets: [u64; FANOUT_BUCKETS],
    pub sum_ms: u64,
}

impl Fanout {
    /// Upper bounds of all buckets but the last.
    pub const BOUNDS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000];

    pub fn observe(&mut self, took_ms: u64) {
        self.buckets[Fanout::BOUNDS_MS.partition_point(|&bound| bound < took_ms)] += 1;
        self.sum_ms += took_ms;
    }
}

/// All counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; COUNTERS]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([0; COUNTERS])
    }
}

impl Counts {
    pub(super) fn of(memory: &Memory) -> Counts {
        // Related counters may be read a moment apart: they are for display.
        Counts(std::array::from_fn(|index| {
            memory.counter(index).load(Ordering::Relaxed)
        }))
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    pub fn fanout(&self) -> Fanout {
        Fanout {
            buckets: std::array::from_fn(|index| self.0[FANOUT_FIRST + index]),
            sum_ms: self.0[FANOUT_SUM],
        }
    }
}

impl Memory {
    pub fn count(&self, counter: Counter, more: u64) {
        self.add_to(counter as usize, more);
    }

    fn add_to(&self, index: usize, more: u64) {
        if more > 0 {
            // No other data depends on the order in which other processes see it.
            self.counter(index).fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Refusal {
    /// The counter of messages refused for this reason.
    pub fn counter(self) -> Counter {
        match self {
            Refusal::Full | Refusal::NothingToEvict => Counter::RefusedFull,
            Refusal::TooManyChannels | Refusal::TooManySubscribers | Refusal::TooManyFromAddress => {
                Counter::RefusedLimit
            }
            Refusal::TooLarge => Counter::RefusedInvalid,
            Refusal::OutOfOrder => Counter::RefusedOutOfOrder,
            Refusal::MayNotCreate | Refusal::EventsChannel => Counter::RefusedForbidden,
        }
    }
}

impl Worker {
    /// Counts a refused message.
    pub fn count_refusal(&self, refusal: Refusal) {
        self.count(refusal.counter(), 1);
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, more: u64) {
        self.memory().count(counter, more);
    }

    /// Adds the observations, and clears `fanout`.
    pub fn count_fanout(&self, fanout: &mut Fanout) {
        let Fanout { buckets, sum_ms } = std::mem::take(fanout);
        for (index, count) in buckets.into_iter().enumerate() {
            self.memory().add_to(FANOUT_FIRST + index, count);
        }
        self.memory().add_to(FANOUT_SUM, sum_ms);
    }

    /// Publishes the number of bytes queued for this worker's slow readers.
    pub fn set_queued_bytes(&self, bytes: u64) {
        self.memory().init(self.slot, slot::queued, bytes);
    }

    /// Are there messages for this worker without a signal? The publisher died before the signal, or is about to send
    /// it.
    pub fn is_overlooked(&self) -> bool {
        !self.is_woken() && self.memory().peek(self.slot, slot::dirty_first).some().is_some()
    }
}
