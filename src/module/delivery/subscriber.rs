//! A subscriber: one open stream or waiting request.

use std::ffi::c_void;
use std::rc::Rc;

use ngx::ffi::{ngx_connection_t, ngx_http_request_t, ngx_int_t};
use smallvec::SmallVec;

use push_stream_core::store::{self, AttachReason, Membership, Mode, Replay};
use push_stream_core::wire::event_id::OrderedId;

use super::compression::Compressed;
use super::disconnect_log::DisconnectRecord;
use super::ending::{Ending, Reason};
use super::flight::Flight;
use super::format::Transport;
use super::frames::Style;
use super::profile::Audience;
use super::send_queue::{Bound, SendQueue};
use super::tls::Tls;
use super::websocket::{Deflated, Socket};
use crate::ffi::connection::Connection;
use crate::ffi::pool;

/// Names a subscriber, also after it is gone: its place is then empty or another subscriber's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberId {
    pub index: u32,
    pub generation: u32,
}

const _: () = assert!(
    size_of::<usize>() == 8,
    "a subscriber's id travels through nginx in a pointer"
);

impl SubscriberId {
    /// The id as the data of a C callback; never NULL, because generations start at 1.
    pub fn to_pointer(self) -> *mut c_void {
        ((self.generation as usize) << 32 | self.index as usize) as *mut c_void
    }

