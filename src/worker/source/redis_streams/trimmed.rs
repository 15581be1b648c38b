//! Entries trimmed before they were read. A stream trims by its own rules, read or not; the loss must at least be
//! reported.

use std::collections::HashMap;

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::entry::{Entry, StreamId, bytes_of};
use crate::redis_link::describe_error;

/// Extent of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Entries ever added.
    pub added: u64,
    /// Entries removed.
    pub removed: u64,
    /// Id of the oldest entry present.
    pub first: Option<StreamId>,
    /// Id of the newest entry ever added.
    pub last: StreamId,
}

impl Extent {
    /// Reads it from XINFO STREAM; `None` if there is no such stream.
    pub async fn of(connection: &mut MultiplexedConnection, stream: &str) -> Result<Option<Self>, String> {
        let mut info = redis::cmd("XINFO");
        info.arg("STREAM").arg(stream);
        match info.query_async::<HashMap<String, Value>>(connection).await {
            Ok(info) => Ok(Some(Self::from_info(info))),
            Err(error) if error.to_string().contains("no such key") => Ok(None),
            Err(error) => Err(describe_error(error)),
        }
    }

    fn from_info(mut info: HashMap<String, Value>) -> Self {
        let number = |value: Option<&Value>| match value {
            Some(Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
            _ => 0,
        };
        let added = number(info.get("entries-added"));
        let length = number(info.get("length"));
        let last = info.remove("last-generated-id").and_then(bytes_of);
        Self {
            added,
            removed: added.saturating_sub(length),
            first: info.remove("first-entry").and_then(Entry::of).map(|entry| entry.id),
            last: last.and_then(|id| StreamId::parse(&id)).unwrap_or_default(),
        }
    }
}

/// Counts for one reader.
#[derive(Debug, Default)]
pub struct Missed {
    /// Total so far, as far as known.
    total: u64,
}

impl Missed {
    /// `read`: number of entries ever added that this reader was given, or has missed already. Returns the number
    /// missed since the last call.
    pub fn since(&mut self, extent: &Extent, at: StreamId, read: u64) -> u64 {
        let total = extent.removed.saturating_sub(read);
        // Entries already read may be trimmed at any time.
        let is_passed = extent.first.is_some_and(|first| first > at) || extent.first.is_none() && extent.last > at;
        let more = if is_passed { total.saturating_sub(self.total) } else { 0 };
        self.total = self.total.max(total);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(millis: u64) -> StreamId {
        StreamId { millis, seq: 0 }
    }

    fn extent(added: u64, removed: u64) -> Extent {
        Extent {
            added,
            removed,
            first: (removed < added).then(|| id(removed + 1)),
            last: id(added),
        }
    }

    #[test]
    fn only_what_was_not_read_is_missed_and_it_is_told_once() {
        let mut missed = Missed::default();
        assert_eq!(missed.since(&extent(100, 40), id(50), 50), 0, "had been read");
        assert_eq!(missed.since(&extent(100, 50), id(50), 50), 0, "had just been read");
        assert_eq!(missed.since(&extent(100, 80), id(50), 50), 30);
        assert_eq!(missed.since(&extent(100, 80), id(50), 50), 0, "told");
        assert_eq!(missed.since(&extent(110, 90), id(50), 50), 10);
        assert_eq!(missed.since(&extent(110, 110), id(50), 50), 20, "nothing is left");
        assert_eq!(missed.since(&extent(120, 115), id(118), 58), 0, "read after the gap");
    }
}
