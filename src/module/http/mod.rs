//! What requests are answered.
//!
//! * [`publisher`], [`subscriber`], [`statistics`]: one per role of a location.
//! * [`batch`]: many messages in one request to a publisher.
//! * [`body`]: a request's body, once nginx has read it.
//! * [`channels`]: which channels a request names, and whether it may.
//! * [`metrics`]: the zone's figures for monitoring systems.
//! * [`operators`]: lists and bulk operations of an admin publisher.
//! * [`pieces`]: long answers, a piece at a time.
//! * [`denial`]: why a request is refused, with status and explain text, in one place.
//! * [`answer`]: the headers and the simple answers that all of them share.
//! * [`request`]: the request as this module sees it.

pub mod answer;
mod batch;
mod body;
mod channels;
mod denial;
mod metrics;
mod operators;
mod pieces;
mod publisher;
pub mod request;
mod statistics;
pub mod subscriber;

use ngx::ffi::{ngx_http_request_t, ngx_int_t};

use crate::ffi::panic_guard;
use request::Request;

/// Content handler of publisher locations.
pub unsafe extern "C" fn publisher_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a request that stays valid until the handler returns.
    panic_guard::request("publisher", || publisher::handle(unsafe { Request::new(r) }))
}

/// Content handler of subscriber locations.
pub unsafe extern "C" fn subscriber_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: as above.
    panic_guard::request("subscriber", || subscriber::handle(unsafe { Request::new(r) }))
}

/// Content handler of statistics locations.
pub unsafe extern "C" fn statistics_handler(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: as above.
    panic_guard::request("statistics", || statistics::handle(unsafe { Request::new(r) }))
}
