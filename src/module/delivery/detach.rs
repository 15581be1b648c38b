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
use push_stream_core::store::{AttachReason, Connection};

use super::contexts::{Contexts, Neighbours};
use super::ending::Ending;
use super::frames::Framing;
use super::perform::{advance, end, subscriber_event};
use super::profile::Audience;
use super::socket;
use super::state::{Delivery, PROCESS};
use super::subscriber::{Kind, SubscriberId};
use crate::ffi::optional::{self, Stat};
use crate::ffi::{lookup, panic_guard, pool};

/// May bytes bypass the output filters of this request, whose head was just sent? Returns the framing then.
///
/// # Safety
/// `r` is a valid request, `before` its contexts before its head was sent.
pub unsafe fn may_send_directly(r: *mut ngx_http_request_t, before: &Contexts) -> Result<Framing, AttachReason> {
    // SAFETY: request, connection and configuration are valid.
    unsafe {
        if (*r).http_version > NGX_HTTP_VERSION_11 as ngx_uint_t {
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
        let now = Contexts::of(r);
        if now.0.iter().zip(harmless.0).any(|(now, harmless)| now & !harmless != 0) {
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
        let connection = (*r).connection;
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
        if is_claimed(r, neighbours) {
            return Some(AttachReason::Cleanup);
        }
        if (*connection).buffered() != 0 || !(*r).out.is_null() || is_busy_with_tls(connection) {
            return Some(AttachReason::Unsent);
        }
        None
    }
}

/// Does another module want to be told of the request's end?
unsafe fn is_claimed(r: *mut ngx_http_request_t, neighbours: Neighbours) -> bool {
    // SAFETY: as for `attach_reason`. What realip registers is also its context: it only puts the connection's own
    // address back.
    unsafe {
        let mut cleanup = (*r).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry
                .handler
                .is_some_and(|handler| handler as usize != REQUEST_GONE as usize)
            {
                return true;
            }
            cleanup = entry.next;
        }
        let realip = neighbours.realip.map(|index| (*r).ctx.add(index).read());
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry.handler.is_some() && !pool::is_own(entry) && realip != Some(entry.data) {
                return true;
            }
            cleanup = entry.next;
        }
    }
    false
}

/// Has TLS replaced the handlers of the connection's events, because a read waits for a write or the reverse?
#[cfg(ngx_feature = "ssl")]
unsafe fn is_busy_with_tls(connection: *mut ngx_connection_t) -> bool {
    // SAFETY: the connection is open.
    unsafe { (*connection).ssl.as_ref() }
        .is_some_and(|ssl| ssl.saved_read_handler.is_some() || ssl.saved_write_handler.is_some())
}

/// This nginx has no TLS.
#[cfg(not(ngx_feature = "ssl"))]
unsafe fn is_busy_with_tls(_connection: *mut ngx_connection_t) -> bool {
    false
}

/// One address of the handler, for comparisons.
pub static REQUEST_GONE: unsafe extern "C" fn(*mut c_void) = request_gone;

/// Gives the request of a subscriber back to nginx if nothing needs it any more. Must not be called while one of the
/// request's handlers is running.
pub fn detach(id: SubscriberId) {
    let Some((request, audience)) = PROCESS.with(|delivery| delivery.let_go(id)).flatten() else {
        return;
    };
    // SAFETY: the request was the subscriber's until now, and nothing else needs it; the connection stays open.
    let early = unsafe {
        let early = socket::take_early_bytes(request);
        adopt(release(request), id, &audience);
        early
    };
    if !early.is_empty() {
        socket::react(id, &early);
    }
}

/// Frees the request. Returns its connection.
unsafe fn release(r: *mut ngx_http_request_t) -> *mut ngx_connection_t {
    // SAFETY: `attach_reason` found that nothing refers to the request but the connection, whose handlers are replaced
    // next.
    unsafe {
        let connection = (*r).connection;
        let http = (*r).http_connection;
        let mut cleanup = (*r).cleanup;
        while let Some(entry) = cleanup.as_mut() {
            // The subscriber's own cleanup: it must not run, as the subscriber outlives its request.
            entry.handler = None;
            cleanup = entry.next;
        }
        ngx_http_free_request(r, 0);
        (*connection).set_destroyed(0);
        if !can_do_without_pool(connection) {
            free_header_buffers(connection, http);
        }
        connection
    }
}

/// Can the connection's pool be freed? TLS lives in it, and other modules may have registered a cleanup there.
unsafe fn can_do_without_pool(connection: *mut ngx_connection_t) -> bool {
    // SAFETY: the connection and its pool are valid.
    unsafe { (*connection).ssl.is_null() && (*(*connection).pool).cleanup.is_null() }
}

/// Frees the buffers that requests are read into, as nginx does between two requests of a connection.
unsafe fn free_header_buffers(connection: *mut ngx_connection_t, http: *mut ngx_http_connection_t) {
    // SAFETY: the buffers are in the connection's pool, and no request refers to them any more.
    unsafe {
        let pool = (*connection).pool;
        for list in [&raw mut (*http).free, &raw mut (*http).busy] {
            let mut link = std::mem::replace(&mut *list, ptr::null_mut());
            while let Some(entry) = link.as_ref() {
                ngx_pfree(pool, (*entry.buf).start.cast());
                link = entry.next;
            }
        }
        (*http).nbusy = 0;
        if let Some(buffer) = (*connection).buffer.as_ref() {
            ngx_pfree(pool, buffer.start.cast());
        }
        (*connection).buffer = ptr::null_mut();
    }
}

