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
//! A template of several lines produces that many `data:` lines for each line of the text. One that escapes the text
//! gets all of it at once, because an escaped text is one line.
//!
//! A line ends at CR, LF or CRLF and every line counts, also an empty one and the one behind a final line end: the
//! browser delivers the text with each line end turned into LF. No byte of a message can begin a line of its own.

use std::borrow::Cow;

use super::event_id::OrderedId;
use super::template::{Fields, Template};

/// A ping as sent: only a comment.
pub const PING: &[u8] = b": -1\n";

/// Sets a browser's last event id without a message: no event is dispatched.
pub fn position(id: OrderedId) -> Vec<u8> {
    [b"id: ", &id.to_text()[..], b"\n\n"].concat()
}

/// Sets a browser's reconnection time, in milliseconds.
pub fn retry(after_ms: u32) -> Vec<u8> {
    format!("retry: {after_ms}\n\n").into_bytes()
}

/// Says that the access token expires in so many seconds. Without an id: it is no position to resume from.
pub fn token_notice(seconds: u64) -> Vec<u8> {
    format!("event: token\ndata: {{\"expires_in\":{seconds}}}\n\n").into_bytes()
}

/// The last event of a stream whose access token has expired.
pub const EXPIRED: &[u8] = b"event: expired\ndata: {\"status\":401,\"reason\":\"expired\"}\n\n";

/// The last event of a stream whose subject an operator has sent away.
pub const CLOSED: &[u8] = b"event: closed\ndata: {\"status\":403,\"reason\":\"dismissed\"}\n\n";

/// The whole answer to a refused browser: an error would make it give up for ever, this makes it come back.
pub fn refusal(status: u32, reason: &str) -> Vec<u8> {
    let mut answer = retry(REFUSED_RETRY_MS);
    let event = format!("event: refused\ndata: {{\"status\":{status},\"reason\":\"{reason}\"}}\n\n");
    answer.extend_from_slice(event.as_bytes());
    answer
}

/// When a browser that was refused comes back.
const REFUSED_RETRY_MS: u32 = 30_000;

/// The header template as sent: each line becomes a comment. Empty becomes `: \n`. A template that starts with `: ` is
/// sent as it stands, with the end of its last line, and of its last event, added if missing: otherwise the next event
/// would become part of it.
pub fn header(template: &[u8]) -> Vec<u8> {
    if is_ready_made(template) {
        let mut header = template.to_vec();
        if leaves_event_open(template) {
            end_event(&mut header);
        } else if !matches!(template.last(), Some(b'\r' | b'\n')) {
            header.push(b'\n');
        }
        return header;
    }
    let header = comment(template);
    match header.is_empty() {
        true => b": \n".to_vec(),
        false => header,
    }
}

/// The footer template as sent. Empty stays empty. A template sent as it stands gets the end of its last event, if
/// missing.
pub fn footer(template: &[u8]) -> Vec<u8> {
    if !is_ready_made(template) {
        return comment(template);
    }
    let mut footer = template.to_vec();
    if leaves_event_open(template) {
        end_event(&mut footer);
    }
    footer
}

/// The message template of an EventSource location, prepared from the configured one.
///
/// Each of its lines becomes a `data:` line; behind the first, a line that is a field already is used as it stands. A
/// template that starts with `data: ` is used as it stands, up to one line end, because a second would end the event
/// after the first line of a text. An empty template is `~text~`.
pub fn message_template(configured: &[u8]) -> Template {
    let (body, line_end) = match configured {
        b"" => (&b"~text~"[..], &b"\n"[..]),
        configured => split_line_end(configured),
    };
    if configured.starts_with(OWN_DATA) {
        return Template::parse(&[body, line_end].concat());
    }
    let mut template = Vec::new();
    for (index, line) in lines(body).enumerate() {
        if index > 0 && is_field(line) {
            template.extend_from_slice(line);
            template.push(b'\n');
        } else {
            push_field(OWN_DATA, line, &mut template);
        }
    }
    Template::parse(&template)
}

/// Prefix of a message template that contains its own fields.
const OWN_DATA: &[u8] = b"data: ";

/// Mistakes in the templates of an EventSource location: browsers would read something other than intended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Oddity {
    #[error("push_stream_message_template begins with \"data:\" without a space, so \"data: \" is put in front of it")]
    NoSpaceBehindData,
    #[error("the empty line in push_stream_message_template ends each event before its last line")]
    EventInTwo,
    #[error("fields in {0} are sent as comments, because it does not begin with \": \"")]
    FieldsInComment(&'static str),
}

