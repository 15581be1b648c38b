//! What an nginx worker does with the zone.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::api::{Record, ReplayPart, Span};
use super::layout::*;
use super::lock::Taken;
use super::memory::{Locked, Memory};
use super::messages::{Shape, head_room};
use super::*;

/// Old messages that one hold of the lock selects.
const REPLAY_MESSAGES: u32 = 100;
/// Queue entries that one hold of the lock pins: some of them may not be stored.
const REPLAY_LINKS: u32 = 200;
/// Bytes of old messages after which a slice ends.
const REPLAY_BYTES: usize = 64 * 1024;
/// Messages that one hold of the lock selects for delivery.
const DRAIN_MESSAGES: usize = 1024;
/// Channels that one hold of the lock lists.
const LIST_CHANNELS: usize = 256;
/// Journal entries for finding or creating a channel and appending a message to it, without its members.
const ENTRIES_PER_CHANNEL: usize = 40;
/// Journal entries for dropping what is over the limit of stored messages then.
const ENTRIES_FOR_LIMIT: usize = 20;
/// Journal entries for telling a member.
const ENTRIES_PER_MEMBER: usize = 5;
/// Blocks of the message about an event, without the channel's id.
const EVENT_BLOCKS: usize = 2;
/// How often room is made for the same request while others take it away again.
const ATTEMPTS: u32 = 64;

/// This process's slot in the zone. One per nginx worker, made after the fork.
#[derive(Debug)]
pub struct Worker {
    pub(super) zone: Zone,
    pub(super) slot: SlotRef,
    pub(super) limits: Rc<Limits>,
    /// When something was last done here: good enough for what has no time of its own.
    now: Now,
    /// Slots that are to be woken when a series of messages is complete, while there is one.
    held_wakes: Option<Vec<SlotRef>>,
    /// Locks belong to the thread that took them.
    not_send: PhantomData<*mut ()>,
}

