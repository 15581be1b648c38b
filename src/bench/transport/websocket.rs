//! The client side of the WebSocket protocol (RFC 6455), incremental: input may be cut anywhere.
//!
//! Stricter than a browser: a push server has no reason to send masked, fragmented or binary frames here, so these are
//! foreign.

use super::item::{Item, Message};
use super::unfinished::{Taken, Unfinished};

/// The header lines of the opening handshake, with the key of the example in RFC 6455 §1.3.
pub const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The server's answer to that key.
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const FINAL_TEXT: u8 = 0x81;
const FINAL_CLOSE: u8 = 0x88;
const FINAL_PING: u8 = 0x89;
const FINAL_PONG: u8 = 0x8a;
const MASKED: u8 = 0x80;

/// Maximum payload of a control frame (RFC 6455 §5.5).
const MAX_CONTROL_BYTES: usize = 125;

/// A connection's frames so far.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Unfinished,
    /// Framing is lost: later input is meaningless.
    broken: bool,
}

impl Frames {
    pub fn feed(&mut self, input: &[u8], mut sink: impl FnMut(Item<'_>)) {
        if self.broken || input.is_empty() {
            return;
        }
        let broken = &mut self.broken;
        self.rest.feed(input, |bytes| take_frames(bytes, broken, &mut sink));
    }

    pub fn is_inside_frame(&self) -> bool {
        !self.rest.is_empty()
    }
}

/// Passes on the complete frames at the start of `bytes`.
fn take_frames(bytes: &[u8], broken: &mut bool, sink: &mut impl FnMut(Item<'_>)) -> Taken {
    let mut used = 0;
    while used < bytes.len() {
        let left = &bytes[used..];
        let Some((start, length)) = extent(left) else {
            return Taken { used, missing: 0 };
        };
        let wrong = match (left[0], left[1] & MASKED) {
            (FINAL_TEXT, 0) => false,
            (FINAL_CLOSE | FINAL_PING | FINAL_PONG, 0) => length > MAX_CONTROL_BYTES,
            _ => true,
        };
        if wrong {
            sink(Item::Foreign(left));
            *broken = true;
            return Taken {
                used: bytes.len(),
                missing: 0,
            };
        }
        let Some(payload) = left.get(start..start + length) else {
            return Taken {
                used,
                missing: start + length - left.len(),
            };
        };
        sink(match left[0] {
            FINAL_TEXT => Item::Message(Message {
                id: None,
                data: payload,
            }),
            FINAL_CLOSE => Item::Close,
            FINAL_PING => Item::Ping(payload),
            _ => Item::Comment,
        });
        used += start + length;
    }
    Taken { used, missing: 0 }
}

/// Offset and length of the payload of the frame at the start of `bytes`; `None` while incomplete.
fn extent(bytes: &[u8]) -> Option<(usize, usize)> {
    match bytes.get(1)? & !MASKED {
        126 => Some((4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)))),
        127 => {
            let length = u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?);
            // A length beyond memory is never reached.
            Some((
                10,
                usize::try_from(length).unwrap_or(usize::MAX / 2).min(usize::MAX / 2),
            ))
        }
        length => Some((2, usize::from(length))),
    }
}

/// A text frame in a server's form.
pub fn text(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![FINAL_TEXT];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=65535 => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A pong frame. Clients must mask (RFC 6455 §5.3); an all-zero mask is valid.
pub fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![FINAL_PONG, MASKED | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pieces: &[&[u8]]) -> Vec<String> {
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for piece in pieces {
            frames.feed(piece, |item| {
                seen.push(match item {
                    Item::Message(message) => format!("{} bytes", message.data.len()),
                    Item::Foreign(_) => "foreign".to_owned(),
                    other => format!("{other:?}"),
                });
            });
        }
        seen
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let bytes = [
            text(b"hello").as_slice(),
            &[FINAL_PING, 2, b'h', b'i'],
            &text(&[b'x'; 300]),
            &[FINAL_PONG, 0],
            &text(b""),
            &text(&[b'y'; 70_000]),
            &[FINAL_CLOSE, 2, 3, 0xe9],
        ]
        .concat();
        let wanted = [
            "5 bytes",
            "Ping([104, 105])",
            "300 bytes",
            "Comment",
            "0 bytes",
            "70000 bytes",
            "Close",
        ];
        assert_eq!(seen(&[&bytes]), wanted);
        for cut in (0..400).chain(bytes.len() - 10..bytes.len()) {
            assert_eq!(seen(&[&bytes[..cut], &bytes[cut..]]), wanted, "cut at {cut}");
        }
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(seen(&pieces), wanted);
    }

    #[test]
    fn what_no_push_server_sends_is_foreign_and_ends_the_framing() {
        for (bytes, what) in [
            (b"\x01\x01a".as_slice(), "a fragment"),
            (b"\x82\x01a", "a binary frame"),
            (b"\xc1\x01a", "a reserved bit"),
            (b"\x81\x81\0\0\0\0a", "a masked frame"),
            (b"\x89\x7e\0\x80", "a long ping"),
            (b"HTTP/1.1 200 OK", "a response"),
        ] {
            assert_eq!(seen(&[bytes, &text(b"later")]), ["foreign"], "{what}");
        }
    }

    #[test]
    fn a_pong_is_masked_and_holds_the_payload() {
        assert_eq!(pong(b"ab"), [0x8a, 0x82, 0, 0, 0, 0, b'a', b'b']);
    }
}
