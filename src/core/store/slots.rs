//! Slots: the processes that use the zone, and the reaping of dead ones.

use super::layout::*;
use super::lock::{Taken, Tried};
use super::memory::{ENTRIES_PER_MEMBER, Locked, Memory, ZoneError};
use super::{Evictions, Limits, Now, Summary, WorkerInfo};

/// The zone as mapped into this process. Copies are handles on the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Zone {
    pub(super) memory: Memory,
}

impl Zone {
    /// Bytes of a zone per slot: the slot, and its share of the undo log.
    pub const BYTES_PER_SLOT: usize = slot::SIZE + ENTRIES_PER_MEMBER * size_of::<UndoEntry>();

    /// Lays out a new zone. `slots`: the maximum number of processes using it at once.
    ///
    /// # Safety
    /// `memory` points to `len` zeroed bytes, aligned to 64, shared between all processes that will use the zone and
    /// mapped for as long as any of them does.
    pub unsafe fn create(memory: *mut u8, len: usize, slots: u16, now: Now) -> Result<Zone, ZoneError> {
        // SAFETY: as the caller vouches.
        unsafe { Memory::create(memory, len, slots, now).map(|memory| Zone { memory }) }
    }

    /// Adopts a zone that [`Zone::create`] made, in this or another process.
    ///
    /// # Safety
    /// As for `create`, but the memory may hold anything: a foreign layout is an error.
    pub unsafe fn attach(memory: *mut u8, len: usize) -> Result<Zone, ZoneError> {
        // SAFETY: as the caller vouches.
        unsafe { Memory::attach(memory, len).map(|memory| Zone { memory }) }
    }

    /// Stores the eventfds (one per slot) that wake workers. Called once, before any fork, so that the numbers are
    /// valid in every process of every generation.
    pub fn set_wake_fds(&self, fds: &[i32]) {
        for (slot, &fd) in self.memory.all_slots().zip(fds) {
            self.memory.init(slot, slot::fd, fd as u32);
        }
        self.memory.mark_wake_fds_set();
    }

    /// The stored eventfds, one per slot; empty if they were never set.
    pub fn wake_fds(&self) -> Vec<i32> {
        if !self.memory.wake_fds_set() {
            return Vec::new();
        }
        self.memory
            .all_slots()
            .map(|slot| self.memory.peek(slot, slot::fd) as i32)
            .collect()
    }

    /// Stores the ends of the socket for the handover of subscribers (the reading end first), like
    /// [`Zone::set_wake_fds`].
    pub fn set_handover_fds(&self, fds: [i32; 2]) {
        self.memory.set_handover_fds(fds);
    }

    /// The stored ends; None if they were never set.
    pub fn handover_fds(&self) -> Option<[i32; 2]> {
        self.memory.handover_fds()
    }

    /// Another configuration is put into use. To be called by the master, before it forks workers for it.
    pub fn count_cycle(&self) {
        self.memory.count_cycle();
    }

    /// Number of the configuration in use; 0 before the first.
    pub fn cycle(&self) -> u32 {
        self.memory.cycles()
    }

    pub fn slots(&self) -> u16 {
        self.memory.slots
    }

    /// Unix time in milliseconds at which the zone was created.
    pub fn epoch_ms(&self) -> u64 {
        self.memory.epoch_ms()
    }

    /// How often the death of a process inside the lock was repaired.
    pub fn repairs(&self) -> u64 {
        self.memory.repairs()
    }

    /// Reaps all slots whose process died.
    pub(super) fn reap_dead(&self, own: SlotRef, limits: &Limits, now: Now) {
        for slot in self.memory.all_slots() {
            if slot == own || self.memory.peek(slot, slot::live) == 0 {
                continue;
            }
            if let Tried::Taken(taken) = self.memory.try_alive(slot) {
                self.reap(slot, taken, limits, now);
                self.memory.release_alive(slot, taken);
            }
        }
    }

    /// Cleans up after a slot's dead process. The caller holds the slot's liveness lock, so it is the only one. Works
    /// in steps, each of which leaves less: after a death in here the next reaper continues.
    pub(super) fn reap(&self, slot: SlotRef, taken: Taken, limits: &Limits, now: Now) {
        loop {
            let mut locked = self.memory.lock_with(limits);
            locked.begin();
            locked.advance_clock(now);
            for _ in 0..64 {
                locked.make_event_room();
                if !locked.reap_step(slot, taken) {
                    locked.commit();
                    return;
                }
                locked.step();
            }
            locked.commit();
        }
    }

