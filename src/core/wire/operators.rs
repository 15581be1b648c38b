//! Operator answers about channels and their messages: JSON, one entry a line.
//!
//! ```text
//! {"channels": [
//! {"channel": "news", "published_messages": 7, "stored_messages": 2, "subscribers": 1, "stored_bytes": 512}
//! ], "next": null}
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::push_number;
use super::statistics::{Channel, Format, Record};

/// A stored message.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// 1, 2, 3 ... per channel.
    pub id: u64,
    /// Publish time, seconds since the epoch.
    pub time: u64,
    pub tag: u32,
    pub event_id: Option<&'a [u8]>,
    pub event_type: Option<&'a [u8]>,
    pub text: &'a [u8],
}

/// Writes a list entry by entry.
#[derive(Debug, Default)]
pub struct List {
    started: bool,
    entries: bool,
}

impl List {
    /// Starts the list with this name, unless already started.
    fn start(&mut self, name: &str, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.started, true) {
            out.extend_from_slice(format!("{{\"{name}\": [").as_bytes());
        }
    }

    fn entry(&mut self, name: &str, out: &mut Vec<u8>, fields: impl FnOnce(&mut Record<'_>)) {
        self.start(name, out);
        let separator: &[u8] = if self.entries { b",\n{" } else { b"\n{" };
        self.entries = true;
        out.extend_from_slice(separator);
        fields(&mut Record::new(Format::Json, "", ", ", out));
        out.push(b'}');
    }

    pub fn channel(&mut self, channel: &Channel<'_>, stored_bytes: u64, out: &mut Vec<u8>) {
        self.entry(CHANNELS, out, |record| {
            record
                .channel("channel", "subscribers", channel)
                .number("stored_bytes", stored_bytes);
        });
    }

    pub fn message(&mut self, message: &Stored<'_>, out: &mut Vec<u8>) {
        self.entry(MESSAGES, out, |record| {
            record
                .number("id", message.id)
                .number("time", message.time)
                .number("tag", message.tag.into());
            for (name, text) in [("event_id", message.event_id), ("event_type", message.event_type)] {
                if let Some(text) = text {
                    record.text(name, text);
                }
            }
            match str::from_utf8(message.text) {
                Ok(_) => record.text("text", message.text),
                // JSON cannot carry arbitrary bytes.
                Err(_) => record.text("base64", STANDARD.encode(message.text).as_bytes()),
            };
        });
    }

    /// Ends a list of channels; `next` is the bookmark of the next page.
    pub fn end_channels(self, next: Option<&str>, out: &mut Vec<u8>) {
        self.end(CHANNELS, next, out);
    }

    /// Ends a list of messages.
    pub fn end_messages(self, next: Option<&str>, out: &mut Vec<u8>) {
        self.end(MESSAGES, next, out);
    }

    fn end(mut self, name: &str, next: Option<&str>, out: &mut Vec<u8>) {
        self.start(name, out);
        out.extend_from_slice(if self.entries {
            b"\n], \"next\": "
        } else {
            b"], \"next\": "
        });
        match next {
            // Digits and signs only: nothing to escape.
            Some(next) => out.extend_from_slice(format!("\"{next}\"}}\n").as_bytes()),
            None => out.extend_from_slice(b"null}\n"),
        }
    }
}

const CHANNELS: &str = "channels";
const MESSAGES: &str = "messages";

/// Appends the extent of an operation: its number of channels, and their number of subscribers.
pub fn push_extent(channels: u64, subscribers: u64, dry_run: Option<bool>, out: &mut Vec<u8>) {
    out.push(b'{');
    Record::new(Format::Json, "", ", ", out)
        .number("channels", channels)
        .number("subscribers", subscribers);
    if let Some(dry_run) = dry_run {
        out.extend_from_slice(format!(", \"dry_run\": {dry_run}").as_bytes());
    }
    out.extend_from_slice(b"}\n");
}

/// Appends how many connections were ended, and how many workers have not answered.
pub fn push_ended(subscribers: u64, unanswered: u64, out: &mut Vec<u8>) {
    out.push(b'{');
    Record::new(Format::Json, "", ", ", out)
        .number("subscribers", subscribers)
        .number("workers_unanswered", unanswered);
    out.extend_from_slice(b"}\n");
}

