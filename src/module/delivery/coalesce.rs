//! Coalescing: what one drain finds for a subscriber in several channels goes out in one send.
//!
//! A piece is held while another channel's is still to be handed to the same subscriber, in front of which it then goes. It
//! waits a moment at most: other channels may have very many subscribers.

use std::collections::VecDeque;

use super::frames::Piece;
use super::inbox::{Action, Delivered};
use super::output::Progress;
use super::registry::{Subscriber, SubscriberId};
use super::{Delivery, Ending};

/// How long a piece is held. Nobody notices that, and a drain is mostly handed out by then.
const COALESCE_MS: u64 = 5;

/// Bytes that are held for a subscriber: beyond that, another send costs little.
const COALESCE_BYTES: usize = 16 * 1024;

/// Subscribers for whom something is held.
#[derive(Default)]
pub struct Coalescer {
    /// Since when something is held for whom, the longest first. It may have gone out since.
    waiting: VecDeque<(SubscriberId, u64)>,
}

impl Coalescer {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Delivery {
    /// Will a subscriber get something soon from another of its channels than the one whose turn it is?
    pub fn expects_more(&mut self, index: u32) -> bool {
        let queues = &self.inbox.queues;
        !queues.is_empty() && self.registry.expects(index, |membership| queues.contain(membership))
    }

    /// Takes a live piece of a subscriber that [may be made to wait](Subscriber::may_coalesce): holds it if it `expects` more, else
    /// sends it with what was held.
    pub fn coalesce(&mut self, id: SubscriberId, piece: Piece, expects: bool, now_ms: u64) -> Delivered {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return Delivered::Sent;
        };
        let idle = subscriber.send_queue.is_empty();
        let holds = expects && subscriber.send_queue.bytes() + piece.len() <= COALESCE_BYTES;
        if idle && !holds {
            return subscriber.deliver(piece, None, now_ms);
        }
        subscriber.note_live(&piece, now_ms);
        subscriber.send_queue.push(piece);
        if holds {
            if idle {
                self.inbox.coalescer.waiting.push_back((id, now_ms));
            }
            return Delivered::Sent;
        }
        match subscriber.flush_send_queue() {
            Progress::Done => Delivered::Sent,
            Progress::Blocked => {
                subscriber.wait_writable();
                Delivered::Queued { dropped: 0 }
            }
            Progress::Failed => Delivered::Cut(Ending::Failed),
        }
    }

    /// Sends what was held for long enough, or all if nothing is being handed out. Not more than `room` at once.
    pub fn release_coalesced(&mut self, now_ms: u64, room: usize, actions: &mut Vec<Action>) {
        let all = self.inbox.queues.is_empty();
        while actions.len() < room
            && let Some(&(id, since_ms)) = self.inbox.coalescer.waiting.front()
            && (all || now_ms >= since_ms + COALESCE_MS)
        {
            self.inbox.coalescer.waiting.pop_front();
            let still = self
                .registry
                .slab
                .get(id)
                .is_some_and(|subscriber| subscriber.may_coalesce());
            actions.extend(still.then_some(Action::Advance(id)));
        }
    }
}

impl Subscriber {
    /// May a live piece wait here for another one? Only where nothing but a send is to be done.
    pub fn may_coalesce(&self) -> bool {
        self.flight.is_none()
            && !self.buffered()
            && self.seats.len() > 1
            && !self.ending
            && self.replay.is_none()
            && !self.send_queue.is_started()
            && !self.is_in_transit()
    }
}
