//! Recorded events, for `replay`; no source of a configuration.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Context, Guarantee, Limits, Run, Source};
use crate::clock::Timestamp;
use crate::event::{Event, EventId};
use crate::finalizer::{AckTo, Handle};

/// How often a long replay says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// One recorded event.
#[derive(Clone, Debug)]
pub struct Record {
    /// `None`: it gets a new one.
    pub id: Option<EventId>,
    pub raw: Bytes,
}

pub struct Recorded {
    records: Vec<Record>,
    /// From one to the next.
    pause: Option<Duration>,
}

impl Recorded {
    pub fn new(records: Vec<Record>, pause: Option<Duration>) -> Self {
        Self { records, pause }
    }
}

impl Source for Recorded {
    fn limits(&self) -> Limits {
        Limits {
            events: 1024,
            bytes: 32 << 20,
        }
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let Context { feed, mut stop, .. } = context;
            let epoch = Timestamp::now().0;
            let count = self.records.len();
            let start = tokio::time::Instant::now();
            let mut told = Instant::now();
            let is_watched = io::stderr().is_terminal();
            for (n, record) in (1_u32..).zip(self.records) {
                let id = record.id.unwrap_or_else(|| EventId::new(epoch, n.into()));
                let permit = tokio::select! {
                    permit = feed.credit().reserve(record.raw.len()) => permit,
                    () = stop.requested() => break,
                };
                let event = Event::new(id, Timestamp::now(), record.raw);
                feed.emit(event, Handle::new(n.into(), AckTo::Nobody, Some(permit)));
                if let Some(pause) = self.pause {
                    tokio::select! {
                        () = tokio::time::sleep_until(start + pause * n) => {}
                        () = stop.requested() => break,
                    }
                }
                if is_watched && told.elapsed() >= PROGRESS {
                    told = Instant::now();
                    eprint!("\r{n} of {count}");
                }
            }
            if is_watched {
                eprintln!("\r{count} events");
            }
            feed.drained(&mut stop).await;
            Ok(())
        })
    }
}
