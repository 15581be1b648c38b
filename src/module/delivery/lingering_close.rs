//! Lingering close: the end of a detached connection.
//!
//! After a regular end the sending side is shut down, and further input is read and dropped: closing a socket with
//! unread input would send a reset, which may destroy data that the client has not read yet. It works as in nginx
//! (`lingering_close` and the other directives of that name).

use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::FromRawFd;

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Now;

use super::ending::Ending;
use super::profile::{Audience, Lingering};
use super::subscriber::{Kind, Subscriber};
use crate::ffi::optional::{self, Stat};
use crate::ffi::panic_guard;

/// Bytes of input dropped at once.
const READ: usize = 4096;

/// Reads per turn, before other events get theirs.
const READS_PER_TURN: u32 = 16;

/// A connection that waits for its client to close.
struct Lingerer {
    /// Time without input after which it is closed.
    timeout_ms: u64,
    deadline_ms: u64,
}

/// Closes the connection of a detached subscriber that was just removed.
///
/// # Safety
/// The connection is the subscriber's, and open.
pub unsafe fn close(subscriber: &Subscriber, ending: Ending) {
    let connection = subscriber.connection;
    Stat::Writing.add(-1);
    // SAFETY: as the caller vouches.
    unsafe {
        match ending {
            Ending::Regular => return part(subscriber),
            Ending::TimedOut => {
                tell(connection, "client timed out");
                (*connection).set_timedout(1);
                if subscriber.audience.reset_timedout {
                    reset_on_close((*connection).fd);
                }
            }
            // Half a message may be on the wire: nothing may follow it, not even the end of TLS.
            Ending::TooSlow => {
                tell(connection, "slow subscriber closed");
                (*connection).set_error(1);
            }
            Ending::Failed | Ending::Gone => (*connection).set_error(1),
        }
        finish(connection);
    }
}

/// Logs an event with the client's address, which nginx adds to its own lines.
unsafe fn tell(connection: *mut ngx_connection_t, what: &str) {
    // SAFETY: the connection is open, and stays so: the socket is only asked for its peer.
    unsafe {
        let log = (*connection).log;
        if (*log).log_level < NGX_LOG_INFO as ngx_uint_t {
            return;
        }
        let socket = ManuallyDrop::new(TcpStream::from_raw_fd((*connection).fd));
        let client = socket
            .peer_addr()
            .map_or("unix:".into(), |address| address.ip().to_string());
        ngx_log_error!(NGX_LOG_INFO, log, "push stream: {what}, client: {client}");
    }
}

/// Ends a connection after everything was sent: shuts it down, and waits for the client's close if it may still be
/// sending.
unsafe fn part(subscriber: &Subscriber) {
    let Audience {
        lingering,
        lingering_timeout_ms,
        lingering_time_ms,
        ..
    } = *subscriber.audience;
    let connection = subscriber.connection;
    // SAFETY: the connection is open and has no subscriber any more; what its data points to is freed when it closes.
    unsafe {
        if lingering == Lingering::Off {
            return finish(connection);
        }
        let talks = matches!(subscriber.kind, Kind::Socket(_)) || lingering == Lingering::Always;
        let lingerer = (talks || has_input(connection)).then(|| Lingerer {
            timeout_ms: lingering_timeout_ms,
            deadline_ms: Now::read().monotonic_ms + lingering_time_ms,
        });
        let Some(lingerer) = lingerer else {
            return finish(connection);
        };
        (*connection).data = Box::into_raw(Box::new(lingerer)).cast();
        if !(*connection).ssl.is_null() && end_tls(connection) == NGX_AGAIN as ngx_int_t {
            return;
        }
        linger(connection);
    }
}

/// Is there unread input from the client?
unsafe fn has_input(connection: *mut ngx_connection_t) -> bool {
    let mut byte = 0u8;
    // SAFETY: the connection is open.
    unsafe { libc::recv((*connection).fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK) > 0 }
}

