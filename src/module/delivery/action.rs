//! What is left to do for a subscriber, and the outcome of a delivery.

use std::rc::Rc;

use push_stream_core::wire::event_id::OrderedId;

use super::asking::Answered;
use super::ending::Ending;
use super::frames::Piece;
use super::subscriber::SubscriberId;

/// Work left for one subscriber once the module's state is not borrowed any more.
pub enum Action {
    /// Go on sending.
    Advance(SubscriberId),
    /// Answer the long poll with this message.
    Answer(SubscriberId, Answer),
    End(SubscriberId, Ending),
    /// Answer a request that has asked other workers.
    Resume(Answered),
}

/// A waiting long poll's answer.
pub struct Answer {
    pub piece: Piece,
    pub time: u64,
    pub tag: u32,
    /// Its event id, for a reader that resumes in order, if the id is a position.
    pub position: Option<OrderedId>,
    pub deleted: bool,
    /// Channels in which the reader missed messages while it waited.
    pub missed: Vec<Rc<[u8]>>,
}

/// Outcome of a live piece.
pub enum Delivered {
    Sent,
    Queued {
        dropped: usize,
    },
    Advance,
    /// It waits for the flush of its connection.
    Gathered,
    Cut(Ending),
}
