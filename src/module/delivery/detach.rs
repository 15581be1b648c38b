//! Detach: free nginx's request once the head is sent.
//!
//! After its head, an idle stream over HTTP/1 needs only its socket. Its request, with all its pools and header
//! buffers, goes back to nginx: it is logged then, as if it had ended. The connection stays, with handlers of this
//! module; without TLS even its pool is freed. A subscriber that needs the request for something keeps it
//! ([`AttachReason`]).

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::{self, AttachReason};

use super::contexts::{Contexts, Neighbours};
use super::ending::Ending;
use super::flight::Flight;
use super::frames::Framing;
use super::perform::{advance, end, subscriber_event};
use super::profile::Audience;
use super::socket;
use super::state::{Delivery, PROCESS};
use super::subscriber::{Kind, SubscriberId, THROUGH_STREAM};
use super::take_over::{self, take_over, take_over_later};
use crate::ffi::connection::{Connection, Event};
use crate::ffi::optional::{self, Stat};
use crate::ffi::release::{is_claimed, release};
use crate::ffi::stream::{self, Stream};
use crate::ffi::{lookup, panic_guard};

/// May bytes bypass the output filters of this request, whose head was just sent? Returns the framing then.
///
/// # Safety
/// `r` is a valid request, `before` its contexts before its head was sent.
pub unsafe fn may_send_directly(r: *mut ngx_http_request_t, before: &Contexts) -> Result<Framing, AttachReason> {
    // SAFETY: request, connection and configuration are valid.
    unsafe {
        if (*r).http_version > NGX_HTTP_VERSION_11 as ngx_uint_t && !stream::is_http2(r) {
            return Err(AttachReason::Protocol);
        }
        if (*r).main != r || !(*r).postponed.is_null() {
            return Err(AttachReason::Subrequest);
        }
        if (*r).limit_rate != 0 || !lookup::core_location(r).limit_rate.is_null() {
            return Err(AttachReason::LimitRate);
        }
        let mut harmless = *before;
        harmless.insert(lookup::own_index());
        if let Some(Some(index)) = PROCESS.with(|delivery| delivery.neighbours.chunked) {
            harmless.insert(index);
        }
        if Contexts::of(r).exceed(&harmless) {
            return Err(AttachReason::Filter);
        }
        Ok(if (*r).chunked() != 0 {
            Framing::Chunked
        } else {
            Framing::Raw
        })
    }
}

/// The reason why a request cannot be given back, if there is one.
///
/// # Safety
/// `r` is a valid request, and none of its handlers is running.
unsafe fn attach_reason(r: *mut ngx_http_request_t, neighbours: Neighbours, socket: bool) -> Option<AttachReason> {
    // SAFETY: request, connection and their lists are valid; cleanups end with NULL.
    unsafe {
        let connection = Connection::new((*r).connection);
        if (*r).discard_body() != 0 {
            return Some(AttachReason::Body);
        }
        if (*r).count() != 1 || (*r).blocked() != 0 || !(*r).postponed.is_null() || !(*r).posted_requests.is_null() {
            return Some(AttachReason::Subrequest);
        }
        let early = (*r).header_in.as_ref().is_some_and(|buffer| buffer.pos < buffer.last);
        if early && !socket {
            return Some(AttachReason::Pipelined);
        }
        if is_claimed(r, REQUEST_GONE, neighbours.realip) {
            return Some(AttachReason::Cleanup);
        }
        if connection.is_buffered() || !(*r).out.is_null() || connection.is_busy_with_tls() {
            return Some(AttachReason::Unsent);
        }
        None
    }
}

/// One address of the handler, for comparisons.
pub static REQUEST_GONE: unsafe extern "C" fn(*mut c_void) = request_gone;

