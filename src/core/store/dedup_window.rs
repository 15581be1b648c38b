//! Deduplication windows: the last ids that each channel accepted. A publish with one of them is a duplicate.
//!
//! Each channel keeps the last ids that it accepted, oldest first, four to a block; all of them are chained in the
//! zone's id table by their keyed hash, so that the cost of a look-up does not depend on the window's size.

use super::Limits;
use super::layout::*;
use super::memory::{ENTRY_BUCKET_FIRST, Locked, Stop};

/// The key of an id in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// `id`: the id's own key. `born`: the channel's creation number, which differs for a later channel of the same
    /// name.
    pub fn new(id: (u64, u64), born: u64) -> Key {
        // Any odd number gives different channels different keys; this one also spreads them over the table.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        Key {
            low: id.0,
            high: id.1 ^ born.wrapping_mul(SPREAD),
        }
    }
}

/// Ids that a publish drops at most when a reload has made windows smaller; later publishes drop the rest.
const DROPPED_AT_ONCE: u32 = 2;

impl Locked<'_> {
    fn entry_bucket(&self, key: Key) -> EntryBucketRef {
        EntryBucketRef(((key.low ^ key.high) % u64::from(self.entry_buckets)) as u32)
    }

    fn key_of(&self, entry: EntryRef) -> Key {
        Key {
            low: self.get(entry, entry::key_low),
            high: self.get(entry, entry::key_high),
        }
    }

    /// The channel's key for the id with key `id`.
    pub fn window_key(&self, channel: ChannelRef, id: (u64, u64)) -> Key {
        Key::new(id, self.get(channel, channel::born))
    }

    /// Is the key in its channel's window?
    pub fn is_known(&self, key: Key) -> bool {
        let mut next = self.get(self.entry_bucket(key), ENTRY_BUCKET_FIRST);
        while let Some(entry) = next.some() {
            if self.key_of(entry) == key {
                return true;
            }
            next = self.get(entry, entry::next);
        }
        false
    }

    /// Adds an id to the channel's window, and drops the oldest over the limit.
    pub fn remember(&mut self, channel: ChannelRef, key: Key, limits: &Limits) -> Result<(), Stop> {
        let Some(window) = self.open_ids(channel)? else {
            return Ok(());
        };
        let entry = self.next_entry(window)?;
        let bucket = self.entry_bucket(key);
        let first = self.get(bucket, ENTRY_BUCKET_FIRST);
        self.set(entry, entry::key_low, key.low);
        self.set(entry, entry::key_high, key.high);
        self.set(entry, entry::next, first);
        self.set(entry, entry::later, EntryRef::NONE);
        self.set(bucket, ENTRY_BUCKET_FIRST, entry);
        match self.get(window, ids::window_last).some() {
            Some(last) => self.set(last, entry::later, entry),
            None => self.set(window, ids::window_first, entry),
        }
        self.set(window, ids::window_last, entry);
        self.add(window, ids::window_count, 1);
        for _ in 0..DROPPED_AT_ONCE {
            if self.get(window, ids::window_count) > limits.idempotent_window {
                self.forget_oldest(window);
            }
        }
        Ok(())
    }

    /// The entry for the window's next id.
    fn next_entry(&mut self, window: IdsRef) -> Result<EntryRef, Stop> {
        let last = self.get(window, ids::window_last);
        if last.some().is_some() && !(last.0 + 1).is_multiple_of(ENTRIES_PER_BLOCK) {
            return Ok(EntryRef(last.0 + 1));
        }
        Ok(EntryRef(self.take_block()?.0 * ENTRIES_PER_BLOCK))
    }

    /// Drops a window's oldest id. False if there is none.
    pub fn forget_oldest(&mut self, window: IdsRef) -> bool {
        let Some(oldest) = self.get(window, ids::window_first).some() else {
            return false;
        };
        self.take_off_bucket(oldest);
        let later = self.get(oldest, entry::later);
        self.set(window, ids::window_first, later);
        if later == EntryRef::NONE {
            self.set(window, ids::window_last, EntryRef::NONE);
        }
        self.sub(window, ids::window_count, 1);
        if later.0 / ENTRIES_PER_BLOCK != oldest.0 / ENTRIES_PER_BLOCK {
            self.free_block(BlockRef(oldest.0 / ENTRIES_PER_BLOCK));
        }
        true
    }

    /// Is the entry in the bucket that a look-up would search?
    pub fn in_bucket(&self, wanted: EntryRef) -> bool {
        let mut next = self.get(self.entry_bucket(self.key_of(wanted)), ENTRY_BUCKET_FIRST);
        while next.some().is_some() && next != wanted {
            next = self.get(next, entry::next);
        }
        next == wanted
    }

    fn take_off_bucket(&mut self, removed: EntryRef) {
        let bucket = self.entry_bucket(self.key_of(removed));
        let after = self.get(removed, entry::next);
        let mut before = self.get(bucket, ENTRY_BUCKET_FIRST);
        if before == removed {
            return self.set(bucket, ENTRY_BUCKET_FIRST, after);
        }
        while self.get(before, entry::next) != removed {
            before = self.get(before, entry::next);
        }
        self.set(before, entry::next, after);
    }
}
