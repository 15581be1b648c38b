//! What each nginx worker does once a second.

use std::time::Instant;

use push_stream_core::store::{Counter, Now, Tick};

use super::state::Delivery;
use super::top_channels::{Counts, PERIOD_MS, Tops, Walk};

/// Interval of housekeeping, and of a check of the inbox in case a publisher died before it could wake this worker.
pub const TICK_MS: u64 = 1000;

/// Delay of the next slice of housekeeping, if one was not enough.
const SOON_MS: u64 = 10;

/// Subscribers that must have ended before a worker gives memory back to the system, and the minimum interval.
const TRIM_AFTER: usize = 256;
const TRIM_EVERY_MS: u64 = 10_000;

/// Pause between two slices of a walk.
const PAUSE_MS: u64 = 2;

impl Delivery {
    pub fn tick(&mut self) {
        let now = Now::read();
        let mut next = TICK_MS;
        if self.worker.is_none() {
            self.claim();
        } else if self.events.deaf.get() {
            self.listen();
        }
        if let Some(worker) = &mut self.worker
            && worker.tick(now) == Tick::More
        {
            next = SOON_MS;
        }
        if let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_overlooked()) {
            worker.count(Counter::WakeupTimer, 1);
        }
        let bad_files = self.settings.tokens.look_after_files(now.monotonic_ms);
        if let Some(worker) = self.worker.as_ref().filter(|_| bad_files > 0) {
            worker.count(Counter::TokenFileBad, bad_files);
        }
        self.count();
        self.compression.tidy();
        self.report(now);
        self.start_top_channels_walk(now);
        self.look_after_taking(now.monotonic_ms);
        self.forget_buffers();
        self.look_after_held();
        self.give_memory_back(now.monotonic_ms);
        self.wake();
        self.events.tick_in(next);
    }

    /// Records the time without a poll for events: from one slice to the next, if nginx did not sleep in between.
    pub fn pace(&mut self, started: Instant, more: bool) {
        let before = std::mem::replace(&mut self.slice_before, more.then_some(started));
        let took = started.elapsed();
        let stretch = before.map_or(took, |before| started.duration_since(before));
        if let Some(worker) = &self.worker {
            worker.note_stretch(stretch.max(took));
        }
    }

    /// Records the time without a poll for events of a turn that was not part of handing out.
    pub fn note_turn(&mut self, started: Instant) {
        if let Some(worker) = &self.worker {
            worker.note_stretch(started.elapsed());
        }
    }

    /// Returns freed memory, which glibc keeps, to the system: after many subscribers have ended and the storm is over.
    fn give_memory_back(&mut self, now_ms: u64) {
        let ended = self.counters.ended;
        let calm = std::mem::replace(&mut self.counters.ended_before, ended) == ended;
        // The call walks all memory: the more there is, the more must be gained.
        let worth = TRIM_AFTER.max(self.registry.slab.len() / 8);
        if calm && ended >= worth && now_ms >= self.counters.trimmed_ms + TRIM_EVERY_MS {
            self.counters.ended = 0;
            self.counters.ended_before = 0;
            self.counters.trimmed_ms = now_ms;
            self.registry.channels.shrink_to_fit();
            // SAFETY: may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
    }

    /// Starts a walk if its result is wanted and it is due.
    pub fn start_top_channels_walk(&mut self, now: Now) {
        let wanted = self.settings.statistics_channels.get() as usize;
        let top_channels = &mut self.top_channels;
        if wanted == 0 {
            top_channels.found = Tops::default();
            top_channels.counts = Counts::default();
        }
        if wanted == 0 || top_channels.walk.is_some() || now.monotonic_ms < top_channels.due_ms {
            return;
        }
        top_channels.due_ms = now.monotonic_ms + PERIOD_MS;
        top_channels.walk = Some(Walk::new(wanted, now));
        self.events.walk_in(0);
    }

    /// One slice of the walk.
    pub fn walk(&mut self) {
        let (Some(mut walk), Some(worker)) = (self.top_channels.walk.take(), &self.worker) else {
            return;
        };
        if walk.go_on(worker, &self.top_channels.counts) {
            self.top_channels.walk = Some(walk);
            self.events.walk_in(PAUSE_MS);
        } else {
            walk.counts.born = walk.listing.visited();
            self.top_channels.counts = walk.counts;
            self.top_channels.found = Tops {
                by_subscribers: walk.by_subscribers.into_found(),
                by_bytes: walk.by_bytes.into_found(),
                by_rate: walk.by_rate.into_found(),
            };
        }
    }
}
