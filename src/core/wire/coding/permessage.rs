//! permessage-deflate, the compression of WebSocket messages (RFC 7692).
//!
//! Messages are rendered as frames that are not compressed. To compress them is to replace the payload of each by what
//! a compressor makes of it, and to set a bit of its head. Control frames, and messages that are left as they are, are
//! outside of the compressor's window, whose size and life client and server agree on.

use super::deflate::{self, Deflater};
use crate::wire::websocket;

/// The largest window: 2 to the power of 15 bytes.
pub const WINDOW_BITS: u8 = 15;

/// Sizes of windows that can be offered (RFC 7692 §7.1.2.1). One of 8 bits is too small for the compressor.
const OFFERED_BITS: std::ops::RangeInclusive<u8> = 8..=WINDOW_BITS;
const SMALLEST: u8 = 9;

/// In the first byte of a frame: the message is compressed (RSV1).
pub const COMPRESSED: u8 = 0x40;

/// In the first byte of a frame: it is a control frame.
const CONTROL: u8 = 0x08;

/// What client and server have agreed on about messages to the client. Those of clients always refer to nothing before
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Agreed {
    pub window_bits: u8,
    /// May a message refer to the ones before it?
    pub takeover: bool,
}

/// Answers the offers of a client's `Sec-WebSocket-Extensions` lines: what is agreed on, and the value of the answer's
/// header. The first offer that can be accepted is; None = no compression. `takeover`: may messages share a context?
pub fn agree<'h>(lines: impl IntoIterator<Item = &'h [u8]>, takeover: bool) -> Option<(Agreed, String)> {
    lines
        .into_iter()
        .flat_map(|line| split(line, b','))
        .find_map(|offer| accept(offer, takeover))
}

fn accept(offer: &[u8], takeover: bool) -> Option<(Agreed, String)> {
    let mut parts = split(offer, b';').map(<[u8]>::trim_ascii);
    if !parts.next()?.eq_ignore_ascii_case(b"permessage-deflate") {
        return None;
    }
    let (mut keeps, mut window, mut others) = (true, None, [false; 2]);
    for parameter in parts {
        let (name, value) = match parameter.iter().position(|&byte| byte == b'=') {
            Some(at) => (
                parameter[..at].trim_ascii(),
                Some(unquoted(parameter[at + 1..].trim_ascii())?),
            ),
            None => (parameter, None),
        };
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        // No parameter may come twice, and unknown ones make an offer void (§7.1).
        let twice = match value {
            None if is("server_no_context_takeover") => !std::mem::replace(&mut keeps, false),
            None if is("client_no_context_takeover") => std::mem::replace(&mut others[0], true),
            Some(value) if is("server_max_window_bits") => window.replace(bits(value)?).is_some(),
            Some(value) if is("client_max_window_bits") => {
                bits(value)?;
                std::mem::replace(&mut others[1], true)
            }
            None if is("client_max_window_bits") => std::mem::replace(&mut others[1], true),
            _ => return None,
        };
        if twice {
            return None;
        }
    }
    let agreed = Agreed {
        window_bits: window.unwrap_or(WINDOW_BITS),
        takeover: takeover && keeps,
    };
    if agreed.window_bits < SMALLEST {
        return None;
    }
    let mut answer = "permessage-deflate; client_no_context_takeover".to_owned();
    if !agreed.takeover {
        answer.push_str("; server_no_context_takeover");
    }
    if let Some(bits) = window {
        answer.push_str(&format!("; server_max_window_bits={bits}"));
    }
    Some((agreed, answer))
}

/// A number of bits: decimal, without zeros before it.
fn bits(value: &[u8]) -> Option<u8> {
    OFFERED_BITS
        .into_iter()
        .find(|bits| bits.to_string().as_bytes() == value)
}

/// A value without its quotes, if it has any. Those of this extension are numbers, in which nothing is escaped.
fn unquoted(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', inner @ .., b'"'] => Some(inner),
        _ if value.contains(&b'"') => None,
        _ => Some(value),
    }
}

