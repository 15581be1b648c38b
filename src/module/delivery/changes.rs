//! Changes of live subscriptions that wait for their turn.

use std::collections::VecDeque;
use std::rc::Rc;

use push_stream_core::store::{Command, Joined};
use push_stream_core::wire::control::{Change, Key, Value};

use super::subscriber::SubscriberId;

/// Commands for this worker.
#[derive(Default)]
pub struct Control {
    /// Made with the first session.
    pub key: Option<Key>,
    /// The zone has commands for this worker.
    pub waiting: bool,
    pub pending: Option<Pending>,
    /// Changes that clients of this worker have sent on their own connections, with their names of them.
    pub operations: VecDeque<(SubscriberId, Value, Change)>,
}

/// Where a change comes from.
pub enum Origin {
    Command(Command),
    Operation(SubscriberId, Value),
}

/// A change that has joined its channels, and waits for the messages before.
pub struct Pending {
    pub origin: Origin,
    pub change: Change,
    pub id: SubscriberId,
    pub joined: Option<Joined>,
    /// Ids of the channels joined.
    pub ids: Vec<Rc<[u8]>>,
    /// All messages up to the join are taken.
    pub reached: bool,
}

impl Control {
    /// Are messages taken only as far as a change needs?
    pub fn is_busy(&self) -> bool {
        self.waiting || self.pending.is_some() || !self.operations.is_empty()
    }

    /// Can the change take effect once what was taken is handed out?
    pub fn is_ready(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.reached)
    }
}
