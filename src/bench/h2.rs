//! The client side of HTTP/2 (RFC 9113): frames, flow control and header blocks of one connection.
//!
//! For very many connections with few streams each: an idle connection uses no heap memory. The client allows the
//! server no dynamic table, so that one decoder serves all connections; like browsers, it enters the headers of its
//! first request into the server's table and then refers to them.

use std::ops::Range;

use loona_hpack::Decoder;
use loona_hpack::encoder::encode_integer_into;

use crate::http::{Body, Malformed, ResponseHead};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADER_BYTES: usize = 9;

/// Maximum payload accepted by this side: the default.
const MAX_FRAME: usize = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;

const DEFAULT_WINDOW: u32 = 65_535;
const DEFAULT_TABLE: u32 = 4_096;

/// Chromium's windows for a stream and a connection.
const STREAM_WINDOW: u32 = 6 << 20;
const CONNECTION_WINDOW: u32 = 15 << 20;

/// Error code of a stream that the client no longer needs.
const CANCEL: u32 = 8;

/// A header field of a response.
pub type Field = (Vec<u8>, Vec<u8>);

/// A received event of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Head {
        stream: u32,
        fields: Vec<Field>,
        end: bool,
    },
    Data {
        stream: u32,
        /// Range in the input.
        bytes: Range<usize>,
        /// Bytes taken from the stream's window.
        taken: u32,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    /// No stream above `last` will be served.
    GoAway {
        last: u32,
        code: u32,
    },
    /// The window of this stream, or of the connection if it is 0, has changed by this much.
    Room {
        stream: u32,
        more: i64,
    },
}

/// A connection's state between frames.
#[derive(Debug)]
pub struct Connection {
    /// The number of the next stream.
    next_stream: u32,
    /// An incomplete frame of a kind handled as a whole.
    rest: Vec<u8>,
    /// A DATA frame whose payload is incomplete.
    data: Option<Data>,
    /// A header block continued in CONTINUATION frames: stream, whether it ends the stream, bytes.
    block: Option<Box<(u32, bool, Vec<u8>)>>,
    /// Bytes taken from the connection's window since the last WINDOW_UPDATE.
    taken: u32,
    /// Maximum concurrent streams allowed by the server.
    pub max_streams: u32,
    /// The server's windows: of this connection, initial of a stream; and its maximum frame size.
    window: i64,
    stream_window: u32,
    max_frame: u32,
    /// The server's table holds the headers of [`Request`].
    has_table: bool,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    stream: u32,
    left: u32,
    padding: u32,
    /// Flow-controlled bytes not reported by an event yet.
    taken: u32,
    end: bool,
}

