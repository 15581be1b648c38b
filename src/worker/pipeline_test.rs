//! `[test.*]`: expected results of a pipeline, kept in its configuration and run by `push-stream-worker test`.
//!
//! ```toml
//! [test.scrubbed]
//! pipeline = "public"
//! input = '{"id":"1","thread":"9","author":{"ip":"192.0.2.7"},"message":"<script>x</script>hi"}'
//! switches = { secure-firehose = "on" }
//! [test.scrubbed.expect]
//! channels = ["thread.9"]               # exactly these, in any order
//! body_json = { message = "hi" }        # these members; others may be present
//! body_lacks = ["192.0.2.7", "<script"]
//! ```
//!
//! Also `body` (exactly), `body_has`, `type`, `events` (number of output events; default 1, or 0 if an event is dropped
//! or parked), `dropped` (the reason, or how many), `parked` (a part of the reason, or how many).

use std::fmt::{self, Write as _};

use bytes::Bytes;
use serde_json::Value;

use crate::clock::Timestamp;
use crate::config::Config;
use crate::config::section::{FromItem, Item, Section};
use crate::engine::lane::{Ending, try_stages};
use crate::event::{Event, EventId};
use crate::switch;

#[derive(Clone, Debug)]
pub struct PipelineTest {
    pub name: String,
    pipeline: String,
    input: String,
    /// Switch name and its state in the live hash.
    switches: Vec<(String, String)>,
    expect: Expect,
}

#[derive(Clone, Debug, Default)]
struct Expect {
    channels: Option<Vec<String>>,
    body: Option<String>,
    body_json: Option<Value>,
    body_has: Vec<String>,
    body_lacks: Vec<String>,
    kind: Option<String>,
    events: Option<usize>,
    dropped: Option<Ended>,
    parked: Option<Ended>,
}

/// Expectation for events that do not come out.
#[derive(Clone, Debug)]
enum Ended {
    For(String),
    Count(usize),
}

impl FromItem for Ended {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        match item.integer() {
            Some(count) => Some(Self::Count(count)),
            None => String::from_item(item).map(Self::For),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(reason) => reason.fmt(f),
            Self::Count(count) => count.fmt(f),
        }
    }
}

/// A TOML value as JSON.
struct Json(Value);

impl FromItem for Json {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        match item.to_json() {
            Some(value) => Some(Self(value)),
            None => {
                item.complain("must be a value that JSON has, too");
                None
            }
        }
    }
}

impl PipelineTest {
    pub fn read(section: &Section<'_>, pipelines: &[String]) -> Option<Self> {
        let pipeline = section.required::<String>("pipeline");
        if let Some(name) = pipeline.as_ref().filter(|name| !pipelines.contains(name)) {
            section.complain_at(
                "pipeline",
                format!("there is no pipeline \"{name}\"; there is: {}", pipelines.join(", ")),
            );
        }
        let input = section.required("input");
        let switches = section.table("switches", |table| {
            let entries: Vec<_> = table
                .entries()
                .map(|(name, item)| Some((name, String::from_item(&item)?)))
                .collect();
            entries.into_iter().collect::<Option<Vec<_>>>()
        });
        let expect = section.table("expect", |expect| Expect {
            channels: expect.optional("channels"),
            body: expect.optional("body"),
            body_json: expect.optional("body_json").map(|Json(value)| value),
            body_has: expect.or("body_has", Vec::new()),
            body_lacks: expect.or("body_lacks", Vec::new()),
            kind: expect.optional("type"),
            events: expect.optional("events"),
            dropped: expect.optional("dropped"),
            parked: expect.optional("parked"),
        });
        if expect.is_none() && !section.has("expect") {
            section.complain("expects nothing: give it an expect table");
        }
        Some(Self {
            name: section.name().to_owned(),
            pipeline: pipeline?,
            input: input?,
            switches: switches.unwrap_or_else(|| Some(Vec::new()))?,
            expect: expect?,
        })
    }

    /// Differences from the expectation; empty on success.
    pub fn run(&self, config: &Config) -> Vec<String> {
        for (name, text) in &self.switches {
            let Some(switch) = config.switches.all.get(name) else {
                return vec![format!("there is no switch \"{name}\"")];
            };
            match switch::State::parse(text, &switch.state()) {
                Ok(state) => switch.set_live(state),
                Err(error) => return vec![error],
            }
        }
        let endings = self.endings(config);
        for (name, _) in &self.switches {
            config.switches.all[name].set_live(None);
        }
        self.expect.compare(&endings)
    }

