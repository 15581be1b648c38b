//! Messages: one body, a link per channel, and the lists that determine when they are freed.
//!
//! A link is *stored* (replayed to new subscribers, counted), *pending* (some worker has not taken it), both, or
//! neither. It stays in its channel's queue while it is either. Then it goes to the trash; leaving the trash, it drops
//! a reference to its body, and the last reference frees the blocks.

use super::Limits;
use super::channels::TRASH_TICKS;
use super::layout::*;
use super::lists::{Item, List};
use super::memory::{Locked, Memory, Stop};
use crate::wire::event_id::OrderedId;

/// A channel's messages, oldest first.
pub fn queue(channel: ChannelRef) -> List<ChannelRef, LinkRef> {
    List {
        head: channel,
        first: channel::first,
        last: Some(channel::last),
        next: link::next,
        prev: link::prev,
    }
}

/// Bodies that are stored in some channel, by the end of their ttl: one list per ttl.
fn age(index: usize) -> List<Hot, BodyRef> {
    List {
        head: Hot,
        first: hot::age_first.nth(index),
        last: Some(hot::age_last.nth(index)),
        next: body::age_next,
        prev: body::age_prev,
    }
}

/// Bodies that are not stored in any channel, but pending.
fn limbo() -> List<Hot, BodyRef> {
    List {
        head: Hot,
        first: hot::limbo_first,
        last: Some(hot::limbo_last),
        next: body::age_next,
        prev: body::age_prev,
    }
}

fn list(code: u16) -> List<Hot, BodyRef> {
    if code == LIMBO {
        limbo()
    } else {
        age((code - FIRST_AGE) as usize)
    }
}

/// The number of the block that a link lies in.
fn block_of(link: LinkRef) -> u32 {
    link.0 / LINKS_PER_BLOCK
}

/// A message's first link, in its own head block.
pub fn first_link(body: BodyRef) -> LinkRef {
    LinkRef(body.0 * LINKS_PER_BLOCK + 1)
}

/// Text bytes in the head block.
/// Blocks of a message's head and text.
fn text_blocks(payload_len: u32, multi: bool) -> u32 {
    let rest = (payload_len as usize).saturating_sub(head_room(multi));
    1 + rest.div_ceil(CONTINUATION) as u32
}

pub fn head_room(multi: bool) -> usize {
    if multi { HEAD_ROOM_MULTI } else { HEAD_ROOM }
}

impl Memory {
    /// Copies a message's payload: event id, event type and text. It must not be freed meanwhile (pinned, or under the
    /// lock).
    pub fn copy_payload(&self, head: BodyRef, len: usize, multi: bool, out: &mut Vec<u8>) {
        let part = len.min(head_room(multi));
        self.copy_out(BlockRef(head.0), HEAD_TEXT, part, out);
        let mut rest = len - part;
        let mut block = self.peek(head, body::chain);
        while rest > 0 {
            let part = rest.min(CONTINUATION);
            self.copy_out(block, 4, part, out);
            block = self.peek(block, block::next);
            rest -= part;
        }
    }

    /// Reads the beginning of a message's payload. Conditions as for [`Memory::copy_payload`].
    pub fn read_payload(&self, head: BodyRef, multi: bool, out: &mut [u8]) {
        let (mut part, mut rest) = out.split_at_mut(out.len().min(head_room(multi)));
        self.read(BlockRef(head.0), HEAD_TEXT, part);
        let mut block = self.peek(head, body::chain);
        while !rest.is_empty() {
            (part, rest) = rest.split_at_mut(rest.len().min(CONTINUATION));
            self.read(block, 4, part);
            block = self.peek(block, block::next);
        }
    }
}

