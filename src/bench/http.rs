//! The client side of HTTP/1.1 (RFC 9112), incremental: input may be cut anywhere.
//!
//! Deliberately stricter than a browser. A server that sends a chunk of the wrong length, or bytes after the last
//! chunk, has mixed up its connections or buffers; the bench exists to find that.

use std::fmt;

/// The input is not HTTP; names the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

/// A longer response head is invalid; nginx itself never sends more than a few hundred bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The parts of a response head relevant to a client that knows its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub body: Body,
    /// The server will close the connection after this response.
    pub close: bool,
    pub event_stream: bool,
}

impl ResponseHead {
    /// Parses the head at the start of `bytes`: the head and its length, or `None` while incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
            return match bytes.len() {
                0..=MAX_HEAD_BYTES => Ok(None),
                _ => Err(Malformed("a response head without an end")),
            };
        };
        let mut lines = bytes[..end]
            .split(|&byte| byte == b'\n')
            .map(|line| line.trim_ascii_end());
        let (status, http10) = status_line(lines.next().unwrap_or_default())?;
        let mut head = Self {
            status,
            body: match status {
                100..=199 | 204 | 304 => Body::Done,
                _ => Body::UntilClose,
            },
            close: http10,
            event_stream: false,
        };
        for line in lines {
            let Some(colon) = memchr::memchr(b':', line) else {
                return Err(Malformed("a header line without a colon"));
            };
            head.header(&line[..colon], line[colon + 1..].trim_ascii())?;
        }
        if head.body == Body::UntilClose {
            head.close = true;
        }
        Ok(Some((head, end + 4)))
    }

    fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        if name.eq_ignore_ascii_case(b"content-length") && self.body == Body::UntilClose {
            let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            self.body = Body::of_length(length.ok_or(Malformed("a Content-Length that is no number"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") && value.eq_ignore_ascii_case(b"chunked") {
            self.body = Body::Chunked(Chunk::Size { bytes: 0, digits: 0 });
        } else if name.eq_ignore_ascii_case(b"connection") {
            self.close =
                value.eq_ignore_ascii_case(b"close") || self.close && !value.eq_ignore_ascii_case(b"keep-alive");
        } else if name.eq_ignore_ascii_case(b"content-type") {
            self.event_stream = value.to_ascii_lowercase().starts_with(b"text/event-stream");
        }
        Ok(())
    }
}

/// The value of the first header of this name in the bytes of a head.
pub fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|&byte| byte == b'\n').skip(1).find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        line[..colon]
            .eq_ignore_ascii_case(name.as_bytes())
            .then(|| line[colon + 1..].trim_ascii())
    })
}

/// The status code, and whether this is HTTP/1.0.
fn status_line(line: &[u8]) -> Result<(u16, bool), Malformed> {
    let http10 = line.starts_with(b"HTTP/1.0 ");
    let code = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    Ok((
        code.ok_or(Malformed("a response that does not start with an HTTP/1 status line"))?,
        http10,
    ))
}

/// Position in a response body. Eight bytes and a tag, kept by each subscriber for its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes are still to come.
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Done,
}

/// The next expected element of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    Size {
        bytes: u32,
        digits: u8,
    },
    Extension {
        bytes: u32,
    },
    SizeLf {
        bytes: u32,
    },
    Data {
        left: u32,
    },
    DataCr,
    DataLf,
    /// `line` is the length so far of the current trailer line: an empty one ends the body.
    Trailer {
        line: u32,
    },
    TrailerLf {
        line: u32,
    },
}

impl Body {
    fn of_length(bytes: u64) -> Self {
        if bytes == 0 { Self::Done } else { Self::Length(bytes) }
    }

    /// Moves the body bytes of `input` to the end of `out` and returns how much of `input` was used: all of it unless
    /// the body ended before.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut rest = input;
        while !rest.is_empty() {
            match self {
                Self::Done => break,
                Self::UntilClose => {
                    out.extend_from_slice(rest);
                    rest = &[];
                }
                Self::Length(left) => {
                    let take = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    out.extend_from_slice(&rest[..take]);
                    rest = &rest[take..];
                    *self = Self::of_length(*left - take as u64);
                }
                Self::Chunked(Chunk::Data { left }) => {
                    let take = rest.len().min(*left as usize);
                    out.extend_from_slice(&rest[..take]);
                    rest = &rest[take..];
                    *left -= take as u32;
                    if *left == 0 {
                        *self = Self::Chunked(Chunk::DataCr);
                    }
                }
                Self::Chunked(chunk) => {
                    *self = match chunk.framing_byte(rest[0])? {
                        Some(next) => Self::Chunked(next),
                        None => Self::Done,
                    };
                    rest = &rest[1..];
                }
            }
        }
        Ok(input.len() - rest.len())
    }
}

