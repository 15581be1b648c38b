//! Walks over all channels, in creation order and in slices. A walk holds no resources in the zone: channels created or
//! removed between its slices may or may not appear; all others appear exactly once.

use super::layout::*;
use super::memory::Locked;
use super::{ChannelInfo, Worker};

/// Channels that one hold of the lock visits.
const CHANNELS_PER_HOLD: usize = 256;

/// A walk in progress; the default is one at its start.
#[derive(Debug, Default)]
pub struct Listing {
    /// The next channel, if there is one and it is still there.
    next: Option<Place>,
    /// The channels of the last slice. If `next` is gone, the walk continues behind the last of them that is still
    /// there.
    passed: Vec<Place>,
    /// Creation number of the last channel visited.
    visited: u64,
    done: bool,
}

/// A channel, and the creation number that verifies it.
#[derive(Clone, Copy, Debug)]
struct Place {
    channel: ChannelRef,
    born: u64,
}

/// Names a channel to continue from, even when it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Landmark {
    /// Its creation number.
    pub born: u64,
    /// Its block.
    pub block: u32,
}

impl Listing {
    /// The creation number up to which all channels have been visited.
    pub fn visited(&self) -> u64 {
        self.visited
    }

    /// Starts behind this channel.
    pub fn after(landmark: Landmark) -> Listing {
        Listing {
            passed: vec![Place {
                channel: ChannelRef(landmark.block),
                born: landmark.born,
            }],
            visited: landmark.born,
            ..Listing::default()
        }
    }
}

/// A channel's memory, and the time of its newest message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Memory of its stored messages. A message stored in several channels counts in each.
    pub stored_bytes: u64,
    /// When its newest message was published, seconds since the epoch; 0 = never.
    pub newest_unix: u64,
}

/// A channel as found by a walk.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    pub id: &'a [u8],
    pub info: ChannelInfo,
    pub extent: Extent,
    pub landmark: Landmark,
}

impl Worker {
    /// Visits the next few hundred channels; true if there are more. Calls `each` for those whose figures are `wanted`,
    /// once the lock is released.
    pub fn list(
        &self,
        listing: &mut Listing,
        wanted: impl Fn(ChannelInfo, Extent) -> bool,
        each: &mut dyn FnMut(Listed<'_>),
    ) -> bool {
        let mut ids = Vec::new();
        let mut found = Vec::with_capacity(CHANNELS_PER_HOLD);
        let mut passed = std::mem::take(&mut listing.passed);
        let locked = self.memory().lock();
        let mut next = locked.go_on(listing.next, &passed);
        passed.clear();
        while passed.len() < CHANNELS_PER_HOLD
            && let Some(channel) = next.some()
        {
            let place = locked.place_of(channel);
            passed.push(place);
            let (info, extent) = (locked.info(channel), locked.extent(channel));
            // After a restart, some were already visited.
            if place.born > listing.visited && wanted(info, extent) {
                locked.copy_id(channel, &mut ids);
                found.push((ids.len(), info, extent, place));
            }
            next = locked.get(channel, channel::order_next);
        }
        listing.next = next.some().map(|channel| locked.place_of(channel));
        drop(locked);
        listing.visited = listing.visited.max(passed.last().map_or(0, |place| place.born));
        listing.done = listing.next.is_none();
        listing.passed = passed;
        let mut start = 0;
        for (end, info, extent, place) in found {
            each(Listed {
                id: &ids[start..end],
                info,
                extent,
                landmark: Landmark {
                    born: place.born,
                    block: place.channel.0,
                },
            });
            start = end;
        }
        !listing.done
    }

    /// The living channel with this id, to continue from.
    pub fn landmark(&self, id: &[u8]) -> Option<Landmark> {
        let hash = self.memory().hash(id);
        let locked = self.memory().lock();
        let place = locked.place_of(locked.find(hash, id)?);
        Some(Landmark {
            born: place.born,
            block: place.channel.0,
        })
    }
}

impl Locked<'_> {
    fn extent(&self, channel: ChannelRef) -> Extent {
        Extent {
            stored_bytes: u64::from(self.get(channel, channel::stored_blocks)) * BLOCK as u64,
            newest_unix: self.get(channel, channel::newest_time).into(),
        }
    }

    fn place_of(&self, channel: ChannelRef) -> Place {
        Place {
            channel,
            born: self.get(channel, channel::born),
        }
    }

    /// The channel where a walk continues: `next`, else the one behind the last passed one, else the first of all.
    fn go_on(&self, next: Option<Place>, passed: &[Place]) -> ChannelRef {
        if let Some(next) = next.filter(|&place| self.is_listed(place)) {
            return next.channel;
        }
        match passed.iter().rev().find(|&&place| self.is_listed(place)) {
            Some(last) => self.get(last.channel, channel::order_next),
            None => self.hot(hot::order_first),
        }
    }

    /// Is the channel still there?
    fn is_listed(&self, place: Place) -> bool {
        let block = place.channel.0;
        (1..=self.blocks).contains(&block)
            && self.kind(block) == kind::CHANNEL
            && self.get(place.channel, channel::born) == place.born
            && !self.has_flag(place.channel, channel_flag::DELETED | channel_flag::ADDRESS)
    }
}