/// Gives the request of a subscriber back to nginx if nothing needs it any more. Must not be called while one of the
/// request's handlers is running.
pub fn detach(id: SubscriberId) {
    let Some(Released {
        request,
        audience,
        stub,
        flight: _flight,
    }) = PROCESS.with(|delivery| delivery.let_go(id)).flatten()
    else {
        return take_over_later(id);
    };
    if let Some(stub) = stub {
        // SAFETY: the request was the subscriber's until now, and nothing else needs it.
        return adopt_stream(unsafe { stub.replace(request, id.to_pointer()) });
    }
    // SAFETY: the request was the subscriber's until now, and nothing else needs it; the connection stays open.
    let (early, connection) = unsafe { (socket::take_early_bytes(request), release(request)) };
    adopt(connection, id, &audience);
    take_over(connection, id, &audience, true);
    if !early.is_empty() {
        socket::react(id, &early);
    }
}

/// What a subscriber has given back.
struct Released {
    request: *mut ngx_http_request_t,
    audience: Rc<Audience>,
    /// Over HTTP/2: what takes the request's place.
    stub: Option<stream::Prepared>,
    /// What the request's filters may know until it is freed.
    flight: Option<Box<Flight>>,
}

/// Takes over a connection whose request is freed.
fn adopt(connection: Connection<'_>, id: SubscriberId, audience: &Audience) {
    Stat::Writing.add(1);
    if connection.can_do_without_pool() {
        // SAFETY: the request is freed; the subscriber has nothing in the pool.
        unsafe { connection.drop_pool(audience.error_log) };
    } else {
        optional::ssl_free_buffer(connection);
    }
    connection.set_data(id.to_pointer());
    connection.read().set_handler(on_read);
    connection.write().set_handler(on_write);
    if connection.read().is_ready() {
        // No further event announces input that came meanwhile.
        connection.read().post();
    }
}

/// The subscriber and the connection of an event.
///
/// # Safety
/// nginx passes the event, of a connection that `adopt` took over.
unsafe fn subject<'c>(event: *mut ngx_event_t) -> (SubscriberId, Connection<'c>) {
    // SAFETY: guaranteed by the caller.
    let connection = unsafe { Event::new(event).connection() };
    (SubscriberId::from_pointer(connection.data()), connection)
}

/// What a client may send.
enum Input {
    /// Records of TLS, for this module to open.
    Records,
    /// Frames of WebSocket.
    Frames,
    Nothing,
}

/// Read handler of a detached connection.
pub const ON_READ: unsafe extern "C" fn(*mut ngx_event_t) = on_read;
pub const ON_WRITE: unsafe extern "C" fn(*mut ngx_event_t) = on_write;

/// Read handler: the client sent something or is gone, or nginx wants the connection closed.
unsafe extern "C" fn on_read(event: *mut ngx_event_t) {
    // SAFETY: as for `subject`.
    let (id, connection) = unsafe { subject(event) };
    subscriber_event("read event of a detached subscriber", id, || {
        if connection.is_to_close() {
            // worker_shutdown_timeout has passed.
            return end(id, Ending::Failed);
        }
        let input = PROCESS.with(|delivery| {
            let subscriber = delivery.registry.slab.get(id)?;
            Some(match subscriber.kind {
                _ if subscriber.has_own_tls() => Input::Records,
                Kind::Socket(_) | Kind::Deflated(_) => Input::Frames,
                _ => Input::Nothing,
            })
        });
        match input.flatten() {
            Some(Input::Records) => take_over::read(id, connection),
            Some(Input::Frames) => socket::read(id, connection),
            Some(Input::Nothing) if is_gone(connection) => end(id, Ending::Gone),
            _ => {}
        }
    });
}