impl Connection {
    /// Adds the client's preface to `out`.
    pub fn start(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(PREFACE);
        let settings = [
            (HEADER_TABLE_SIZE, 0),
            (ENABLE_PUSH, 0),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        ];
        frame_header(out, settings.len() * 6, SETTINGS, 0, 0);
        for (setting, value) in settings {
            out.extend_from_slice(&setting.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        window_update(out, 0, CONNECTION_WINDOW - DEFAULT_WINDOW);
        Self {
            next_stream: 1,
            rest: Vec::new(),
            data: None,
            block: None,
            taken: 0,
            max_streams: u32::MAX,
            window: i64::from(DEFAULT_WINDOW),
            stream_window: DEFAULT_WINDOW,
            max_frame: MAX_FRAME as u32,
            has_table: false,
        }
    }

    /// Handles input from the server: events for the caller, replies to the server in `out`.
    pub fn receive(
        &mut self,
        input: &[u8],
        codec: &mut Decoder<'_>,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
    ) -> Result<(), Malformed> {
        let mut at = 0;
        loop {
            if self.data.is_some() {
                at += self.payload(at, input.len(), events);
            }
            if at == input.len() {
                return Ok(());
            }
            if self.rest.is_empty()
                && let Some(frame) = Frame::at(&input[at..])?
            {
                // The usual case, without a copy.
                at += frame.length;
                self.frame(&frame, codec, out, events)?;
                continue;
            }
            // The header first: it contains the frame's length.
            let more = (Frame::wanted(&self.rest)? - self.rest.len()).min(input.len() - at);
            self.rest.extend_from_slice(&input[at..at + more]);
            at += more;
            let rest = std::mem::take(&mut self.rest);
            match Frame::at(&rest)? {
                Some(frame) => self.frame(&frame, codec, out, events)?,
                None => self.rest = rest,
            }
        }
    }

    /// Handles bytes of a DATA frame from `at` on; returns how many.
    fn payload(&mut self, at: usize, length: usize, events: &mut Vec<Event>) -> usize {
        let Some(data) = &mut self.data else {
            return 0;
        };
        let take = (data.left as usize).min(length - at);
        data.left -= take as u32;
        let skip = (data.padding as usize).min(length - at - take);
        data.padding -= skip as u32;
        let over = data.left == 0 && data.padding == 0;
        events.push(Event::Data {
            stream: data.stream,
            bytes: at..at + take,
            taken: std::mem::take(&mut data.taken),
            end: over && data.end,
        });
        if over {
            self.data = None;
        }
        take + skip
    }

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        codec: &mut Decoder<'_>,
        out: &mut Vec<u8>,
        events: &mut Vec<Event>,
    ) -> Result<(), Malformed> {
        let Frame {
            kind,
            flags,
            stream,
            payload,
            ..
        } = *frame;
        if self.block.is_some() && kind != CONTINUATION {
            return Err(Malformed("a header block that is interrupted"));
        }
        match kind {
            DATA => {
                let size = frame.size as u32;
                self.taken += size;
                if stream == 0 {
                    return Err(Malformed("DATA without a stream"));
                }
                if self.taken > CONNECTION_WINDOW {
                    return Err(Malformed("more DATA than the connection's window allows"));
                }
                if self.taken >= CONNECTION_WINDOW / 2 {
                    window_update(out, 0, self.taken);
                    self.taken = 0;
                }
                let padded = u32::from(flags & PADDED != 0);
                let padding = u32::from(payload.first().copied().unwrap_or(0)) * padded;
                self.data = Some(Data {
                    stream,
                    left: size
                        .checked_sub(padding + padded)
                        .ok_or(Malformed("more padding than DATA"))?,
                    padding,
                    taken: size,
                    end: flags & END_STREAM != 0,
                });
            }
            HEADERS => {
                let fragment = unpadded(payload, flags)?;
                let fragment = match flags & PRIORITY {
                    0 => fragment,
                    _ => fragment.get(5..).ok_or(Malformed("HEADERS too short"))?,
                };
                self.header_block(stream, flags & END_STREAM != 0, fragment.to_vec(), flags, codec, events)?;
            }
            CONTINUATION => {
                let block = self.block.take().ok_or(Malformed("a CONTINUATION of nothing"))?;
                let (began, end, mut bytes) = *block;
                if began != stream || bytes.len() > 4 * MAX_FRAME {
                    return Err(Malformed("a CONTINUATION of something else"));
                }
                bytes.extend_from_slice(payload);
                self.header_block(stream, end, bytes, flags, codec, events)?;
            }
            RST_STREAM => events.push(Event::Reset {
                stream,
                code: number(payload, 0)?,
            }),
            SETTINGS if flags & ACK == 0 => self.settings(payload, out, events)?,
            PING if flags & ACK == 0 => {
                if payload.len() != 8 {
                    return Err(Malformed("a PING of a wrong length"));
                }
                frame_header(out, payload.len(), PING, ACK, 0);
                out.extend_from_slice(payload);
            }
            GOAWAY => events.push(Event::GoAway {
                last: number(payload, 0)? & STREAM_MASK,
                code: number(payload, 4)?,
            }),
            WINDOW_UPDATE => {
                let mut more = i64::from(number(payload, 0)? & STREAM_MASK);
                if stream == 0 {
                    self.window += std::mem::take(&mut more);
                }
                events.push(Event::Room { stream, more });
            }
            PUSH_PROMISE => return Err(Malformed("a PUSH_PROMISE that was not allowed")),
            // Acknowledgements, priorities, and unknown frame types.
            _ => {}
        }
        Ok(())
    }

    fn header_block(
        &mut self,
        stream: u32,
        end: bool,
        bytes: Vec<u8>,
        flags: u8,
        codec: &mut Decoder<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), Malformed> {
        if flags & END_HEADERS == 0 {
            self.block = Some(Box::new((stream, end, bytes)));
            return Ok(());
        }
        let fields = codec.decode(&bytes).map_err(|_| Malformed("a broken header block"))?;
        events.push(Event::Head { stream, fields, end });
        Ok(())
    }

    fn settings(&mut self, payload: &[u8], out: &mut Vec<u8>, events: &mut Vec<Event>) -> Result<(), Malformed> {
        let (settings, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Malformed("SETTINGS of a wrong length"));
        }
        for setting in settings {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = number(setting, 2)?;
            match name {
                MAX_CONCURRENT_STREAMS => self.max_streams = value,
                INITIAL_WINDOW_SIZE => {
                    let more = i64::from(value) - i64::from(self.stream_window);
                    self.stream_window = value;
                    events.push(Event::Room { stream: 0, more });
                }
                MAX_FRAME_SIZE => self.max_frame = value,
                HEADER_TABLE_SIZE if value < DEFAULT_TABLE => {
                    return Err(Malformed("SETTINGS with a smaller header table than the default"));
                }
                _ => {}
            }
        }
        frame_header(out, 0, SETTINGS, ACK, 0);
        Ok(())
    }

