//! The operations of an nginx worker on the zone.

use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::figures::{FIRST_ATTACHED, FIRST_REASON};
use super::layout::*;
use super::lock::{Taken, Tried};
use super::memory::{ENTRIES_PER_MEMBER, Locked, Memory, Stop, Wakes};
use super::*;
use crate::wire::event_id::MAX_GROUPS;

/// Undo log entries of a mutation, excluding those for its channels.
const ENTRIES: usize = 16;
/// Undo log entries for finding or creating a channel, and entering it or appending a message to it.
const ENTRIES_PER_CHANNEL: usize = 28;
/// Undo log entries for a message about an event.
const ENTRIES_PER_EVENT: usize = 20;
/// Undo log entries to drop one stored message over the limit.
const ENTRIES_FOR_LIMIT: usize = 18;
/// Undo log entries to record an ordered id in one place.
const ENTRIES_PER_ID: usize = MAX_GROUPS + 1;
/// Undo log entries for a channel's id record, excluding the ids themselves.
const ENTRIES_FOR_IDS: usize = 2;
/// Undo log entries to add an id to a channel's window and to drop two from it.
const ENTRIES_FOR_WINDOW: usize = 24;
/// Blocks of a channel for its id record and its window.
const BLOCKS_FOR_IDS: usize = 2;
/// Blocks of the message about an event, excluding the channel's id.
pub(super) const EVENT_BLOCKS: usize = 2;
/// How often to evict for one request while other processes take the freed blocks.
pub(super) const ATTEMPTS: u32 = 64;

/// This process's slot in the zone. One per nginx worker, made after the fork.
#[derive(Debug)]
pub struct Worker {
    pub(super) zone: Zone,
    pub(super) slot: SlotRef,
    pub(super) limits: Rc<Limits>,
    /// Time of the last operation: precise enough for operations that are not given a time.
    now: Now,
    /// Slots to wake when the series of messages in progress is complete; None outside a series.
    held_wakes: Option<Wakes>,
    pub(super) whole_drain: Option<WholeDrain>,
    /// A lock belongs to the thread that took it.
    not_send: PhantomData<*mut ()>,
}

/// A drain that continues until everything up to a sequence number was taken.
#[derive(Debug)]
pub(super) struct WholeDrain {
    pub until: u64,
    /// The first membership that was put back: when it is at the front again, all have been visited.
    pub first_left: Option<MemberRef>,
}

impl Zone {
    /// Takes a free slot, or that of a dead process, for this process until [`Worker::release`] or its death. None if
    /// all are in use.
    pub fn claim(&self, limits: Rc<Limits>, now: Now) -> Option<Worker> {
        for slot in self.memory.all_slots() {
            let Tried::Taken(taken) = self.memory.try_alive(slot) else {
                continue;
            };
            self.reap(slot, taken, &limits, now);
            if taken == Taken::OwnerDied {
                self.memory.keep_alive(slot);
            }
            let mut locked = self.memory.lock();
            locked.begin();
            locked.advance_clock(now);
            locked.add(slot, slot::generation, 1);
            locked.set(slot, slot::pid, std::process::id());
            locked.set(slot, slot::started_ms, now.monotonic_ms);
            locked.set(slot, slot::started_unix, now.unix_secs() as u32);
            locked.set(slot, slot::queued, 0);
            locked.set(slot, slot::compress_groups, 0);
            locked.set(slot, slot::subscribers, 0);
            locked.set(slot, slot::live, 1);
            locked.add(Hot, hot::workers, 1);
            locked.commit();
            drop(locked);
            wake::lower(self.memory.woken(slot));
            self.memory.clear_connections(slot);
            self.memory.init(slot, slot::accepts, 0);
            return Some(Worker::new(*self, slot, limits, now));
        }
        None
    }
}

impl Worker {
    pub(super) fn new(zone: Zone, slot: SlotRef, limits: Rc<Limits>, now: Now) -> Worker {
        let zone = Zone {
            memory: zone.memory.used_by(slot),
        };
        let mut worker = Worker {
            zone,
            slot,
            limits,
            now,
            held_wakes: None,
            whole_drain: None,
            not_send: PhantomData,
        };
        worker.begin(now);
        worker
    }

