//! Reasons to refuse a message or a subscription, each with status and explain text.

use ngx::ffi::*;
use push_stream_core::store::{Counter, Refusal};
use push_stream_core::token::Rejection;

/// A refusal of this module: a header-only answer, unless nginx itself refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    NoChannelId,
    ReservedChannelId,
    ChannelIdTooLong,
    EmptyPost,
    TooManyWildcardChannels,
    TooManySubscribers,
    TooManyFromAddress,
    MayNotCreate,
    TooManyChannels,
    BadCallback,
    /// The events channel: only the module itself publishes there, and it is never deleted.
    ToEventsChannel,
    FromEventsChannel,
    UnknownChannel,
    /// An invalid URI argument, and what is wrong with it.
    Argument(&'static str),
    /// No WebSocket handshake, or one of an obsolete version.
    NoHandshake,
    HandshakeVersion,
    /// A handshake with an invalid header, and which one.
    Handshake(&'static str),
    /// A method that is not allowed, and the allowed ones.
    Method(&'static str),
    /// What a console can only do with the admin API.
    AdminApiOff,
    /// A change that did not come from the console's page.
    NotFromConsole,
    /// A worker or node that the console does not have.
    NotWatched,
    /// An event id or type from the publisher with control characters, or too long.
    BadEventField,
    /// An event id or type longer than the store can hold.
    EventFieldTooLong,
    /// An event id from the publisher that is not above the newest of its channel.
    OutOfOrder,
    MessageTooLarge,
    ZoneFull,
    NothingToEvict,
    /// This worker has no slot in the zone (yet).
    Unavailable,
    /// A subrequest for a stream or a wait: its main request would wait with it.
    Subrequest,
    /// No valid access token.
    Token(Rejection),
    /// The access token does not grant the channels.
    NotGranted,
    /// No stream that is open has this session.
    UnknownSession,
    /// What is asked does not fit to how things are.
    Conflict(&'static str),
    /// Not now.
    Busy(&'static str),
    /// Another worker has not answered in time.
    Late,
    /// No memory, or a failure below; with the text for the error log.
    Internal(&'static str),
    /// An answer that nginx makes itself, with its own page.
    Nginx(ngx_int_t),
}

/// nginx's pools are out of memory.
pub const NO_MEMORY: Denial = Denial::Internal("no memory");

/// The delivery did not take a request over.
pub const NOT_ENLISTED: Denial = Denial::Internal("no memory for a subscriber");

impl Denial {
    pub fn status(self) -> u32 {
        match self {
            Denial::NoChannelId
            | Denial::ChannelIdTooLong
            | Denial::EmptyPost
            | Denial::BadCallback
            | Denial::BadEventField
            | Denial::EventFieldTooLong
            | Denial::Argument(_)
            | Denial::NoHandshake
            | Denial::Handshake(_)
            | Denial::HandshakeVersion => NGX_HTTP_BAD_REQUEST,
            Denial::Token(_) => NGX_HTTP_UNAUTHORIZED,
            Denial::NotGranted
            | Denial::ReservedChannelId
            | Denial::TooManyWildcardChannels
            | Denial::TooManySubscribers
            | Denial::TooManyFromAddress
            | Denial::MayNotCreate
            | Denial::ToEventsChannel
            | Denial::FromEventsChannel
            | Denial::AdminApiOff
            | Denial::NotFromConsole
            | Denial::TooManyChannels => NGX_HTTP_FORBIDDEN,
            Denial::UnknownChannel | Denial::NotWatched | Denial::UnknownSession => NGX_HTTP_NOT_FOUND,
            Denial::Method(_) => NGX_HTTP_NOT_ALLOWED,
            Denial::OutOfOrder | Denial::Conflict(_) => NGX_HTTP_CONFLICT,
            Denial::MessageTooLarge => NGX_HTTP_REQUEST_ENTITY_TOO_LARGE,
            Denial::NothingToEvict => NGX_HTTP_INSUFFICIENT_STORAGE,
            Denial::Unavailable | Denial::Busy(_) => NGX_HTTP_SERVICE_UNAVAILABLE,
            Denial::Late => NGX_HTTP_GATEWAY_TIME_OUT,
            Denial::ZoneFull | Denial::Subrequest | Denial::Internal(_) | Denial::Nginx(_) => {
                NGX_HTTP_INTERNAL_SERVER_ERROR
            }
        }
    }

    /// Text of `X-Nginx-PushStream-Explain`.
    pub fn explain(self) -> Option<&'static str> {
        Some(match self {
            Denial::NoChannelId => "No channel id provided.",
            Denial::ReservedChannelId => "Channel id not authorized for this method.",
            Denial::ChannelIdTooLong => "Channel id is too large.",
            Denial::EmptyPost => "Empty post requests are not allowed.",
            Denial::TooManyWildcardChannels => "Subscribed too much wildcard channels.",
            Denial::TooManySubscribers => "Subscribers limit per channel has been exceeded.",
            Denial::TooManyFromAddress => "Subscribers limit per address has been exceeded.",
            Denial::MayNotCreate => "Subscriber could not create channels.",
            Denial::TooManyChannels => "Number of channels were exceeded.",
            Denial::ToEventsChannel => "Only internal routines can change events channel.",
            Denial::FromEventsChannel => "Subscription to events channel is not allowed.",
            Denial::NoHandshake => {
                "Don't have at least one of the mandatory headers: Connection, Upgrade, Sec-WebSocket-Key and \
                 Sec-WebSocket-Version"
            }
            Denial::HandshakeVersion => "Version not supported. Supported versions: 8, 13",
            Denial::BadCallback => "Callback name is not allowed.",
            Denial::AdminApiOff => "push_stream_admin_api is off.",
            Denial::NotWatched => "The console watches no such worker or node.",
            Denial::NotFromConsole => "Only the console itself may ask for this.",
            Denial::BadEventField => "Event id and event type must have at most 255 bytes and no control characters.",
            Denial::UnknownSession => "Session does not exist.",
            Denial::Late => "The worker of the session has not answered.",
            Denial::Argument(explain)
            | Denial::Handshake(explain)
            | Denial::Conflict(explain)
            | Denial::Busy(explain) => explain,
            Denial::EventFieldTooLong => "Event id and event type must have at most 65535 bytes.",
            Denial::OutOfOrder => "Event id is out of order.",
            Denial::MessageTooLarge => "Message is too large.",
            Denial::ZoneFull | Denial::NothingToEvict => "Zone is full.",
            Denial::Unavailable => "Worker is not ready.",
            Denial::UnknownChannel => "Channel does not exist.",
            Denial::Method(_) => "Method is not allowed.",
            Denial::Subrequest => "Subrequests cannot wait for messages.",
            Denial::Token(rejection) => rejection.explain(),
            Denial::NotGranted => "Token does not grant the channels.",
            Denial::Internal(_) => "Internal error, see the error log.",
            Denial::Nginx(_) => return None,
        })
    }
}

impl Denial {
    /// The reason in one word, if a browser that is refused for it may come back later: for want of a valid token, or for
    /// a limit of this module.
    pub fn passing_reason(self) -> Option<&'static str> {
        Some(match self {
            Denial::Token(rejection) => rejection.name(),
            Denial::NotGranted => "insufficient_scope",
            Denial::ReservedChannelId => "reserved_channel_id",
            Denial::TooManyWildcardChannels => "too_many_wildcard_channels",
            Denial::TooManySubscribers => "too_many_subscribers",
            Denial::TooManyFromAddress => "too_many_from_address",
            Denial::MayNotCreate => "unknown_channel",
            Denial::TooManyChannels => "too_many_channels",
            Denial::FromEventsChannel => "events_channel",
            Denial::NothingToEvict => "zone_full",
            Denial::Unavailable => "unavailable",
            _ => return None,
        })
    }
}

impl Denial {
    /// The counter of a message refused for this reason; None if this module did not refuse it, or it cannot be
    /// counted.
    pub fn counter(self) -> Option<Counter> {
        match self {
            Denial::ZoneFull | Denial::NothingToEvict => Some(Counter::RefusedFull),
            Denial::TooManyChannels => Some(Counter::RefusedLimit),
            Denial::OutOfOrder => Some(Counter::RefusedOutOfOrder),
            Denial::ToEventsChannel | Denial::NotGranted => Some(Counter::RefusedForbidden),
            Denial::Token(_) => Some(Counter::RefusedUnauthorized),
            Denial::NoChannelId
            | Denial::ReservedChannelId
            | Denial::ChannelIdTooLong
            | Denial::EmptyPost
            | Denial::BadEventField
            | Denial::MessageTooLarge
            | Denial::EventFieldTooLong => Some(Counter::RefusedInvalid),
            _ => None,
        }
    }
}

impl Denial {
    /// The counter of a subscription refused for this reason; None if the request was not one, or nginx itself refused.
    pub fn subscriber_counter(self) -> Option<Counter> {
        match self {
            Denial::TooManyWildcardChannels
            | Denial::TooManySubscribers
            | Denial::TooManyFromAddress
            | Denial::TooManyChannels => Some(Counter::SubscriberLimit),
            Denial::Token(_) => Some(Counter::SubscriberUnauthorized),
            Denial::ReservedChannelId | Denial::MayNotCreate | Denial::FromEventsChannel | Denial::NotGranted => {
                Some(Counter::SubscriberForbidden)
            }
            Denial::ZoneFull | Denial::NothingToEvict => Some(Counter::SubscriberFull),
            Denial::Method(_) | Denial::Nginx(_) => None,
            _ if self.status() >= NGX_HTTP_INTERNAL_SERVER_ERROR => Some(Counter::SubscriberUnavailable),
            _ => Some(Counter::SubscriberInvalid),
        }
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Denial::ZoneFull,
            Refusal::NothingToEvict => Denial::NothingToEvict,
            Refusal::TooLarge => Denial::MessageTooLarge,
            Refusal::TooManyChannels => Denial::TooManyChannels,
            Refusal::TooManySubscribers => Denial::TooManySubscribers,
            Refusal::MayNotCreate => Denial::MayNotCreate,
            Refusal::EventsChannel => Denial::FromEventsChannel,
            Refusal::TooManyFromAddress => Denial::TooManyFromAddress,
            Refusal::OutOfOrder => Denial::OutOfOrder,
        }
    }
}
