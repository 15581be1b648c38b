//! How and why subscribers end.

use push_stream_core::store::Counter;

/// Why a subscriber's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Footer and the end of the response.
    Regular,
    /// Writing failed.
    Failed,
    /// The client closed the connection.
    Gone,
    /// The client accepted nothing for `send_timeout`.
    TimedOut,
    /// Its queue is full.
    TooSlow,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    ClientClosed,
    /// The client sent a WebSocket close frame.
    ClientClosing,
    /// The client violated the WebSocket protocol.
    Violation,
    /// The client answered no ping.
    DeadPeer,
    TimedOut,
    TooSlow,
    Failed,
    /// `push_stream_subscriber_connection_ttl`.
    Ttl,
    /// Its access token has expired.
    TokenExpired,
    ChannelDeleted,
    /// An operator dismissed all subscribers of a channel.
    Dismissed,
    /// An operator sent its subject away.
    SubjectDismissed,
    /// The nginx worker exited: a reload or a stop.
    WorkerExit,
}

impl Reason {
    pub const ALL: [Reason; 13] = [
        Reason::ClientClosed,
        Reason::ClientClosing,
        Reason::Violation,
        Reason::DeadPeer,
        Reason::TimedOut,
        Reason::TooSlow,
        Reason::Failed,
        Reason::Ttl,
        Reason::TokenExpired,
        Reason::ChannelDeleted,
        Reason::Dismissed,
        Reason::SubjectDismissed,
        Reason::WorkerExit,
    ];

    /// The name in the log and in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::ClientClosed => "client_closed",
            Reason::ClientClosing => "client_close_frame",
            Reason::Violation => "protocol_error",
            Reason::DeadPeer => "dead_peer",
            Reason::TimedOut => "timed_out",
            Reason::TooSlow => "too_slow",
            Reason::Failed => "write_failed",
            Reason::Ttl => "ttl",
            Reason::TokenExpired => "token_expired",
            Reason::ChannelDeleted => "channel_deleted",
            Reason::Dismissed => "dismissed",
            Reason::SubjectDismissed => "subject_dismissed",
            Reason::WorkerExit => "worker_exit",
        }
    }

    pub fn counter(self) -> Counter {
        match self {
            Reason::ClientClosed => Counter::ClosedByClient,
            Reason::ClientClosing => Counter::ClosedByCloseFrame,
            Reason::Violation => Counter::ClosedForViolation,
            Reason::DeadPeer => Counter::ClosedDeadPeer,
            Reason::TimedOut => Counter::ClosedTimedOut,
            Reason::TooSlow => Counter::ClosedTooSlow,
            Reason::Failed => Counter::ClosedWriteFailed,
            Reason::Ttl => Counter::ClosedTtl,
            Reason::TokenExpired => Counter::ClosedTokenExpired,
            Reason::ChannelDeleted => Counter::ClosedChannelDeleted,
            Reason::Dismissed => Counter::ClosedDismissed,
            Reason::SubjectDismissed => Counter::ClosedSubject,
            Reason::WorkerExit => Counter::ClosedWorkerExit,
        }
    }

    /// The reason of an end that had not begun regularly.
    pub fn of(ending: Ending) -> Reason {
        match ending {
            Ending::Regular => Reason::WorkerExit,
            Ending::Failed => Reason::Failed,
            Ending::Gone => Reason::ClientClosed,
            Ending::TimedOut => Reason::TimedOut,
            Ending::TooSlow => Reason::TooSlow,
        }
    }
}
