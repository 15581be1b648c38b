//! WebSocket frames (RFC 6455) and the key of the handshake.
//!
//! A [`Decoder`] takes bytes as they arrive, split anywhere, and returns whole messages and control frames. It never
//! reserves memory for the length that a header announces, only for bytes that have arrived, and no more than the
//! largest message allowed. Compressed messages (RFC 7692) are inflated as they arrive.

use base64::Engine;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

use super::coding::inflate::{Broken, Inflater};

/// RFC 6455 §1.3.
const KEY_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// In the first byte of a frame: the message is compressed (RFC 7692 §6).
const RSV1: u8 = 0x40;
/// Bits for other extensions.
const RSV2_3: u8 = 0x30;
/// Bytes of a compressed message that are unmasked at once.
const UNMASKED: usize = 4 * 1024;
/// RFC 6455 §5.5: the longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2). The key is not checked.
pub fn accept_key(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(KEY_GUID);
    base64::engine::general_purpose::STANDARD.encode(hash.finalize())
}

/// Bits behind the last byte of a key are ignored: some clients make keys of random letters.
const KEY_ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Is this a valid `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455 §4.2.1)?
pub fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; 18];
    key.len() == 24 && KEY_ENGINE.decode_slice(key, &mut bytes) == Ok(16)
}

/// Is `wanted` one of the comma-separated words of a header, in any case?
pub fn has_word(value: &[u8], wanted: &str) -> bool {
    value
        .split(|&byte| byte == b',')
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// The opcode of a frame (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    fn of(number: u8) -> Option<Opcode> {
        Some(match number {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Appends the header of a server's frame: unfragmented, unmasked.
pub fn push_header(opcode: Opcode, payload_len: usize, out: &mut Vec<u8>) {
    out.push(0x80 | opcode as u8);
    match payload_len {
        0..=125 => out.push(payload_len as u8),
        126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

/// Appends a whole frame.
pub fn push_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    push_header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// Appends a close frame with a code and a reason of at most 123 bytes.
pub fn push_close(code: u16, reason: &[u8], out: &mut Vec<u8>) {
    let reason = &reason[..reason.len().min(MAX_CONTROL as usize - 2)];
    push_header(Opcode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason);
}

/// A message or control frame from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A whole text message; valid UTF-8. Empty unless messages are kept.
    Text(&'a [u8]),
    /// A whole binary message. Empty unless messages are kept.
    Binary(&'a [u8]),
    /// To be answered with a pong with the same payload.
    Ping(&'a [u8]),
    Pong,
    /// To be answered with a close frame with the same payload: empty, or a code that may be sent, and a reason.
    Close(&'a [u8]),
}

/// A protocol violation, which ends the connection with a close code (RFC 6455 §7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("protocol error")]
    Protocol,
    #[error("text that is not UTF-8")]
    Text,
    #[error("compressed data that is broken")]
    Broken,
    #[error("message too big")]
    TooBig,
    #[error("binary messages are not accepted here")]
    Binary,
}

impl Violation {
    /// The close code.
    pub fn code(self) -> u16 {
        match self {
            Violation::Protocol => 1002,
            Violation::Binary => 1003,
            Violation::Text | Violation::Broken => 1007,
            Violation::TooBig => 1009,
        }
    }
}

impl From<Broken> for Violation {
    fn from(_: Broken) -> Violation {
        Violation::Broken
    }
}

/// The settings of a decoder.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Maximum payload bytes of a message, all its fragments together, and inflated if it was compressed.
    pub max_message: u64,
    /// Refuse frames without a mask: required by RFC 6455 §5.1, not done by the C module.
    pub masked_only: bool,
    /// Are binary messages accepted?
    pub binary: bool,
    /// Return the messages' payload? If not, it is checked and dropped, and takes no memory.
    pub keep: bool,
    /// May messages be compressed, each by itself?
    pub deflate: bool,
}

/// Decodes the client's side of a connection.
#[derive(Debug)]
pub struct Decoder {
    rules: Rules,
    /// Bytes of an incomplete header.
    header: [u8; 14],
    header_len: u8,
    frame: Option<Frame>,
    /// Opcode of the fragmented message in progress.
    message: Option<Opcode>,
    payload: Vec<u8>,
    /// Bytes of the message's earlier fragments, and the announced length of this one; of a compressed message, those
    /// inflated so far.
    message_len: u64,
    /// Is that message compressed?
    compressed: bool,
    inflater: Option<Box<Inflater>>,
    control: Vec<u8>,
    utf8: Utf8,
    /// The last result of [`Decoder::next`] is still in `payload` or `control`.
    given: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    last: bool,
    mask: Option<[u8; 4]>,
    missing: u64,
    /// Payload bytes read so far, for the mask.
    taken: u64,
}

impl Frame {
    /// Unmasks the next bytes of the payload.
    fn unmask(&self, bytes: &mut [u8]) {
        if let Some(mask) = self.mask {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte ^= mask[(self.taken as usize + index) & 3];
            }
        }
    }
}

impl Decoder {
    pub fn new(rules: Rules) -> Decoder {
        Decoder {
            rules,
            header: [0; 14],
            header_len: 0,
            frame: None,
            message: None,
            payload: Vec::new(),
            message_len: 0,
            compressed: false,
            inflater: None,
            control: Vec::new(),
            utf8: Utf8::default(),
            given: false,
        }
    }

    /// Is it between two messages and frames, so that a new decoder could replace it?
    pub fn is_idle(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Consumes bytes from the front of `input` up to the end of the next message or control frame. None if `input`
    /// contains none: then all of it was consumed. After a violation the decoder must not be used any more.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Received<'_>, Violation>> {
        self.forget_given();
        match self.advance(input) {
            Ok(None) => None,
            Ok(Some(opcode)) => {
                self.given = true;
                Some(self.received(opcode))
            }
            Err(violation) => Some(Err(violation)),
        }
    }

    fn forget_given(&mut self) {
        if std::mem::take(&mut self.given) {
            self.control.clear();
            if self.message.is_none() {
                // A large message must not keep its memory for the connection's whole life.
                self.payload = Vec::new();
            }
        }
    }

    /// Reads up to the end of a message or control frame, and returns its opcode.
    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Opcode>, Violation> {
        loop {
            let Some(mut frame) = self.frame.take() else {
                if !self.take_header(input)? {
                    return Ok(None);
                }
                continue;
            };
            self.take_payload(&mut frame, input)?;
            if frame.missing > 0 {
                self.frame = Some(frame);
                return Ok(None);
            }
            if frame.opcode.is_control() {
                return Ok(Some(frame.opcode));
            }
            if frame.last {
                if self.compressed {
                    self.inflate(None)?;
                }
                let opcode = self.message.take().unwrap_or(frame.opcode);
                self.message_len = 0;
                if opcode == Opcode::Text && !std::mem::take(&mut self.utf8).is_complete() {
                    return Err(Violation::Text);
                }
                return Ok(Some(opcode));
            }
        }
    }

    /// Reads a header, which may arrive byte by byte; true once the frame is known.
    fn take_header(&mut self, input: &mut &[u8]) -> Result<bool, Violation> {
        loop {
            let have = self.header_len as usize;
            if have >= 2 && have == header_len(&self.header) {
                break;
            }
            let Some((&byte, rest)) = input.split_first() else {
                return Ok(false);
            };
            *input = rest;
            self.header[have] = byte;
            self.header_len += 1;
        }
        self.header_len = 0;
        let frame = self.judge_header()?;
        self.frame = Some(frame);
        Ok(true)
    }

    fn judge_header(&mut self) -> Result<Frame, Violation> {
        let header = &self.header;
        let last = header[0] & 0x80 != 0;
        let opcode = Opcode::of(header[0] & 0xf).ok_or(Violation::Protocol)?;
        let masked = header[1] & 0x80 != 0;
        if header[0] & RSV2_3 != 0 || self.rules.masked_only && !masked {
            return Err(Violation::Protocol);
        }
        // RFC 7692 §6.1: only in the first frame of a message.
        let compressed = header[0] & RSV1 != 0;
        let begins = matches!(opcode, Opcode::Text | Opcode::Binary);
        if compressed && !(begins && self.rules.deflate) {
            return Err(Violation::Protocol);
        }
        let (len, mask_at) = match header[1] & 0x7f {
            126 => (u16::from_be_bytes([header[2], header[3]]).into(), 4),
            127 => (
                header[2..10].iter().fold(0u64, |len, &byte| len << 8 | u64::from(byte)),
                10,
            ),
            short => (u64::from(short), 2),
        };
        let mask = masked.then(|| {
            [
                header[mask_at],
                header[mask_at + 1],
                header[mask_at + 2],
                header[mask_at + 3],
            ]
        });
        // RFC 6455 §5.2: the shortest form must be used, and the most significant bit of a 64-bit length is 0.
        let longest_of_shorter_form = match mask_at {
            2 => None,
            4 => Some(125),
            _ => Some(0xffff),
        };
        if len >> 63 != 0 || longest_of_shorter_form.is_some_and(|longest| len <= longest) {
            return Err(Violation::Protocol);
        }
        if opcode.is_control() {
            if !last || len > MAX_CONTROL {
                return Err(Violation::Protocol);
            }
        } else {
            self.judge_fragment(opcode, len, compressed)?;
        }
        Ok(Frame {
            opcode,
            last,
            mask,
            missing: len,
            taken: 0,
        })
    }

    fn judge_fragment(&mut self, opcode: Opcode, len: u64, compressed: bool) -> Result<(), Violation> {
        match (opcode, self.message) {
            (Opcode::Continuation, None) => return Err(Violation::Protocol),
            (Opcode::Continuation, Some(_)) => {}
            (_, Some(_)) => return Err(Violation::Protocol),
            (Opcode::Binary, None) if !self.rules.binary => return Err(Violation::Binary),
            (_, None) => {
                self.message_len = 0;
                self.message = Some(opcode);
                self.compressed = compressed;
            }
        }
        if self.compressed {
            // How long it is shows when it is inflated.
            return Ok(());
        }
        self.message_len = self.message_len.saturating_add(len);
        if self.message_len > self.rules.max_message {
            return Err(Violation::TooBig);
        }
        Ok(())
    }

    fn take_payload(&mut self, frame: &mut Frame, input: &mut &[u8]) -> Result<(), Violation> {
        let len = usize::try_from(frame.missing).unwrap_or(usize::MAX).min(input.len());
        let (part, rest) = input.split_at(len);
        *input = rest;
        if self.compressed && !frame.opcode.is_control() {
            let mut block = [0; UNMASKED];
            for part in part.chunks(UNMASKED) {
                let block = &mut block[..part.len()];
                block.copy_from_slice(part);
                frame.unmask(block);
                frame.taken += part.len() as u64;
                self.inflate(Some(block))?;
            }
            frame.missing -= len as u64;
            return Ok(());
        }
        let keep = frame.opcode.is_control() || self.rules.keep;
        let target = if frame.opcode.is_control() {
            &mut self.control
        } else {
            &mut self.payload
        };
        let start = target.len();
        target.extend_from_slice(part);
        frame.unmask(&mut target[start..]);
        let text = !frame.opcode.is_control() && self.message == Some(Opcode::Text);
        let valid = !text || self.utf8.take(&target[start..]);
        if !keep {
            target.truncate(start);
        }
        frame.taken += len as u64;
        frame.missing -= len as u64;
        if valid { Ok(()) } else { Err(Violation::Text) }
    }

    /// Inflates the next bytes of a compressed message, or its end.
    fn inflate(&mut self, bytes: Option<&[u8]>) -> Result<(), Violation> {
        let Decoder {
            rules,
            message,
            payload,
            message_len,
            utf8,
            inflater,
            ..
        } = self;
        let take = |text: &[u8]| {
            let room = usize::try_from(rules.max_message - *message_len).unwrap_or(usize::MAX);
            let fits = text.get(..room).unwrap_or(text);
            *message_len += fits.len() as u64;
            if *message == Some(Opcode::Text) && !utf8.take(fits) {
                return Err(Violation::Text);
            }
            if fits.len() < text.len() {
                return Err(Violation::TooBig);
            }
            if rules.keep {
                payload.extend_from_slice(fits);
            }
            Ok(())
        };
        let inflater = inflater.get_or_insert_default();
        match bytes {
            Some(bytes) => inflater.push(bytes, take),
            None => inflater.finish(take),
        }
    }

    fn received(&self, opcode: Opcode) -> Result<Received<'_>, Violation> {
        Ok(match opcode {
            Opcode::Text | Opcode::Continuation => Received::Text(&self.payload),
            Opcode::Binary => Received::Binary(&self.payload),
            Opcode::Ping => Received::Ping(&self.control),
            Opcode::Pong => Received::Pong,
            Opcode::Close => {
                judge_close(&self.control)?;
                Received::Close(&self.control)
            }
        })
    }
}

/// Length of a header, from its first two bytes.
fn header_len(header: &[u8; 14]) -> usize {
    let extended = match header[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if header[1] & 0x80 != 0 { 4 } else { 0 }
}

/// Checks a close payload (RFC 6455 §5.5.1 and §7.4): empty, or a code that may be sent and a reason in UTF-8.
fn judge_close(payload: &[u8]) -> Result<(), Violation> {
    match payload {
        [] => Ok(()),
        [_] => Err(Violation::Protocol),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                Err(Violation::Protocol)
            } else if str::from_utf8(reason).is_err() {
                Err(Violation::Text)
            } else {
                Ok(())
            }
        }
    }
}

/// Checks UTF-8 that arrives in pieces.
#[derive(Clone, Copy, Debug, Default)]
struct Utf8 {
    /// The incomplete character at the end of the last piece.
    cut: [u8; 4],
    cut_len: u8,
}

impl Utf8 {
    /// False if the bytes so far are not a prefix of valid UTF-8.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while self.cut_len > 0 {
            let Some((&byte, rest)) = bytes.split_first() else {
                return true;
            };
            bytes = rest;
            self.cut[self.cut_len as usize] = byte;
            self.cut_len += 1;
            match str::from_utf8(&self.cut[..self.cut_len as usize]) {
                Ok(_) => self.cut_len = 0,
                // `error_len` is None while more bytes could complete the character.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        let Err(error) = str::from_utf8(bytes) else { return true };
        let rest = &bytes[error.valid_up_to()..];
        if error.error_len().is_some() {
            return false;
        }
        self.cut[..rest.len()].copy_from_slice(rest);
        self.cut_len = rest.len() as u8;
        true
    }

    fn is_complete(&self) -> bool {
        self.cut_len == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::coding::deflate::{Deflater, TAIL};

    const RULES: Rules = Rules {
        max_message: 1 << 20,
        masked_only: false,
        binary: false,
        keep: true,
        deflate: false,
    };

    fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_frame(Opcode::Continuation, payload, &mut out);
        out[0] = first;
        if let Some(mask) = mask {
            let payload_at = out.len() - payload.len();
            out[1] |= 0x80;
            for (index, byte) in out[payload_at..].iter_mut().enumerate() {
                *byte ^= mask[index & 3];
            }
            out.splice(payload_at..payload_at, mask);
        }
        out
    }

    /// The decoder's results, as text.
    fn decode_cut(rules: Rules, bytes: &[u8], cut: usize) -> Vec<String> {
        let mut decoder = Decoder::new(rules);
        let mut got = Vec::new();
        for mut part in bytes.chunks(cut.max(1)) {
            loop {
                match decoder.next(&mut part) {
                    None => break,
                    Some(Ok(Received::Text(text))) => got.push(format!("text {}", String::from_utf8_lossy(text))),
                    Some(Ok(other)) => got.push(format!("{other:?}")),
                    Some(Err(violation)) => {
                        got.push(violation.to_string());
                        return got;
                    }
                }
            }
        }
        got
    }

    fn decode(bytes: &[u8]) -> Vec<String> {
        decode_cut(RULES, bytes, usize::MAX)
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept_key(b"/mQoZf6pRiv8+6o72GncLQ=="), "RaIOIcQ6CBoc74B9EKdH0avYZnw=");
    }

    #[test]
    fn a_key_is_sixteen_bytes_in_base64() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(is_key(b"abcdefghijklmnopqrstuv=="));
        for key in [
            "",
            "x",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ= ",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "dGhlIHNhbXBsZSBub25jZSEh",
            "dGhlIHNhbXBsZSBub25jZ*==",
            "dGhlIHNhbXBsZSBub25jZSBsb25nZXI=",
        ] {
            assert!(!is_key(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn words_are_found_in_any_case_and_whole() {
        assert!(has_word(b"Upgrade", "upgrade"));
        assert!(has_word(b"keep-alive ,\tUPGRADE", "upgrade"));
        assert!(!has_word(b"close", "upgrade"));
        assert!(!has_word(b"upgrade-insecure", "upgrade"));
        assert!(!has_word(b"", "upgrade"));
    }

    #[test]
    fn lengths_take_one_three_or_nine_bytes() {
        for (len, header) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65535, &[0x81, 126, 0xff, 0xff]),
            (65536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            push_header(Opcode::Text, len, &mut out);
            assert_eq!(out, header);
        }
    }

    #[test]
    fn the_examples_of_the_rfc() {
        assert_eq!(decode(&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]), ["text Hello"]);
        assert_eq!(
            decode(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]),
            ["text Hello"]
        );
        assert_eq!(
            decode(&[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f]),
            ["text Hello"]
        );
        assert_eq!(
            decode(&[0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]),
            ["Ping([72, 101, 108, 108, 111])"]
        );
    }

    #[test]
    fn control_frames_may_come_between_fragments() {
        let bytes = [
            frame(0x01, None, b"Hel"),
            frame(0x89, None, b"p"),
            frame(0x00, None, b""),
            frame(0x80, None, b"lo"),
        ];
        assert_eq!(decode(&bytes.concat()), ["Ping([112])", "text Hello"]);
    }

    #[test]
    fn the_last_fragment_may_be_empty() {
        assert_eq!(
            decode(&[frame(0x01, None, b"all"), frame(0x80, None, b"")].concat()),
            ["text all"]
        );
        assert_eq!(decode(&frame(0x81, Some([1, 2, 3, 4]), b"")), ["text "]);
    }

    #[test]
    fn a_character_may_be_cut_by_a_fragment() {
        let euro = "€".as_bytes();
        assert_eq!(
            decode(&[frame(0x01, None, &euro[..1]), frame(0x80, None, &euro[1..])].concat()),
            ["text €"]
        );
        let bad = [frame(0x01, None, &euro[..1]), frame(0x80, None, b"x")].concat();
        assert_eq!(decode(&bad), ["text that is not UTF-8"]);
        assert_eq!(decode(&frame(0x81, None, &euro[..2])), ["text that is not UTF-8"]);
        assert_eq!(decode(&frame(0x81, None, b"\xed\xa0\x80")), ["text that is not UTF-8"]);
    }

    #[test]
    fn what_the_protocol_forbids_is_a_violation() {
        for bad in [
            frame(0xc1, None, b"x"),
            frame(0x83, None, b"x"),
            frame(0x8b, None, b""),
            frame(0x09, None, b""),
            frame(0x89, None, &[0; 126]),
            frame(0x80, None, b"x"),
            [frame(0x01, None, b"x"), frame(0x81, None, b"x")].concat(),
            frame(0x88, None, b"\x03"),
            frame(0x88, None, b"\x03\xed"),
            frame(0x88, None, b"\x03\xe7"),
            vec![0x81, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(decode(&bad), ["protocol error"], "{bad:x?}");
        }
    }

    #[test]
    fn a_close_has_a_code_or_none() {
        assert_eq!(decode(&frame(0x88, None, b"")), ["Close([])"]);
        assert_eq!(
            decode(&frame(0x88, None, b"\x03\xe8bye")),
            ["Close([3, 232, 98, 121, 101])"]
        );
        assert_eq!(decode(&frame(0x88, None, b"\x03\xe8\xff")), ["text that is not UTF-8"]);
    }

    #[test]
    fn an_announced_gigabyte_takes_no_memory_and_is_refused() {
        let mut decoder = Decoder::new(RULES);
        let mut input = &[0x81u8, 127, 0, 0, 0, 0, 0x40, 0, 0, 0][..];
        assert_eq!(decoder.next(&mut input), Some(Err(Violation::TooBig)));
        assert_eq!(decoder.payload.capacity(), 0);
        let many = [
            frame(0x01, None, &[b'x'; 1 << 19]),
            frame(0x00, None, &[b'x'; 1 << 19]),
            frame(0x80, None, b"x"),
        ];
        assert_eq!(decode(&many.concat()), ["message too big"]);
    }

    #[test]
    fn binary_is_refused_unless_it_is_accepted() {
        assert_eq!(
            decode(&frame(0x82, None, b"\xff")),
            ["binary messages are not accepted here"]
        );
        let rules = Rules { binary: true, ..RULES };
        assert_eq!(decode_cut(rules, &frame(0x82, None, b"\xff"), 1), ["Binary([255])"]);
    }

    #[test]
    fn without_a_mask_only_if_the_rules_are_lax() {
        let strict = Rules {
            masked_only: true,
            ..RULES
        };
        assert_eq!(decode_cut(strict, &frame(0x81, None, b"x"), 9), ["protocol error"]);
        assert_eq!(decode_cut(strict, &frame(0x81, Some([9; 4]), b"x"), 9), ["text x"]);
    }

    #[test]
    fn what_nobody_wants_is_checked_and_forgotten() {
        let rules = Rules { keep: false, ..RULES };
        assert_eq!(decode_cut(rules, &frame(0x81, None, b"a text"), 3), ["text "]);
        assert_eq!(
            decode_cut(rules, &frame(0x81, None, b"\xff"), 3),
            ["text that is not UTF-8"]
        );
    }

    #[test]
    fn a_reason_too_long_for_a_close_frame_is_cut() {
        let mut out = Vec::new();
        push_close(1008, &[b'x'; 500], &mut out);
        assert_eq!(out.len(), 2 + 125);
        assert!(decode(&out)[0].starts_with("Close([3, 240, 120, 120,"));
        assert_eq!(out.len(), 2 + MAX_CONTROL as usize);
    }

    const DEFLATE: Rules = Rules { deflate: true, ..RULES };

    fn deflated(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(Deflater::new(6, 15).push(text, &mut out));
        out.strip_suffix(TAIL).unwrap_or(&[0]).to_vec()
    }

    #[test]
    fn compressed_messages_are_inflated() {
        let hello = deflated(b"Hello");
        let mask = Some([3, 1, 4, 1]);
        let bytes = [
            frame(0xc1, mask, &hello),
            frame(0x81, mask, b"as it is"),
            frame(0x41, mask, &hello[..2]),
            frame(0x89, mask, b"p"),
            frame(0x00, mask, &hello[2..4]),
            frame(0x00, mask, b""),
            frame(0x80, mask, &hello[4..]),
            frame(0xc1, mask, &[0]),
            frame(0xc1, None, &deflated("€".repeat(30_000).as_bytes())),
        ];
        for cut in [1, 2, 7, usize::MAX] {
            let got = decode_cut(DEFLATE, &bytes.concat(), cut);
            assert_eq!(
                got[..5],
                ["text Hello", "text as it is", "Ping([112])", "text Hello", "text "]
            );
            assert_eq!(got[5..], [format!("text {}", "€".repeat(30_000))]);
        }
    }

    #[test]
    fn the_bit_of_compression_is_only_in_the_first_frame_of_a_message_and_agreed_on() {
        let hello = deflated(b"Hello");
        assert_eq!(decode(&frame(0xc1, None, &hello)), ["protocol error"]);
        for bad in [
            frame(0xc9, None, b""),
            frame(0xc8, None, b""),
            frame(0xa1, None, &hello),
            frame(0xd1, None, &hello),
            [frame(0x41, None, &hello[..2]), frame(0xc0, None, &hello[2..])].concat(),
            [frame(0x01, None, b"x"), frame(0xc0, None, &hello)].concat(),
        ] {
            assert_eq!(decode_cut(DEFLATE, &bad, 9), ["protocol error"], "{bad:x?}");
        }
    }

    #[test]
    fn broken_compressed_messages_are_violations() {
        let broken = ["compressed data that is broken"];
        assert_eq!(Violation::Broken.code(), 1007);
        assert_eq!(decode_cut(DEFLATE, &frame(0xc1, None, &[0xff; 9]), 9), broken);
        assert_eq!(
            decode_cut(DEFLATE, &frame(0xc1, None, &deflated(&[b'x'; 99])[..3]), 9),
            broken
        );
        let text = deflated("€ and more".as_bytes());
        assert_eq!(decode_cut(DEFLATE, &frame(0x41, None, &text[..3]), 9), [""; 0]);
        for bad in [&b"\xed\xa0\x80"[..], b"\xff", b"cut \xe2\x82"] {
            assert_eq!(
                decode_cut(DEFLATE, &frame(0xc1, None, &deflated(bad)), 9),
                ["text that is not UTF-8"]
            );
        }
        let rules = Rules {
            binary: true,
            keep: false,
            ..DEFLATE
        };
        assert_eq!(
            decode_cut(rules, &frame(0xc2, None, &deflated(b"\xff")), 9),
            ["Binary([])"]
        );
    }

    #[test]
    fn a_bomb_takes_no_more_memory_than_the_largest_message() {
        let rules = Rules {
            max_message: 100_000,
            ..DEFLATE
        };
        let fits = frame(0xc2, None, &deflated(&[0; 100_000]));
        let rules = Rules { binary: true, ..rules };
        assert_eq!(decode_cut(rules, &fits, usize::MAX).len(), 1);
        let bomb = frame(0xc2, None, &deflated(&vec![0; 16 << 20]));
        let mut decoder = Decoder::new(rules);
        assert_eq!(decoder.next(&mut &bomb[..]), Some(Err(Violation::TooBig)));
        assert!(decoder.payload.capacity() <= 200_000);
        // In many fragments, none of which is long.
        let mut bomb = frame(0x42, None, &deflated(&[0; 60_000]));
        bomb.extend(frame(0x00, None, TAIL));
        bomb.extend(frame(0x80, None, &deflated(&[0; 60_000])));
        assert_eq!(decode_cut(rules, &bomb, 100), ["message too big"]);
    }

    proptest! {
        #[test]
        fn any_compressed_bytes_are_judged_without_panic(first in prop::sample::select(&[0xc1_u8, 0xc2, 0x41][..]),
            payload: Vec<u8>, rest: Vec<u8>, cut in 1usize..20) {
            decode_cut(Rules { binary: true, ..DEFLATE }, &[frame(first, None, &payload), rest].concat(), cut);
        }

        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            frames in prop::collection::vec((0usize..9, any::<Option<[u8; 4]>>(), "\\PC{0,200}"), 1..12),
            cut in 1usize..40,
        ) {
            let firsts = [0x81, 0x01, 0x00, 0x80, 0x89, 0x8a, 0x88, 0x82, 0x01];
            let bytes: Vec<u8> = frames
                .iter()
                .flat_map(|(first, mask, text)| frame(firsts[*first], *mask, text.as_bytes()))
                .collect();
            prop_assert_eq!(decode(&bytes), decode_cut(RULES, &bytes, cut));
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes: Vec<u8>, cut in 1usize..20) {
            decode_cut(RULES, &bytes, cut);
        }

        #[test]
        fn utf8_in_pieces_is_judged_as_utf8_in_whole(bytes in prop::collection::vec(prop::sample::select(
            &[b'a', 0xc3, 0xa4, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xed, 0xa0, 0xff][..]), 0..12), cut in 1usize..5) {
            let mut stream = Utf8::default();
            let valid = bytes.chunks(cut).all(|part| stream.take(part)) && stream.is_complete();
            prop_assert_eq!(valid, str::from_utf8(&bytes).is_ok());
        }
    }
}
