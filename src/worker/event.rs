//! An [`Event`], which flows through a pipeline, and its [`EventId`].

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;

use crate::clock::Timestamp;
use crate::fence::Fence;
use crate::json::{self, Digits};

/// An event's id, sent to nginx as `Event-Id`.
///
/// The id is fixed when the source claims the event and is the same in every delivery of that event, by this process or
/// the next one, so that nginx can drop what it has already stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EventId {
    /// `<epoch>-<seq>`, or `<epoch>-<seq>-<part>` for a piece of a split event. These ids are ordered.
    Numbered {
        /// Unix milliseconds at which the source started counting, or the first half of a stream's id.
        epoch: u64,
        /// Increases within the epoch.
        seq: u64,
        /// Set on the pieces of a split event, counting from 1.
        part: Option<u32>,
    },
    /// Set by the producer, such as the `message_id` of AMQP.
    Brought(Arc<str>),
    /// The source gives no id: a redelivery cannot be told from a new event.
    Unknown,
}

impl EventId {
    pub fn new(epoch: u64, seq: u64) -> Self {
        Self::Numbered { epoch, seq, part: None }
    }

    /// The id of a piece. Splitting a piece again continues the numbering, since a restart would repeat ids.
    pub fn part(&self, number: u32) -> Self {
        match self {
            Self::Numbered { epoch, seq, part } => Self::Numbered {
                epoch: *epoch,
                seq: *seq,
                part: Some(
                    part.map_or(0, |outer| outer.saturating_mul(1000))
                        .saturating_add(number),
                ),
            },
            Self::Brought(id) => Self::Brought(format!("{id}-{number}").into()),
            Self::Unknown => Self::Unknown,
        }
    }

    pub fn is_known(&self) -> bool {
        *self != Self::Unknown
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbered { epoch, seq, part } => {
                write!(f, "{epoch}-{seq}")?;
                part.map_or(Ok(()), |part| write!(f, "-{part}"))
            }
            Self::Brought(id) => f.write_str(id),
            Self::Unknown => f.write_str("without id"),
        }
    }
}

/// One to four numbers, compared from the left, as nodes compare them; a missing number sorts first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderedId(Vec<u64>);

impl OrderedId {
    pub const MAX_NUMBERS: usize = 4;

    pub fn parse(text: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> = text.split('-').map(|number| number.parse().ok()).collect();
        numbers.map(Self).filter(|id| id.0.len() <= Self::MAX_NUMBERS)
    }

    /// The immediate successor: below every id that a source counting in the first numbers gives out next.
    pub fn next(&self) -> Self {
        let mut numbers = self.0.clone();
        if numbers.len() < Self::MAX_NUMBERS {
            numbers.push(1);
        } else if let Some(last) = numbers.last_mut() {
            *last = last.saturating_add(1);
        }
        Self(numbers)
    }
}

impl From<OrderedId> for EventId {
    fn from(id: OrderedId) -> Self {
        let numbers: Vec<String> = id.0.iter().map(u64::to_string).collect();
        Self::Brought(numbers.join("-").into())
    }
}

/// One event on its way from a source to the sinks.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    /// When it was put into its queue, else when the source took it in. `_event.time` in templates.
    pub received: Timestamp,
    /// When the source took it in: the start of `max_age`.
    pub received_at: Instant,
    /// The input, without the line end.
    pub raw: Bytes,
    /// The parsed object; `None` before `parse_json`.
    pub fields: Option<Value>,
    /// Exact digits of the numbers in `fields`.
    pub digits: Digits,
    /// The formatted bytes; `None` before `format`.
    pub body: Option<Bytes>,
    /// Destination channels; empty before `route`.
    pub channels: Vec<String>,
    /// The EventSource event type.
    pub event_type: Option<String>,
    /// The fence of the claim under which this worker holds it, for sources with claims.
    pub fence: Option<Arc<Fence>>,
    /// Number of node recoveries its source had answered when it read this event. A node that has recovered since gets
    /// it again, after older events. `u64::MAX`: its source republishes nothing.
    pub recovery: u64,
}

impl Event {
    pub fn new(id: EventId, received: Timestamp, raw: Bytes) -> Self {
        Self {
            id,
            received,
            received_at: Instant::now(),
            raw,
            fields: None,
            digits: Digits::default(),
            body: None,
            channels: Vec::new(),
            event_type: None,
            fence: None,
            recovery: u64::MAX,
        }
    }

    /// May another worker have claimed this event by now? Then this worker must not send it.
    pub fn is_fenced(&self) -> bool {
        self.fence.as_ref().is_some_and(|fence| !fence.is_held())
    }

    /// The bytes to publish: the formatted body, else the fields as JSON, else the raw bytes.
    pub fn payload(&self) -> Bytes {
        match (&self.body, &self.fields) {
            (Some(body), _) => body.clone(),
            (None, Some(fields)) => {
                let mut out = Vec::with_capacity(self.raw.len());
                json::write(&mut out, fields, &self.digits).map_or_else(|_| self.raw.clone(), |()| Bytes::from(out))
            }
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
        assert_eq!(EventId::new(1, 2).part(3).to_string(), "1-2-3");
        assert_eq!(EventId::new(1, 2).part(3).part(4).to_string(), "1-2-3004");
        assert_eq!(EventId::Brought("a".into()).part(2).to_string(), "a-2");
    }

    #[test]
    fn the_id_behind_another_is_below_the_next_of_its_source() {
        let id = |text: &str| OrderedId::parse(text).unwrap();
        let (mut last, next) = (id("17-5"), id("17-6"));
        let mut ids = Vec::new();
        for _ in 0..4 {
            let behind = last.next();
            assert!(last < behind && behind < next, "{behind:?}");
            ids.push(EventId::from(behind.clone()).to_string());
            last = behind;
        }
        assert_eq!(ids, ["17-5-1", "17-5-1-1", "17-5-1-2", "17-5-1-3"]);
        for other in ["", "a", "1-", "1-2-3-4-5", "-1", "18446744073709551616"] {
            assert_eq!(OrderedId::parse(other), None, "{other}");
        }
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
