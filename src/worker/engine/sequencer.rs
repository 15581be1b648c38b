//! The sequencer: restores the order of the source after several lanes.
//!
//! An event that may reach an ordered sink takes a [`Reservation`] when it is claimed, before the result of its stages
//! is known. Events that the stages produce are put under that reservation; a reservation without holders is complete,
//! with one item, several (a split event) or none (dropped, parked, or lost with its lane). [`Sequencer::take`] gives
//! out the items of complete reservations, in order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A place in the order. Complete when its last clone is dropped.
#[derive(Clone)]
pub struct Reservation(Arc<Inner>);

struct Inner {
    number: u64,
    keeper: Arc<dyn Keeper>,
}

/// Notified when a reservation is complete.
pub trait Keeper: Send + Sync {
    fn complete(&self, number: u64);
}

impl Reservation {
    pub fn number(&self) -> u64 {
        self.0.number
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn {}", self.0.number)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.complete(self.number);
    }
}

/// Items in the order of their reservations, for one or several consumers; each gets all of them.
pub struct Sequencer<T> {
    state: Mutex<State<T>>,
    /// One per consumer.
    grown: Vec<Notify>,
}

struct State<T> {
    /// The number of `open[0]`.
    head: u64,
    open: VecDeque<Slot<T>>,
    /// Items of complete reservations that a consumer has not taken yet.
    released: Vec<VecDeque<T>>,
    is_closed: bool,
}

struct Slot<T> {
    items: Vec<T>,
    is_complete: bool,
}

impl<T: Clone + Send + 'static> Sequencer<T> {
    pub fn new(consumers: usize) -> Arc<Self> {
        let state = State {
            head: 0,
            open: VecDeque::new(),
            released: (0..consumers).map(|_| VecDeque::new()).collect(),
            is_closed: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            grown: (0..consumers).map(|_| Notify::new()).collect(),
        })
    }

    pub fn reserve(self: &Arc<Self>) -> Reservation {
        let mut state = self.state.lock();
        let number = state.head + state.open.len() as u64;
        state.open.push_back(Slot {
            items: Vec::new(),
            is_complete: false,
        });
        Reservation(Arc::new(Inner {
            number,
            keeper: Arc::clone(self) as Arc<dyn Keeper>,
        }))
    }

    /// Items under one reservation keep the order of these calls.
    pub fn put(&self, reservation: &Reservation, item: T) {
        let mut state = self.state.lock();
        let index = usize::try_from(reservation.number() - state.head).unwrap_or(usize::MAX);
        if let Some(slot) = state.open.get_mut(index) {
            slot.items.push(item);
        }
    }

    /// Moves up to `room` due items over. `false`: closed, and no consumer waits any more.
    pub fn take(&self, consumer: usize, into: &mut VecDeque<T>, room: usize) -> bool {
        let mut state = self.state.lock();
        let released = &mut state.released[consumer];
        let count = room.min(released.len());
        into.extend(released.drain(..count));
        !state.is_closed
    }

    /// Waits until there may be more to take.
    pub async fn grown(&self, consumer: usize) {
        self.grown[consumer].notified().await;
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Ends the consumers.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
        self.grown.iter().for_each(Notify::notify_one);
    }
}

impl<T: Clone + Send + 'static> Keeper for Sequencer<T> {
    fn complete(&self, number: u64) {
        let mut state = self.state.lock();
        let State {
            head, open, released, ..
        } = &mut *state;
        let index = usize::try_from(number - *head).unwrap_or(usize::MAX);
        if let Some(slot) = open.get_mut(index) {
            slot.is_complete = true;
        }
        let mut has_grown = false;
        while open.front().is_some_and(|slot| slot.is_complete) {
            let Some(slot) = open.pop_front() else { break };
            *head += 1;
            has_grown |= !slot.items.is_empty();
            let (last, others) = released
                .split_last_mut()
                .map_or((None, &mut [][..]), |(last, others)| (Some(last), others));
            others
                .iter_mut()
                .for_each(|queue| queue.extend(slot.items.iter().cloned()));
            if let Some(last) = last {
                last.extend(slot.items);
            }
        }
        drop(state);
        if has_grown {
            self.grown.iter().for_each(Notify::notify_one);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(sequencer: &Sequencer<u32>) -> Vec<u32> {
        let mut items = VecDeque::new();
        sequencer.take(0, &mut items, usize::MAX);
        items.into()
    }

    #[test]
    fn a_turn_that_comes_to_nothing_does_not_hold_up_the_next() {
        let sequencer = Sequencer::new(1);
        let (first, second, third) = (sequencer.reserve(), sequencer.reserve(), sequencer.reserve());
        sequencer.put(&second, 2);
        sequencer.put(&third, 3);
        drop((second, third));
        assert!(taken(&sequencer).is_empty(), "the first is open");
        drop(first);
        assert_eq!(taken(&sequencer), [2, 3]);
    }

    #[test]
    fn the_parts_of_one_turn_stay_together_until_its_last_share_is_gone() {
        let sequencer = Sequencer::new(1);
        let (first, second) = (sequencer.reserve(), sequencer.reserve());
        sequencer.put(&second, 20);
        drop(second);
        sequencer.put(&first, 10);
        let share = first.clone();
        drop(first);
        assert!(taken(&sequencer).is_empty());
        sequencer.put(&share, 11);
        drop(share);
        assert_eq!(taken(&sequencer), [10, 11, 20]);
    }

    proptest! {
        #[test]
        fn whatever_the_lanes_do_the_order_is_that_of_the_source(
            order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle(),
            parts in prop::collection::vec(0..3_u32, 40),
        ) {
            let sequencer = Sequencer::new(1);
            let mut reservations: Vec<Option<Reservation>> = (0..40).map(|_| Some(sequencer.reserve())).collect();
            let mut seen = Vec::new();
            for index in order {
                let reservation = reservations[index].take().unwrap();
                for part in 0..parts[index] {
                    sequencer.put(&reservation, u32::try_from(index).unwrap() * 10 + part);
                }
                drop(reservation);
                seen.extend(taken(&sequencer));
            }
            let expected: Vec<u32> = (0..40).flat_map(|n| (0..parts[n as usize]).map(move |part| n * 10 + part)).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
