//! Channel paths and other parts of URLs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::{channel_path, percent};

fuzz_target!(|text: &[u8]| {
    let path = percent::decode(text);
    assert!(path.len() <= text.len());
    if !text.contains(&b'%') {
        assert_eq!(path, text, "nothing to decode");
    }
    let mut elements = path.split(|&byte| byte == b'/');
    let mut count = 0;
    for segment in channel_path::parse(&path) {
        let element = elements.next().expect("as many elements as slashes allow");
        let rest = element.strip_prefix(segment.id).expect("an id begins its element");
        if rest.is_empty() {
            assert_eq!(segment.backtrack, 0);
        } else {
            let digits = rest.strip_prefix(b".b").expect("only a backtrack follows an id");
            assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit));
        }
        if channel_path::is_one_id(segment.id) {
            let again: Vec<_> = channel_path::parse(segment.id).collect();
            assert_eq!((again.len(), again[0].id, again[0].backtrack), (1, segment.id, 0));
        }
        channel_path::is_reserved(segment.id);
        count += 1;
    }
    // Only the empty element behind a last slash is left.
    assert!(elements.all(<[u8]>::is_empty), "after {count} elements");
});
