//! Local counters: events counted in this process and not yet added to the zone's counters, once for many events.

use push_stream_core::store::{Counter, Evictions, Fanout};

use super::ending::Reason;
use super::profile::SlowReader;

#[derive(Default)]
pub struct LocalCounters {
    /// Messages handed to subscribers.
    pub delivered: u64,
    /// Slow readers that got a gap notice.
    pub gap_notices: u64,
    pub closed: u64,
    pub skipped: u64,
    pub latest: u64,
    pub fanout: Fanout,
    /// Rare events without a field of their own, each with its count.
    pub seldom: Vec<(Counter, u64)>,
    /// Refused subscriptions not reported yet.
    pub refused_lately: RefusedLately,
}

/// Refused subscriptions to report in the error log.
#[derive(Default)]
pub struct RefusedLately {
    pub limit: u64,
    pub forbidden: u64,
    pub full: u64,
    pub unavailable: u64,
}

impl LocalCounters {
    /// Records the delay of messages that all subscribers of a channel have been given, as far as their sockets took
    /// them. `now_ms`: the wall clock.
    pub fn observe(&mut self, published_ms: &[u64], now_ms: u64) {
        for &published_ms in published_ms {
            self.fanout.observe(now_ms.saturating_sub(published_ms));
        }
    }

    /// Counts the end of a stream.
    pub fn closed(&mut self, reason: Reason) {
        self.add(reason.counter());
    }

    /// Counts a refused subscription.
    pub fn refused(&mut self, counter: Counter) {
        self.add(counter);
        let lately = &mut self.refused_lately;
        match counter {
            Counter::SubscriberLimit => lately.limit += 1,
            Counter::SubscriberForbidden => lately.forbidden += 1,
            Counter::SubscriberFull => lately.full += 1,
            Counter::SubscriberUnavailable => lately.unavailable += 1,
            // A malformed request is the client's concern.
            _ => {}
        }
    }

    /// Counts a rare event.
    pub fn add(&mut self, counter: Counter) {
        match self.seldom.iter_mut().find(|(known, _)| *known == counter) {
            Some((_, count)) => *count += 1,
            None => self.seldom.push((counter, 1)),
        }
    }

    /// Counts a policy applied to a slow reader, if it `happened`.
    pub fn slow(&mut self, action: SlowReader, happened: bool) {
        let count = match action {
            SlowReader::Close => &mut self.closed,
            SlowReader::Skip => &mut self.skipped,
            SlowReader::Latest => &mut self.latest,
        };
        *count += u64::from(happened);
    }
}

/// Counts as of the last report.
#[derive(Default)]
pub struct Reported {
    /// Time of the last report.
    pub at_ms: u64,
    pub dropped: u64,
    pub too_slow: u64,
    /// Zone-wide; None until this worker has a slot.
    pub zone: Option<ZoneCounts>,
}

#[derive(Clone, Copy)]
pub struct ZoneCounts {
    pub evicted: Evictions,
    pub refused: u64,
}
