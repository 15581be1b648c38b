//! An entry of a stream as Redis returns it, its id, and the event in it.

use std::collections::HashMap;

use bytes::Bytes;
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::{Event, EventId};

/// Format of an event in an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// In this field.
    Field(String),
    /// Spread over all fields.
    Object,
    /// A finished event, as written by the `redis_stream` sink.
    Envelope,
}

/// An entry as Redis returns it.
pub struct Entry {
    pub id: StreamId,
    /// `None`: the entry was trimmed away.
    pub fields: Option<Vec<(String, Vec<u8>)>>,
}

/// `<milliseconds>-<sequence>`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    pub millis: u64,
    pub seq: u64,
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.seq)
    }
}

impl StreamId {
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (millis, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }

    /// The largest id that is smaller; reading after it begins with this one.
    pub fn before(self) -> Self {
        match (self.millis, self.seq) {
            (0, 0) => self,
            (millis, 0) => Self {
                millis: millis - 1,
                seq: u64::MAX,
            },
            (millis, seq) => Self { millis, seq: seq - 1 },
        }
    }
}

pub fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

pub fn list_of(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) | Value::Set(list) => list,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
        _ => Vec::new(),
    }
}

impl Entry {
    pub fn of(value: Value) -> Option<Self> {
        let mut parts = list_of(value).into_iter();
        let id = StreamId::parse(&bytes_of(parts.next()?)?)?;
        let fields = match parts.next() {
            None | Some(Value::Nil) => None,
            Some(fields) => {
                let mut fields = list_of(fields).into_iter();
                let mut pairs = Vec::new();
                while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
                    let name = String::from_utf8_lossy(&bytes_of(name)?).into_owned();
                    pairs.push((name, bytes_of(value)?));
                }
                Some(pairs)
            }
        };
        Some(Self { id, fields })
    }

    /// The entries in the answer to XREAD or XREADGROUP for a single stream.
    pub fn of_read(value: Value) -> Vec<Self> {
        // A list (RESP2) or a map (RESP3) of stream name and entries.
        let mut answer = list_of(value);
        if let [Value::Array(_)] = answer.as_slice() {
            answer = list_of(answer.remove(0));
        }
        let entries = answer.into_iter().nth(1).map(list_of).unwrap_or_default();
        entries.into_iter().filter_map(Self::of).collect()
    }

    /// The event, and the reason if it is unusable.
    pub fn into_event(self, format: &Format) -> (Event, Option<String>) {
        let id = EventId::new(self.id.millis, self.id.seq);
        let received = Timestamp(self.id.millis);
        let event = |raw: Vec<u8>| Event::new(id.clone(), received, Bytes::from(raw));
        let Some(fields) = self.fields else {
            return (
                event(Vec::new()),
                Some("the entry was trimmed away before it was read".to_owned()),
            );
        };
        match format {
            Format::Field(name) => match fields.into_iter().find(|(field, _)| field == name) {
                Some((_, raw)) => (event(raw), None),
                None => (event(Vec::new()), Some(format!("the entry has no field \"{name}\""))),
            },
            Format::Object => {
                let pairs = fields
                    .into_iter()
                    .map(|(name, value)| (name, String::from_utf8_lossy(&value).into()));
                let object: serde_json::Map<String, serde_json::Value> = pairs.collect();
                (event(serde_json::Value::Object(object).to_string().into_bytes()), None)
            }
            Format::Envelope => {
                let mut fields: HashMap<String, Vec<u8>> = fields.into_iter().collect();
                let channels = fields
                    .remove("channels")
                    .and_then(|list| serde_json::from_slice::<Vec<String>>(&list).ok());
                let body = fields.remove("body").unwrap_or_default();
                let mut event = event(body.clone());
                event.body = Some(Bytes::from(body));
                event.event_type = fields.remove("type").and_then(|kind| String::from_utf8(kind).ok());
                match channels {
                    Some(channels) if !channels.is_empty() => {
                        event.channels = channels;
                        (event, None)
                    }
                    _ => (event, Some("the entry has no list of channels".to_owned())),
                }
            }
        }
    }

    pub fn size(&self) -> usize {
        self.fields.iter().flatten().map(|(_, value)| value.len()).sum()
    }

    /// The event's id in the sink that appended it.
    pub fn origin(&self) -> Option<&[u8]> {
        let fields = self.fields.as_ref()?;
        fields
            .iter()
            .find(|(name, _)| name == "id")
            .map(|(_, value)| value.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(id: &str, fields: &[&str]) -> Value {
        Value::Array(vec![
            bulk(id),
            Value::Array(fields.iter().map(|field| bulk(field)).collect()),
        ])
    }

    #[test]
    fn an_entry_becomes_an_event_with_its_id_and_time() {
        let read = || Entry::of(entry("1700000000000-7", &["body", "{}", "x", "y"])).unwrap();
        let (event, unusable) = read().into_event(&Format::Field("body".into()));
        assert_eq!(
            (event.id.to_string().as_str(), event.received),
            ("1700000000000-7", Timestamp(1_700_000_000_000))
        );
        assert_eq!((event.raw.as_ref(), unusable), (&b"{}"[..], None));
        let (event, _) = read().into_event(&Format::Object);
        assert_eq!(event.raw, r#"{"body":"{}","x":"y"}"#);
        let (_, unusable) = read().into_event(&Format::Field("z".into()));
        assert_eq!(unusable.as_deref(), Some("the entry has no field \"z\""));
        let (_, unusable) = read().into_event(&Format::Envelope);
        assert!(unusable.unwrap().contains("channels"));
        let trimmed = Entry::of(Value::Array(vec![bulk("1-1"), Value::Nil])).unwrap();
        assert!(trimmed.into_event(&Format::Object).1.unwrap().contains("trimmed"));
    }

    #[test]
    fn both_forms_of_a_read_are_understood() {
        let entries = || Value::Array(vec![entry("1-1", &["a", "b"]), entry("1-2", &["a", "c"])]);
        let two = Value::Array(vec![Value::Array(vec![bulk("s"), entries()])]);
        let three = Value::Map(vec![(bulk("s"), entries())]);
        for form in [two, three] {
            let ids: Vec<_> = Entry::of_read(form).iter().map(|entry| entry.id.to_string()).collect();
            assert_eq!(ids, ["1-1", "1-2"]);
        }
        assert!(Entry::of_read(Value::Nil).is_empty());
    }

    #[test]
    fn ids_order_by_number() {
        let id = |text: &str| StreamId::parse(text.as_bytes()).unwrap();
        assert!(id("9-9") < id("10-0") && id("10-2") < id("10-10"));
        assert_eq!(StreamId::parse(b"x"), None);
    }
}
