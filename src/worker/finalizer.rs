//! The finalizer: tells the source how an event went, once, over all its pipelines.
//!
//! Every pipeline that works on an event holds its own [`Handle`]; all handles of one event share one finalizer. When
//! the last handle is gone the source gets the *worst* outcome, once. A handle dropped unresolved counts as
//! [`Outcome::Released`], so a dying lane, a bug, or a shutdown can delay an acknowledgement but never fake one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::credit::Permit;

/// How a pipeline ended for an event, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// Every required sink accepted it.
    Accepted = 0,
    /// A stage dropped it on purpose.
    Dropped = 1,
    /// Durably stored as a dead letter, or its source will store it.
    Parked = 2,
    /// Outcome unknown; it must be delivered again.
    Released = 3,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Accepted, Self::Dropped, Self::Parked, Self::Released];

    /// May the source forget the event?
    pub fn is_settled(self) -> bool {
        self < Self::Released
    }
}

/// The combined outcome of one event over all its pipelines.
#[derive(Debug)]
pub struct Ack {
    /// The number the source gave at [`Handle::new`].
    pub ticket: u64,
    pub outcome: Outcome,
    /// Why it was parked.
    pub parked: Option<Box<Parked>>,
}

/// Why an event was parked, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Empty if the event reached no pipeline.
    pub pipeline: String,
    /// The event's id.
    pub id: String,
    /// The stage or sink; or `source`.
    pub component: String,
    pub text: String,
    /// Number of attempts.
    pub attempts: u32,
}

/// The receiver of the outcome.
#[derive(Debug)]
pub enum AckTo {
    /// A source that keeps order over its acknowledgements.
    Queue(mpsc::UnboundedSender<Ack>),
    /// A source that stores parked events with its broker itself before it acknowledges.
    Broker(mpsc::UnboundedSender<Ack>),
    /// A source that first decides whether to retry, and then stores and logs parked events itself.
    Recorded(mpsc::UnboundedSender<Ack>),
    /// An observer that tracks the event by other means.
    Taker(Arc<dyn TakeAck>),
    /// No receiver.
    Nobody,
    /// No receiver; the permit bounds how many of these are in flight.
    Dark(OwnedSemaphorePermit),
}

/// Receives outcomes on any thread.
pub trait TakeAck: std::fmt::Debug + Send + Sync {
    fn take(&self, ack: Ack);
}

/// One share in an event's outcome.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    resolved: bool,
}

#[derive(Debug)]
struct Shared {
    ticket: u64,
    worst: AtomicU8,
    parked: Mutex<Option<Box<Parked>>>,
    to: AckTo,
    /// Credit that ends with the event, for sources that do not hold it until a durable acknowledgement.
    permit: Option<Permit>,
}

impl Handle {
    pub fn new(ticket: u64, to: AckTo, permit: Option<Permit>) -> Self {
        let shared = Shared {
            ticket,
            worst: AtomicU8::new(Outcome::Accepted as u8),
            parked: Mutex::new(None),
            to,
            permit,
        };
        Self {
            shared: Arc::new(shared),
            resolved: false,
        }
    }

    /// A further share, resolved separately.
    pub fn share(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            resolved: false,
        }
    }

    pub fn resolve(mut self, outcome: Outcome) {
        self.shared.record(outcome);
        self.resolved = true;
    }

    /// [`Outcome::Parked`], with the reason for the receiver.
    pub fn resolve_parked(self, parked: Parked) {
        self.shared.parked.lock().get_or_insert_with(|| Box::new(parked));
        self.resolve(Outcome::Parked);
    }

    /// Does the source itself store parked events?
    pub fn is_parked_by_source(&self) -> bool {
        matches!(self.shared.to, AckTo::Broker(_) | AckTo::Recorded(_))
    }

    /// Does the source also log them?
    pub fn is_told_by_source(&self) -> bool {
        matches!(self.shared.to, AckTo::Recorded(_))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.resolved {
            self.shared.record(Outcome::Released);
        }
    }
}

impl Shared {
    fn record(&self, outcome: Outcome) {
        // Relaxed: the final read happens after the last `Arc` drop, which orders all earlier writes before it.
        self.worst.fetch_max(outcome as u8, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let outcome = Outcome::ALL[usize::from(*self.worst.get_mut())];
        let ack = Ack {
            ticket: self.ticket,
            outcome,
            parked: self.parked.get_mut().take(),
        };
        // The receiver may send the next event at once: return its credit first.
        drop(self.permit.take());
        // A receiver that is gone needs no outcome.
        match std::mem::replace(&mut self.to, AckTo::Nobody) {
            AckTo::Queue(queue) | AckTo::Broker(queue) | AckTo::Recorded(queue) => drop(queue.send(ack)),
            AckTo::Taker(taker) => taker.take(ack),
            AckTo::Nobody | AckTo::Dark(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Handle, mpsc::UnboundedReceiver<Ack>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Handle::new(9, AckTo::Queue(tx), None), rx)
    }

    #[test]
    fn the_worst_outcome_of_all_shares_is_told_once() {
        let (first, mut acks) = pair();
        let second = first.share();
        let parked = Parked {
            pipeline: "p".into(),
            id: "1-1".into(),
            component: "stage route".into(),
            text: "no channel".into(),
            attempts: 1,
        };
        second.resolve_parked(parked.clone());
        assert!(acks.try_recv().is_err(), "one share is still open");
        first.resolve(Outcome::Accepted);
        let ack = acks.try_recv().unwrap();
        assert_eq!(
            (ack.ticket, ack.outcome, ack.parked.as_deref()),
            (9, Outcome::Parked, Some(&parked))
        );
        assert!(acks.try_recv().is_err());
    }

    #[test]
    fn a_handle_dropped_without_a_word_is_never_an_acknowledgement() {
        let (first, mut acks) = pair();
        first.share().resolve(Outcome::Accepted);
        drop(first);
        let outcome = acks.try_recv().unwrap().outcome;
        assert_eq!(outcome, Outcome::Released);
        assert!(!outcome.is_settled());
    }
}
