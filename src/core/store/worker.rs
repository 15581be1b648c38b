//! What an nginx worker does with the zone.

use std::marker::PhantomData;
use std::rc::Rc;

use super::api::{Record, ReplayPart, Span};
use super::ids::ZONE_NEWEST;
use super::layout::*;
use super::lock::Taken;
use super::memory::{Locked, Memory};
use super::messages::{Shape, head_room};
use super::publishing::{Brought, Filled};
use super::resume::{REPLAY_BYTES, REPLAY_MESSAGES, SEEK_LINKS, Seek};
use super::*;
use crate::wire::event_id::OrderedId;

/// Messages that one hold of the lock selects for delivery.
const DRAIN_MESSAGES: usize = 1024;
/// Journal entries for finding or creating a channel and appending a message to it, without its members.
const ENTRIES_PER_CHANNEL: usize = 40;
/// Journal entries for dropping what is over the limit of stored messages then.
const ENTRIES_FOR_LIMIT: usize = 20;
/// Journal entries for what is known of a channel's ids.
const ENTRIES_FOR_IDS: usize = 24;
/// Journal entries for an id in a channel's window, and for two that leave it.
const ENTRIES_FOR_WINDOW: usize = 32;
/// Blocks of a channel for what is known of its ids, and for its window.
const BLOCKS_FOR_IDS: usize = 2;
/// Messages, by sequence number, that a [whole drain](Worker::drain_whole) goes through at once: all of them are in memory then.
const WHOLE_DRAIN: u64 = 512;
/// How often a subscriber that joins goes on searching outside the lock; after that it searches to the end inside.
const SEEKS: u32 = 16;
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
    whole_drain: Option<WholeDrain>,
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
    id: Brought,
}

impl Draft {
    /// Says that the text is binary data, for those who tell the two apart.
    pub fn mark_binary(&mut self) {
        self.shape.flags |= link_flag::BINARY;
    }
}

/// A drain that goes on until everything up to a sequence number was taken.
#[derive(Debug)]
struct WholeDrain {
    until: u64,
    /// The first membership that was put back: when it is at the front again, all were looked at.
    first_left: Option<MemberRef>,
}

/// What a drain is to take, and the first membership that it has put back.
enum Scope<'s> {
    /// All of some memberships, nothing of others.
    Except {
        skipped: &'s dyn Fn(Membership) -> bool,
        first: Option<MemberRef>,
    },
    Whole(&'s mut WholeDrain),
}

impl Scope<'_> {
    fn skips(&self, member: MemberRef) -> bool {
        matches!(self, Scope::Except { skipped, .. } if skipped(Membership(member.0)))
    }

    fn first_left(&self) -> Option<MemberRef> {
        match self {
            Scope::Except { first, .. } => *first,
            Scope::Whole(whole) => whole.first_left,
        }
    }

    /// A membership was put back.
    fn leave(&mut self, member: MemberRef) {
        let first = match self {
            Scope::Except { first, .. } => first,
            Scope::Whole(whole) => &mut whole.first_left,
        };
        first.get_or_insert(member);
    }
}

