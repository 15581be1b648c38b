//! What the subscribers of one location have in common once their head is sent.

use std::cell::Cell;
use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::Terms;
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::websocket;

use super::format::Format;
use crate::config::Padding;
use crate::token::PolicyId;

/// Settings and templates that the subscribers of a location share once their response head is sent. Each owns a
/// reference, so delivery needs nothing of the request.
#[derive(Debug)]
pub struct Audience {
    /// Server and location by name: stable over a reload.
    pub location: Box<[u8]>,
    pub format: Rc<Format>,
    /// Content codings for clients that accept them, the first above all.
    pub codings: Vec<Coding>,
    /// As sent; empty = none.
    pub header: Vec<u8>,
    /// As sent; empty = none.
    pub footer: Vec<u8>,
    pub ping_interval_ms: Option<u64>,
    pub ttl_ms: Option<u64>,
    pub longpolling_ttl_ms: Option<u64>,
    /// Time without acknowledgement after which the kernel drops the peer.
    pub dead_peer_timeout_ms: Option<u32>,
    pub slow_reader: SlowReader,
    /// Bytes that may wait for a slow reader.
    pub queue_bytes: usize,
    pub padding: Vec<Padding>,
    /// Handling of messages from WebSocket clients.
    pub incoming: Incoming,
    /// May their channels be changed by whoever knows the session (`push_stream_control`)?
    pub control: bool,
    /// Must a subscriber have a token?
    pub guarded: bool,
    /// How tokens are verified that clients send in operations; None: there are none.
    pub policy: Option<PolicyId>,
    /// Which channels may be subscribed to by operations.
    pub authorized_channels_only: bool,
    pub may_follow_events: bool,
    pub wildcard_max: Option<u32>,
    /// May its subscribers detach from nginx's requests?
    pub detach: bool,
    /// May their TLS be taken over from OpenSSL?
    pub detach_tls: bool,
    /// File of the disconnect log; NULL = none. Lives as long as the configuration.
    pub log_disconnect: *mut ngx_open_file_t,
    /// nginx's own settings for their connections. The log lives as long as the configuration, which nginx keeps as
    /// long as one of its connections is open.
    pub send_timeout_ms: u64,
    pub reset_timedout: bool,
    pub lingering: Lingering,
    pub lingering_timeout_ms: u64,
    pub lingering_time_ms: u64,
    pub error_log: *mut ngx_log_t,
    /// The largest minimum of the whole configuration; final once all of it was read.
    pub padding_max: Rc<Cell<u32>>,
}

/// Policy for a subscriber whose queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReader {
    /// Close its connection.
    Close,
    /// Drop the oldest messages of its queue.
    Skip,
    /// Drop all messages but the newest.
    Latest,
}

/// `lingering_close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lingering {
    Off,
    /// Only if the client may still be sending.
    On,
    Always,
}

impl Lingering {
    pub fn of(core: &ngx_http_core_loc_conf_t) -> Lingering {
        match core.lingering_close as u32 {
            NGX_HTTP_LINGERING_OFF => Lingering::Off,
            NGX_HTTP_LINGERING_ALWAYS => Lingering::Always,
            _ => Lingering::On,
        }
    }
}

/// Rules for messages from WebSocket clients.
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    pub rules: websocket::Rules,
    /// Are their messages published?
    pub publish: bool,
    pub terms: Terms,
}
