//! EventSource framing, read back as a browser does (WHATWG HTML §9.2.6): exactly the published message is dispatched,
//! whatever its bytes. The input is event id, event type, channel and text, separated by 0xff.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::eventsource;
use push_stream_core::wire::template::Fields;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(4, |&byte| byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (event_id, event_type, channel, text) = (part(), part(), part(), part());
    let given =
        |value: &'static str, part| -> Option<&[u8]> { if part == value.as_bytes() { None } else { Some(part) } };
    let fields = Fields {
        id: 1,
        channel,
        text,
        time: 0,
        tag: 0,
        event_id: given("", event_id),
        event_type: given("", event_type),
    };
    let mut stream = Vec::new();
    eventsource::render(&eventsource::message_template(b""), &fields, &mut stream);

    let events = read(&stream);
    assert_eq!(events.len(), 1, "one message is one event");
    let one_line = |value: &[u8]| {
        value
            .iter()
            .map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte })
            .collect::<Vec<u8>>()
    };
    assert_eq!(events[0].data, normalised(text));
    assert_eq!(events[0].id, fields.event_id.map(one_line));
    assert_eq!(events[0].kind, fields.event_type.map(one_line));

    // A channel id in a template cannot begin a line either.
    stream.clear();
    eventsource::render(
        &eventsource::message_template(b"~channel~:~text~"),
        &fields,
        &mut stream,
    );
    assert_eq!(read(&stream).len(), 1);
    // Nor can a template turn a message into none or several events, unless nginx -t warns of it.
    if eventsource::oddities(text, b"", b"").next().is_none() {
        let template = eventsource::message_template(text);
        let mut stream = eventsource::header(b": a comment");
        eventsource::render(&template, &fields, &mut stream);
        eventsource::render(&template, &fields, &mut stream);
        assert_eq!(read(&stream).len(), 2);
    }
    let header = eventsource::header(text);
    if !text.starts_with(b": ") {
        assert!(read(&header).is_empty(), "a header is comments");
    }
});

struct Event {
    id: Option<Vec<u8>>,
    kind: Option<Vec<u8>>,
    data: Vec<u8>,
}

/// Line ends as delivered by the browser.
fn normalised(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'\r' {
            if bytes.peek() == Some(&b'\n') {
                bytes.next();
            }
            out.push(b'\n');
        } else {
            out.push(byte);
        }
    }
    out
}

fn read(stream: &[u8]) -> Vec<Event> {
    let stream = normalised(stream);
    let mut events = Vec::new();
    let (mut id, mut kind, mut data): (Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>) = (None, None, Vec::new());
    let mut lines: Vec<&[u8]> = stream.split(|&byte| byte == b'\n').collect();
    // The remainder behind the last line end is not a line.
    lines.pop();
    for line in lines {
        if line.is_empty() {
            if let Some((_, data)) = data.split_last() {
                events.push(Event {
                    id: id.take(),
                    kind: kind.take(),
                    data: data.to_vec(),
                });
            }
            (data, kind) = (Vec::new(), None);
            continue;
        }
        let (name, value) = line.split_at(line.iter().position(|&byte| byte == b':').unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            b"id" => id = Some(value.to_vec()),
            b"event" => kind = Some(value.to_vec()),
            _ => {}
        }
    }
    events
}
