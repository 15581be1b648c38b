//! The channels of this worker's subscribers, and the seats in them.

use std::rc::Rc;

use push_stream_core::store::Membership;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::compression::Compression;
use super::frames::Style;
use super::slab::Slab;
use super::subjects::Subjects;
use super::subscriber::{Seated, Subscriber, SubscriberId};

/// The styles in use. Equal styles are interned, so that comparing them is comparing pointers.
#[derive(Default)]
pub struct Styles(Vec<Rc<Style>>);

impl Styles {
    /// The interned style that is equal to `style`; a new one that compresses gets its coder.
    pub fn intern(&mut self, mut style: Style, compression: &mut Compression) -> Rc<Style> {
        if let Some(known) = self.0.iter().find(|known| ***known == style) {
            return known.clone();
        }
        style.coder = style
            .format
            .compression
            .zip(style.framing.form())
            .map(|(compressed, form)| compression.coder(compressed.terms, form));
        // Drop unused styles of earlier configurations.
        self.0.retain(|known| Rc::strong_count(known) > 1);
        let style = Rc::new(style);
        self.0.push(style.clone());
        style
    }
}

/// A channel that has subscribers in this worker.
pub struct LocalChannel {
    pub id: Rc<[u8]>,
    /// Subscribers by index; a subscriber that named the channel twice is here twice.
    pub members: Vec<u32>,
    /// How many of them, from the front, have been given the part being delivered.
    pub done: usize,
    /// The members' styles, with how many have each.
    styles: SmallVec<[(Rc<Style>, usize); 1]>,
}

impl LocalChannel {
    pub fn styles(&self) -> impl Iterator<Item = &Rc<Style>> {
        self.styles.iter().map(|(style, _)| style)
    }

    fn add_style(&mut self, style: &Rc<Style>) {
        match self.styles.iter_mut().find(|(known, _)| Rc::ptr_eq(known, style)) {
            Some((_, count)) => *count += 1,
            None => self.styles.push((style.clone(), 1)),
        }
    }

    fn remove_style(&mut self, style: &Rc<Style>) {
        if let Some(index) = self.styles.iter().position(|(known, _)| Rc::ptr_eq(known, style)) {
            self.styles[index].1 -= 1;
            if self.styles[index].1 == 0 {
                self.styles.swap_remove(index);
            }
        }
    }
}

/// Subscribers and channels of this worker.
#[derive(Default)]
pub struct Registry {
    pub slab: Slab,
    pub subjects: Subjects,
    pub channels: FxHashMap<Membership, LocalChannel>,
    pub styles: Styles,
}

impl Registry {
    /// Adds a subscriber to the channels it has joined: `memberships[i]` is the channel `ids[i]`.
    pub fn add(&mut self, subscriber: Subscriber, memberships: &[Membership], ids: &[&[u8]]) -> SubscriberId {
        let id = self.slab.insert(subscriber);
        for (&membership, &channel_id) in memberships.iter().zip(ids) {
            self.seat(id.index, membership, channel_id);
        }
        id
    }

    /// Gives the subscriber at `index` a seat in a channel.
    pub fn seat(&mut self, index: u32, membership: Membership, channel_id: &[u8]) {
        let Some(subscriber) = self.slab.at(index) else {
            return;
        };
        let channel = self.channels.entry(membership).or_insert_with(|| LocalChannel {
            id: channel_id.into(),
            members: Vec::new(),
            done: 0,
            styles: SmallVec::new(),
        });
        subscriber.seats.push(Seated {
            membership,
            position: channel.members.len() as u32,
        });
        channel.members.push(index);
        channel.add_style(&subscriber.style);
    }

    /// Removes a subscriber that has no seat any more.
    pub fn take(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let taken = self.slab.take(id)?;
        self.subjects.remove(id.index);
        Some(taken)
    }

    /// The subscriber's position in the channel's list; one of them, if it is there twice.
    pub fn seat_in(&mut self, index: u32, membership: Membership) -> Option<u32> {
        let seats = &self.slab.at(index)?.seats;
        let seat = seats.iter().find(|seat| seat.membership == membership)?;
        Some(seat.position)
    }

    /// Is the subscriber at `index` still to be given the part being handed out in one of these channels?
    pub fn expects(&mut self, index: u32, is_one: impl Fn(Membership) -> bool) -> bool {
        let Some(subscriber) = self.slab.at(index) else {
            return false;
        };
        let waits = |seat: &Seated| {
            let channel = self.channels.get(&seat.membership);
            channel.is_some_and(|channel| seat.position as usize >= channel.done)
        };
        subscriber
            .seats
            .iter()
            .any(|seat| is_one(seat.membership) && waits(seat))
    }

    /// Removes the subscriber at `index` from all its channels; returns them.
    pub fn unseat_all(&mut self, index: u32) -> SmallVec<[Membership; 2]> {
        std::iter::from_fn(|| self.unseat(index, None)).collect()
    }

    /// Removes the subscriber at `index` from one seat: the one at `position` of `membership`, or its last.
    pub fn unseat(&mut self, index: u32, seat: Option<(Membership, u32)>) -> Option<Membership> {
        let subscriber = self.slab.at(index)?;
        let number = match seat {
            Some((membership, position)) => subscriber
                .seats
                .iter()
                .position(|seated| (seated.membership, seated.position) == (membership, position))?,
            None => subscriber.seats.len().checked_sub(1)?,
        };
        let seated = subscriber.seats.swap_remove(number);
        let style = subscriber.style.clone();
        let channel = self.channels.get_mut(&seated.membership)?;
        channel.remove_style(&style);
        // The list stays partitioned into members that have been given the part being delivered and the others: the
        // last of the former fills the gap, and the last of all fills that one's place.
        let mut gap = seated.position as usize;
        if gap < channel.done {
            channel.done -= 1;
            if gap != channel.done {
                let moved = channel.members[channel.done];
                channel.members[gap] = moved;
                move_seat(&mut self.slab, moved, seated.membership, channel.done, gap);
            }
            gap = channel.done;
        }
        let last = channel.members.len() - 1;
        channel.members.swap_remove(gap);
        if gap != last {
            let moved = channel.members[gap];
            move_seat(&mut self.slab, moved, seated.membership, last, gap);
        }
        if channel.members.is_empty() {
            self.channels.remove(&seated.membership);
        }
        Some(seated.membership)
    }
}

fn move_seat(slab: &mut Slab, index: u32, membership: Membership, from: usize, to: usize) {
    let seats = slab
        .at(index)
        .map(|subscriber| &mut subscriber.seats)
        .into_iter()
        .flatten();
    for seated in seats {
        if seated.membership == membership && seated.position as usize == from {
            seated.position = to as u32;
            return;
        }
    }
}
