//! EventSource: a stream with a fixed content type; its framing is prepared with the location.

use ngx::ffi::ngx_int_t;

use super::{Candidate, streaming};
use crate::http::denial::Denial;

/// Starts the stream.
pub fn respond(candidate: &Candidate<'_>) -> Result<ngx_int_t, Denial> {
    candidate.r.set_content_type("text/event-stream; charset=utf-8");
    streaming::start(candidate)
}
