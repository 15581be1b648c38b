//! Sending bytes to one subscriber's connection.
//!
//! There are two ways. *Direct*: framed bytes go to the connection's `send`, past the output filters; possible if no
//! filter but the chunked one affects the response. *Filtered*: a flight of buffers goes through nginx's filters
//! (gzip, HTTP/2, limit_rate), and the next one starts when all of it was taken.
//!
//! In both, a new piece is only offered when everything before it is sent; the rest waits in the [`SendQueue`], which
//! is bounded. Buffers never point into shared memory.
//!
//! [`SendQueue`]: super::send_queue::SendQueue

use std::{io, ptr};

use ngx::ffi::*;
use push_stream_core::wire::tls::{self, Alert};

use super::flight::{FLIGHT, Flight};
use super::frames::Piece;
use super::subscriber::{Subscriber, THROUGH_CONNECTION};
use super::tls::Tls;
use crate::ffi::connection::{Connection, Transfer};
use crate::ffi::{optional, stream};

/// Outcome of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All bytes were taken.
    Done,
    /// The socket is full; nginx calls the write handler when it is not.
    Blocked,
    Failed,
}

impl From<tls::Progress> for Progress {
    fn from(progress: tls::Progress) -> Progress {
        match progress {
            tls::Progress::Done => Progress::Done,
            tls::Progress::Blocked => Progress::Blocked,
            tls::Progress::Failed => Progress::Failed,
        }
    }
}

/// Bytes of several pieces that are joined into one send.
const GATHERED: usize = 64 * 1024;

/// Maximum of bytes in a TLS record (RFC 8446 §5.1).
const TLS_RECORD: usize = 16 * 1024;

/// The next step for a subscriber, to be taken outside of any borrow of this module's state.
pub enum Step {
    /// Call the output filters with this chain; NULL = let them continue with the buffers that they have.
    Filter(*mut ngx_http_request_t, *mut ngx_chain_t),
    Failed,
    /// All that was in the send queue is sent.
    Drained,
    /// Nothing can be done until the socket is writable.
    Blocked,
}

impl Subscriber {
    /// Must bytes that were offered be offered again unchanged? True over TLS.
    pub fn frozen(&self) -> bool {
        self.connection().has_tls()
    }

    /// Does nginx hold unsent bytes?
    pub fn buffered(&self) -> bool {
        if self.is_stream() {
            return self.flight.is_some();
        }
        // The head was flushed, so nothing is held back without this.
        let held = self.connection().is_buffered();
        held || self.flight.as_ref().is_some_and(|flight| flight.is_pending())
    }

    /// May a live piece be sent at once? Only if nothing waits before it.
    pub fn may_send_now(&self) -> bool {
        let can = self.socket >= THROUGH_CONNECTION || self.has_own_tls();
        can && !self.buffered() && self.send_queue.is_empty() && !self.is_in_transit()
    }

    /// Sends a live piece at once if nothing waits before it.
    pub fn send_now(&mut self, piece: &Piece) -> Option<(usize, Progress)> {
        if !self.may_send_now() {
            return None;
        }
        let (taken, progress) = self.offer(piece.bytes());
        self.count(taken);
        Some((taken, progress))
    }

    /// Sends to the socket of a detached subscriber without TLS, as nginx's own `send` does, but without reading the
    /// connection: that would be several cache lines for each message.
    pub fn send_to_socket(&self, socket: i32, bytes: &[u8]) -> (usize, Progress) {
        loop {
            let error = match Connection::send_to(socket, bytes) {
                Ok(taken) if taken == bytes.len() => return (taken, Progress::Done),
                Ok(taken) => {
                    self.connection().write().set_ready(false);
                    return (taken, Progress::Blocked);
                }
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => {
                    self.connection().write().set_ready(false);
                    return (0, Progress::Blocked);
                }
                _ => {
                    self.connection().write().set_error();
                    self.connection().log_error(&error, c"send() failed");
                    return (0, Progress::Failed);
                }
            }
        }
    }

