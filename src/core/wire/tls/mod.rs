//! TLS 1.3 after the handshake (RFC 8446): sealing and opening the records of a connection whose secrets are known.
//!
//! No handshake, no certificates, no other version: what an idle stream needs once nginx's TLS object is freed.
//!
//! * [`keys`]: cipher suites, and keys from a traffic secret.
//! * [`incoming`]: records from the peer: assembled, authenticated, bounded.
//! * [`session`]: both directions of a connection, key updates, partial sends.
//! * [`state`]: a session on its way to another process.
//!
//! The rules that keep it safe:
//!
//! * A record number, and with it a nonce, is used once: [`Session`] owns it and cannot be copied, the number rises when a
//!   record is sealed, and the socket's answer changes nothing about that. What the socket does not take is kept as
//!   ciphertext and never sealed again. A session goes to another process by being taken apart: nothing stays that could
//!   seal.
//! * Each incoming record is authenticated before its content is looked at, and is bounded in length.
//! * Secrets are overwritten with zeroes when they are replaced or dropped.

pub mod incoming;
pub mod keys;
pub mod session;
pub mod state;

pub use incoming::{Alert, Event};
pub use keys::{Secret, Suite};
pub use session::{Half, Offered, Progress, Session};
pub use state::{Ciphertext, State};

/// Maximum of bytes of content in a record (RFC 8446 §5.1).
pub const MAX_CONTENT: usize = 1 << 14;

/// Maximum of bytes in a protected record after its header (RFC 8446 §5.2).
pub const MAX_PROTECTED: usize = MAX_CONTENT + 256;

/// Length of a record's header.
pub const HEADER: usize = 5;

/// Length of the authentication tag of all suites.
pub const TAG: usize = 16;

/// Bytes that sealing adds to the content: header, inner content type and tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;

/// Types of content (RFC 8446 §5.1).
mod content_type {
    pub const ALERT: u8 = 21;
    pub const HANDSHAKE: u8 = 22;
    pub const APPLICATION_DATA: u8 = 23;
}

/// The type of a KeyUpdate among handshake messages (RFC 8446 §4).
const KEY_UPDATE: u8 = 24;

#[cfg(test)]
mod tests;