/// The parts between separators that are outside of quotes.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => return byte == separator && !quoted,
        }
        false
    })
}

/// A frame within a text of this server's frames.
struct Frame<'t> {
    whole: &'t [u8],
    first: u8,
    payload: &'t [u8],
}

impl Frame<'_> {
    /// Is it a message with something to compress?
    fn is_message(&self) -> bool {
        self.first & (CONTROL | COMPRESSED) == 0 && !self.payload.is_empty()
    }
}

/// The frames of a text. What is no frame of this server comes as one that is left as it is.
fn frames(mut text: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let &first = text.first()?;
        let (payload_at, length) = match text {
            [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            [_, 127, length @ ..] => match length.first_chunk() {
                Some(length) => (10, u64::from_be_bytes(*length) as usize),
                None => (text.len(), 0),
            },
            [_, length, ..] if *length < 126 => (2, usize::from(*length)),
            _ => (text.len(), 0),
        };
        let (whole, rest) = match payload_at.checked_add(length) {
            Some(end) if end <= text.len() => text.split_at(end),
            _ => (text, &[][..]),
        };
        text = rest;
        let cut = payload_at + length != whole.len();
        Some(Frame {
            whole,
            first,
            payload: whole.get(payload_at..).filter(|_| !cut).unwrap_or_default(),
        })
    })
}

/// Appends the frames of a text, all of its messages compressed one after the other. False if the compressor failed.
#[must_use]
pub fn push_together(deflater: &mut Deflater, text: &[u8], out: &mut Vec<u8>) -> bool {
    let mut payload = Vec::new();
    for frame in frames(text) {
        if !frame.is_message() {
            out.extend_from_slice(frame.whole);
            continue;
        }
        if !compress(deflater, frame.payload, &mut payload) {
            return false;
        }
        push_compressed(frame.first, &payload, out);
    }
    true
}