/// A reserved message that is being filled. Pass it to [`Worker::publish`] or [`Worker::discard`]; a lost one is found again by
/// the next [`Worker::draft`].
#[derive(Debug)]
pub struct Draft {
    shape: Shape,
    /// Where the next byte goes; in the end, the last block.
    pub(super) block: BlockRef,
    at: usize,
    /// End of the room in that block.
    end: usize,
    missing: usize,
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
            not_send: PhantomData,
        };
        worker.open_events_channel(now);
        worker
    }

    /// Puts other limits in force: a reload in a process that lives on.
    pub fn set_limits(&mut self, limits: Rc<Limits>, now: Now) {
        self.limits = limits;
        self.open_events_channel(now);
    }

    fn open_events_channel(&mut self, now: Now) {
        let limits = self.limits.clone();
        // In a full zone there is none until the next generation finds room.
        let _ = self.mutate(
            self.cost(limits.events.iter().map(|events| &events.channel[..])),
            now,
            |locked| locked.open_events_channel(&limits),
        );
    }

    /// Is there something to take that this worker was not signalled of, because it did it itself? Then [`Worker::drain`] soon.
    pub fn is_woken(&self) -> bool {
        self.memory().woken(self.slot).load(Ordering::SeqCst) != 0
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

    /// Gives the slot back: all memberships end.
    pub fn release(self) {
        self.zone.reap(self.slot, &self.limits, self.now);
        self.memory().release_alive(self.slot, Taken::Clean);
    }

    /// Would `ids` all exist or be creatable? Changes nothing.
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

    /// Creates those of `ids` that do not exist: all or none.
    pub fn create_channels(&mut self, ids: &[&[u8]], now: Now) -> Result<(), Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let limits = self.limits.clone();
        self.mutate(self.cost(ids.iter().copied()), now, |locked| {
            for (id, &hash) in ids.iter().zip(&hashes) {
                locked.find_or_create(hash, id, &limits)?;
            }
            Ok(())
        })
    }

    /// Reserves room for a message and fills in event id and type; the text follows by [`Worker::write`]. `channels` = how many
    /// ids it will be published to, at least 1.
    pub fn draft(
        &mut self,
        text_len: usize,
        event_id: Option<&[u8]>,
        event_type: Option<&[u8]>,
        channels: usize,
        now: Now,
    ) -> Result<Draft, Refusal> {
        let shape = Shape::of(text_len, event_id, event_type, channels).ok_or(refused(&self.limits))?;
        self.unreserve();
        self.reserve(shape.blocks(), now).inspect_err(|_| {
            self.count_full();
            self.unreserve();
        })?;
        let first = self.memory().peek(self.slot, slot::reserved);
        Ok(self.start(first, shape, event_id, event_type))
    }

    /// Somebody was refused because the zone is full.
    fn count_full(&mut self) {
        self.step(|locked, _| locked.add(Hot, hot::refused_full, 1));
    }

    pub(super) fn reserve(&mut self, blocks: u32, now: Now) -> Result<(), Refusal> {
        if blocks > self.memory().blocks {
            // No eviction could make room for it.
            return Err(refused(&self.limits));
        }
        let mut missing = blocks;
        let mut attempts = 0;
        while missing > 0 {
            let taken = self.step(|locked, slot| locked.reserve(slot, missing));
            missing -= taken;
            if taken == 0 {
                attempts += 1;
                if attempts > ATTEMPTS {
                    return Err(refused(&self.limits));
                }
                room::make_room(&self.zone.memory, missing, &self.limits, now)?;
            }
        }
        Ok(())
    }

    pub(super) fn unreserve(&mut self) {
        if self.memory().peek(self.slot, slot::reserved) != BlockRef::NONE {
            while self.step(|locked, slot| locked.unreserve(slot)) {}
        }
    }

    /// Begins a message in the reserved blocks from `first` on: its head is behind the blocks for further links.
    pub(super) fn start(
        &mut self,
        first: BlockRef,
        shape: Shape,
        event_id: Option<&[u8]>,
        event_type: Option<&[u8]>,
    ) -> Draft {
        let mut block = first;
        for _ in 0..shape.link_blocks() {
            block = self.memory().peek(block, block::next);
        }
        let mut draft = Draft {
            shape,
            block,
            at: HEAD_TEXT,
            end: HEAD_TEXT + head_room(shape.multi()),
            missing: shape.payload_len as usize,
        };
        for text in [event_id, event_type].into_iter().flatten() {
            self.write(&mut draft, &(text.len() as u16).to_le_bytes());
            self.write(&mut draft, text);
        }
        draft
    }

    /// Appends to the draft's text. No lock is held. Bytes beyond the announced length are ignored.
    pub fn write(&mut self, draft: &mut Draft, bytes: &[u8]) {
        let mut bytes = &bytes[..bytes.len().min(draft.missing)];
        draft.missing -= bytes.len();
        while !bytes.is_empty() {
            if draft.at == draft.end {
                draft.block = self.memory().peek(draft.block, block::next);
                (draft.at, draft.end) = (4, BLOCK);
            }
            let (part, rest) = bytes.split_at(bytes.len().min(draft.end - draft.at));
            self.memory().copy_in(draft.block, draft.at, part);
            draft.at += part.len();
            bytes = rest;
        }
    }

    /// Gives a draft's room back.
    pub fn discard(&mut self, _draft: Draft) {
        self.unreserve();
    }

    /// Starts a series of messages that are published one after the other.
    pub fn publishing(&mut self) -> Publishing<'_> {
        Publishing::new(self)
    }

    /// Publishes a fully written draft to all of `ids` (in order, duplicates twice), creating channels as needed: all or none.
    /// Returns their figures in order, counting this message. On refusal the draft was discarded.
    pub fn publish(&mut self, draft: Draft, ids: &[&[u8]], store: bool, now: Now) -> Result<Vec<ChannelInfo>, Refusal> {
        debug_assert_eq!(draft.missing, 0, "the whole text was announced");
        debug_assert_eq!(draft.shape.links as usize, ids.len());
        let mut shape = draft.shape;
        if store {
            shape.flags |= link_flag::STORED;
        }
        let hashes = self.hashes(ids.iter().copied());
        let slot = self.slot;
        let limits = self.limits.clone();
        let published: Result<Vec<_>, _> = self.mutate(self.cost(ids.iter().copied()), now, |locked| {
            let mut channels = Vec::with_capacity(ids.len());
            for (id, &hash) in ids.iter().zip(&hashes) {
                channels.push(locked.find_or_create(hash, id, &limits)?);
            }
            locked.link_reserved(slot, &channels, shape, draft.block, &limits);
            Ok(channels.iter().map(|&channel| locked.info(channel)).collect())
        });
        match published {
            Ok(mut channels) => {
                self.trim(&hashes, ids, &mut channels);
                Ok(channels)
            }
            Err(refusal) => {
                self.unreserve();
                Err(refusal)
            }
        }
    }

    /// A publish drops as many messages as it adds. If a reload has lowered the limit, the rest goes here.
    pub(super) fn trim(&mut self, hashes: &[u32], ids: &[&[u8]], channels: &mut [ChannelInfo]) {
        let Some(max) = self.limits.max_stored_per_channel else {
            return;
        };
        for ((&hash, id), info) in hashes.iter().zip(ids).zip(channels) {
            while info.stored > max.into() {
                self.step(|locked, _| {
                    let Some(channel) = locked.find(hash, id) else {
                        info.stored = 0;
                        return;
                    };
                    for _ in 0..32 {
                        if locked.get(channel, channel::stored) > max
                            && let Some(oldest) = locked.first_stored(channel)
                        {
                            locked.unstore(oldest);
                            locked.step();
                        }
                    }
                    info.stored = locked.get(channel, channel::stored).into();
                });
            }
        }
    }

    /// Deletes those of `ids` that exist; every subscriber gets `notice` as a [`MessageKind::Deleted`]. Returns how many there
    /// were.
    pub fn delete(&mut self, ids: &[&[u8]], notice: &[u8], now: Now) -> Result<usize, Refusal> {
        let mut deleted = 0;
        for id in ids {
            let hash = self.memory().hash(id);
            match self.step_at(now, |locked, _| locked.delete_unfollowed(hash, id)) {
                Deletion::Done => deleted += 1,
                Deletion::Unknown => {}
                Deletion::Followed => {
                    let mut draft = self.draft(notice.len(), None, None, 1, now)?;
                    self.write(&mut draft, notice);
                    let shape = Shape {
                        flags: link_flag::NOTICE,
                        ..draft.shape
                    };
                    let slot = self.slot;
                    let limits = self.limits.clone();
                    let existed = self.mutate(self.cost([*id]), now, |locked| {
                        let Some(channel) = locked.find(hash, id) else {
                            return Ok(false);
                        };
                        locked.delete(channel);
                        locked.link_reserved(slot, &[channel], shape, draft.block, &limits);
                        Ok(true)
                    });
                    self.unreserve();
                    deleted += usize::from(existed?);
                }
            }
        }
        Ok(deleted)
    }

    /// Admits a subscriber (limits and existence only: the grammar of ids is the caller's), creates unknown
    /// channels, selects old messages and registers, all in one step.
    pub fn join(&mut self, request: &JoinRequest, now: Now) -> Result<Joined, Refusal> {
        let hashes = self.hashes(request.channels.iter().map(|channel| channel.id));
        let address_hash = request.address.map_or(0, |address| self.memory().hash(address.key));
        let keys = request.address.iter().map(|address| address.key);
        let cost = self.cost(request.channels.iter().map(|channel| channel.id).chain(keys));
        let slot = self.slot;
        let limits = self.limits.clone();
        self.mutate(cost, now, |locked| {
            locked.admit(request, &hashes, &limits).map_err(Stop::Refused)?;
            let mut channels = Vec::with_capacity(hashes.len());
            for (channel, &hash) in request.channels.iter().zip(&hashes) {
                channels.push(locked.find_or_create(hash, channel.id, &limits)?);
            }
            // What entering itself brings about, in the events channel, is live.
            let seq = locked.hot(hot::seq);
            let (replay, bound) = locked.select_old(request, &channels);
            let subscribes = match request.mode {
                JoinMode::Stream => true,
                JoinMode::LongPoll => replay.is_none(),
                JoinMode::Poll => false,
            };
            let mut memberships = Vec::new();
            let mut address = None;
            if let Some(limit) = request.address.filter(|_| subscribes) {
                let entry = locked.address(address_hash, limit.key)?;
                if locked.get(entry, channel::subscribers) >= limit.max {
                    return Err(Stop::Refused(Refusal::TooManyFromAddress));
                }
                address = Some(Membership(locked.enter(entry, slot)?.0));
            }
            if subscribes {
                memberships.reserve(channels.len());
                for &channel in &channels {
                    memberships.push(Membership(locked.enter(channel, slot)?.0));
                    locked.touch(channel, &limits);
                }
                locked.add(slot, slot::subscribers, 1);
            }
            Ok(Joined {
                memberships,
                address,
                seq,
                replay,
                bound,
            })
        })
    }

    /// Ends one subscriber's memberships. `subscriber_gone` = it no longer counts as connected (false when it only lost a
    /// deleted channel and keeps others).
    pub fn leave(&mut self, memberships: &[Membership], subscriber_gone: bool) {
        for (index, membership) in memberships.iter().enumerate() {
            let member = MemberRef(membership.0);
            let counted = subscriber_gone && index == 0;
            let mut empty = self.step(|locked, slot| {
                if counted {
                    locked.sub(slot, slot::subscribers, 1);
                }
                locked.discount(member)
            });
            // What nobody here will read any more is let go in bounded holds.
            while empty {
                empty = self.step(|locked, _| {
                    for _ in 0..32 {
                        if locked.forget_one(member) {
                            locked.dissolve(member);
                            return false;
                        }
                        if locked.nearly_full() {
                            break;
                        }
                    }
                    true
                });
            }
        }
        if memberships.is_empty() && subscriber_gone {
            self.step(|locked, slot| locked.sub(slot, slot::subscribers, 1));
        }
    }

    /// Copies the next slice of old messages (at most 100 or about 64 KiB, always whole messages) into `batch`, which is cleared
    /// first. True if there is more.
    pub fn replay(&mut self, replay: &mut Replay, batch: &mut Batch) -> bool {
        batch.clear();
        let Some(part) = replay.parts.front_mut() else {
            return false;
        };
        let (heads, done) = self.step(|locked, slot| locked.pin_old(slot, part, &mut replay.lost, batch));
        self.copy(&heads, batch);
        loop {
            let more = self.step(|locked, slot| {
                for _ in 0..16 {
                    let Some(link) = locked.get(slot, slot::pin_first).some() else {
                        return false;
                    };
                    locked.unpin_first(slot, link);
                }
                true
            });
            if !more {
                break;
            }
        }
        if done {
            replay.parts.pop_front();
        }
        !replay.parts.is_empty()
    }

    /// Takes live messages of all channels this worker is a member of into `batch`, which is cleared first: at most about
    /// `max_bytes` of text (always at least one message, if there is one). True if there is more.
    pub fn drain(&mut self, max_bytes: usize, batch: &mut Batch) -> bool {
        batch.clear();
        self.memory().woken(self.slot).store(0, Ordering::SeqCst);
        let mut takes = Vec::new();
        let heads = self.step(|locked, slot| locked.gather(slot, max_bytes, batch, &mut takes));
        if takes.is_empty() {
            return false;
        }
        self.copy(&heads, batch);
        let mut takes = takes.into_iter().peekable();
        let mut taken = 0;
        while takes.peek().is_some() {
            self.step(|locked, _| {
                // One hold for a usual drain, several for a large one.
                for _ in 0..256 {
                    let Some(&Take { member, count }) = takes.peek() else {
                        return;
                    };
                    if taken < count {
                        locked.advance(member);
                        taken += 1;
                    } else {
                        locked.set_reading(member, false);
                        taken = 0;
                        takes.next();
                    }
                    if locked.nearly_full() {
                        locked.step();
                    }
                }
            });
        }
        self.memory().peek(self.slot, slot::dirty_first) != MemberRef::NONE
    }

    /// Copies the payloads of the records that `heads` belong to, none of which can go away meanwhile.
    fn copy(&self, heads: &[Head], batch: &mut Batch) {
        for (head, record) in heads.iter().zip(&mut batch.records) {
            let mut at = batch.bytes.len();
            self.memory()
                .copy_payload(head.body, head.payload_len, head.multi, &mut batch.bytes);
            let mut prefixed = |present: bool| {
                present.then(|| {
                    let len = u16::from_le_bytes([batch.bytes[at], batch.bytes[at + 1]]) as usize;
                    at += 2 + len;
                    Span { start: at - len, len }
                })
            };
            record.event_id = prefixed(head.event_id);
            record.event_type = prefixed(head.event_type);
            record.text = Span {
                start: at,
                len: batch.bytes.len() - at,
            };
        }
    }

    /// Housekeeping, about once a second: reaps dead workers, expires messages and channels, empties the trash; a bounded slice.
    pub fn tick(&mut self, now: Now) -> Tick {
        self.now = now;
        self.zone.reap_dead(self.slot, &self.limits, now);
        room::tick(self.memory(), &self.limits, now)
    }

    /// None if there is no such channel.
    pub fn channel(&self, id: &[u8]) -> Option<ChannelInfo> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        locked.find(hash, id).map(|channel| locked.info(channel))
    }

    /// The figures of the whole zone.
    pub fn summary(&self, now: Now) -> Summary {
        self.zone.summary(now)
    }

    /// Calls `each` for all channels whose id starts with `prefix`, in creation order. The lock is released every few hundred
    /// channels, and while `each` runs.
    pub fn list(&mut self, prefix: &[u8], each: &mut dyn FnMut(&[u8], ChannelInfo)) {
        self.step(|locked, slot| {
            let first = locked.hot(hot::order_first);
            locked.set(slot, slot::list_next, first);
            if locked.get(slot, slot::listing) == 0 {
                locked.set(slot, slot::listing, 1);
                locked.add(Hot, hot::listings, 1);
            }
        });
        let mut ids = Vec::new();
        let mut found = Vec::with_capacity(LIST_CHANNELS);
        loop {
            ids.clear();
            found.clear();
            let more = self.step(|locked, slot| {
                let mut next = locked.get(slot, slot::list_next);
                for _ in 0..LIST_CHANNELS {
                    let Some(channel) = next.some() else { break };
                    locked.copy_id(channel, &mut ids);
                    found.push((ids.len(), locked.info(channel)));
                    next = locked.get(channel, channel::order_next);
                }
                locked.set(slot, slot::list_next, next);
                if next == ChannelRef::NONE {
                    locked.set(slot, slot::listing, 0);
                    locked.sub(Hot, hot::listings, 1);
                }
                next != ChannelRef::NONE
            });
            let mut start = 0;
            for &(end, info) in &found {
                let id = &ids[start..end];
                start = end;
                if id.starts_with(prefix) {
                    each(id, info);
                }
            }
            if !more {
                return;
            }
        }
    }

    pub(super) fn hashes<'a>(&self, ids: impl Iterator<Item = &'a [u8]>) -> Vec<u32> {
        ids.map(|id| self.memory().hash(id)).collect()
    }

    /// What a mutation of these channels may need at most.
    pub(super) fn cost<'a>(&self, ids: impl IntoIterator<Item = &'a [u8]>) -> Cost {
        let mut cost = Cost {
            channels: 0,
            id_blocks: 0,
        };
        for id in ids {
            cost.channels += 1;
            cost.id_blocks += id.len().saturating_sub(CHANNEL_ID_ROOM).div_ceil(CONTINUATION);
        }
        cost
    }

    /// One small mutation that cannot fail.
    fn step<T>(&mut self, change: impl FnOnce(&mut Locked<'_>, SlotRef) -> T) -> T {
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

    /// One mutation, whole or not at all; makes room and tries again if blocks are short.
    fn mutate<T>(
        &mut self,
        cost: Cost,
        now: Now,
        mut change: impl FnMut(&mut Locked<'_>) -> Result<T, Stop>,
    ) -> Result<T, Refusal> {
        self.now = now;
        let (zone, limits) = (self.zone, self.limits.clone());
        let (memory, limits) = (&zone.memory, &*limits);
        for _ in 0..ATTEMPTS {
            let mut locked = memory.lock_with(limits);
            let entries = cost.entries(limits, locked.hot(hot::workers));
            let journal = locked.journal_shortage(entries) as u32;
            let attempt = locked.extend_journal(entries).and_then(|()| {
                locked.begin();
                locked.advance_clock(now);
                let result = change(&mut locked)?;
                locked.commit();
                Ok(result)
            });
            let wakes = locked.unlock();
            self.wake(wakes);
            match attempt {
                Ok(result) => return Ok(result),
                Err(Stop::Refused(refusal)) => return Err(refusal),
                Err(Stop::Short) => {
                    let blocks = cost.blocks(limits) + journal;
                    room::make_room(memory, blocks, limits, now).inspect_err(|_| self.count_full())?;
                }
            }
        }
        Err(refused(limits))
    }

    /// Wakes slots now, or when the series in progress is complete.
    pub(super) fn wake(&mut self, slots: Vec<SlotRef>) {
        match &mut self.held_wakes {
            Some(held) => held.extend(slots),
            None => slots.into_iter().for_each(|slot| self.memory().wake(slot)),
        }
    }

    /// From now on wake-ups wait for [`Worker::send_wakes`].
    pub(super) fn hold_wakes(&mut self) {
        self.held_wakes.get_or_insert_default();
    }

    pub(super) fn send_wakes(&mut self) {
        let held = self.held_wakes.take().unwrap_or_default();
        self.wake(held);
    }
}

/// What a mutation may need.
#[derive(Clone, Copy)]
pub(super) struct Cost {
    channels: usize,
    /// Blocks for ids that do not fit into the channels' own.
    id_blocks: usize,
}

impl Cost {
    /// Blocks, beside those that were reserved.
    fn blocks(self, limits: &Limits) -> u32 {
        let per_event = if limits.events.is_some() { 2 * EVENT_BLOCKS } else { 0 };
        (self.id_blocks * 2 + self.channels * (2 + per_event)) as u32
    }

    /// Journal entries.
    pub(super) fn entries(self, limits: &Limits, workers: u32) -> usize {
        let per_limit = if limits.max_stored_per_channel.is_some() {
            ENTRIES_FOR_LIMIT
        } else {
            0
        };
        let per_message = ENTRIES_PER_CHANNEL + per_limit + workers as usize * ENTRIES_PER_MEMBER;
        let messages = if limits.events.is_some() { 3 } else { 1 };
        16 + self.id_blocks * 2 + self.channels * per_message * messages
    }
}

/// Messages that a drain takes for one membership.
struct Take {
    member: MemberRef,
    count: u32,
}

/// What is needed to copy a message's payload without the lock.
struct Head {
    body: BodyRef,
    payload_len: usize,
    multi: bool,
    event_id: bool,
    event_type: bool,
}

/// How far the first attempt at a deletion came.
enum Deletion {
    Unknown,
    Done,
    /// Somebody must be told, which takes a message.
    Followed,
}

fn refused(limits: &Limits) -> Refusal {
    match limits.on_full {
        OnFull::Refuse => Refusal::Full,
        OnFull::Evict => Refusal::NothingToEvict,
    }
}

impl Locked<'_> {
    fn delete_unfollowed(&mut self, hash: u32, id: &[u8]) -> Deletion {
        match self.find(hash, id) {
            None => Deletion::Unknown,
            Some(channel) if self.get(channel, channel::members) != MemberRef::NONE => Deletion::Followed,
            Some(channel) => {
                self.delete(channel);
                Deletion::Done
            }
        }
    }

    fn admit(&self, request: &JoinRequest, hashes: &[u32], limits: &Limits) -> Result<(), Refusal> {
        for (wanted, &hash) in request.channels.iter().zip(hashes) {
            let channel = self.find(hash, wanted.id);
            if request.authorized_channels_only && !limits.is_wildcard(wanted.id) {
                let stored = channel.map_or(0, |channel| self.get(channel, channel::stored));
                if stored == 0 {
                    return Err(Refusal::MayNotCreate);
                }
            }
            if let (Some(max), Some(channel)) = (limits.max_subscribers_per_channel, channel)
                && self.get(channel, channel::subscribers) >= max
            {
                return Err(Refusal::TooManySubscribers);
            }
            if !request.may_follow_events && limits.is_events(wanted.id) {
                return Err(Refusal::EventsChannel);
            }
        }
        Ok(())
    }

    /// Which old messages the request gets, and the position it is at then.
    fn select_old(&self, request: &JoinRequest, channels: &[ChannelRef]) -> (Option<Replay>, Option<(u64, u32)>) {
        let position = &request.position;
        let mut parts = VecDeque::new();
        let mut bound = (position.time.unwrap_or(0), position.tag.unwrap_or(0));
        for (index, (&channel, wanted)) in channels.iter().zip(request.channels).enumerate() {
            let Some(start) = self.replay_start(channel, wanted.backtrack, position) else {
                continue;
            };
            parts.push_back(ReplayPart {
                path_index: index as u32,
                channel: channel.0,
                channel_born: self.get(channel, channel::born),
                hint: start.0,
                next_seq: self.seq_of(start),
                until: self.hot(hot::seq),
            });
            let newest = (
                self.get(channel, channel::newest_time).into(),
                self.get(channel, channel::newest_tag),
            );
            bound = bound.max(newest);
        }
        if parts.is_empty() {
            (None, None)
        } else {
            (Some(Replay { parts, lost: false }), Some(bound))
        }
    }

    /// Selects the next slice of old messages and pins it; true with it if the part is done then.
    fn pin_old(
        &mut self,
        slot: SlotRef,
        part: &mut ReplayPart,
        lost: &mut bool,
        batch: &mut Batch,
    ) -> (Vec<Head>, bool) {
        let mut heads = Vec::new();
        let Some((first, skipped)) = self.continue_replay(part) else {
            return (heads, true);
        };
        *lost |= skipped;
        let mut next = Some(first);
        let mut bytes = 0;
        let mut last = first;
        for _ in 0..REPLAY_LINKS {
            let Some(link) = next.filter(|&link| self.seq_of(link) <= part.until) else {
                next = None;
                break;
            };
            if heads.len() as u32 == REPLAY_MESSAGES || bytes >= REPLAY_BYTES {
                break;
            }
            if self.link_flag(link, link_flag::STORED) {
                heads.push(self.head(link));
                batch.records.push(self.record(link, part.path_index));
                bytes += heads.last().map_or(0, |head| head.payload_len);
            }
            self.add(link, link::pending, 1);
            last = link;
            next = self.get(link, link::next).some();
        }
        self.set(slot, slot::pin_first, first);
        self.set(slot, slot::pin_last, last);
        self.set(slot, slot::pin_channel, ChannelRef(part.channel));
        // The next slice starts at the next stored message, if there is one in the range.
        while let Some(link) = next {
            if self.seq_of(link) > part.until {
                next = None;
            } else if self.link_flag(link, link_flag::STORED) {
                break;
            } else {
                next = self.get(link, link::next).some();
            }
        }
        if let Some(link) = next {
            part.hint = link.0;
            part.next_seq = self.seq_of(link);
        }
        (heads, next.is_none())
    }

    /// Selects live messages of the slot's dirty memberships and keeps them from being evicted.
    fn gather(&mut self, slot: SlotRef, max_bytes: usize, batch: &mut Batch, takes: &mut Vec<Take>) -> Vec<Head> {
        let mut heads = Vec::new();
        let mut bytes = 0;
        while let Some(member) = self.get(slot, slot::dirty_first).some() {
            if heads.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes {
                break;
            }
            let gone = self.get(member, member::flags) & member_flag::GONE != 0;
            let mut next = if gone {
                None
            } else {
                self.get(member, member::next).some()
            };
            let mut count = 0;
            while let Some(link) = next {
                if heads.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes {
                    break;
                }
                let head = self.head(link);
                // A message counts for more than its text, or empty ones would never fill a batch.
                bytes += head.payload_len + 1;
                heads.push(head);
                batch.records.push(self.record(link, member.0));
                count += 1;
                next = self.get(link, link::next).some();
            }
            if count > 0 {
                self.set_reading(member, true);
                takes.push(Take { member, count });
            }
            if next.is_some() {
                break;
            }
            self.pop_dirty(slot);
            if self.nearly_full() {
                self.step();
            }
        }
        heads
    }

    fn head(&self, link: LinkRef) -> Head {
        let body = self.body_of(link);
        Head {
            body,
            payload_len: self.get(body, body::payload_len) as usize,
            multi: self.link_flag(link, link_flag::MULTI),
            event_id: self.link_flag(link, link_flag::EVENT_ID),
            event_type: self.link_flag(link, link_flag::EVENT_TYPE),
        }
    }

    fn record(&self, link: LinkRef, source: u32) -> Record {
        let notice = self.link_flag(link, link_flag::NOTICE);
        Record {
            source,
            kind: if notice {
                MessageKind::Deleted
            } else {
                MessageKind::Ordinary
            },
            id: self.id_of(link),
            seq: self.seq_of(link),
            time: self.time_of(link),
            tag: self.tag_of(link),
            event_id: None,
            event_type: None,
            text: Span { start: 0, len: 0 },
        }
    }
}