    pub fn from_pointer(pointer: *mut c_void) -> SubscriberId {
        let number = pointer as usize;
        SubscriberId {
            index: number as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// The kind of a subscriber.
pub enum Kind {
    /// Streaming, EventSource: receives all messages until it ends.
    Stream,
    /// As a stream, compressed.
    Compressed(Compressed),
    /// WebSocket: receives as a stream, and may send.
    Socket(Box<Socket>),
    /// The same, with compressed messages in both directions.
    Deflated(Box<Deflated>),
    /// A long poll that waits for its first message. The closure sends the whole answer.
    Waiting(Box<Responder>),
    /// A poll's answer that is too long for one piece. It is in no channel.
    Answer(Box<Rest>),
}

impl Kind {
    /// Does it receive all messages until it ends?
    pub fn is_endless(&self) -> bool {
        matches!(
            self,
            Kind::Stream | Kind::Compressed(_) | Kind::Socket(_) | Kind::Deflated(_)
        )
    }

    pub fn is_socket(&self) -> bool {
        matches!(self, Kind::Socket(_) | Kind::Deflated(_))
    }

    pub fn socket(&self) -> Option<&Socket> {
        match self {
            Kind::Socket(socket) => Some(socket),
            Kind::Deflated(deflated) => Some(&deflated.socket),
            _ => None,
        }
    }

    pub fn socket_mut(&mut self) -> Option<&mut Socket> {
        match self {
            Kind::Socket(socket) => Some(socket),
            Kind::Deflated(deflated) => Some(&mut deflated.socket),
            _ => None,
        }
    }

    pub fn compressed(&self) -> Option<&Compressed> {
        match self {
            Kind::Compressed(compressed) => Some(compressed),
            Kind::Deflated(deflated) => Some(&deflated.compressed),
            _ => None,
        }
    }

    pub fn compressed_mut(&mut self) -> Option<&mut Compressed> {
        match self {
            Kind::Compressed(compressed) => Some(compressed),
            Kind::Deflated(deflated) => Some(&mut deflated.compressed),
            _ => None,
        }
    }
}

/// The parts of an answer beside its messages.
pub struct Rest {
    /// Sent between two messages.
    pub separator: &'static [u8],
    /// Sent after the last message.
    pub closing: Vec<u8>,
}

/// Due time of something that is never due.
pub const NEVER: u64 = u64::MAX;

/// Sends the answer to a waiting request; returns the code to finalize the request with. Its last argument: the
/// channels in which the client missed messages meanwhile.
pub type Responder = Box<dyn FnOnce(*mut ngx_http_request_t, Reply<'_>, &[Rc<[u8]>]) -> ngx_int_t>;

/// The answer to a waiting request.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'t> {
    Message {
        time: u64,
        tag: u32,
        /// Its event id, if the reader can resume from there.
        position: Option<OrderedId>,
        text: &'t [u8],
    },
    Deleted {
        text: &'t [u8],
    },
    TimedOut,
}

/// One open stream or waiting request. It holds all that is needed after its response head; nothing is looked up in the
/// request.
///
/// The fields that every message touches come first and fill one cache line.
#[repr(C)]
pub struct Subscriber {
    /// Messages up to this sequence number are not sent to it.
    pub joined_seq: u64,
    pub style: Rc<Style>,
    pub send_queue: SendQueue,
    pub replay: Option<Box<Replaying>>,
    /// Its record for the disconnect log.
    pub disconnect_record: Option<Box<DisconnectRecord>>,
    pub ping_due_ms: u64,
    pub audience: Rc<Audience>,
    /// The socket, if bytes may be sent to it directly: no request, no TLS, no compression. Else one
    /// of [`THROUGH_CONNECTION`] and its like.
    pub socket: i32,
    /// It has left its channels, and ends once everything is sent.
    pub ending: bool,
    /// The first reason for its end, if that has begun.
    pub end_reason: Option<Reason>,
    /// Why it keeps its request; None if it is detached, or if it waits for one answer.
    pub attach_reason: Option<AttachReason>,
    pub transit: Transit,

    /// Open as long as the subscriber is registered.
    pub connection: *mut ngx_connection_t,
    /// Alive as long as the subscriber is registered: its cleanup removes the subscriber. NULL once detached.
    pub request: *mut ngx_http_request_t,
    /// Buffers that nginx was given and has not finished with.
    pub flight: Option<Box<Flight>>,
    /// Its TLS, if that was taken over from OpenSSL.
    pub tls: Option<Box<Tls>>,
    pub kind: Kind,
    pub seats: SmallVec<[Seated; 2]>,
    pub end_due: EndDue,
    /// Its membership in its client's address if that is limited; else number 0, which no membership has.
    pub address: Membership,
    pub place: Place,
}

/// The fields that every message touches are in its first cache line.
const _: () = assert!(std::mem::offset_of!(Subscriber, connection) <= 64);

/// A subscriber's seat in one channel.
#[derive(Clone, Copy, Debug)]
pub struct Seated {
    pub membership: Membership,
    /// Index in the channel's list.
    pub position: u32,
}

/// A replay in progress; live messages wait behind it.
pub struct Replaying {
    pub replay: Replay,
    /// Ids of the path's channels.
    pub ids: Vec<Rc<[u8]>>,
    pub behind: SendQueue,
    pub first: bool,
    /// For an EventSource that resumes in order: its position, unless a replayed message carries one.
    pub position: Option<OrderedId>,
    /// The last id sent to it, or the one it resumed from.
    pub last: Option<OrderedId>,
    /// Ids up to this one are not shown: they would take the reader back.
    pub floor: Option<OrderedId>,
    /// The history of channels that it has subscribed to since; live messages wait behind that.
    pub further: Option<Box<Replaying>>,
}

impl Replaying {
    /// The last of the histories, behind which live messages wait.
    pub fn last(&mut self) -> &mut Replaying {
        let mut last = self;
        while last.further.is_some() {
            // Not `if let`, whose borrow would last.
            last = last.further.as_mut().expect("it was looked at");
        }
        last
    }

    /// The live messages that wait.
    pub fn behind(&mut self) -> &mut SendQueue {
        &mut self.last().behind
    }
}

/// Is it on its way from one worker to another? Then nothing is sent to it or read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transit {
    None,
    /// On offer to another worker.
    Leaving,
    /// Coming from another worker.
    Arriving,
    /// No other worker accepts it.
    Refused,
}

/// In place of a socket: bytes go to the connection's `send`, past the output filters.
pub const THROUGH_CONNECTION: i32 = -1;

/// In place of a socket: bytes go through the request's output filters.
pub const THROUGH_FILTERS: i32 = -2;

/// In place of a socket: bytes go to a stream over HTTP/2 that has a stub in place of its request.
pub const THROUGH_STREAM: i32 = -3;

/// In place of a socket: bytes are sealed by this module ([`Tls`]).
pub const THROUGH_TLS: i32 = -4;

/// Placeholder for no membership.
pub const NOWHERE: Membership = Membership(0);

impl Subscriber {
    /// Takes the membership of its address, for leaving it in the store now.
    pub fn take_address(&mut self) -> Option<Membership> {
        Some(std::mem::replace(&mut self.address, NOWHERE)).filter(|&address| address != NOWHERE)
    }

    /// The membership of its address, if it has one.
    pub fn share_of_address(&self) -> Option<Membership> {
        Some(self.address).filter(|&address| address != NOWHERE)
    }

    /// Does it belong to another worker, too, so that neither may send or read?
    pub fn is_in_transit(&self) -> bool {
        matches!(self.transit, Transit::Leaving | Transit::Arriving)
    }

    /// Begins its end, if it has not begun already.
    pub fn ends(&mut self, reason: Reason) {
        self.end_reason.get_or_insert(reason);
    }

    /// The reason of its end, if it was a stream.
    pub fn closing_reason(&self, ending: Ending) -> Option<Reason> {
        self.kind
            .is_endless()
            .then(|| self.end_reason.unwrap_or(Reason::of(ending)))
    }

    #[inline]
    pub fn connection(&self) -> Connection<'_> {
        // SAFETY: open as long as the subscriber is registered, and until `end` has closed it.
        unsafe { Connection::new(self.connection) }
    }

    /// Does nginx send for it, through its output filters?
    pub fn is_filtered(&self) -> bool {
        self.socket == THROUGH_FILTERS
    }

    /// Is it a stream over HTTP/2 that has given its request back?
    pub fn is_stream(&self) -> bool {
        self.socket == THROUGH_STREAM
    }

    /// Was its TLS taken over from OpenSSL?
    pub fn has_own_tls(&self) -> bool {
        self.socket == THROUGH_TLS
    }

    /// Leaves buffers that nginx still refers to with the request: it ends without the subscriber.
    pub fn leave_flight(&mut self) {
        if !self.request.is_null()
            && let Some(flight) = self.flight.take()
        {
            // SAFETY: the subscriber's request is alive.
            unsafe { pool::keep((*self.request).pool, flight) };
        }
    }

    /// The socket that bytes may be sent to directly, or [`THROUGH_CONNECTION`] and its like.
    pub fn direct_socket(&self) -> i32 {
        self.kind
            .compressed()
            .map_or(self.socket, |compressed| compressed.socket)
    }

    /// Sets the socket that bytes may be sent to directly, or [`THROUGH_CONNECTION`].
    pub fn set_direct_socket(&mut self, socket: i32) {
        match self.kind.compressed_mut() {
            Some(compressed) => compressed.socket = socket,
            None => self.socket = socket,
        }
    }

    /// Has it given its request back to nginx?
    pub fn is_detached(&self) -> bool {
        self.request.is_null()
    }

    pub fn mode(&self) -> Mode {
        match (&self.kind, self.style.format.transport) {
            (Kind::Waiting(_) | Kind::Answer(_), _) => Mode::LongPolling,
            (_, Transport::Plain) => Mode::Streaming,
            (_, Transport::EventSource) => Mode::EventSource,
            (_, Transport::WebSocket { .. }) => Mode::WebSocket,
        }
    }

    /// How it is connected, for the counters.
    pub fn connected(&self) -> store::Connection {
        let mode = self.mode();
        if self.is_detached() {
            store::Connection::Detached(mode)
        } else {
            store::Connection::Attached(mode, self.attach_reason)
        }
    }

    pub fn bound(&self, frozen: bool) -> Bound {
        Bound {
            bytes: self.audience.queue_bytes,
            policy: self.audience.slow_reader,
            frozen,
        }
    }

    /// When the timer wheel must handle it next.
    pub fn next_due_ms(&self) -> u64 {
        self.ping_due_ms.min(self.end_due.next_ms(self.is_told_of_its_end()))
    }

    /// Is it told some time before its token expires? Only in an event stream can that be no message.
    pub fn is_told_of_its_end(&self) -> bool {
        self.style.format.transport == Transport::EventSource && matches!(self.kind, Kind::Stream)
    }

    /// A message was delivered: the ping interval starts anew.
    pub fn postpone_ping(&mut self, now_ms: u64) {
        if self.ping_due_ms != NEVER
            && let Some(interval) = self.audience.ping_interval_ms
        {
            self.ping_due_ms = now_ms + interval;
        }
    }
}

/// Time over which the ends of streams are spread whose tokens expire in the same second. With a slot of the timer wheel, and
/// their own time, they are over within that second.
pub const SPREAD_MS: u64 = 700;

pub fn random_below(bound: u64) -> u64 {
    // SAFETY: takes no memory; nginx has given each worker a sequence of its own.
    unsafe { libc::rand() as u64 % bound }
}

/// When a subscriber ends, and why then: one word, of which the lowest two bits are the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndDue(u64);

/// Why a subscriber ends at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// `push_stream_subscriber_connection_ttl`, or that of long polls.
    Ttl,
    /// The end of its access token.
    Token,
    /// The same, and the subscriber was told.
    TokenTold,
}

