//! Room: what a full zone does, and what the once-a-second housekeeping gives back.

use super::layout::*;
use super::memory::{Locked, Memory};
use super::{Limits, Now, OnFull, Refusal, Tick};

/// Steps under one hold of the lock; each is a few dozen writes.
const STEPS_PER_HOLD: u32 = 32;
/// Steps of one kind in a tick; what is left waits for the next.
const STEPS_PER_TICK: u32 = 1024;

/// One step of housekeeping; false if there is nothing to do.
type Step = fn(&mut Locked<'_>) -> bool;

const HOUSEKEEPING: [Step; 6] = [
    |locked| locked.expire(),
    |locked| locked.finish_deletion(),
    |locked| locked.retire_idle(),
    |locked| locked.empty_trash(false),
    |locked| locked.empty_channel_trash(false),
    |locked| locked.collect_garbage(),
];

/// Does what is due, a bounded slice of it.
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

/// Makes sure that `blocks` blocks are free now; somebody else may take them first.
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
                || limits.on_full == OnFull::Evict && blocks <= locked.blocks && locked.evict_something();
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
    /// Takes away what is missed least. False if there is nothing.
    fn evict_something(&mut self) -> bool {
        let ways: [(Field<Hot, u64>, Step); 7] = [
            (hot::evicted_trash, |locked| locked.empty_trash(true)),
            (hot::evicted_trash, |locked| locked.empty_channel_trash(true)),
            (hot::evicted_trash, |locked| locked.hasten_deletion()),
            (hot::evicted_expired, |locked| locked.expire()),
            (hot::evicted_stored, |locked| locked.evict_oldest()),
            (hot::evicted_channels, |locked| locked.evict_idle()),
            (hot::evicted_undelivered, |locked| locked.evict_undelivered()),
        ];
        for (count, way) in ways {
            if way(self) {
                self.add(Hot, count, 1);
                return true;
            }
        }
        false
    }
}
