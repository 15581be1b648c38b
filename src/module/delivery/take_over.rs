//! Taking TLS over from OpenSSL (`push_stream_detach_tls`), once a subscriber's request is freed, and the records that its
//! client sends from then on.

use push_stream_core::store::{Counter, Now};
use push_stream_core::wire::tls::{Alert, Event, HEADER, MAX_PROTECTED, Session};

use super::ending::{Ending, Reason};
use super::perform::{advance, end};
use super::profile::Audience;
use super::socket;
use super::state::{Delivery, PROCESS};
use super::subscriber::{SubscriberId, THROUGH_CONNECTION, THROUGH_TLS};
use super::tls::Tls;
use crate::ffi::connection::{Connection, Transfer};
use crate::ffi::openssl::{self, Hold};

/// Bytes read at once: a record of full length.
const READ: usize = HEADER + MAX_PROTECTED;

/// Reads per turn, before other events get theirs.
const READS_PER_TURN: u32 = 16;

/// Held connections that are looked at again in a second.
const RETRIES: usize = 1024;

/// Takes the connection of a subscriber, which is detached, over from OpenSSL if that is wanted and possible now. `first`:
/// it was not tried before. None of the connection's handlers may be running.
pub fn take_over(connection: Connection<'_>, id: SubscriberId, audience: &Audience, first: bool) {
    if !audience.detach_tls || !connection.has_tls() {
        return;
    }
    let taken = openssl::take(connection);
    let taken = PROCESS.with(|delivery| delivery.note_taken(id, taken, first));
    if taken != Some(true) {
        return;
    }
    if connection.can_do_without_pool() {
        // SAFETY: the request is freed, and so is OpenSSL's object; the subscriber has nothing in the pool.
        unsafe { connection.drop_pool(audience.error_log) };
    }
    // What came meanwhile may have been announced to OpenSSL.
    connection.read().post();
}

/// Looks again at a connection that was held back.
pub fn take_over_later(id: SubscriberId) {
    let held = PROCESS.with(|delivery| {
        let subscriber = delivery.registry.slab.get(id)?;
        // Over HTTP/2 the connection is the stream's, and not its own.
        let held = subscriber.is_detached() && subscriber.socket == THROUGH_CONNECTION && !subscriber.ending;
        if !held || subscriber.is_in_transit() {
            return None;
        }
        if !subscriber.send_queue.is_empty() {
            delivery.tls_held.push(id);
            return None;
        }
        Some((subscriber.connection, subscriber.audience.clone()))
    });
    if let Some((connection, audience)) = held.flatten() {
        // SAFETY: open as long as the subscriber is registered.
        take_over(unsafe { Connection::new(connection) }, id, &audience, false);
    }
}

/// Reads a subscriber's input.
pub fn read(id: SubscriberId, connection: Connection<'_>) {
    let mut buffer = [0u8; READ];
    let compressed = PROCESS.with(|delivery| Some(delivery.registry.slab.get(id)?.is_compressed()));
    let reads = match compressed.flatten() {
        Some(true) => socket::DEFLATED_READS,
        _ => READS_PER_TURN,
    };
    for _ in 0..reads {
        match connection.recv(&mut buffer) {
            Transfer::Bytes(read) => {
                if !take_records(id, &buffer[..read]) {
                    return;
                }
            }
            Transfer::Again => {
                // A failure shows at the next event.
                connection.read().watch_read();
                return;
            }
            Transfer::Over => return end(id, Ending::Gone),
        }
    }
    connection.read().post_next();
}

/// What a record asks for, outside of the borrow.
enum Asked {
    Nothing,
    /// Frames of a WebSocket client.
    Frames(Vec<u8>),
    /// Something is to be sent.
    Send,
    /// The connection ends.
    End,
}

/// Handles the client's records; false if the subscriber has ended.
fn take_records(id: SubscriberId, mut bytes: &[u8]) -> bool {
    loop {
        let asked = PROCESS.with(|delivery| delivery.next_record(id, &mut bytes)).flatten();
        match asked {
            None => break,
            Some(Asked::Nothing) => {}
            Some(Asked::Frames(frames)) => {
                if !socket::react(id, &frames) {
                    return false;
                }
            }
            Some(Asked::Send) => advance(id),
            Some(Asked::End) => {
                end(id, Ending::Gone);
                return false;
            }
        }
    }
    PROCESS
        .with(|delivery| delivery.registry.slab.get(id).is_some())
        .unwrap_or(false)
}

impl Delivery {
    /// Gives a subscriber its TLS state, or counts why it stays with OpenSSL. True if it was taken over.
    fn note_taken(&mut self, id: SubscriberId, taken: Result<Session, Hold>, first: bool) -> bool {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return false;
        };
        match taken {
            Ok(session) => {
                subscriber.tls = Some(Box::new(Tls::new(session, subscriber.connection())));
                subscriber.socket = THROUGH_TLS;
                self.local_counters.add(Counter::TlsTakenOver);
                true
            }
            Err(hold) => {
                if hold.is_temporary() {
                    self.tls_held.push(id);
                }
                if first {
                    self.local_counters.add(match hold {
                        Hold::Protocol => Counter::TlsKeptProtocol,
                        Hold::Unknown => Counter::TlsKeptUnknown,
                        Hold::Busy => Counter::TlsKeptBusy,
                        Hold::Unaccounted => Counter::TlsKeptUnaccounted,
                    });
                }
                false
            }
        }
    }

    /// Schedules another look at connections that were held back, once a second.
    pub fn look_after_held(&mut self) {
        let count = self.tls_held.len().min(RETRIES);
        if count > 0 {
            self.settling.extend(self.tls_held.drain(..count));
            self.events.post_work();
        }
    }

    /// Opens the next record; None if it has not come completely.
    fn next_record(&mut self, id: SubscriberId, bytes: &mut &[u8]) -> Option<Asked> {
        let subscriber = self.registry.slab.get(id)?;
        let wants_data = subscriber.kind.is_socket();
        let now_ms = Now::read().monotonic_ms;
        let session = &mut subscriber.tls.as_mut()?.session;
        let asked = session.receive(bytes, wants_data, now_ms, |event| match event {
            Ok(Event::Data(data)) if wants_data && !data.is_empty() => Ok(Asked::Frames(data.to_vec())),
            Ok(Event::Data(_) | Event::Nothing) => Ok(Asked::Nothing),
            Ok(Event::KeyUpdate { wanted: true }) => Ok(Asked::Send),
            Ok(Event::KeyUpdate { wanted: false }) => Ok(Asked::Nothing),
            Ok(Event::Closed) => Err((Reason::ClientClosed, Some(Alert::CloseNotify))),
            Ok(Event::Aborted) => Err((Reason::ClientClosed, None)),
            Err(alert) => Err((Reason::Violation, Some(alert))),
        })?;
        Some(asked.unwrap_or_else(|(reason, alert)| {
            subscriber.ends(reason);
            if let Some(alert) = alert {
                // The end does not wait for a socket that is full.
                subscriber.close_tls(alert);
            }
            Asked::End
        }))
    }
}
