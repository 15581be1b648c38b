//! Memberships: which workers have subscribers in a channel, and how far each has read it.

use super::layout::*;
use super::lists::List;
use super::memory::{Locked, Stop};
use super::{ChannelEvent, OnFull};

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

    pub fn count_members(&self, channel: ChannelRef) -> usize {
        let mut count = 0;
        let mut next = self.get(channel, channel::members);
        while let Some(member) = next.some() {
            count += 1;
            next = self.get(member, member::channel_next);
        }
        count
    }

    /// Adds a subscriber of this worker to the channel.
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
                self.init(member, member::lost_seq, 0);
                self.set_kind(member.0, kind::MEMBER);
                self.push_front(of_channel(channel), member);
                self.push_front(of_slot(slot), member);
                member
            }
        };
        self.add(member, member::count, 1);
        self.add(channel, channel::subscribers, 1);
        match self.tell(ChannelEvent::ClientSubscribed, channel) {
            // A full zone must not keep subscribers out of an existing channel just because there is no room to
            // announce them.
            Err(Stop::Short) if self.limits.is_some_and(|limits| limits.on_full == OnFull::Refuse) => {}
            told => told?,
        }
        Ok(member)
    }

    /// Announces a new message to all members of a channel; returns how many there are.
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
        // The field is unused while the member is not dirty, so it needs no undo log.
        self.init(member, member::dirty_next, MemberRef::NONE);
        self.set(member, member::flags, flags | member_flag::DIRTY);
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

    /// Moves the first member of the slot's dirty list to the end.
    pub fn put_back(&mut self, slot: SlotRef) {
        let first = self.get(slot, slot::dirty_first);
        let last = self.get(slot, slot::dirty_last);
        if first != last {
            let second = self.get(first, member::dirty_next);
            self.set(slot, slot::dirty_first, second);
            self.set(first, member::dirty_next, MemberRef::NONE);
            self.set(last, member::dirty_next, first);
            self.set(slot, slot::dirty_last, first);
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

    /// Marks the member's next message as taken.
    pub fn advance(&mut self, member: MemberRef) {
        let link = self.get(member, member::next);
        let after = self.get(link, link::next);
        self.set(member, member::next, after);
        self.release(link);
    }

    /// Releases one unread message of a member that will not read it; true when none is left. For members of dead
    /// workers and members without subscribers.
    pub fn forget_one(&mut self, member: MemberRef) -> bool {
        if self.get(member, member::next) == LinkRef::NONE {
            return true;
        }
        self.advance(member);
        false
    }

    /// Removes one subscriber; true if none is left, and the membership must be [dissolved](Self::dissolve).
    pub fn discount(&mut self, member: MemberRef) -> bool {
        let channel = self.get(member, member::channel);
        self.sub(member, member::count, 1);
        self.sub(channel, channel::subscribers, 1);
        // Without room for the event, it is not published: the subscriber is gone all the same.
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
}
