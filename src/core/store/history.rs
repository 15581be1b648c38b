//! Old messages: where they begin for a subscriber, and in which order it gets them.
//!
//! A queue may be long, so the lock is not held for a long walk through it. A [`Seek`] continues from hold to hold;
//! messages published meanwhile lie behind its starting point, and are examined when the subscriber joins.
//!
//! *Ordered* replays are merged over all channels by event id. Messages that came out of order are not in the order of
//! their ids, so a seek collects them on its way: no message queued before the first unwanted in-order one can be
//! wanted.

use super::api::{Head, Late, Offer, REPLAY_BYTES, REPLAY_MESSAGES, Replay, ReplayPart};
use super::layout::*;
use super::memory::Locked;
use super::{Batch, JoinRequest, Mark, Position};
use crate::wire::event_id::OrderedId;

/// Links that one hold of the lock examines.
pub const SEEK_LINKS: u32 = 512;
/// Queue entries that one hold of the lock pins: some of them may not be stored.
const REPLAY_LINKS: u32 = 200;
/// How often a seek restarts when its place is gone.
const RESTARTS: u8 = 3;

/// The part of a channel's history that a subscriber wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The newest N messages.
    Newest(u32),
    /// Messages newer than the position's time and tag.
    AfterTime,
    /// Messages behind the one with the position's event id, or newer than its time.
    AfterEventId,
    /// Messages with a higher id.
    Above(OrderedId),
}

impl Aim {
    pub const EVERYTHING: Aim = Aim::Newest(u32::MAX);

    /// The aim of the request for the channel at `index` of its path.
    fn of(request: &JoinRequest, index: usize) -> Option<Aim> {
        let position = &request.position;
        let backtrack = Some(request.channels[index].backtrack)
            .filter(|&count| count > 0)
            .map(Aim::Newest);
        let event_id = position.event_id.map(|_| Aim::AfterEventId);
        let time = position.time.map(|_| Aim::AfterTime);
        if !request.ordered {
            return backtrack.or(event_id).or(time);
        }
        let above = position.event_id.and_then(OrderedId::parse).map(Aim::Above);
        above.or(event_id).or(backtrack).or(time)
    }
}

/// A link, and the sequence number that verifies it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub link: u32,
    pub seq: u64,
}

/// The search for the beginning of the wanted history of one channel.
#[derive(Debug)]
pub struct Seek {
    channel: ChannelRef,
    born: u64,
    aim: Aim,
    /// The next link to examine; None at the queue's end.
    at: Option<Place>,
    /// Sequence number of the link examined last.
    passed: u64,
    /// The first wanted message, as far as known.
    start: Option<Place>,
    late: Vec<Late>,
    /// The message at the position was found.
    met: bool,
    /// Messages still to be counted.
    left: u32,
    /// Messages up to this sequence number are not new.
    seen: u64,
    done: bool,
    restarts: u8,
}

