//! Handover in the store: subscribers that move from one worker to another.
//!
//! The new worker [adopts](Worker::adopt) a subscriber: it joins the channels from a sequence number on, while the old
//! worker is still a member and delivers up to that number. Then the old one [removes](Worker::leave_quietly) it. The
//! events channel announces neither, because the client does not notice the move. If either worker dies meanwhile, its
//! memberships end with it, as always.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use super::layout::*;
use super::*;

/// An adopted subscriber.
#[derive(Debug)]
pub struct Adopted {
    /// One per channel, in order.
    pub memberships: Vec<Membership>,
    /// Its membership for its client's address.
    pub address: Option<Membership>,
    /// The other worker delivers the messages up to this sequence number.
    pub seq: u64,
}

impl Worker {
    /// Says that this worker takes subscribers of workers with an older configuration than number `cycle`, its own; None: it does not.
    pub fn set_accepting(&self, cycle: Option<u32>) {
        self.memory().init(self.slot, slot::accepts, cycle.unwrap_or(0));
    }

    /// How many workers take subscribers of one whose configuration has number `cycle`.
    pub fn accepting(&self, cycle: u32) -> usize {
        let accepts = |&slot: &SlotRef| {
            self.memory().peek(slot, slot::live) != 0 && self.memory().peek(slot, slot::accepts) > cycle
        };
        self.memory().all_slots().filter(accepts).count()
    }

    /// Enters a subscriber of another worker into its channels, all of which must exist: None if one does not. Limits
    /// are not checked again: it was admitted when it first joined. `address`: the key of its client's address, if it
    /// has a membership for one.
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

    /// As [`Worker::leave`], without an event in the events channel: another worker has adopted the subscriber.
    pub fn leave_quietly(&mut self, memberships: &[Membership]) {
        self.quietly(|worker| worker.leave(memberships, true));
    }

    /// The key of the client's address that a membership counts for.
    pub fn address_key(&self, address: Membership) -> Vec<u8> {
        let locked = self.memory().lock();
        let mut key = Vec::new();
        locked.copy_id(locked.get(MemberRef(address.0), member::channel), &mut key);
        key
    }

    /// Runs `work` without publishing events in the events channel.
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
