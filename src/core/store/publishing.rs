//! Publishes a reserved message: finds its channels, refuses duplicates and what is out of order, links it.

use super::layout::*;
use super::memory::{Locked, Stop};
use super::messages::Shape;
use super::{Limits, OutOfOrder, Published, Refusal, Terms};
use crate::wire::event_id::OrderedId;

/// The ordered form and window key of a message's event id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Brought {
    /// The id as an ordered one, if it is.
    pub ordered: Option<OrderedId>,
    /// Its key in windows.
    pub key: Option<(u64, u64)>,
}

/// A message that is reserved and filled, and the terms on which it is published.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    shape: Shape,
    /// Its last block.
    last: BlockRef,
    id: Brought,
    terms: Terms,
}

impl Filled {
    pub fn new(mut shape: Shape, last: BlockRef, id: Brought, terms: Terms) -> Filled {
        if terms.store {
            shape.flags |= link_flag::STORED;
        }
        if terms.auto_id && shape.flags & link_flag::EVENT_ID == 0 {
            shape.flags |= link_flag::AUTO_ID;
        }
        Filled { shape, last, id, terms }
    }
}

impl Locked<'_> {
    /// Publishes the first message of the slot's reservation to those of `ids` that have not accepted its id before.
    /// Appends the result for each. False if all had: then it is still in the reservation.
    pub fn publish_reserved(
        &mut self,
        slot: SlotRef,
        message: &Filled,
        ids: &[&[u8]],
        hashes: &[u32],
        limits: &Limits,
        published: &mut Vec<Published>,
    ) -> Result<bool, Stop> {
        let mut channels = Vec::with_capacity(ids.len());
        for (id, &hash) in ids.iter().zip(hashes) {
            let channel = self.find_or_create(hash, id, limits)?;
            self.open_ids(channel)?;
            channels.push(channel);
        }
        let duplicates = match message.id.key.filter(|_| message.terms.idempotent) {
            Some(key) => self.accept(&channels, key, limits)?,
            None => Vec::new(),
        };
        let is_duplicate = |index: usize| duplicates.get(index) == Some(&true);
        let accepting: Vec<_> = channels
            .iter()
            .enumerate()
            .filter(|&(index, _)| !is_duplicate(index))
            .map(|(_, &channel)| channel)
            .collect();
        if let Some(id) = message
            .id
            .ordered
            .filter(|_| message.terms.out_of_order == OutOfOrder::Refuse)
            && !accepting.iter().all(|&channel| self.is_in_order(channel, id))
        {
            return Err(Stop::Refused(Refusal::OutOfOrder));
        }
        if !accepting.is_empty() {
            self.link_reserved(
                slot,
                &accepting,
                message.shape,
                message.last,
                message.id.ordered,
                limits,
            );
        }
        let outcomes = channels.iter().enumerate().map(|(index, &channel)| Published {
            info: self.info(channel),
            duplicate: is_duplicate(index),
            newest_id: self.newest_id(channel),
        });
        published.extend(outcomes);
        Ok(!accepting.is_empty())
    }

    /// Which of the publish's channels already know the id; adds it to the windows of the others.
    fn accept(&mut self, channels: &[ChannelRef], id: (u64, u64), limits: &Limits) -> Result<Vec<bool>, Stop> {
        let mut duplicates = Vec::with_capacity(channels.len());
        for &channel in channels {
            let key = self.window_key(channel, id);
            let known = self.is_known(key);
            if !known {
                self.remember(channel, key, limits)?;
            }
            duplicates.push(known);
        }
        Ok(duplicates)
    }
}