/// Has the client closed its side? As `ngx_http_test_reading()`. Input is left unread: no input is expected.
fn is_gone(connection: Connection<'_>) -> bool {
    if Event::is_told_about_ends() {
        return connection.read().is_at_end();
    }
    match connection.peek() {
        Ok(0) => true,
        Ok(_) => {
            // A level-triggered event method would report it again and again.
            connection.read().watch_read();
            false
        }
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Write handler: the socket can take more, or has taken nothing for too long.
unsafe extern "C" fn on_write(event: *mut ngx_event_t) {
    // SAFETY: as for `subject`.
    let (id, connection) = unsafe { subject(event) };
    subscriber_event("write event of a detached subscriber", id, || {
        if connection.write().is_timed_out() {
            end(id, Ending::TimedOut);
        } else {
            advance(id);
        }
    });
}

/// Takes over a stream whose request has a stub in its place.
fn adopt_stream(stream: Stream<'_>) {
    Stat::Writing.add(1);
    stream.connection().read().set_handler(on_stream_read);
    stream.connection().write().set_handler(on_stream_write);
}

/// The subscriber and the stream of an event.
///
/// # Safety
/// nginx passes the event, of a stream that `adopt_stream` took over.
unsafe fn stream_subject<'s>(event: *mut ngx_event_t) -> (SubscriberId, Stream<'s>) {
    // SAFETY: guaranteed by the caller.
    let stream = unsafe { Stream::of(Event::new(event).connection()) };
    (SubscriberId::from_pointer(stream.subject()), stream)
}

/// Read handler: the client has reset the stream, or the connection is at its end. There is no input.
unsafe extern "C" fn on_stream_read(event: *mut ngx_event_t) {
    // SAFETY: as for `stream_subject`.
    let (id, stream) = unsafe { stream_subject(event) };
    subscriber_event("read event of a stream", id, || {
        if stream.is_over() {
            end(id, Ending::Gone);
        }
    });
}

/// Write handler: frames were sent, or may be sent again, or none could be for too long.
unsafe extern "C" fn on_stream_write(event: *mut ngx_event_t) {
    // SAFETY: as for `stream_subject`.
    let (id, stream) = unsafe { stream_subject(event) };
    subscriber_event("write event of a stream", id, || {
        if stream.is_over() {
            end(id, Ending::Gone);
        } else if stream.connection().write().is_timed_out() {
            end(id, Ending::TimedOut);
        } else {
            advance(id);
        }
    });
}

impl Delivery {
    /// Detaches a subscriber from its request, if possible; returns the request then.
    fn let_go(&mut self, id: SubscriberId) -> Option<Released> {
        let subscriber = self.registry.slab.get(id)?;
        if !subscriber.buffered() && subscriber.send_queue.is_empty() {
            subscriber.land();
        }
        let before = subscriber.connected();
        let store::Connection::Attached(_, Some(AttachReason::Unsent)) = before else {
            return None;
        };
        let request = subscriber.request;
        let socket = subscriber.kind.is_socket();
        // SAFETY: the subscriber is registered, so its request is alive; called from events only.
        subscriber.attach_reason = unsafe { attach_reason(request, self.neighbours, socket) };
        if subscriber.ending {
            // Keep the request: it ends with it, as its end began.
            subscriber.attach_reason = Some(AttachReason::Unsent);
        }
        let mut stub = None;
        // SAFETY: as above.
        if subscriber.attach_reason.is_none() && unsafe { stream::is_http2(request) } {
            // SAFETY: as above.
            stub = unsafe { stream::Prepared::new(request) };
            if stub.is_none() {
                subscriber.attach_reason = Some(AttachReason::Unsent);
            }
        }
        let released = subscriber.attach_reason.is_none().then(|| {
            subscriber.request = ptr::null_mut();
            if stub.is_some() {
                subscriber.socket = THROUGH_STREAM;
            } else if !subscriber.connection().has_tls() {
                subscriber.set_direct_socket(subscriber.connection().fd());
            }
            Released {
                request,
                audience: subscriber.audience.clone(),
                stub,
                flight: subscriber.flight.take(),
            }
        });
        let after = subscriber.connected();
        if let Some(worker) = &self.worker {
            worker.count_out(before);
            worker.count_in(after);
        }
        released
    }
}

/// Cleanup handler: nginx frees the request, for whatever reason.
unsafe extern "C" fn request_gone(data: *mut c_void) {
    let remove = || {
        PROCESS.with(|delivery| delivery.remove(SubscriberId::from_pointer(data), Ending::Gone));
    };
    // A subscriber without its request must not stay.
    let or_abort = || panic_guard::guard("request cleanup again", || std::process::abort(), remove);
    panic_guard::guard("request cleanup", or_abort, remove);
}
