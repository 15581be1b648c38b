//! Prefetch. A publish touches a dozen places all over the zone, a drain some, and with very many channels none of them
//! is in the processor's cache. Waiting for one after the other would be most of its time, under the lock; so they are
//! prefetched before, together as far as their addresses are known.
//!
//! The fields read here may change at any moment. They only serve to guess addresses, and those are checked.

use super::layout::*;
use super::memory::Memory;

/// Channels of one bucket that are examined.
const CHAIN: usize = 4;

impl Memory {
    /// Prefetches the memory for appending a message to the channel with this id's hash.
    pub fn prefetch_publish(&self, hash: u32) {
        let mut channel = self.peek(self.bucket(hash), super::memory::BUCKET_FIRST);
        for _ in 0..CHAIN {
            if !self.has_block(channel.0) {
                return;
            }
            if self.peek(channel, channel::hash) == hash {
                return self.prefetch_append(channel);
            }
            channel = self.peek(channel, channel::hash_next);
        }
    }

    /// Prefetches the memory for taking the first message that waits for this slot.
    pub fn prefetch_drain(&self, slot: SlotRef) {
        let member = self.peek(slot, slot::dirty_first);
        if self.has_block(member.0) {
            self.fetch(self.peek(member, member::next).0 / LINKS_PER_BLOCK);
            self.fetch(self.peek(member, member::channel).0);
        }
    }

    fn prefetch_append(&self, channel: ChannelRef) {
        self.fetch(channel.0);
        // Its neighbours: it moves to the end of the idle channels.
        self.fetch(self.peek(channel, channel::idle_next).0);
        self.fetch(self.peek(channel, channel::idle_prev).0);
        // The previous message.
        self.fetch(self.peek(channel, channel::last).0 / LINKS_PER_BLOCK);
        // The oldest message, which may be dropped: also the next one, and its neighbours among all messages by age.
        let first = self.peek(channel, channel::first);
        if self.has_block(first.0 / LINKS_PER_BLOCK) {
            self.fetch(first.0 / LINKS_PER_BLOCK);
            self.fetch(self.peek(first, link::next).0 / LINKS_PER_BLOCK);
            let body = BodyRef(first.0 / LINKS_PER_BLOCK);
            self.fetch(self.peek(body, body::age_next).0);
            self.fetch(self.peek(body, body::age_prev).0);
        }
    }
}
