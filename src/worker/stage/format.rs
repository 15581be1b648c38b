//! `format`: renders the bytes for browsers, once per event.
//!
//! Either a list of fields, the fast way to a JSON object; of several in brackets the first one present counts:
//!
//! ```toml
//! fmt = { type = "format", fields = { id = ["id", "_event.id"], author = "author.name", message = "message" } }
//! ```
//!
//! or a minijinja template, in place or in a file:
//!
//! ```toml
//! fmt = { type = "format", template = '{"id": {{ id }}, "text": {{ message|upper }}}' }
//! fmt = { type = "format", template_file = "post.html.j2", escape = "html" }
//! ```
//!
//! `escape = "json"` (default) writes every `{{ value }}` as JSON, quotes included; `"html"` escapes it for HTML text;
//! `"none"` writes it as it is. `_event.id`, `_event.time` and `_event.type` are available, too. `fuel` bounds the work
//! of one rendering, so that no template or event can block a lane.
//!
//! `missing` sets the handling of a missing field: `"null"` (default; in a template it is undefined, which prints as
//! nothing or JSON `null`), `"skip"` (leaves the key out; `fields` only), `"park"`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use super::template_check::{self, describe};
use super::{Flow, Kind, Missing, Stage};
use crate::config::section::{FromItem, Item, Section};
use crate::event::Event;
use crate::field::FieldPath;
use crate::json::{self, Digits};

pub const KIND: Kind = Kind {
    name: "format",
    about: "makes the published bytes from fields or a template",
    read,
};

/// About 20 times what a comment template with a short loop needs.
const DEFAULT_FUEL: usize = 20_000;
const TEMPLATE_NAME: &str = "format";

pub enum Format {
    Fields(FieldList),
    Template(Box<Environment<'static>>),
}

pub struct FieldList {
    entries: Vec<Entry>,
    missing: Missing,
}

/// One member of the object.
pub struct Entry {
    /// The key as a JSON string, quoted.
    key: String,
    /// The first path present gives the value. Never empty.
    paths: Vec<FieldPath>,
}

impl Entry {
    pub fn new(name: &str, paths: Vec<FieldPath>) -> Self {
        Self {
            key: Value::from(name).to_string(),
            paths,
        }
    }
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let words = [
        ("null", Missing::Null),
        ("skip", Missing::Skip),
        ("park", Missing::Park),
    ];
    let missing = section.choice("missing", &words, Missing::Null);
    let entries = section.table("fields", |table| {
        let entries: Vec<_> = table.entries().map(|(name, item)| read_entry(&name, &item)).collect();
        entries.into_iter().collect::<Option<Vec<_>>>()
    });
    let inline = section.optional::<String>("template");
    let file = section.optional::<PathBuf>("template_file");
    let escape = section.choice(
        "escape",
        &[
            ("json", AutoEscapeWord::Json),
            ("html", AutoEscapeWord::Html),
            ("none", AutoEscapeWord::None),
        ],
        AutoEscapeWord::Json,
    );
    let fuel = section.or("fuel", DEFAULT_FUEL);