    /// Adds a request without a body, and returns its stream's number.
    pub fn get<N: AsRef<str>, V: AsRef<str>>(
        &mut self,
        request: &Request,
        path: &str,
        more: &[(N, V)],
        out: &mut Vec<u8>,
    ) -> u32 {
        self.request(request, path, more, END_STREAM, out)
    }

    /// Adds the head of a request with a body, and returns the stream's number; send the body with [`Self::send`].
    pub fn post<N: AsRef<str>, V: AsRef<str>>(
        &mut self,
        request: &Request,
        path: &str,
        more: &[(N, V)],
        out: &mut Vec<u8>,
    ) -> (u32, i64) {
        let stream = self.request(request, path, more, 0, out);
        (stream, i64::from(self.stream_window))
    }

    fn request<N: AsRef<str>, V: AsRef<str>>(
        &mut self,
        request: &Request,
        path: &str,
        more: &[(N, V)],
        flags: u8,
        out: &mut Vec<u8>,
    ) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        let at = out.len();
        frame_header(out, 0, HEADERS, flags | END_HEADERS, stream);
        let indexed = if self.has_table { &request.later } else { &request.first };
        out.extend_from_slice(indexed);
        literal(out, 0x00, 4, PATH, path);
        more.iter()
            .for_each(|(name, value)| new_literal(out, 0x00, name.as_ref(), value.as_ref()));
        self.has_table = true;
        let length = (out.len() - at - HEADER_BYTES) as u32;
        out[at..at + 3].copy_from_slice(&length.to_be_bytes()[1..]);
        stream
    }

    /// Adds as much of a body's rest as both windows allow and returns its length. `window` is the stream's.
    pub fn send(&mut self, stream: u32, body: &[u8], window: &mut i64, out: &mut Vec<u8>) -> usize {
        let mut sent = 0;
        loop {
            let room = self.window.min(*window).clamp(0, i64::from(self.max_frame)) as usize;
            let length = room.min(body.len() - sent);
            let last = sent + length == body.len();
            if length == 0 && !last {
                return sent;
            }
            frame_header(out, length, DATA, if last { END_STREAM } else { 0 }, stream);
            out.extend_from_slice(&body[sent..sent + length]);
            sent += length;
            self.window -= length as i64;
            *window -= length as i64;
            if last {
                return sent;
            }
        }
    }
}

/// Restores a stream's window once half of it is `taken`; `Err` if the server exceeded it.
pub fn replenish(stream: u32, taken: &mut u32, out: &mut Vec<u8>) -> Result<(), Malformed> {
    if *taken > STREAM_WINDOW {
        return Err(Malformed("more DATA than the stream's window allows"));
    }
    if *taken >= STREAM_WINDOW / 2 {
        window_update(out, stream, *taken);
        *taken = 0;
    }
    Ok(())
}

/// Adds a cancellation of a stream.
pub fn cancel(stream: u32, out: &mut Vec<u8>) {
    frame_header(out, 4, RST_STREAM, 0, stream);
    out.extend_from_slice(&CANCEL.to_be_bytes());
}

fn window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    frame_header(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&more.to_be_bytes());
}

fn frame_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

const STREAM_MASK: u32 = 0x7fff_ffff;

/// The big-endian number at `at`.
fn number(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let four = bytes.get(at..).and_then(|bytes| bytes.first_chunk::<4>());
    four.map(|bytes| u32::from_be_bytes(*bytes))
        .ok_or(Malformed("a frame that is too short"))
}

/// The payload of a HEADERS frame without its padding.
fn unpadded(payload: &[u8], flags: u8) -> Result<&[u8], Malformed> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let rest = payload
        .split_first()
        .and_then(|(padding, rest)| rest.get(..rest.len().checked_sub(usize::from(*padding))?));
    rest.ok_or(Malformed("more padding than there is of the frame"))
}

