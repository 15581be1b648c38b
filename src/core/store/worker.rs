//! A process's handle on the zone.

use super::*;

/// The zone as mapped into this process.
#[derive(Clone, Copy, Debug)]
pub struct Zone {
    base: *mut u8,
}

/// Why a zone cannot be made or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("the zone is too small: {needed} bytes are needed")]
    TooSmall { needed: usize },
    #[error("the memory holds no zone of this layout")]
    Foreign,
    #[error("a lock cannot be made: error {0}")]
    Lock(i32),
}

impl Zone {
    /// Lays out a new zone in zeroed memory. `slots` = how many processes may use it at once.
    ///
    /// # Safety
    /// `memory` points to `len` zeroed bytes, aligned to 4096... shared between all processes that will use the zone, mapped as long as any of them does.
    pub unsafe fn create(_memory: *mut u8, _len: usize, _slots: u16, _now: Now) -> Result<Zone, ZoneError> {
        todo!()
    }

    /// Adopts a zone that `create` made, in this or another process.
    ///
    /// # Safety
    /// As for `create`.
    pub unsafe fn attach(_memory: *mut u8, _len: usize) -> Result<Zone, ZoneError> {
        todo!()
    }

    /// Remembers the eventfds (one per slot) that wake workers. Made once, before any fork, so that every process of every generation has them.
    pub fn set_wake_fds(&self, _fds: &[i32]) {
        todo!()
    }

    /// The eventfds as remembered, one per slot; empty if they were never set.
    pub fn wake_fds(&self) -> Vec<i32> {
        todo!()
    }

    pub fn slots(&self) -> u16 {
        todo!()
    }

    /// Takes a free slot, or that of a dead process, for this process until [`Worker::release`] or its death.
    pub fn claim(&self, _now: Now) -> Option<Worker> {
        todo!()
    }
}

/// This process's slot in the zone. One per nginx worker, made after the fork. Not `Send`.
pub struct Worker {
    _zone: Zone,
}

impl Worker {
    /// Slot index: which of [`Zone::wake_fds`] wakes this worker.
    pub fn slot(&self) -> u16 {
        todo!()
    }

    pub fn zone(&self) -> Zone {
        todo!()
    }

    /// Gives the slot back: all memberships end.
    pub fn release(self) {
        todo!()
    }

    /// Would `ids` all exist or be creatable? Changes nothing.
    pub fn check_channels(&self, _ids: &[&[u8]], _limits: &Limits) -> Result<(), Refusal> {
        todo!()
    }

    /// Creates those of `ids` that do not exist: all or none.
    pub fn create_channels(&mut self, _ids: &[&[u8]], _limits: &Limits, _now: Now) -> Result<(), Refusal> {
        todo!()
    }

    /// Reserves room for a message and fills in everything but the text, which follows by [`Worker::write`].
    /// `channels` = how many ids it will be published to.
    pub fn draft(
        &mut self,
        _text_len: usize,
        _event_id: Option<&[u8]>,
        _event_type: Option<&[u8]>,
        _channels: usize,
        _limits: &Limits,
        _now: Now,
    ) -> Result<Draft, Refusal> {
        todo!()
    }

    /// Appends to the draft's text. No lock is held. Bytes beyond the announced length are ignored.
    pub fn write(&mut self, _draft: &mut Draft, _bytes: &[u8]) {
        todo!()
    }

    /// Gives a draft's room back.
    pub fn discard(&mut self, _draft: Draft) {
        todo!()
    }

    /// Publishes a fully written draft to all of `ids` (in order, duplicates twice), creating channels as needed: all or
    /// none. On refusal the draft was discarded.
    pub fn publish(
        &mut self,
        _draft: Draft,
        _ids: &[&[u8]],
        _store: bool,
        _limits: &Limits,
        _now: Now,
    ) -> Result<Published, Refusal> {
        todo!()
    }

    /// Deletes those of `ids` that exist; every subscriber gets `notice` as a [`MessageKind::Deleted`]. Returns how many there
    /// were, and whether this worker has subscribers to tell (as [`Published::wake_self`]).
    pub fn delete(
        &mut self,
        _ids: &[&[u8]],
        _notice: &[u8],
        _limits: &Limits,
        _now: Now,
    ) -> Result<(usize, bool), Refusal> {
        todo!()
    }

    /// Admits a subscriber (`compat.md` §6, limits and existence only: the grammar of ids is the caller's), creates unknown
    /// channels, selects old messages (§7) and registers, all in one step.
    pub fn join(&mut self, _request: &JoinRequest, _limits: &Limits, _now: Now) -> Result<Joined, Refusal> {
        todo!()
    }

    /// Ends one subscriber: all its memberships at once. `subscriber_gone` = it no longer counts as connected (false when it
    /// only lost a deleted channel and keeps others).
    pub fn leave(&mut self, _memberships: &[Membership], _subscriber_gone: bool) {
        todo!()
    }

    /// Copies the next slice of old messages (at most 100 or about 64 KiB, always whole messages) into `batch`, which is cleared first. True if there is more.
    pub fn replay(&mut self, _replay: &mut Replay, _batch: &mut Batch) -> bool {
        todo!()
    }

    /// Takes live messages of all channels this worker is a member of into `batch`, which is cleared first: at most about
    /// `max_bytes` of text (always at least one message). True if there is more.
    pub fn drain(&mut self, _max_bytes: usize, _batch: &mut Batch) -> bool {
        todo!()
    }

    /// Housekeeping, about once a second: reaps dead workers, expires messages and channels, empties the trash; a bounded slice.
    pub fn tick(&mut self, _limits: &Limits, _now: Now) -> Tick {
        todo!()
    }

    /// None if there is no such channel.
    pub fn channel(&self, _id: &[u8]) -> Option<ChannelInfo> {
        todo!()
    }

    pub fn summary(&self, _now: Now) -> Summary {
        todo!()
    }

    /// Calls `each` for all channels whose id starts with `prefix`, in creation order. The lock is released every few hundred channels.
    pub fn list(&mut self, _prefix: &[u8], _each: &mut dyn FnMut(&[u8], ChannelInfo)) {
        todo!()
    }
}

/// A reserved message that is being filled.
#[derive(Debug)]
pub struct Draft {
    _text_len: u32,
}
