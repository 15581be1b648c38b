//! The channels with the most subscriptions, for the statistics: found by a walk over all channels, a little at a time.

use push_stream_core::store::{ChannelInfo, Listing, Now, Worker};

use super::{Delivery, PROCESS};

/// Between the starts of two walks.
const PERIOD_MS: u64 = 10_000;

/// Between two slices of a walk.
const PAUSE_MS: u64 = 2;

/// Slices of the list, each a few hundred channels, that are looked at in one go.
const LISTS_PER_SLICE: usize = 4;

/// A channel as it was found.
#[derive(Clone, Debug)]
pub struct Busy {
    pub id: Vec<u8>,
    pub info: ChannelInfo,
}

#[derive(Default)]
pub struct Busiest {
    /// The result of the last walk, the busiest first.
    found: Vec<Busy>,
    walk: Option<Walk>,
    due_ms: u64,
}

struct Walk {
    listing: Listing,
    best: Best,
}

/// The best so far, and not many more.
struct Best {
    wanted: usize,
    channels: Vec<Busy>,
    /// Who has no more subscriptions than this is not among them.
    least: u64,
}

impl Best {
    fn add(&mut self, busy: Busy) {
        self.channels.push(busy);
        if self.channels.len() >= 2 * self.wanted {
            self.cut();
        }
    }

    fn cut(&mut self) {
        // Of equals, the older stays: a channel does not come and go with each walk.
        self.channels
            .sort_by_key(|busy| std::cmp::Reverse(busy.info.subscribers));
        self.channels.truncate(self.wanted);
        if let Some(last) = self.channels.get(self.wanted - 1) {
            self.least = last.info.subscribers;
        }
    }
}

impl Walk {
    /// One slice; true if there is more.
    fn go_on(&mut self, worker: &Worker) -> bool {
        (0..LISTS_PER_SLICE).all(|_| {
            let Walk { listing, best } = self;
            let least = best.least;
            worker.list(listing, |info| info.subscribers > least, &mut |listed| {
                best.add(Busy {
                    id: listed.id.to_vec(),
                    info: listed.info,
                });
            })
        })
    }
}

/// The `count` channels with the most subscriptions, as far as they are known.
pub fn busiest(count: usize) -> Vec<Busy> {
    let some = PROCESS.with(|delivery| delivery.busiest.found.iter().take(count).cloned().collect());
    some.unwrap_or_default()
}

impl Delivery {
    /// Starts a walk if somebody wants its result and it is time.
    pub fn look_for_busiest(&mut self, now: Now) {
        let wanted = self.settings.statistics_channels.get() as usize;
        let Busiest { found, walk, due_ms } = &mut self.busiest;
        if wanted == 0 {
            found.clear();
        }
        if wanted == 0 || walk.is_some() || now.monotonic_ms < *due_ms {
            return;
        }
        *due_ms = now.monotonic_ms + PERIOD_MS;
        *walk = Some(Walk {
            listing: Listing::default(),
            best: Best {
                wanted,
                channels: Vec::new(),
                least: 0,
            },
        });
        self.events.walk_in(0);
    }

    /// One slice of the walk.
    pub fn walk(&mut self) {
        let (Some(mut walk), Some(worker)) = (self.busiest.walk.take(), &self.worker) else {
            return;
        };
        if walk.go_on(worker) {
            self.busiest.walk = Some(walk);
            self.events.walk_in(PAUSE_MS);
        } else {
            walk.best.cut();
            self.busiest.found = walk.best.channels;
        }
    }
}
