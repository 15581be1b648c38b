//! Settlement: each required sink owes an event a [`SinkAck`]; when the last one is resolved, so is the finalizer.
//!
//! A sink may acknowledge from any thread, so a sink that settles many events at once does not wake a lane for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::dead_letter::{DeadLetters, Reason};
use crate::event::Event;
use crate::finalizer::{Handle, Outcome};
use crate::ops::metrics::{Component, Metrics};

/// Outcome of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Another worker has the claim by now: nothing more was sent; the outcome is unknown.
    Released,
    /// No further attempt is made; the event must be parked.
    Refused {
        reason: String,
        attempts: u32,
    },
}

/// Names and counters for a pipeline's deliveries.
pub struct Account {
    /// Name of the source.
    pub source: String,
    pub pipeline: String,
    /// All sinks of the pipeline, in its order.
    pub sinks: Vec<SinkAccount>,
}

/// A sink of a pipeline, as its settlements see it.
pub struct SinkAccount {
    pub name: String,
    pub required: bool,
    pub metrics: Arc<Component>,
}

/// Settlement of one event in one pipeline. It holds no reference to the pipeline: a sink holding this would hold
/// itself.
struct Settlement {
    account: Arc<Account>,
    event: Arc<Event>,
    in_flight: Weak<InFlight>,
    state: Mutex<State>,
}

struct State {
    open: usize,
    /// Another worker has claimed it by now.
    is_released: bool,
    refusal: Option<Reason>,
    handle: Option<Handle>,
}

/// A sink's share in it. Dropped unresolved it counts as [`Verdict::Released`].
pub struct SinkAck {
    settlement: Arc<Settlement>,
    /// Index among the sinks of the pipeline.
    sink: usize,
    start: Instant,
    is_told: bool,
}

/// The receiver of a sink's verdict.
pub enum Reply {
    SinkAck(SinkAck),
    Waiting(oneshot::Sender<Verdict>),
}

impl Reply {
    pub fn tell(self, verdict: Verdict) {
        match self {
            Self::SinkAck(sink_ack) => sink_ack.tell(verdict),
            // The lane may have ended.
            Self::Waiting(waiting) => drop(waiting.send(verdict)),
        }
    }
}

/// All events of a lane that are in flight. Closing it releases the unsettled ones.
pub struct InFlight {
    pub dead_letters: DeadLetters,
    metrics: Arc<Metrics>,
    open: AtomicUsize,
    idle: Notify,
}

impl InFlight {
    pub fn new(dead_letters: DeadLetters, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            dead_letters,
            metrics,
            open: AtomicUsize::new(0),
            idle: Notify::new(),
        })
    }

    /// A [`SinkAck`] for each required sink of the pipeline, with its place; counts the event as in flight.
    pub fn open(self: &Arc<Self>, account: &Arc<Account>, event: &Arc<Event>, handle: Handle) -> Vec<SinkAck> {
        let required = account.sinks.iter().filter(|sink| sink.required).count();
        // Release, as in `close_one`: an observer of zero sees all effects of the settled events.
        self.open.fetch_add(1, Ordering::Release);
        let settlement = Arc::new(Settlement {
            account: Arc::clone(account),
            event: Arc::clone(event),
            in_flight: Arc::downgrade(self),
            state: Mutex::new(State {
                open: required,
                is_released: false,
                refusal: None,
                handle: Some(handle),
            }),
        });
        if required == 0 {
            settlement.conclude();
        }
        let start = Instant::now();
        let sinks = account.sinks.iter().enumerate().filter(|(_, sink)| sink.required);
        let sink_ack = |(sink, one): (usize, &SinkAccount)| {
            one.metrics.receive();
            SinkAck {
                settlement: Arc::clone(&settlement),
                sink,
                start,
                is_told: false,
            }
        };
        sinks.map(sink_ack).collect()
    }

    /// Waits until no event is in flight.
    pub async fn closed(&self) {
        while self.open.load(Ordering::Acquire) > 0 {
            self.idle.notified().await;
        }
    }

    fn close_one(&self) {
        if self.open.fetch_sub(1, Ordering::Release) == 1 {
            self.idle.notify_one();
        }
    }
}

impl SinkAck {
    pub fn sink(&self) -> usize {
        self.sink
    }

    pub fn tell(mut self, verdict: Verdict) {
        self.record(verdict);
    }

    fn record(&mut self, verdict: Verdict) {
        self.is_told = true;
        let SinkAccount { name, metrics, .. } = &self.settlement.account.sinks[self.sink];
        match &verdict {
            Verdict::Accepted => {
                metrics.send(1);
                metrics.latency.observe(self.start.elapsed());
            }
            Verdict::Released => metrics.discard(false, "released"),
            Verdict::Refused { .. } => metrics.park(),
        }
        let mut state = self.settlement.state.lock();
        match verdict {
            Verdict::Accepted => {}
            Verdict::Released => state.is_released = true,
            Verdict::Refused { reason, attempts } => {
                let component = format!("sink {name}");
                state.refusal.get_or_insert(Reason {
                    component,
                    text: reason,
                    attempts,
                });
            }
        }
        state.open -= 1;
        let is_last = state.open == 0;
        drop(state);
        if is_last {
            self.settlement.conclude();
        }
    }
}

impl Drop for SinkAck {
    fn drop(&mut self) {
        if !self.is_told {
            self.record(Verdict::Released);
        }
    }
}

impl Settlement {
    fn conclude(&self) {
        let mut state = self.state.lock();
        let (handle, refusal, is_released) = (state.handle.take(), state.refusal.take(), state.is_released);
        drop(state);
        let Some(handle) = handle else { return };
        // An abandoned lane has released everything.
        let Some(in_flight) = self.in_flight.upgrade() else {
            return;
        };
        match refusal {
            // The worker that has the claim now settles it.
            _ if is_released => handle.resolve(Outcome::Released),
            None => {
                in_flight.metrics.event_age.observe(self.event.received.elapsed());
                handle.resolve(Outcome::Accepted);
            }
            Some(reason) => {
                let Account { source, pipeline, .. } = &*self.account;
                in_flight
                    .dead_letters
                    .park(source, pipeline, &self.event, &reason, handle);
            }
        }
        in_flight.close_one();
    }
}
