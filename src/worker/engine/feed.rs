//! A source's connection to the lanes: each event goes to every pipeline of the source, there to the lane of its order key.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::dead_letter::{DeadLetters, Reason};
use super::lane::Job;
use super::order::OrderKey;
use super::pipeline::{Pipeline, SinkSlot};
use super::stop::Stop;
use crate::credit::Credit;
use crate::event::Event;
use crate::fence::Fence;
use crate::finalizer::{AckTo, Handle, Outcome};
use crate::ops::metrics::{Component, Source as Gauges};

/// Polling interval of a drain's end condition, where no event signals it.
pub(super) const DRAIN_POLL: Duration = Duration::from_millis(5);

/// A source's connection to the lanes.
#[derive(Clone)]
pub struct Feed {
    /// The configured name.
    pub(super) source: Arc<str>,
    /// All pipelines of this source.
    pub(super) pipelines: Vec<Arc<Pipeline>>,
    pub(super) lanes: Vec<mpsc::UnboundedSender<Job>>,
    pub(super) credit: Arc<Credit>,
    pub(super) dead_letters: DeadLetters,
    pub(super) metrics: Arc<Component>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) recoveries: watch::Receiver<u64>,
    /// For events without a fence of their own. It falls when the source's work passes to a successor.
    pub(super) fence: Arc<Fence>,
}

impl Feed {
    pub fn credit(&self) -> &Arc<Credit> {
        &self.credit
    }

    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Counts events that the queue dropped before they were read. They are lost.
    pub fn note_missed(&self, source: &str, events: u64) {
        if events > 0 {
            tracing::error!("source {source}: {events} events were trimmed away before they were read");
            self.gauges.count_missed(events);
        }
    }

    /// Number of node recoveries so far. A recovered node may have lost its memory.
    pub fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.clone()
    }

    /// Hands the event to every pipeline of the source.
    pub fn emit(&self, mut event: Event, handle: Handle) {
        event.fence.get_or_insert_with(|| Arc::clone(&self.fence));
        self.metrics.receive();
        self.metrics.tap.show(&event);
        if let [only] = self.pipelines.as_slice() {
            self.send(only, event, handle);
        } else {
            for pipeline in &self.pipelines {
                self.send(pipeline, event.clone(), handle.share());
            }
            handle.resolve(Outcome::Accepted);
        }
        self.metrics.send(1);
    }

    /// As [`Feed::emit`], but parks an event that the source found unusable, with that reason.
    pub fn emit_usable(&self, event: Event, unusable: Option<String>, attempts: u32, handle: Handle) {
        let Some(text) = unusable else {
            return self.emit(event, handle);
        };
        let component = "source".to_owned();
        let reason = Reason {
            component,
            text,
            attempts,
        };
        self.park(&event, &reason, handle);
    }

    /// Parks input that cannot be made an event.
    pub fn park(&self, event: &Event, reason: &Reason, handle: Handle) {
        self.metrics.receive();
        self.dead_letters.park(&self.source, "", event, reason, handle);
        self.metrics.park();
    }

    /// Waits until nothing of this source is in flight, or draining is abandoned.
    pub async fn drained(&self, stop: &mut Stop) {
        let empty = async {
            while self.credit.in_flight() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        tokio::select! {
            () = empty => {}
            () = stop.abandoned() => {}
        }
    }

    fn send(&self, pipeline: &Arc<Pipeline>, event: Event, handle: Handle) {
        let handle = match &pipeline.dark {
            None => handle,
            // Dark pipelines do not affect the source: their share is settled at once.
            Some(room) => {
                handle.resolve(Outcome::Accepted);
                match Arc::clone(room).try_acquire_owned() {
                    Ok(room) => Handle::new(0, AckTo::Dark(room), None),
                    Err(_) => return self.metrics.miss("dark_backlog_full"),
                }
            }
        };
        let key = OrderKey::of(&event, &pipeline.order);
        let lane = &self.lanes[key.lane(self.lanes.len())];
        let reservation = |(index, slot): (usize, &SinkSlot)| Some((index, slot.running.reserve()?));
        let reservations = pipeline.sinks.iter().enumerate().filter_map(reservation).collect();
        // A dead lane drops the job, which releases the event.
        let _ = lane.send(Job {
            pipeline: Arc::clone(pipeline),
            event,
            key,
            handle,
            reservations,
        });
    }
}
