//! Histories: the messages each subscriber should have seen, against those it saw.
//!
//! A *flow* is the messages of one publisher to one channel: it publishes the next message only after the answer to the
//! previous one, so the order within a flow is known from outside. Every subscriber of a channel must see each flow's
//! accepted messages once, in order. Messages sent but never answered with 2xx may appear or not, but not twice and not
//! out of order.
//!
//! A subscriber may join while messages flow. Messages under way at that moment may reach it or not; it must see all
//! from the first message on that it saw, and from the first one on that was sent after it had joined.
//!
//! A subscriber without errors costs four bytes per flow.

use std::collections::HashMap;
use std::ops::Range;

/// Classification of a received message for its subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The next one.
    Expected,
    /// This many messages were skipped: lost, or still to come out of order.
    Jump(u32),
    /// A message that had been skipped.
    OutOfOrder,
    /// A message seen before.
    Doubled,
}

/// Sightings of a group of subscribers that each follow the same number of flows.
#[derive(Debug)]
pub struct History {
    flows: usize,
    /// For each subscriber and flow: the next sequence number. With [`FRESH`]: none seen yet, an earlier one may come.
    /// [`ABSENT`]: the subscriber has not joined.
    next: Vec<u32>,
    /// Skipped messages, for the few subscribers that saw a jump, in ascending order.
    missing: HashMap<usize, Vec<Range<u32>>>,
}

const FRESH: u32 = 1 << 31;
const ABSENT: u32 = u32::MAX;

impl History {
    /// No subscriber has joined yet.
    pub fn new(subscribers: usize, flows: usize) -> Self {
        Self {
            flows,
            next: vec![ABSENT; subscribers * flows],
            missing: HashMap::new(),
        }
    }

    /// The subscriber must see all messages of the flow from `sequence` on.
    pub fn join(&mut self, subscriber: usize, flow: usize, sequence: u32) {
        self.next[subscriber * self.flows + flow] = sequence | FRESH;
    }

    pub fn has_joined(&self, subscriber: usize) -> bool {
        self.next[subscriber * self.flows] != ABSENT
    }

    /// Removes the subscriber: its place is free.
    pub fn leave(&mut self, subscriber: usize) {
        for slot in subscriber * self.flows..(subscriber + 1) * self.flows {
            self.next[slot] = ABSENT;
            self.missing.remove(&slot);
        }
    }

    /// The subscriber saw message `sequence` of one of its flows.
    pub fn observe(&mut self, subscriber: usize, flow: usize, sequence: u32) -> Sighting {
        let slot = subscriber * self.flows + flow;
        let next = &mut self.next[slot];
        if *next & FRESH != 0 {
            // A message under way when the subscriber joined, or the first that it must see.
            *next = sequence.min(*next & !FRESH);
        }
        if sequence >= *next {
            let jumped = *next..sequence;
            *next = sequence + 1;
            if jumped.is_empty() {
                return Sighting::Expected;
            }
            let count = sequence - jumped.start;
            self.missing.entry(slot).or_default().push(jumped);
            return Sighting::Jump(count);
        }
        match self
            .missing
            .get_mut(&slot)
            .is_some_and(|missing| take_out(missing, sequence))
        {
            true => Sighting::OutOfOrder,
            false => Sighting::Doubled,
        }
    }

    /// Whether the subscriber has reached the end of a flow of `published` messages, regardless of earlier gaps.
    pub fn is_at(&self, subscriber: usize, flow: usize, published: u32) -> bool {
        self.next[subscriber * self.flows + flow] & !FRESH >= published
    }

    /// Messages of a flow of `published` messages that the subscriber has not seen, in ascending order.
    pub fn unseen(&self, subscriber: usize, flow: usize, published: u32) -> Vec<Range<u32>> {
        let slot = subscriber * self.flows + flow;
        let mut unseen = self.missing.get(&slot).cloned().unwrap_or_default();
        let next = self.next[slot] & !FRESH;
        if next < published {
            unseen.push(next..published);
        }
        unseen
    }
}

