//! EventSource framing (WHATWG HTML §9.2).
//!
//! ```text
//! id: EVENT-ID        if the message has an event id
//! event: EVENT-TYPE   if it has an event type
//! data: LINE 1        the template, applied to each line of the text
//! data: LINE 2
//!                     the empty line that ends the event
//! ```
//!
//! A line ends at CR, LF or CRLF and every line counts, also an empty one and the one behind a final line end: what the
//! browser hands over is the text, with each line end turned into LF. No byte that came with a message can begin a line
//! of its own.

use std::borrow::Cow;

use super::event_id::OrderedId;
use super::template::{Fields, Template};

/// What a comment-only ping looks like on the wire.
pub const PING: &[u8] = b": -1\n";

/// Tells a browser where it is, without a message: it remembers the id and dispatches nothing.
pub fn position(id: OrderedId) -> Vec<u8> {
    [b"id: ", &id.to_text()[..], b"\n\n"].concat()
}

/// Tells a browser after how many milliseconds it is to come back.
pub fn retry(after_ms: u32) -> Vec<u8> {
    format!("retry: {after_ms}\n\n").into_bytes()
}

/// The header template as sent: each line a comment. Empty becomes `: \n`.
pub fn header(template: &[u8]) -> Vec<u8> {
    let header = comment(template);
    match header.is_empty() {
        true => b": \n".to_vec(),
        false => header,
    }
}

/// The footer template as sent. Empty stays empty.
pub fn footer(template: &[u8]) -> Vec<u8> {
    comment(template)
}

/// The message template of an EventSource location, prepared from the configured one.
///
/// One that starts with `data: ` is used as it stands; a blank one is `~text~`.
pub fn message_template(configured: &[u8]) -> Template {
    if configured.starts_with(b"data: ") {
        return Template::parse(configured);
    }
    let body = match configured {
        b"" => b"~text~",
        body => body,
    };
    Template::parse(&[b"data: ", body, b"\n"].concat())
}

/// Appends one whole message: id line, event line, the data block, the empty line. Returns the length of the data block
/// without id and event lines (padding is computed from it).
pub fn render(template: &Template, fields: &Fields<'_>, out: &mut Vec<u8>) -> usize {
    let event_id = fields.event_id.map(on_one_line);
    let event_type = fields.event_type.map(on_one_line);
    if let Some(event_id) = &event_id {
        push_field(b"id: ", event_id, out);
    }
    if let Some(event_type) = &event_type {
        push_field(b"event: ", event_type, out);
    }
    let channel = on_one_line(fields.channel);
    let data_start = out.len();
    for line in lines(fields.text) {
        let line = Fields {
            text: line,
            channel: &channel,
            event_id: event_id.as_deref(),
            event_type: event_type.as_deref(),
            ..*fields
        };
        template.render(&line, out);
    }
    out.push(b'\n');
    out.len() - data_start
}

fn comment(template: &[u8]) -> Vec<u8> {
    if template.starts_with(b": ") {
        return template.to_vec();
    }
    // A comment is for no one to read, so its empty lines are not worth sending.
    let mut out = Vec::new();
    for line in lines(template).filter(|line| !line.is_empty()) {
        push_field(b": ", line, &mut out);
    }
    out
}

fn push_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// At least one line; one more than there are line ends.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let Some(end) = memchr::memchr2(b'\r', b'\n', text) else {
            return Some(text);
        };
        let line_end = 1 + usize::from(text[end..].starts_with(b"\r\n"));
        rest = Some(&text[end + line_end..]);
        Some(&text[..end])
    })
}

