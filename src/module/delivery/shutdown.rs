//! Shutdown of an nginx worker: every stream ends properly.
//!
//! At a reload, subscribers that another worker takes over are handed over first ([`super::handover`]). The others end
//! as at a quit: at once, or spread over `push_stream_drain_time`. A timer that nginx waits for is armed as long as a
//! subscriber remains; bytes unsent after that are nginx's to wait for. A fast stop does not wait: each subscriber gets
//! one last attempt, within a budget.

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Now;

use super::ending::Reason;
use super::perform::perform;
use super::state::{Delivery, PROCESS};
use super::subscriber::SubscriberId;

/// Subscribers ended per slice, before other events get their turn.
const ENDS_PER_SLICE: u32 = 256;

/// Pause between two slices while ends are spread over time, and while waiting for subscribers that cannot end yet.
pub const PACE_MS: u64 = 50;

/// Time for a fast stop: the master kills after about a second and a half.
const LAST_MS: u64 = 700;

/// Begins the shutdown: nginx told the worker to exit.
pub fn begin() {
    PROCESS.with(|delivery| {
        let now_ms = Now::read().monotonic_ms;
        delivery
            .shutdown
            .span
            .get_or_insert((now_ms, now_ms + delivery.settings.drain_time_ms));
        delivery.begin_giving(now_ms);
        if delivery.registry.slab.len() > 0 {
            delivery.events.shutdown_in(0);
        }
    });
}

/// Runs one slice of the shutdown.
pub fn go_on() {
    let actions = PROCESS.with(|delivery| {
        let mut actions = Vec::new();
        delivery.look_after_giving(Now::read().monotonic_ms, &mut actions);
        actions
    });
    perform(actions.unwrap_or_default());
    let ids = PROCESS.with(Delivery::next_to_end).unwrap_or_default();
    end_all(&ids);
    PROCESS.with(|delivery| {
        if delivery.registry.slab.len() > 0 {
            delivery
                .events
                .shutdown_in(if ids.len() as u32 == ENDS_PER_SLICE { 1 } else { PACE_MS });
        }
    });
}

/// Ends all subscribers now: the process is about to exit.
pub fn end_now() {
    let deadline = Now::read().monotonic_ms + LAST_MS;
    PROCESS.with(|delivery| delivery.shutdown.next = 0);
    loop {
        let ids = PROCESS
            .with(|delivery| delivery.slice(ENDS_PER_SLICE))
            .unwrap_or_default();
        if ids.is_empty() || Now::read().monotonic_ms >= deadline {
            break;
        }
        end_all(&ids);
    }
    let left = PROCESS.with(|delivery| delivery.registry.slab.len()).unwrap_or(0);
    if left > 0 {
        let log = ngx::log::ngx_cycle_log().as_ptr();
        ngx_log_error!(
            NGX_LOG_NOTICE,
            log,
            "push stream: {left} subscribers closed without their end"
        );
    }
}

fn end_all(ids: &[SubscriberId]) {
    let actions = PROCESS.with(|delivery| {
        let end = |&id| delivery.begin_end(id, Reason::WorkerExit);
        ids.iter().filter_map(end).collect()
    });
    perform(actions.unwrap_or_default());
}

impl Delivery {
    /// The subscribers to end now.
    fn next_to_end(&mut self) -> Vec<SubscriberId> {
        let now_ms = Now::read().monotonic_ms;
        let remaining_ms = self.shutdown.span.map_or(0, |(_, end)| end.saturating_sub(now_ms));
        let share = self.registry.slab.len() as u64 * PACE_MS / remaining_ms.max(PACE_MS);
        if self.shutdown.next >= self.registry.slab.end() {
            // Start over: with subscribers that came, or were not ended, meanwhile.
            self.shutdown.next = 0;
        }
        self.slice(u32::try_from(share.max(1)).unwrap_or(u32::MAX).min(ENDS_PER_SLICE))
    }

    /// The next subscribers by index, at most `count`.
    fn slice(&mut self, count: u32) -> Vec<SubscriberId> {
        let mut ids = Vec::new();
        while (ids.len() as u32) < count && self.shutdown.next < self.registry.slab.end() {
            let index = self.shutdown.next;
            self.shutdown.next += 1;
            if !self.is_given(index) {
                ids.extend(self.registry.slab.id(index));
            }
        }
        ids
    }
}
