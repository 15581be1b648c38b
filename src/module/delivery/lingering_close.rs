//! Lingering close: the end of a detached connection.
//!
//! After a regular end the sending side is shut down, and further input is read and dropped: closing a socket with
//! unread input would send a reset, which may destroy data that the client has not read yet. It works as in nginx
//! (`lingering_close` and the other directives of that name).

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Now;

use super::ending::Ending;
use super::profile::{Audience, Lingering};
use super::subscriber::Subscriber;
use crate::ffi::connection::{Connection, Event, Transfer, is_exiting};
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
pub fn close(subscriber: Subscriber, ending: Ending) {
    let connection = subscriber.connection();
    Stat::Writing.add(-1);
    match ending {
        Ending::Regular => return part(&subscriber),
        Ending::TimedOut => {
            tell(connection, "client timed out");
            connection.set_timed_out();
            if subscriber.audience.reset_timedout {
                connection.reset_on_close();
            }
        }
        // Half a message may be on the wire: nothing may follow it, not even the end of TLS.
        Ending::TooSlow => {
            tell(connection, "slow subscriber closed");
            connection.set_error();
        }
        Ending::Failed | Ending::Gone => connection.set_error(),
    }
    finish(connection);
}

/// Logs an event with the client's address, which nginx adds to its own lines.
fn tell(connection: Connection<'_>, what: &str) {
    if !connection.logs(NGX_LOG_INFO) {
        return;
    }
    let client = connection
        .with_socket(|socket| socket.peer_addr())
        .map_or("unix:".into(), |address| address.ip().to_string());
    ngx_log_error!(NGX_LOG_INFO, connection.log(), "push stream: {what}, client: {client}");
}

/// Ends a connection after everything was sent: shuts it down, and waits for the client's close if it may still be
/// sending.
fn part(subscriber: &Subscriber) {
    let Audience {
        lingering,
        lingering_timeout_ms,
        lingering_time_ms,
        ..
    } = *subscriber.audience;
    let connection = subscriber.connection();
    if lingering == Lingering::Off {
        return finish(connection);
    }
    let talks = subscriber.kind.is_socket() || lingering == Lingering::Always;
    if !talks && !connection.peek().is_ok_and(|unread| unread > 0) {
        return finish(connection);
    }
    // It is freed when the connection is closed.
    let lingerer = Box::new(Lingerer {
        timeout_ms: lingering_timeout_ms,
        deadline_ms: Now::read().monotonic_ms + lingering_time_ms,
    });
    connection.set_data(Box::into_raw(lingerer).cast());
    if connection.has_tls() && optional::ssl_shutdown(connection, linger) == NGX_AGAIN as ngx_int_t {
        return;
    }
    // SAFETY: the connection is open, and its data is its `Lingerer`.
    unsafe { linger(connection.raw()) };
}

/// Shuts down the sending side, and continues reading.
unsafe extern "C" fn linger(connection: *mut ngx_connection_t) {
    // SAFETY: called by `part` or, after TLS was shut down, by nginx, for an open connection whose data is its `Lingerer`.
    let connection = unsafe { Connection::new(connection) };
    panic_guard::event("lingering close", || {
        connection.read().set_handler(on_input);
        connection.write().set_handler(ngx_http_empty_handler);
        connection.write().drop_timer();
        // A worker that is told to exit need not wait for it.
        connection.set_idle();
        connection.shut_down_sending();
        // Existing input is dropped now; the event reports later input.
        connection.read().set_ready(true);
        drop_input(connection);
    });
}

unsafe extern "C" fn on_input(event: *mut ngx_event_t) {
    // SAFETY: nginx passes the read event of a connection that lingers.
    let (event, connection) = unsafe {
        let event = Event::new(event);
        (event, event.connection())
    };
    panic_guard::event("input of a closed connection", || {
        if event.is_timed_out() || connection.is_to_close() {
            finish_lingering(connection);
        } else {
            drop_input(connection);
        }
    });
}

/// Reads and drops input of a connection that lingers; closes it if the client has closed it or has taken too long.
fn drop_input(connection: Connection<'_>) {
    let mut buffer = [0u8; READ];
    for _ in 0..READS_PER_TURN {
        match connection.recv(&mut buffer) {
            Transfer::Bytes(_) => {}
            Transfer::Again => break,
            Transfer::Over => return finish_lingering(connection),
        }
    }
    // SAFETY: `part` has put it there.
    let lingerer = unsafe { &*connection.data().cast::<Lingerer>() };
    let left_ms = lingerer.deadline_ms.saturating_sub(Now::read().monotonic_ms);
    // A process that exits does not wait for further input.
    if left_ms == 0 || is_exiting() {
        return finish_lingering(connection);
    }
    let event = connection.read();
    if event.is_ready() {
        event.post_next();
    }
    event.watch_read();
    event.add_timer(left_ms.min(lingerer.timeout_ms));
}

fn finish_lingering(connection: Connection<'_>) {
    // SAFETY: `part` made the data from a box, and nothing uses it after this.
    drop(unsafe { Box::from_raw(connection.data().cast::<Lingerer>()) });
    finish(connection);
}

/// Closes the connection.
fn finish(connection: Connection<'_>) {
    if !connection.has_pool() {
        Stat::Active.add(-1);
    }
    // SAFETY: its subscriber is gone, and callers do nothing with it after this.
    unsafe { connection.close_client() };
}