    let given = ["fields", "template", "template_file"]
        .iter()
        .filter(|key| section.has(key))
        .count();
    if given != 1 {
        section.complain("needs exactly one of fields, template, template_file");
        return None;
    }
    if let Some(entries) = entries {
        for key in ["escape", "fuel"].iter().filter(|key| section.has(key)) {
            section.complain_at(key, "belongs to a template, not to fields");
        }
        return Some(Arc::new(Format::Fields(FieldList {
            entries: entries?,
            missing,
        })));
    }
    if missing == Missing::Skip {
        section.complain_at(
            "missing",
            "\"skip\" belongs to fields; a template can say {% if field is defined %}",
        );
    }
    let (key, source) = match (inline, file) {
        (Some(source), _) => ("template", source),
        (None, Some(file)) => match std::fs::read_to_string(&file) {
            Ok(source) => ("template_file", source),
            Err(error) => {
                section.complain_at("template_file", format!("cannot read {}: {error}", file.display()));
                return None;
            }
        },
        (None, None) => return None,
    };
    match Format::template(source, escape, fuel as u64, missing) {
        Ok(stage) => Some(Arc::new(stage)),
        Err(error) => {
            section.complain_at(key, error);
            None
        }
    }
}

fn read_entry(name: &str, item: &Item<'_>) -> Option<Entry> {
    let paths = if item.is_list() {
        Vec::from_item(item)?
    } else {
        vec![FieldPath::from_item(item)?]
    };
    if paths.is_empty() {
        item.complain("needs at least one field");
    }
    Some(Entry::new(name, paths))
}

#[derive(Clone, Copy, Debug)]
pub enum AutoEscapeWord {
    Json,
    Html,
    None,
}

impl Format {
    pub fn fields(entries: Vec<Entry>, missing: Missing) -> Self {
        Self::Fields(FieldList { entries, missing })
    }

    pub fn template(source: String, escape: AutoEscapeWord, fuel: u64, missing: Missing) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(fuel));
        environment.set_formatter(write_value);
        environment.set_undefined_behavior(match missing {
            Missing::Park => UndefinedBehavior::SemiStrict,
            _ => UndefinedBehavior::Chainable,
        });
        environment.set_auto_escape_callback(move |_| match escape {
            AutoEscapeWord::Json => AutoEscape::Json,
            AutoEscapeWord::Html => AutoEscape::Html,
            AutoEscapeWord::None => AutoEscape::None,
        });
        let located = |error: minijinja::Error| {
            let line = error
                .line()
                .map_or(String::new(), |line| format!("template line {line}: "));
            format!("{line}{}", describe(&error))
        };
        environment
            .add_template_owned(TEMPLATE_NAME, source.clone())
            .map_err(located)?;
        template_check::check_calls(&environment, &source)?;
        let tried = environment
            .get_template(TEMPLATE_NAME)
            .and_then(|template| template.render(template_check::empty_event()));
        if let Err(error) = tried
            && template_check::is_of_the_template(&error)
        {
            return Err(located(error));
        }
        Ok(Self::Template(Box::new(environment)))
    }
}

impl Stage for Format {
    fn run(&self, event: &mut Event) -> Flow {
        let body = match self {
            Self::Fields(list) => list.write(event),
            Self::Template(environment) => render(environment, event),
        };
        match body {
            Ok(body) => {
                event.body = Some(body);
                Flow::Next
            }
            Err(reason) => Flow::Park(reason),
        }
    }
}

impl FieldList {
    fn write(&self, event: &Event) -> Result<Bytes, String> {
        let mut out = Vec::with_capacity(event.raw.len() + 64);
        out.push(b'{');
        for Entry { key, paths } in &self.entries {
            let value = paths.iter().find_map(|path| path.get(event));
            let path = &paths[0];
            let value = match (&value, self.missing) {
                (Some(value), _) => value.as_ref(),
                (None, Missing::Null) => &Value::Null,
                (None, Missing::Skip) => continue,
                (None, Missing::Park) => return Err(format!("field {path} is missing")),
            };
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(key.as_bytes());
            out.push(b':');
            json::write(&mut out, value, &event.digits).map_err(|error| format!("field {path}: {error}"))?;
        }
        out.push(b'}');
        Ok(Bytes::from(out))
    }
}

/// Available to templates as `_digits`: the texts of the event's numbers.
#[derive(Debug)]
struct Texts(Digits);

impl minijinja::value::Object for Texts {}

