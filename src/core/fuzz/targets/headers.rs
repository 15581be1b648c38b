//! Values of request headers: dates, tags, event ids, Accept.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::{batch, event_id, exposition::Exposition, http_date, position, statistics};

fuzz_target!(|text: &[u8]| {
    if let Some(time) = http_date::parse(text) {
        let again = http_date::format(time);
        // The format has four digits for the year.
        if time < 253_402_300_800 {
            assert_eq!(
                http_date::parse(&again),
                Some(time),
                "{}",
                String::from_utf8_lossy(&again)
            );
        }
    }
    position::parse_tag(text);
    if let Some(id) = event_id::OrderedId::parse(text) {
        assert_eq!(id.to_text(), text, "an id has one form");
        assert!(event_id::is_acceptable(text));
    }
    if let Some((left, right)) = text.iter().position(|&byte| byte == b' ').map(|at| text.split_at(at)) {
        let ids = (
            event_id::OrderedId::parse(left),
            event_id::OrderedId::parse(&right[1..]),
        );
        if let (Some(left_id), Some(right_id)) = ids {
            assert_eq!(left_id == right_id, left == &right[1..], "equal ids are equal texts");
            assert_eq!(
                left_id.cmp(&right_id),
                groups(left).cmp(&groups(&right[1..])),
                "group by group"
            );
        }
    }
    statistics::negotiate(Some(text));
    statistics::prefers_openmetrics(Some(text));
    Exposition::negotiate(Some(text));
    batch::is_batch(text);
    batch::prefers_minimal([text]);
});

/// The numbers of an ordered id.
fn groups(id: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(id).expect("digits");
    text.split('-').map(|group| group.parse().expect("a number")).collect()
}
