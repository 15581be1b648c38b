//! TLS of a detached subscriber without OpenSSL: records are sealed and opened here.
//!
//! What is handed to a subscriber is sealed once, straight from the shared bytes of its style, and offered to the socket.
//! It counts as taken then: what the socket does not take waits as ciphertext in the [`Session`], never more than one
//! record, and everything behind it waits in the send queue as on a plain connection.

use std::cell::RefCell;

use push_stream_core::wire::tls::{Alert, Offered, Progress, Session};

use super::send_queue::Waiting;
use crate::ffi::connection::Connection;

thread_local! {
    /// Where records are sealed: one buffer for all subscribers of the process, of a record's length at most.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The TLS state of a subscriber.
pub struct Tls {
    pub session: Session,
    socket: i32,
    /// The ciphertext that the socket has not taken.
    waiting: Waiting,
}

impl Tls {
    pub fn new(session: Session, connection: Connection<'_>) -> Tls {
        connection.set_buffered(session.is_blocked());
        let mut waiting = Waiting::default();
        waiting.set(session.waiting());
        Tls {
            session,
            socket: connection.fd(),
            waiting,
        }
    }

    pub fn into_session(self) -> Session {
        self.session
    }

    /// Seals bytes and sends them; returns how many were sealed, which must not be offered again.
    pub fn send(&mut self, connection: Connection<'_>, bytes: &[u8]) -> (usize, Progress) {
        self.with_socket(connection, |session, scratch, offer| {
            session.send(bytes, scratch, offer)
        })
    }

    /// Sends what waits, and what is owed to the peer.
    pub fn flush(&mut self, connection: Connection<'_>) -> Progress {
        self.with_socket(connection, |session, scratch, offer| session.flush(scratch, offer))
    }

    /// Ends the sending direction.
    pub fn close(&mut self, connection: Connection<'_>, alert: Alert) -> Progress {
        self.with_socket(connection, |session, scratch, offer| {
            session.close(alert, scratch, offer)
        })
    }

    /// Works on the state with the socket. nginx's connection says afterwards whether a tail waits.
    fn with_socket<R>(
        &mut self,
        connection: Connection<'_>,
        work: impl FnOnce(&mut Session, &mut Vec<u8>, &mut dyn FnMut(&[u8]) -> Offered) -> R,
    ) -> R {
        let Tls {
            session,
            socket,
            waiting,
        } = self;
        let before = session.waiting();
        let mut full = false;
        let mut offer = |bytes: &[u8]| {
            if full {
                return Offered::Blocked;
            }
            let offered = offer(*socket, connection, bytes);
            full = offered != Offered::Taken(bytes.len());
            offered
        };
        let result = SCRATCH.with_borrow_mut(|scratch| work(session, scratch, &mut offer));
        let after = session.waiting();
        if before != after {
            waiting.set(after);
            connection.set_buffered(session.is_blocked());
        }
        result
    }
}

/// Offers bytes to a socket once.
fn offer(socket: i32, connection: Connection<'_>, bytes: &[u8]) -> Offered {
    use std::io::ErrorKind;
    loop {
        let error = match Connection::send_to(socket, bytes) {
            Ok(taken) => {
                if taken < bytes.len() {
                    connection.write().set_ready(false);
                }
                return Offered::Taken(taken);
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => {
                connection.write().set_ready(false);
                return Offered::Blocked;
            }
            _ => {
                connection.write().set_error();
                connection.log_error(&error, c"send() failed");
                return Offered::Failed;
            }
        }
    }
}
