//! Merging messages of several channels on one connection, in the order of their ids.

use super::event_id::OrderedId;

/// A message's place in the merged order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Index of its channel's list.
    pub list: usize,
    /// Index in that list.
    pub index: usize,
    /// Is its id a position to resume from? Not if it came out of order, nor if the next one has the same id: a client
    /// that is disconnected between two copies of a message must get the second.
    pub is_position: bool,
}

/// Merges `lists`, which hold the ids of each channel's new messages in the order of arrival, for a client whose
/// position is `last`, and advances `last`. A message without an ordered id, or with one that is not above its
/// predecessors in its own list or at this client, has no place of its own: it follows its predecessor.
pub fn merge(lists: &[&[Option<OrderedId>]], last: &mut Option<OrderedId>) -> Vec<Turn> {
    let mut next = vec![0; lists.len()];
    let mut turns: Vec<Turn> = Vec::with_capacity(lists.iter().map(|list| list.len()).sum());
    let mut newest_position: Option<usize> = None;
    let placed = |id: &Option<OrderedId>, last: &Option<OrderedId>| id.filter(|id| Some(*id) >= *last);
    let before = *last;
    while let Some((id, list)) = lists
        .iter()
        .enumerate()
        .filter_map(|(list, ids)| Some((placed(ids.get(next[list])?, last), list)))
        .min()
    {
        let is_position = id.is_some() && id > before;
        if is_position {
            // Only the last of several copies is a position.
            if let Some(earlier) = newest_position.filter(|_| id == *last) {
                turns[earlier].is_position = false;
            }
            *last = id;
            newest_position = Some(turns.len());
        }
        turns.push(Turn {
            list,
            index: next[list],
            is_position,
        });
        next[list] += 1;
    }
    turns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(numbers: &[u64]) -> Vec<Option<OrderedId>> {
        numbers
            .iter()
            .map(|&number| OrderedId::from_groups([number, 0, 0, 0], usize::from(number > 0)))
            .collect()
    }

    /// The merged numbers; those that are not positions in brackets.
    fn merged(lists: &[&[u64]], last: u64) -> String {
        let lists: Vec<_> = lists.iter().map(|numbers| ids(numbers)).collect();
        let slices: Vec<_> = lists.iter().map(Vec::as_slice).collect();
        let mut last = ids(&[last])[0];
        merge(&slices, &mut last)
            .iter()
            .map(|turn| {
                let id = lists[turn.list][turn.index].map_or(0, |id| id.groups()[0]);
                if turn.is_position {
                    format!("{id}")
                } else {
                    format!("[{id}]")
                }
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn messages_come_in_the_order_of_their_ids() {
        assert_eq!(merged(&[&[1, 4, 5], &[2, 3, 9], &[7]], 0), "1 2 3 4 5 7 9");
        assert_eq!(merged(&[], 0), "");
        assert_eq!(merged(&[&[], &[3]], 0), "3");
    }

    #[test]
    fn only_the_last_copy_is_a_position() {
        assert_eq!(merged(&[&[5, 6], &[5], &[5, 6]], 0), "[5] [5] 5 [6] 6");
    }

    #[test]
    fn what_is_not_above_the_clients_position_is_none() {
        assert_eq!(merged(&[&[4, 5, 6]], 5), "[4] [5] 6");
        assert_eq!(merged(&[&[8], &[3, 9]], 7), "[3] 8 9");
    }

    #[test]
    fn what_came_out_of_order_or_has_no_order_follows_its_predecessor() {
        assert_eq!(merged(&[&[3, 1, 0, 8], &[5]], 0), "3 [1] [0] 5 8");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_position_goes_back(
            lists in prop::collection::vec(prop::collection::vec(0..30u64, 0..12), 0..5), last in 0..30u64
        ) {
            let lists: Vec<_> = lists.iter().map(|numbers| ids(numbers)).collect();
            let slices: Vec<_> = lists.iter().map(Vec::as_slice).collect();
            let before = ids(&[last])[0];
            let mut after = before;
            let turns = merge(&slices, &mut after);
            for (list, ids) in lists.iter().enumerate() {
                let own: Vec<_> = turns.iter().filter(|turn| turn.list == list).map(|turn| turn.index).collect();
                prop_assert_eq!(own, (0..ids.len()).collect::<Vec<_>>());
            }
            let positions: Vec<_> = turns
                .iter()
                .filter(|turn| turn.is_position)
                .map(|turn| lists[turn.list][turn.index])
                .collect();
            let mut ascending = vec![before];
            ascending.extend(&positions);
            prop_assert!(ascending.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(*ascending.last().unwrap(), after);
        }

        #[test]
        fn of_ascending_lists_every_message_is_in_order_and_each_id_once_a_position(
            mut lists in prop::collection::vec(prop::collection::vec(1..40u64, 0..12), 0..5)
        ) {
            for list in &mut lists {
                list.sort_unstable();
                list.dedup();
            }
            let numbers: Vec<_> = lists.iter().map(|numbers| ids(numbers)).collect();
            let slices: Vec<_> = numbers.iter().map(Vec::as_slice).collect();
            let turns = merge(&slices, &mut None);
            let id = |turn: &Turn| numbers[turn.list][turn.index];
            prop_assert!(turns.windows(2).all(|pair| id(&pair[0]) <= id(&pair[1])));
            for pair in turns.windows(2) {
                prop_assert_eq!(pair[0].is_position, id(&pair[0]) != id(&pair[1]));
            }
            prop_assert!(turns.last().is_none_or(|turn| turn.is_position));
        }
    }
}