    /// Counts sent bytes.
    pub fn count(&mut self, bytes: usize) {
        if let Some(disconnect_record) = &mut self.disconnect_record {
            disconnect_record.add_bytes(bytes);
        }
    }

    /// The next step towards an empty send queue. `attempted`: nginx's filters were called since the socket was last
    /// writable; calling them again would have no effect.
    pub fn step(&mut self, attempted: &mut bool) -> Step {
        if self.is_in_transit() {
            return Step::Blocked;
        }
        if self.is_stream() {
            return self.step_stream();
        }
        if self.has_own_tls() {
            return self.step_over_tls();
        }
        if self.buffered() {
            if *attempted {
                self.wait_writable();
                return Step::Blocked;
            }
            *attempted = true;
            return Step::Filter(self.request, ptr::null_mut());
        }
        if self.send_queue.is_empty() {
            self.land();
            self.stop_waiting();
            return Step::Drained;
        }
        if self.is_filtered() {
            *attempted = true;
            // The filters have finished with the last one.
            let chain = self.next_flight().chain();
            return Step::Filter(self.request, chain);
        }
        let progress = self.flush_send_queue();
        self.outcome(progress)
    }

    /// Starts a flight with the first pieces of the queue; nginx has finished with the last one.
    pub fn next_flight(&mut self) -> &mut Flight {
        let most = if self.is_compressed() && self.code_front() {
            1
        } else {
            FLIGHT
        };
        let waiting = self.send_queue.bytes();
        let before = self.flight.take();
        let flight = Flight::load(before, &mut self.send_queue, most);
        self.count(waiting - self.send_queue.bytes());
        self.flight.insert(flight)
    }