/// Takes over a connection whose request is freed.
unsafe fn adopt(connection: *mut ngx_connection_t, id: SubscriberId, audience: &Audience) {
    // SAFETY: the connection is open; its events are valid as long as it is.
    unsafe {
        Stat::Writing.add(1);
        if can_do_without_pool(connection) {
            drop_pool(connection, audience);
        } else if !(*connection).ssl.is_null() {
            optional::ssl_free_buffer(connection);
        }
        (*connection).data = id.to_pointer();
        (*(*connection).read).handler = Some(on_read);
        (*(*connection).write).handler = Some(on_write);
        if (*(*connection).read).ready() != 0 {
            // No further event announces input that came meanwhile.
            ngx_post_event((*connection).read, &raw mut ngx_posted_events);
        }
    }
}

/// Frees the pool of a connection, and clears the pointers into it.
unsafe fn drop_pool(connection: *mut ngx_connection_t, audience: &Audience) {
    // SAFETY: without TLS and without cleanups only these refer to the pool.
    unsafe {
        let connection = &mut *connection;
        connection.log = audience.error_log;
        (*connection.read).log = audience.error_log;
        (*connection.write).log = audience.error_log;
        connection.sockaddr = ptr::null_mut();
        connection.socklen = 0;
        connection.addr_text = ngx_str_t::empty();
        connection.local_sockaddr = ptr::null_mut();
        connection.local_socklen = 0;
        connection.proxy_protocol = ptr::null_mut();
        ngx_destroy_pool(std::mem::replace(&mut connection.pool, ptr::null_mut()));
    }
}

/// The subscriber and the connection of an event.
unsafe fn subject(event: *mut ngx_event_t) -> (SubscriberId, *mut ngx_connection_t) {
    // SAFETY: nginx passes an event of a connection that `adopt` took over.
    unsafe {
        let connection = (*event).data.cast::<ngx_connection_t>();
        (SubscriberId::from_pointer((*connection).data), connection)
    }
}

/// Read handler of a detached connection.
pub const ON_READ: unsafe extern "C" fn(*mut ngx_event_t) = on_read;
pub const ON_WRITE: unsafe extern "C" fn(*mut ngx_event_t) = on_write;

/// Read handler: the client sent something or is gone, or nginx wants the connection closed.
unsafe extern "C" fn on_read(event: *mut ngx_event_t) {
    // SAFETY: as for `subject`.
    let (id, connection) = unsafe { subject(event) };
    subscriber_event("read event of a detached subscriber", id, || {
        // SAFETY: the connection is open.
        if unsafe { (*connection).close() } != 0 {
            // worker_shutdown_timeout has passed.
            return end(id, Ending::Failed);
        }
        let socket = PROCESS.with(|delivery| {
            let subscriber = delivery.registry.slab.get(id)?;
            Some(matches!(subscriber.kind, Kind::Socket(_)))
        });
        match socket.flatten() {
            Some(true) => socket::read(id, connection),
            // SAFETY: the connection is open.
            Some(false) if unsafe { is_gone(connection) } => end(id, Ending::Gone),
            _ => {}
        }
    });
}

/// Has the client closed its side? As `ngx_http_test_reading()`. Input is left unread: no input is expected.
unsafe fn is_gone(connection: *mut ngx_connection_t) -> bool {
    // SAFETY: the connection and its event are valid.
    unsafe {
        let event = (*connection).read;
        if is_told_about_ends() {
            return (*event).pending_eof() != 0;
        }
        let mut byte = 0u8;
        let peeked = libc::recv((*connection).fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK);
        if peeked == 0 {
            return true;
        }
        if peeked < 0 {
            let error = std::io::Error::last_os_error();
            return error.kind() != std::io::ErrorKind::WouldBlock;
        }
        // A level-triggered event method would report it again and again.
        ngx_handle_read_event(event, 0);
        false
    }
}

/// Does the event method report that a client has closed its side?
#[cfg(ngx_feature = "have_epollrdhup")]
fn is_told_about_ends() -> bool {
    // SAFETY: set before any event is handled.
    unsafe { ngx_event_flags & NGX_USE_EPOLL_EVENT as ngx_uint_t != 0 && ngx_use_epoll_rdhup != 0 }
}

/// Does the event method report that a client has closed its side?
#[cfg(not(ngx_feature = "have_epollrdhup"))]
fn is_told_about_ends() -> bool {
    false
}

/// Write handler: the socket can take more, or has taken nothing for too long.
unsafe extern "C" fn on_write(event: *mut ngx_event_t) {
    // SAFETY: as for `subject`.
    let (id, _) = unsafe { subject(event) };
    subscriber_event("write event of a detached subscriber", id, || {
        // SAFETY: as above.
        if unsafe { (*event).timedout() } != 0 {
            end(id, Ending::TimedOut);
        } else {
            advance(id);
        }
    });
}

impl Delivery {
    /// Detaches a subscriber from its request, if possible; returns the request then.
    fn let_go(&mut self, id: SubscriberId) -> Option<(*mut ngx_http_request_t, Rc<Audience>)> {
        let subscriber = self.registry.slab.get(id)?;
        let before = subscriber.connected();
        let Connection::Attached(_, Some(AttachReason::Unsent)) = before else {
            return None;
        };
        let request = subscriber.request;
        let socket = matches!(subscriber.kind, Kind::Socket(_));
        // SAFETY: the subscriber is registered, so its request is alive; called from events only.
        subscriber.attach_reason = unsafe { attach_reason(request, self.neighbours, socket) };
        if subscriber.ending {
            // Keep the request: it ends with it, as its end began.
            subscriber.attach_reason = Some(AttachReason::Unsent);
        }
        let released = subscriber.attach_reason.is_none().then(|| {
            subscriber.request = ptr::null_mut();
            // SAFETY: the connection is open.
            let connection = unsafe { &*subscriber.connection };
            if connection.ssl.is_null() {
                subscriber.socket = connection.fd;
            }
            (request, subscriber.audience.clone())
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
