//! Paths into an event's fields (`author.id`) and templates built from them (`user.{author.id}`).

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use crate::config::value::FromText;
use crate::event::Event;

/// `author.id`: object keys or array indexes, outermost first.
///
/// `_event.id`, `_event.time` and `_event.type` name the worker's metadata of the event instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    text: String,
    parts: Vec<String>,
    own: Option<Own>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Id,
    Time,
    Type,
}

impl FieldPath {
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// Does it name a field of the event's own JSON, as opposed to `_event`?
    pub fn is_stored(&self) -> bool {
        self.own.is_none()
    }

    /// The value, if present and not null.
    pub fn get<'e>(&self, event: &'e Event) -> Option<Cow<'e, Value>> {
        match self.own {
            None => self
                .find(event.fields.as_ref()?)
                .filter(|value| !value.is_null())
                .map(Cow::Borrowed),
            Some(Own::Id) => Some(Cow::Owned(event.id.to_string().into())),
            Some(Own::Time) => Some(Cow::Owned(event.received.to_string().into())),
            Some(Own::Type) => event.event_type.clone().map(|kind| Cow::Owned(kind.into())),
        }
    }

    pub fn get_mut<'v>(&self, fields: &'v mut Value) -> Option<&'v mut Value> {
        self.parts.iter().try_fold(fields, |value, part| match value {
            Value::Object(map) => map.get_mut(part),
            Value::Array(list) => list.get_mut(part.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// Takes the value out of its object. Array elements become null, so that the others keep their index.
    pub fn remove(&self, fields: &mut Value) -> Option<Value> {
        let (last, outer) = self.parts.split_last()?;
        let holder = Self {
            text: String::new(),
            parts: outer.to_vec(),
            own: None,
        };
        match holder.get_mut(fields)? {
            Value::Object(map) => map.shift_remove(last),
            Value::Array(list) => Some(list.get_mut(last.parse::<usize>().ok()?)?.take()),
            _ => None,
        }
    }

    /// Sets a value, creating objects as needed. Does nothing where a non-object is in the way.
    pub fn set(&self, fields: &mut Value, value: Value) {
        let Some((last, outer)) = self.parts.split_last() else {
            return;
        };
        let holder = outer.iter().try_fold(fields, |holder, part| {
            let map = holder.as_object_mut()?;
            Some(
                map.entry(part.clone())
                    .or_insert_with(|| Value::Object(serde_json::Map::new())),
            )
        });
        if let Some(Value::Object(map)) = holder {
            map.insert(last.clone(), value);
        }
    }

    fn find<'v>(&self, fields: &'v Value) -> Option<&'v Value> {
        self.parts.iter().try_fold(fields, |value, part| match value {
            Value::Object(map) => map.get(part),
            Value::Array(list) => list.get(part.parse::<usize>().ok()?),
            _ => None,
        })
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromText for FieldPath {
    const WANTED: &'static str = "a field such as \"author.id\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) || text.contains(['{', '}']) {
            return Err(format!("\"{text}\" is not a field (example: \"author.id\")"));
        }
        let own = match (parts[0].as_str(), parts.get(1).map(String::as_str), parts.len()) {
            ("_event", Some("id"), 2) => Some(Own::Id),
            ("_event", Some("time"), 2) => Some(Own::Time),
            ("_event", Some("type"), 2) => Some(Own::Type),
            ("_event", ..) => return Err(format!("\"{text}\": _event has only the fields id, time and type")),
            _ => None,
        };
        Ok(Self {
            text: text.to_owned(),
            parts,
            own,
        })
    }
}

/// A string with field paths in braces: `user.{author.id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTemplate {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Field(FieldPath),
}

