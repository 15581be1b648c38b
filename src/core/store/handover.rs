//! Subscribers that one worker takes over from another one.
//!
//! The new worker [adopts](Worker::adopt) a subscriber: it joins the channels from a sequence number on, while the old worker is still a
//! member and delivers up to that number. Then the old one [forgets](Worker::leave_quietly) it. The events channel is told of neither: the
//! client has not noticed anything. Whichever of the two dies meanwhile, its memberships end with it, as always.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use super::layout::*;
use super::*;

/// A subscriber that was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// One for each of the channels, in their order.
    pub memberships: Vec<Membership>,
    /// Its share of its client's address.
    pub address: Option<Membership>,
    /// Messages up to this sequence number are the other worker's to deliver.
    pub seq: u64,
}

impl Worker {
    /// Says whether this worker takes subscribers that others hand over.
    pub fn set_accepting(&self, on: bool) {
        self.memory().init(self.slot, slot::accepts, u32::from(on));
    }

    /// How many other workers take subscribers.
    pub fn accepting_others(&self) -> usize {
        let accepts = |&slot: &SlotRef| {
            slot != self.slot
                && self.memory().peek(slot, slot::live) != 0
                && self.memory().peek(slot, slot::accepts) != 0
        };
        self.memory().all_slots().filter(accepts).count()
    }

    /// Enters a subscriber of another worker into its channels, all of which must exist: None if one does not. It was admitted when it came,
    /// so no limit is looked at. `address`: the key of its client's address, if it has a share in one.
    pub fn adopt(&mut self, ids: &[&[u8]], address: Option<&[u8]>, now: Now) -> Result<Option<Adopted>, Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let address_hash = address.map_or(0, |key| self.memory().hash(key));
        let cost = self.cost(ids.iter().copied().chain(address));
        let slot = self.slot;
        let limits = self.limits.clone();
        self.quietly(|worker| {
            worker.mutate(cost, hashes.iter().copied().zip(ids.iter().copied()), now, |locked| {
                let mut channels = Vec::with_capacity(ids.len());
                for (id, &hash) in ids.iter().zip(&hashes) {
                    let Some(channel) = locked.find(hash, id) else {
                        return Ok(None);
                    };
                    channels.push(channel);
                }
                let seq = locked.hot(hot::seq);
                let address = match address {
                    Some(key) => {
                        let entry = locked.address(address_hash, key)?;
                        Some(Membership(locked.enter(entry, slot)?.0))
                    }
                    None => None,
                };
                let mut memberships = Vec::with_capacity(channels.len());
                for channel in channels {
                    memberships.push(Membership(locked.enter(channel, slot)?.0));
                    locked.touch(channel, &limits);
                }
                locked.add(slot, slot::subscribers, 1);
                Ok(Some(Adopted {
                    memberships,
                    address,
                    seq,
                }))
            })
        })
    }

    /// As [`Worker::leave`], without a word to the events channel: another worker has adopted the subscriber.
    pub fn leave_quietly(&mut self, memberships: &[Membership]) {
        self.quietly(|worker| worker.leave(memberships, true));
    }

    /// The key of the client's address that a membership is a share of.
    pub fn address_key(&self, address: Membership) -> Vec<u8> {
        let locked = self.memory().lock();
        let mut key = Vec::new();
        locked.copy_id(locked.get(MemberRef(address.0), member::channel), &mut key);
        key
    }

    /// Does something that the events channel is not told of.
    fn quietly<T>(&mut self, work: impl FnOnce(&mut Worker) -> T) -> T {
        if self.limits.events.is_none() {
            return work(self);
        }
        let quiet = Rc::new(Limits {
            events: None,
            ..(*self.limits).clone()
        });
        let limits = std::mem::replace(&mut self.limits, quiet);
        let result = catch_unwind(AssertUnwindSafe(|| work(self)));
        self.limits = limits;
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
