//! Values of directives: the padding by user agent, and templates as the modes read them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::eventsource;
use push_stream_core::wire::padding::{self, Malformed};
use push_stream_core::wire::template::Fields;

fuzz_target!(|text: &[u8]| {
    check_padding(text);
    check_templates(text);
});

/// Written again, the groups give the same text.
fn check_padding(text: &[u8]) {
    let mut written = Vec::new();
    let mut canonical = true;
    for group in padding::groups(text) {
        match group {
            Ok(group) => {
                assert!(!group.agents.contains(&b':'));
                let numbers = format!(",{},{}:", group.header_min, group.message_min);
                written.extend_from_slice(group.agents);
                written.extend_from_slice(numbers.as_bytes());
            }
            Err(malformed @ (Malformed::NoGroup(rest) | Malformed::NotThisGroup(rest))) => {
                assert!(text.ends_with(rest) && !rest.is_empty());
                assert!(!malformed.to_string().is_empty());
                canonical = false;
            }
        }
    }
    // Numbers may be written with leading zeros.
    if canonical && !text.windows(2).any(|pair| pair[0] == b',' && pair[1] == b'0') {
        let expected = text.strip_suffix(b":").unwrap_or(text);
        assert_eq!(written.strip_suffix(b":").unwrap_or(&written), expected);
    }
}

/// Of a template in one line an EventSource gets fields and comments. (One that is written as such a line is sent as it
/// is.)
fn check_templates(text: &[u8]) {
    if text.iter().any(|byte| b"\r\n".contains(byte)) || text.starts_with(b": ") || text.starts_with(b"data: ") {
        return;
    }
    let fields = Fields {
        id: 7,
        channel: b"channel",
        text: b"one\ntwo",
        time: 1_700_000_000,
        tag: 3,
        event_id: Some(b"17"),
        event_type: Some(b"type"),
    };
    let mut out = Vec::new();
    eventsource::render(&eventsource::message_template(text), &fields, &mut out);
    assert!(out.starts_with(b"id: 17\nevent: type\ndata: ") && out.ends_with(b"\n\n"));
    for part in [out, eventsource::header(text), eventsource::footer(text)] {
        for line in part.split(|&byte| byte == b'\n') {
            let known = [&b": "[..], b"data: ", b"id: ", b"event: "];
            assert!(
                line.is_empty() || known.iter().any(|start| line.starts_with(start)),
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }
}
