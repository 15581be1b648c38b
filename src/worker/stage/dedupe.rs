//! `dedupe`: drops an event whose key another event had recently.
//!
//! ```toml
//! once = { type = "dedupe", key = "{post}.{revision}", for = "10m", size = 65536 }
//! ```
//!
//! For producers that send the same content twice, as two events. A redelivery of one unfinished event is not a
//! duplicate: it has the same id, is let through, and nginx drops it if already stored. A source without ids cannot
//! tell the two apart and is refused. The memory is bounded by `size`, and lost with the worker. An event without one
//! of the fields is let through.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::{Event, EventId};
use crate::field::FieldTemplate;

pub const KIND: Kind = Kind {
    name: "dedupe",
    about: "drops what another event said a short while ago",
    read,
};

const DEFAULT_SIZE: usize = 65_536;

struct Dedupe {
    key: FieldTemplate,
    lasting: Duration,
    size: usize,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    by_key: HashMap<Arc<str>, (EventId, Instant)>,
    /// Oldest first.
    order: VecDeque<(Arc<str>, Instant)>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let key = section.required("key");
    let lasting = section.or("for", Duration::from_secs(600));
    let size = section.or("size", DEFAULT_SIZE);
    if size == 0 {
        section.complain_at("size", "must be at least 1");
    }
    Some(Arc::new(Dedupe {
        key: key?,
        lasting,
        size,
        seen: Mutex::default(),
    }))
}

impl Stage for Dedupe {
    fn run(&self, event: &mut Event) -> Flow {
        let Ok(key) = self.key.render(event) else {
            return Flow::Next;
        };
        match self.seen.lock().is_new(&key, &event.id, self.lasting, self.size) {
            true => Flow::Next,
            false => Flow::Drop("duplicate"),
        }
    }

    fn needs_ids(&self) -> bool {
        true
    }
}

impl Seen {
    fn is_new(&mut self, key: &str, id: &EventId, lasting: Duration, size: usize) -> bool {
        let now = Instant::now();
        while self.order.front().is_some_and(|(_, at)| now - *at > lasting) || self.order.len() > size {
            self.forget_oldest();
        }
        if let Some((first, _)) = self.by_key.get(key) {
            return first == id;
        }
        let key: Arc<str> = key.into();
        self.by_key.insert(Arc::clone(&key), (id.clone(), now));
        self.order.push_back((key, now));
        true
    }

    fn forget_oldest(&mut self) {
        if let Some((key, _)) = self.order.pop_front() {
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn another_event_with_the_key_is_a_duplicate_and_the_same_one_again_is_not() {
        let mut seen = Seen::default();
        let (one, two) = (EventId::new(1, 1), EventId::new(1, 2));
        assert!(seen.is_new("k", &one, LONG, 10));
        assert!(!seen.is_new("k", &two, LONG, 10));
        assert!(seen.is_new("k", &one, LONG, 10), "it comes again");
        assert!(seen.is_new("other", &two, LONG, 10));
    }

    #[test]
    fn memory_is_bounded_by_number_and_time() {
        let mut seen = Seen::default();
        for n in 0..100 {
            assert!(seen.is_new(&n.to_string(), &EventId::new(1, n), LONG, 10));
        }
        assert!(seen.by_key.len() <= 11);
        assert!(seen.is_new("5", &EventId::new(2, 0), LONG, 10), "forgotten");
        std::thread::sleep(Duration::from_millis(5));
        assert!(
            seen.is_new("99", &EventId::new(2, 1), Duration::from_millis(1), 10),
            "too long ago"
        );
    }
}
