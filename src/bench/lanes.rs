//! Who publishes what where, and how far everybody has come: shared by all processes of a run.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::crew::Shared;

/// The channels of a run, the lanes in them (see [`crate::history`]) and their progress.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    channels: u32,
    publishers: u32,
    per_channel: u32,
    /// For each lane: how many messages were sent. Written before the message goes out.
    sent: Shared<AtomicU32>,
    /// For each lane: the number of the last accepted message plus one.
    accepted_end: Shared<AtomicU32>,
}

/// One lane: a channel, and which of the channel's publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    pub channel: u32,
    pub publisher: u32,
}

impl Lanes {
    /// With at least as many channels as publishers each channel has one publisher, else each publisher sends to every
    /// channel.
    pub fn new(channels: u32, publishers: u32) -> io::Result<Self> {
        let per_channel = if channels >= publishers { 1 } else { publishers };
        let count = channels as usize * per_channel as usize;
        let (sent, accepted_end) = (Shared::new(count)?, Shared::new(count)?);
        Ok(Self {
            channels,
            publishers,
            per_channel,
            sent,
            accepted_end,
        })
    }

    pub fn channels(&self) -> u32 {
        self.channels
    }

    pub fn per_channel(&self) -> u32 {
        self.per_channel
    }

    /// The lanes that a publisher feeds in turn.
    pub fn of_publisher(&self, publisher: u32) -> Vec<Lane> {
        match self.per_channel {
            1 => {
                let own = (publisher..self.channels).step_by(self.publishers as usize);
                own.map(|channel| Lane { channel, publisher: 0 }).collect()
            }
            _ => (0..self.channels).map(|channel| Lane { channel, publisher }).collect(),
        }
    }

    pub fn index(&self, lane: Lane) -> usize {
        lane.channel as usize * self.per_channel as usize + lane.publisher as usize
    }

    /// Message `sequence` is about to be sent. Pairs with [`Self::was_sent`]: a message cannot be received before.
    pub fn sending(&self, lane: Lane, sequence: u32) {
        self.sent[self.index(lane)].store(sequence + 1, Ordering::Release);
    }

    pub fn was_sent(&self, lane: Lane, sequence: u32) -> bool {
        sequence < self.sent[self.index(lane)].load(Ordering::Acquire)
    }

    /// Message `sequence` was answered with 2xx; pairs with [`Self::accepted_end`].
    pub fn accepted(&self, lane: Lane, sequence: u32) {
        self.accepted_end[self.index(lane)].store(sequence + 1, Ordering::Release);
    }

    pub fn accepted_end(&self, lane: Lane) -> u32 {
        self.accepted_end[self.index(lane)].load(Ordering::Acquire)
    }
}

/// The name of a channel: new for each run, so that what an earlier run left on the server does not disturb.
pub fn channel_name(run: u32, channel: u32) -> String {
    format!("{run:x}-{channel}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_exactly_one_publisher() {
        for (channels, publishers) in [(1, 1), (1, 16), (50, 8), (3, 4), (4, 4)] {
            let lanes = Lanes::new(channels, publishers).unwrap();
            let mut seen = vec![0; channels as usize * lanes.per_channel() as usize];
            for publisher in 0..publishers {
                lanes
                    .of_publisher(publisher)
                    .iter()
                    .for_each(|&lane| seen[lanes.index(lane)] += 1);
            }
            assert!(
                seen.iter().all(|&count| count == 1),
                "{channels} channels, {publishers} publishers: {seen:?}"
            );
        }
    }

    #[test]
    fn progress_is_seen_by_copies() {
        let lanes = Lanes::new(2, 1).unwrap();
        let (copy, lane) = (
            lanes,
            Lane {
                channel: 1,
                publisher: 0,
            },
        );
        assert!(!copy.was_sent(lane, 0));
        lanes.sending(lane, 0);
        assert!(copy.was_sent(lane, 0) && !copy.was_sent(lane, 1));
        lanes.accepted(lane, 0);
        assert_eq!(
            (
                copy.accepted_end(lane),
                copy.accepted_end(Lane {
                    channel: 0,
                    publisher: 0
                })
            ),
            (1, 0)
        );
    }
}