/// Prints a value, its numbers with their original digits.
fn write_value(
    out: &mut minijinja::Output,
    state: &mut minijinja::State,
    value: &minijinja::Value,
) -> Result<(), minijinja::Error> {
    use minijinja::value::ValueKind;
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Map | ValueKind::Seq) || value.is_integer() {
        return minijinja::escape_formatter(out, state, value);
    }
    let texts = state.lookup("_digits");
    let Some(Texts(digits)) = texts.as_ref().and_then(|texts| texts.downcast_object_ref()) else {
        return minijinja::escape_formatter(out, state, value);
    };
    let bad = |error: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::WriteFailure, error.to_string());
    if value.kind() == ValueKind::Number {
        let text = f64::try_from(value.clone()).ok();
        return match text.and_then(|float| digits.text(float)) {
            Some(text) => out.write_str(text).map_err(|error| bad(&error)),
            None => minijinja::escape_formatter(out, state, value),
        };
    }
    if *state.auto_escape() != AutoEscape::Json {
        return minijinja::escape_formatter(out, state, value);
    }
    let text = json::to_string(value, digits).map_err(|error| bad(&error))?;
    // As minijinja does, so that the JSON can be embedded in HTML. These characters occur only in strings.
    for c in text.chars() {
        let written = match c {
            '<' => out.write_str("\\u003c"),
            '>' => out.write_str("\\u003e"),
            '&' => out.write_str("\\u0026"),
            '\'' => out.write_str("\\u0027"),
            other => out.write_char(other),
        };
        written.map_err(|error| bad(&error))?;
    }
    Ok(())
}