/// How far a [whole drain](Worker::drain_whole) came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Up to no sequence number yet: go on at once.
    Part,
    /// Everything up to a sequence number. `more`: there is something behind it.
    Whole { more: bool },
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

    /// Puts other limits in force: a reload in a process that lives on.
    pub fn set_limits(&mut self, limits: Rc<Limits>, now: Now) {
        self.limits = limits;
        self.begin(now);
    }

    /// Brings about in the zone what the limits ask for.
    fn begin(&mut self, now: Now) {
        if self.limits.track_ids {
            let auto = self.limits.auto_ids;
            self.step_at(now, |locked, _| locked.begin_tracking(auto));
        }
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

    /// Gives the slot back: all memberships end.
    pub fn release(self) {
        self.zone.reap(self.slot, Taken::Clean, &self.limits, self.now);
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

    /// Would the channels of `request` let it in, as far as they exist? Changes nothing, and does not look at its address.
    pub fn admits(&self, request: &JoinRequest) -> Result<(), Refusal> {
        let hashes = self.hashes(request.channels.iter().map(|channel| channel.id));
        self.memory().lock().admit(request, &hashes, &self.limits)
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
        let mut draft = self.start(first, shape, event_id, event_type);
        draft.id = self.brought(event_id);
        Ok(draft)
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
            id: Brought::default(),
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
    /// Returns what became of it in each, in order. On refusal the draft was discarded.
    pub fn publish(&mut self, draft: Draft, ids: &[&[u8]], terms: Terms, now: Now) -> Result<Vec<Published>, Refusal> {
        debug_assert_eq!(draft.missing, 0, "the whole text was announced");
        debug_assert_eq!(draft.shape.links as usize, ids.len());
        let message = Filled::new(draft.shape, draft.block, draft.id, terms);
        let hashes = self.hashes(ids.iter().copied());
        for &hash in &hashes {
            self.memory().foresee(hash);
        }
        let slot = self.slot;
        let limits = self.limits.clone();
        let cost = self.cost(ids.iter().copied()).with_window(terms.idempotent);
        let published = self.mutate(cost, now, |locked| {
            let mut published = Vec::with_capacity(ids.len());
            locked.publish_reserved(slot, &message, ids, &hashes, &limits, &mut published)?;
            Ok(published)
        });
        // If it was linked, nothing is left of the reservation.
        self.unreserve();
        let mut published = published?;
        self.count_duplicates(&published);
        self.trim(&hashes, ids, &mut published);
        Ok(published)
    }

    pub(super) fn count_duplicates(&self, published: &[Published]) {
        let duplicates = published.iter().filter(|published| published.duplicate).count();
        self.count(Counter::Duplicate, duplicates as u64);
    }

    /// What is to be known of an event id that a message brings; nothing if ids are not kept track of.
    pub(super) fn brought(&self, event_id: Option<&[u8]>) -> Brought {
        let Some(id) = event_id.filter(|_| self.memory().tracks_ids()) else {
            return Brought::default();
        };
        Brought {
            ordered: OrderedId::parse(id),
            key: Some(self.memory().id_key(id)),
        }
    }

    /// A publish drops as many messages as it adds. If a reload has lowered the limit, the rest goes here.
    pub(super) fn trim(&mut self, hashes: &[u32], ids: &[&[u8]], channels: &mut [Published]) {
        let Some(max) = self.limits.max_stored_per_channel else {
            return;
        };
        for ((&hash, id), Published { info, .. }) in hashes.iter().zip(ids).zip(channels) {
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

    /// Deletes those of `ids` that exist, all or none; every subscriber gets `notice` as a [`MessageKind::Deleted`]. Returns how many
    /// there were.
    pub fn delete(&mut self, ids: &[&[u8]], notice: &[u8], now: Now) -> Result<usize, Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let cost = self.cost(ids.iter().copied());
        let limits = self.limits.clone();
        let slot = self.slot;
        // A notice is only made if somebody is there to be told, and has room for so many channels.
        let mut draft: Option<(Draft, usize)> = None;
        loop {
            let deletion = self.mutate(cost, now, |locked| {
                let mut channels = Vec::with_capacity(ids.len());
                for (id, &hash) in ids.iter().zip(&hashes) {
                    channels.extend(locked.find(hash, id).filter(|channel| !channels.contains(channel)));
                }
                let followed: Vec<_> = channels
                    .iter()
                    .copied()
                    .filter(|&channel| locked.get(channel, channel::members) != MemberRef::NONE)
                    .collect();
                if followed.len() > draft.as_ref().map_or(0, |&(_, room)| room) {
                    return Ok(Deletion::Followed(followed.len()));
                }
                for &channel in &channels {
                    locked.delete(channel);
                }
                if let Some((draft, _)) = draft.as_ref().filter(|_| !followed.is_empty()) {
                    let shape = Shape {
                        flags: link_flag::NOTICE,
                        ..draft.shape
                    };
                    locked.link_reserved(slot, &followed, shape, draft.block, None, &limits);
                }
                Ok(Deletion::Done(channels.len()))
            });
            match deletion {
                Ok(Deletion::Followed(count)) => {
                    let mut made = self.draft(notice.len(), None, None, count, now)?;
                    self.write(&mut made, notice);
                    draft = Some((made, count));
                }
                Ok(Deletion::Done(count)) => {
                    self.unreserve();
                    return Ok(count);
                }
                Err(refusal) => {
                    self.unreserve();
                    return Err(refusal);
                }
            }
        }
    }

    /// Sends away all subscribers of those of `ids` that exist; the channels stay as they are. Returns the figures that these had.
    pub fn dismiss(&mut self, ids: &[&[u8]], now: Now) -> Result<Vec<ChannelInfo>, Refusal> {
        let mut had = Vec::new();
        for id in ids {
            let hash = self.memory().hash(id);
            let draft = self.draft(0, None, None, 1, now)?;
            let shape = Shape {
                flags: link_flag::NOTICE | link_flag::DISMISSAL,
                ..draft.shape
            };
            let (slot, limits) = (self.slot, self.limits.clone());
            let info = self.mutate(self.cost([*id]), now, |locked| {
                let Some(channel) = locked.find(hash, id) else {
                    return Ok(None);
                };
                let info = locked.info(channel);
                if info.subscribers > 0 {
                    locked.link_reserved(slot, &[channel], shape, draft.block, None, &limits);
                }
                Ok(Some(info))
            });
            self.unreserve();
            had.extend(info?);
        }
        Ok(had)
    }

    /// A walk over all that is stored in a channel, from a mark on if there is one; None if there is no such channel.
    pub fn stored(&self, id: &[u8], from: Option<Mark>) -> Option<Replay> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        let channel = locked.find(hash, id)?;
        Some(locked.replay_stored(channel, from))
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
        let mut seeks: Vec<Option<Seek>> = request.channels.iter().map(|_| None).collect();
        for attempt in 1.. {
            let budget = if attempt <= SEEKS { SEEK_LINKS } else { u32::MAX };
            let joined = self.mutate(cost, now, |locked| {
                locked.admit(request, &hashes, &limits).map_err(Stop::Refused)?;
                let mut channels = Vec::with_capacity(hashes.len());
                for (channel, &hash) in request.channels.iter().zip(&hashes) {
                    channels.push(locked.find_or_create(hash, channel.id, &limits)?);
                }
                if !locked.seek_all(request, &channels, &mut seeks, budget) {
                    return Ok(None);
                }
                // What entering itself brings about, in the events channel, is live.
                let seq = locked.hot(hot::seq);
                let gaps = locked.gaps(request, &channels, &seeks);
                let (replay, bound) = locked.select_old(request, &channels, &mut seeks);
                // Without old messages the zone's newest id is what it is told.
                let position = match &replay {
                    Some(_) => channels.iter().filter_map(|&channel| locked.newest_id(channel)).max(),
                    None => locked.ordered_id(ZoneIds, ZONE_NEWEST),
                };
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
                Ok(Some(Joined {
                    memberships,
                    address,
                    seq,
                    replay,
                    bound,
                    gaps,
                    newest_id: locked.ordered_id(ZoneIds, ZONE_NEWEST),
                    position,
                }))
            })?;
            if let Some(joined) = joined {
                return Ok(joined);
            }
            while !self.step(|locked, _| locked.go_on_seeking(request, &mut seeks)) {}
        }
        unreachable!("a search without a limit comes to its end")
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
        if replay.ordered {
            return self.replay_ordered(replay, batch);
        }
        let Some(part) = replay.parts.front_mut() else {
            return false;
        };
        let (heads, done) = self.step(|locked, slot| locked.pin_old(slot, part, &mut replay.lost, batch));
        self.copy(&heads, batch);
        self.unpin();
        if done {
            replay.parts.pop_front();
        }
        !replay.parts.is_empty()
    }

    /// Merges the channels' messages by event id: a few of one channel, then a few of another.
    fn replay_ordered(&mut self, replay: &mut Replay, batch: &mut Batch) -> bool {
        while batch.records.len() < REPLAY_MESSAGES && batch.bytes.len() < REPLAY_BYTES {
            let room = REPLAY_MESSAGES - batch.records.len();
            let Some(heads) = self.step(|locked, slot| locked.pin_ordered(slot, replay, room, batch)) else {
                break;
            };
            self.copy(&heads, batch);
            self.unpin();
        }
        let next = self.step(|locked, _| locked.next_offer(replay));
        batch.mark_repeated(next);
        !replay.parts.is_empty()
    }

    /// Lets go of what this worker has copied.
    fn unpin(&mut self) {
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
    }

    /// Takes live messages of all channels this worker is a member of into `batch`, which is cleared first: at most about
    /// `max_bytes` of text (always at least one message, if there is one). True if there is more.
    pub fn drain(&mut self, max_bytes: usize, batch: &mut Batch) -> bool {
        self.drain_except(max_bytes, batch, |_| false)
    }

    /// As [`Worker::drain`], but what there is for memberships that are not to be `skipped` comes first: the others' messages stay
    /// where they are, and count as more.
    pub fn drain_except(&mut self, max_bytes: usize, batch: &mut Batch, skipped: impl Fn(Membership) -> bool) -> bool {
        batch.clear();
        wake::lower(self.memory().woken(self.slot));
        let mut takes = Vec::new();
        let heads = self.step(|locked, slot| {
            let mut scope = Scope::Except {
                skipped: &skipped,
                first: None,
            };
            locked.gather(slot, max_bytes, &mut scope, batch, &mut takes)
        });
        if !takes.is_empty() {
            self.take(&heads, takes, batch);
        }
        self.memory().peek(self.slot, slot::dirty_first) != MemberRef::NONE
    }

    /// As [`Worker::drain`], for whoever merges channels: the batches up to a [whole](Drained::Whole) one hold, of all channels, exactly
    /// what was published up to some sequence number and not taken before.
    pub fn drain_whole(&mut self, max_bytes: usize, batch: &mut Batch) -> Drained {
        batch.clear();
        wake::lower(self.memory().woken(self.slot));
        let mut drain = self.whole_drain.take();
        let mut takes = Vec::new();
        let heads = self.step(|locked, slot| {
            let drain = drain.get_or_insert_with(|| locked.begin_whole_drain(slot));
            locked.gather(slot, max_bytes, &mut Scope::Whole(drain), batch, &mut takes)
        });
        if !takes.is_empty() {
            self.take(&heads, takes, batch);
        }
        let front = self.memory().peek(self.slot, slot::dirty_first).some();
        if front.is_none() || drain.as_ref().is_some_and(|drain| drain.first_left == front) {
            return Drained::Whole { more: front.is_some() };
        }
        self.whole_drain = drain;
        Drained::Part
    }

    /// Copies what was gathered, and moves the memberships on.
    fn take(&mut self, heads: &[Head], takes: Vec<Take>, batch: &mut Batch) {
        self.copy(heads, batch);
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
    }

    /// Copies the payloads of the records that `heads` belong to, none of which can go away meanwhile.
    /// They are the batch's last.
    fn copy(&self, heads: &[Head], batch: &mut Batch) {
        let first = batch.records.len() - heads.len();
        for (head, record) in heads.iter().zip(&mut batch.records[first..]) {
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
            if record.auto_id {
                let start = batch.bytes.len();
                self.memory().auto_id(record.seq).write(&mut batch.bytes);
                record.event_id = Some(Span {
                    start,
                    len: batch.bytes.len() - start,
                });
            }
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

    /// The event id of the channel's newest message with one. Of those that have no order, only what is still stored or on its way is
    /// known.
    pub fn newest_event_id(&self, id: &[u8]) -> Option<Vec<u8>> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        locked.newest_event_id(locked.find(hash, id)?)
    }

    /// The figures of the whole zone.
    pub fn summary(&self, now: Now) -> Summary {
        self.zone.summary(now)
    }

    pub(super) fn hashes<'a>(&self, ids: impl Iterator<Item = &'a [u8]>) -> Vec<u32> {
        ids.map(|id| self.memory().hash(id)).collect()
    }

    /// What a mutation of these channels may need at most.
    pub(super) fn cost<'a>(&self, ids: impl IntoIterator<Item = &'a [u8]>) -> Cost {
        let mut cost = Cost {
            channels: 0,
            id_blocks: 0,
            ids: self.limits.track_ids || self.memory().tracks_ids(),
            window: false,
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
    /// The zone keeps track of ids.
    ids: bool,
    /// An id is put into windows.
    window: bool,
}

impl Cost {
    /// An id may be put into windows.
    pub(super) fn with_window(self, window: bool) -> Cost {
        Cost { window, ..self }
    }

    /// Blocks, beside those that were reserved.
    fn blocks(self, limits: &Limits) -> u32 {
        let per_event = if limits.events.is_some() { 2 * EVENT_BLOCKS } else { 0 };
        let ids = if self.ids { BLOCKS_FOR_IDS } else { 0 };
        (self.id_blocks * 2 + self.channels * (2 + ids + per_event)) as u32
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
        let ids = if self.ids { ENTRIES_FOR_IDS } else { 0 };
        let window = if self.window { ENTRIES_FOR_WINDOW } else { 0 };
        16 + self.id_blocks * 2 + self.channels * (per_message * messages + ids + window)
    }
}

/// Messages that a drain takes for one membership.
struct Take {
    member: MemberRef,
    count: u32,
}

/// What is needed to copy a message's payload without the lock.
pub(super) struct Head {
    body: BodyRef,
    pub(super) payload_len: usize,
    multi: bool,
    event_id: bool,
    event_type: bool,
}

/// How far an attempt at a deletion came.
enum Deletion {
    /// So many channels were deleted.
    Done(usize),
    /// The subscribers of so many channels must be told, which takes a message.
    Followed(usize),
}

fn refused(limits: &Limits) -> Refusal {
    match limits.on_full {
        OnFull::Refuse => Refusal::Full,
        OnFull::Evict => Refusal::NothingToEvict,
    }
}

impl Locked<'_> {
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

    /// Searches for where the old messages begin that the request wants. False if the budget is used up before.
    fn seek_all(
        &self,
        request: &JoinRequest,
        channels: &[ChannelRef],
        seeks: &mut [Option<Seek>],
        mut budget: u32,
    ) -> bool {
        let mut done = true;
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            let Some(aim) = self.aim(request, index, channel) else {
                *seek = None;
                continue;
            };
            if !seek.as_ref().is_some_and(|seek| self.is_seek_for(seek, channel, aim)) {
                *seek = Some(self.begin_seek(channel, aim));
            }
            if let Some(seek) = seek {
                done &= self.seek(request, seek, &mut budget);
            }
        }
        done
    }

    /// A slice of the searches that are not over; true if all are.
    fn go_on_seeking(&self, request: &JoinRequest, seeks: &mut [Option<Seek>]) -> bool {
        let mut budget = SEEK_LINKS;
        seeks
            .iter_mut()
            .flatten()
            .all(|seek| self.seek(request, seek, &mut budget))
    }

    /// The channels in which the client has missed something.
    fn gaps(&self, request: &JoinRequest, channels: &[ChannelRef], seeks: &[Option<Seek>]) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            if self.has_gap(request, channel) {
                gaps.push(Gap {
                    path_index: index as u32,
                    first: seek.as_ref().and_then(|seek| seek.first_id(self)),
                });
            }
        }
        gaps
    }

    /// Which old messages the request gets, and the position it is at then.
    fn select_old(
        &self,
        request: &JoinRequest,
        channels: &[ChannelRef],
        seeks: &mut [Option<Seek>],
    ) -> (Option<Replay>, Option<(u64, u32)>) {
        let position = &request.position;
        let mut replay = Replay {
            parts: Default::default(),
            ordered: request.ordered,
            lost: false,
            gaps: Vec::new(),
        };
        let mut bound = (position.time.unwrap_or(0), position.tag.unwrap_or(0));
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            let Some(seek) = seek.take().filter(|seek| !seek.is_empty()) else {
                continue;
            };
            replay.parts.push_back(ReplayPart::new(self, index, seek));
            let newest = (
                self.get(channel, channel::newest_time).into(),
                self.get(channel, channel::newest_tag),
            );
            bound = bound.max(newest);
        }
        if replay.parts.is_empty() {
            (None, None)
        } else {
            (Some(replay), Some(bound))
        }
    }

    /// Everything up to now, but not too much: the oldest is about what has been waiting longest.
    fn begin_whole_drain(&self, slot: SlotRef) -> WholeDrain {
        let mut until = self.hot(hot::seq);
        if let Some(member) = self.get(slot, slot::dirty_first).some()
            && self.get(member, member::flags) & member_flag::GONE == 0
            && let Some(link) = self.get(member, member::next).some()
        {
            until = until.min(self.seq_of(link) + WHOLE_DRAIN);
        }
        WholeDrain {
            until,
            first_left: None,
        }
    }

    /// Selects live messages of the slot's dirty memberships and keeps them from being evicted.
    fn gather(
        &mut self,
        slot: SlotRef,
        max_bytes: usize,
        scope: &mut Scope<'_>,
        batch: &mut Batch,
        takes: &mut Vec<Take>,
    ) -> Vec<Head> {
        let mut heads = Vec::new();
        let mut bytes = 0;
        // Copies of one message have consecutive sequence numbers, but belong together.
        let until = match scope {
            Scope::Whole(whole) => whole.until,
            Scope::Except { .. } => u64::MAX,
        };
        let is_due = |locked: &Self, link: LinkRef| until == u64::MAX || locked.first_seq(link) <= until;
        while let Some(member) = self.get(slot, slot::dirty_first).some() {
            if scope.first_left() == Some(member) {
                break;
            }
            if heads.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes {
                break;
            }
            let gone = self.get(member, member::flags) & member_flag::GONE != 0;
            if !gone && scope.skips(member) {
                self.put_back(slot);
                scope.leave(member);
                if self.nearly_full() {
                    self.step();
                }
                continue;
            }
            let mut next = if gone {
                None
            } else {
                self.get(member, member::next).some()
            };
            if !gone && next.is_none_or(|link| is_due(self, link)) {
                self.tell_lost(member, batch);
            }
            let mut count = 0;
            while let Some(link) = next {
                if heads.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes || !is_due(self, link) {
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
            match next {
                None => self.pop_dirty(slot),
                Some(link) if is_due(self, link) => break,
                Some(_) => {
                    self.put_back(slot);
                    scope.leave(member);
                }
            }
            if self.nearly_full() {
                self.step();
            }
        }
        heads
    }

    /// Says what was taken away from a member, once.
    fn tell_lost(&mut self, member: MemberRef, batch: &mut Batch) {
        let seq = self.get(member, member::lost_seq);
        if seq > 0 {
            self.set(member, member::lost_seq, 0);
            batch.lost.push(Lost {
                membership: Membership(member.0),
                seq,
            });
        }
    }

    pub(super) fn head(&self, link: LinkRef) -> Head {
        let body = self.body_of(link);
        Head {
            body,
            payload_len: self.get(body, body::payload_len) as usize,
            multi: self.link_flag(link, link_flag::MULTI),
            event_id: self.link_flag(link, link_flag::EVENT_ID),
            event_type: self.link_flag(link, link_flag::EVENT_TYPE),
        }
    }

    pub(super) fn record(&self, link: LinkRef, source: u32) -> Record {
        let (notice, dismissal) = (
            self.link_flag(link, link_flag::NOTICE),
            self.link_flag(link, link_flag::DISMISSAL),
        );
        Record {
            source,
            kind: match (notice, dismissal) {
                (false, _) => MessageKind::Ordinary,
                (true, false) => MessageKind::Deleted,
                (true, true) => MessageKind::Dismissed,
            },
            id: self.id_of(link),
            seq: self.seq_of(link),
            time: self.time_of(link),
            tag: self.tag_of(link),
            auto_id: self.link_flag(link, link_flag::AUTO_ID),
            repeated_id: false,
            late: self.is_of_unknown_order(link),
            binary: self.link_flag(link, link_flag::BINARY),
            unix_ms: self.unix_ms_of(link),
            event_id: None,
            event_type: None,
            text: Span { start: 0, len: 0 },
        }
    }
}
