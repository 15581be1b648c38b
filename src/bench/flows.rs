//! The flows of a run and their progress, shared by all its processes.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::processes::Shared;

/// The channels of a run, the flows in them (see [`crate::history`]) and their progress.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    channels: u32,
    publishers: u32,
    per_channel: u32,
    /// Per flow: number of messages sent. Written before the message goes out.
    sent: Shared<AtomicU32>,
    /// Per flow: the number of the last accepted message plus one.
    accepted_end: Shared<AtomicU32>,
}

/// One flow: a channel, and the index of one of its publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub channel: u32,
    pub publisher: u32,
}

impl Flows {
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

    /// The flows that a publisher feeds in turn.
    pub fn of_publisher(&self, publisher: u32) -> Vec<Flow> {
        match self.per_channel {
            1 => {
                let own = (publisher..self.channels).step_by(self.publishers as usize);
                own.map(|channel| Flow { channel, publisher: 0 }).collect()
            }
            _ => (0..self.channels).map(|channel| Flow { channel, publisher }).collect(),
        }
    }

    pub fn index(&self, flow: Flow) -> usize {
        flow.channel as usize * self.per_channel as usize + flow.publisher as usize
    }

    /// Message `sequence` is about to be sent. Pairs with [`Self::sent`]: a message cannot be received before.
    pub fn sending(&self, flow: Flow, sequence: u32) {
        self.sent[self.index(flow)].store(sequence + 1, Ordering::Release);
    }

    /// The number of the flow's next message.
    pub fn sent(&self, flow: Flow) -> u32 {
        self.sent[self.index(flow)].load(Ordering::Acquire)
    }

    /// Message `sequence` was answered with 2xx; pairs with [`Self::accepted_end`].
    pub fn accepted(&self, flow: Flow, sequence: u32) {
        self.accepted_end[self.index(flow)].store(sequence + 1, Ordering::Release);
    }

    pub fn accepted_end(&self, flow: Flow) -> u32 {
        self.accepted_end[self.index(flow)].load(Ordering::Acquire)
    }
}

/// Distribution of subscribers over the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Equally many on each.
    Even,
    /// Few channels have most subscribers, like threads of a forum: the Nth has an Nth of the first one's (Zipf).
    Skewed,
}

impl Audience {
    /// The channel of subscriber `number`.
    pub fn channel(self, number: usize, channels: u32) -> u32 {
        match self {
            Self::Even => (number % channels as usize) as u32,
            Self::Skewed => {
                // Fibonacci hashing: consecutive subscribers spread over the whole scale.
                let hashed = (number as u32).wrapping_mul(0x9e37_79b1);
                let quantile = f64::from(hashed) / f64::from(u32::MAX);
                let channel = f64::from(channels + 1).powf(quantile) as u32;
                channel.clamp(1, channels) - 1
            }
        }
    }
}

/// The name of a channel: new for each run, so that leftovers of an earlier run on the server do not interfere.
pub fn channel_name(run: u32, channel: u32) -> String {
    format!("{run:x}-{channel}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_has_exactly_one_publisher() {
        for (channels, publishers) in [(1, 1), (1, 16), (50, 8), (3, 4), (4, 4)] {
            let flows = Flows::new(channels, publishers).unwrap();
            let mut seen = vec![0; channels as usize * flows.per_channel() as usize];
            for publisher in 0..publishers {
                flows
                    .of_publisher(publisher)
                    .iter()
                    .for_each(|&flow| seen[flows.index(flow)] += 1);
            }
            assert!(
                seen.iter().all(|&count| count == 1),
                "{channels} channels, {publishers} publishers: {seen:?}"
            );
        }
    }

    #[test]
    fn a_skewed_audience_has_a_few_large_channels_and_reaches_all_parts() {
        let mut sizes = vec![0; 1000];
        for number in 0..100_000 {
            sizes[Audience::Skewed.channel(number, 1000) as usize] += 1;
        }
        // log(2)/log(1001) of all, and a tenth of that on the tenth.
        assert!((9_500..10_500).contains(&sizes[0]), "{}", sizes[0]);
        assert!((900..1_500).contains(&sizes[9]), "{}", sizes[9]);
        assert!(sizes[900..].iter().sum::<i32>() > 1_000);
        assert_eq!(Audience::Even.channel(7, 3), 1);
    }

    #[test]
    fn progress_is_seen_by_copies() {
        let flows = Flows::new(2, 1).unwrap();
        let (copy, flow) = (
            flows,
            Flow {
                channel: 1,
                publisher: 0,
            },
        );
        assert_eq!(copy.sent(flow), 0);
        flows.sending(flow, 0);
        assert_eq!(copy.sent(flow), 1);
        flows.accepted(flow, 0);
        assert_eq!(
            (
                copy.accepted_end(flow),
                copy.accepted_end(Flow {
                    channel: 0,
                    publisher: 0
                })
            ),
            (1, 0)
        );
    }
}