impl Locked<'_> {
    fn place(&self, link: LinkRef) -> Option<Place> {
        link.some().map(|link| Place {
            link: link.0,
            seq: self.seq_of(link),
        })
    }

    /// The link at this place, if it is still in the channel's queue.
    fn at_place(&self, channel: ChannelRef, place: Place) -> Option<LinkRef> {
        let link = LinkRef(place.link).some()?;
        let there = self.is_link(link)
            && self.link_flag(link, link_flag::QUEUED)
            && self.get(link, link::channel) == channel
            && self.seq_of(link) == place.seq;
        there.then_some(link)
    }

    /// Does this place in a block hold a link? In a head block, only the first place does.
    fn is_link(&self, link: LinkRef) -> bool {
        match self.kind(link.0 / LINKS_PER_BLOCK) {
            kind::BODY => link.0 % LINKS_PER_BLOCK == 1,
            kind::LINKS => true,
            _ => false,
        }
    }

    /// Has the client missed messages in this channel? Decided by the order of ids only.
    pub fn has_gap(&self, request: &JoinRequest, channel: ChannelRef) -> bool {
        if !request.ordered || !request.gap_notices || !self.tracks_ids() {
            return false;
        }
        let Some(asked) = request.position.event_id.and_then(OrderedId::parse) else {
            return false;
        };
        // A zone that had ids before it tracked them knows its newest id only once a new one is published.
        let newest = self.ordered_id(ZoneIds, super::ids::ZONE_NEWEST);
        let knows_newest = newest.is_some() || self.get(ZoneIds, zone_ids::since) == 1;
        let lost = self.lost_id(channel);
        Some(asked) < lost || knows_newest && newest.max(lost).unwrap_or(OrderedId::LOWEST) < asked
    }

    /// All stored messages of the channel, from a mark on if given.
    pub fn replay_stored(&self, channel: ChannelRef, from: Option<Mark>) -> Replay {
        let marked = from.map(|mark| Place {
            // Supplied by a client: it may be anything.
            link: Some(mark.link)
                .filter(|link| (1..=self.blocks).contains(&(link / LINKS_PER_BLOCK)))
                .unwrap_or(0),
            seq: mark.seq,
        });
        let mut seek = self.begin_seek(channel, Aim::EVERYTHING);
        seek.start = marked.or_else(|| self.first_stored(channel).and_then(|link| self.place(link)));
        Replay {
            parts: [ReplayPart::new(self, 0, seek)].into(),
            ordered: false,
            lost: false,
            gaps: Vec::new(),
        }
    }

    /// The aim for the channel at `index` of the path.
    pub fn aim(&self, request: &JoinRequest, index: usize, channel: ChannelRef) -> Option<Aim> {
        if self.has_gap(request, channel) {
            return Some(Aim::EVERYTHING);
        }
        Aim::of(request, index)
    }

    pub fn begin_seek(&self, channel: ChannelRef, aim: Aim) -> Seek {
        let mut seek = Seek {
            channel,
            born: self.get(channel, channel::born),
            aim,
            at: None,
            passed: 0,
            start: None,
            late: Vec::new(),
            met: false,
            left: 0,
            seen: 0,
            done: false,
            restarts: 0,
        };
        self.restart(&mut seek);
        seek
    }

    fn restart(&self, seek: &mut Seek) {
        let from = if seek.aim == Aim::AfterEventId {
            channel::first
        } else {
            channel::last
        };
        seek.at = self.place(self.get(seek.channel, from));
        seek.start = None;
        seek.late.clear();
        seek.left = match seek.aim {
            Aim::Newest(count) => count,
            _ => 0,
        };
        seek.seen = self.hot(hot::seq);
        seek.done = false;
    }

    /// Is this the search for this aim, in this very channel?
    pub fn is_seek_for(&self, seek: &Seek, channel: ChannelRef, aim: Aim) -> bool {
        seek.channel == channel && seek.aim == aim && self.get(channel, channel::born) == seek.born
    }

    /// Continues a search; true if it is complete. Deducts the links it examines from `budget`.
    pub fn seek(&self, request: &JoinRequest, seek: &mut Seek, budget: &mut u32) -> bool {
        if self.kind(seek.channel.0) != kind::CHANNEL || self.get(seek.channel, channel::born) != seek.born {
            // The join will find another channel.
            seek.done = true;
            return true;
        }
        if self.get(seek.channel, channel::stored) == 0 {
            seek.done = true;
        }
        let all = matches!(seek.aim, Aim::Newest(count) if count >= self.get(seek.channel, channel::stored));
        if all && !request.ordered && !seek.done {
            seek.start = self.first_stored(seek.channel).and_then(|link| self.place(link));
            seek.done = true;
        }
        while !seek.done {
            let Some(place) = seek.at else {
                seek.done = true;
                break;
            };
            if *budget == 0 {
                return false;
            }
            *budget -= 1;
            match self.at_place(seek.channel, place) {
                Some(link) => self.look_at(request, seek, link),
                None => self.lose_place(seek),
            }
        }
        self.look_at_new(request, seek);
        true
    }

    /// The seek's place is gone, and with it, usually, all older messages.
    fn lose_place(&self, seek: &mut Seek) {
        if seek.aim == Aim::AfterEventId {
            seek.at = self.place(self.get(seek.channel, channel::first));
            return;
        }
        seek.restarts += 1;
        if seek.restarts <= RESTARTS {
            return self.restart(seek);
        }
        seek.start = self.first_stored(seek.channel).and_then(|link| self.place(link));
        seek.done = true;
    }

    fn look_at(&self, request: &JoinRequest, seek: &mut Seek, link: LinkRef) {
        if seek.aim == Aim::AfterEventId {
            seek.at = self.place(self.get(link, link::next));
            let seq = self.seq_of(link);
            if seq > seek.passed {
                seek.passed = seq;
                self.look_forward(request, seek, link);
            }
        } else {
            seek.at = self.place(self.get(link, link::prev));
            self.look_back(request, seek, link);
        }
    }

    /// From the oldest on: right behind the first message with the id, or at the first one newer than the time,
    /// whichever comes first.
    fn look_forward(&self, request: &JoinRequest, seek: &mut Seek, link: LinkRef) {
        if !self.link_flag(link, link_flag::STORED) {
            return;
        }
        if seek.met || self.is_after_time(link, &request.position) {
            seek.met = true;
            self.want(request, seek, link, false);
            // In an ordered replay, late messages are still to be found.
            seek.done = !request.ordered && seek.start.is_some();
        } else {
            seek.met = self.has_event_id(link, request.position.event_id.unwrap_or_default());
        }
    }

    /// From the newest on, as far back as needed.
    fn look_back(&self, request: &JoinRequest, seek: &mut Seek, link: LinkRef) {
        if !self.link_flag(link, link_flag::STORED) {
            return;
        }
        match seek.aim {
            Aim::Newest(_) => {
                self.want(request, seek, link, true);
                seek.left -= 1;
                seek.done = seek.left == 0;
            }
            Aim::AfterTime | Aim::AfterEventId => {
                if self.is_after_time(link, &request.position) {
                    self.want(request, seek, link, true);
                } else {
                    seek.done = true;
                }
            }
            Aim::Above(position) => match self.ordered_id_of(link) {
                Some(id) if id > position => self.want(request, seek, link, true),
                Some(_) => seek.done = !self.is_of_unknown_order(link),
                None => {}
            },
        }
    }

    /// Records a wanted message. A backward walk finds the first one last.
    fn want(&self, request: &JoinRequest, seek: &mut Seek, link: LinkRef, backward: bool) {
        let late = request.ordered && self.is_of_unknown_order(link);
        match self.ordered_id_of(link).filter(|_| late) {
            Some(id) => seek.late.push(Late {
                id,
                seq: self.seq_of(link),
                link: link.0,
            }),
            None if backward || seek.start.is_none() => seek.start = self.place(link),
            None => {}
        }
    }

    /// Examines the messages published since the search began.
    fn look_at_new(&self, request: &JoinRequest, seek: &mut Seek) {
        let mut new = Vec::new();
        let mut next = self.get(seek.channel, channel::last);
        while let Some(link) = next.some().filter(|&link| self.seq_of(link) > seek.seen) {
            new.push(link);
            next = self.get(link, link::prev);
        }
        for &link in new
            .iter()
            .rev()
            .filter(|&&link| self.link_flag(link, link_flag::STORED))
        {
            match seek.aim {
                Aim::AfterEventId if self.seq_of(link) <= seek.passed => {}
                Aim::AfterEventId => self.look_forward(request, seek, link),
                Aim::Above(position) if self.ordered_id_of(link) <= Some(position) => {}
                _ => self.want(request, seek, link, false),
            }
        }
        seek.seen = self.hot(hot::seq);
        seek.done = true;
    }

    /// Is the message newer than the time and tag? Without a tag, only messages of later seconds are.
    fn is_after_time(&self, link: LinkRef, position: &Position) -> bool {
        let Some(time) = position.time else { return false };
        let published = self.time_of(link);
        published > time || published == time && position.tag.is_some_and(|tag| self.tag_of(link) > tag)
    }

    fn has_event_id(&self, link: LinkRef, wanted: &[u8]) -> bool {
        if self.link_flag(link, link_flag::AUTO_ID) {
            return self.auto_id(self.seq_of(link)).to_text() == wanted;
        }
        if !self.link_flag(link, link_flag::EVENT_ID) {
            return false;
        }
        // Nearly all ids fit into this buffer; a longer one takes a heap buffer.
        let mut short = [0; 64];
        if let Some(id) = self.read_event_id(link, &mut short) {
            return id == wanted;
        }
        let mut long = vec![0; 2 + wanted.len()];
        long.len() > short.len() && self.read_event_id(link, &mut long) == Some(wanted)
    }
}