/// Appends the frames of a text, each message as `compress` has compressed it by itself; as it is, if that gives
/// nothing, or nothing shorter. True if one was compressed.
pub fn push_apart(text: &[u8], out: &mut Vec<u8>, mut compress: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> bool {
    let mut some = false;
    for frame in frames(text) {
        let compressed = frame.is_message().then(|| compress(frame.payload)).flatten();
        match compressed.filter(|compressed| compressed.len() < frame.payload.len()) {
            Some(compressed) => {
                push_compressed(frame.first, &compressed, out);
                some = true;
            }
            None => out.extend_from_slice(frame.whole),
        }
    }
    some
}

/// Compresses a payload into `out`, which is emptied before. False if the compressor failed.
#[must_use]
pub fn compress(deflater: &mut Deflater, payload: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let done = deflater.push(payload, out) && out.ends_with(deflate::TAIL);
    out.truncate(out.len().saturating_sub(deflate::TAIL.len()));
    done
}

fn push_compressed(first: u8, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    websocket::push_header(websocket::Opcode::Text, payload.len(), out);
    out[start] = first | COMPRESSED;
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::websocket::{Opcode, push_frame};

    fn answer(lines: &[&str]) -> Option<String> {
        Some(agree(lines.iter().map(|line| line.as_bytes()), true)?.1)
    }

    #[test]
    fn offers_are_answered() {
        let plain = "permessage-deflate; client_no_context_takeover";
        for (offer, more) in [
            ("permessage-deflate", ""),
            ("Permessage-Deflate", ""),
            ("permessage-deflate; client_max_window_bits", ""),
            ("permessage-deflate;client_max_window_bits=8", ""),
            ("permessage-deflate ; client_max_window_bits = \"15\"", ""),
            ("permessage-deflate; client_no_context_takeover", ""),
            (
                "permessage-deflate; server_no_context_takeover",
                "; server_no_context_takeover",
            ),
            (
                "permessage-deflate; server_max_window_bits=9",
                "; server_max_window_bits=9",
            ),
            (
                "permessage-deflate; server_max_window_bits=15",
                "; server_max_window_bits=15",
            ),
            (
                "permessage-deflate; SERVER_MAX_WINDOW_BITS=\"10\"",
                "; server_max_window_bits=10",
            ),
            (
                "permessage-deflate; server_max_window_bits=12; client_max_window_bits; server_no_context_takeover; \
                 client_no_context_takeover",
                "; server_no_context_takeover; server_max_window_bits=12",
            ),
            ("x-webkit-deflate-frame, permessage-deflate", ""),
            (
                "foo; bar=\"a, permessage-deflate; server_no_context_takeover\", permessage-deflate",
                "",
            ),
            ("foo; bar=\"\\\", \", permessage-deflate", ""),
            // The first that can be accepted.
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=11, \
                 permessage-deflate",
                "; server_max_window_bits=11",
            ),
            ("permessage-deflate; unknown, permessage-deflate", ""),
        ] {
            assert_eq!(answer(&[offer]), Some(format!("{plain}{more}")), "{offer}");
        }
        assert_eq!(
            answer(&[
                "foo",
                "permessage-deflate; server_max_window_bits=7",
                "permessage-deflate"
            ]),
            Some(plain.into())
        );
        let (agreed, answer) = agree([&b"permessage-deflate"[..]], false).unwrap();
        assert_eq!((agreed.window_bits, agreed.takeover), (15, false));
        assert_eq!(answer, format!("{plain}; server_no_context_takeover"));
    }

    #[test]
    fn other_offers_are_declined() {
        for offer in [
            "",
            ",",
            "permessage",
            "permessage-deflated",
            "permessage-bzip2",
            "permessage-deflate=1",
            "permessage-deflate; ",
            "permessage-deflate; unknown",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover=",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=09",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=99999999999999999999",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
            "permessage-deflate; =",
            "\"permessage-deflate",
        ] {
            assert_eq!(answer(&[offer]), None, "{offer}");
        }
        assert_eq!(answer(&[]), None);
    }

    #[test]
    fn only_messages_are_compressed() {
        let mut text = Vec::new();
        push_frame(
            Opcode::Ping,
            &b"ping ping ping ping ping ping ping".repeat(3),
            &mut text,
        );
        push_frame(Opcode::Text, b"", &mut text);
        let ping = text.clone();
        push_frame(Opcode::Binary, &[7; 70_000], &mut text);
        push_frame(Opcode::Text, &[b'x'; 300], &mut text);
        push_frame(Opcode::Close, b"", &mut text);
        let mut together = Vec::new();
        assert!(push_together(&mut Deflater::new(4, 15), &text, &mut together));
        let mut apart = Vec::new();
        assert!(push_apart(&text, &mut apart, |payload| {
            let mut out = Vec::new();
            compress(&mut Deflater::new(4, 15), payload, &mut out).then_some(out)
        }));
        for coded in [together, apart] {
            let rest = coded
                .strip_prefix(&ping[..])
                .expect("control frames and empty messages as they are");
            let kinds: Vec<u8> = frames(rest).map(|frame| frame.first).collect();
            assert_eq!(kinds, [0xc2, 0xc1, 0x88]);
            assert!(rest.len() < 500 && rest.ends_with(&[0x88, 0]));
        }
        let mut same = Vec::new();
        assert!(
            !push_apart(&text, &mut same, |payload| Some(payload.to_vec())),
            "nothing shorter"
        );
        assert_eq!(same, text);
    }

    #[test]
    fn half_a_frame_is_left_as_it_is() {
        let mut text = Vec::new();
        push_frame(Opcode::Text, &[b'x'; 70_000], &mut text);
        for end in [1, 2, 3, 9, 10, 69_999] {
            let mut out = Vec::new();
            assert!(push_together(&mut Deflater::new(4, 15), &text[..end], &mut out));
            assert_eq!(out, &text[..end]);
        }
    }
}