impl Chunk {
    /// Consumes one byte of everything but chunk data; `None` at the end of the body.
    fn framing_byte(self, byte: u8) -> Result<Option<Self>, Malformed> {
        Ok(Some(match (self, byte) {
            (Self::Size { bytes, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == 8 || bytes > u32::MAX >> 4 {
                    return Err(Malformed("a chunk size above 4 GiB"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Self::Size {
                    bytes: bytes << 4 | digit,
                    digits: digits + 1,
                }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(Malformed("a chunk that does not start with its size")),
            (Self::Size { bytes, .. } | Self::Extension { bytes }, b'\r') => Self::SizeLf { bytes },
            (Self::Size { bytes, .. }, b';' | b' ' | b'\t') | (Self::Extension { bytes }, _) => {
                Self::Extension { bytes }
            }
            (Self::Size { .. }, _) => return Err(Malformed("a chunk size with a foreign character")),
            (Self::SizeLf { bytes: 0 }, b'\n') => Self::Trailer { line: 0 },
            (Self::SizeLf { bytes }, b'\n') => Self::Data { left: bytes },
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size { bytes: 0, digits: 0 },
            (Self::Trailer { line }, b'\r') => Self::TrailerLf { line },
            (Self::Trailer { line }, _) => Self::Trailer {
                line: line.saturating_add(1),
            },
            (Self::TrailerLf { line: 0 }, b'\n') => return Ok(None),
            (Self::TrailerLf { .. }, b'\n') => Self::Trailer { line: 0 },
            (Self::DataCr | Self::DataLf, _) => return Err(Malformed("a chunk longer than its size says")),
            (Self::SizeLf { .. } | Self::TrailerLf { .. }, _) => return Err(Malformed("a CR without its LF")),
            // `decode` takes chunk data as slices and never passes it here.
            (Self::Data { left }, _) => Self::Data { left },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
        Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n3\r\n: \n\r\nC;x=1\r\ndata: hello\n\r\n1\r\n\n\r\n0\r\n\r\n";

    /// Feeds `bytes` in two pieces, cut at `cut`, as two reads would deliver them.
    fn in_two(bytes: &[u8], cut: usize) -> Result<(ResponseHead, Vec<u8>, Body), Malformed> {
        let mut seen = Vec::new();
        let mut head: Option<ResponseHead> = None;
        let mut out = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            seen.extend_from_slice(piece);
            if head.is_none()
                && let Some((parsed, length)) = ResponseHead::parse(&seen)?
            {
                head = Some(parsed);
                seen.drain(..length);
            }
            if let Some(head) = &mut head {
                let used = head.body.decode(&seen, &mut out)?;
                seen.drain(..used);
            }
        }
        let head = head.expect("a whole head");
        Ok((head, out, head.body))
    }

    #[test]
    fn a_chunked_response_is_the_same_however_it_is_cut() {
        for cut in 0..=CHUNKED.len() {
            let (head, out, body) = in_two(CHUNKED, cut).unwrap();
            assert_eq!(
                (head.status, head.close, head.event_stream),
                (200, false, true),
                "cut at {cut}"
            );
            assert_eq!(out, b": \ndata: hello\n\n", "cut at {cut}");
            assert_eq!(body, Body::Done, "cut at {cut}");
        }
    }

    #[test]
    fn a_response_of_known_length_is_the_same_however_it_is_cut() {
        let bytes = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\nConnection: close\r\n\r\nno-noHTTP/1.1";
        for cut in 0..=bytes.len() {
            let (head, out, body) = in_two(bytes, cut).unwrap();
            assert_eq!((head.status, head.close), (403, true), "cut at {cut}");
            assert_eq!(
                (out.as_slice(), body),
                (b"no-no".as_slice(), Body::Done),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn bodiless_responses_end_with_their_head() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
        ] {
            let (head, length) = ResponseHead::parse(text.as_bytes()).unwrap().unwrap();
            assert_eq!((head.body, head.close, length), (Body::Done, false, text.len()));
        }
    }

    #[test]
    fn a_body_of_unknown_length_lasts_until_the_connection_closes() {
        let (head, _) = ResponseHead::parse(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.body, head.close), (Body::UntilClose, true));
    }

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = b"HTTP/1.1 200 OK\r\nEtag: W/3\r\nX: a:b\r\n\r\n";
        assert_eq!(header(head, "ETag"), Some(b"W/3".as_slice()));
        assert_eq!((header(head, "x"), header(head, "y")), (Some(b"a:b".as_slice()), None));
    }

    #[test]
    fn broken_framing_is_found() {
        for (bytes, what) in [
            (b"3\r\nabcd\r\n".as_slice(), "too long"),
            (b"4\r\nabc\r\n0", "too short"),
            (b"\r\n", "no size"),
            (b"3x\r\n", "foreign character"),
            (b"3\rabc", "CR without LF"),
            (b"fffffffff\r\n", "too big"),
        ] {
            let mut body = Body::Chunked(Chunk::Size { bytes: 0, digits: 0 });
            assert!(body.decode(bytes, &mut Vec::new()).is_err(), "{what}");
        }
        assert!(ResponseHead::parse(b"data: x\n\r\n\r\n").is_err());
        assert!(ResponseHead::parse(&[b'x'; MAX_HEAD_BYTES + 1]).is_err());
    }

    #[test]
    fn what_follows_the_last_chunk_is_not_part_of_the_body() {
        let mut body = Body::Chunked(Chunk::Size { bytes: 0, digits: 0 });
        let mut out = Vec::new();
        assert_eq!(body.decode(b"1\r\na\r\n0\r\nX: y\r\n\r\ndata: x", &mut out), Ok(17));
        assert_eq!((body, out.as_slice()), (Body::Done, b"a".as_slice()));
    }
}
