//! Messages taken from the store for this worker's subscribers and not handed out yet.

use std::collections::VecDeque;

use push_stream_core::store::Batch;

use super::channel_queue::ChannelQueues;
use super::ordered::Ordered;
use super::subscriber::SubscriberId;

/// Messages taken from the store and not handed out yet.
#[derive(Default)]
pub struct Inbox {
    pub queues: ChannelQueues,
    pub batch: Batch,
    pub scratch: Vec<u8>,
    /// Readers that resume in order, and their messages.
    pub ordered: Ordered,
    /// There may be more in the store.
    pub dirty: bool,
    /// Messages came since the last tick.
    pub taken: bool,
    /// Subscribers in replay that are not waiting for their socket.
    pub catching_up: VecDeque<SubscriberId>,
    /// Streams over HTTP/2 with frames that wait for the end of the slice.
    pub gathered: Vec<SubscriberId>,
    /// Pieces held for other channels of the same subscribers.
    pub coalescer: Coalescer,
}

impl Inbox {
    /// Are all messages that were taken handed out?
    pub fn is_handed_out(&self) -> bool {
        self.queues.is_empty() && self.ordered.is_idle()
    }

    /// Drops messages that are not handed out.
    pub fn forget(&mut self) {
        let mut ordered = std::mem::take(&mut self.ordered);
        ordered.forget_messages();
        // Keep the coalescer: held pieces are still to be sent.
        let coalescer = std::mem::take(&mut self.coalescer);
        *self = Inbox {
            dirty: true,
            ordered,
            coalescer,
            ..Inbox::default()
        };
    }
}

/// Subscribers with held pieces.
#[derive(Default)]
pub struct Coalescer {
    /// Subscribers with the time since when pieces are held, the oldest first. They may have been sent since.
    pub waiting: VecDeque<(SubscriberId, u64)>,
}

impl Coalescer {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
