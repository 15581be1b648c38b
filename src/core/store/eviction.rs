//! Eviction: what a full zone frees, in which order; and the once-a-second housekeeping.

use super::layout::*;
use super::memory::{Locked, Memory};
use super::{Limits, Now, OnFull, Refusal, Tick};

/// Steps under one hold of the lock; each is a few dozen writes.
const STEPS_PER_HOLD: u32 = 32;
/// Steps of one kind in a tick; the next tick continues.
const STEPS_PER_TICK: u32 = 1024;

/// Blocks for the message about an event in a channel whose id is not very long.
const EVENT_ROOM: u32 = 4;

/// A zone that refuses keeps one block in this many for subscribers of existing channels.
const SPARE_PART: u32 = 64;

/// Blocks kept for subscribers of existing channels: messages and new channels are refused before those are used. A
/// zone that evicts keeps none.
pub fn spare(memory: &Memory, limits: &Limits) -> u32 {
    match limits.on_full {
        OnFull::Refuse => (memory.blocks / SPARE_PART).clamp(8, 1024),
        OnFull::Evict => 0,
    }
}

/// One step of housekeeping; false if there is nothing to do.
type Step = fn(&mut Locked<'_>) -> bool;

const HOUSEKEEPING: [Step; 6] = [
    |locked| locked.expire(false),
    |locked| locked.finish_deletion(),
    |locked| locked.retire_idle(),
    |locked| locked.empty_trash(false),
    |locked| locked.empty_channel_trash(false),
    |locked| locked.collect_garbage(),
];

/// Does the housekeeping that is due, a bounded amount of it.
pub fn tick(memory: &Memory, limits: &Limits, now: Now) -> Tick {
    let mut outcome = Tick::Done;
    for step in HOUSEKEEPING {
        let mut budget = STEPS_PER_TICK;
        while budget > 0 && run(memory, limits, now, step, &mut budget) {}
        if budget == 0 {
            outcome = Tick::More;
        }
    }
    outcome
}

/// Steps under one hold; false when there is nothing more to do.
fn run(memory: &Memory, limits: &Limits, now: Now, step: Step, budget: &mut u32) -> bool {
    let mut locked = memory.lock_with(limits);
    locked.begin();
    locked.advance_clock(now);
    for _ in 0..STEPS_PER_HOLD {
        locked.make_event_room();
        if !step(&mut locked) {
            locked.commit();
            return false;
        }
        locked.step();
        *budget = budget.saturating_sub(1);
    }
    locked.commit();
    true
}

/// Frees blocks until `blocks` are free; other processes may take them first.
pub fn make_room(memory: &Memory, blocks: u32, limits: &Limits, now: Now) -> Result<(), Refusal> {
    loop {
        let mut locked = memory.lock_with(limits);
        locked.begin();
        locked.advance_clock(now);
        for _ in 0..STEPS_PER_HOLD {
            if locked.available() >= blocks {
                locked.commit();
                return Ok(());
            }
            let found = locked.collect_garbage()
                || limits.on_full == OnFull::Evict && blocks <= locked.blocks && locked.evict_something(true);
            if !found {
                locked.commit();
                return Err(match limits.on_full {
                    OnFull::Refuse => Refusal::Full,
                    OnFull::Evict => Refusal::NothingToEvict,
                });
            }
            locked.step();
        }
        locked.commit();
    }
}

impl Locked<'_> {
    /// Before a mutation that cannot be refused publishes an event: makes room for that in a full zone, if the limits
    /// say so and no subscriber loses a message by it.
    pub fn make_event_room(&mut self) {
        let Some(Limits {
            on_full: OnFull::Evict,
            events: Some(_),
            ..
        }) = self.limits
        else {
            return;
        };
        for _ in 0..STEPS_PER_HOLD {
            let found = self.available() < EVENT_ROOM && (self.collect_garbage() || self.evict_something(false));
            if !found {
                break;
            }
            self.step();
        }
    }

    /// Evicts the least valuable item, at last even an `undelivered` message. False if there is nothing.
    fn evict_something(&mut self, undelivered: bool) -> bool {
        /// The counter of a kind of eviction, and the function that evicts one item: returns how many messages or
        /// channels were lost to readers by it; None if there is nothing.
        type Way = (Field<Hot, u64>, fn(&mut Locked<'_>) -> Option<u64>);
        const WAYS: [Way; 7] = [
            (hot::evicted_trash, |locked| locked.evict_trash()),
            // Their end was counted when they entered the trash.
            (hot::evicted_trash, |locked| {
                locked.empty_channel_trash(true).then_some(0)
            }),
            (hot::evicted_trash, |locked| locked.hasten_deletion().then_some(0)),
            (hot::evicted_expired, |locked| locked.expire(true).then_some(1)),
            (hot::evicted_stored, |locked| locked.evict_oldest().then_some(1)),
            (hot::evicted_channels, |locked| locked.evict_idle().then_some(1)),
            (hot::evicted_undelivered, |locked| {
                locked.evict_undelivered().then_some(1)
            }),
        ];
        for &(count, way) in &WAYS[..if undelivered { 7 } else { 6 }] {
            if let Some(taken) = way(self) {
                self.add(Hot, count, taken);
                return true;
            }
        }
        false
    }
}
