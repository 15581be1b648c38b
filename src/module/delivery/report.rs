//! Local counts added to the zone's, and reports in the error log, at most once a second per worker: slow and refused subscribers, and a full zone.

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::{Counter, Evictions, Now};

use super::local_counters::{RefusedLately, ZoneCounts};
use super::send_queue;
use super::state::Delivery;

/// Minimum interval of a worker's reports: ticks come faster while there is much to clean up.
const PAUSE_MS: u64 = 1000;

impl Delivery {
    /// Adds these counts to the zone's counters.
    pub fn count(&mut self) {
        let Some(worker) = &self.worker else { return };
        for (counter, count) in [
            (Counter::Delivered, &mut self.local_counters.delivered),
            (Counter::GapNotice, &mut self.local_counters.gap_notices),
            (Counter::SlowClose, &mut self.local_counters.closed),
            (Counter::SlowSkip, &mut self.local_counters.skipped),
            (Counter::SlowLatest, &mut self.local_counters.latest),
        ] {
            worker.count(counter, std::mem::take(count));
        }
        for (counter, count) in self.local_counters.seldom.drain(..) {
            worker.count(counter, count);
        }
        worker.count_fanout(&mut self.local_counters.fanout);
        worker.set_queued_bytes(send_queue::queued_bytes());
        self.compression.count(worker);
    }

    /// Logs the events since the last report, if there are any.
    pub fn report(&mut self, now: Now) {
        if now.monotonic_ms < self.reported.at_ms + PAUSE_MS {
            return;
        }
        self.reported.at_ms = now.monotonic_ms;
        self.report_slow_readers();
        self.report_refused_subscribers();
        self.report_zone(now);
    }

    fn report_slow_readers(&mut self) {
        let closed = self.counters.too_slow - std::mem::replace(&mut self.reported.too_slow, self.counters.too_slow);
        let dropped = self.counters.dropped - std::mem::replace(&mut self.reported.dropped, self.counters.dropped);
        if closed > 0 || dropped > 0 {
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "push stream: {closed} slow subscribers closed, {dropped} messages dropped for slow subscribers"
            );
        }
    }

    fn report_refused_subscribers(&mut self) {
        let RefusedLately {
            limit,
            forbidden,
            full,
            unavailable,
        } = std::mem::take(&mut self.local_counters.refused_lately);
        let all = limit + forbidden + full + unavailable;
        if all > 0 {
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "push stream: {all} subscribers refused: {limit} over a limit, {forbidden} forbidden, {full} for want of room, \
                 {unavailable} by a worker that could not serve them"
            );
        }
    }

    /// Reports the zone's counts: only the worker in the first slot logs. The others keep track, as they may become the
    /// first.
    pub fn report_zone(&mut self, now: Now) {
        let Some(worker) = &self.worker else { return };
        let summary = worker.summary(now);
        let speaks = summary.workers.first().map(|first| first.slot) == Some(worker.slot());
        let counts = ZoneCounts {
            evicted: summary.evicted,
            refused: summary.refused_full,
        };
        let Some(before) = self.reported.zone.replace(counts) else {
            return;
        };
        let messages = evicted_messages(&counts.evicted) - evicted_messages(&before.evicted);
        let channels = counts.evicted.channels - before.evicted.channels;
        let lost = counts.evicted.undelivered - before.evicted.undelivered;
        let refused = counts.refused - before.refused;
        if speaks && messages + channels + refused > 0 {
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "push stream: shared zone is full, {messages} messages evicted ({lost} of them undelivered), \
                 {channels} channels evicted, {refused} requests refused"
            );
        }
    }
}

/// Evicted messages that some subscriber might have wanted; messages in the trash are not missed.
fn evicted_messages(evicted: &Evictions) -> u64 {
    evicted.expired + evicted.stored + evicted.undelivered
}
