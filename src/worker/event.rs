//! What flows through a pipeline: an [`Event`] and its [`EventId`].

use std::fmt;
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use crate::clock::Timestamp;

/// `<epoch>-<seq>`, or `<epoch>-<seq>-<part>` for a piece of a split event.
///
/// The id is fixed when the source claims the event and is the same whenever that event is delivered again, by this
/// process or the next one. nginx gets it as `Event-Id` and can drop what it has already stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Unix milliseconds at which the source started counting.
    pub epoch: u64,
    /// Counts from 1 within the epoch.
    pub seq: u64,
    /// Set on the pieces of a split event, counting from 1.
    pub part: Option<u32>,
}

impl EventId {
    pub fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq, part: None }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)?;
        self.part.map_or(Ok(()), |part| write!(f, "-{part}"))
    }
}

/// One event on its way from a source to the sinks.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    /// When the source took it in. It is the `_event.time` of templates and the start of `max_age`.
    pub received: Timestamp,
    /// The same moment on the monotonic clock.
    pub received_at: Instant,
    /// As it came, without the line end.
    pub raw: Bytes,
    /// The parsed object; `None` before `parse_json`.
    pub fields: Option<Value>,
    /// The formatted bytes; `None` before `format`.
    pub body: Option<Bytes>,
    /// Where it goes; empty before `route`.
    pub channels: Vec<String>,
    /// The EventSource event type.
    pub event_type: Option<String>,
}

impl Event {
    pub fn new(id: EventId, received: Timestamp, raw: Bytes) -> Self {
        Self {
            id,
            received,
            received_at: Instant::now(),
            raw,
            fields: None,
            body: None,
            channels: Vec::new(),
            event_type: None,
        }
    }

    /// The bytes to publish: the formatted body, else the fields as JSON, else the raw bytes.
    pub fn payload(&self) -> Bytes {
        match (&self.body, &self.fields) {
            (Some(body), _) => body.clone(),
            (None, Some(fields)) => serde_json::to_vec(fields).map_or_else(|_| self.raw.clone(), Bytes::from),
            (None, None) => self.raw.clone(),
        }
    }

    /// Fixes [`Event::payload`], so that every sink and every retry sends the same bytes.
    pub fn seal(&mut self) {
        self.body = Some(self.payload());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_groups_of_digits() {
        assert_eq!(EventId::new(1700000000000, 7).to_string(), "1700000000000-7");
        assert_eq!(
            EventId {
                epoch: 1,
                seq: 2,
                part: Some(3)
            }
            .to_string(),
            "1-2-3"
        );
    }

    #[test]
    fn the_payload_is_the_most_processed_form() {
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), Bytes::from_static(b"{ \"a\": 1 }"));
        assert_eq!(event.payload(), "{ \"a\": 1 }");
        event.fields = Some(serde_json::json!({"a": 2}));
        assert_eq!(event.payload(), "{\"a\":2}");
        event.body = Some(Bytes::from_static(b"two"));
        assert_eq!(event.payload(), "two");
    }
}
