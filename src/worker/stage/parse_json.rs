//! `parse_json`: parses the raw bytes into fields.
//!
//! ```toml
//! parse = { type = "parse_json" }
//! ```

use std::sync::Arc;

use serde_json::Value;

use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::Event;
use crate::json;

pub const KIND: Kind = Kind {
    name: "parse_json",
    about: "parses the raw bytes as one JSON object (or a list of them)",
    read,
};

#[derive(Debug)]
pub struct ParseJson {
    /// Handling of bytes that are not a JSON object: `on_error = "park"` (default) or `"drop"`.
    pub on_error: OnError,
    /// A JSON array becomes one event per element: `split_arrays = true`. Off by default; then an array is an error.
    pub split_arrays: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    Park,
    Drop,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    Some(Arc::new(ParseJson {
        on_error: section.choice(
            "on_error",
            &[("park", OnError::Park), ("drop", OnError::Drop)],
            OnError::Park,
        ),
        split_arrays: section.or("split_arrays", false),
    }))
}

impl ParseJson {
    fn refuse(&self, text: String) -> Flow {
        match self.on_error {
            OnError::Park => Flow::Park(text),
            OnError::Drop => Flow::Drop("not_json"),
        }
    }
}

impl Stage for ParseJson {
    fn run(&self, event: &mut Event) -> Flow {
        match json::parse(&event.raw) {
            Ok((fields @ Value::Object(_), digits)) => {
                (event.fields, event.digits) = (Some(fields), digits);
                Flow::Next
            }
            Ok((Value::Array(items), digits)) if self.split_arrays => {
                if items.iter().any(|item| !item.is_object()) {
                    return self.refuse("a list element is not a JSON object".to_owned());
                }
                let split = |item| Event {
                    fields: Some(item),
                    digits: digits.clone(),
                    ..event.clone()
                };
                Flow::Split(items.into_iter().map(split).collect())
            }
            Ok(_) => self.refuse("not a JSON object".to_owned()),
            Err(error) => self.refuse(format!("not valid JSON: {error}")),
        }
    }

    fn needs_fields(&self) -> bool {
        false
    }

    fn gives_fields(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;

    fn run(stage: &ParseJson, raw: &'static str) -> (Flow, Event) {
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), raw.into());
        (stage.run(&mut event), event)
    }

    const PARK: ParseJson = ParseJson {
        on_error: OnError::Park,
        split_arrays: false,
    };

    #[test]
    fn an_object_becomes_fields_in_its_own_order() {
        let (flow, event) = run(&PARK, r#"{"z":1,"a":"é"}"#);
        assert!(matches!(flow, Flow::Next));
        assert_eq!(event.payload(), r#"{"z":1,"a":"é"}"#);
    }

    #[test]
    fn anything_else_is_parked_with_the_reason() {
        for (raw, reason) in [
            ("[1]", "not a JSON object"),
            ("{\"a\":", "not valid JSON: EOF"),
            ("", "not valid JSON"),
        ] {
            let (flow, _) = run(&PARK, raw);
            assert!(
                matches!(&flow, Flow::Park(text) if text.starts_with(reason)),
                "{raw}: {flow:?}"
            );
        }
        let (flow, _) = run(
            &ParseJson {
                on_error: OnError::Drop,
                ..PARK
            },
            "x",
        );
        assert!(matches!(flow, Flow::Drop("not_json")));
    }

    #[test]
    fn half_an_emoji_and_a_byte_order_mark_are_no_mistakes() {
        let (flow, event) = run(&PARK, r#"{"text":"fun \ud83d","n":1}"#);
        assert!(matches!(flow, Flow::Next), "{flow:?}");
        assert_eq!(event.payload(), "{\"text\":\"fun \u{fffd}\",\"n\":1}");
        let (flow, event) = run(&PARK, "\u{feff}{\"n\":1}");
        assert!(matches!(flow, Flow::Next), "{flow:?}");
        assert_eq!(event.payload(), "{\"n\":1}");
    }

    #[test]
    fn nesting_without_end_is_refused_and_does_not_overflow_the_stack() {
        let deep: &'static str = String::leak("[".repeat(100_000));
        assert!(matches!(run(&PARK, deep).0, Flow::Park(_)));
    }

    #[test]
    fn a_list_is_split_when_asked() {
        let stage = ParseJson {
            split_arrays: true,
            ..PARK
        };
        let (flow, _) = run(&stage, r#"[{"a":1.0},{"a":2.00}]"#);
        let Flow::Split(events) = flow else { panic!("{flow:?}") };
        let payloads: Vec<_> = events.iter().map(Event::payload).collect();
        assert_eq!(payloads, [r#"{"a":1.0}"#, r#"{"a":2.00}"#]);
        assert!(matches!(run(&stage, "[1]").0, Flow::Park(_)));
    }
}