    fn endings(&self, config: &Config) -> Vec<Ending> {
        let Some(spec) = config.pipelines.iter().find(|spec| spec.name == self.pipeline) else {
            return Vec::new();
        };
        let stages = spec.stages.iter().map(|&stage| &config.stages[stage]);
        let stages: Vec<_> = stages.map(|named| (named.name.as_str(), &*named.component)).collect();
        let event = Event::new(EventId::new(1, 1), Timestamp::now(), Bytes::from(self.input.clone()));
        try_stages(&stages, &spec.prefix, event)
    }
}

impl Expect {
    fn compare(&self, endings: &[Ending]) -> Vec<String> {
        let mut wrong = Vec::new();
        let out: Vec<&Event> = endings
            .iter()
            .filter_map(|ending| match ending {
                Ending::Out(event) => Some(&**event),
                Ending::Dropped { .. } | Ending::Parked { .. } => None,
            })
            .collect();
        let ended = endings.iter().filter_map(|ending| match ending {
            Ending::Out(_) => None,
            Ending::Dropped { stage, reason } => Some(format!("dropped by {stage}: {reason}")),
            Ending::Parked { stage, reason } => Some(format!("parked by {stage}: {reason}")),
        });
        let ended: Vec<String> = ended.collect();
        let dropped = |wanted: &Ended| {
            let mut reasons = endings.iter().filter_map(|ending| match ending {
                Ending::Dropped { reason, .. } => Some(*reason),
                _ => None,
            });
            match wanted {
                Ended::Count(count) => reasons.count() == *count,
                Ended::For(wanted) => reasons.any(|reason| reason == wanted),
            }
        };
        let parked = |wanted: &Ended| {
            let mut reasons = endings.iter().filter_map(|ending| match ending {
                Ending::Parked { reason, .. } => Some(reason),
                _ => None,
            });
            match wanted {
                Ended::Count(count) => reasons.count() == *count,
                Ended::For(part) => reasons.any(|reason| reason.contains(part)),
            }
        };
        if let Some(wanted) = self.dropped.as_ref().filter(|wanted| !dropped(wanted)) {
            wrong.push(difference("dropped", &wanted.to_string(), &list_ends(&ended)));
        }
        if let Some(wanted) = self.parked.as_ref().filter(|wanted| !parked(wanted)) {
            wrong.push(difference("parked", &wanted.to_string(), &list_ends(&ended)));
        }
        // No expectation is needed where all events end otherwise.
        let ends = |wanted: &Option<Ended>| !matches!(wanted, None | Some(Ended::Count(0)));
        let events = self
            .events
            .unwrap_or(usize::from(!ends(&self.dropped) && !ends(&self.parked)));
        if out.len() != events {
            let ended = ended.iter().fold(String::new(), |text, one| text + "; " + one);
            wrong.push(difference(
                "events",
                &events.to_string(),
                &format!("{}{ended}", out.len()),
            ));
        }
        out.iter().for_each(|event| self.compare_event(event, &mut wrong));
        wrong
    }

    fn compare_event(&self, event: &Event, wrong: &mut Vec<String>) {
        let body = String::from_utf8_lossy(&event.payload()).into_owned();
        if let Some(channels) = &self.channels {
            let (mut expected, mut found) = (channels.clone(), event.channels.clone());
            expected.sort();
            found.sort();
            if expected != found {
                wrong.push(difference("channels", &expected.join(" "), &found.join(" ")));
            }
        }
        if let Some(kind) = self
            .kind
            .as_ref()
            .filter(|kind| event.event_type.as_ref() != Some(kind))
        {
            wrong.push(difference("type", kind, event.event_type.as_deref().unwrap_or("none")));
        }
        if let Some(expected) = self.body.as_ref().filter(|expected| **expected != body) {
            wrong.push(difference("body", expected, &body));
        }
        for part in self.body_has.iter().filter(|part| !body.contains(part.as_str())) {
            wrong.push(difference("body_has", part, &body));
        }
        for part in self.body_lacks.iter().filter(|part| body.contains(part.as_str())) {
            wrong.push(difference("body_lacks", part, &body));
        }
        if let Some(expected) = &self.body_json {
            match serde_json::from_str::<Value>(&body) {
                Ok(found) => compare_json("body_json", expected, &found, wrong),
                Err(_) => wrong.push(difference("body_json", &expected.to_string(), &body)),
            }
        }
    }
}

