//! Channels: found by id, listed in creation order, removed when idle or deleted.

use super::layout::*;
use super::lists::List;
use super::memory::{BUCKET_FIRST, Locked, Stop};
use super::{ChannelEvent, ChannelInfo, Limits, Refusal, eviction};

/// Ticks in the trash, from the removal of a channel or message until its memory is freed.
pub const TRASH_TICKS: u32 = 100;
/// Ticks for which a deleted channel counts as being deleted before it goes to the trash; its subscribers are notified
/// at once. The C module does it in rounds of four seconds.
const DELETE_TICKS: u32 = 30;
/// Channels examined to find one whose deletion can be finished early.
const HASTENED: u32 = 64;

/// All channels in creation order.
pub fn order() -> List<Hot, ChannelRef> {
    List {
        head: Hot,
        first: hot::order_first,
        last: Some(hot::order_last),
        next: channel::order_next,
        prev: channel::order_prev,
    }
}

fn by_deadline(first: Field<Hot, ChannelRef>, last: Field<Hot, ChannelRef>) -> List<Hot, ChannelRef> {
    List {
        head: Hot,
        first,
        last: Some(last),
        next: channel::idle_next,
        prev: channel::idle_prev,
    }
}

/// Channels by inactivity deadline. A channel in use at its deadline is in no list until it becomes unused.
pub fn idle() -> List<Hot, ChannelRef> {
    by_deadline(hot::idle_first, hot::idle_last)
}

/// Deleted channels whose subscribers are being notified.
pub fn deleting() -> List<Hot, ChannelRef> {
    by_deadline(hot::deleting_first, hot::deleting_last)
}

/// Removed channels whose memory is not yet freed.
pub fn channel_trash() -> List<Hot, ChannelRef> {
    by_deadline(hot::channel_trash_first, hot::channel_trash_last)
}