impl ReplayPart {
    pub fn new(locked: &Locked<'_>, path_index: usize, seek: Seek) -> ReplayPart {
        let mut late = seek.late;
        late.sort_unstable_by(|a, b| b.cmp(a));
        let start = seek.start.unwrap_or(Place { link: 0, seq: u64::MAX });
        ReplayPart {
            path_index: path_index as u32,
            channel: seek.channel.0,
            channel_born: seek.born,
            hint: start.link,
            next_seq: start.seq,
            hint_is_wanted: true,
            has_gap: false,
            until: locked.hot(hot::seq),
            above: match seek.aim {
                Aim::Above(position) => Some(position),
                _ => None,
            },
            late,
            offer: Offer::Unknown,
        }
    }
}

impl Seek {
    /// Was nothing found?
    pub fn is_empty(&self) -> bool {
        self.start.is_none() && self.late.is_empty()
    }

    /// The lowest id found.
    pub fn first_id(&self, locked: &Locked<'_>) -> Option<OrderedId> {
        let first = self
            .start
            .and_then(|place| locked.at_place(self.channel, place))
            .and_then(|link| locked.first_id_from(link));
        let late = self.late.iter().map(|late| late.id).min();
        match (first, late) {
            (Some(first), Some(late)) => Some(first.min(late)),
            (first, late) => first.or(late),
        }
    }
}