    /// Applies other limits: a reload in a process that stays alive.
    pub fn set_limits(&mut self, limits: Rc<Limits>, now: Now) {
        self.limits = limits;
        self.begin(now);
    }

    /// Applies the limits to the zone.
    fn begin(&mut self, now: Now) {
        if self.limits.track_ids {
            let auto = self.limits.auto_ids;
            self.step_at(now, |locked, _| locked.begin_tracking(auto));
        }
        self.open_events_channel(now);
    }

    /// Creates the events channel that the limits name. In a full zone that refuses, retried until there is room.
    fn open_events_channel(&mut self, now: Now) {
        let limits = self.limits.clone();
        let cost = self.cost(limits.events.iter().map(|events| &events.channel[..]));
        let _ = self.try_mutate(cost, std::iter::empty(), now, |locked| {
            locked.open_events_channel(&limits)
        });
    }

    /// Has this worker given itself work, for which it is not signalled? If so, call [`Worker::drain`] soon.
    pub fn is_woken(&self) -> bool {
        wake::is_raised(self.memory().woken(self.slot))
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.zone.memory
    }

    pub(super) fn own_slot(&self) -> SlotRef {
        self.slot
    }

    /// Slot index: which of [`Zone::wake_fds`] wakes this worker.
    pub fn slot(&self) -> u16 {
        self.slot.0
    }

    pub fn zone(&self) -> Zone {
        self.zone
    }

    /// Counts a refused message.
    pub fn count_refusal(&self, refusal: Refusal) {
        self.count(refusal.counter(), 1);
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, more: u64) {
        self.memory().count(counter, more);
    }

    /// Adds the observations, and clears `fanout`.
    pub fn count_fanout(&self, fanout: &mut Fanout) {
        let Fanout { buckets, sum_ms } = std::mem::take(fanout);
        for (index, count) in buckets.into_iter().enumerate() {
            self.memory().add_to(FANOUT_FIRST + index, count);
        }
        self.memory().add_to(FANOUT_SUM, sum_ms);
    }

    /// Publishes the number of bytes queued for this worker's slow readers.
    pub fn set_queued_bytes(&self, bytes: u64) {
        self.memory().init(self.slot, slot::queued, bytes);
    }

    /// Publishes the number of groups for which this worker keeps a compressor.
    pub fn set_compress_groups(&self, groups: usize) {
        let groups = u32::try_from(groups).unwrap_or(u32::MAX);
        self.memory().init(self.slot, slot::compress_groups, groups);
    }

    /// Are there messages or commands for this worker without a signal? The publisher died before the signal, or is about
    /// to send it.
    pub fn is_overlooked(&self) -> bool {
        !self.is_woken() && (self.memory().peek(self.slot, slot::dirty_first).some().is_some() || self.has_mail())
    }

    /// Counts a subscriber's connection.
    pub fn count_in(&self, connection: Connection) {
        self.count_connection(connection, |count| count.wrapping_add(1));
    }

    /// Takes back a [`Worker::count_in`].
    pub fn count_out(&self, connection: Connection) {
        self.count_connection(connection, |count| count.saturating_sub(1));
    }

    /// Records a time that this worker spent delivering without polling for events; the longest is kept.
    pub fn note_stretch(&self, stretch: Duration) {
        let stretch_us = u32::try_from(stretch.as_micros()).unwrap_or(u32::MAX);
        if stretch_us > self.memory().peek(self.own_slot(), slot::stretch_us) {
            self.memory().init(self.own_slot(), slot::stretch_us, stretch_us);
        }
    }

    fn count_connection(&self, connection: Connection, change: impl Fn(u32) -> u32) {
        let (first, second) = match connection {
            Connection::Detached(mode) => (mode as usize, None),
            Connection::Attached(mode, reason) => (
                FIRST_ATTACHED + mode as usize,
                reason.map(|reason| FIRST_REASON + reason as usize),
            ),
        };
        for index in [Some(first), second].into_iter().flatten() {
            let field = slot::connection_counts.nth(index);
            let count = self.memory().peek(self.own_slot(), field);
            self.memory().init(self.own_slot(), field, change(count));
        }
    }