/// A frame, or the header of a DATA frame.
#[derive(Clone, Copy, Debug)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Of a DATA frame, only the padding length.
    payload: &'a [u8],
    /// Bytes of the whole payload.
    size: usize,
    /// Bytes of header and `payload` at the start of the input.
    length: usize,
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes`, if complete.
    fn at(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let wanted = Self::wanted(bytes)?;
        if bytes.len() < wanted {
            return Ok(None);
        }
        let size = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        Ok(Some(Self {
            kind: bytes[3],
            flags: bytes[4],
            stream: number(bytes, 5)? & STREAM_MASK,
            payload: &bytes[HEADER_BYTES..wanted],
            size,
            length: wanted,
        }))
    }

    /// Bytes needed: a frame header, or, if that is complete, the whole frame.
    fn wanted(bytes: &[u8]) -> Result<usize, Malformed> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(HEADER_BYTES);
        };
        let size = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if size > MAX_FRAME {
            return Err(Malformed("a frame of more than 16 KiB"));
        }
        Ok(HEADER_BYTES
            + match header[3] {
                DATA if header[4] & PADDED == 0 => 0,
                DATA if size == 0 => return Err(Malformed("padded DATA without its padding")),
                DATA => 1,
                _ => size,
            })
    }
}

/// The header fields common to all requests of a kind, as header blocks.
#[derive(Clone, Debug)]
pub struct Request {
    /// For a connection's first request: the server must store the headers in its table.
    first: Vec<u8>,
    /// For all others: references to the table.
    later: Vec<u8>,
}

/// Entries of the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
const GET: u8 = 2;
const POST: u8 = 3;
const PATH: usize = 4;
const HTTP: u8 = 6;
const HTTPS: u8 = 7;
const STATIC_ENTRIES: usize = 61;

const INDEXED: u8 = 0x80;
const INDEXING: u8 = 0x40;

impl Request {
    /// `headers` are as in HTTP/1: `Name: value` lines. Those without a place in HTTP/2 are left out.
    pub fn new(post: bool, encrypted: bool, authority: &str, headers: &str) -> Self {
        let pseudo = [
            INDEXED | if post { POST } else { GET },
            INDEXED | if encrypted { HTTPS } else { HTTP },
        ];
        let (mut first, mut later) = (pseudo.to_vec(), pseudo.to_vec());
        literal(&mut first, INDEXING, 6, AUTHORITY, authority);
        let mut entries = 1;
        for (name, value) in headers.lines().filter_map(|line| line.split_once(": ")) {
            let name = name.to_ascii_lowercase();
            if !["connection", "upgrade", "host"].contains(&name.as_str()) {
                new_literal(&mut first, INDEXING, &name, value);
                entries += 1;
            }
        }
        // The newest entry has the lowest number.
        (0..entries).for_each(|entry| integer(&mut later, INDEXED, 7, STATIC_ENTRIES + entries - entry));
        Self { first, later }
    }
}

/// A field with an indexed name; the representation's first bits are `bits`, its index has a prefix of `prefix` bits.
fn literal(out: &mut Vec<u8>, bits: u8, prefix: u8, name: usize, value: &str) {
    integer(out, bits, prefix, name);
    text(out, value);
}

/// A field with a literal name.
fn new_literal(out: &mut Vec<u8>, bits: u8, name: &str, value: &str) {
    out.push(bits);
    text(out, name);
    text(out, value);
}

fn text(out: &mut Vec<u8>, text: &str) {
    integer(out, 0, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, bits: u8, prefix: u8, value: usize) {
    // Writing to a vector cannot fail.
    let _ = encode_integer_into(value, prefix, bits, out);
}

/// The head of a response in HTTP/1 form, so that one check serves both. Its body ends with its stream.
pub fn http1_head(fields: &[Field]) -> Result<(ResponseHead, Vec<u8>), Malformed> {
    let status = fields.iter().find(|(name, _)| name == b":status");
    let status = status.ok_or(Malformed("a head without a status"))?;
    let mut raw = [b"HTTP/1.1 ", status.1.as_slice(), b"\r\n"].concat();
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(b":")) {
        raw.extend_from_slice(&[name, b": ".as_slice(), value, b"\r\n"].concat());
    }
    raw.extend_from_slice(b"\r\n");
    let (head, _) = ResponseHead::parse(&raw)?.ok_or(Malformed("a head that has no end"))?;
    let head = ResponseHead {
        body: Body::UntilClose,
        close: false,
        ..head
    };
    Ok((head, raw))
}

/// A decoder of response heads, for all connections of a process.
pub fn decoder() -> Decoder<'static> {
    let mut decoder = Decoder::new();
    decoder.set_max_table_size(0);
    decoder.set_max_allowed_table_size(0);
    decoder
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All output of a connection for `bytes`, fed in pieces of `step`.
    fn receive(bytes: &[u8], step: usize) -> (Vec<Event>, Vec<u8>, Result<(), Malformed>) {
        let mut connection = Connection::start(&mut Vec::new());
        let (mut all, mut out, mut at) = (Vec::new(), Vec::new(), 0);
        for piece in bytes.chunks(step) {
            let mut events = Vec::new();
            let received = connection.receive(piece, &mut decoder(), &mut out, &mut events);
            for mut event in events {
                if let Event::Data { bytes, .. } = &mut event {
                    *bytes = bytes.start + at..bytes.end + at;
                }
                all.push(event);
            }
            at += piece.len();
            if received.is_err() {
                return (all, out, received);
            }
        }
        (all, out, Ok(()))
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame_header(&mut out, payload.len(), kind, flags, stream);
        out.extend_from_slice(payload);
        out
    }

    /// `:status: 200` from the static table, and a literal field.
    fn block() -> Vec<u8> {
        let mut block = vec![0x20, 0x88];
        new_literal(&mut block, 0, "content-type", "text/event-stream");
        block
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let block = block();
        let bytes = [
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 128]),
            frame(SETTINGS, ACK, 0, &[]),
            frame(HEADERS, 0, 1, &block[..5]),
            frame(CONTINUATION, END_HEADERS, 1, &block[5..]),
            frame(DATA, 0, 1, b"hello"),
            frame(DATA, PADDED, 1, b"\x02hey!!"),
            frame(PING, 0, 0, b"12345678"),
            frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]),
            frame(0x77, 3, 9, b"what is not known is skipped"),
            frame(DATA, END_STREAM, 1, b""),
            frame(RST_STREAM, 0, 3, &[0, 0, 0, 7]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
        ]
        .concat();
        let texts = |events: &[Event]| {
            let (mut text, mut taken) = (Vec::new(), 0);
            for event in events {
                if let Event::Data {
                    bytes: part,
                    taken: more,
                    ..
                } = event
                {
                    text.extend_from_slice(&bytes[part.clone()]);
                    taken += more;
                }
            }
            (text, taken)
        };
        let others = |events: Vec<Event>| {
            let mut events = events;
            events.retain(|event| !matches!(event, Event::Data { end: false, .. }));
            let at = |event: &mut Event| {
                if let Event::Data { bytes, .. } = event {
                    *bytes = 0..0;
                }
            };
            events.iter_mut().for_each(at);
            events
        };
        let (whole, replies, received) = receive(&bytes, bytes.len());
        assert_eq!(received, Ok(()));
        assert_eq!(texts(&whole), (b"hellohey!".as_slice()[..8].to_vec(), 11));
        assert_eq!(
            replies,
            [frame(SETTINGS, ACK, 0, &[]), frame(PING, ACK, 0, b"12345678")].concat()
        );
        let (text, rest) = (texts(&whole), others(whole));
        assert!(matches!(&rest[0], Event::Head { stream: 1, fields, end: false } if fields.len() == 2));
        assert!(matches!(rest[2], Event::Data { end: true, .. }));
        assert_eq!(rest.len(), 5);
        for step in 1..40 {
            let (cut, cut_replies, _) = receive(&bytes, step);
            assert_eq!((texts(&cut), &cut_replies), (text.clone(), &replies), "{step}");
            assert_eq!(others(cut), rest, "{step}");
        }
    }

    #[test]
    fn what_is_no_http2_is_refused() {
        let huge = frame(DATA, 0, 1, &[0; MAX_FRAME + 1]);
        for bytes in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            huge,
            frame(DATA, PADDED, 1, b"\x09hey"),
            frame(DATA, PADDED, 1, b""),
            frame(DATA, 0, 0, b"x"),
            frame(HEADERS, END_HEADERS, 1, &[0xff]),
            [frame(HEADERS, 0, 1, &[0x88]), frame(DATA, 0, 1, b"x")].concat(),
            frame(CONTINUATION, END_HEADERS, 1, &[0x88]),
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]),
            frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]),
            frame(SETTINGS, 0, 0, &[0]),
            frame(PING, 0, 0, b"x"),
            frame(RST_STREAM, 0, 1, b"x"),
        ] {
            assert!(receive(&bytes, bytes.len()).2.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn windows_are_given_back_and_must_not_be_overrun() {
        let data = frame(DATA, 0, 1, &[0; MAX_FRAME]);
        let half = CONNECTION_WINDOW as usize / 2 / MAX_FRAME;
        let (_, out, _) = receive(&data.repeat(half - 1), usize::MAX);
        assert!(out.is_empty());
        let (_, out, received) = receive(&data.repeat(2 * half), 100_000);
        let given = (half * MAX_FRAME) as u32;
        assert_eq!(out, frame(WINDOW_UPDATE, 0, 0, &given.to_be_bytes()).repeat(2));
        assert_eq!(received, Ok(()));
        let (mut taken, mut out) = (STREAM_WINDOW / 2, Vec::new());
        assert_eq!(replenish(5, &mut taken, &mut out), Ok(()));
        assert_eq!(
            (taken, out),
            (0, frame(WINDOW_UPDATE, 0, 5, &(STREAM_WINDOW / 2).to_be_bytes()))
        );
        assert!(replenish(5, &mut (STREAM_WINDOW + 1), &mut Vec::new()).is_err());
    }

    #[test]
    fn a_server_understands_the_first_request_and_all_others() {
        let headers = "Host: x\r\nUser-Agent: some browser\r\nAccept: */*\r\nConnection: keep-alive\r\n";
        let request = Request::new(false, true, "example.com:8443", headers);
        let mut connection = Connection::start(&mut Vec::new());
        let mut server = Decoder::new();
        let wanted = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "example.com:8443"),
            ("user-agent", "some browser"),
            ("accept", "*/*"),
            (":path", "/ev/a"),
            ("last-event-id", "7"),
        ];
        let mut lengths = Vec::new();
        for stream in [1, 3, 5] {
            let mut out = Vec::new();
            assert_eq!(
                connection.get(&request, "/ev/a", &[("last-event-id", "7")], &mut out),
                stream
            );
            let frame = Frame::at(&out).unwrap().unwrap();
            assert_eq!(
                (frame.kind, frame.flags, frame.stream, frame.length),
                (HEADERS, 5, stream, out.len())
            );
            let fields = server.decode(frame.payload).unwrap();
            let mut fields: Vec<(&str, &str)> = fields
                .iter()
                .map(|(name, value)| (std::str::from_utf8(name).unwrap(), std::str::from_utf8(value).unwrap()))
                .collect();
            fields.sort_by_key(|(name, _)| wanted.iter().position(|(wanted, _)| wanted == name));
            assert_eq!(fields, wanted);
            lengths.push(out.len());
        }
        assert!(lengths[1] < lengths[0] - 30 && lengths[1] == lengths[2], "{lengths:?}");
    }

    #[test]
    fn a_body_is_sent_as_far_as_both_windows_allow() {
        let mut connection = Connection::start(&mut Vec::new());
        let request = Request::new(true, false, "x", "");
        let mut out = Vec::new();
        let (stream, mut window) = connection.post(&request, "/pub", &[("content-length", "100000")], &mut out);
        let body = vec![b'x'; 100_000];
        out.clear();
        let sent = connection.send(stream, &body, &mut window, &mut out);
        assert_eq!((sent, window), (65_535, 0));
        assert_eq!(connection.send(stream, &body[sent..], &mut window, &mut out), 0);
        window += 50_000;
        assert_eq!(
            connection.send(stream, &body[sent..], &mut window, &mut out),
            0,
            "the connection's"
        );
        connection.window += 50_000;
        out.clear();
        assert_eq!(
            connection.send(stream, &body[sent..], &mut window, &mut out),
            100_000 - sent
        );
        assert_eq!(out[4], 0, "not the last frame");
        assert_eq!(out[2 * (HEADER_BYTES + MAX_FRAME) + 4], END_STREAM);
    }

    #[test]
    fn a_head_is_judged_as_that_of_http1() {
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let fields = [field(":status", "200"), field("content-type", "text/event-stream")];
        let (head, raw) = http1_head(&fields).unwrap();
        assert!(head.status == 200 && head.event_stream && head.body == Body::UntilClose && !head.close);
        assert!(raw.ends_with(b"\r\n\r\n"));
        assert!(http1_head(&fields[1..]).is_err());
    }
}
