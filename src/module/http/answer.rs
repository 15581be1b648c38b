//! Headers and answers that all roles share.

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Now;

use super::denial::Denial;
use super::request::{HeaderName, Request};
use super::token;
use crate::config::Role;
use crate::ffi::cell::ProcessCell;
use crate::ffi::panic_guard;

/// Retry-After, in seconds, for a publisher that met a full zone: the oldest messages expire by the second.
const RETRY_AFTER: &[u8] = b"1";

/// Forbids caching of the answer. nginx's `expires` replaces both headers.
pub fn add_cache_headers(r: Request<'_>) -> Result<(), Denial> {
    r.forget_entity();
    r.set_expires("Thu, 01 Jan 1970 00:00:01 GMT")?;
    Ok(r.set_cache_control("no-cache, no-store, must-revalidate")?)
}

/// Adds the CORS headers of `push_stream_allowed_origins`, if it has a value. Of several origins it names the one that
/// asks.
pub fn add_cors_headers(r: Request<'_>, methods: &'static str) -> Result<(), Denial> {
    let Some(origins) = r
        .value(r.location().allowed_origins)?
        .filter(|origins| !origins.is_empty())
    else {
        return Ok(());
    };
    let mut several = origins
        .split(|byte| matches!(byte, b',' | b' ' | b'\t'))
        .filter(|origin| !origin.is_empty());
    let origin = if several.clone().nth(1).is_none() {
        &origins[..]
    } else {
        r.add_header("Vary", b"Origin")?;
        let asking = r.header(&HeaderName::ORIGIN);
        match several.find(|origin| Some(*origin) == asking) {
            Some(origin) => origin,
            None => return Ok(()),
        }
    };
    r.add_header("Access-Control-Allow-Origin", origin)?;
    r.add_header("Access-Control-Allow-Methods", methods.as_bytes())?;
    if r.location().cors_credentials() && origin != b"*" {
        r.add_header("Access-Control-Allow-Credentials", b"true")?;
    }
    let headers: &[u8] = match r.location().gate {
        _ if r.location().role == Some(Role::SessionControl) => b"Authorization,Content-Type",
        Some(_) => b"Authorization,If-Modified-Since,If-None-Match,Etag,Event-Id,Event-Type,Last-Event-Id",
        None => b"If-Modified-Since,If-None-Match,Etag,Event-Id,Event-Type,Last-Event-Id",
    };
    r.add_header("Access-Control-Allow-Headers", headers)?;
    if r.location().tells_ids() {
        r.add_header(
            "Access-Control-Expose-Headers",
            b"Etag, X-Nginx-PushStream-Gap, X-Nginx-PushStream-Event-Id",
        )?;
    }
    Ok(())
}

/// Adds the newest event id of the channels in question, if it is known.
pub fn add_event_id(r: Request<'_>, id: Option<&[u8]>) -> Result<(), Denial> {
    match id {
        Some(id) => Ok(r.add_header("X-Nginx-PushStream-Event-Id", id)?),
        None => Ok(()),
    }
}

/// Turns any result into a handler's return value for nginx.
pub fn conclude(r: Request<'_>, result: Result<ngx_int_t, Denial>) -> ngx_int_t {
    result
        .or_else(|denial| refuse(r, denial))
        .unwrap_or_else(|denial| match denial {
            Denial::Nginx(code) => code,
            _ => {
                log(r, denial);
                NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t
            }
        })
}

/// When this worker last logged a full zone or its own missing slot, in seconds.
static LAST_TOLD: ProcessCell<u64> = ProcessCell::empty();

/// Logs a refusal that an administrator should know of. One that may hit thousands of requests is logged once a second.
pub fn log(r: Request<'_>, denial: Denial) {
    let reason = match denial {
        Denial::Internal(reason) => reason,
        Denial::Subrequest => "a subrequest cannot wait for messages: only polling is answered there",
        Denial::ZoneFull | Denial::NothingToEvict if is_first_this_second() => "shared zone is full, request refused",
        Denial::Unavailable if is_first_this_second() => "worker is not ready, request refused",
        _ => return,
    };
    ngx_log_error!(NGX_LOG_ERR, r.error_log(), "push stream: {reason}");
}

