//! The order of event ids: what the zone and each channel record of them.
//!
//! Nothing of this exists until a configuration asks for it ([`Limits::track_ids`](super::Limits)); then each channel
//! gets one more block. A channel's *newest* id determines which messages are out of order. Its *lost* id determines
//! which subscribers have a gap: it is the highest id among its messages that are no longer stored. A removed channel
//! hands both on to the zone, and a new one starts with those, because it may be the same channel created again.

use super::layout::*;
use super::memory::{Locked, Memory, Stop};
use crate::wire::event_id::{MAX_GROUPS, MAX_LEN, OrderedId};

/// The fields of an ordered id: its groups, and their number.
#[derive(Clone, Copy)]
pub struct IdField<R> {
    groups: Field<R, [u64; MAX_GROUPS]>,
    len: Field<R, u32>,
}

pub const NEWEST: IdField<IdsRef> = IdField {
    groups: ids::newest,
    len: ids::newest_len,
};
pub const LOST: IdField<IdsRef> = IdField {
    groups: ids::lost,
    len: ids::lost_len,
};
pub const ZONE_NEWEST: IdField<ZoneIds> = IdField {
    groups: zone_ids::newest,
    len: zone_ids::newest_len,
};
pub const ZONE_REMOVED: IdField<ZoneIds> = IdField {
    groups: zone_ids::removed,
    len: zone_ids::removed_len,
};

impl Memory {
    /// Does the zone track ids?
    pub fn tracks_ids(&self) -> bool {
        self.peek(ZoneIds, zone_ids::since) != 0
    }

    /// The id assigned to a message without one, from its sequence number.
    pub fn auto_id(&self, seq: u64) -> OrderedId {
        OrderedId::pair(self.epoch_ms(), seq)
    }
}

