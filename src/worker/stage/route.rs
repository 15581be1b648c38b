//! `route`: sets an event's channels, and the events that must stay in order.
//!
//! ```toml
//! route = { type = "route", channels = ["forum.{forum}", "thread.{thread}", "user.{author.id}"], order_by = "thread" }
//! ```
//!
//! * `channels`: templates; one POST goes to all of them. A template whose field is missing, null, empty or not a scalar
//!   is left out (`missing = "skip"`, default) or parks the event (`missing = "park"`). No channel left: parked.
//! * `order_by`: events with the same value keep their order at every node. It names a field of the *incoming* event,
//!   before any stage. Without it all events keep the order of the source, one at a time; `unordered = true` gives that
//!   up.
//! * `event_type`: a template for the EventSource event type; a missing field means none.
//! * `force`: the name of a switch; while it is on, all events go to the one channel that is the switch's `value`. For
//!   rehearsing a peak of all readers on one page.
//! * `unsafe_ids`: handling of a channel id that nginx would misinterpret, because a field holds `/` or `*` or a
//!   control character, or the id is `ALL` or ends like a backtrack (`.b12`): `"replace"` the offending characters by
//!   `_` (default), `"skip"` the channel, or `"park"`.

use std::sync::Arc;

use super::{Flow, Kind, Missing, Order, Stage};
use crate::config::section::Section;
use crate::event::Event;
use crate::field::{FieldPath, FieldTemplate};
use crate::switch::Switch;

pub const KIND: Kind = Kind {
    name: "route",
    about: "chooses channels, event type and order key",
    read,
};

pub struct Route {
    channels: Vec<FieldTemplate>,
    order: Order,
    event_type: Option<FieldTemplate>,
    missing: Missing,
    unsafe_ids: UnsafeIds,
    /// While this is on, all events go to the one channel that is its value.
    force: Option<Arc<Switch>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsafeIds {
    Replace,
    Skip,
    Park,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let channels = section.required::<Vec<FieldTemplate>>("channels");
    if channels.as_ref().is_some_and(Vec::is_empty) {
        section.complain_at("channels", "needs at least one channel");
    }
    for literal in channels.iter().flatten().flat_map(FieldTemplate::literals) {
        if let Some(bad) = literal.chars().find(|&c| is_unsafe(c)) {
            section.complain_at("channels", format!("\"{literal}\": a channel id cannot hold {bad:?}"));
        }
    }
    let order_by = section.optional::<FieldPath>("order_by");
    let unordered = section.or("unordered", false);
    if unordered && section.has("order_by") {
        section.complain_at("unordered", "contradicts order_by");
    }
    if order_by.as_ref().is_some_and(|path| !path.is_stored()) {
        section.complain_at("order_by", "must name a field of the incoming event");
    }
    let order = match order_by {
        Some(path) => Order::By(path),
        None if unordered => Order::Unordered,
        None => Order::Source,
    };
    let event_type = section.optional("event_type");
    let missing = section.choice(
        "missing",
        &[("skip", Missing::Skip), ("park", Missing::Park)],
        Missing::Skip,
    );
    let words = [
        ("replace", UnsafeIds::Replace),
        ("skip", UnsafeIds::Skip),
        ("park", UnsafeIds::Park),
    ];
    let unsafe_ids = section.choice("unsafe_ids", &words, UnsafeIds::Replace);
    Some(Arc::new(Route {
        channels: channels?,
        order,
        event_type,
        missing,
        unsafe_ids,
        force: section.switch("force"),
    }))
}

impl Stage for Route {
    fn run(&self, event: &mut Event) -> Flow {
        let mut channels: Vec<String> = Vec::with_capacity(self.channels.len());
        for template in &self.channels {
            let id = match (template.render(event), self.missing) {
                (Ok(id), _) => id,
                (Err(path), Missing::Park) => return Flow::Park(format!("no channel: field {path} is missing")),
                (Err(_), _) => continue,
            };
            let id = match (safe_id(&id), self.unsafe_ids) {
                (None, _) => id,
                (Some(safe), UnsafeIds::Replace) => safe,
                (Some(_), UnsafeIds::Skip) => continue,
                (Some(_), UnsafeIds::Park) => return Flow::Park(format!("channel id {id:?} cannot be used")),
            };
            if !channels.contains(&id) {
                channels.push(id);
            }
        }
        if channels.is_empty() {
            return Flow::Park("no channel: none of the channel fields is there".to_owned());
        }
        event.channels = self.forced(event).unwrap_or(channels);
        if let Some(template) = &self.event_type {
            // A header value, and one line of an EventSource stream: no control characters.
            let kind = template
                .render(event)
                .ok()
                .map(|kind| kind.replace(char::is_control, "_"));
            event.event_type = kind;
        }
        Flow::Next
    }