/// Checks a message, a header and a footer template, as configured.
pub fn oddities(message: &[u8], header: &[u8], footer: &[u8]) -> impl Iterator<Item = Oddity> {
    let own_data = message.starts_with(OWN_DATA);
    let in_two = own_data && lines(split_line_end(message).0).any(<[u8]>::is_empty);
    let swallowed = |template: &[u8]| !is_ready_made(template) && lines(template).any(is_field);
    [
        (message.starts_with(b"data:") && !own_data).then_some(Oddity::NoSpaceBehindData),
        in_two.then_some(Oddity::EventInTwo),
        swallowed(header).then_some(Oddity::FieldsInComment("push_stream_header_template")),
        swallowed(footer).then_some(Oddity::FieldsInComment("push_stream_footer_template")),
    ]
    .into_iter()
    .flatten()
}

/// Splits off the trailing line ends; returns the text and the first of them, or a line feed if there is none. A
/// carriage return gets a line feed, because it would otherwise combine with the one that ends the event.
fn split_line_end(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
    let (body, ends) = text.split_at(end.map_or(0, |last| last + 1));
    let line_end = match ends {
        [] => &b"\n"[..],
        [b'\r', ..] => &b"\r\n"[..],
        ends => &ends[..1],
    };
    (body, line_end)
}

fn is_field(line: &[u8]) -> bool {
    [&b"data:"[..], b"event:", b"id:", b"retry:"]
        .into_iter()
        .any(|name| line.starts_with(name))
}

/// Appends the empty line that ends an event. A line feed behind a carriage return is part of that line's end.
fn end_event(out: &mut Vec<u8>) {
    out.extend_from_slice(if out.last() == Some(&b'\n') { b"\n" } else { b"\n\n" });
}

/// Does a field follow the last empty line, without the empty line that dispatches it?
fn leaves_event_open(text: &[u8]) -> bool {
    let mut open = false;
    let mut lines = lines(text).peekable();
    while let Some(line) = lines.next() {
        // An empty remainder behind the last line end is not a line.
        if line.is_empty() && lines.peek().is_some() {
            open = false;
        }
        open |= is_field(line) && !line.starts_with(b"retry:");
    }
    open
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
    let one_line = Fields {
        channel: &channel,
        event_id: event_id.as_deref(),
        event_type: event_type.as_deref(),
        ..*fields
    };
    if template.escapes_text() {
        template.render_each(&one_line, fields, out);
    } else {
        for text in lines(fields.text) {
            template.render_each(&Fields { text, ..one_line }, fields, out);
        }
    }
    out.push(b'\n');
    out.len() - data_start
}

/// Does a header or footer template contain its own comments or fields?
fn is_ready_made(template: &[u8]) -> bool {
    template.starts_with(b": ")
}