impl Replay {
    /// Records which parts have lost messages.
    fn gather_gaps(&mut self) {
        for part in &mut self.parts {
            if std::mem::take(&mut part.has_gap) {
                self.lost = true;
                if !self.gaps.contains(&part.path_index) {
                    self.gaps.push(part.path_index);
                }
            }
        }
    }

    /// The part to take from next, and up to which id: of equal ids, those of the first channel come first.
    fn turn(&self) -> Option<(usize, Bound)> {
        let offers = || {
            self.parts
                .iter()
                .enumerate()
                .filter_map(|(index, part)| match part.offer {
                    Offer::Message(id) => Some((id, index)),
                    _ => None,
                })
        };
        let (_, own) = offers().min()?;
        let bound = match offers().filter(|&(_, index)| index != own).min() {
            Some((id, index)) => Bound {
                id,
                inclusive: own < index,
            },
            None => Bound {
                id: Some(OrderedId::HIGHEST),
                inclusive: true,
            },
        };
        Some((own, bound))
    }
}

/// The id up to which a channel's messages precede another's.
#[derive(Clone, Copy)]
struct Bound {
    id: Option<OrderedId>,
    inclusive: bool,
}

impl Bound {
    fn allows(self, id: Option<OrderedId>) -> bool {
        id < self.id || self.inclusive && id == self.id
    }
}