/// A channel id may hold line ends (`%0A` in a URL); in an event stream they would begin a field.
fn on_one_line(value: &[u8]) -> Cow<'_, [u8]> {
    let is_line_end = |byte: u8| matches!(byte, b'\r' | b'\n');
    if !value.iter().copied().any(is_line_end) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(
        value
            .iter()
            .map(|byte| if is_line_end(*byte) { b' ' } else { *byte })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(text: &[u8]) -> Fields<'_> {
        Fields {
            id: 1,
            channel: b"news",
            text,
            time: 0,
            tag: 1,
            event_id: None,
            event_type: None,
        }
    }

    fn sent(template: &str, fields: &Fields<'_>) -> String {
        let mut out = Vec::new();
        render(&message_template(template.as_bytes()), fields, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn sent_text(text: &str) -> String {
        sent("~text~", &message(text.as_bytes()))
    }

    #[test]
    fn an_empty_header_opens_the_stream_with_an_empty_comment() {
        assert_eq!(header(b""), b": \n");
        assert_eq!(header(b"\n\r\n"), b": \n");
    }

    #[test]
    fn each_line_of_header_and_footer_is_a_comment() {
        assert_eq!(header(b"hello"), b": hello\n");
        assert_eq!(header(b"l1\nl2\r\nl3\rl4\n"), b": l1\n: l2\n: l3\n: l4\n");
        assert_eq!(footer(b"bye\n\nnow"), b": bye\n: now\n");
        assert_eq!(footer(b""), b"");
    }

    #[test]
    fn a_comment_ready_made_is_used_as_it_stands() {
        assert_eq!(header(b": mine\n: own\n"), b": mine\n: own\n");
        assert_eq!(footer(b": mine"), b": mine");
    }

    #[test]
    fn backslash_n_is_no_line_end() {
        assert_eq!(header(br"a\nb"), b": a\\nb\n");
        assert_eq!(sent_text(r"a\nb\r"), "data: a\\nb\\r\n\n");
    }

    #[test]
    fn one_line_is_one_data_line() {
        assert_eq!(sent_text("test message"), "data: test message\n\n");
    }

    #[test]
    fn cr_lf_and_crlf_end_a_line() {
        assert_eq!(
            sent_text("l1\nl2\r\nl3\rl4"),
            "data: l1\ndata: l2\ndata: l3\ndata: l4\n\n"
        );
    }

    #[test]
    fn empty_lines_and_a_final_line_end_are_kept() {
        assert_eq!(sent_text(""), "data: \n\n");
        assert_eq!(sent_text("\n"), "data: \ndata: \n\n");
        assert_eq!(sent_text("a\n"), "data: a\ndata: \n\n");
        assert_eq!(sent_text("a\r\n\r\nb"), "data: a\ndata: \ndata: b\n\n");
        assert_eq!(sent_text("\n\r"), "data: \ndata: \ndata: \n\n");
    }

    #[test]
    fn a_nul_byte_hides_no_line_end() {
        assert_eq!(sent_text("a\0b\nevent: x"), "data: a\0b\ndata: event: x\n\n");
    }

    #[test]
    fn event_id_and_type_come_first() {
        let fields = Fields {
            event_id: Some(b"7"),
            event_type: Some(b"note"),
            ..message(b"hi")
        };
        assert_eq!(sent("~text~", &fields), "id: 7\nevent: note\ndata: hi\n\n");
        let fields = Fields {
            event_id: Some(b""),
            ..message(b"hi")
        };
        assert_eq!(sent("~text~", &fields), "id: \ndata: hi\n\n");
    }

    #[test]
    fn the_template_is_applied_to_each_line() {
        assert_eq!(
            sent("~id~ ~channel~ ~size~:~text~", &message(b"one\nthree")),
            "data: 1 news 3:one\ndata: 1 news 5:three\n\n"
        );
    }

    #[test]
    fn a_blank_template_is_the_text_and_a_ready_made_one_stands() {
        assert_eq!(sent("", &message(b"a")), "data: a\n\n");
        assert_eq!(sent("data: <~text~>\n", &message(b"a\nb")), "data: <a>\ndata: <b>\n\n");
    }

    #[test]
    fn line_ends_in_ids_cannot_begin_a_field() {
        let fields = Fields {
            channel: b"a\ndata: forged",
            event_id: Some(b"1\r\nevent: forged"),
            event_type: Some(b"t\n\ndata: forged"),
            ..message(b"hi")
        };
        assert_eq!(
            sent("~channel~ ~event-id~: ~text~", &fields),
            "id: 1  event: forged\nevent: t  data: forged\ndata: a data: forged 1  event: forged: hi\n\n"
        );
    }

    #[test]
    fn the_returned_length_leaves_out_id_and_event_lines() {
        let fields = Fields {
            event_id: Some(b"7"),
            event_type: Some(b"note"),
            ..message(b"hi")
        };
        let mut out = b"before".to_vec();
        assert_eq!(render(&message_template(b""), &fields, &mut out), b"data: hi\n\n".len());
    }

    /// What a browser dispatches: data, type, last event id.
    #[derive(Debug, Default, PartialEq)]
    struct Event {
        data: Vec<u8>,
        event_type: Vec<u8>,
        last_event_id: Vec<u8>,
    }

    /// The stream interpreter of WHATWG HTML §9.2.6, on bytes.
    fn browser(stream: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut data = None::<Vec<u8>>;
        let mut event_type = Vec::new();
        let mut last_event_id = Vec::new();
        let mut complete: Vec<_> = lines(stream).collect();
        complete.pop(); // what no line end follows is not a line yet
        for line in complete {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    events.push(Event {
                        data,
                        event_type: std::mem::take(&mut event_type),
                        last_event_id: last_event_id.clone(),
                    });
                }
                event_type.clear();
                continue;
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
            let value = line[colon..].strip_prefix(b":").unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &line[..colon] {
                b"data" => match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => data = Some(value.to_vec()),
                },
                b"event" => event_type = value.to_vec(),
                b"id" if !value.contains(&0) => last_event_id = value.to_vec(),
                _ => {}
            }
        }
        events
    }

    fn with_line_feeds(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut previous = 0;
        for byte in text {
            match byte {
                b'\n' if previous == b'\r' => {}
                b'\r' => out.push(b'\n'),
                other => out.push(*other),
            }
            previous = *byte;
        }
        out
    }

    /// Bytes in which everything that matters to a parser is frequent.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            3 => prop::sample::select(&b"\r\n"[..]),
            3 => prop::sample::select(&b": dataeventid~\0"[..]),
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..60)
    }

    proptest! {
        #[test]
        fn a_browser_reads_back_the_text(text in bytes()) {
            let mut out = Vec::new();
            render(&message_template(b"~text~"), &message(&text), &mut out);
            let events = browser(&out);
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(&events[0].data, &with_line_feeds(&text));
        }

        #[test]
        fn whatever_the_bytes_a_message_is_one_event(
            channel in bytes(), text in bytes(), event_id in prop::option::of(bytes()), event_type in prop::option::of(bytes())
        ) {
            let fields = Fields {
                channel: &channel,
                event_id: event_id.as_deref(),
                event_type: event_type.as_deref(),
                ..message(&text)
            };
            // A header or footer that begins as a comment is the administrator's own doing.
            let template = [b"x", &text[..]].concat();
            let mut out = header(&template);
            render(&message_template(b"~channel~|~event-id~|~event-type~|~text~"), &fields, &mut out);
            render(&message_template(b""), &message(b"next"), &mut out);
            out.extend_from_slice(PING);
            out.extend_from_slice(&footer(&template));
            let events = browser(&out);
            prop_assert_eq!(events.len(), 2);
            prop_assert_eq!(&events[0].event_type[..], &*on_one_line(event_type.as_deref().unwrap_or_default()));
            prop_assert_eq!(&events[1].data[..], b"next");
            prop_assert_eq!(&events[1].event_type[..], b"");
        }

        #[test]
        fn lines_and_line_ends_are_the_whole_text(text in bytes()) {
            let joined = lines(&text).collect::<Vec<_>>().join(&b'\n');
            prop_assert_eq!(joined, with_line_feeds(&text));
        }
    }
}