fn comment(template: &[u8]) -> Vec<u8> {
    // Comments are not displayed, so their empty lines are not sent.
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

/// Splits into lines: one more than there are line ends.
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

/// A channel id may contain line ends (`%0A` in a URL); in an event stream they would begin a field.
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
    fn an_escaped_text_is_one_line() {
        let fields = Fields {
            channel: b"a\n\"",
            ..message(b"l1\r\nl2\"\n")
        };
        assert_eq!(
            sent(r#"{"c":"~channel:json~","text":"~text:json~","size":~size~}"#, &fields),
            "data: {\"c\":\"a\\n\\\"\",\"text\":\"l1\\r\\nl2\\\"\\n\",\"size\":8}\n\n"
        );
        assert_eq!(
            sent("~text:html~\n~channel~", &fields),
            "data: l1&#13;&#10;l2&quot;&#10;\ndata: a \"\n\n"
        );
        // Where it stands also as it is, it is line by line.
        assert_eq!(
            sent("~text~ ~text:base64~", &message(b"a\nb")),
            "data: a YQ==\ndata: b Yg==\n\n"
        );
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
    fn each_line_of_a_template_is_a_data_line() {
        let json = "{\n \"id\":~id~,\r\n\r\n \"text\":\"~text~\"\n}";
        assert_eq!(
            sent(json, &message(b"hi")),
            "data: {\ndata:  \"id\":1,\ndata: \ndata:  \"text\":\"hi\"\ndata: }\n\n"
        );
        assert_eq!(
            sent("<~text~\n>", &message(b"a\nb")),
            "data: <a\ndata: >\ndata: <b\ndata: >\n\n"
        );
    }

    #[test]
    fn a_template_ends_with_one_line_end() {
        for template in [
            "~text~\n",
            "~text~\n\n",
            "data: ~text~",
            "data: ~text~\n",
            "data: ~text~\n\n",
        ] {
            assert_eq!(sent(template, &message(b"a")), "data: a\n\n", "{template:?}");
            assert_eq!(
                sent(template, &message(b"a\nb")),
                "data: a\ndata: b\n\n",
                "{template:?}"
            );
        }
        assert_eq!(sent("data: ~text~\r\n\r\n", &message(b"a")), "data: a\r\n\n");
        assert_eq!(sent("data: ~text~\r", &message(b"a\nb")), "data: a\r\ndata: b\r\n\n");
        assert_eq!(sent("\n", &message(b"a")), "data: \n\n");
    }

    #[test]
    fn a_template_may_bring_fields_of_its_own() {
        let fields = Fields {
            event_type: None,
            ..message(b"a\nb")
        };
        assert_eq!(
            sent("data: ~text~\nevent: ~channel~", &fields),
            "data: a\nevent: news\ndata: b\nevent: news\n\n"
        );
        assert_eq!(
            sent("~text~\ndata: tag ~tag~\nretry: 5", &message(b"a")),
            "data: a\ndata: tag 1\nretry: 5\n\n"
        );
    }

    #[test]
    fn a_header_ready_made_leaves_no_line_and_no_event_open() {
        assert_eq!(header(b": mine"), b": mine\n");
        assert_eq!(header(b": a\r"), b": a\r");
        assert_eq!(header(b": a\nretry: 5"), b": a\nretry: 5\n");
        assert_eq!(header(b": a\nretry: 5\n\n"), b": a\nretry: 5\n\n");
        assert_eq!(header(b": a\nevent: hello"), b": a\nevent: hello\n\n");
        assert_eq!(header(b": a\ndata: hello\n"), b": a\ndata: hello\n\n");
        assert_eq!(header(b": a\rdata: hello\r"), b": a\rdata: hello\r\n\n");
        assert_eq!(header(b": a\ndata: hello\n\n"), b": a\ndata: hello\n\n");
        assert_eq!(header(b": a\ndata: hello\r\n\r\n: b"), b": a\ndata: hello\r\n\r\n: b\n");
        assert_eq!(footer(b": a\ndata: bye"), b": a\ndata: bye\n\n");
        assert_eq!(footer(b": a\ndata: bye\n"), b": a\ndata: bye\n\n");
        assert_eq!(footer(b": a\ndata: bye\n\n"), b": a\ndata: bye\n\n");
    }

    #[test]
    fn what_is_odd_in_a_template_is_found() {
        let found = |message: &str, header: &str, footer: &str| -> Vec<Oddity> {
            oddities(message.as_bytes(), header.as_bytes(), footer.as_bytes()).collect()
        };
        for message in [
            "",
            "~text~",
            "data: ~text~\n\n",
            "{\n\n}\n",
            "data: a\nevent: b",
            "database",
        ] {
            assert_eq!(found(message, ": a\nretry: 5", "bye"), [], "{message:?}");
        }
        assert_eq!(found("data:~text~", "", ""), [Oddity::NoSpaceBehindData]);
        assert_eq!(found("data: ~text~\n\ndata: b", "", ""), [Oddity::EventInTwo]);
        assert_eq!(
            found("", "retry: 5", "a\ndata: bye"),
            [
                Oddity::FieldsInComment("push_stream_header_template"),
                Oddity::FieldsInComment("push_stream_footer_template")
            ]
        );
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

    /// An event as dispatched by a browser: data, type, last event id.
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

    /// Random bytes, with a high share of those that matter to a parser.
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
            // A header or footer that begins as a comment is the administrator's responsibility.
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
        fn whatever_the_templates_a_message_is_one_event(
            first in bytes(), second in bytes(), template in bytes(), own in any::<bool>()
        ) {
            let template = if own { [OWN_DATA, &template[..]].concat() } else { template };
            prop_assume!(oddities(&template, b"", b"").next().is_none());
            let template = message_template(&template);
            let mut out = header(b": a comment");
            render(&template, &message(&first), &mut out);
            let after_first = browser(&out).len();
            render(&template, &message(&second), &mut out);
            prop_assert_eq!(after_first, 1);
            prop_assert_eq!(browser(&out).len(), 2);
        }

        #[test]
        fn lines_and_line_ends_are_the_whole_text(text in bytes()) {
            let joined = lines(&text).collect::<Vec<_>>().join(&b'\n');
            prop_assert_eq!(joined, with_line_feeds(&text));
        }
    }
}
