//! Coalescing: messages that one drain finds for a subscriber in several channels go out in one send.
//!
//! A piece is held while another channel's piece is still to be handed to the same subscriber, and then goes out in
//! front of that. It waits a moment at most: other channels may have very many subscribers.

use super::action::{Action, Delivered};
use super::ending::Ending;
use super::frames::Piece;
use super::output::Progress;
use super::state::Delivery;
use super::subscriber::{Subscriber, SubscriberId, THROUGH_CONNECTION};

/// Time for which a piece is held. It is too short to be noticed, and a drain is mostly handed out by then.
const COALESCE_MS: u64 = 5;

/// Bytes held for a subscriber: beyond that, another send costs little.
const COALESCE_BYTES: usize = 16 * 1024;

impl Delivery {
    /// Will a subscriber soon get messages from another of its channels than the current one?
    pub fn expects_more(&mut self, index: u32) -> bool {
        let queues = &self.inbox.queues;
        !queues.is_empty() && self.registry.expects(index, |membership| queues.contain(membership))
    }

    /// Takes a live piece of a subscriber that [may be made to wait](Subscriber::may_coalesce): holds it if it
    /// `expects` more, else sends it with the held pieces.
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

    /// Sends pieces that were held for long enough, or all if nothing is being handed out. Not more than `room` at
    /// once.
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
    /// May a live piece wait here for another one? Only where a plain send is all that is to be done.
    pub fn may_coalesce(&self) -> bool {
        (self.socket >= THROUGH_CONNECTION || self.has_own_tls())
            && !self.buffered()
            && self.seats.len() > 1
            && !self.ending
            && self.replay.is_none()
            && !self.send_queue.is_started()
            && !self.is_in_transit()
    }
}
