//! The event stream format of EventSource (WHATWG HTML §9.2), incremental: input may be cut anywhere.
//!
//! Unknown fields, which a browser ignores, are reported as [`Item::Foreign`]: in a stream fed only by our own
//! publishers they are foreign data or a framing error.

use super::item::{Item, Message};

/// The undispatched rest of a stream: no heap memory as long as events arrive whole.
#[derive(Debug, Default)]
pub struct EventStream {
    rest: Vec<u8>,
    /// The last byte was a CR, so that a following LF belongs to the same line end.
    after_cr: bool,
}

impl EventStream {
    /// Passes every item completed by `input` to `sink`.
    pub fn feed(&mut self, input: &[u8], mut sink: impl FnMut(Item<'_>)) {
        let Some(&last) = input.last() else {
            return;
        };
        let input = match input {
            [b'\n', rest @ ..] if self.after_cr => rest,
            input => input,
        };
        self.after_cr = last == b'\r';
        if !self.rest.is_empty() && memchr::memchr2(b'\r', b'\n', input).is_none() {
            // More of a long line: rescanning the earlier part each time would be quadratic.
            self.rest.extend_from_slice(input);
        } else if self.rest.is_empty() {
            let used = items(input, &mut sink);
            self.rest.extend_from_slice(&input[used..]);
        } else {
            let mut all = std::mem::take(&mut self.rest);
            all.extend_from_slice(input);
            let used = items(&all, &mut sink);
            if used < all.len() {
                all.drain(..used);
                self.rest = all;
            }
        }
    }

    /// Whether an event has started but not ended.
    pub fn is_inside_event(&self) -> bool {
        !self.rest.is_empty()
    }
}

/// Passes on the complete items at the start of `text` and returns their length in bytes.
fn items(text: &[u8], sink: &mut impl FnMut(Item<'_>)) -> usize {
    let mut used = 0;
    let mut at = 0;
    let mut id = None;
    let mut has_type = false;
    let mut data: Option<&[u8]> = None;
    let mut joined = Vec::new();
    // Comments inside an event count once it is complete: until then its lines may be read again.
    let mut comments = 0;
    while let Some((line, next)) = line(text, at) {
        at = next;
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (
                &line[..colon],
                line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]),
            ),
            None => (line, [].as_slice()),
        };
        match field {
            b"" if line.is_empty() => {
                if let Some(first) = data.take() {
                    let data = if joined.is_empty() { first } else { joined.as_slice() };
                    sink(Item::Message(Message { id, data }));
                }
                (0..comments).for_each(|_| sink(Item::Comment));
                (id, has_type, comments) = (None, false, 0);
                joined.clear();
                used = at;
            }
            b"" if data.is_none() && id.is_none() && !has_type => {
                sink(Item::Comment);
                used = at;
            }
            b"" => comments += 1,
            b"data" => match data {
                None => data = Some(value),
                Some(first) => {
                    if joined.is_empty() {
                        joined.extend_from_slice(first);
                    }
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                }
            },
            b"id" => id = Some(value),
            b"event" => has_type = true,
            b"retry" => {}
            _ => {
                sink(Item::Foreign(line));
                used = at;
                (id, has_type, data) = (None, false, None);
                joined.clear();
            }
        }
    }
    used
}

/// The line at `at` without its end, and the start of the next one; `None` while incomplete.
fn line(text: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + memchr::memchr2(b'\r', b'\n', &text[at..])?;
    let next = match text[end..] {
        [b'\r', b'\n', ..] => end + 2,
        _ => end + 1,
    };
    Some((&text[at..end], next))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All items of a stream, in a form that can be stored and compared.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        messages: Vec<(Option<String>, String)>,
        comments: usize,
        foreign: Vec<String>,
    }

    fn owned(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn feed(pieces: &[&[u8]]) -> (Seen, usize) {
        let mut stream = EventStream::default();
        let mut seen = Seen::default();
        for piece in pieces {
            stream.feed(piece, |item| match item {
                Item::Message(message) => {
                    seen.messages.push((message.id.map(owned), owned(message.data)));
                }
                Item::Comment => seen.comments += 1,
                Item::Foreign(line) => seen.foreign.push(owned(line)),
                Item::Ping(_) | Item::Close => unreachable!("an event stream has neither"),
            });
        }
        (seen, stream.rest.len())
    }

    const STREAM: &str = ": \nid: 1\nevent: e\ndata: one\n\ndata: a\r\n: -1\ndata:b\rdata: \r\n\r\n: -1\nretry: 5\n\nid: 3\rdata: x:y\r\r";

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let (whole, unfinished) = feed(&[STREAM.as_bytes()]);
        assert_eq!(unfinished, 0);
        assert_eq!(whole.comments, 3);
        assert_eq!(
            whole.messages,
            [
                (Some("1".into()), "one".into()),
                (None, "a\nb\n".into()),
                (Some("3".into()), "x:y".into()),
            ]
        );
        for cut in 0..=STREAM.len() {
            let (head, tail) = STREAM.as_bytes().split_at(cut);
            assert_eq!(feed(&[head, tail]), feed(&[STREAM.as_bytes()]), "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(feed(&bytes).0, whole);
    }

    #[test]
    fn an_event_without_its_empty_line_is_not_handed_out() {
        let (seen, unfinished) = feed(&[b"data: a\n\nid: 2\ndata: b\n"]);
        assert_eq!((seen.messages.len(), unfinished), (1, 14));
    }

    #[test]
    fn lines_that_are_no_field_are_foreign() {
        let (seen, _) = feed(&[b"data: a\n\n<html>\ndata: b\n\nHTTP/1.1 200 OK\n\n"]);
        assert_eq!(seen.foreign, ["<html>", "HTTP/1.1 200 OK"]);
        assert_eq!(seen.messages.len(), 2);
    }

    #[test]
    fn an_event_without_data_is_not_dispatched() {
        let (seen, unfinished) = feed(&[b"id: 4\n\nevent: x\n\n\n\n"]);
        assert_eq!((seen.messages.len(), unfinished), (0, 0));
    }
}
