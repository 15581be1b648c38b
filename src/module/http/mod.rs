//! Request handlers: how each request is answered.
//!
//! * [`publisher`], [`subscriber`], [`session_control`], [`statistics`], [`console`]: one per role of a location.
//! * [`batch`]: many messages in one publisher request.
//! * [`body`]: a request's body, once nginx has read it.
//! * [`channels`]: the channels that a request names, and the checks on them.
//! * [`metrics`]: the zone's figures for monitoring systems.
//! * [`operators`]: lists and bulk operations of an admin publisher. [`subjects`]: one subject is sent away.
//! * [`pieces`]: long answers, sent piece by piece.
//! * [`denial`]: reasons for refusal, each with status and explain text.
//! * [`answer`]: headers and simple answers that all roles share.
//! * [`token`]: who may do what, by access tokens, and variables about them.
//! * [`request`]: this module's view of nginx's request.

pub mod answer;
mod batch;
mod body;
mod channels;
mod console;
mod denial;
mod metrics;
mod operators;
mod pieces;
mod publisher;
pub mod request;
mod session_control;
mod statistics;
mod subjects;
pub mod subscriber;
pub mod token;

use ngx::ffi::{ngx_http_request_t, ngx_int_t};

use crate::ffi::panic_guard;
use request::Request;

macro_rules! handlers {
    ($($(#[$doc:meta])* $name:ident = $entry:literal $handle:path;)*) => {$(
        $(#[$doc])*
        pub unsafe extern "C" fn $name(r: *mut ngx_http_request_t) -> ngx_int_t {
            // SAFETY: nginx passes a request that stays valid until the handler returns.
            panic_guard::request($entry, || $handle(unsafe { Request::new(r) }))
        }
    )*};
}

handlers! {
    /// Content handler of publisher locations.
    publisher_handler = "publisher" publisher::handle;
    /// Content handler of subscriber locations.
    subscriber_handler = "subscriber" subscriber::handle;
    /// Content handler of statistics locations.
    statistics_handler = "statistics" statistics::handle;
    /// Content handler of console locations.
    console_handler = "console" console::handle;
    /// Content handler of locations for session control.
    session_control_handler = "session control" session_control::handle;
}
