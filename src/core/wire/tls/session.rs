//! Both directions of a connection.

use super::incoming::{Alert, Event, Incoming};
use super::keys::{Keys, Secret, Suite};
use super::{HEADER, KEY_UPDATE, MAX_CONTENT, OVERHEAD, TAG, content_type};

/// Records sealed under one key before a KeyUpdate of our own: AES-GCM allows 2^24.5 of full length (RFC 8446 §5.5).
pub const RECORDS_PER_KEY: u64 = 1 << 24;

/// KeyUpdates that the peer may send in a minute. An honest one sends one in gigabytes.
pub const UPDATES_PER_MINUTE: u8 = 32;

/// Bytes in a minute that are of no use, with their records' overhead: what they cost to read is bounded.
pub const STRAY_PER_MINUTE: u32 = 64 * 1024;

const MINUTE_MS: u64 = 60_000;

/// One direction of a connection, as its handshake has left it.
pub struct Half {
    pub secret: Secret,
    /// Number of the next record under this secret.
    pub number: u64,
}

impl Half {
    /// Changes to the secret after a KeyUpdate; its numbers start anew.
    pub fn update(&mut self) -> Option<()> {
        self.number = 0;
        self.secret.update()
    }
}

/// What became of bytes that were offered to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It took this many, and may take more.
    Taken(usize),
    /// It takes nothing now.
    Blocked,
    Failed,
}

/// Outcome of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// The socket is full; a tail of ciphertext waits.
    Blocked,
    Failed,
}

/// The sending direction.
pub(super) struct Outgoing {
    pub(super) secret: Secret,
    keys: Keys,
    /// Number of the next record. It rises when a record is sealed, and never goes back.
    pub(super) number: u64,
    /// Sealed bytes that the socket has not taken.
    #[allow(clippy::box_collection, reason = "one word while there is none")]
    pub(super) tail: Option<Box<Vec<u8>>>,
}

impl Outgoing {
    /// Seals one record and appends it to `out`. The only place where a number is used.
    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let content = &content[..content.len().min(MAX_CONTENT)];
        let number = self.number;
        // First of all: whatever happens, the number is used.
        self.number = number.checked_add(1)?;
        let len = (content.len() + 1 + TAG) as u16;
        let [high, low] = len.to_be_bytes();
        let header: [u8; HEADER] = [content_type::APPLICATION_DATA, 3, 3, high, low];
        let start = out.len() + HEADER;
        out.reserve(content.len() + OVERHEAD);
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.push(kind);
        let tag = self.keys.cipher()?.seal(number, header, &mut out[start..])?;
        out.extend_from_slice(&tag);
        Some(())
    }

    /// Announces new keys under the old ones, and changes to them (RFC 8446 §4.6.3).
    fn update(&mut self, out: &mut Vec<u8>) -> Option<()> {
        const NOT_REQUESTED: u8 = 0;
        self.seal(content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, NOT_REQUESTED], out)?;
        self.secret.update()?;
        self.keys = self.secret.keys()?;
        self.number = 0;
        Some(())
    }
}

/// What a peer has done in the current minute.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Minute {
    pub(super) since_ms: u64,
    pub(super) stray: u32,
    pub(super) updates: u8,
}

/// A connection whose handshake is over. It cannot be cloned: it owns the numbers of its records.
pub struct Session {
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) minute: Minute,
    /// The peer wants our keys to change, and we have not done it yet. Several wishes are one.
    pub(super) owes_update: bool,
    /// The last record of this end is sealed.
    pub(super) closed: bool,
}

impl Session {
    /// None if the two directions have different suites.
    pub fn new(write: Half, read: Half) -> Option<Session> {
        if write.secret.suite() != read.secret.suite() {
            return None;
        }
        let keys = write.secret.keys()?;
        Some(Session {
            outgoing: Outgoing {
                secret: write.secret,
                keys,
                number: write.number,
                tail: None,
            },
            incoming: Incoming::new(read.secret, read.number),
            minute: Minute::default(),
            owes_update: false,
            closed: false,
        })
    }

    pub fn suite(&self) -> Suite {
        self.outgoing.secret.suite()
    }

    /// Bytes of ciphertext that the socket has not taken.
    pub fn waiting(&self) -> usize {
        self.outgoing.tail.as_ref().map_or(0, |tail| tail.len())
    }

    /// Must the tail be sent before anything else?
    pub fn is_blocked(&self) -> bool {
        self.outgoing.tail.is_some()
    }

    /// Is nothing of an incoming record here?
    pub fn is_between_records(&self) -> bool {
        self.incoming.begun().is_empty()
    }

    /// Is there something to send by itself: a tail, or the answer to a KeyUpdate?
    pub fn has_to_send(&self) -> bool {
        self.is_blocked() || self.owes_update
    }

