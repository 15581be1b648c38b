//! Events with the lanes, by ticket. Tickets are assigned in sequence and mostly return in that order.

use std::collections::VecDeque;

#[derive(Debug)]
pub struct Open<T> {
    /// Ticket of the first slot.
    first: u64,
    places: VecDeque<Option<T>>,
    count: usize,
}

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self {
            first: 0,
            places: VecDeque::new(),
            count: 0,
        }
    }
}

impl<T> Open<T> {
    /// Returns its ticket.
    pub fn insert(&mut self, item: T) -> u64 {
        self.places.push_back(Some(item));
        self.count += 1;
        self.first + self.places.len() as u64 - 1
    }

    pub fn remove(&mut self, ticket: u64) -> Option<T> {
        let place = usize::try_from(ticket.checked_sub(self.first)?).ok()?;
        let item = self.places.get_mut(place)?.take()?;
        self.count -= 1;
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.first += 1;
        }
        Some(item)
    }

    /// In the order of their tickets.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().flatten()
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ticket_is_good_once_in_any_order() {
        let mut open = Open::default();
        let tickets: Vec<u64> = (0..4).map(|n| open.insert(n)).collect();
        assert_eq!((open.remove(tickets[2]), open.remove(tickets[2])), (Some(2), None));
        assert_eq!(open.remove(tickets[0]), Some(0));
        assert_eq!(open.iter().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(open.len(), 2);
        assert_eq!((open.remove(tickets[1]), open.remove(tickets[3])), (Some(1), Some(3)));
        assert!(open.is_empty() && open.remove(tickets[0]).is_none());
        let next = open.insert(9);
        assert!(!tickets.contains(&next));
    }
}
