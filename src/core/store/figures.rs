//! Figures outside of the lock: counters, and how a worker's subscribers are connected.
//!
//! A counter is summed over all workers of all generations, since the zone was created. It is one atomic word, so that a
//! death loses at most what a worker had not added yet. Workers accumulate per-subscriber counts locally, and add the
//! sums here.
//!
//! Connections are counted in the worker's slot. Only the slot's own process writes them, one aligned word at a time, so
//! other processes may read them at any time.

use super::layout::{CONNECTION_COUNTS, COUNTERS, FANOUT_BUCKETS, FANOUT_FIRST, FANOUT_SUM};

/// Declares the counters, each with its number in the zone, and a list of them.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A counter. Its number is its place in the zone, and stays when others are added or removed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $name = $number,)*
        }

        impl Counter {
            pub const ALL: &[Counter] = &[$(Counter::$name),*];
        }

        const _: () = {
            $(assert!($number < FANOUT_SUM);)*
        };
    };
}

counters! {
    /// Messages delivered, counted per subscriber.
    Delivered = 0,
    /// Subscribers that were sent a gap notice.
    GapNotice = 1,
    /// Slow readers whose connection was closed.
    SlowClose = 2,
    /// Slow readers that skipped their oldest messages, once for each time that room was made.
    SlowSkip = 3,
    /// Slow readers that skipped all but the newest message.
    SlowLatest = 4,
    /// Workers signalled by another process.
    WakeupSignal = 5,
    /// Workers that had messages of their own to take.
    WakeupOwn = 6,
    /// Workers that found messages in the tick, without a signal.
    WakeupTimer = 7,
    /// Messages refused: the zone is full.
    RefusedFull = 8,
    /// A limit, such as that of channels.
    RefusedLimit = 9,
    /// The request or line was not a valid message.
    RefusedInvalid = 10,
    /// The channel does not accept publishers.
    RefusedForbidden = 11,
    /// An earlier line of the same batch was refused.
    RefusedDependency = 12,
    /// The event id was not above the channel's newest.
    RefusedOutOfOrder = 13,
    /// Messages skipped because their id was already accepted.
    Duplicate = 14,
    /// Subscriptions refused: a limit, such as that of subscribers of a channel.
    SubscriberLimit = 15,
    /// The subscriber may not follow or create the channel.
    SubscriberForbidden = 16,
    /// The request was not a valid subscription.
    SubscriberInvalid = 17,
    /// The zone is full.
    SubscriberFull = 18,
    /// The worker could not serve the subscriber.
    SubscriberUnavailable = 19,
    /// Streams ended, by cause.
    ClosedByClient = 20,
    ClosedByCloseFrame = 21,
    ClosedForViolation = 22,
    ClosedDeadPeer = 23,
    ClosedTimedOut = 24,
    ClosedTooSlow = 25,
    ClosedWriteFailed = 26,
    ClosedTtl = 27,
    ClosedChannelDeleted = 28,
    ClosedDismissed = 29,
    ClosedWorkerExit = 30,
    /// Subscribers that a leaving worker handed over to another one.
    HandedOver = 31,
    /// Streams ended with their access token.
    ClosedTokenExpired = 32,
    /// Subscriptions and messages refused: no valid access token.
    SubscriberUnauthorized = 33,
    RefusedUnauthorized = 34,
    /// Times that a changed file of keys or revocations could not be read.
    TokenFileBad = 35,
    /// Detached subscribers whose TLS was taken over from OpenSSL.
    TlsTakenOver = 36,
    /// Detached subscribers whose TLS stays with OpenSSL for good: another version or suite, early data, kTLS.
    TlsKeptProtocol = 37,
    /// Their secrets were not learned.
    TlsKeptUnknown = 38,
    /// They stay with OpenSSL for now: half a record is on its way.
    TlsKeptBusy = 39,
    /// They stay with OpenSSL for now: its records do not account for all bytes.
    TlsKeptUnaccounted = 40,
    /// Bytes of streams and answers before and after compression in gzip, as often as they were compressed.
    CompressedIn = 41,
    CompressedOut = 42,
    /// Time of compression, in microseconds.
    CompressedUs = 43,
    /// Deliveries to compressed readers with the context of a group, and without.
    DeliveredAligned = 44,
    DeliveredUnaligned = 45,
    /// As [`Counter::CompressedIn`] and [`Counter::CompressedOut`], of WebSocket messages.
    DeflatedIn = 46,
    DeflatedOut = 47,
    /// Changes of live subscriptions: made, refused because there is no such session, refused otherwise.
    SessionChanged = 48,
    SessionUnknown = 49,
    SessionRefused = 50,
    /// Requests for a change that were not answered in time.
    SessionLate = 51,
    /// As [`Counter::CompressedIn`] and [`Counter::CompressedOut`], in zstd.
    ZstdIn = 52,
    ZstdOut = 53,
    /// Streams ended because an operator sent their subject away.
    ClosedSubject = 54,
}

const _: () = assert!(FANOUT_BUCKETS == Fanout::BOUNDS_MS.len() + 1);

/// Fan-out latency: time from a message's publication until a worker had sent it to the last of its subscribers. One
/// observation per message and worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fanout {
    /// Observations in each bucket: up to its bound and above the previous one.
    pub buckets: [u64; FANOUT_BUCKETS],
    pub sum_ms: u64,
}

impl Fanout {
    /// Upper bounds of all buckets but the last.
    pub const BOUNDS_MS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000];

    pub fn observe(&mut self, took_ms: u64) {
        self.buckets[Fanout::BOUNDS_MS.partition_point(|&bound| bound < took_ms)] += 1;
        self.sum_ms += took_ms;
    }
}

/// All counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts(pub(super) [u64; COUNTERS]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([0; COUNTERS])
    }
}

impl Counts {
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    pub fn fanout(&self) -> Fanout {
        Fanout {
            buckets: std::array::from_fn(|index| self.0[FANOUT_FIRST + index]),
            sum_ms: self.0[FANOUT_SUM],
        }
    }
}

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
pub struct Connections(pub(super) [u32; CONNECTION_COUNTS]);

const DETACHABLE: usize = 3;
pub(super) const FIRST_ATTACHED: usize = DETACHABLE;
pub(super) const FIRST_REASON: usize = FIRST_ATTACHED + Mode::ALL.len();
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
}