impl FieldTemplate {
    /// Fills in the fields. The error names the first field that is missing, null, empty, or not a scalar.
    pub fn render(&self, event: &Event) -> Result<String, &FieldPath> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Field(path) => {
                    let value = path.get(event).ok_or(path)?;
                    let before = out.len();
                    out.push_str(&event.digits.scalar(&value).ok_or(path)?);
                    if out.len() == before {
                        return Err(path);
                    }
                }
            }
        }
        Ok(out)
    }

    /// The constant parts, for checks at configuration time.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(text) => Some(text.as_str()),
            Piece::Field(_) => None,
        })
    }
}

impl FromText for FieldTemplate {
    const WANTED: &'static str = "a template such as \"forum.{forum}\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let bad = || format!("\"{text}\": braces must enclose a field, as in \"forum.{{forum}}\"");
            if rest.as_bytes()[open] == b'}' {
                return Err(bad());
            }
            let close = rest[open..].find('}').ok_or_else(bad)? + open;
            if open > 0 {
                pieces.push(Piece::Literal(rest[..open].to_owned()));
            }
            pieces.push(Piece::Field(FieldPath::from_text(&rest[open + 1..close])?));
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        if pieces.is_empty() {
            return Err("is empty".to_owned());
        }
        Ok(Self { pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;
    use serde_json::json;

    fn event(fields: Value) -> Event {
        let mut event = Event::new(EventId::new(5, 6), Timestamp(0), "".into());
        event.fields = Some(fields);
        event
    }

    fn path(text: &str) -> FieldPath {
        FieldPath::from_text(text).unwrap()
    }

    #[test]
    fn a_path_reaches_into_objects_and_arrays() {
        let mut event = event(json!({"author": {"id": 7, "tags": ["x", "y"]}, "none": null}));
        assert_eq!(*path("author.id").get(&event).unwrap(), json!(7));
        assert_eq!(*path("author.tags.1").get(&event).unwrap(), json!("y"));
        assert!(path("author.name").get(&event).is_none());
        assert!(path("none").get(&event).is_none());
        assert_eq!(*path("_event.id").get(&event).unwrap(), json!("5-6"));
        assert_eq!(
            *path("_event.time").get(&event).unwrap(),
            json!("1970-01-01T00:00:00.000Z")
        );
        let fields = event.fields.as_mut().unwrap();
        path("author.tags.0").remove(fields);
        path("author.id").remove(fields);
        assert_eq!(fields, &json!({"author": {"tags": [null, "y"]}, "none": null}));
    }

    #[test]
    fn numbers_in_a_template_keep_their_digits() {
        let (first, second) = (
            "340282366920938463463374607431768211455",
            "340282366920938463463374607431768211450",
        );
        let template = FieldTemplate::from_text("order.{id}").unwrap();
        for (id, expected) in [
            (first, first),
            (second, second),
            ("10.00", "10.00"),
            ("1E2", "1E2"),
            ("-0", "-0"),
        ] {
            let mut event = Event::new(EventId::new(5, 6), Timestamp(0), "".into());
            let (fields, digits) = crate::json::parse(format!("{{\"id\":{id}}}").as_bytes()).unwrap();
            (event.fields, event.digits) = (Some(fields), digits);
            assert_eq!(template.render(&event).unwrap(), format!("order.{expected}"));
        }
    }

    #[test]
    fn a_template_joins_literals_and_scalars() {
        let template = FieldTemplate::from_text("user.{author.id}/x").unwrap();
        assert_eq!(
            template.render(&event(json!({"author": {"id": 7}}))).unwrap(),
            "user.7/x"
        );
        for missing in [
            json!({}),
            json!({"author": {"id": null}}),
            json!({"author": {"id": ""}}),
            json!({"author": {"id": []}}),
        ] {
            assert_eq!(template.render(&event(missing)).unwrap_err().to_string(), "author.id");
        }
    }

    #[test]
    fn bad_templates_and_paths_are_refused() {
        for bad in ["", "a{", "a}", "a{}", "a{b{c}", "a{b..c}", "{_event.nope}"] {
            assert!(FieldTemplate::from_text(bad).is_err(), "{bad}");
        }
        assert!(FieldPath::from_text("a..b").is_err());
    }
}
