//! Message templates: the first line is the template, the rest is the text.
#![no_main]

use base64::Engine;
use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::escape::Escape;
use push_stream_core::wire::template::{self, Fields, Template};

fuzz_target!(|input: &[u8]| {
    let (source, text) = input.split_at(input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len()));
    let fields = Fields {
        id: 7,
        channel: b"channel",
        text,
        time: 1_700_000_000,
        tag: 3,
        event_id: None,
        event_type: Some(b"type"),
    };
    let template = Template::parse(source);
    let mut out = b"before".to_vec();
    template.render(&fields, &mut out);
    let rendered = out.strip_prefix(b"before").expect("what was there stays");
    let tildes = source.iter().filter(|&&byte| byte == b'~').count();
    if tildes < 2 {
        assert_eq!(rendered, source, "without a placeholder a template is itself");
    }
    // The whole text appears once for each of its placeholders.
    let names = source.windows(6).filter(|window| window == b"~text~").count();
    if names == 1 && tildes == 2 {
        let at = source.windows(6).position(|window| window == b"~text~").unwrap_or(0);
        assert_eq!(rendered, [&source[..at], text, &source[at + 6..]].concat());
    }
    let mut again = Vec::new();
    template.render(&fields, &mut again);
    assert_eq!(again, rendered, "rendering is the same each time");

    let _ = template::misused(source);
    check_escapes(source, text);
});

/// Whatever a template puts between quotes, a reader gets back.
fn check_escapes(channel: &[u8], text: &[u8]) {
    let fields = Fields {
        id: 7,
        channel,
        text,
        time: 0,
        tag: 0,
        event_id: Some(text),
        event_type: None,
    };
    let mut out = Vec::new();
    Template::parse(
        br#"{"channel":"~channel:json~","id":"~event-id:json~","text":"~text:json~","bytes":"~text:base64~"}"#,
    )
    .render(&fields, &mut out);
    let object: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(object["channel"], String::from_utf8_lossy(channel).as_ref());
    assert_eq!(object["id"], String::from_utf8_lossy(text).as_ref());
    assert_eq!(object["text"], String::from_utf8_lossy(text).as_ref());
    let bytes = object["bytes"].as_str().expect("a string");
    assert_eq!(base64::prelude::BASE64_STANDARD.decode(bytes).expect("base64"), text);
    out.clear();
    Escape::Html.push(text, &mut out);
    assert!(out.iter().all(|byte| !b"<>\"'\r\n".contains(byte)));
    let html = String::from_utf8(out).expect("UTF-8");
    let read = [
        ("&#10;", "\n"),
        ("&#13;", "\r"),
        ("&#39;", "'"),
        ("&quot;", "\""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(html, |html, (entity, character)| html.replace(entity, character));
    assert_eq!(read, String::from_utf8_lossy(text));
}
