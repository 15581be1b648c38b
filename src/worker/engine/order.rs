//! The order key: chooses an event's lane, and the earlier events it waits for there.
//!
//! The key must be known before a lane has parsed the event, so a reader extracts it from the raw JSON, skipping
//! everything else and stopping as soon as it is found.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use serde_json::value::RawValue;

use crate::event::Event;
use crate::json::mended;
use crate::stage::Order;

/// Events with equal keys keep their order. A hash: two colliding values merely wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderKey(pub u64);

/// Shared by all events of an `Order::Source` pipeline, and by those that lack the field.
const COMMON: OrderKey = OrderKey(0);

impl OrderKey {
    pub fn of(event: &Event, order: &Order) -> Self {
        match order {
            Order::Source => COMMON,
            Order::Unordered => Self(fastrand::u64(1..)),
            Order::By(path) => find(&event.raw, path.parts()).map_or(COMMON, Self),
        }
    }

    pub fn lane(self, lanes: usize) -> usize {
        // The high half, because the low bits choose the bucket in the lane's own map.
        usize::try_from((self.0 >> 32) % lanes as u64).unwrap_or_default()
    }
}

/// Hash of the scalar at `path` in a JSON text.
fn find(json: &[u8], path: &[String]) -> Option<u64> {
    let found = Cell::new(None);
    let json = mended(json);
    let mut reader = serde_json::Deserializer::from_slice(&json);
    // An error is either the early end after success or bad JSON, which the parser will report.
    let _ = Finder { path, found: &found }.deserialize(&mut reader);
    found.get()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

struct Finder<'f> {
    path: &'f [String],
    found: &'f Cell<Option<u64>>,
}

impl Finder<'_> {
    /// Keeps a scalar if the path ends here. The same text as string or number is the same key, as it gives the same
    /// channel.
    fn keep(&self, raw: &RawValue) {
        let text = raw.get();
        self.found.set(match text.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<Cow<'_, str>>(text)
                .ok()
                .map(|text| hash(text.as_bytes())),
            Some(b'{' | b'[' | b'n') | None => None,
            Some(_) => Some(hash(text.as_bytes())),
        });
    }
}

impl<'de> DeserializeSeed<'de> for Finder<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !self.path.is_empty() {
            return deserializer.deserialize_any(self);
        }
        self.keep(<&RawValue>::deserialize(deserializer)?);
        Err(D::Error::custom("looked at"))
    }
}

impl<'de> Visitor<'de> for Finder<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.path.split_first() {
                Some((wanted, rest)) if *wanted == *key => {
                    map.next_value_seed(Finder {
                        path: rest,
                        found: self.found,
                    })?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let wanted = self.path.first().and_then(|part| part.parse::<usize>().ok());
        for index in 0.. {
            let more = match (wanted == Some(index), self.path) {
                (true, [_, rest @ ..]) => list
                    .next_element_seed(Finder {
                        path: rest,
                        found: self.found,
                    })?
                    .is_some(),
                _ => list.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    // The path continues below a scalar.

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(json: &str, path: &str) -> Option<u64> {
        let parts: Vec<String> = path.split('.').map(str::to_owned).collect();
        find(json.as_bytes(), &parts)
    }

    #[test]
    fn a_key_is_found_wherever_it_lies_and_equal_text_is_equal() {
        let nine = key(r#"{"thread":"9"}"#, "thread");
        assert!(nine.is_some());
        assert_eq!(key(r#"{"a":[1,{"thread":7}],"thread":9,"b":{}}"#, "thread"), nine);
        assert_eq!(key(r#"{"x":{"y":{"thread":"\u0039"}}}"#, "x.y.thread"), nine);
        assert_eq!(key(r#"{"x":["8","9"]}"#, "x.1"), nine);
        assert_ne!(key(r#"{"thread":"10"}"#, "thread"), nine);
        assert_eq!(
            key(r#"{"thread":"10.00"}"#, "thread"),
            key(r#"{"n":1e999,"thread":10.00}"#, "thread")
        );
        assert_ne!(
            key(r#"{"thread":10.0}"#, "thread"),
            key(r#"{"thread":10.00}"#, "thread")
        );
        assert_eq!(key("\u{feff}{\"text\":\"\\ud83d\",\"thread\":9}", "thread"), nine);
    }

    #[test]
    fn what_is_not_there_or_not_scalar_has_no_key() {
        for json in [
            "{}",
            "[]",
            "",
            "{\"thread\":null}",
            "{\"thread\":{}}",
            "{\"thread\":[1]}",
            "{\"a\":",
            "\"thread\"",
            "7",
        ] {
            assert_eq!(key(json, "thread"), None, "{json}");
        }
    }
}