impl Locked<'_> {
    /// The id of the first stored message with an id, within `SEEK_LINKS` links.
    fn first_id_from(&self, link: LinkRef) -> Option<OrderedId> {
        let mut next = Some(link);
        for _ in 0..SEEK_LINKS {
            let link = next?;
            let id = self.ordered_id_of(link);
            if id.is_some() && self.link_flag(link, link_flag::STORED) && !self.is_of_unknown_order(link) {
                return id;
            }
            next = self.get(link, link::next).some();
        }
        None
    }

    /// The first stored link of the replay part, and whether a message before it was lost since the last call. None if
    /// the part is complete.
    fn continue_replay(&self, part: &ReplayPart) -> Option<(LinkRef, bool)> {
        let channel = ChannelRef(part.channel);
        if self.kind(part.channel) != kind::CHANNEL || self.get(channel, channel::born) != part.channel_born {
            return None;
        }
        let hint = Place {
            link: part.hint,
            seq: part.next_seq,
        };
        if hint.seq == u64::MAX {
            return None;
        }
        let mut next = match self.at_place(channel, hint) {
            Some(link) => link,
            None => self.get(channel, channel::first),
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

    /// Selects the next slice of old messages and pins it; true if the part is complete with it.
    pub fn pin_old(
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
            if heads.len() == REPLAY_MESSAGES || bytes >= REPLAY_BYTES {
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
        self.pin(slot, ChannelRef(part.channel), first, last);
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

    /// Pins these links for copying by the slot's process; each is counted in `pending`.
    fn pin(&mut self, slot: SlotRef, channel: ChannelRef, first: LinkRef, last: LinkRef) {
        self.set(slot, slot::pin_first, first);
        self.set(slot, slot::pin_last, last);
        self.set(slot, slot::pin_channel, channel);
    }

    /// Does this message belong to those that an ordered replay takes in the queue's order?
    fn is_in_part(&self, part: &ReplayPart, link: LinkRef, id: Option<OrderedId>) -> bool {
        self.link_flag(link, link_flag::STORED)
            && (part.above.is_none() || id > part.above)
            && !(id.is_some() && self.is_of_unknown_order(link))
    }

    /// The next late message that is still there.
    fn next_late(&self, part: &mut ReplayPart) -> Option<(OrderedId, LinkRef)> {
        while let Some(late) = part.late.last() {
            let place = Place {
                link: late.link,
                seq: late.seq,
            };
            match self.at_place(ChannelRef(part.channel), place) {
                Some(link) if self.link_flag(link, link_flag::STORED) => return Some((late.id, link)),
                _ => {
                    part.has_gap = true;
                    part.late.pop();
                }
            }
        }
        None
    }

    /// The part's next stored link; records a gap if the expected one is gone.
    fn next_of(&self, part: &mut ReplayPart) -> Option<LinkRef> {
        let next = self.continue_replay(part);
        let is_gone = next.map_or(part.next_seq != u64::MAX, |(_, skipped)| skipped);
        part.has_gap |= is_gone && part.hint_is_wanted;
        part.hint_is_wanted = false;
        next.map(|(link, _)| link)
    }

    /// Looks up the parts' next messages. Deducts the links it examines from the budget.
    fn look_up(&self, part: &mut ReplayPart, budget: &mut u32) {
        let mut next = self.next_of(part);
        while let Some(link) = next {
            (part.hint, part.next_seq) = (link.0, self.seq_of(link));
            let id = self.ordered_id_of(link);
            if self.is_in_part(part, link, id) {
                part.hint_is_wanted = true;
                let late = self.next_late(part).map(|(id, _)| id);
                part.offer = Offer::Message(match late {
                    Some(late) if Some(late) < id => Some(late),
                    _ => id,
                });
                return;
            }
            if *budget == 0 {
                return;
            }
            *budget -= 1;
            (part.hint, part.next_seq) = match self.place(self.get(link, link::next)) {
                Some(place) => (place.link, place.seq),
                None => (0, u64::MAX),
            };
            next = self.next_of(part);
        }
        part.next_seq = u64::MAX;
        part.offer = match self.next_late(part) {
            Some((id, _)) => Offer::Message(Some(id)),
            None => Offer::End,
        };
    }

    /// Selects the next messages of an ordered replay, all of one channel, and pins them: at most `room`, and none that
    /// another channel's message should precede. None when there is nothing more; an empty slice means to call again.
    pub fn pin_ordered(
        &mut self,
        slot: SlotRef,
        replay: &mut Replay,
        room: usize,
        batch: &mut Batch,
    ) -> Option<Vec<Head>> {
        let mut budget = SEEK_LINKS;
        let channels_alive: Vec<bool> = replay.parts.iter().map(|part| self.is_alive(part)).collect();
        for (part, alive) in replay.parts.iter_mut().zip(channels_alive) {
            if !alive {
                part.offer = Offer::End;
            } else if part.offer == Offer::Unknown {
                self.look_up(part, &mut budget);
                if part.offer == Offer::Unknown {
                    return Some(Vec::new());
                }
            }
        }
        replay.gather_gaps();
        replay.parts.retain(|part| part.offer != Offer::End);
        let (index, bound) = replay.turn()?;
        let part = &mut replay.parts[index];
        part.offer = Offer::Unknown;
        let heads = self.pin_run(slot, part, bound, room, batch);
        replay.gather_gaps();
        Some(heads)
    }

    /// The lowest id of the parts' next messages, as far as known.
    pub fn next_offer(&self, replay: &mut Replay) -> Option<OrderedId> {
        let mut budget = SEEK_LINKS;
        for part in &mut replay.parts {
            if part.offer == Offer::Unknown && self.is_alive(part) {
                self.look_up(part, &mut budget);
            }
        }
        replay.gather_gaps();
        replay.parts.retain(|part| part.offer != Offer::End);
        replay.turn().and_then(|(index, _)| match replay.parts[index].offer {
            Offer::Message(id) => id,
            _ => None,
        })
    }

    fn is_alive(&self, part: &ReplayPart) -> bool {
        self.kind(part.channel) == kind::CHANNEL
            && self.get(ChannelRef(part.channel), channel::born) == part.channel_born
    }

    fn pin_run(
        &mut self,
        slot: SlotRef,
        part: &mut ReplayPart,
        bound: Bound,
        room: usize,
        batch: &mut Batch,
    ) -> Vec<Head> {
        let channel = ChannelRef(part.channel);
        let late = self.next_late(part);
        let first = self.next_of(part).map(|link| (self.ordered_id_of(link), link));
        if let Some((id, link)) = late.filter(|(id, _)| first.is_none_or(|(first, _)| Some(*id) < first)) {
            if !bound.allows(Some(id)) {
                return Vec::new();
            }
            part.late.pop();
            self.add(link, link::pending, 1);
            self.pin(slot, channel, link, link);
            batch.records.push(self.record(link, part.path_index));
            return vec![self.head(link)];
        }
        let Some((_, first)) = first else { return Vec::new() };
        let comes_first = |id: Option<OrderedId>| bound.allows(id) && late.is_none_or(|(late, _)| id <= Some(late));
        let mut heads = Vec::new();
        let mut bytes = 0;
        let mut last = LinkRef::NONE;
        let mut next = Some(first);
        for _ in 0..REPLAY_LINKS {
            let Some(link) = next.filter(|&link| self.seq_of(link) <= part.until) else {
                next = None;
                break;
            };
            let id = self.ordered_id_of(link);
            if self.is_in_part(part, link, id) {
                if heads.len() == room || bytes >= REPLAY_BYTES || !comes_first(id) {
                    break;
                }
                heads.push(self.head(link));
                batch.records.push(self.record(link, part.path_index));
                bytes += heads.last().map_or(0, |head| head.payload_len);
            }
            self.add(link, link::pending, 1);
            last = link;
            next = self.get(link, link::next).some();
        }
        if last.some().is_some() {
            self.pin(slot, channel, first, last);
        }
        (part.hint, part.next_seq) = match next {
            Some(link) => (link.0, self.seq_of(link)),
            None => (0, u64::MAX),
        };
        part.hint_is_wanted = false;
        heads
    }
}