    /// Releases the slot: all memberships end.
    pub fn release(self) {
        self.zone.reap(self.slot, Taken::Clean, &self.limits, self.now);
        self.memory().release_alive(self.slot, Taken::Clean);
    }

    /// Do all of `ids` exist, or may they be created? Changes nothing.
    pub fn check_channels(&self, ids: &[&[u8]]) -> Result<(), Refusal> {
        let limits = &*self.limits;
        let locked = self.memory().lock();
        let (mut plain, mut wildcard) = (0, 0);
        for id in ids {
            if locked.find(self.memory().hash(id), id).is_none() {
                locked.may_create(id, limits, plain, wildcard)?;
                if limits.is_wildcard(id) {
                    wildcard += 1;
                } else {
                    plain += 1;
                }
            }
        }
        Ok(())
    }

    /// Creates the missing channels of `ids`, all or none.
    pub fn create_channels(&mut self, ids: &[&[u8]], now: Now) -> Result<(), Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let limits = self.limits.clone();
        let channels = hashes.iter().copied().zip(ids.iter().copied());
        self.mutate(self.cost(ids.iter().copied()), channels, now, |locked| {
            for (id, &hash) in ids.iter().zip(&hashes) {
                locked.find_or_create(hash, id, &limits)?;
            }
            Ok(())
        })
    }

    /// Counts a refusal if the zone was full.
    pub(super) fn count_if_full(&mut self, refusal: Refusal) {
        if matches!(refusal, Refusal::Full | Refusal::NothingToEvict) {
            self.step(|locked, _| locked.add(Hot, hot::refused_full, 1));
        }
    }

    /// A walk over all stored messages of a channel, from a mark on if given; None if the channel does not exist.
    pub fn stored(&self, id: &[u8], from: Option<Mark>) -> Option<Replay> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        let channel = locked.find(hash, id)?;
        Some(locked.replay_stored(channel, from))
    }

    /// Housekeeping, about once a second: reaps dead workers, expires messages and channels, empties the trash; bounded
    /// work.
    pub fn tick(&mut self, now: Now) -> Tick {
        self.now = now;
        if self.limits.events.is_some() && self.memory().lock().hot(hot::events) == ChannelRef::NONE {
            self.open_events_channel(now);
        }
        self.zone.reap_dead(self.slot, &self.limits, now);
        eviction::tick(self.memory(), &self.limits, now)
    }

    /// None if the channel does not exist.
    pub fn channel(&self, id: &[u8]) -> Option<ChannelInfo> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        locked.find(hash, id).map(|channel| locked.info(channel))
    }

    /// The event id of the channel's newest message with one. An unordered id is found only on a message that is stored
    /// or pending.
    pub fn newest_event_id(&self, id: &[u8]) -> Option<Vec<u8>> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        locked.newest_event_id(locked.find(hash, id)?)
    }

    /// The figures of the whole zone.
    pub fn summary(&self, now: Now) -> Summary {
        self.zone.summary(now)
    }

    pub(super) fn hashes<'a>(&self, ids: impl Iterator<Item = &'a [u8]>) -> SmallVec<[u32; 4]> {
        ids.map(|id| self.memory().hash(id)).collect()
    }

    /// Upper bound of the cost of a mutation of these channels.
    pub(super) fn cost<'a>(&self, ids: impl IntoIterator<Item = &'a [u8]>) -> Cost {
        let mut cost = Cost {
            channels: 0,
            id_blocks: 0,
            ids: self.limits.track_ids || self.memory().tracks_ids(),
            publishes: false,
            window: false,
            events: usize::from(self.limits.events.is_some()),
        };
        for id in ids {
            cost.channels += 1;
            cost.id_blocks += id.len().saturating_sub(CHANNEL_ID_ROOM).div_ceil(CONTINUATION);
        }
        cost
    }

    /// One small mutation that cannot fail.
    pub(super) fn step<T>(&mut self, change: impl FnOnce(&mut Locked<'_>, SlotRef) -> T) -> T {
        let mut locked = self.zone.memory.lock_with(&self.limits);
        locked.begin();
        locked.advance_clock(self.now);
        let result = change(&mut locked, self.slot);
        locked.commit();
        result
    }

    fn step_at<T>(&mut self, now: Now, change: impl FnOnce(&mut Locked<'_>, SlotRef) -> T) -> T {
        self.now = now;
        self.step(change)
    }

    /// One mutation, all or nothing; if blocks are short, evicts and retries. `channels`: those it concerns, as far as
    /// they exist.
    pub(super) fn mutate<'c, T>(
        &mut self,
        cost: Cost,
        channels: impl Ids<'c>,
        now: Now,
        change: impl FnMut(&mut Locked<'_>) -> Result<T, Stop>,
    ) -> Result<T, Refusal> {
        self.try_mutate(cost, channels, now, change)
            .inspect_err(|&refusal| self.count_if_full(refusal))
    }

    fn try_mutate<'c, T>(
        &mut self,
        cost: Cost,
        channels: impl Ids<'c>,
        now: Now,
        mut change: impl FnMut(&mut Locked<'_>) -> Result<T, Stop>,
    ) -> Result<T, Refusal> {
        self.now = now;
        let (zone, limits) = (self.zone, self.limits.clone());
        let (memory, limits) = (&zone.memory, &*limits);
        let mut wanted = cost.blocks();
        for _ in 0..ATTEMPTS {
            let mut locked = memory.lock_with(limits);
            let available = locked.available();
            let attempt = match locked.lacks_room(cost, channels.clone(), limits) {
                Some(blocks) => {
                    wanted = wanted.max(blocks);
                    Err(Stop::Short)
                }
                None => locked.attempt(cost, channels.clone(), now, &mut change),
            };
            let wakes = locked.unlock();
            self.wake(wakes);
            match attempt {
                Ok(result) => return Ok(result),
                Err(Stop::Refused(refusal)) => return Err(refusal),
                Err(Stop::Short) => {
                    if available >= wanted {
                        // The estimate was too low; or, in tests, a shortage is simulated.
                        wanted = wanted.saturating_mul(2).max(1);
                    }
                    eviction::make_room(memory, wanted, limits, now)?;
                }
            }
        }
        Err(refused(limits))
    }

    /// Wakes the slots now, or when the series in progress is complete.
    pub(super) fn wake(&mut self, slots: Wakes) {
        match &mut self.held_wakes {
            Some(held) => held.extend(slots),
            None => self.memory().wake(&slots),
        }
    }

    /// Holds wake-ups back until [`Worker::send_wakes`].
    pub(super) fn hold_wakes(&mut self) {
        self.held_wakes.get_or_insert_default();
    }

    pub(super) fn send_wakes(&mut self) {
        let held = self.held_wakes.take().unwrap_or_default();
        self.wake(held);
    }
}

/// Channel ids with their hashes.
pub(super) trait Ids<'c>: Iterator<Item = (u32, &'c [u8])> + Clone {}

