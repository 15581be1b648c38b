//! Taps: show events as they leave a component, while the worker runs.
//!
//! Without a client a tap costs one relaxed load per event. A client gets what its connection can take and misses the
//! rest: a tap never delays the worker.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::event::Event;
use crate::json::{self, Digits};

/// Events queued for a slow client.
pub const BACKLOG: usize = 256;

#[derive(Debug, Default)]
pub struct Tap {
    /// A hint, so relaxed: one event more or less does not matter.
    is_open: AtomicBool,
    lookers: Mutex<Vec<Looker>>,
}

#[derive(Debug)]
struct Looker {
    events: mpsc::Sender<String>,
    /// Show values, not only the shape.
    raw: bool,
}

impl Tap {
    pub fn open(&self, raw: bool) -> mpsc::Receiver<String> {
        let (events, receiver) = mpsc::channel(BACKLOG);
        self.lookers.lock().push(Looker { events, raw });
        self.is_open.store(true, Ordering::Relaxed);
        receiver
    }

    pub fn show(&self, event: &Event) {
        if self.is_open.load(Ordering::Relaxed) {
            self.tell(event);
        }
    }

    #[cold]
    fn tell(&self, event: &Event) {
        let mut lookers = self.lookers.lock();
        lookers.retain(|looker| !looker.events.is_closed());
        self.is_open.store(!lookers.is_empty(), Ordering::Relaxed);
        for looker in lookers.iter() {
            // If the queue is full, the client misses this event.
            let _ = looker.events.try_send(line(event, looker.raw));
        }
    }
}

fn line(event: &Event, raw: bool) -> String {
    let digits = &event.digits;
    let shown = |value: &Value, digits: &Digits| match raw {
        true => json::to_string(value, digits).unwrap_or_default(),
        false => redact(value.clone()).to_string(),
    };
    let fields = event
        .fields
        .as_ref()
        .map_or("null".to_owned(), |fields| shown(fields, digits));
    let body = event.body.as_ref().or(event.fields.is_none().then_some(&event.raw));
    let body = body.map_or("null".to_owned(), |body| match (raw, json::parse(body)) {
        (_, Ok((value, digits))) => shown(&value, &digits),
        (true, Err(_)) => Value::from(String::from_utf8_lossy(body)).to_string(),
        (false, Err(_)) => Value::from(format!("{} bytes", body.len())).to_string(),
    });
    let (id, channels) = (json!(event.id.to_string()), json!(event.channels));
    let kind = json!(event.event_type);
    format!("{{\"id\":{id},\"channels\":{channels},\"type\":{kind},\"fields\":{fields},\"body\":{body}}}")
}

/// Keeps the structure: key names, and the type of each value.
fn redact(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, redact(value))).collect(),
        Value::Array(list) => list.into_iter().map(redact).collect(),
        Value::String(text) => format!("text of {} characters", text.chars().count()).into(),
        Value::Number(_) => "number".into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;

    #[test]
    fn a_tap_shows_the_shape_and_only_on_demand_the_values() {
        let tap = Tap::default();
        let mut event = Event::new(EventId::new(1, 2), Timestamp(0), "".into());
        event.fields = Some(json!({"name": "Zoë", "n": 5}));
        tap.show(&event);
        let (mut shape, mut values) = (tap.open(false), tap.open(true));
        tap.show(&event);
        assert!(!shape.try_recv().unwrap().contains("Zoë"));
        assert!(values.try_recv().unwrap().contains("Zoë"));
        assert!(shape.try_recv().is_err(), "not what was before");
        drop((shape, values));
        tap.show(&event);
        assert!(!tap.is_open.load(Ordering::Relaxed), "closed when the last has gone");
    }
}
