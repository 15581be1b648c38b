//! The timer wheel: when each subscriber's next ping or end is due, to a tenth of a second.
//!
//! A subscriber is in one slot at most. The wheel does not store what is due: an expired subscriber is checked, and put
//! back if its time has moved on meanwhile (each delivered message moves the ping).

use std::collections::VecDeque;

use super::slab::Slab;
use super::subscriber::{NONE, OUT, Place};

/// Width of a slot.
pub const SLOT_MS: u64 = 100;

/// Number of slots: a subscriber that is due later waits in the last one and is then put back.
const SLOTS: u64 = 1024;
const WORDS: usize = SLOTS as usize / 64;

/// First subscriber of each slot, and which slots have one.
pub struct TimerWheel {
    firsts: Vec<u32>,
    used: [u64; WORDS],
    /// Slots up to this one (in slots since the clock's start) have expired.
    done: u64,
}

impl TimerWheel {
    pub fn new(now_ms: u64) -> TimerWheel {
        TimerWheel {
            firsts: vec![NONE; SLOTS as usize],
            used: [0; WORDS],
            done: now_ms / SLOT_MS,
        }
    }

    /// Puts a subscriber into the slot that expires after `due_ms`, removing it from its former one.
    pub fn put(&mut self, slab: &mut Slab, index: u32, due_ms: u64, now_ms: u64) {
        self.remove(slab, index);
        if self.used == [0; WORDS] {
            self.done = now_ms / SLOT_MS;
        }
        let tick = due_ms.div_ceil(SLOT_MS).clamp(self.done + 1, self.done + SLOTS - 1);
        let slot = (tick % SLOTS) as usize;
        let next = self.firsts[slot];
        let Some(subscriber) = slab.at(index) else {
            return;
        };
        subscriber.place = Place {
            slot: slot as u16,
            previous: NONE,
            next,
        };
        if let Some(next) = slab.at(next) {
            next.place.previous = index;
        }
        self.firsts[slot] = index;
        self.used[slot / 64] |= 1 << (slot % 64);
    }

    /// Removes a subscriber from its slot.
    pub fn remove(&mut self, slab: &mut Slab, index: u32) {
        let Some(subscriber) = slab.at(index) else {
            return;
        };
        let Place { slot, previous, next } = std::mem::take(&mut subscriber.place);
        if slot == OUT {
            return;
        }
        let slot = usize::from(slot);
        match slab.at(previous) {
            Some(previous) => previous.place.next = next,
            None => self.firsts[slot] = next,
        }
        if let Some(next) = slab.at(next) {
            next.place.previous = previous;
        }
        if self.firsts[slot] == NONE {
            self.used[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// Removes all subscribers of expired slots and appends them to `due`.
    pub fn expire(&mut self, slab: &mut Slab, now_ms: u64, due: &mut VecDeque<u32>) {
        let now = now_ms / SLOT_MS;
        for tick in (self.done + 1)..=now.min(self.done + SLOTS) {
            let slot = (tick % SLOTS) as usize;
            while slab.at(self.firsts[slot]).is_some() {
                due.push_back(self.firsts[slot]);
                self.remove(slab, self.firsts[slot]);
            }
        }
        self.done = self.done.max(now);
    }

    /// Milliseconds until the next slot that is not empty.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let first = self.done + 1;
        let tick = first + self.slots_until_used((first % SLOTS) as usize)?;
        Some((tick * SLOT_MS).saturating_sub(now_ms).max(1))
    }

    /// Slots from `start` on, around the wheel, until one that is not empty: by words, for a far end would cost each new
    /// subscriber a look at every slot.
    fn slots_until_used(&self, start: usize) -> Option<u64> {
        let (word, bit) = (start / 64, start % 64);
        let from_start = u64::MAX << bit;
        (0..=WORDS).find_map(|step| {
            let index = (word + step) % WORDS;
            let used = match step {
                0 => self.used[index] & from_start,
                // Around: what is before the start.
                WORDS => self.used[index] & !from_start,
                _ => self.used[index],
            };
            let slot = index * 64 + used.trailing_zeros() as usize;
            (used != 0).then(|| ((slot + SLOTS as usize - start) % SLOTS as usize) as u64)
        })
    }
}