fn list_ends(ended: &[String]) -> String {
    if ended.is_empty() {
        "nothing was dropped or parked".to_owned()
    } else {
        ended.join("; ")
    }
}

/// Expected object members must be present; others may be.
fn compare_json(path: &str, expected: &Value, found: &Value, wrong: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (key, expected) in expected {
                compare_json(
                    &format!("{path}.{key}"),
                    expected,
                    found.get(key).unwrap_or(&Value::Null),
                    wrong,
                );
            }
        }
        _ if expected == found => {}
        _ => wrong.push(difference(path, &expected.to_string(), &found.to_string())),
    }
}

fn difference(what: &str, expected: &str, found: &str) -> String {
    let mut text = what.to_owned();
    // Writing to a String cannot fail.
    let _ = write!(text, "\n      expected: {expected}\n      found:    {found}");
    text
}

#[cfg(test)]
mod tests {
    use crate::config;

    fn outcome(test: &str) -> Vec<String> {
        let text = format!(
            r#"
            [source]
            a = {{ type = "stdin" }}
            [stage]
            parse = {{ type = "parse_json" }}
            fmt = {{ type = "format", fields = {{ id = "id", text = "text" }} }}
            route = {{ type = "route", channels = ["t.{{thread}}"], event_type = "{{kind}}" }}
            [sink]
            s = {{ type = "null" }}
            [switch.some]
            status = "on"
            [pipeline]
            p = {{ from = "a", stages = ["parse", "fmt", "route"], to = ["s"], gate = "some", prefix = "x." }}
            [test.t]
            pipeline = "p"
            {test}
            "#
        );
        let config = config::parse(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        config.tests[0].run(&config)
    }

    const INPUT: &str = r#"input = '{"id":1,"text":"hi","thread":"9","kind":"new"}'"#;

    #[test]
    fn a_test_that_holds_says_nothing() {
        let expect = r#"expect = { channels = ["x.t.9"], body = '{"id":1,"text":"hi"}', body_json = { id = 1 }, body_has = ["hi"], body_lacks = ["9"], type = "new" }"#;
        assert!(outcome(&format!("{INPUT}\n{expect}")).is_empty());
        assert!(outcome("input = '['\nexpect = { parked = \"not valid JSON\" }").is_empty());
        let gated = format!("{INPUT}\nswitches = {{ some = \"off\" }}\nexpect = {{ dropped = \"gate\" }}");
        assert!(outcome(&gated).is_empty());
        assert!(outcome(&gated.replace("\"gate\"", "1, parked = 0")).is_empty());
        assert!(outcome("input = '['\nexpect = { parked = 1, dropped = 0 }").is_empty());
        assert!(outcome(&format!("{INPUT}\nexpect = {{ dropped = 0, parked = 0 }}")).is_empty());
    }

    #[test]
    fn a_difference_says_what_was_expected_and_what_was_found() {
        let expect =
            r#"expect = { channels = ["t.9"], body_json = { text = "ho" }, body_lacks = ["hi"], type = "old" }"#;
        let wrong = outcome(&format!("{INPUT}\n{expect}"));
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert_eq!(wrong[0], "channels\n      expected: t.9\n      found:    x.t.9");
        assert_eq!(
            wrong[3],
            "body_json.text\n      expected: \"ho\"\n      found:    \"hi\""
        );
        let wrong = outcome("input = '['\nexpect = { body = \"x\" }");
        assert!(
            wrong[0].contains("found:    0; parked by parse: not valid JSON"),
            "{wrong:?}"
        );
        assert!(outcome(&format!("{INPUT}\nexpect = {{ dropped = \"gate\" }}")).len() == 2);
        let wrong = outcome("input = '['\nexpect = { parked = 2 }");
        assert!(
            wrong.len() == 1 && wrong[0].contains("expected: 2\n      found:    parked by parse"),
            "{wrong:?}"
        );
    }
}