    /// Seals `content` and offers it to a socket; returns how much of it was sealed. That part is sent, or waits as
    /// ciphertext, and must not be offered again. At most one record waits.
    ///
    /// `scratch` is where records are sealed.
    pub fn send(
        &mut self,
        content: &[u8],
        scratch: &mut Vec<u8>,
        offer: &mut (impl FnMut(&[u8]) -> Offered + ?Sized),
    ) -> (usize, Progress) {
        let mut sealed = 0;
        let mut progress = self.flush(scratch, offer);
        while progress == Progress::Done && sealed < content.len() && !self.closed {
            let part = &content[sealed..content.len().min(sealed + MAX_CONTENT)];
            if self.seal(content_type::APPLICATION_DATA, part, scratch).is_none() {
                return (sealed, Progress::Failed);
            }
            sealed += part.len();
            progress = self.dispatch(scratch, offer);
        }
        (sealed, progress)
    }

    /// Offers what waits, and what is owed.
    pub fn flush(&mut self, scratch: &mut Vec<u8>, offer: &mut (impl FnMut(&[u8]) -> Offered + ?Sized)) -> Progress {
        if let Some(mut tail) = self.outgoing.tail.take() {
            let (taken, progress) = push(&tail, offer);
            if progress != Progress::Done {
                tail.drain(..taken);
                self.outgoing.tail = Some(tail);
                return progress;
            }
        }
        if !self.owes_update || self.closed {
            return Progress::Done;
        }
        scratch.clear();
        match self.prepare(scratch) {
            Some(()) => self.dispatch(scratch, offer),
            None => Progress::Failed,
        }
    }

    /// Ends this direction with `alert`; nothing can be sent after it. What waits goes first.
    pub fn close(
        &mut self,
        alert: Alert,
        scratch: &mut Vec<u8>,
        offer: &mut (impl FnMut(&[u8]) -> Offered + ?Sized),
    ) -> Progress {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let progress = self.flush(scratch, offer);
        if self.closed || progress == Progress::Failed {
            return progress;
        }
        self.closed = true;
        let level = if alert == Alert::CloseNotify { WARNING } else { FATAL };
        if self.seal(content_type::ALERT, &[level, alert as u8], scratch).is_none() {
            return Progress::Failed;
        }
        if let Some(tail) = &mut self.outgoing.tail {
            tail.extend_from_slice(scratch);
            return Progress::Blocked;
        }
        self.dispatch(scratch, offer)
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Seals one record into the empty `scratch`, after a change of keys if that is due.
    fn seal(&mut self, kind: u8, content: &[u8], scratch: &mut Vec<u8>) -> Option<()> {
        scratch.clear();
        self.prepare(scratch)?;
        self.outgoing.seal(kind, content, scratch)
    }

    /// Changes the keys if that is due or owed.
    fn prepare(&mut self, scratch: &mut Vec<u8>) -> Option<()> {
        if std::mem::take(&mut self.owes_update) || self.outgoing.number >= RECORDS_PER_KEY {
            self.outgoing.update(scratch)?;
        }
        Some(())
    }

    /// Offers sealed records; keeps what is not taken.
    fn dispatch(&mut self, records: &[u8], offer: &mut (impl FnMut(&[u8]) -> Offered + ?Sized)) -> Progress {
        let (taken, progress) = push(records, offer);
        if progress == Progress::Blocked {
            self.outgoing.tail = Some(Box::new(records[taken..].to_vec()));
        }
        progress
    }

    /// Reads from `input`, up to the end of a record; `look` is given what is in it. None if there is no whole record
    /// yet. `wants_data`: application data is of use; otherwise it is counted as stray.
    pub fn receive<R>(
        &mut self,
        input: &mut &[u8],
        wants_data: bool,
        now_ms: u64,
        look: impl FnOnce(Result<Event<'_>, Alert>) -> R,
    ) -> Option<R> {
        let (minute, owes_update) = (&mut self.minute, &mut self.owes_update);
        self.incoming.next(input, |event| {
            if now_ms >= minute.since_ms + MINUTE_MS {
                *minute = Minute {
                    since_ms: now_ms,
                    ..Minute::default()
                };
            }
            let event = match event {
                Ok(Event::Data(data)) if wants_data && !data.is_empty() => Ok(Event::Data(data)),
                Ok(Event::Data(data)) => {
                    minute.stray += (data.len() + OVERHEAD) as u32;
                    Ok(Event::Data(data))
                }
                Ok(Event::Nothing) => {
                    minute.stray += OVERHEAD as u32;
                    Ok(Event::Nothing)
                }
                Ok(Event::KeyUpdate { wanted }) => {
                    minute.updates += 1;
                    *owes_update |= wanted;
                    Ok(Event::KeyUpdate { wanted })
                }
                other => other,
            };
            look(
                if minute.updates > UPDATES_PER_MINUTE || minute.stray > STRAY_PER_MINUTE {
                    Err(Alert::UnexpectedMessage)
                } else {
                    event
                },
            )
        })
    }
}

/// Offers bytes until all are taken or the socket is full; returns how many it took.
fn push(bytes: &[u8], offer: &mut (impl FnMut(&[u8]) -> Offered + ?Sized)) -> (usize, Progress) {
    let mut taken = 0;
    while taken < bytes.len() {
        match offer(&bytes[taken..]) {
            Offered::Taken(0) | Offered::Blocked => return (taken, Progress::Blocked),
            Offered::Taken(more) => taken += more.min(bytes.len() - taken),
            Offered::Failed => return (taken, Progress::Failed),
        }
    }
    (taken, Progress::Done)
}