fn is_first_this_second() -> bool {
    let now = Now::read().unix_secs();
    let told = LAST_TOLD.with(|last| std::mem::replace(last, now) == now);
    if told.is_none() {
        LAST_TOLD.set(now);
    }
    told != Some(true)
}

fn refuse(r: Request<'_>, denial: Denial) -> Result<ngx_int_t, Denial> {
    if let Denial::Nginx(code) = denial {
        return Ok(code);
    }
    log(r, denial);
    if r.is_head_sent() {
        // Half an answer cannot be ended otherwise.
        return Ok(NGX_ERROR as ngx_int_t);
    }
    if let Some(explain) = denial.explain() {
        r.add_header("X-Nginx-PushStream-Explain", explain.as_bytes())?;
    }
    match denial {
        Denial::Method(allowed) => r.add_header("Allow", allowed.as_bytes())?,
        Denial::HandshakeVersion => r.add_header("Sec-WebSocket-Version", b"8, 13")?,
        Denial::NothingToEvict => r.add_header("Retry-After", RETRY_AFTER)?,
        Denial::Token(_) | Denial::NotGranted => {
            let challenge = token::challenge(denial).unwrap_or(b"Bearer");
            r.add_header("WWW-Authenticate", challenge)?;
        }
        _ => {}
    }
    if is_for_nginx(r, denial) {
        return Ok(denial.status() as ngx_int_t);
    }
    header_only(r, denial.status())
}

/// Failures are left to nginx, and so is a publish that meets a full zone if there is an `error_page` for it, as with
/// the C module.
fn is_for_nginx(r: Request<'_>, denial: Denial) -> bool {
    match denial {
        Denial::Internal(_) => true,
        Denial::ZoneFull | Denial::NothingToEvict => {
            matches!(r.location().role, Some(Role::Publisher(_))) && r.has_error_page(denial.status())
        }
        _ => false,
    }
}

/// Sends a complete answer without a body. The connection stays usable: the request's body is read and dropped.
pub fn header_only(r: Request<'_>, status: u32) -> Result<ngx_int_t, Denial> {
    r.set_status(status, Some(0));
    if r.is_stream_with_body_to_come() {
        // Read the body: nginx would reset the stream behind the answer, which some clients take for a failure.
        return Ok(r.read_body(send_header_only)?);
    }
    r.discard_body()?;
    Ok(send_prepared(r))
}

/// Sends the head as it was set, without a body.
fn send_prepared(r: Request<'_>) -> ngx_int_t {
    // SAFETY: the request is valid and its head was not sent yet.
    unsafe {
        (*r.raw()).set_header_only(1);
        ngx_http_send_header(r.raw())
    }
}

unsafe extern "C" fn send_header_only(r: *mut ngx_http_request_t) {
    // SAFETY: nginx calls this once, when it has read the body; finalizing is the last thing done with the request.
    unsafe {
        let code = panic_guard::request("refusal", || send_prepared(Request::new(r)));
        ngx_http_finalize_request(r, code);
    }
}

/// Sends a complete answer with a body of known length.
pub fn with_body(r: Request<'_>, content_type: &'static str, body: Vec<u8>) -> Result<ngx_int_t, Denial> {
    with_status(r, NGX_HTTP_OK, content_type, body)
}

/// The same with another status.
pub fn with_status(
    r: Request<'_>,
    status: u32,
    content_type: &'static str,
    body: Vec<u8>,
) -> Result<ngx_int_t, Denial> {
    r.discard_body()?;
    r.set_status(status, Some(body.len()));
    r.set_content_type(content_type);
    Ok(match r.send_head() {
        Ok(true) => r.send_body(body, true),
        Ok(false) => NGX_OK as ngx_int_t,
        Err(code) => code,
    })
}

/// Finishes a request whose body nginx has read.
///
/// # Safety
/// `r` is valid, and nothing is done with it afterwards.
pub unsafe fn go_on(r: *mut ngx_http_request_t, work: fn(Request<'_>) -> Result<ngx_int_t, Denial>) {
    // SAFETY: the request is valid until it is finalized, which is the last thing done.
    unsafe {
        let request = Request::new(r);
        let code = panic_guard::request("publish", || conclude(request, work(request)));
        ngx_http_finalize_request(r, code);
    }
}