impl<'c, I: Iterator<Item = (u32, &'c [u8])> + Clone> Ids<'c> for I {}

/// The cost of a mutation, from which its blocks and undo log entries follow.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    channels: usize,
    /// Blocks for ids that do not fit into the channels' first blocks.
    id_blocks: usize,
    /// The zone tracks ids.
    ids: bool,
    /// A message is appended to each channel, which may drop another for it.
    publishes: bool,
    /// An id is added to windows.
    window: bool,
    /// Number of events announced per channel.
    events: usize,
}

impl Cost {
    /// Cost of a publish; `window`: its id may be added to windows.
    pub(super) fn of_publish(self, window: bool) -> Cost {
        Cost {
            publishes: true,
            window,
            ..self
        }
    }

    /// Each channel may be created and entered.
    pub(super) fn with_entering(self) -> Cost {
        Cost {
            events: 2 * self.events,
            ..self
        }
    }

    /// Blocks, excluding those already reserved.
    pub(super) fn blocks(self) -> u32 {
        let ids = if self.ids { BLOCKS_FOR_IDS } else { 0 };
        let messages = self.id_blocks * (1 + self.events);
        (messages + self.channels * (2 + ids + self.events * EVENT_BLOCKS)) as u32
    }

    /// The same, knowing which channels exist. A zone that refuses drops events before channels or members lack a
    /// block.
    fn blocks_if(self, limits: &Limits, known: Known) -> u32 {
        let told = match limits.on_full {
            OnFull::Refuse => 0,
            OnFull::Evict => EVENT_BLOCKS * self.events.min(1),
        };
        let ids = if self.ids { BLOCKS_FOR_IDS } else { 0 };
        let new = self.channels.saturating_sub(known.channels);
        let of_known = 1 + ids + told;
        (self.id_blocks * (1 + self.events) + known.channels * of_known + new * (2 + ids + self.events * EVENT_BLOCKS))
            as u32
    }

