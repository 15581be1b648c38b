//! The low-watermark: events finish in any order, but a position in a file can only move over a finished prefix.

use std::collections::VecDeque;

use crate::credit::Permit;

/// Follows events from claim to acknowledgement. `P` is the position after an event.
#[derive(Debug)]
pub struct Watermark<P> {
    first: u64,
    open: VecDeque<Entry<P>>,
}

#[derive(Debug)]
struct Entry<P> {
    position: P,
    permit: Option<Permit>,
    done: bool,
}

/// A prefix that has finished since the last call.
#[derive(Debug)]
pub struct Advance<P> {
    /// After the last event of the prefix.
    pub position: P,
    /// Credit to return once the position is stored.
    pub permits: Vec<Permit>,
}

impl<P> Watermark<P> {
    pub fn new() -> Self {
        Self {
            first: 0,
            open: VecDeque::new(),
        }
    }

    /// Registers an event and returns its ticket.
    pub fn begin(&mut self, position: P, permit: Permit) -> u64 {
        self.push(Entry {
            position,
            permit: Some(permit),
            done: false,
        })
    }

    /// Registers a position that needs no acknowledgement, such as the start of the next file.
    pub fn mark(&mut self, position: P) {
        self.push(Entry {
            position,
            permit: None,
            done: true,
        });
    }

    pub fn finish(&mut self, ticket: u64) {
        let entry = ticket
            .checked_sub(self.first)
            .and_then(|index| self.open.get_mut(usize::try_from(index).ok()?));
        if let Some(entry) = entry {
            entry.done = true;
        }
    }

    /// Takes off the finished prefix, if any.
    pub fn advance(&mut self) -> Option<Advance<P>> {
        let finished = self.open.iter().take_while(|entry| entry.done).count();
        self.first += finished as u64;
        let mut permits = Vec::with_capacity(finished);
        let mut position = None;
        for entry in self.open.drain(..finished) {
            permits.extend(entry.permit);
            position = Some(entry.position);
        }
        Some(Advance {
            position: position?,
            permits,
        })
    }

    /// The positions of unfinished events.
    pub fn unfinished(&self) -> impl Iterator<Item = &P> {
        self.open
            .iter()
            .filter(|entry| !entry.done)
            .map(|entry| &entry.position)
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn push(&mut self, entry: Entry<P>) -> u64 {
        self.open.push_back(entry);
        self.first + self.open.len() as u64 - 1
    }
}

impl<P> Default for Watermark<P> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credit::Credit;

    #[test]
    fn the_position_never_passes_an_open_event() {
        let credit = Credit::new(10, 10);
        let mut marks = Watermark::new();
        let tickets: Vec<u64> = (1..=4)
            .map(|position| marks.begin(position, credit.try_reserve_one(1).unwrap()))
            .collect();
        marks.finish(tickets[1]);
        marks.finish(tickets[2]);
        assert!(marks.advance().is_none(), "the first is open");
        marks.finish(tickets[0]);
        let advance = marks.advance().unwrap();
        assert_eq!((advance.position, advance.permits.len()), (3, 3));
        marks.mark(5);
        assert!(marks.advance().is_none());
        assert_eq!(
            credit.in_flight(),
            4,
            "credit is held until the caller stored the position"
        );
        marks.finish(tickets[3]);
        assert_eq!(marks.advance().unwrap().position, 5);
        marks.finish(tickets[3]);
        assert!(marks.is_empty());
    }
}