impl Locked<'_> {
    /// The living channel with this id.
    pub fn find(&self, hash: u32, id: &[u8]) -> Option<ChannelRef> {
        self.find_kind(hash, id, 0)
    }

    fn find_kind(&self, hash: u32, id: &[u8], kind: u16) -> Option<ChannelRef> {
        let mut next = self.get(self.bucket(hash), BUCKET_FIRST);
        while let Some(found) = next.some() {
            let of_kind = self.get(found, channel::flags) & channel_flag::ADDRESS == kind;
            if of_kind && self.get(found, channel::hash) == hash && self.id_is(found, id) {
                return Some(found);
            }
            next = self.get(found, channel::hash_next);
        }
        None
    }

    fn id_is(&self, channel: ChannelRef, id: &[u8]) -> bool {
        if self.get(channel, channel::id_len) as usize != id.len() {
            return false;
        }
        let (head, mut rest) = id.split_at(id.len().min(CHANNEL_ID_ROOM));
        if !self.equal(BlockRef(channel.0), channel::SIZE, head) {
            return false;
        }
        let mut block = self.get(channel, channel::id_more);
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min(CONTINUATION));
            if !self.equal(block, 4, part) {
                return false;
            }
            block = self.get(block, block::next);
            rest = more;
        }
        true
    }

    /// Appends a channel's id to `out`.
    pub fn copy_id(&self, channel: ChannelRef, out: &mut Vec<u8>) {
        let len = self.get(channel, channel::id_len) as usize;
        let head = len.min(CHANNEL_ID_ROOM);
        self.copy_out(BlockRef(channel.0), channel::SIZE, head, out);
        let mut block = self.get(channel, channel::id_more);
        let mut rest = len - head;
        while rest > 0 {
            let part = rest.min(CONTINUATION);
            self.copy_out(block, 4, part, out);
            block = self.get(block, block::next);
            rest -= part;
        }
    }

    pub fn has_flag(&self, channel: ChannelRef, flag: u16) -> bool {
        self.get(channel, channel::flags) & flag != 0
    }

    pub fn set_flag(&mut self, channel: ChannelRef, flag: u16, on: bool) {
        let flags = self.get(channel, channel::flags);
        self.set(channel, channel::flags, if on { flags | flag } else { flags & !flag });
    }

    pub fn info(&self, channel: ChannelRef) -> ChannelInfo {
        ChannelInfo {
            published: self.get(channel, channel::published),
            stored: self.get(channel, channel::stored).into(),
            subscribers: self.get(channel, channel::subscribers).into(),
        }
    }

    /// May a channel with this id be created, in addition to `plain` and `wildcard` others that are about to be?
    pub fn may_create(&self, id: &[u8], limits: &Limits, plain: u32, wildcard: u32) -> Result<(), Refusal> {
        let (count, coming, max) = if limits.is_wildcard(id) {
            (self.hot(hot::wildcard_channels), wildcard, limits.max_wildcard_channels)
        } else {
            (self.hot(hot::channels), plain, limits.max_channels)
        };
        match max {
            Some(max) if count.saturating_add(coming) >= max => Err(Refusal::TooManyChannels),
            _ => Ok(()),
        }
    }

    pub fn find_or_create(&mut self, hash: u32, id: &[u8], limits: &Limits) -> Result<ChannelRef, Stop> {
        match self.find(hash, id) {
            Some(channel) => Ok(channel),
            None => self.create(hash, id, limits),
        }
    }

    fn create(&mut self, hash: u32, id: &[u8], limits: &Limits) -> Result<ChannelRef, Stop> {
        self.may_create(id, limits, 0, 0).map_err(Stop::Refused)?;
        if self.available() <= eviction::spare(self, limits) {
            return Err(Stop::Short);
        }
        let wildcard = limits.is_wildcard(id);
        let flags = if wildcard { channel_flag::WILDCARD } else { 0 };
        let created = self.create_unlisted(hash, id, flags)?;
        self.begin_ids(created)?;
        self.init(created, channel::deadline, self.deadline(limits));
        self.init(created, channel::flags, flags | channel_flag::IDLE_LISTED);
        self.push_back_new(order(), created);
        self.push_back_new(idle(), created);
        self.add(
            Hot,
            if wildcard {
                hot::wildcard_channels
            } else {
                hot::channels
            },
            1,
        );
        self.tell(ChannelEvent::Created, created)?;
        Ok(created)
    }

    /// Creates a channel that is in the hash table but in no list.
    fn create_unlisted(&mut self, hash: u32, id: &[u8], flags: u16) -> Result<ChannelRef, Stop> {
        let block = self.take_block()?;
        let created = ChannelRef(block.0);
        let (head, rest) = id.split_at(id.len().min(CHANNEL_ID_ROOM));
        self.copy_in(block, channel::SIZE, head);
        let mut more = BlockRef::NONE;
        for part in rest.chunks(CONTINUATION).rev() {
            let continued = self.take_block()?;
            self.init(continued, block::next, more);
            self.copy_in(continued, 4, part);
            more = continued;
        }
        let bucket = self.bucket(hash);
        let born = self.hot(hot::born) + 1;
        self.init(created, channel::hash_next, self.get(bucket, BUCKET_FIRST));
        self.init(created, channel::hash, hash);
        self.init(created, channel::born, born);
        self.init(created, channel::deadline, 0);
        self.init(created, channel::flags, flags);
        self.init(created, channel::id_len, id.len() as u16);
        self.init(created, channel::id_more, more);
        self.init(created, channel::first, LinkRef::NONE);
        self.init(created, channel::last, LinkRef::NONE);
        self.init(created, channel::members, MemberRef::NONE);
        self.init(created, channel::published, 0);
        self.init(created, channel::ids, IdsRef::NONE);
        self.init(created, channel::newest_time, 0);
        self.init(created, channel::newest_tag, 0);
        self.init(created, channel::stored, 0);
        self.init(created, channel::stored_blocks, 0);
        self.init(created, channel::subscribers, 0);
        self.set_hot(hot::born, born);
        self.set(bucket, BUCKET_FIRST, created);
        self.set_kind(created.0, kind::CHANNEL);
        Ok(created)
    }

    fn deadline(&self, limits: &Limits) -> u32 {
        self.hot(hot::now)
            .saturating_add(limits.channel_inactivity_secs.saturating_mul(10))
    }

    /// Restarts the inactivity period of a channel in use. To the second, so that a busy channel is not moved in the
    /// list all the time.
    pub fn touch(&mut self, channel: ChannelRef, limits: &Limits) {
        let deadline = self.deadline(limits);
        let listed = self.has_flag(channel, channel_flag::IDLE_LISTED);
        if listed && deadline.abs_diff(self.get(channel, channel::deadline)) < 10 {
            return;
        }
        self.set(channel, channel::deadline, deadline);
        if listed {
            if self.hot(hot::idle_last) == channel {
                return;
            }
            self.unlink(idle(), channel);
        } else {
            self.set_flag(channel, channel_flag::IDLE_LISTED, true);
        }
        self.push_back(idle(), channel);
    }

    /// Does nothing keep the channel?
    fn is_unused(&self, channel: ChannelRef) -> bool {
        !self.has_flag(channel, channel_flag::EVENTS)
            && self.get(channel, channel::stored) == 0
            && self.get(channel, channel::subscribers) == 0
            && self.get(channel, channel::members) == MemberRef::NONE
            && self.get(channel, channel::first) == LinkRef::NONE
    }

    /// The entry of a client address, created if missing.
    pub fn address(&mut self, hash: u32, key: &[u8]) -> Result<ChannelRef, Stop> {
        match self.find_kind(hash, key, channel_flag::ADDRESS) {
            Some(address) => Ok(address),
            None => self.create_unlisted(hash, key, channel_flag::ADDRESS),
        }
    }

    /// To be called when something that kept the channel is gone: an overdue channel is listed again, an address is
    /// removed at once.
    pub fn reconsider(&mut self, channel: ChannelRef) {
        if self.has_flag(channel, channel_flag::ADDRESS) {
            if self.is_unused(channel) {
                self.remove_from_table(channel);
                while let Some(block) = self.get(channel, channel::id_more).some() {
                    let next = self.get(block, block::next);
                    self.set(channel, channel::id_more, next);
                    self.free_block(block);
                }
                self.free_block(BlockRef(channel.0));
            }
            return;
        }
        let flags = channel_flag::IDLE_LISTED | channel_flag::DELETED;
        if !self.has_flag(channel, flags) && self.is_unused(channel) {
            self.push_front(idle(), channel);
            self.set_flag(channel, channel_flag::IDLE_LISTED, true);
        }
    }

    /// Takes the first overdue channel off the idle list, and moves it to the trash if it is unused. False if there is
    /// none.
    pub fn retire_idle(&mut self) -> bool {
        let Some(channel) = self.hot(hot::idle_first).some() else {
            return false;
        };
        if self.get(channel, channel::deadline) >= self.hot(hot::now) {
            return false;
        }
        if self.is_unused(channel) {
            self.remove(channel);
            self.trash_channel(channel);
        } else {
            self.unlink(idle(), channel);
            self.set_flag(channel, channel_flag::IDLE_LISTED, false);
        }
        true
    }

    /// Removes an unused channel before its time. False if none was found among the longest idle.
    pub fn evict_idle(&mut self) -> bool {
        let mut next = self.hot(hot::idle_first);
        for _ in 0..256 {
            let Some(channel) = next.some() else { return false };
            if self.is_unused(channel) {
                self.remove(channel);
                self.trash_channel(channel);
                return true;
            }
            next = self.get(channel, channel::idle_next);
        }
        false
    }

    fn remove_from_table(&mut self, removed: ChannelRef) {
        let bucket = self.bucket(self.get(removed, channel::hash));
        let after = self.get(removed, channel::hash_next);
        let mut before = self.get(bucket, BUCKET_FIRST);
        if before == removed {
            self.set(bucket, BUCKET_FIRST, after);
        } else {
            while self.get(before, channel::hash_next) != removed {
                before = self.get(before, channel::hash_next);
            }
            self.set(before, channel::hash_next, after);
        }
    }

    /// Takes a channel out of the table and the lists, so that it cannot be found any more.
    fn remove(&mut self, removed: ChannelRef) {
        self.remove_from_table(removed);
        self.hand_ids_on(removed);
        self.unlink(order(), removed);
        if self.has_flag(removed, channel_flag::IDLE_LISTED) {
            self.unlink(idle(), removed);
            self.set_flag(removed, channel_flag::IDLE_LISTED, false);
        }
        let wildcard = self.has_flag(removed, channel_flag::WILDCARD);
        self.sub(
            Hot,
            if wildcard {
                hot::wildcard_channels
            } else {
                hot::channels
            },
            1,
        );
        self.set_flag(removed, channel_flag::DELETED, true);
    }

    fn trash_channel(&mut self, channel: ChannelRef) {
        self.set(channel, channel::deadline, self.hot(hot::now) + TRASH_TICKS);
        self.push_back(channel_trash(), channel);
        self.add(Hot, hot::channel_trash_count, 1);
        // Without room for the event, it is not published: the channel is gone all the same.
        let _ = self.tell(ChannelEvent::Destroyed, channel);
    }

    /// The first step of a deletion: the id is free at once.
    pub fn delete(&mut self, channel: ChannelRef) {
        self.remove(channel);
        self.set(channel, channel::deadline, self.hot(hot::now) + DELETE_TICKS);
        self.push_back(deleting(), channel);
        self.add(Hot, hot::deleting_count, 1);
    }

    /// The later steps, one at a time: its messages are removed, and when no subscriber is left either, it goes to the
    /// trash. False if nothing is due.
    pub fn finish_deletion(&mut self) -> bool {
        let Some(channel) = self.hot(hot::deleting_first).some() else {
            return false;
        };
        if self.get(channel, channel::deadline) > self.hot(hot::now) {
            return false;
        }
        if let Some(stored) = self.first_stored(channel) {
            self.unstore(stored);
            return true;
        }
        self.unlink(deleting(), channel);
        if self.is_unused(channel) {
            self.sub(Hot, hot::deleting_count, 1);
            self.trash_channel(channel);
        } else {
            // Some worker has not taken the notice yet. Other deletions must not wait for that.
            self.set(channel, channel::deadline, self.hot(hot::now) + 10);
            self.push_back(deleting(), channel);
        }
        true
    }

    /// Advances the deletion of one of the longest deleted channels whose subscribers have all been notified, ahead of
    /// time. False if there is none.
    pub fn hasten_deletion(&mut self) -> bool {
        let mut next = self.hot(hot::deleting_first);
        for _ in 0..HASTENED {
            let Some(channel) = next.some() else { return false };
            if let Some(stored) = self.first_stored(channel) {
                self.unstore(stored);
                return true;
            }
            if self.is_unused(channel) {
                self.unlink(deleting(), channel);
                self.sub(Hot, hot::deleting_count, 1);
                self.trash_channel(channel);
                return true;
            }
            next = self.get(channel, channel::idle_next);
        }
        false
    }

    /// Frees the first channel of the trash if its time has come, or anyway if `early`. False if there is none.
    pub fn empty_channel_trash(&mut self, early: bool) -> bool {
        let Some(channel) = self.hot(hot::channel_trash_first).some() else {
            return false;
        };
        if !early && self.get(channel, channel::deadline) >= self.hot(hot::now) {
            return false;
        }
        if let Some(block) = self.get(channel, channel::id_more).some() {
            // Ids may be long: one block at a time.
            let next = self.get(block, block::next);
            self.set(channel, channel::id_more, next);
            self.free_block(block);
            return true;
        }
        if self.free_ids(channel) {
            return true;
        }
        self.unlink(channel_trash(), channel);
        self.sub(Hot, hot::channel_trash_count, 1);
        self.free_block(BlockRef(channel.0));
        true
    }
}