/// Removes `sequence` from the sorted `ranges`; false if it is in none of them.
fn take_out(ranges: &mut Vec<Range<u32>>, sequence: u32) -> bool {
    let Some(at) = ranges.iter().position(|range| range.contains(&sequence)) else {
        return false;
    };
    let Range { start, end } = ranges[at].clone();
    let halves = [start..sequence, sequence + 1..end];
    ranges.splice(at..=at, halves.into_iter().filter(|half| !half.is_empty()));
    true
}

/// Messages of one flow without a 2xx: they may have arrived or not.
#[derive(Clone, Debug, Default)]
pub struct Unanswered {
    /// In ascending order.
    sequences: Vec<u32>,
}

impl Unanswered {
    pub fn new(mut sequences: Vec<u32>) -> Self {
        sequences.sort_unstable();
        Self { sequences }
    }

    pub fn count(&self) -> u64 {
        self.sequences.len() as u64
    }

    /// Number of `unseen` messages that were accepted: these are lost.
    pub fn lost(&self, unseen: &[Range<u32>]) -> u64 {
        unseen
            .iter()
            .map(|range| {
                let below = |bound: u32| self.sequences.partition_point(|&sequence| sequence < bound);
                u64::from(range.end - range.start) - (below(range.end) - below(range.start)) as u64
            })
            .sum()
    }

