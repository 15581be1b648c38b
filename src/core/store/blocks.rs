//! Blocks: the free list and the memory that was never used.

use super::layout::*;
use super::memory::{Locked, Stop};

/// How many blocks one hold of the lock takes or frees at most.
pub const BLOCKS_PER_HOLD: u32 = 128;

impl Locked<'_> {
    /// Number of free blocks.
    pub fn available(&self) -> u32 {
        self.hot(hot::free_count) + self.blocks + 1 - self.hot(hot::high_water)
    }

    /// Takes a free block. Its contents are undefined.
    pub fn take_block(&mut self) -> Result<BlockRef, Stop> {
        #[cfg(feature = "fault-points")]
        if super::fault_injection::is_short() {
            return Err(Stop::Short);
        }
        self.ready_entry();
        if let Some(block) = self.hot(hot::free).some() {
            let next = self.get(block, block::next);
            // The caller writes over it without an undo log; an undo must find the old value.
            self.set(block, block::next, next);
            self.set_hot(hot::free, next);
            self.sub(Hot, hot::free_count, 1);
            return Ok(block);
        }
        let fresh = self.hot(hot::high_water);
        if fresh > self.blocks {
            return Err(Stop::Short);
        }
        self.set_hot(hot::high_water, fresh + 1);
        Ok(BlockRef(fresh))
    }

    /// Puts up to [`BLOCKS_PER_HOLD`] more blocks in front of the slot's reservation; returns their number, at most
    /// `wanted`.
    pub fn reserve(&mut self, slot: SlotRef, wanted: u32) -> u32 {
        let wanted = wanted.min(BLOCKS_PER_HOLD);
        #[cfg(feature = "fault-points")]
        if super::fault_injection::is_short() {
            return 0;
        }
        let reserved = self.get(slot, slot::reserved);
        self.ready_entry();
        if let Some(first) = self.hot(hot::free).some() {
            let mut last = first;
            let mut count = 1;
            while count < wanted {
                let Some(next) = self.get(last, block::next).some() else {
                    break;
                };
                last = next;
                count += 1;
            }
            let rest = self.get(last, block::next);
            self.set(last, block::next, reserved);
            self.set_hot(hot::free, rest);
            self.sub(Hot, hot::free_count, count.into());
            self.set(slot, slot::reserved, first);
            return count;
        }
        let fresh = self.hot(hot::high_water);
        let count = wanted.min(self.blocks + 1 - fresh);
        if count > 0 {
            for number in fresh..fresh + count {
                let next = if number + 1 < fresh + count {
                    BlockRef(number + 1)
                } else {
                    reserved
                };
                self.init(BlockRef(number), block::next, next);
            }
            self.set_hot(hot::high_water, fresh + count);
            self.set(slot, slot::reserved, BlockRef(fresh));
        }
        count
    }

    /// Frees a slice of the slot's reservation; true if there is more.
    pub fn unreserve(&mut self, slot: SlotRef) -> bool {
        for _ in 0..BLOCKS_PER_HOLD / 2 {
            let Some(block) = self.get(slot, slot::reserved).some() else {
                return false;
            };
            let next = self.get(block, block::next);
            self.set(slot, slot::reserved, next);
            self.free_block(block);
        }
        self.get(slot, slot::reserved).some().is_some()
    }
}
