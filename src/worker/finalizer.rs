//! Who is told when an event is done, and how it went.
//!
//! Every pipeline that works on an event holds its own [`Handle`]; all handles of one event share one finaliser. When
//! the last of them is gone the source hears the *worst* outcome, once. A handle that is dropped without a word counts
//! as [`Outcome::Released`], so a lane that dies, a bug, or a shutdown can delay an acknowledgement but never fake one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::credit::Permit;

/// How a pipeline ended for an event, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// Every required sink took it.
    Accepted = 0,
    /// A stage left it out on purpose.
    Dropped = 1,
    /// It is durably in the dead-letter file.
    Parked = 2,
    /// Nothing is known; it must be delivered again.
    Released = 3,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Accepted, Self::Dropped, Self::Parked, Self::Released];

    /// May the source forget the event?
    pub fn is_settled(self) -> bool {
        self < Self::Released
    }
}

/// The verdict on one event over all its pipelines.
#[derive(Debug)]
pub struct Ack {
    /// The number the source gave at [`Handle::new`].
    pub ticket: u64,
    pub outcome: Outcome,
    /// Why it was parked.
    pub reason: Option<String>,
}

/// Where the verdict goes.
#[derive(Debug)]
pub enum AckTo {
    /// To a source that keeps order over its acknowledgements.
    Queue(mpsc::UnboundedSender<Ack>),
    /// To whoever waits for this very event.
    Reply(oneshot::Sender<Ack>),
    /// Nobody wants to know.
    Nobody,
}

/// One share in an event.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    resolved: bool,
}

#[derive(Debug)]
struct Shared {
    ticket: u64,
    worst: AtomicU8,
    reason: Mutex<Option<String>>,
    to: AckTo,
    /// Credit that ends with the event, for sources that do not hold it until a durable acknowledgement.
    _permit: Option<Permit>,
}

impl Handle {
    pub fn new(ticket: u64, to: AckTo, permit: Option<Permit>) -> Self {
        let shared = Shared {
            ticket,
            worst: AtomicU8::new(Outcome::Accepted as u8),
            reason: Mutex::new(None),
            to,
            _permit: permit,
        };
        Self {
            shared: Arc::new(shared),
            resolved: false,
        }
    }

    /// A further share, to be resolved on its own.
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

    /// [`Outcome::Parked`], with the reason for whoever waits.
    pub fn resolve_parked(self, reason: &str) {
        self.shared.reason.lock().get_or_insert_with(|| reason.to_owned());
        self.resolve(Outcome::Parked);
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
            reason: self.reason.get_mut().take(),
        };
        // A receiver that is gone has stopped caring.
        match std::mem::replace(&mut self.to, AckTo::Nobody) {
            AckTo::Queue(queue) => drop(queue.send(ack)),
            AckTo::Reply(reply) => drop(reply.send(ack)),
            AckTo::Nobody => {}
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
        second.resolve_parked("no channel");
        assert!(acks.try_recv().is_err(), "one share is still open");
        first.resolve(Outcome::Accepted);
        let ack = acks.try_recv().unwrap();
        assert_eq!(
            (ack.ticket, ack.outcome, ack.reason.as_deref()),
            (9, Outcome::Parked, Some("no channel"))
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