    /// The first `unseen` message that was accepted.
    pub fn first_lost(&self, unseen: &[Range<u32>]) -> Option<u32> {
        let mut all = unseen.iter().cloned().flatten();
        all.find(|sequence| self.sequences.binary_search(sequence).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sightings of `sequences` by one subscriber of one flow.
    fn watch(sequences: &[u32]) -> (History, Vec<Sighting>) {
        let mut history = History::new(1, 1);
        history.join(0, 0, 0);
        let sightings = sequences
            .iter()
            .map(|&sequence| history.observe(0, 0, sequence))
            .collect();
        (history, sightings)
    }

    /// Messages lost out of `sent`.
    fn lost(history: &History, sent: u32, unanswered: &Unanswered) -> u64 {
        unanswered.lost(&history.unseen(0, 0, sent))
    }

    fn just(range: Range<u32>) -> Vec<Range<u32>> {
        vec![range]
    }

    #[test]
    fn a_perfect_history_has_nothing_to_report() {
        let (history, sightings) = watch(&[0, 1, 2, 3]);
        assert_eq!(sightings, [Sighting::Expected; 4]);
        assert!(history.is_at(0, 0, 4));
        assert_eq!(history.unseen(0, 0, 4), []);
    }

    #[test]
    fn a_lost_message_is_found() {
        let (history, sightings) = watch(&[0, 2, 3]);
        assert_eq!(sightings, [Sighting::Expected, Sighting::Jump(1), Sighting::Expected]);
        let unanswered = Unanswered::default();
        assert_eq!(lost(&history, 4, &unanswered), 1);
        assert_eq!(unanswered.first_lost(&history.unseen(0, 0, 4)), Some(1));
    }

    #[test]
    fn lost_messages_at_the_start_and_at_the_end_are_found() {
        let (history, sightings) = watch(&[2]);
        assert_eq!(sightings, [Sighting::Jump(2)]);
        assert!(!history.is_at(0, 0, 5));
        assert_eq!(history.unseen(0, 0, 5), [0..2, 3..5]);
        assert_eq!(lost(&history, 5, &Unanswered::default()), 4);
        let (silent, _) = watch(&[]);
        assert_eq!(lost(&silent, 5, &Unanswered::default()), 5);
    }

    #[test]
    fn a_doubled_message_is_found() {
        assert_eq!(watch(&[0, 1, 1]).1[2], Sighting::Doubled);
        assert_eq!(watch(&[0, 1, 2, 0]).1[3], Sighting::Doubled);
        // Also a late message, when it comes again.
        assert_eq!(watch(&[0, 2, 1, 1]).1[2..], [Sighting::OutOfOrder, Sighting::Doubled]);
    }

    #[test]
    fn reordered_messages_are_out_of_order_and_not_lost() {
        let (history, sightings) = watch(&[0, 3, 2, 1, 4]);
        assert_eq!(
            sightings[1..],
            [
                Sighting::Jump(2),
                Sighting::OutOfOrder,
                Sighting::OutOfOrder,
                Sighting::Expected
            ]
        );
        assert_eq!(lost(&history, 5, &Unanswered::default()), 0);
    }

    #[test]
    fn one_late_message_leaves_its_neighbours_missing() {
        let (history, _) = watch(&[0, 6, 3]);
        assert_eq!(history.unseen(0, 0, 7), [1..3, 4..6]);
    }

    #[test]
    fn unanswered_messages_may_be_missing_but_not_doubled() {
        let unanswered = Unanswered::new(vec![5, 1, 2]);
        assert_eq!(lost(&watch(&[0, 3, 4]).0, 6, &unanswered), 0);
        assert_eq!(lost(&watch(&[0, 1, 2, 3, 4, 5]).0, 6, &unanswered), 0);
        assert_eq!(lost(&watch(&[0, 4]).0, 6, &unanswered), 1);
        assert_eq!(unanswered.first_lost(&watch(&[0, 4]).0.unseen(0, 0, 6)), Some(3));
        assert_eq!(watch(&[0, 1, 1]).1[2], Sighting::Doubled);
    }

    /// Sightings of `sequences` by one subscriber that joins at `joined`, and its unseen messages out of ten.
    fn join(joined: u32, sequences: &[u32]) -> (Vec<Sighting>, Vec<Range<u32>>) {
        let mut history = History::new(1, 1);
        history.join(0, 0, joined);
        let sightings = sequences
            .iter()
            .map(|&sequence| history.observe(0, 0, sequence))
            .collect();
        (sightings, history.unseen(0, 0, 10))
    }

    #[test]
    fn who_joins_late_must_see_everything_from_then_on() {
        assert_eq!(join(8, &[8, 9]), (vec![Sighting::Expected; 2], vec![]));
        assert_eq!(join(8, &[9]), (vec![Sighting::Jump(1)], just(8..9)));
        assert_eq!(join(8, &[]), (vec![], just(8..10)));
        assert_eq!(join(10, &[]), (vec![], vec![]));
    }

    #[test]
    fn who_joins_late_may_see_what_was_under_way_but_in_order_and_once() {
        assert_eq!(join(8, &[6, 7, 8, 9]), (vec![Sighting::Expected; 4], vec![]));
        assert_eq!(join(8, &[6, 8, 9]).1, just(7..8));
        assert_eq!(join(9, &[8, 8]).0[1], Sighting::Doubled);
        assert_eq!(join(9, &[8, 7]).0[1], Sighting::Doubled, "7 was not expected any more");
    }

    #[test]
    fn nobody_expects_anything_who_is_not_there() {
        let mut history = History::new(1, 1);
        assert!(!history.has_joined(0) && history.is_at(0, 0, 5) && history.unseen(0, 0, 5).is_empty());
        history.join(0, 0, 0);
        history.observe(0, 0, 3);
        assert!(history.has_joined(0) && !history.is_at(0, 0, 5));
        history.leave(0);
        assert!(!history.has_joined(0) && history.is_at(0, 0, 5) && history.unseen(0, 0, 5).is_empty());
    }

    #[test]
    fn subscribers_and_flows_are_kept_apart() {
        let mut history = History::new(2, 2);
        [(0, 0), (0, 1), (1, 0), (1, 1)]
            .into_iter()
            .for_each(|(subscriber, flow)| history.join(subscriber, flow, 0));
        assert_eq!(history.observe(0, 1, 0), Sighting::Expected);
        assert_eq!(history.observe(1, 0, 0), Sighting::Expected);
        assert_eq!(history.observe(0, 0, 1), Sighting::Jump(1));
        assert_eq!(history.unseen(0, 0, 2), just(0..1));
        assert_eq!(history.unseen(0, 1, 2), just(1..2));
        assert_eq!(history.unseen(1, 1, 2), just(0..2));
    }
}
