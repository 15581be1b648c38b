//! Figures of compression, and the time that it may take.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// A longer piece is not compressed: it would keep everybody waiting.
const LONGEST: usize = 256 * 1024;

/// Figures of compression, and the time that it may take; shared by all coders of a worker.
#[derive(Debug)]
pub struct Ledger {
    last_group: Cell<u32>,
    epoch: Instant,
    pub(super) pace: Cell<Pace>,
    /// Nanoseconds left for compression, and since when they have not grown; below zero if it took longer.
    left: Cell<i64>,
    grown: Cell<Instant>,
    figures: RefCell<Figures>,
}

/// The time that compression may take: a share of all time, and so much at once. The rest is sent as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// One part out of so many.
    pub share: u32,
    pub burst: Duration,
}

impl Pace {
    /// No limit.
    pub const FREE: Pace = Pace {
        share: 1,
        burst: Duration::MAX,
    };
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Streams and answers in gzip, and in zstd.
    pub gzip: Volume,
    pub zstd: Volume,
    /// WebSocket messages.
    pub messages: Volume,
    pub time: Duration,
    /// Deliveries with the context of a group, and without.
    pub aligned: u64,
    pub unaligned: u64,
}

/// Bytes before and after compression, as often as they were compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub before: u64,
    pub after: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::new(Pace::FREE)
    }
}

impl Ledger {
    pub fn new(pace: Pace) -> Ledger {
        let now = Instant::now();
        Ledger {
            last_group: Cell::new(0),
            epoch: now,
            pace: Cell::new(pace),
            left: Cell::new(nanoseconds(pace.burst)),
            grown: Cell::new(now),
            figures: RefCell::default(),
        }
    }

    /// Milliseconds since the ledger was made.
    pub fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// A number that no place of a reader has.
    pub fn next_group(&self) -> u32 {
        self.last_group.set(self.last_group.get().wrapping_add(1).max(1));
        self.last_group.get()
    }

    /// The figures since the last call.
    pub fn take_figures(&self) -> Figures {
        self.figures.take()
    }

    /// Runs the compressor, if there is time left. `volume`: the figure of its coding.
    pub(super) fn timed(
        &self,
        text: usize,
        volume: impl FnOnce(&mut Figures) -> &mut Volume,
        compress: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        if text > LONGEST {
            return None;
        }
        let started = Instant::now();
        let Pace { share, burst } = self.pace.get();
        let (grown, burst) = (
            started.duration_since(self.grown.replace(started)) / share,
            nanoseconds(burst),
        );
        let left = self.left.get().saturating_add(nanoseconds(grown)).min(burst);
        self.left.set(left);
        if left <= 0 {
            return None;
        }
        let out = compress();
        let took = started.elapsed();
        // A worker that was not given the processor meanwhile does not pay for that for ever.
        self.left.set((left - nanoseconds(took)).max(-burst));
        let mut figures = self.figures.borrow_mut();
        figures.time += took;
        if let Some(out) = &out {
            let volume = volume(&mut figures);
            volume.before += text as u64;
            volume.after += out.len() as u64;
        }
        out
    }

    pub(super) fn count(&self, aligned: bool) {
        let mut figures = self.figures.borrow_mut();
        let count = if aligned {
            &mut figures.aligned
        } else {
            &mut figures.unaligned
        };
        *count += 1;
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