    /// Frees what is only needed while something is on its way: the bytes of the flight, and the buffer in which nginx
    /// collects TLS records. nginx has finished with both.
    pub fn land(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.empty();
        }
        if self.is_filtered() && self.frozen() {
            // SAFETY: an attached subscriber's request is alive.
            if let Some(carrier) = unsafe { stream::carrier(self.request) } {
                optional::ssl_free_buffer(carrier);
            }
        }
    }

    /// Sends the queue, several pieces joined into one send where allowed.
    pub fn flush_send_queue(&mut self) -> Progress {
        if self.is_compressed() {
            return self.flush_compressed();
        }
        if self.frozen() {
            self.send_queue.unite(TLS_RECORD);
        }
        while let Some(piece) = self.send_queue.front() {
            if self.has_own_tls() {
                let (gathered, piece) = (self.send_queue.gather(TLS_RECORD), piece.clone());
                let (sealed, progress) = self.seal(gathered.as_deref().unwrap_or(piece.bytes()));
                self.pass(sealed);
                if progress != Progress::Done {
                    return progress;
                }
                continue;
            }
            let gathered = (self.socket >= 0).then(|| self.send_queue.gather(GATHERED)).flatten();
            let (taken, progress) = send(self.connection(), gathered.as_deref().unwrap_or(piece.bytes()));
            self.pass(taken);
            if progress != Progress::Done {
                return progress;
            }
        }
        Progress::Done
    }

    /// Removes what was taken of the queue's first pieces.
    fn pass(&mut self, taken: usize) {
        self.send_queue.start();
        self.send_queue.advance(taken);
        self.count(taken);
    }

    /// Offers bytes to the connection, or seals them; returns how many were taken, which must not be offered again.
    pub fn offer(&mut self, bytes: &[u8]) -> (usize, Progress) {
        if self.has_own_tls() {
            self.seal(bytes)
        } else {
            send(self.connection(), bytes)
        }
    }

    /// Seals bytes and sends them; returns how many were sealed, which must not be offered again.
    pub fn seal(&mut self, bytes: &[u8]) -> (usize, Progress) {
        // SAFETY: open as long as the subscriber is registered.
        let connection = unsafe { Connection::new(self.connection) };
        match &mut self.tls {
            Some(tls) => {
                let (sealed, progress) = tls.send(connection, bytes);
                (sealed, progress.into())
            }
            None => (0, Progress::Failed),
        }
    }

    /// Continues TLS that was taken apart; false if that is not possible, and nothing can be sent.
    pub fn resume_tls(&mut self, state: tls::State, ciphertext: tls::Ciphertext) -> bool {
        let Some(session) = tls::Session::from_parts(state, ciphertext) else {
            return false;
        };
        self.tls = Some(Box::new(Tls::new(session, self.connection())));
        true
    }

    /// Ends the sending direction of TLS.
    pub fn close_tls(&mut self, alert: Alert) -> Progress {
        // SAFETY: as above.
        let connection = unsafe { Connection::new(self.connection) };
        let tls = self.tls.as_mut();
        tls.map_or(Progress::Failed, |tls| tls.close(connection, alert).into())
    }

    /// The next step towards an empty send queue, and at its end the end of TLS.
    fn step_over_tls(&mut self) -> Step {
        // SAFETY: as above.
        let connection = unsafe { Connection::new(self.connection) };
        let tls = self.tls.as_mut();
        let mut progress = tls.map_or(Progress::Failed, |tls| tls.flush(connection).into());
        if progress == Progress::Done {
            progress = self.flush_send_queue();
        }
        if progress == Progress::Done && self.ending && self.replay.is_none() {
            progress = self.close_tls(Alert::CloseNotify);
        }
        self.outcome(progress)
    }

    /// The step that an attempt to empty the queue has come to.
    fn outcome(&self, progress: Progress) -> Step {
        match progress {
            Progress::Done => {
                self.stop_waiting();
                Step::Drained
            }
            Progress::Blocked => {
                self.wait_writable();
                Step::Blocked
            }
            Progress::Failed => Step::Failed,
        }
    }

    /// Makes nginx call when the socket is writable, or when the client took nothing for too long.
    pub fn wait_writable(&self) {
        let event = self.connection().write();
        if !event.is_delayed() {
            event.add_timer(self.audience.send_timeout_ms);
        }
        // nginx calls the handler of a stream by itself.
        if !self.is_stream() {
            event.watch_write();
        }
    }

    pub fn stop_waiting(&self) {
        let event = self.connection().write();
        if !event.is_delayed() {
            event.drop_timer();
        }
        // A level-triggered event method would report it again and again.
        if !self.is_stream() {
            event.watch_write();
        }
    }
}

/// Offers bytes to the connection until it takes no more; returns the number of bytes taken.
pub fn send(connection: Connection<'_>, mut bytes: &[u8]) -> (usize, Progress) {
    let mut taken = 0;
    while !bytes.is_empty() {
        if !connection.write().is_ready() {
            return (taken, Progress::Blocked);
        }
        match connection.send(bytes) {
            Transfer::Bytes(sent) => {
                taken += sent;
                bytes = bytes.get(sent..).unwrap_or_default();
            }
            Transfer::Again => return (taken, Progress::Blocked),
            Transfer::Over => return (taken, Progress::Failed),
        }
    }
    (taken, Progress::Done)
}

/// Calls the output filters with a chain; NULL = let them continue with the buffers that they have.
///
/// # Safety
/// `r` is a valid request whose head was sent; what `chain` points to stays until the filters have taken it.
pub unsafe fn filter(r: *mut ngx_http_request_t, chain: *mut ngx_chain_t) -> ngx_int_t {
    // SAFETY: as above.
    unsafe {
        let code = ngx_http_output_filter(r, chain);
        let below = (*(*r).connection).buffered() & NGX_LOWLEVEL_BUFFERED != 0;
        if code == NGX_ERROR as ngx_int_t || !chain.is_null() || !below {
            return code;
        }
        // A filter without pending output of its own (gzip) does not call those below it, where bytes may wait in TLS's
        // buffer.
        ngx_http_write_filter(r, ptr::null_mut())
    }
}
