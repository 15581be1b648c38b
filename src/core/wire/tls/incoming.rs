//! Records from the peer: assembled from whatever pieces the network delivers, authenticated, and taken apart.

use zeroize::Zeroize;

use super::keys::Secret;
use super::{HEADER, KEY_UPDATE, MAX_CONTENT, MAX_PROTECTED, TAG, content_type};

/// An alert to send before the end (RFC 8446 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    CloseNotify = 0,
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    IllegalParameter = 47,
    DecodeError = 50,
    InternalError = 80,
}

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'r> {
    /// Application data; may be empty.
    Data(&'r [u8]),
    /// The peer has other keys from here on. `wanted`: ours are to change, too.
    KeyUpdate { wanted: bool },
    /// The peer sends nothing more: `close_notify`.
    Closed,
    /// The peer has given the connection up, with a fatal alert.
    Aborted,
    /// An alert without consequence.
    Nothing,
}

/// Where a record ends and what it needs.
enum Assembled {
    /// This many bytes are missing.
    Incomplete(usize),
    Complete,
}

/// The receiving direction of a connection.
pub struct Incoming {
    pub(super) secret: Secret,
    /// Number of the next record.
    pub(super) number: u64,
    /// The beginning of a record of which the rest has not come: an idle connection has none.
    #[allow(clippy::box_collection, reason = "one word while there is none")]
    pub(super) begun: Option<Box<Vec<u8>>>,
}

impl Incoming {
    pub(super) fn new(secret: Secret, number: u64) -> Incoming {
        Incoming {
            secret,
            number,
            begun: None,
        }
    }

    /// The bytes of a record that has not come completely.
    pub(super) fn begun(&self) -> &[u8] {
        self.begun.as_ref().map_or(&[], |begun| begun.as_slice())
    }

    /// Takes bytes from `input` up to the end of a record, opens it, and says what is in it, by way of `look`. None if
    /// there is no whole record yet: all of `input` is taken then.
    pub(super) fn next<R>(&mut self, input: &mut &[u8], look: impl FnOnce(Result<Event<'_>, Alert>) -> R) -> Option<R> {
        let mut record = self.begun.take().map_or_else(Vec::new, |begun| *begun);
        loop {
            let missing = match missing(&record) {
                Ok(Assembled::Complete) => break,
                Ok(Assembled::Incomplete(missing)) => missing,
                Err(alert) => return Some(look(Err(alert))),
            };
            let (part, rest) = input.split_at(missing.min(input.len()));
            record.extend_from_slice(part);
            *input = rest;
            if part.len() < missing {
                self.begun = (!record.is_empty()).then(|| Box::new(record));
                return None;
            }
        }
        let event = self.open(&mut record);
        let seen = look(event);
        record.zeroize();
        Some(seen)
    }

    /// Opens a whole record.
    fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<Event<'r>, Alert> {
        let Some((header, protected)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(Alert::InternalError);
        };
        let number = self.number;
        // A peer must update its keys long before (RFC 8446 §5.5).
        self.number = number.checked_add(1).ok_or(Alert::UnexpectedMessage)?;
        let keys = self.secret.keys().ok_or(Alert::InternalError)?;
        let cipher = keys.cipher().ok_or(Alert::InternalError)?;
        let inner = cipher.open(number, *header, protected).ok_or(Alert::BadRecordMac)?;
        // The content type is the last byte that is not padding.
        let end = inner
            .iter()
            .rposition(|&byte| byte != 0)
            .ok_or(Alert::UnexpectedMessage)?;
        let (content, kind) = (&inner[..end], inner[end]);
        if inner.len() > MAX_CONTENT + 1 {
            return Err(Alert::RecordOverflow);
        }
        match kind {
            content_type::APPLICATION_DATA => Ok(Event::Data(content)),
            content_type::ALERT => alert(content),
            content_type::HANDSHAKE => self.handshake(content),
            _ => Err(Alert::UnexpectedMessage),
        }
    }

    /// Only a KeyUpdate by itself may come: it is the last message under its keys (RFC 8446 §5.1), and this end has
    /// not offered what would allow another.
    fn handshake(&mut self, content: &[u8]) -> Result<Event<'static>, Alert> {
        let &[KEY_UPDATE, ref rest @ ..] = content else {
            return Err(Alert::UnexpectedMessage);
        };
        let wanted = match rest {
            [0, 0, 1, 0] => false,
            [0, 0, 1, 1] => true,
            [0, 0, 1, _] => return Err(Alert::IllegalParameter),
            [0, 0, 1, _, ..] => return Err(Alert::UnexpectedMessage),
            _ => return Err(Alert::DecodeError),
        };
        self.secret.update().ok_or(Alert::InternalError)?;
        self.number = 0;
        Ok(Event::KeyUpdate { wanted })
    }
}

/// Are these bytes the beginning of a record, and not all of it? Nothing at all is one, too.
pub(super) fn is_beginning(bytes: &[u8]) -> bool {
    matches!(missing(bytes), Ok(Assembled::Incomplete(_)))
}

/// How much is missing of a record of which these are the first bytes.
fn missing(record: &[u8]) -> Result<Assembled, Alert> {
    let Some(&[kind, _, _, high, low]) = record.first_chunk::<HEADER>() else {
        return Ok(Assembled::Incomplete(HEADER - record.len()));
    };
    if kind != content_type::APPLICATION_DATA {
        return Err(Alert::UnexpectedMessage);
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > MAX_PROTECTED {
        return Err(Alert::RecordOverflow);
    }
    if len < 1 + TAG {
        return Err(Alert::DecodeError);
    }
    match (HEADER + len).checked_sub(record.len()) {
        Some(0) => Ok(Assembled::Complete),
        Some(missing) => Ok(Assembled::Incomplete(missing)),
        None => Err(Alert::InternalError),
    }
}

fn alert(content: &[u8]) -> Result<Event<'static>, Alert> {
    const USER_CANCELED: u8 = 90;
    match content {
        [_, 0] => Ok(Event::Closed),
        [_, USER_CANCELED] => Ok(Event::Nothing),
        [_, _] => Ok(Event::Aborted),
        _ => Err(Alert::DecodeError),
    }
}
