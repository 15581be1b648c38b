//! A session on its way to another process.
//!
//! [`Session::into_parts`] consumes the session, so that nothing can be sealed any more where it was; the parts cannot be
//! cloned. What is secret ([`State`]) is apart from what anybody on the network may see ([`Ciphertext`]), because it must
//! not take the same way.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::incoming;
use super::keys::{Secret, Suite};
use super::session::{Half, Minute, Session};

/// Everything of a session that is not on the network. Overwritten when dropped.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct State {
    suite: u16,
    write_secret: Vec<u8>,
    write_number: u64,
    read_secret: Vec<u8>,
    read_number: u64,
    /// What the peer has done in the current minute.
    since_ms: u64,
    stray: u32,
    updates: u8,
    owes_update: bool,
    closed: bool,
}

/// Records that are half sent or half received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ciphertext {
    /// Sealed, and not taken by the socket.
    pub tail: Vec<u8>,
    /// The beginning of a record of which the rest has not come.
    pub begun: Vec<u8>,
}

impl State {
    /// Bytes that it takes at most where it is encoded, with an `Option` around it: two secrets of SHA-384, and numbers of
    /// variable length.
    pub const ENCODED: usize = 1 + 3 + 2 * (1 + 48) + 3 * 10 + 5 + 1 + 2;
}

impl Session {
    /// The session's parts, to continue with elsewhere. It is gone here.
    pub fn into_parts(self) -> (State, Ciphertext) {
        let Session {
            outgoing,
            incoming,
            minute,
            owes_update,
            closed,
        } = self;
        let ciphertext = Ciphertext {
            tail: outgoing.tail.map_or_else(Vec::new, |tail| *tail),
            begun: incoming.begun().to_vec(),
        };
        let state = State {
            suite: outgoing.secret.suite().number(),
            write_secret: outgoing.secret.bytes().to_vec(),
            write_number: outgoing.number,
            read_secret: incoming.secret.bytes().to_vec(),
            read_number: incoming.number,
            since_ms: minute.since_ms,
            stray: minute.stray,
            updates: minute.updates,
            owes_update,
            closed,
        };
        (state, ciphertext)
    }

    /// Continues a session; None if the parts are not one's.
    pub fn from_parts(state: State, ciphertext: Ciphertext) -> Option<Session> {
        let suite = Suite::from_number(state.suite)?;
        let write = Half {
            secret: Secret::new(suite, &state.write_secret)?,
            number: state.write_number,
        };
        let read = Half {
            secret: Secret::new(suite, &state.read_secret)?,
            number: state.read_number,
        };
        if !incoming::is_beginning(&ciphertext.begun) {
            return None;
        }
        let mut session = Session::new(write, read)?;
        session.outgoing.tail = Some(ciphertext.tail).filter(|tail| !tail.is_empty()).map(Box::new);
        session.incoming.begun = Some(ciphertext.begun).filter(|begun| !begun.is_empty()).map(Box::new);
        session.minute = Minute {
            since_ms: state.since_ms,
            stray: state.stray,
            updates: state.updates,
        };
        session.owes_update = state.owes_update;
        session.closed = state.closed;
        Some(session)
    }

    /// The number of the next record to seal.
    #[cfg(test)]
    pub(crate) fn next_number(&self) -> u64 {
        self.outgoing.number
    }
}