impl Locked<'_> {
    pub fn ordered_id<R: super::memory::Record>(&self, record: R, field: IdField<R>) -> Option<OrderedId> {
        let len = self.get(record, field.len) as usize;
        if len == 0 {
            return None;
        }
        let groups = std::array::from_fn(|index| self.get(record, field.groups.nth(index)));
        OrderedId::from_groups(groups, len)
    }

    fn set_ordered_id<R: super::memory::Record>(&mut self, record: R, field: IdField<R>, id: OrderedId) {
        for (index, &group) in id.groups().iter().enumerate() {
            if self.get(record, field.groups.nth(index)) != group {
                self.set(record, field.groups.nth(index), group);
            }
        }
        if self.get(record, field.len) as usize != id.groups().len() {
            self.set(record, field.len, id.groups().len() as u32);
        }
    }

    /// Sets the field to `id` if that is higher.
    fn raise<R: super::memory::Record>(&mut self, record: R, field: IdField<R>, id: Option<OrderedId>) {
        if let Some(id) = id.filter(|&id| self.ordered_id(record, field) < Some(id)) {
            self.set_ordered_id(record, field, id);
        }
    }

    /// Starts the tracking of ids. `auto`: messages without an id get one, so the zone's beginning is a position, too.
    pub fn begin_tracking(&mut self, auto: bool) {
        if self.get(ZoneIds, zone_ids::since) == 0 {
            self.set(ZoneIds, zone_ids::since, self.hot(hot::seq) + 1);
        }
        if auto {
            let beginning = Some(self.auto_id(0));
            self.raise(ZoneIds, ZONE_NEWEST, beginning);
            self.raise(ZoneIds, ZONE_REMOVED, beginning);
        }
    }

    /// The channel's id record, created if the zone tracks ids and there is none yet.
    pub fn open_ids(&mut self, channel: ChannelRef) -> Result<Option<IdsRef>, Stop> {
        let known = self.get(channel, channel::ids).some();
        if known.is_some() || !self.tracks_ids() {
            return Ok(known);
        }
        let made = IdsRef(self.take_block()?.0);
        self.init(made, ids::newest_len, 0);
        self.init(made, ids::lost_len, 0);
        for index in 0..MAX_GROUPS {
            self.init(made, ids::newest.nth(index), 0);
            self.init(made, ids::lost.nth(index), 0);
        }
        self.init(made, ids::window_first, EntryRef::NONE);
        self.init(made, ids::window_last, EntryRef::NONE);
        self.init(made, ids::window_count, 0);
        self.set(channel, channel::ids, made);
        Ok(Some(made))
    }

    /// A new channel counts everything that the zone has lost as lost.
    pub fn begin_ids(&mut self, channel: ChannelRef) -> Result<(), Stop> {
        if let Some(made) = self.open_ids(channel)? {
            let removed = self.ordered_id(ZoneIds, ZONE_REMOVED);
            self.raise(made, LOST, removed);
        }
        Ok(())
    }

    /// Hands a removed channel's ids on to the zone: its clients may have missed these messages.
    pub fn hand_ids_on(&mut self, channel: ChannelRef) {
        if let Some(known) = self.get(channel, channel::ids).some() {
            let highest = self.ordered_id(known, NEWEST).max(self.ordered_id(known, LOST));
            self.raise(ZoneIds, ZONE_REMOVED, highest);
        }
    }

    /// Frees a part of a removed channel's id record. False if there is none left.
    pub fn free_ids(&mut self, channel: ChannelRef) -> bool {
        let Some(known) = self.get(channel, channel::ids).some() else {
            return false;
        };
        for _ in 0..ENTRIES_PER_BLOCK {
            if !self.forget_oldest(known) {
                self.set(channel, channel::ids, IdsRef::NONE);
                self.free_block(BlockRef(known.0));
                break;
            }
        }
        true
    }

    pub fn newest_id(&self, channel: ChannelRef) -> Option<OrderedId> {
        self.ordered_id(self.get(channel, channel::ids).some()?, NEWEST)
    }

    /// The highest id that the channel has lost; only above it are its messages certain to be complete.
    pub fn lost_id(&self, channel: ChannelRef) -> Option<OrderedId> {
        self.ordered_id(self.get(channel, channel::ids).some()?, LOST)
    }

    /// The message's id, if ordered.
    pub fn ordered_id_of(&self, link: LinkRef) -> Option<OrderedId> {
        if self.link_flag(link, link_flag::AUTO_ID) {
            return Some(self.auto_id(self.seq_of(link)));
        }
        if !self.link_flag(link, link_flag::EVENT_ID) {
            return None;
        }
        let mut text = [0; 2 + MAX_LEN];
        self.read_event_id(link, &mut text).and_then(OrderedId::parse)
    }

    /// The message's event id, read into `buffer` behind its length; None if it does not fit.
    pub fn read_event_id<'b>(&self, link: LinkRef, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let body = self.body_of(link);
        let len = buffer.len().min(self.get(body, body::payload_len) as usize);
        let multi = self.link_flag(link, link_flag::MULTI);
        self.read_payload(body, multi, &mut buffer[..len]);
        let id_len = usize::from(u16::from_le_bytes([buffer[0], buffer[1]]));
        buffer.get(2..2 + id_len)
    }

    /// The event id of the channel's newest message, if it has one; else the newest ordered id.
    pub fn newest_event_id(&self, channel: ChannelRef) -> Option<Vec<u8>> {
        let ordered = self.newest_id(channel).map(|id| id.to_text());
        let last = self.get(channel, channel::last).some();
        let newest = last.filter(|&link| {
            let tells = ordered.is_none() || self.ordered_id_of(link).is_none();
            self.link_flag(link, link_flag::EVENT_ID) && tells
        });
        let Some(link) = newest else { return ordered };
        let mut text = vec![0; 2 + usize::from(u16::MAX)];
        self.read_event_id(link, &mut text).map(<[u8]>::to_vec)
    }

    /// May its id be out of order without a flag that says so? True for messages from before ids were tracked.
    pub fn is_of_unknown_order(&self, link: LinkRef) -> bool {
        // If ids are not tracked, that is every message.
        let last_untracked = self.get(ZoneIds, zone_ids::since).wrapping_sub(1);
        self.link_flag(link, link_flag::LATE) || self.seq_of(link) <= last_untracked
    }

    /// Is `id` above all ids that the channel has had?
    pub fn is_in_order(&self, channel: ChannelRef, id: OrderedId) -> bool {
        self.newest_id(channel) < Some(id)
    }

    /// Records the id of a message that is being linked into the channel.
    pub fn note_newest(&mut self, channel: ChannelRef, id: OrderedId) {
        if let Some(known) = self.get(channel, channel::ids).some() {
            self.raise(known, NEWEST, Some(id));
            self.raise(ZoneIds, ZONE_NEWEST, Some(id));
        }
    }

    /// Records that a message is no longer stored in its channel.
    pub fn note_lost(&mut self, channel: ChannelRef, link: LinkRef) {
        if let Some(known) = self.get(channel, channel::ids).some() {
            let id = self.ordered_id_of(link);
            self.raise(known, LOST, id);
        }
    }
}