impl Locked<'_> {
    pub fn link_flag(&self, link: LinkRef, flag: u16) -> bool {
        self.get(link, link::flags) & flag != 0
    }

    fn set_link_flag(&mut self, link: LinkRef, flag: u16, on: bool) {
        let flags = self.get(link, link::flags);
        self.set(link, link::flags, if on { flags | flag } else { flags & !flag });
    }

    pub fn body_of(&self, link: LinkRef) -> BodyRef {
        if self.link_flag(link, link_flag::FIRST) {
            BodyRef(block_of(link))
        } else {
            BodyRef(self.get(link, link::body_or_time))
        }
    }

    fn index_of(&self, link: LinkRef) -> u32 {
        if self.link_flag(link, link_flag::FIRST) {
            0
        } else {
            self.get(link, link::index_or_refs).into()
        }
    }

    pub fn seq_of(&self, link: LinkRef) -> u64 {
        self.get(self.body_of(link), body::seq) + u64::from(self.index_of(link))
    }

    /// Sequence number of the message's first link.
    pub fn first_seq(&self, link: LinkRef) -> u64 {
        self.get(self.body_of(link), body::seq)
    }

    pub fn tag_of(&self, link: LinkRef) -> u32 {
        (self.get(self.body_of(link), body::tag) & TAG_MASK) + self.index_of(link)
    }

    /// Publish time in milliseconds since the epoch. If the clock went back, the second is that of the previous
    /// message.
    pub fn unix_ms_of(&self, link: LinkRef) -> u64 {
        let millis = self.get(self.body_of(link), body::tag) >> TAG_MASK.count_ones();
        self.time_of(link) * 1000 + u64::from(millis)
    }

    pub fn time_of(&self, link: LinkRef) -> u64 {
        self.get(first_link(self.body_of(link)), link::body_or_time).into()
    }

    pub fn id_of(&self, link: LinkRef) -> u64 {
        u64::from(self.get(link, link::id_high)) << 32 | u64::from(self.get(link, link::id_low))
    }

    pub fn first_stored(&self, channel: ChannelRef) -> Option<LinkRef> {
        if self.get(channel, channel::stored) == 0 {
            return None;
        }
        let mut next = self.get(channel, channel::first);
        while next.is_some() && !self.link_flag(next, link_flag::STORED) {
            next = self.get(next, link::next);
        }
        next.some()
    }

    /// Takes the next `count` (time, tag, seq) stamps of the zone: strictly increasing, even if the clock goes back.
    fn next_stamp(&mut self, unix_secs: u64, count: u32) -> (u32, u32, u64) {
        let newest = self.hot(hot::time);
        let mut time = newest.max(unix_secs as u32);
        let mut tag = if time == newest { self.hot(hot::tag) + 1 } else { 1 };
        if tag + count > TAG_MASK {
            (time, tag) = (time + 1, 1);
        }
        let seq = self.hot(hot::seq) + 1;
        self.set_hot(hot::time, time);
        self.set_hot(hot::tag, tag + count - 1);
        self.set_hot(hot::seq, seq + u64::from(count) - 1);
        (time, tag, seq)
    }

    /// Links the first message of the slot's reservation, which is filled up to its block `last`, into `channels` (at
    /// least one, at most as many as it was made for), and takes it off the reservation. `id`: its event id, if that is
    /// an ordered one.
    pub fn link_reserved(
        &mut self,
        slot: SlotRef,
        channels: &[ChannelRef],
        shape: Shape,
        last: BlockRef,
        id: Option<OrderedId>,
        limits: &Limits,
    ) {
        let (head, mut link_blocks) = self.take_reservation(slot, shape, last);
        let needed = links_blocks(channels.len() as u32);
        for block in link_blocks.drain(needed as usize..) {
            self.free_block(block);
        }
        self.link_message(head, &link_blocks, channels, shape, id, limits);
    }

    /// Makes a message under the lock and stores it in one channel: only for short ones made by the zone itself.
    pub fn link_short(
        &mut self,
        channel: ChannelRef,
        event_type: &[u8],
        text: &[u8],
        limits: &Limits,
    ) -> Result<(), Stop> {
        let len = (event_type.len() as u16).to_le_bytes();
        let payload = [&len, event_type, text].concat();
        let flags = link_flag::EVENT_TYPE | link_flag::STORED;
        let shape = Shape {
            payload_len: payload.len() as u32,
            links: 1,
            flags,
        };
        if self.available() < shape.blocks() {
            return Err(Stop::Short);
        }
        let (inline, rest) = payload.split_at(payload.len().min(head_room(false)));
        let mut chain = BlockRef::NONE;
        for part in rest.chunks(CONTINUATION).rev() {
            let block = self.take_block()?;
            self.init(block, block::next, chain);
            self.copy_in(block, 4, part);
            chain = block;
        }
        let head = self.take_block()?;
        self.init(head, block::next, chain);
        self.copy_in(head, HEAD_TEXT, inline);
        self.link_message(BodyRef(head.0), &[], &[channel], shape, None, limits);
        Ok(())
    }

    fn link_message(
        &mut self,
        head: BodyRef,
        link_blocks: &[BlockRef],
        channels: &[ChannelRef],
        shape: Shape,
        id: Option<OrderedId>,
        limits: &Limits,
    ) {
        let count = channels.len() as u32;
        let unix_ms = self.unix_ms;
        let (time, tag, seq) = self.next_stamp(unix_ms / 1000, count);
        let millis = (unix_ms % 1000) as u32;
        let expires = self
            .hot(hot::now)
            .saturating_add(limits.message_ttl_secs.saturating_mul(10));
        self.init(head, body::payload_len, shape.payload_len);
        self.init(head, body::expires, expires);
        self.init(head, body::tag, tag | millis << TAG_MASK.count_ones());
        self.init(head, body::seq, seq);
        let described = link_flag::EVENT_ID | link_flag::AUTO_ID | link_flag::EVENT_TYPE | link_flag::BINARY;
        let mut common = shape.flags & (described | link_flag::NOTICE | link_flag::DISMISSAL);
        if shape.multi() {
            common |= link_flag::MULTI;
            self.init(head, multi::stored, 0);
            self.init(head, multi::queued, 0);
        }
        // The fields that name a link's list are set before the lists are changed.
        for index in 0..count {
            let link = nth_link(head, link_blocks, index);
            let next = if index + 1 < count {
                nth_link(head, link_blocks, index + 1)
            } else {
                LinkRef::NONE
            };
            let (flags, body_or_time, index_or_refs) = match index {
                0 => (common | link_flag::FIRST, time, count as u16),
                _ => (common, head.0, index as u16),
            };
            self.init(link, link::flags, flags);
            self.init(link, link::body_or_time, body_or_time);
            self.init(link, link::index_or_refs, index_or_refs);
            self.init(link, link::sibling, next);
            self.init(link, link::pending, 0);
        }
        if let Some(&last) = link_blocks.last() {
            // Unused link places must not look like links.
            let used = (count - 1) % LINKS_PER_BLOCK;
            for place in if used == 0 { LINKS_PER_BLOCK } else { used }..LINKS_PER_BLOCK {
                self.init(LinkRef(last.0 * LINKS_PER_BLOCK + place), link::flags, 0);
            }
        }
        self.set_kind(head.0, kind::BODY);
        for block in link_blocks {
            self.set_kind(block.0, kind::LINKS);
        }
        if shape.stored() {
            let code = FIRST_AGE + self.choose_age_list(limits.message_ttl_secs) as u16;
            self.push_back_new(list(code), head);
            let first = first_link(head);
            let flags = self.get(first, link::flags);
            self.init(first, link::flags, flags | code << link_flag::LIST_SHIFT);
        }
        self.mark_late(head, link_blocks, channels, id);
        for (index, &channel) in channels.iter().enumerate() {
            let link = nth_link(head, link_blocks, index as u32);
            let auto = shape.flags & link_flag::AUTO_ID != 0;
            if let Some(id) = if auto { self.ordered_id_of(link) } else { id } {
                self.note_newest(channel, id);
            }
            self.append(channel, link, shape, limits);
            if !shape.notice() {
                self.set(channel, channel::newest_time, time);
                self.set(channel, channel::newest_tag, tag + index as u32);
            }
        }
    }

    /// Marks links as late in channels that have had a higher or equal id. Done before any id is noted: copies in one
    /// channel have equal ids.
    fn mark_late(&mut self, head: BodyRef, link_blocks: &[BlockRef], channels: &[ChannelRef], id: Option<OrderedId>) {
        if !self.tracks_ids() {
            return;
        }
        for (index, &channel) in channels.iter().enumerate() {
            let link = nth_link(head, link_blocks, index as u32);
            let id = id.or_else(|| {
                self.ordered_id_of(link)
                    .filter(|_| self.link_flag(link, link_flag::AUTO_ID))
            });
            if id.is_some_and(|id| !self.is_in_order(channel, id)) {
                let flags = self.get(link, link::flags);
                self.init(link, link::flags, flags | link_flag::LATE);
            }
        }
    }

    /// Takes a message's blocks off the front of the slot's reservation.
    fn take_reservation(&mut self, slot: SlotRef, shape: Shape, last: BlockRef) -> (BodyRef, Vec<BlockRef>) {
        // The blocks behind it are reserved for other messages.
        let rest = self.get(last, block::next);
        if rest.some().is_some() {
            self.set(last, block::next, BlockRef::NONE);
        }
        let mut block = self.get(slot, slot::reserved);
        let mut link_blocks = Vec::new();
        for _ in 0..shape.link_blocks() {
            let next = self.get(block, block::next);
            // The first link will overwrite the chain field.
            self.set(block, block::next, next);
            link_blocks.push(block);
            block = next;
        }
        self.set(slot, slot::reserved, rest);
        (BodyRef(block.0), link_blocks)
    }

    /// Appends a link to a channel's queue, or to the trash if it is neither stored nor pending.
    fn append(&mut self, channel: ChannelRef, link: LinkRef, shape: Shape, limits: &Limits) {
        let id = if shape.notice() {
            0
        } else {
            self.get(channel, channel::published) + 1
        };
        self.init(link, link::channel, channel);
        self.init(link, link::id_low, id as u32);
        self.init(link, link::id_high, (id >> 32) as u16);
        let body = self.body_of(link);
        if !shape.notice() {
            self.set(channel, channel::published, id);
            if !self.has_flag(channel, channel_flag::EVENTS) {
                self.add(Hot, hot::published, 1);
            }
            self.touch(channel, limits);
        }
        let pending = self.announce(channel, link);
        if !shape.stored() && pending == 0 {
            self.discard_link(link);
            return;
        }
        self.init(link, link::pending, pending);
        self.push_back_new(queue(channel), link);
        let kept = if shape.stored() { link_flag::STORED } else { 0 };
        let flags = self.get(link, link::flags);
        self.init(link, link::flags, flags | link_flag::QUEUED | kept);
        self.count_multi(body, multi::queued, true);
        if shape.stored() {
            self.count_multi(body, multi::stored, true);
            self.add(channel, channel::stored, 1);
            self.add(channel, channel::stored_blocks, self.text_blocks_of(link).into());
            if !self.has_flag(channel, channel_flag::EVENTS) {
                self.add(Hot, hot::stored, 1);
            }
            self.drop_over_limit(channel, limits);
        } else {
            if !shape.notice() {
                self.add(Hot, hot::unstored_queued, 1);
            }
            self.relist(body);
        }
    }

    /// Blocks of a message's head and text, by one of its links.
    pub fn text_blocks_of(&self, link: LinkRef) -> u32 {
        let payload_len = self.get(self.body_of(link), body::payload_len);
        text_blocks(payload_len, self.link_flag(link, link_flag::MULTI))
    }

    /// Drops one stored message for one new; the caller drops the excess over a lowered limit.
    fn drop_over_limit(&mut self, channel: ChannelRef, limits: &Limits) {
        if limits
            .max_stored_per_channel
            .is_some_and(|max| self.get(channel, channel::stored) > max)
            && let Some(oldest) = self.first_stored(channel)
        {
            self.unstore(oldest);
        }
    }

    fn count_multi(&mut self, body: BodyRef, field: Field<BodyRef, u16>, up: bool) {
        if self.link_flag(first_link(body), link_flag::MULTI) {
            if up {
                self.add(body, field, 1);
            } else {
                self.sub(body, field, 1);
            }
        }
    }

    /// The index of the age list for messages of this ttl. If all lists are taken by other ttls, the one of the next
    /// longer ttl: the message then lives a little longer.
    fn choose_age_list(&mut self, ttl: u32) -> usize {
        let ttl_of = |locked: &Self, index| locked.hot(hot::age_ttl.nth(index));
        if let Some(index) = (0..AGE_LISTS).find(|&index| ttl_of(self, index) == ttl) {
            return index;
        }
        let unused = |index: &usize| !self.hot(hot::age_first.nth(*index)).is_some();
        if let Some(index) = (0..AGE_LISTS).find(unused) {
            self.set_hot(hot::age_ttl.nth(index), ttl);
            return index;
        }
        let longer = (0..AGE_LISTS)
            .filter(|&index| ttl_of(self, index) > ttl)
            .min_by_key(|&index| ttl_of(self, index));
        longer
            .or_else(|| (0..AGE_LISTS).max_by_key(|&index| ttl_of(self, index)))
            .unwrap_or(0)
    }

    fn list_of(&self, body: BodyRef) -> u16 {
        (self.get(first_link(body), link::flags) & link_flag::LIST_MASK) >> link_flag::LIST_SHIFT
    }

    fn enlist(&mut self, body: BodyRef, code: u16) {
        if code != 0 {
            self.push_back(list(code), body);
        }
        let first = first_link(body);
        let flags = self.get(first, link::flags) & !link_flag::LIST_MASK;
        self.set(first, link::flags, flags | code << link_flag::LIST_SHIFT);
    }

    /// Moves a body to the list that it now belongs to.
    fn relist(&mut self, body: BodyRef) {
        let first = first_link(body);
        let (stored, queued) = if self.link_flag(first, link_flag::MULTI) {
            (self.get(body, multi::stored) > 0, self.get(body, multi::queued) > 0)
        } else {
            (
                self.link_flag(first, link_flag::STORED),
                self.link_flag(first, link_flag::QUEUED),
            )
        };
        let old = self.list_of(body);
        let new = match (stored, queued) {
            (true, _) => return,
            (false, true) => LIMBO,
            (false, false) => 0,
        };
        if old != new {
            if old != 0 {
                self.unlink(list(old), body);
            }
            self.enlist(body, new);
        }
    }

    /// Marks a link as no longer stored in its channel: expired, over the limit, evicted or deleted.
    pub fn unstore(&mut self, link: LinkRef) {
        let channel = self.get(link, link::channel);
        let body = self.body_of(link);
        self.set_link_flag(link, link_flag::STORED, false);
        self.count_multi(body, multi::stored, false);
        self.sub(channel, channel::stored, 1);
        self.sub(channel, channel::stored_blocks, self.text_blocks_of(link).into());
        if !self.has_flag(channel, channel_flag::EVENTS) {
            self.sub(Hot, hot::stored, 1);
        }
        self.note_lost(channel, link);
        self.add(Hot, hot::unstored_queued, 1);
        if self.get(link, link::pending) == 0 {
            self.dequeue(link);
        } else {
            self.relist(body);
        }
    }

    /// Marks a link as taken by a worker, or as no longer being copied.
    pub fn release(&mut self, link: LinkRef) {
        let pending = self.get(link, link::pending) - 1;
        self.set(link, link::pending, pending);
        if pending == 0 && !self.link_flag(link, link_flag::STORED) {
            self.dequeue(link);
        }
    }

    /// Takes a link that is neither stored nor pending out of its channel's queue.
    pub fn dequeue(&mut self, link: LinkRef) {
        let channel = self.get(link, link::channel);
        let body = self.body_of(link);
        self.unlink(queue(channel), link);
        self.set_link_flag(link, link_flag::QUEUED, false);
        self.count_multi(body, multi::queued, false);
        if !self.link_flag(link, link_flag::NOTICE) {
            self.sub(Hot, hot::unstored_queued, 1);
        }
        self.relist(body);
        self.reconsider(channel);
        self.discard_link(link);
    }

    /// Puts a link that is in no queue into the trash.
    fn discard_link(&mut self, link: LinkRef) {
        if self.link_flag(link, link_flag::NOTICE) {
            self.unref(self.body_of(link));
            return;
        }
        let deadline = self.hot(hot::now) + TRASH_TICKS;
        self.set(link, link::channel, ChannelRef(deadline));
        self.set(link, link::next, LinkRef::NONE);
        match self.hot(hot::trash_last).some() {
            Some(last) => self.set(last, link::next, link),
            None => self.set_hot(hot::trash_first, link),
        }
        self.set_hot(hot::trash_last, link);
        self.add(Hot, hot::trash_count, 1);
    }

    /// Frees one link from the trash whose time has come, or the oldest if `early`. False if there is none.
    pub fn empty_trash(&mut self, early: bool) -> bool {
        let Some(link) = self.hot(hot::trash_first).some() else {
            return false;
        };
        if !early && self.get(link, link::channel).0 >= self.hot(hot::now) {
            return false;
        }
        let next = self.get(link, link::next);
        self.set_hot(hot::trash_first, next);
        if !next.is_some() {
            self.set_hot(hot::trash_last, LinkRef::NONE);
        }
        self.sub(Hot, hot::trash_count, 1);
        self.unref(self.body_of(link));
        true
    }

    /// Frees the oldest link from the trash before its time: 1 if it came there without eviction, 0 if its eviction is
    /// already counted.
    pub fn evict_trash(&mut self) -> Option<u64> {
        let link = self.hot(hot::trash_first).some()?;
        let counted = self.link_flag(link, link_flag::EVICTED);
        self.empty_trash(true);
        Some(u64::from(!counted))
    }

    fn unref(&mut self, body: BodyRef) {
        let first = first_link(body);
        let refs = self.get(first, link::index_or_refs) - 1;
        self.set(first, link::index_or_refs, refs);
        if refs == 0 {
            self.set(body, body::age_next, self.hot(hot::garbage));
            self.set_hot(hot::garbage, body);
        }
    }

    /// Frees one block of an unreferenced message. False if there is none.
    pub fn collect_garbage(&mut self) -> bool {
        let Some(body) = self.hot(hot::garbage).some() else {
            return false;
        };
        let first = first_link(body);
        if let Some(link) = self.get(first, link::sibling).some() {
            let mut rest = link;
            for _ in 0..LINKS_PER_BLOCK {
                rest = if rest.is_some() {
                    self.get(rest, link::sibling)
                } else {
                    rest
                };
            }
            self.set(first, link::sibling, rest);
            self.free_block(BlockRef(block_of(link)));
        } else if let Some(block) = self.get(body, body::chain).some() {
            let next = self.get(block, block::next);
            self.set(body, body::chain, next);
            self.free_block(block);
        } else {
            self.set_hot(hot::garbage, self.get(body, body::age_next));
            self.free_block(BlockRef(body.0));
        }
        true
    }

    /// Expires one overdue message in one of its channels, counted as an eviction if `evicts`. False if none is
    /// overdue.
    pub fn expire(&mut self, evicts: bool) -> bool {
        let now = self.hot(hot::now);
        for index in 0..AGE_LISTS {
            if let Some(body) = self.hot(hot::age_first.nth(index)).some()
                && self.get(body, body::expires) <= now
            {
                self.unstore_some(body, evicts);
                return true;
            }
        }
        false
    }

    /// Evicts the zone's oldest stored message, in one of its channels. False if nothing is stored.
    pub fn evict_oldest(&mut self) -> bool {
        let heads = (0..AGE_LISTS).filter_map(|index| self.hot(hot::age_first.nth(index)).some());
        let Some(body) = heads.min_by_key(|&body| self.get(body, body::seq)) else {
            return false;
        };
        self.unstore_some(body, true);
        true
    }

    fn unstore_some(&mut self, body: BodyRef, evicts: bool) {
        let mut next = first_link(body);
        while let Some(link) = next.some() {
            if self.link_flag(link, link_flag::STORED) {
                if evicts {
                    self.set_link_flag(link, link_flag::EVICTED, true);
                }
                return self.unstore(link);
            }
            next = self.get(link, link::sibling);
        }
    }

    /// The last resort: evicts a message that is still pending. False if there is none, or if all are just being
    /// copied.
    pub fn evict_undelivered(&mut self) -> bool {
        let mut next = self.hot(hot::limbo_first);
        for _ in 0..64 {
            let Some(body) = next.some() else { return false };
            if let Some(link) = self.evictable_link(body) {
                // The channel loses its oldest message, so that lost messages always precede the next one to take.
                self.skip_for_all(self.oldest_beside(link));
                return true;
            }
            next = self.get(body, body::age_next);
        }
        false
    }

    /// A queued link of the body that no worker is copying; never a notice, because without it subscribers would wait
    /// for ever.
    fn evictable_link(&self, body: BodyRef) -> Option<LinkRef> {
        let mut next = first_link(body);
        while let Some(link) = next.some() {
            if self.link_flag(link, link_flag::QUEUED)
                && !self.link_flag(link, link_flag::NOTICE)
                && !self.is_being_copied(self.get(link, link::channel))
            {
                return Some(link);
            }
            next = self.get(link, link::sibling);
        }
        None
    }

    /// The oldest message in the same queue that is neither stored nor a notice, as far as it can be found near the
    /// front.
    fn oldest_beside(&self, link: LinkRef) -> LinkRef {
        let mut next = self.get(self.get(link, link::channel), channel::first);
        for _ in 0..64 {
            if !next.is_some() || !self.link_flag(next, link_flag::NOTICE | link_flag::STORED) {
                break;
            }
            next = self.get(next, link::next);
        }
        let found = next.is_some() && !self.link_flag(next, link_flag::NOTICE | link_flag::STORED);
        if found { next } else { link }
    }

    fn is_being_copied(&self, channel: ChannelRef) -> bool {
        let mut next = self.get(channel, channel::members);
        while let Some(member) = next.some() {
            if self.get(member, member::flags) & member_flag::READING != 0 {
                return true;
            }
            next = self.get(member, member::channel_next);
        }
        self.all_slots()
            .any(|slot| self.get(slot, slot::pin_channel) == channel)
    }

    fn skip_for_all(&mut self, link: LinkRef) {
        let channel = self.get(link, link::channel);
        let (after, seq) = (self.get(link, link::next), self.seq_of(link));
        let mut next = self.get(channel, channel::members);
        while let Some(member) = next.some() {
            let waits_for = self.get(member, member::next).some();
            if waits_for.is_some_and(|first| self.seq_of(first) <= seq) {
                self.set(member, member::lost_seq, seq);
            }
            if waits_for == Some(link) {
                self.set(member, member::next, after);
            }
            next = self.get(member, member::channel_next);
        }
        self.set(link, link::pending, 0);
        self.set_link_flag(link, link_flag::EVICTED, true);
        self.dequeue(link);
    }
}