    fn gives_channels(&self) -> bool {
        true
    }

    fn order(&self) -> Option<Order> {
        Some(self.order.clone())
    }
}

impl Route {
    fn forced(&self, event: &Event) -> Option<Vec<String>> {
        let switch = self.force.as_ref().filter(|switch| switch.is_on(event))?;
        let channel = switch.state().value?;
        Some(vec![safe_id(&channel).unwrap_or(channel)])
    }
}

/// `/` separates ids and `*` is for statistics; a control character in an id is a mistake or an attack.
fn is_unsafe(c: char) -> bool {
    c == '/' || c == '*' || c.is_control()
}

/// A replacement id that nginx takes as one channel; `None` if the given one is safe.
fn safe_id(id: &str) -> Option<String> {
    let reserved = id == "ALL" || ends_like_backtrack(id);
    if !reserved && !id.contains(is_unsafe) {
        return None;
    }
    let mut safe = id.replace(is_unsafe, "_");
    if reserved {
        safe.push('_');
    }
    Some(safe)
}

/// `.b<digits>` at the end of an id is a subscriber's request for old messages; nginx cuts it off a publisher's id.
fn ends_like_backtrack(id: &str) -> bool {
    let head = id.trim_end_matches(|c: char| c.is_ascii_digit());
    head.len() < id.len() && head.ends_with(".b")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::{Value, json};

    fn route(channels: &[&str]) -> Route {
        Route {
            channels: channels
                .iter()
                .map(|text| FieldTemplate::from_text(text).unwrap())
                .collect(),
            order: Order::Source,
            event_type: Some(FieldTemplate::from_text("{kind}").unwrap()),
            missing: Missing::Skip,
            unsafe_ids: UnsafeIds::Replace,
            force: None,
        }
    }

    fn run(stage: &Route, fields: Value) -> (Flow, Event) {
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        event.fields = Some(fields);
        (stage.run(&mut event), event)
    }

    #[test]
    fn an_event_goes_to_every_channel_whose_fields_are_there_once() {
        let stage = route(&["forum.{forum}", "user.{author.id}", "f{x}", "forum.{forum}"]);
        let (flow, event) = run(
            &stage,
            json!({"forum": "cnn", "author": {"id": 3}, "kind": "new\npost"}),
        );
        assert!(matches!(flow, Flow::Next));
        assert_eq!(event.channels, ["forum.cnn", "user.3"]);
        assert_eq!(event.event_type.as_deref(), Some("new_post"));
    }

    #[test]
    fn no_channel_at_all_parks() {
        let (flow, _) = run(&route(&["forum.{forum}"]), json!({"forum": ""}));
        assert!(matches!(flow, Flow::Park(reason) if reason.starts_with("no channel")));
        let strict = Route {
            missing: Missing::Park,
            ..route(&["a", "forum.{forum}"])
        };
        assert!(matches!(run(&strict, json!({})).0, Flow::Park(reason) if reason.contains("field forum is missing")));
    }

    #[test]
    fn a_field_cannot_name_a_second_channel_or_a_reserved_one() {
        let stage = route(&["{a}"]);
        for (value, id) in [
            ("x/user.42", "x_user.42"),
            ("*", "_"),
            ("ALL", "ALL_"),
            ("ALLY", "ALLY"),
            ("room.b5", "room.b5_"),
            (".b5", ".b5_"),
            ("room.b", "room.b"),
            ("room.b5.x", "room.b5.x"),
            ("5", "5"),
            ("a\r\nb", "a__b"),
            ("ü ?&%#", "ü ?&%#"),
        ] {
            assert_eq!(run(&stage, json!({"a": value})).1.channels, [id], "{value}");
        }
        let parking = Route {
            unsafe_ids: UnsafeIds::Park,
            ..route(&["{a}"])
        };
        assert!(matches!(run(&parking, json!({"a": "x/y"})).0, Flow::Park(_)));
        let skipping = Route {
            unsafe_ids: UnsafeIds::Skip,
            ..route(&["{a}", "b"])
        };
        assert_eq!(run(&skipping, json!({"a": "x/y"})).1.channels, ["b"]);
    }
}