/// Ends TLS; on NGX_AGAIN [`linger()`] is called later.
#[cfg(ngx_feature = "ssl")]
unsafe fn end_tls(connection: *mut ngx_connection_t) -> ngx_int_t {
    // SAFETY: the connection is open and has TLS.
    unsafe {
        let code = optional::ssl_shutdown(connection);
        if code == NGX_AGAIN as ngx_int_t {
            (*(*connection).ssl).handler = Some(linger);
        }
        code
    }
}

/// This nginx has no TLS.
#[cfg(not(ngx_feature = "ssl"))]
unsafe fn end_tls(_connection: *mut ngx_connection_t) -> ngx_int_t {
    NGX_OK as ngx_int_t
}

/// Shuts down the sending side, and continues reading.
unsafe extern "C" fn linger(connection: *mut ngx_connection_t) {
    panic_guard::event("lingering close", || {
        // SAFETY: the connection is open, its data is its `Lingerer`.
        unsafe {
            let (read, write) = ((*connection).read, (*connection).write);
            (*read).handler = Some(on_input);
            (*write).handler = Some(ngx_http_empty_handler);
            if (*write).timer_set() != 0 {
                ngx_del_timer(write);
            }
            // A worker that is told to exit need not wait for it.
            (*connection).set_idle(1);
            libc::shutdown((*connection).fd, libc::SHUT_WR);
            // Existing input is dropped now; the event reports later input.
            (*read).set_ready(1);
            drop_input(connection);
        }
    });
}

unsafe extern "C" fn on_input(event: *mut ngx_event_t) {
    // SAFETY: nginx passes the read event of a connection that lingers.
    panic_guard::event("input of a closed connection", || unsafe {
        let connection = (*event).data.cast::<ngx_connection_t>();
        if (*event).timedout() != 0 || (*connection).close() != 0 {
            finish_lingering(connection);
        } else {
            drop_input(connection);
        }
    });
}

/// Reads and drops input; closes the connection if the client has closed it or has taken too long.
unsafe fn drop_input(connection: *mut ngx_connection_t) {
    let mut buffer = [0u8; READ];
    // SAFETY: the connection is open, its data is its `Lingerer`; the buffer is as long as said.
    unsafe {
        for _ in 0..READS_PER_TURN {
            let read = match (*connection).recv {
                Some(recv) => recv(connection, buffer.as_mut_ptr(), READ),
                None => NGX_ERROR as isize,
            };
            if read == NGX_AGAIN as isize {
                break;
            }
            if read <= 0 {
                return finish_lingering(connection);
            }
        }
        let lingerer = &*(*connection).data.cast::<Lingerer>();
        let left_ms = lingerer.deadline_ms.saturating_sub(Now::read().monotonic_ms);
        // A process that exits does not wait for further input.
        if left_ms == 0 || ngx_exiting != 0 || ngx_terminate != 0 {
            return finish_lingering(connection);
        }
        let event = (*connection).read;
        if (*event).ready() != 0 {
            ngx_post_event(event, &raw mut ngx_posted_next_events);
        }
        ngx_handle_read_event(event, 0);
        ngx_add_timer(event, left_ms.min(lingerer.timeout_ms) as ngx_msec_t);
    }
}

unsafe fn finish_lingering(connection: *mut ngx_connection_t) {
    // SAFETY: `part` made the data from a box, and nothing uses it after this.
    unsafe {
        drop(Box::from_raw((*connection).data.cast::<Lingerer>()));
        finish(connection);
    }
}

/// Makes the later close discard unsent bytes and send a reset.
unsafe fn reset_on_close(fd: i32) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the value is of the option's type.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

/// Closes the connection.
unsafe fn finish(connection: *mut ngx_connection_t) {
    // SAFETY: the connection is open; without a pool it has neither TLS nor anything else that nginx's function would
    // handle.
    unsafe {
        if !(*connection).pool.is_null() {
            return ngx_http_close_connection(connection);
        }
        Stat::Active.add(-1);
        (*connection).set_destroyed(1);
        ngx_close_connection(connection);
    }
}