/// Encodes numbers as one word for the client to send back: `@1-2-3`.
pub fn bookmark(numbers: &[u64]) -> String {
    let mut text = b"@".to_vec();
    for (index, &number) in numbers.iter().enumerate() {
        if index > 0 {
            text.push(b'-');
        }
        push_number(number, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Decodes a bookmark of `N` numbers; None if it is not one.
pub fn read_bookmark<const N: usize>(text: &[u8]) -> Option<[u64; N]> {
    let text = str::from_utf8(text.strip_prefix(b"@")?).ok()?;
    let numbers: Vec<u64> = text.split('-').map(str::parse).collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(out: &[u8]) -> Value {
        serde_json::from_slice(out).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(out)))
    }

    #[test]
    fn channels_one_a_line() {
        let mut out = Vec::new();
        let mut list = List::default();
        for id in [&b"a"[..], b"b"] {
            let channel = Channel {
                id,
                published: 7,
                stored: 2,
                subscribers: 1,
            };
            list.channel(&channel, 512, &mut out);
        }
        list.end_channels(Some("@1-2"), &mut out);
        let expected = r#"{"channels": [
{"channel": "a", "published_messages": 7, "stored_messages": 2, "subscribers": 1, "stored_bytes": 512},
{"channel": "b", "published_messages": 7, "stored_messages": 2, "subscribers": 1, "stored_bytes": 512}
], "next": "@1-2"}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_list_of_nothing() {
        let mut out = Vec::new();
        List::default().end_messages(None, &mut out);
        assert_eq!(out, b"{\"messages\": [], \"next\": null}\n");
    }

    #[test]
    fn messages_say_what_they_have() {
        let mut out = Vec::new();
        let mut list = List::default();
        let plain = Stored {
            id: 1,
            time: 1_700_000_000,
            tag: 3,
            event_id: None,
            event_type: None,
            text: b"x\n",
        };
        list.message(&plain, &mut out);
        let full = Stored {
            event_id: Some(b"7"),
            event_type: Some(b"note"),
            text: b"\xff",
            ..plain
        };
        list.message(&full, &mut out);
        list.end_messages(None, &mut out);
        let expected = r#"{"messages": [
{"id": 1, "time": 1700000000, "tag": 3, "text": "x\n"},
{"id": 1, "time": 1700000000, "tag": 3, "event_id": "7", "event_type": "note", "base64": "/w=="}
], "next": null}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn an_extent() {
        let mut out = Vec::new();
        push_extent(2, 3, Some(true), &mut out);
        push_extent(2, 3, None, &mut out);
        assert_eq!(
            out,
            b"{\"channels\": 2, \"subscribers\": 3, \"dry_run\": true}\n{\"channels\": 2, \"subscribers\": 3}\n"
        );
    }

    #[test]
    fn what_was_ended() {
        let mut out = Vec::new();
        push_ended(3, 1, &mut out);
        assert_eq!(out, b"{\"subscribers\": 3, \"workers_unanswered\": 1}\n");
    }

    proptest! {
        #[test]
        fn any_message_is_json(text: Vec<u8>, event_id in prop::option::of(any::<Vec<u8>>())) {
            let mut out = Vec::new();
            let mut list = List::default();
            let message = Stored { id: 1, time: 2, tag: 3, event_id: event_id.as_deref(), event_type: None, text: &text };
            list.message(&message, &mut out);
            list.end_messages(None, &mut out);
            let value = &read(&out)["messages"][0];
            let got = match value["text"].as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => STANDARD.decode(value["base64"].as_str().unwrap()).unwrap(),
            };
            prop_assert_eq!(got, text);
        }

        #[test]
        fn bookmarks_come_back(numbers: [u64; 3]) {
            let text = bookmark(&numbers);
            prop_assert_eq!(read_bookmark(text.as_bytes()), Some(numbers));
            prop_assert_eq!(read_bookmark::<2>(text.as_bytes()), None);
        }

        #[test]
        fn what_is_no_bookmark_is_none(text: Vec<u8>) {
            if let Some(numbers) = read_bookmark::<2>(&text) {
                prop_assert!(text.starts_with(b"@") && numbers.len() == 2);
            }
        }
    }
}
