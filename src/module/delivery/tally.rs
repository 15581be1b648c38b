//! What this worker counts before it adds it to the zone's counters, once for many events.

use push_stream_core::store::{Counter, Fanout, Now};

use super::{Delivery, backlog};
use crate::config::SlowReader;

#[derive(Default)]
pub struct Tally {
    /// Messages handed to subscribers.
    pub delivered: u64,
    /// Slow readers that were told what they have missed.
    pub gap_notices: u64,
    closed: u64,
    skipped: u64,
    latest: u64,
    fanout: Fanout,
}

impl Tally {
    /// All subscribers of a channel have got these messages, as far as their sockets took them.
    pub fn observe(&mut self, published_ms: &[u64]) {
        let now_ms = Now::read().unix_ms;
        for &published_ms in published_ms {
            self.fanout.observe(now_ms.saturating_sub(published_ms));
        }
    }

    /// A reader that is too slow, if it `happened`.
    pub fn slow(&mut self, action: SlowReader, happened: bool) {
        let count = match action {
            SlowReader::Close => &mut self.closed,
            SlowReader::Skip => &mut self.skipped,
            SlowReader::Latest => &mut self.latest,
        };
        *count += u64::from(happened);
    }
}

impl Delivery {
    /// Adds what was counted here to the zone's counters.
    pub fn count(&mut self) {
        let Some(worker) = &self.worker else { return };
        for (counter, count) in [
            (Counter::Delivered, &mut self.tally.delivered),
            (Counter::GapNotice, &mut self.tally.gap_notices),
            (Counter::SlowClose, &mut self.tally.closed),
            (Counter::SlowSkip, &mut self.tally.skipped),
            (Counter::SlowLatest, &mut self.tally.latest),
        ] {
            worker.count(counter, std::mem::take(count));
        }
        worker.count_fanout(&mut self.tally.fanout);
        worker.set_queued_bytes(backlog::queued_bytes());
    }
}