/// The `index`th link of a message.
fn nth_link(head: BodyRef, link_blocks: &[BlockRef], index: u32) -> LinkRef {
    match index.checked_sub(1) {
        None => first_link(head),
        Some(further) => {
            let block = link_blocks[(further / LINKS_PER_BLOCK) as usize];
            LinkRef(block.0 * LINKS_PER_BLOCK + further % LINKS_PER_BLOCK)
        }
    }
}

/// Number of blocks for the links that do not fit into the head block.
fn links_blocks(links: u32) -> u32 {
    links.saturating_sub(1).div_ceil(LINKS_PER_BLOCK)
}

/// The properties of a message that determine its blocks, known before it is linked.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub payload_len: u32,
    pub links: u32,
    /// [`link_flag`]s: `EVENT_ID`, `AUTO_ID`, `EVENT_TYPE`, `BINARY`, `NOTICE`, `DISMISSAL`, `STORED`.
    pub flags: u16,
}

/// Maximum bytes of a message's event id, event type and text together. Rendered messages are counted in 32 bits, and a
/// text becomes several times as long where each of its lines is a field or a template repeats it.
pub const MAX_PAYLOAD: u32 = 256 << 20;

impl Shape {
    /// The shape of a published message. None if it is larger than [`MAX_PAYLOAD`].
    pub fn of(text_len: usize, event_id: Option<&[u8]>, event_type: Option<&[u8]>, channels: usize) -> Option<Shape> {
        let mut flags = 0;
        let mut payload_len = text_len;
        for (text, flag) in [(event_id, link_flag::EVENT_ID), (event_type, link_flag::EVENT_TYPE)] {
            if let Some(text) = text {
                flags |= flag;
                payload_len += 2 + text.len();
            }
        }
        Some(Shape {
            payload_len: u32::try_from(payload_len).ok().filter(|&len| len <= MAX_PAYLOAD)?,
            links: u16::try_from(channels).ok()?.into(),
            flags,
        })
    }

    pub fn multi(self) -> bool {
        self.links > 1
    }

    pub fn stored(self) -> bool {
        self.flags & link_flag::STORED != 0
    }

    pub fn notice(self) -> bool {
        self.flags & link_flag::NOTICE != 0
    }

    pub fn link_blocks(self) -> u32 {
        links_blocks(self.links)
    }

    /// Number of all blocks: links, head and text.
    pub fn blocks(self) -> u32 {
        self.link_blocks() + text_blocks(self.payload_len, self.multi())
    }
}