fn render(environment: &Environment<'static>, event: &Event) -> Result<Bytes, String> {
    let template = environment
        .get_template(TEMPLATE_NAME)
        .map_err(|error| describe(&error))?;
    let own = minijinja::context! {
        id => event.id.to_string(),
        time => event.received.to_string(),
        type => event.event_type.as_deref(),
    };
    let fields = minijinja::Value::from(Serde(&event.fields));
    let context = if event.digits.is_empty() {
        minijinja::context! { _event => own, ..fields }
    } else {
        let digits = minijinja::Value::from_object(Texts(event.digits.clone()));
        minijinja::context! { _event => own, _digits => digits, ..fields }
    };
    template.render(context).map(Bytes::from).map_err(|error| {
        let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
        format!("template failed{line}: {}", describe(&error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::json;

    fn run(stage: &Format, fields: Value) -> Result<String, String> {
        let mut event = Event::new(EventId::new(5, 6), Timestamp(0), "".into());
        event.fields = Some(fields);
        match stage.run(&mut event) {
            Flow::Next => Ok(String::from_utf8(event.payload().to_vec()).unwrap()),
            Flow::Park(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    fn list(missing: Missing) -> Format {
        let entry = |key: &str, path: &str| {
            Entry::new(
                key,
                path.split(',')
                    .map(|path| FieldPath::from_text(path).unwrap())
                    .collect(),
            )
        };
        Format::fields(
            vec![
                entry("id", "_event.id"),
                entry("na\"me", "author.name"),
                entry("text", "message"),
            ],
            missing,
        )
    }

    fn template(source: &str, missing: Missing) -> Format {
        Format::template(source.to_owned(), AutoEscapeWord::Json, DEFAULT_FUEL as u64, missing).unwrap()
    }

    #[test]
    fn fields_make_a_json_object_in_the_configured_order() {
        let out = run(
            &list(Missing::Null),
            json!({"message": "a\"\n", "author": {"name": "Zoë"}}),
        );
        assert_eq!(out.as_deref(), Ok(r#"{"id":"5-6","na\"me":"Zoë","text":"a\"\n"}"#));
    }

    #[test]
    fn a_missing_field_is_null_or_left_out_or_parks() {
        let fields = json!({"message": 1});
        assert_eq!(
            run(&list(Missing::Null), fields.clone()).as_deref(),
            Ok(r#"{"id":"5-6","na\"me":null,"text":1}"#)
        );
        assert_eq!(
            run(&list(Missing::Skip), fields.clone()).as_deref(),
            Ok(r#"{"id":"5-6","text":1}"#)
        );
        assert_eq!(
            run(&list(Missing::Park), fields),
            Err("field author.name is missing".to_owned())
        );
    }

    #[test]
    fn a_template_writes_values_as_json_and_cannot_be_broken_out_of() {
        let stage = template(
            r#"{"t":{{ text }},"at":{{ _event.time }},"n":{{ a.b.c }}}"#,
            Missing::Null,
        );
        let out = run(&stage, json!({"text": "\",\"x\":\"</script>"})).unwrap();
        let parsed: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            parsed,
            json!({"t": "\",\"x\":\"</script>", "at": "1970-01-01T00:00:00.000Z", "n": null})
        );
    }

    #[test]
    fn members_keep_their_order_in_a_template() {
        let author = json!({"name": "Zoë", "id": 7, "likes": {"z": 1, "a": [{"y": 2, "b": 3}]}});
        let out = run(&template("{{ author }}", Missing::Null), json!({"author": author}));
        assert_eq!(
            out.as_deref(),
            Ok(r#"{"name":"Zoë","id":7,"likes":{"z":1,"a":[{"y":2,"b":3}]}}"#)
        );
    }

    #[test]
    fn numbers_keep_their_digits_and_can_be_computed_with() {
        let text =
            r#"{"id":340282366920938463463374607431768211455,"price":10.00,"n":5,"list":[1.10,"<'&>"],"huge":1E400}"#;
        let (fields, digits) = json::parse(text.as_bytes()).unwrap();
        let mut event = Event::new(EventId::new(5, 6), Timestamp(0), "".into());
        (event.fields, event.digits) = (Some(fields), digits);
        let mut print = |stage: &Format| {
            assert!(matches!(stage.run(&mut event), Flow::Next));
            String::from_utf8(event.body.take().unwrap().to_vec()).unwrap()
        };
        let stage = template(
            "[{{ id }},{{ price }},{{ n }},{{ list }},{{ huge }},{{ price * 2 }},{{ price > 9 and n < 5.5 }}]",
            Missing::Null,
        );
        let list = r#"[1.10,"\u003c\u0027\u0026\u003e"]"#;
        assert_eq!(
            print(&stage),
            format!("[340282366920938463463374607431768211455,10.00,5,{list},1E400,20.0,true]")
        );
        let entries = ["price", "list", "huge"].map(|key| Entry::new(key, vec![FieldPath::from_text(key).unwrap()]));
        let stage = Format::fields(entries.into(), Missing::Null);
        assert_eq!(print(&stage), r#"{"price":10.00,"list":[1.10,"<'&>"],"huge":1E400}"#);
        let html = Format::template("{{ price }}".into(), AutoEscapeWord::Html, 1000, Missing::Null).unwrap();
        assert_eq!(print(&html), "10.00");
    }

    #[test]
    fn an_undefined_field_in_a_strict_template_parks() {
        let reason = run(&template("{{ gone }}", Missing::Park), json!({})).unwrap_err();
        assert!(reason.contains("undefined"), "{reason}");
    }

    #[test]
    fn a_template_without_end_runs_out_of_fuel() {
        let stage = template("{% for i in range(n or 0) %}{{ i }}{% endfor %}", Missing::Null);
        let reason = run(&stage, json!({"n": 99999})).unwrap_err();
        assert!(reason.contains("fuel"), "{reason}");
    }

    #[test]
    fn what_no_event_can_mend_is_told_before_one_comes() {
        for (source, expected) in [
            ("{% for i in range(99999) %}{{ i }}{% endfor %}", "fuel"),
            ("{% if gone %}{{ id|shout }}{% endif %}", "there is no filter \"shout\""),
            ("a\n{{ id|replace('a') }}", "template line 2: missing argument"),
        ] {
            let made = Format::template(source.into(), AutoEscapeWord::Json, DEFAULT_FUEL as u64, Missing::Null);
            let error = made.err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_syntax_error_is_told_with_its_line() {
        let error = Format::template("a\n{{ b".to_owned(), AutoEscapeWord::None, 1, Missing::Null)
            .err()
            .unwrap();
        assert!(error.starts_with("template line 2: syntax error"), "{error}");
    }
}