/// Time before its end at which a subscriber is told that its token expires.
const TOLD_BEFORE_MS: u64 = 30_000;

impl EndDue {
    pub const NEVER: EndDue = EndDue(NEVER);

    pub fn new(at_ms: u64, cause: EndCause) -> EndDue {
        // Beyond this lie hundreds of millions of years.
        EndDue(at_ms.min(NEVER >> 3) << 2 | cause as u64)
    }

    /// The earlier of two; None = never.
    pub fn earlier(ttl_ms: Option<u64>, token_ms: Option<u64>) -> EndDue {
        match (ttl_ms, token_ms) {
            (None, None) => EndDue::NEVER,
            (Some(ttl_ms), None) => EndDue::new(ttl_ms, EndCause::Ttl),
            (Some(ttl_ms), Some(token_ms)) if ttl_ms <= token_ms => EndDue::new(ttl_ms, EndCause::Ttl),
            (_, Some(token_ms)) => EndDue::new(token_ms, EndCause::Token),
        }
    }

    /// [`NEVER`] if there is no end.
    pub fn at_ms(self) -> u64 {
        if self == EndDue::NEVER { NEVER } else { self.0 >> 2 }
    }

    pub fn cause(self) -> EndCause {
        match self.0 & 3 {
            1 => EndCause::Token,
            2 => EndCause::TokenTold,
            _ => EndCause::Ttl,
        }
    }

    /// When there is something to do: the end, or a word about it before.
    fn next_ms(self, is_told: bool) -> u64 {
        if is_told && self.cause() == EndCause::Token {
            return self.at_ms().saturating_sub(TOLD_BEFORE_MS);
        }
        self.at_ms()
    }

    /// Is it time to tell the subscriber?
    pub fn is_to_tell(self, is_told: bool, now_ms: u64) -> bool {
        is_told && self.cause() == EndCause::Token && self.next_ms(is_told) <= now_ms
    }

    /// The same after the subscriber was told.
    pub fn told(self) -> EndDue {
        EndDue::new(self.at_ms(), EndCause::TokenTold)
    }

    /// For another worker.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// As another worker had it.
    pub fn from_word(word: u64) -> EndDue {
        EndDue(word)
    }
}

/// No subscriber.
pub const NONE: u32 = u32::MAX;

/// A subscriber's place in the timer wheel.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub slot: u16,
    pub previous: u32,
    pub next: u32,
}

/// Slot number of a subscriber that is in no slot.
pub const OUT: u16 = u16::MAX;

impl Default for Place {
    fn default() -> Self {
        Place {
            slot: OUT,
            previous: NONE,
            next: NONE,
        }
    }
}
