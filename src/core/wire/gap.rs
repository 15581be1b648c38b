//! Gap notices: how readers learn of missed messages.

use super::event_id::OrderedId;
use super::statistics::push_json_string;

/// Message id of the notice in templates.
pub const ID: i64 = -4;

/// Appends the EventSource event. It has no id, because it is not a position.
pub fn push_event(channel: &[u8], asked: Option<OrderedId>, first: Option<OrderedId>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: gap\ndata: {\"channel\":");
    push_json_string(channel, out);
    out.extend_from_slice(b",\"asked\":");
    push_id(asked, out);
    out.extend_from_slice(b",\"first\":");
    push_id(first, out);
    out.extend_from_slice(b"}\n\n");
}

fn push_id(id: Option<OrderedId>, out: &mut Vec<u8>) {
    match id {
        None => out.extend_from_slice(b"null"),
        Some(id) => {
            out.push(b'"');
            id.write(out);
            out.push(b'"');
        }
    }
}

/// The value of `X-Nginx-PushStream-Gap`: channel ids, percent-encoded where they would not be a single word of a
/// header.
pub fn header_value<'a>(channels: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut value = Vec::new();
    for channel in channels {
        if !value.is_empty() {
            value.extend_from_slice(b", ");
        }
        for &byte in channel {
            if byte.is_ascii_graphic() && byte != b',' && byte != b'%' {
                value.push(byte);
            } else {
                value.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::percent;

    fn event(channel: &[u8], asked: &str, first: &str) -> String {
        let mut out = Vec::new();
        let id = |text: &str| OrderedId::parse(text.as_bytes());
        push_event(channel, id(asked), id(first), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_event_names_channel_position_and_first_id() {
        let expected = "event: gap\ndata: {\"channel\":\"c\",\"asked\":\"5-1\",\"first\":\"7\"}\n\n";
        assert_eq!(event(b"c", "5-1", "7"), expected);
        let expected = "event: gap\ndata: {\"channel\":\"c\",\"asked\":\"5-1\",\"first\":null}\n\n";
        assert_eq!(event(b"c", "5-1", ""), expected);
    }

    #[test]
    fn names_in_a_header_are_words() {
        assert_eq!(header_value([&b"c1"[..], b"c2"]), b"c1, c2");
        assert_eq!(
            header_value([&b"a, b"[..], "\u{e4}\r\n%".as_bytes()]),
            b"a%2C%20b, %C3%A4%0D%0A%25"
        );
        assert_eq!(header_value([]), b"");
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_event_is_one_line_of_json(channel: Vec<u8>) {
            let event = event(&channel, "1", "2");
            let data = event.strip_prefix("event: gap\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
            prop_assert!(!data.contains(['\r', '\n']));
            let value: serde_json::Value = serde_json::from_str(data).unwrap();
            prop_assert_eq!(value["channel"].as_str().unwrap(), String::from_utf8_lossy(&channel));
        }

        #[test]
        fn names_in_a_header_are_read_back(channels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..4)) {
            let value = header_value(channels.iter().map(Vec::as_slice));
            let read: Vec<_> = value.split(|&byte| byte == b',').map(|word| percent::decode(word.trim_ascii())).collect();
            prop_assert_eq!(read, channels);
        }
    }
}
