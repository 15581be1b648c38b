//! What is counted outside of the lock: by all workers of all generations together, since the zone was made.
//!
//! Each count is one atomic word, so that a death loses at most what a worker had not added yet. Workers add up for
//! themselves what happens to each subscriber, and add that here once for many.

use std::sync::atomic::Ordering;

use super::layout::{COUNTERS, FANOUT_BUCKETS, FANOUT_FIRST, FANOUT_SUM, slot};
use super::memory::Memory;
use super::{Refusal, Worker};

/// Declares the counts, each with its number in the zone, and a list of them.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// One count. Its number is its place in the zone: it stays, whatever comes and goes beside it.
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
    /// Messages handed to a subscriber, once for each.
    Delivered = 0,
    /// Subscribers that were told that they have missed something.
    GapNotice = 1,
    /// Slow readers whose connection was closed.
    SlowClose = 2,
    /// Slow readers that missed their oldest messages, once for each time that room was made.
    SlowSkip = 3,
    /// Slow readers that missed all but the newest message.
    SlowLatest = 4,
    /// Workers woken by another one.
    WakeupSignal = 5,
    /// Workers that had something to take from themselves.
    WakeupOwn = 6,
    /// Workers that found something although nobody had woken them.
    WakeupTimer = 7,
    /// Messages refused: no room.
    RefusedFull = 8,
    /// A limit, as that of channels.
    RefusedLimit = 9,
    /// The request or line was no message.
    RefusedInvalid = 10,
    /// The channel is not for publishers.
    RefusedForbidden = 11,
    /// An earlier line of the same batch was refused.
    RefusedDependency = 12,
    /// The event id was not above the channel's newest.
    RefusedOutOfOrder = 13,
    /// Messages skipped because their id had been accepted before.
    Duplicate = 14,
    /// Subscriptions refused: a limit, as that of subscribers of a channel.
    SubscriberLimit = 15,
    /// The channel is not for it, or may not be created by it.
    SubscriberForbidden = 16,
    /// The request was no subscription.
    SubscriberInvalid = 17,
    /// No room.
    SubscriberFull = 18,
    /// The worker could not serve it.
    SubscriberUnavailable = 19,
    /// Streams that ended, by what ended them.
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
    /// Subscribers that a leaving worker gave to another one.
    HandedOver = 31,
}

const _: () = assert!(FANOUT_BUCKETS == Fanout::BOUNDS_MS.len() + 1);

/// How long messages took from their publication until a worker had sent them to the last of its subscribers. One
/// observation per message and worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fanout {
    /// Observations in each bucket: not more than its bound and more than the one before.
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

/// All counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; COUNTERS]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([0; COUNTERS])
    }
}

impl Counts {
    pub(super) fn of(memory: &Memory) -> Counts {
        // Counts that belong together may be read a moment apart: they are for people.
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
            // Nothing else depends on the order in which others see it.
            self.counter(index).fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Refusal {
    /// What a message that is refused so counts as.
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
    /// Counts a message that was refused.
    pub fn count_refusal(&self, refusal: Refusal) {
        self.count(refusal.counter(), 1);
    }

    /// Adds to a count.
    pub fn count(&self, counter: Counter, more: u64) {
        self.memory().count(counter, more);
    }

    /// Adds observations, and forgets them in `fanout`.
    pub fn count_fanout(&self, fanout: &mut Fanout) {
        let Fanout { buckets, sum_ms } = std::mem::take(fanout);
        for (index, count) in buckets.into_iter().enumerate() {
            self.memory().add_to(FANOUT_FIRST + index, count);
        }
        self.memory().add_to(FANOUT_SUM, sum_ms);
    }

    /// Says how many bytes wait for this worker's slow readers.
    pub fn set_queued_bytes(&self, bytes: u64) {
        self.memory().init(self.slot, slot::queued, bytes);
    }

    /// Is there something to take although nobody has said so? A publisher died before it could, or will say so in a moment.
    pub fn is_overlooked(&self) -> bool {
        !self.is_woken() && self.memory().peek(self.slot, slot::dirty_first).some().is_some()
    }
}
