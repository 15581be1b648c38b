//! Statistics of the channels with the most subscriptions, stored bytes and recent messages, found by a walk over all
//! channels in small slices.

use std::cmp::Reverse;

use rustc_hash::FxHashMap;

use push_stream_core::store::{ChannelInfo, Extent, Listing, Now, Worker};

/// Interval between the starts of two walks.
pub const PERIOD_MS: u64 = 10_000;

/// Slices of the channel list, each a few hundred channels, per slice of the walk.
const LISTS_PER_SLICE: usize = 4;

/// Channels whose message count is kept until the next walk, to compute their rate: some MiB.
const COUNTED: usize = 65_536;

/// A channel found by a walk.
#[derive(Clone, Debug)]
pub struct TopChannel {
    pub id: Vec<u8>,
    pub info: ChannelInfo,
    /// Memory of its stored messages.
    pub stored_bytes: u64,
    /// Messages per 1,000 seconds, published between two walks.
    pub per_1000_secs: u64,
}

/// The busiest channels by each measure, the busiest first.
#[derive(Clone, Debug, Default)]
pub struct Tops {
    pub by_subscribers: Vec<TopChannel>,
    pub by_bytes: Vec<TopChannel>,
    pub by_rate: Vec<TopChannel>,
}

#[derive(Default)]
pub struct TopChannels {
    /// The result of the last walk.
    pub found: Tops,
    pub walk: Option<Walk>,
    pub due_ms: u64,
    pub counts: Counts,
}

/// Total messages published in each recently active channel, as seen by one walk.
#[derive(Default)]
pub struct Counts {
    /// When the walk began; None before the first one.
    began: Option<Now>,
    /// By the channel's creation number.
    published: FxHashMap<u64, u64>,
    /// All channels that the walk met have a creation number up to this one.
    pub born: u64,
}

impl Counts {
    /// Messages published in this channel since; None if unknown.
    fn new_messages(&self, born: u64, published: u64) -> Option<u64> {
        self.began?;
        match self.published.get(&born) {
            Some(&before) => Some(published.saturating_sub(before)),
            None => (born > self.born).then_some(published),
        }
    }
}

pub struct Walk {
    pub listing: Listing,
    began: Now,
    pub counts: Counts,
    pub by_subscribers: Best,
    pub by_bytes: Best,
    pub by_rate: Best,
}

/// The top channels so far by one measure, and not many more.
pub struct Best {
    wanted: usize,
    measure: fn(&TopChannel) -> u64,
    channels: Vec<TopChannel>,
    /// Channels with no more than this are left out.
    least: u64,
}

impl Best {
    fn new(wanted: usize, measure: fn(&TopChannel) -> u64) -> Best {
        Best {
            wanted,
            measure,
            channels: Vec::new(),
            least: 0,
        }
    }

    fn offer(&mut self, channel: &TopChannel) {
        if (self.measure)(channel) <= self.least {
            return;
        }
        self.channels.push(channel.clone());
        if self.channels.len() >= 2 * self.wanted {
            self.cut();
        }
    }

    fn cut(&mut self) {
        // Stable sort: of equals, the older stays, so that channels do not come and go with each walk.
        self.channels.sort_by_key(|channel| Reverse((self.measure)(channel)));
        self.channels.truncate(self.wanted);
        if let Some(last) = self.channels.get(self.wanted - 1) {
            self.least = (self.measure)(last);
        }
    }

    pub fn into_found(mut self) -> Vec<TopChannel> {
        self.cut();
        self.channels
    }
}

impl Walk {
    pub fn new(wanted: usize, began: Now) -> Walk {
        Walk {
            listing: Listing::default(),
            began,
            counts: Counts {
                began: Some(began),
                ..Counts::default()
            },
            by_subscribers: Best::new(wanted, |channel| channel.info.subscribers),
            by_bytes: Best::new(wanted, |channel| channel.stored_bytes),
            by_rate: Best::new(wanted, |channel| channel.per_1000_secs),
        }
    }

    /// One slice; true if there is more.
    pub fn go_on(&mut self, worker: &Worker, before: &Counts) -> bool {
        let passed_ms = before
            .began
            .map_or(PERIOD_MS, |began| self.began.monotonic_ms - began.monotonic_ms);
        // Message times are in whole seconds.
        let lately = self.began.unix_secs().saturating_sub(passed_ms / 1000 + 1);
        (0..LISTS_PER_SLICE).all(|_| {
            let Walk {
                listing,
                counts,
                by_subscribers,
                by_bytes,
                by_rate,
                ..
            } = self;
            let (subscribers, bytes) = (by_subscribers.least, by_bytes.least);
            let wanted = |info: ChannelInfo, extent: Extent| {
                info.subscribers > subscribers || extent.stored_bytes > bytes || extent.newest_unix >= lately
            };
            worker.list(listing, wanted, &mut |listed| {
                let born = listed.landmark.born;
                let mut new = 0;
                if listed.extent.newest_unix >= lately {
                    new = before.new_messages(born, listed.info.published).unwrap_or(0);
                    if counts.published.len() < COUNTED {
                        counts.published.insert(born, listed.info.published);
                    }
                }
                let channel = TopChannel {
                    id: listed.id.to_vec(),
                    info: listed.info,
                    stored_bytes: listed.extent.stored_bytes,
                    per_1000_secs: new * 1_000_000 / passed_ms.max(1),
                };
                for best in [&mut *by_subscribers, &mut *by_bytes, &mut *by_rate] {
                    best.offer(&channel);
                }
            })
        })
    }
}
