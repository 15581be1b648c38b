//! Groups: the contexts that the messages of a channel share.
//!
//! A group goes on as long as it pays. Readers outside of it get longer pieces; starting over makes the next pieces
//! longer for everybody who is inside. So it ends as soon as those outside have lost about as much as that.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use super::compressor::Compressor;
use super::ledger::Ledger;

/// Pieces sent alone, for each reader inside, after which a group ends.
const OUTSIDE: u64 = 4;

/// Bytes of text after which a group ends: newcomers are let in, and no group is older than a compressor's window by
/// much.
const TEXT: usize = 256 * 1024;

/// Time without a message after which a group ends and its compressor is freed.
pub const IDLE_MS: u64 = 60_000;

/// A busier channel takes the place of a group that has been idle for this long.
const LAZY_MS: u64 = 5_000;

/// Interval between two searches for a place.
const SEARCH_MS: u64 = 10;

/// A place in the sequence of a group's pieces. A reader there has been sent all pieces before it, and nothing else
/// since the first of them. The default is no group's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    group: u32,
    position: u32,
}

impl Place {
    pub const NOWHERE: Place = Place { group: 0, position: 0 };

    pub fn next(self) -> Place {
        Place {
            position: self.position + 1,
            ..self
        }
    }

    /// Does the piece here refer to nothing before it?
    pub fn is_start(self) -> bool {
        self.position == 0
    }
}

/// The group of a channel in one style.
#[derive(Debug, Default)]
pub struct Group {
    /// The place of the next piece.
    place: Cell<Place>,
    /// None while it has no context.
    compressor: RefCell<Option<Compressor>>,
    /// Bytes of text since its start.
    text: Cell<usize>,
    /// Deliveries inside, of the last piece.
    inside: Cell<u64>,
    /// Deliveries outside, since its start.
    outside: Cell<u64>,
    used_ms: Cell<u64>,
}

impl Group {
    /// The place of a piece that is about to be sent. The group starts over if that pays now.
    pub fn begin(&self, ledger: &Ledger) -> Place {
        self.used_ms.set(ledger.now_ms());
        let (inside, outside) = (self.inside.take(), self.outside.get());
        let over = self.place.get().is_start()
            || self.compressor.borrow().is_none()
            || outside >= OUTSIDE * inside
            || self.text.get() >= TEXT;
        if over {
            self.text.set(0);
            self.outside.set(0);
            self.place.set(Place {
                group: ledger.next_group(),
                position: 0,
            });
        }
        self.place.get()
    }

    /// Compresses a piece whose place was `place`; None if the group has gone on without it, or on failure. `new` makes
    /// the group's compressor.
    pub fn compress(&self, place: Place, text: &[u8], new: impl FnOnce() -> Option<Compressor>) -> Option<Vec<u8>> {
        if place != self.place.get() {
            return None;
        }
        let mut compressor = self.compressor.borrow_mut();
        if compressor.is_none() {
            *compressor = new();
        }
        let mut out = Vec::with_capacity(text.len() / 2 + 64);
        let ready = compressor.as_mut()?;
        if place.is_start() && !ready.restart() || !ready.push(text, &mut out) {
            *compressor = None;
            return None;
        }
        self.place.set(place.next());
        self.text.set(self.text.get() + text.len());
        Some(out)
    }

    /// Counts a delivery.
    pub fn count(&self, inside: bool) {
        let count = if inside { &self.inside } else { &self.outside };
        count.set(count.get() + 1);
    }

    fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.used_ms.get())
    }
}

/// The groups of a worker, by channel and style.
#[derive(Debug)]
pub struct Groups<K> {
    groups: HashMap<K, Entry>,
    searched_ms: u64,
}

#[derive(Debug)]
struct Entry {
    group: Rc<Group>,
    readers: usize,
}

