//! How a worker's subscribers are connected: figures that each worker keeps in its slot, outside of the lock.
//!
//! Only the slot's own process writes them, one aligned word at a time, so any other may read them at any moment.

use std::time::Duration;

use super::Worker;
use super::layout::{CONNECTION_COUNTS, SlotRef, slot};
use super::memory::Memory;

/// How a subscriber is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Streaming,
    EventSource,
    WebSocket,
    /// It waits for one answer.
    LongPolling,
}

impl Mode {
    /// Those that can do without a request come first.
    pub const ALL: [Mode; 4] = [Mode::Streaming, Mode::EventSource, Mode::WebSocket, Mode::LongPolling];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Streaming => "streaming",
            Mode::EventSource => "eventsource",
            Mode::WebSocket => "websocket",
            Mode::LongPolling => "long-polling",
        }
    }
}

/// Why a subscriber that could do without its request of nginx keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachReason {
    /// `push_stream_detach off`.
    Directive,
    /// HTTP/2 or HTTP/3: the connection belongs to several requests.
    Protocol,
    /// A filter takes part in its answer, as gzip.
    Filter,
    LimitRate,
    /// A module wants to be told when the request ends, as limit_conn.
    Cleanup,
    /// Something else works on the request, as a mirrored one.
    Subrequest,
    /// The client is still sending a body.
    Body,
    /// The client has already sent the beginning of its next request.
    Pipelined,
    /// Bytes wait in nginx: until they are sent, or this event is handled.
    Unsent,
}

impl AttachReason {
    pub const ALL: [AttachReason; 9] = [
        AttachReason::Directive,
        AttachReason::Protocol,
        AttachReason::Filter,
        AttachReason::LimitRate,
        AttachReason::Cleanup,
        AttachReason::Subrequest,
        AttachReason::Body,
        AttachReason::Pipelined,
        AttachReason::Unsent,
    ];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            AttachReason::Directive => "directive",
            AttachReason::Protocol => "protocol",
            AttachReason::Filter => "filter",
            AttachReason::LimitRate => "limit_rate",
            AttachReason::Cleanup => "cleanup",
            AttachReason::Subrequest => "subrequest",
            AttachReason::Body => "body",
            AttachReason::Pipelined => "pipelined",
            AttachReason::Unsent => "unsent",
        }
    }
}

/// How a subscriber is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Without a request of nginx.
    Detached(Mode),
    /// With one; long polls always.
    Attached(Mode, Option<AttachReason>),
}

/// How many subscribers of a worker are connected in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections([u32; CONNECTION_COUNTS]);

const DETACHABLE: usize = 3;
const FIRST_ATTACHED: usize = DETACHABLE;
const FIRST_REASON: usize = FIRST_ATTACHED + Mode::ALL.len();
const _: () = assert!(FIRST_REASON + AttachReason::ALL.len() == CONNECTION_COUNTS);

impl Connections {
    /// Those without a request of nginx. None wait for one answer.
    pub fn detached(&self, mode: Mode) -> u32 {
        self.0[..DETACHABLE].get(mode as usize).copied().unwrap_or(0)
    }

    /// Those with a request of nginx.
    pub fn attached(&self, mode: Mode) -> u32 {
        self.0[FIRST_ATTACHED + mode as usize]
    }

    /// Those of the attached that are it for this reason.
    pub fn attached_for(&self, reason: AttachReason) -> u32 {
        self.0[FIRST_REASON + reason as usize]
    }

    pub(super) fn of(memory: &Memory, slot: SlotRef) -> Connections {
        Connections(std::array::from_fn(|index| {
            memory.peek(slot, slot::connection_counts.nth(index))
        }))
    }

    pub(super) fn clear(memory: &Memory, slot: SlotRef) {
        for index in 0..CONNECTION_COUNTS {
            memory.init(slot, slot::connection_counts.nth(index), 0);
        }
        memory.init(slot, slot::stretch_us, 0);
    }
}

impl Worker {
    /// Counts a subscriber that is connected in this way.
    pub fn count_in(&self, connection: Connection) {
        self.count_connection(connection, |count| count.wrapping_add(1));
    }

    /// Forgets one that [`Worker::count_in`] counted.
    pub fn count_out(&self, connection: Connection) {
        self.count_connection(connection, |count| count.saturating_sub(1));
    }

    /// Tells how long this worker did not look for events while it delivered; the longest is kept.
    pub fn note_stretch(&self, stretch: Duration) {
        let stretch_us = u32::try_from(stretch.as_micros()).unwrap_or(u32::MAX);
        if stretch_us > self.memory().peek(self.own_slot(), slot::stretch_us) {
            self.memory().init(self.own_slot(), slot::stretch_us, stretch_us);
        }
    }

    fn count_connection(&self, connection: Connection, change: impl Fn(u32) -> u32) {
        let (first, second) = match connection {
            Connection::Detached(mode) => (mode as usize, None),
            Connection::Attached(mode, reason) => (
                FIRST_ATTACHED + mode as usize,
                reason.map(|reason| FIRST_REASON + reason as usize),
            ),
        };
        for index in [Some(first), second].into_iter().flatten() {
            let field = slot::connection_counts.nth(index);
            let count = self.memory().peek(self.own_slot(), field);
            self.memory().init(self.own_slot(), field, change(count));
        }
    }
}
