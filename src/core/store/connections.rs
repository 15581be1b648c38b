//! Connection figures: how a worker's subscribers are connected. Kept in the worker's slot, outside of the lock.
//!
//! Only the slot's own process writes them, one aligned word at a time, so other processes may read them at any time.

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
    /// Waits for one response.
    LongPolling,
}

impl Mode {
    /// The modes that can be detached come first.
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

/// Why a subscriber that could be detached keeps nginx's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachReason {
    /// `push_stream_detach off`.
    Directive,
    /// HTTP/2 or HTTP/3: the connection belongs to several requests.
    Protocol,
    /// An output filter processes the response, such as gzip.
    Filter,
    LimitRate,
    /// A module has a cleanup at the end of the request, such as limit_conn.
    Cleanup,
    /// Another activity uses the request, such as a mirrored subrequest.
    Subrequest,
    /// The client is still sending a body.
    Body,
    /// The client has already sent the beginning of its next request.
    Pipelined,
    /// Unsent bytes in nginx: until they are sent, or this event is handled.
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
    /// Without nginx's request.
    Detached(Mode),
    /// With nginx's request; long polls always.
    Attached(Mode, Option<AttachReason>),
}

/// Counts of a worker's subscribers by kind of connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections([u32; CONNECTION_COUNTS]);

const DETACHABLE: usize = 3;
const FIRST_ATTACHED: usize = DETACHABLE;
const FIRST_REASON: usize = FIRST_ATTACHED + Mode::ALL.len();
const _: () = assert!(FIRST_REASON + AttachReason::ALL.len() == CONNECTION_COUNTS);

impl Connections {
    /// Subscribers without nginx's request. Never long polls.
    pub fn detached(&self, mode: Mode) -> u32 {
        self.0[..DETACHABLE].get(mode as usize).copied().unwrap_or(0)
    }

    /// Subscribers with nginx's request.
    pub fn attached(&self, mode: Mode) -> u32 {
        self.0[FIRST_ATTACHED + mode as usize]
    }

    /// Attached subscribers, by reason.
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
    /// Counts a subscriber's connection.
    pub fn count_in(&self, connection: Connection) {
        self.count_connection(connection, |count| count.wrapping_add(1));
    }

    /// Takes back a [`Worker::count_in`].
    pub fn count_out(&self, connection: Connection) {
        self.count_connection(connection, |count| count.saturating_sub(1));
    }

    /// Records a time that this worker spent delivering without polling for events; the longest is kept.
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
