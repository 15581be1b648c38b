//! Answers made piece by piece: a long list never delays other requests, or publishers in other workers.
//!
//! A [`Source`] makes one piece at a time. A short answer goes out whole, with its length. Otherwise the answer starts
//! when enough bytes are ready, and the next piece is made when the client has taken the one before, after other events
//! have had their turn. A subrequest's answer goes out whole.

use std::ffi::c_void;
use std::ptr;

use ngx::ffi::*;
use push_stream_core::store::Worker;

use super::answer;
use super::denial::{Denial, NO_MEMORY};
use super::request::Request;
use crate::delivery;
use crate::ffi::body::Sent;
use crate::ffi::connection::{Connection, Event};
use crate::ffi::{lookup, panic_guard, pool};

/// Makes the next piece and appends it; true if there is more. It must be quick: about as long as a publish or two
/// hundred.
pub type Source = Box<dyn FnMut(&mut Worker, &mut Vec<u8>) -> Result<bool, Denial>>;

/// Bytes collected before an answer of unknown length starts.
const PIECE: usize = 64 * 1024;

/// An answer in progress.
struct Pieces {
    source: Source,
    content_type: &'static str,
    /// Bytes made, and not yet passed to nginx.
    ready: Vec<u8>,
    /// Pieces passed to nginx, as long as it needs them: a long list is never in memory as a whole.
    sent: Vec<Sent>,
    started: bool,
}

/// Answers with the pieces of `source`. The request's body was read, or is not needed.
pub fn answer(r: Request<'_>, content_type: &'static str, source: Source) -> Result<ngx_int_t, Denial> {
    let mut pieces = Pieces {
        source,
        content_type,
        ready: Vec::new(),
        sent: Vec::new(),
        started: false,
    };
    let mut made = pieces.make()?;
    while made != Made::Last && !r.is_main() {
        // A subrequest that is not the one being sent gets no further event.
        made = pieces.make()?;
    }
    // Most answers are short: send them whole.
    if made == Made::Last {
        return answer::with_body(r, content_type, pieces.ready);
    }
    r.discard_body()?;
    // SAFETY: the request is valid; it keeps the answer until it is freed, and its context entry of this module is ours.
    unsafe {
        let raw = r.raw();
        let place = pool::place((*raw).pool, pieces).ok_or(NO_MEMORY)?;
        *lookup::context(raw) = place.as_ptr().cast::<c_void>();
        if (*raw).discard_body() == 0 {
            (*raw).read_event_handler = Some(ngx_http_test_reading);
        }
        (*raw).write_event_handler = Some(go_on);
        (*(*raw).main).set_count((*(*raw).main).count() + 1);
        go_on_later(
            Connection::new((*raw).connection).write(),
            lookup::core_location(raw).send_timeout,
        );
    }
    Ok(NGX_DONE as ngx_int_t)
}

/// Result of [`Pieces::make`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Some,
    Last,
}

impl Pieces {
    fn make(&mut self) -> Result<Made, Denial> {
        let Pieces { source, ready, .. } = self;
        let more = delivery::with_store(|worker| source(worker, ready)).ok_or(Denial::Unavailable)??;
        Ok(if more { Made::Some } else { Made::Last })
    }

    /// Makes a piece and passes it to nginx once there are enough bytes. Returns the code to finalize the request with,
    /// if it is finished.
    fn turn(&mut self, r: Request<'_>) -> Result<Option<ngx_int_t>, Denial> {
        let last = self.make()? == Made::Last;
        if !self.started {
            if last {
                let code = answer::with_body(r, self.content_type, std::mem::take(&mut self.ready))?;
                return Ok(Some(code));
            }
            if self.ready.len() < PIECE {
                return Ok(None);
            }
            self.started = true;
            r.set_status(NGX_HTTP_OK, None);
            r.set_content_type(self.content_type);
            match r.send_head() {
                Ok(true) => {}
                Ok(false) => return Ok(Some(NGX_OK as ngx_int_t)),
                Err(code) => return Ok(Some(code)),
            }
        }
        if !last && self.ready.len() < PIECE {
            return Ok(None);
        }
        let code = r.send_body_kept(std::mem::take(&mut self.ready), last, &mut self.sent);
        Ok((last || code == NGX_ERROR as ngx_int_t).then_some(code))
    }
}

/// Write handler: the client can take more, has taken nothing for too long, or other events have had their turn.
unsafe extern "C" fn go_on(r: *mut ngx_http_request_t) {
    let over = panic_guard::guard(
        "answer in pieces",
        || Some(NGX_ERROR as ngx_int_t),
        // SAFETY: nginx passes a valid request whose answer is in pieces.
        || unsafe { next_turn(r) },
    );
    if let Some(code) = over {
        // SAFETY: the request is valid; nothing is done with it afterwards.
        unsafe { ngx_http_finalize_request(r, code) };
    }
}

/// Returns the code to finalize the request with, if it is finished.
unsafe fn next_turn(r: *mut ngx_http_request_t) -> Option<ngx_int_t> {
    // SAFETY: request and connection are valid; the context entry was set by `answer`.
    unsafe {
        let connection = Connection::new((*r).connection);
        let (event, timeout_ms) = (connection.write(), lookup::core_location(r).send_timeout);
        if event.is_timed_out() {
            connection.set_timed_out();
            return Some(NGX_HTTP_REQUEST_TIME_OUT as ngx_int_t);
        }
        if event.is_delayed() {
            // limit_rate: nginx's timer fires again.
            event.watch_write();
            return None;
        }
        if is_full(r) {
            if ngx_http_output_filter(r, ptr::null_mut()) == NGX_ERROR as ngx_int_t {
                return Some(NGX_ERROR as ngx_int_t);
            }
            if is_full(r) {
                wait(event, timeout_ms);
                return None;
            }
        }
        let pieces = lookup::context(r).cast::<Pieces>().as_mut()?;
        match pieces.turn(Request::new(r)) {
            Ok(Some(code)) => return Some(code),
            Ok(None) => {}
            Err(denial) => return Some(answer::conclude(Request::new(r), Err(denial))),
        }
        if is_full(r) {
            wait(event, timeout_ms);
        } else {
            go_on_later(event, timeout_ms);
        }
        None
    }
}

/// Does nginx still hold unsent bytes, or delay further ones (limit_rate)?
unsafe fn is_full(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: request and connection are valid.
    let (held, connection) = unsafe {
        let held = (*r).buffered() != 0 || !(*r).postponed.is_null();
        (held, Connection::new((*r).connection))
    };
    held || connection.is_buffered() || connection.write().is_delayed()
}

/// Waits until the client can take more.
fn wait(event: Event<'_>, timeout_ms: ngx_msec_t) {
    if !event.is_delayed() {
        event.add_timer(timeout_ms as u64);
    }
    event.watch_write();
}

/// Continues after other events had their turn.
fn go_on_later(event: Event<'_>, timeout_ms: ngx_msec_t) {
    // A leaving worker waits for this timer. nginx takes the event off the queue if the connection is closed before.
    event.add_timer(timeout_ms as u64);
    event.post_next();
}
