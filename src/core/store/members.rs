//! Memberships: which workers have subscribers in a channel, and how far each has read it.

use super::api::ReplayPart;
use super::layout::*;
use super::lists::List;
use super::memory::Locked;
use super::{ChannelEvent, Position, Stop};

/// A channel's members.
fn of_channel(channel: ChannelRef) -> List<ChannelRef, MemberRef> {
    List {
        head: channel,
        first: channel::members,
        last: None,
        next: member::channel_next,
        prev: member::channel_prev,
    }
}

/// A worker's memberships.
fn of_slot(slot: SlotRef) -> List<SlotRef, MemberRef> {
    List {
        head: slot,
        first: slot::members,
        last: None,
        next: member::slot_next,
        prev: member::slot_prev,
    }
}

impl Locked<'_> {
    pub fn member(&self, channel: ChannelRef, slot: SlotRef) -> Option<MemberRef> {
        let mut next = self.get(channel, channel::members);
        while let Some(member) = next.some() {
            if self.get(member, member::slot) == slot.0 {
                return Some(member);
            }
            next = self.get(member, member::channel_next);
        }
        None
    }

    /// One more subscriber of this worker in the channel.
    pub fn enter(&mut self, channel: ChannelRef, slot: SlotRef) -> Result<MemberRef, Stop> {
        let member = match self.member(channel, slot) {
            Some(member) => member,
            None => {
                let member = MemberRef(self.take_block()?.0);
                self.init(member, member::channel, channel);
                self.init(member, member::count, 0);
                self.init(member, member::slot, slot.0);
                self.init(member, member::flags, 0);
                self.init(member, member::next, LinkRef::NONE);
                self.init(member, member::dirty_next, MemberRef::NONE);
                self.set_kind(member.0, kind::MEMBER);
                self.push_front(of_channel(channel), member);
                self.push_front(of_slot(slot), member);
                member
            }
        };
        self.add(member, member::count, 1);
        self.add(channel, channel::subscribers, 1);
        self.tell(ChannelEvent::ClientSubscribed, channel)?;
        Ok(member)
    }

    /// Tells all members of a channel of a new message; returns how many there are.
    pub fn announce(&mut self, channel: ChannelRef, link: LinkRef) -> u16 {
        let mut count = 0;
        let mut next = self.get(channel, channel::members);
        while let Some(member) = next.some() {
            count += 1;
            if self.get(member, member::next) == LinkRef::NONE {
                self.set(member, member::next, link);
            }
            self.make_dirty(member);
            next = self.get(member, member::channel_next);
        }
        count
    }

    fn make_dirty(&mut self, member: MemberRef) {
        let flags = self.get(member, member::flags);
        if flags & member_flag::DIRTY != 0 {
            return;
        }
        self.set(member, member::flags, flags | member_flag::DIRTY);
        self.set(member, member::dirty_next, MemberRef::NONE);
        let slot = SlotRef(self.get(member, member::slot));
        match self.get(slot, slot::dirty_last).some() {
            Some(last) => self.set(last, member::dirty_next, member),
            None => {
                self.set(slot, slot::dirty_first, member);
                self.wake_later(slot);
            }
        }
        self.set(slot, slot::dirty_last, member);
    }

    /// Takes the first member off the slot's dirty list.
    pub fn pop_dirty(&mut self, slot: SlotRef) {
        let Some(member) = self.get(slot, slot::dirty_first).some() else {
            return;
        };
        let next = self.get(member, member::dirty_next);
        self.set(slot, slot::dirty_first, next);
        if next == MemberRef::NONE {
            self.set(slot, slot::dirty_last, MemberRef::NONE);
        }
        let flags = self.get(member, member::flags);
        if flags & member_flag::GONE != 0 {
            self.free_block(BlockRef(member.0));
        } else {
            self.set(member, member::flags, flags & !member_flag::DIRTY);
        }
    }

    pub fn set_reading(&mut self, member: MemberRef, on: bool) {
        let flags = self.get(member, member::flags) & !member_flag::READING;
        self.set(
            member,
            member::flags,
            if on { flags | member_flag::READING } else { flags },
        );
    }

    /// The member has taken its next message.
    pub fn advance(&mut self, member: MemberRef) {
        let link = self.get(member, member::next);
        let after = self.get(link, link::next);
        self.set(member, member::next, after);
        self.release(link);
    }

    /// Takes one message that the member will never read off its account; true when none is left. Members of the dead and of
    /// channels nobody follows any more.
    pub fn forget_one(&mut self, member: MemberRef) -> bool {
        if self.get(member, member::next) == LinkRef::NONE {
            return true;
        }
        self.advance(member);
        false
    }

    /// One subscriber leaves; true if the membership has nobody left and must be [dissolved](Self::dissolve).
    pub fn discount(&mut self, member: MemberRef) -> bool {
        let channel = self.get(member, member::channel);
        self.sub(member, member::count, 1);
        self.sub(channel, channel::subscribers, 1);
        // If there is no room to tell it, it remains untold: the subscriber is gone all the same.
        let _ = self.tell(ChannelEvent::ClientUnsubscribed, channel);
        self.get(member, member::count) == 0
    }

    /// Removes a membership without subscribers and without unread messages.
    pub fn dissolve(&mut self, member: MemberRef) {
        let channel = self.get(member, member::channel);
        let slot = SlotRef(self.get(member, member::slot));
        self.unlink(of_channel(channel), member);
        self.unlink(of_slot(slot), member);
        let flags = self.get(member, member::flags);
        if flags & member_flag::DIRTY != 0 {
            self.set(member, member::flags, flags | member_flag::GONE);
        } else {
            self.free_block(BlockRef(member.0));
        }
        self.reconsider(channel);
    }

    /// Where the old messages begin that a subscriber wants of a channel; None if it wants none.
    pub fn replay_start(&self, channel: ChannelRef, backtrack: u32, position: &Position) -> Option<LinkRef> {
        self.first_stored(channel)?;
        if backtrack > 0 {
            self.nth_newest(channel, backtrack)
        } else if position.event_id.is_some() {
            self.after_event_id(channel, position)
        } else {
            self.after_time(channel, position)
        }
    }

    fn nth_newest(&self, channel: ChannelRef, count: u32) -> Option<LinkRef> {
        let stored = self.get(channel, channel::stored);
        if count >= stored {
            return self.first_stored(channel);
        }
        let (mut link, mut skip, step) = if count > stored / 2 {
            (self.get(channel, channel::first), stored - count, link::next)
        } else {
            (self.get(channel, channel::last), count - 1, link::prev)
        };
        loop {
            if self.link_flag(link, link_flag::STORED) {
                if skip == 0 {
                    return Some(link);
                }
                skip -= 1;
            }
            link = self.get(link, step).some()?;
        }
    }

    /// Is the message newer than the time and tag? Without a tag, only messages of later seconds are.
    fn is_after_time(&self, link: LinkRef, position: &Position) -> bool {
        let Some(time) = position.time else { return false };
        let published = self.time_of(link);
        published > time || published == time && position.tag.is_some_and(|tag| self.tag_of(link) > tag)
    }

    /// (time, tag) only grow along the queue: from its end, as far back as needed.
    fn after_time(&self, channel: ChannelRef, position: &Position) -> Option<LinkRef> {
        let mut start = None;
        let mut next = self.get(channel, channel::last);
        while let Some(link) = next.some() {
            if self.link_flag(link, link_flag::STORED) {
                if !self.is_after_time(link, position) {
                    break;
                }
                start = Some(link);
            }
            next = self.get(link, link::prev);
        }
        start
    }

    /// From the oldest on: right behind the first message with the id, or at the first that is newer than the time,
    /// whichever comes first.
    fn after_event_id(&self, channel: ChannelRef, position: &Position) -> Option<LinkRef> {
        let wanted = position.event_id.unwrap_or_default();
        let mut next = self.get(channel, channel::first);
        let mut found = false;
        while let Some(link) = next.some() {
            if self.link_flag(link, link_flag::STORED) {
                if found || self.is_after_time(link, position) {
                    return Some(link);
                }
                found = self.has_event_id(link, wanted);
            }
            next = self.get(link, link::next);
        }
        None
    }

    fn has_event_id(&self, link: LinkRef, wanted: &[u8]) -> bool {
        if !self.link_flag(link, link_flag::EVENT_ID) {
            return false;
        }
        let multi = self.link_flag(link, link_flag::MULTI);
        let mut head = Vec::new();
        let wanted_len = 2 + wanted.len();
        if (self.get(self.body_of(link), body::payload_len) as usize) < wanted_len {
            return false;
        }
        self.copy_payload(self.body_of(link), wanted_len, multi, &mut head);
        usize::from(u16::from_le_bytes([head[0], head[1]])) == wanted.len() && &head[2..] == wanted
    }

    /// The first stored link of the replay part, and whether something before it was lost since the last call. None if there is
    /// nothing more in it.
    pub fn continue_replay(&self, part: &ReplayPart) -> Option<(LinkRef, bool)> {
        let channel = ChannelRef(part.channel);
        if self.kind(part.channel) != kind::CHANNEL || self.get(channel, channel::born) != part.channel_born {
            return None;
        }
        let hint = LinkRef(part.hint);
        let hint_holds = hint.some().is_some()
            && self.is_link(hint)
            && self.link_flag(hint, link_flag::QUEUED)
            && self.get(hint, link::channel) == channel
            && self.seq_of(hint) == part.next_seq;
        let mut next = if hint_holds {
            hint
        } else {
            self.get(channel, channel::first)
        };
        while let Some(link) = next.some() {
            let seq = self.seq_of(link);
            if seq > part.until {
                return None;
            }
            if seq >= part.next_seq && self.link_flag(link, link_flag::STORED) {
                return Some((link, seq != part.next_seq));
            }
            next = self.get(link, link::next);
        }
        None
    }

    /// Does this place in a block hold a link? In a head block only the first does.
    fn is_link(&self, link: LinkRef) -> bool {
        match self.kind(link.0 / LINKS_PER_BLOCK) {
            kind::BODY => link.0 % LINKS_PER_BLOCK == 1,
            kind::LINKS => true,
            _ => false,
        }
    }
}