    /// Undo log entries.
    pub(super) fn entries(self, limits: &Limits, known: Known) -> usize {
        let if_so = |condition, entries| if condition { entries } else { 0 };
        let per_limit = if_so(limits.max_stored_per_channel.is_some(), ENTRIES_FOR_LIMIT);
        // A new channel inherits the zone's lost id, a removed one hands it back; a message may be the newest, and one
        // may be lost.
        let noted = if_so(self.publishes, 2) + 1;
        let per_channel = ENTRIES_PER_CHANNEL
            + if_so(self.publishes, per_limit)
            + if_so(self.ids, ENTRIES_FOR_IDS + noted * ENTRIES_PER_ID)
            + if_so(self.window, ENTRIES_FOR_WINDOW);
        let new = self.channels.saturating_sub(known.channels);
        let events = new * self.events + known.channels * self.events.min(1);
        ENTRIES
            + self.id_blocks * (1 + self.events)
            + self.channels * per_channel
            + events * (ENTRIES_PER_EVENT + per_limit)
            + known.members * ENTRIES_PER_MEMBER
    }
}

/// Which channels of a mutation exist.
#[derive(Clone, Copy, Default)]
pub(super) struct Known {
    /// Number of existing channels.
    channels: usize,
    /// Upper bound of the memberships in them and in the events channel.
    members: usize,
}

impl Locked<'_> {
    /// If too few blocks are free for a mutation of this cost to begin, the number it needs: for the undo log, then for
    /// what it creates.
    pub(super) fn lacks_room<'c>(&self, cost: Cost, channels: impl Ids<'c>, limits: &Limits) -> Option<u32> {
        let workers = self.hot(hot::workers) as usize;
        let lacks = |known: Known| {
            let blocks = self.undo_shortage(cost.entries(limits, known)) as u32;
            let needed = blocks + cost.blocks_if(limits, known);
            (blocks > 0 && needed > self.available()).then_some(needed)
        };
        // Usually this bound is low enough, or there are enough free blocks, and members need not be counted.
        lacks(Known {
            channels: 0,
            members: (cost.channels + cost.events.min(1)) * workers,
        })?;
        lacks(self.known(channels))
    }

    fn known<'c>(&self, channels: impl Ids<'c>) -> Known {
        let mut known = Known::default();
        for channel in channels.filter_map(|(hash, id)| self.find(hash, id)) {
            known.channels += 1;
            known.members += self.count_members(channel);
        }
        if let Some(events) = self.hot(hot::events).some() {
            known.members += self.count_members(events);
        }
        known
    }

    fn attempt<'c, T>(
        &mut self,
        cost: Cost,
        channels: impl Ids<'c>,
        now: Now,
        change: &mut impl FnMut(&mut Locked<'_>) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let bound = cfg!(debug_assertions).then(|| {
            let limits = self.limits?;
            let known = self.known(channels);
            Some((
                cost.entries(limits, known),
                cost.blocks_if(limits, known),
                cost.blocks(),
            ))
        });
        self.begin();
        self.advance_clock(now);
        let had = self.available();
        let result = change(self)?;
        if let Some((entries, blocks, at_most)) = bound.flatten() {
            debug_assert!(
                self.entries() <= entries,
                "{} undo log entries, not {entries}",
                self.entries()
            );
            let taken = had - self.available() - self.borrowed();
            let may_skip_events = self.limits.is_some_and(|limits| limits.on_full == OnFull::Refuse);
            let blocks = if may_skip_events { at_most } else { blocks };
            debug_assert!(taken <= blocks, "{taken} blocks, not {blocks}");
        }
        self.commit();
        Ok(result)
    }
}

pub(super) fn refused(limits: &Limits) -> Refusal {
    match limits.on_full {
        OnFull::Refuse => Refusal::Full,
        OnFull::Evict => Refusal::NothingToEvict,
    }
}