impl Locked<'_> {
    /// Creates the events channel that the limits name, if missing, and makes it the only one.
    pub fn open_events_channel(&mut self, limits: &Limits) -> Result<(), Stop> {
        let wanted = match &limits.events {
            None => ChannelRef::NONE,
            Some(events) => self.find_or_create(self.hash(&events.channel), &events.channel, limits)?,
        };
        let current = self.hot(hot::events);
        if current != wanted {
            self.change_events_channel(current, false);
            self.change_events_channel(wanted, true);
            self.set_hot(hot::events, wanted);
        }
        Ok(())
    }

    /// Makes a channel the events channel, or a normal one: only a normal one's messages count in the zone's figures.
    fn change_events_channel(&mut self, channel: ChannelRef, events: bool) {
        let Some(channel) = channel.some() else { return };
        self.set_flag(channel, channel_flag::EVENTS, events);
        let stored = u64::from(self.get(channel, channel::stored));
        if events {
            self.sub(Hot, hot::stored, stored);
        } else {
            self.add(Hot, hot::stored, stored);
            self.reconsider(channel);
        }
    }

    /// Publishes an event about `channel` in the events channel, unless `channel` is the events channel itself.
    pub fn tell(&mut self, event: ChannelEvent, channel: ChannelRef) -> Result<(), Stop> {
        let (Some(limits), Some(target)) = (self.limits, self.hot(hot::events).some()) else {
            return Ok(());
        };
        let is_other = channel != target && !self.has_flag(channel, channel_flag::ADDRESS);
        let Some(events) = limits.events.as_ref().filter(|_| is_other) else {
            return Ok(());
        };
        if self.available() <= eviction::spare(self, limits) {
            return Err(Stop::Short);
        }
        let mut id = Vec::new();
        self.copy_id(channel, &mut id);
        self.link_short(target, event.name().as_bytes(), &(events.text)(event, &id), limits)
    }
}

impl Limits {
    /// Is this the id of the events channel?
    pub fn is_events(&self, id: &[u8]) -> bool {
        self.events.as_ref().is_some_and(|events| events.channel == id)
    }

    /// Is a channel with this id a wildcard channel?
    pub fn is_wildcard(&self, id: &[u8]) -> bool {
        !self.wildcard_prefix.is_empty() && id.starts_with(&self.wildcard_prefix)
    }
}