impl<K> Default for Groups<K> {
    fn default() -> Groups<K> {
        Groups {
            groups: HashMap::new(),
            searched_ms: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Groups<K> {
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The group of a channel with so many readers; None if there are `most` groups already, all of busier channels.
    pub fn of(&mut self, key: &K, readers: usize, most: usize, now_ms: u64) -> Option<Rc<Group>> {
        if let Some(entry) = self.groups.get_mut(key) {
            entry.readers = readers;
            return Some(entry.group.clone());
        }
        while self.groups.len() >= most {
            let victim = self.least_busy(readers, now_ms)?;
            self.groups.remove(&victim);
        }
        let group = Rc::<Group>::default();
        group.used_ms.set(now_ms);
        let entry = Entry {
            group: group.clone(),
            readers,
        };
        self.groups.insert(key.clone(), entry);
        Some(group)
    }

    /// A group that has been idle for long, or that has fewer readers.
    fn least_busy(&mut self, readers: usize, now_ms: u64) -> Option<K> {
        if now_ms < self.searched_ms + SEARCH_MS {
            return None;
        }
        self.searched_ms = now_ms;
        let lazy = |entry: &Entry| entry.group.idle_ms(now_ms) >= LAZY_MS;
        let (key, _) = self
            .groups
            .iter()
            .filter(|(_, entry)| lazy(entry) || entry.readers < readers)
            .min_by_key(|(_, entry)| (!lazy(entry), entry.readers))?;
        Some(key.clone())
    }

    /// Ends groups that have been idle for long.
    pub fn end_idle(&mut self, now_ms: u64) {
        self.groups.retain(|_, entry| entry.group.idle_ms(now_ms) < IDLE_MS);
        if self.groups.is_empty() {
            self.groups.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Form;
    use super::*;

    fn compress(group: &Group, place: Place, text: &[u8]) -> Option<Vec<u8>> {
        group.compress(place, text, || Compressor::new(Form::Gzip, None, true))
    }

    #[test]
    fn a_group_starts_over_when_enough_readers_are_outside() {
        let (group, ledger) = (Group::default(), Ledger::default());
        let first = group.begin(&ledger);
        assert!(first.is_start());
        assert!(compress(&group, first, b"first").is_some());
        (0..10).for_each(|_| group.count(true));
        for piece in 0..39 {
            let place = group.begin(&ledger);
            assert!(!place.is_start(), "piece {piece}");
            assert!(compress(&group, place, b"another").is_some());
            (0..10).for_each(|_| group.count(true));
            group.count(false);
        }
        let place = group.begin(&ledger);
        assert!(!place.is_start());
        (0..10).for_each(|_| group.count(true));
        group.count(false);
        let place = group.begin(&ledger);
        assert!(place.is_start() && place != first);
    }

    #[test]
    fn a_group_starts_over_when_nobody_is_inside_or_it_is_long() {
        let (group, ledger) = (Group::default(), Ledger::default());
        let place = group.begin(&ledger);
        assert!(compress(&group, place, b"text").is_some());
        assert!(group.begin(&ledger).is_start());
        let place = group.begin(&ledger);
        assert!(compress(&group, place, &[7; TEXT]).is_some());
        group.count(true);
        assert!(group.begin(&ledger).is_start());
    }

    #[test]
    fn a_piece_that_the_group_has_passed_is_not_compressed() {
        let (group, ledger) = (Group::default(), Ledger::default());
        let place = group.begin(&ledger);
        assert!(compress(&group, place, b"a").is_some());
        assert!(compress(&group, place, b"a").is_none());
    }

    #[test]
    fn busier_channels_take_the_places_of_others() {
        let mut groups = Groups::default();
        assert!(groups.of(&1, 10, 2, 1000).is_some());
        assert!(groups.of(&2, 20, 2, 1000).is_some());
        assert!(groups.of(&3, 10, 2, 1000).is_none(), "not busier");
        assert!(groups.of(&3, 11, 2, 1020).is_some());
        assert!(groups.of(&1, 5, 2, 1040).is_none(), "taken");
        assert!(groups.of(&2, 20, 2, 1040).is_some());
        groups.of(&2, 20, 2, 6100).unwrap().used_ms.set(6100);
        assert!(groups.of(&1, 1, 2, 6100).is_some(), "the other one is idle");
        assert_eq!(groups.len(), 2);
        groups.end_idle(6100 + IDLE_MS - 1);
        assert_eq!(groups.len(), 2);
        groups.end_idle(6100 + IDLE_MS);
        assert!(groups.is_empty());
    }

    #[test]
    fn without_places_there_is_no_group() {
        assert!(Groups::default().of(&1, 10, 0, 1000).is_none());
    }
}