    /// The figures of the whole zone.
    pub fn summary(&self, now: Now) -> Summary {
        let block = |count: u32| u64::from(count) * BLOCK as u64;
        // Slow work is done outside of the lock.
        let mut workers = Vec::with_capacity(usize::from(self.memory.slots));
        let counts = self.memory.counts();
        let locked = self.memory.lock();
        for slot in self
            .memory
            .all_slots()
            .filter(|&slot| locked.get(slot, slot::live) != 0)
        {
            workers.push(WorkerInfo {
                slot: slot.0,
                pid: locked.get(slot, slot::pid),
                subscribers: locked.get(slot, slot::subscribers).into(),
                uptime_secs: now.monotonic_ms.saturating_sub(locked.get(slot, slot::started_ms)) / 1000,
                connections: self.memory.connections(slot),
                longest_stretch_us: self.memory.peek(slot, slot::stretch_us),
                started_unix: locked.get(slot, slot::started_unix).into(),
                queued_bytes: self.memory.peek(slot, slot::queued),
                compress_groups: self.memory.peek(slot, slot::compress_groups),
            });
        }
        Summary {
            channels: locked.hot(hot::channels).into(),
            wildcard_channels: locked.hot(hot::wildcard_channels).into(),
            published: locked.hot(hot::published),
            stored: locked.hot(hot::stored),
            messages_in_trash: u64::from(locked.hot(hot::trash_count)) + u64::from(locked.hot(hot::unstored_queued)),
            channels_in_delete: locked.hot(hot::deleting_count).into(),
            channels_in_trash: locked.hot(hot::channel_trash_count).into(),
            subscribers: workers.iter().map(|worker| worker.subscribers).sum(),
            uptime_secs: u64::from(self.memory.ticks(now) - 1) / 10,
            workers,
            evicted: Evictions {
                trash: locked.hot(hot::evicted_trash),
                expired: locked.hot(hot::evicted_expired),
                stored: locked.hot(hot::evicted_stored),
                channels: locked.hot(hot::evicted_channels),
                undelivered: locked.hot(hot::evicted_undelivered),
            },
            refused_full: locked.hot(hot::refused_full),
            bytes_total: block(self.memory.blocks),
            bytes_free: block(locked.available()),
            bytes_high_water: block(locked.hot(hot::high_water) - 1),
            restarts: locked.hot(hot::restarts),
            counts,
        }
    }
}

impl Locked<'_> {
    /// One step of a reaping; false when there is nothing left.
    fn reap_step(&mut self, slot: SlotRef, taken: Taken) -> bool {
        if let Some(link) = self.get(slot, slot::pin_first).some() {
            self.unpin_first(slot, link);
        } else if self.get(slot, slot::reserved).some().is_some() {
            self.unreserve(slot);
        } else if self.reap_command(slot) {
            // What it has freed is the reservation now.
        } else if let Some(member) = self.get(slot, slot::members).some() {
            if self.get(member, member::count) > 0 {
                self.discount(member);
            } else if self.forget_one(member) {
                self.dissolve(member);
            }
        } else if self.get(slot, slot::dirty_first).some().is_some() {
            self.pop_dirty(slot);
        } else if self.get(slot, slot::live) != 0 {
            self.set(slot, slot::live, 0);
            self.set(slot, slot::subscribers, 0);
            self.sub(Hot, hot::workers, 1);
            self.add(Hot, hot::restarts, u64::from(taken == Taken::OwnerDied));
        } else {
            return false;
        }
        true
    }

    /// Removes the pin of `link`, the first that the slot's process has pinned.
    pub(super) fn unpin_first(&mut self, slot: SlotRef, link: LinkRef) {
        if link == self.get(slot, slot::pin_last) {
            self.set(slot, slot::pin_first, LinkRef::NONE);
            self.set(slot, slot::pin_last, LinkRef::NONE);
            self.set(slot, slot::pin_channel, ChannelRef::NONE);
        } else {
            self.set(slot, slot::pin_first, self.get(link, link::next));
        }
        self.release(link);
    }
}
