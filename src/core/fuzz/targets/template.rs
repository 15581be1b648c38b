//! Message templates: the first line is the template, the rest is the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::template::{Fields, Template};

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
});
