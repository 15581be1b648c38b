//! The state of a handover: sessions with other workers, and what is under way on each.

use rustc_hash::FxHashMap;

use crate::delivery::subscriber::SubscriberId;
use crate::ffi::connection::Connection;

/// Identifies a session in the data of its connection.
pub type Key = u32;

/// State of the handover in this worker.
#[derive(Default)]
pub struct Handover {
    /// The connection that receives invitations; None if the worker does not accept.
    pub listening: Option<Connection<'static>>,
    pub taking: Vec<Taking>,
    pub giving: Vec<Giving>,
    /// While subscribers are given away: the deadline.
    pub until_ms: Option<u64>,
    /// Index of the next subscriber to offer.
    pub next: u32,
    /// Losses of subscribers on offer since the offer, by index.
    pub losses: FxHashMap<u32, Loss>,
    pub given: u64,
    /// Subscribers that resume in order and whose position is not known yet: messages wait for that.
    pub unplaced: usize,
    /// Number of this worker's configuration: it gives to workers with a newer one only.
    pub cycle: u32,
    pub keys: Key,
}

impl Handover {
    /// For a worker whose configuration has number `cycle`.
    pub fn new(cycle: u32) -> Handover {
        Handover {
            cycle,
            ..Handover::default()
        }
    }

    pub fn new_key(&mut self) -> Key {
        self.keys += 1;
        self.keys
    }

    /// Must messages wait until the positions of some subscribers are known?
    pub fn is_unplaced(&self) -> bool {
        self.unplaced > 0
    }
}

/// A socket to an accepting worker.
pub struct Giving {
    pub key: Key,
    pub connection: Connection<'static>,
    pub state: State,
    /// When the other side last had something to do.
    pub since_ms: u64,
}

pub enum State {
    /// No worker has taken the invitation yet.
    Invited,
    Idle,
    Offered(Vec<SubscriberId>),
    /// Answered. The messages that the leaving worker must still deliver are being drained from the store.
    Settling(Vec<(SubscriberId, Option<u64>)>),
}

/// Channels lost by a subscriber while it was on offer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// Sequence number of the first notice that one of its channels was deleted or its subscribers were dismissed.
    pub seq: Option<u64>,
    pub dismissed: bool,
    /// Its subject was sent away.
    pub subject: bool,
}

/// A socket to a leaving worker.
pub struct Taking {
    pub key: Key,
    pub connection: Connection<'static>,
    /// Subscribers of the offer that was answered and has no rest yet; None for those not taken.
    pub arriving: Vec<Option<SubscriberId>>,
    /// When the other side last sent a message.
    pub since_ms: u64,
}
