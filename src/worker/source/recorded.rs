//! Recorded events, for `replay` and `park retry`; not a configurable source.
//!
//! An event gets its id when it is sent. A channel refuses an id that is not above its newest, and an id above the next
//! one of the live source would get that source refused; so the id is the successor of the newest in the event's
//! channels, as reported by the nodes (`7-5`, `7-5-1`, `7-6`). An event overtaken by a live one meanwhile is sent
//! again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Context, Guarantee, Limits, Operation, Run, Source};
use crate::clock::Timestamp;
use crate::credit::Permit;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::event::{Event, EventId, OrderedId};
use crate::finalizer::{Ack, AckTo, Handle, Outcome, Parked};
use crate::sink::http_push::is_stale;

/// Interval of a long replay's progress reports.
const PROGRESS: Duration = Duration::from_secs(1);
/// If live events overtake for this long without any event accepted, the event is parked.
const OVERTAKEN: Duration = Duration::from_secs(10);
/// Pause before overtaken events are sent again.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(1);
/// Maximum interval between two saves of the outcomes.
const REST: Duration = Duration::from_millis(50);

/// One recorded event.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event's original id, if any. Valid as long as nothing else has come into its channels.
    pub id: Option<EventId>,
    pub raw: Bytes,
}

/// Knows an event's channels and their newest ids.
pub trait Channels: Send {
    /// The id right after the newest in the event's channels, if they have ordered ids.
    fn next_id<'a>(&'a mut self, event: &'a Event) -> Operation<'a, Option<OrderedId>>;

    /// Drops all cached ids.
    fn forget(&mut self);
}

/// Receiver of the outcomes.
pub trait Ledger: Send {
    /// A record is published or parked.
    fn settled(&mut self, record: usize, parked: Option<&Parked>);

    /// Called periodically, and at the end: saves the outcomes.
    fn rest(&mut self);
}

pub struct Recorded {
    records: Vec<Record>,
    /// Pause between two events.
    pause: Option<Duration>,
    channels: Box<dyn Channels>,
    ledger: Box<dyn Ledger>,
}

impl Recorded {
    pub fn new(
        records: Vec<Record>,
        pause: Option<Duration>,
        channels: Box<dyn Channels>,
        ledger: Box<dyn Ledger>,
    ) -> Self {
        Self {
            records,
            pause,
            channels,
            ledger,
        }
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
            let (ack_to, acks) = mpsc::unbounded_channel();
            let running = Running {
                waiting: (0..self.records.len()).collect(),
                was_overtaken: vec![false; self.records.len()],
                open: HashMap::new(),
                overtaken: BTreeSet::new(),
                taken: Instant::now(),
                sent: 0,
                recorded: *self,
                feed,
                ack_to,
                acks,
            };
            running.run(&mut stop).await;
            Ok(())
        })
    }
}

struct Running {
    recorded: Recorded,
    feed: Feed,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    /// Indexes of records.
    waiting: VecDeque<usize>,
    /// Records that were overtaken before.
    was_overtaken: Vec<bool>,
    /// Records in flight, by ticket.
    open: HashMap<u64, usize>,
    /// Records to be sent again when nothing is in flight.
    overtaken: BTreeSet<usize>,
    /// When an event was last accepted.
    taken: Instant,
    sent: u64,
}

impl Running {
    async fn run(mut self, stop: &mut Stop) {
        let start = tokio::time::Instant::now();
        let mut told = Instant::now();
        let is_watched = io::stderr().is_terminal();
        let count = self.recorded.records.len();
        while self.has_work() && !stop.is_requested() {
            if !self.overtaken.is_empty() && self.open.is_empty() {
                // In their order, and before later records.
                tokio::time::sleep(OVERTAKEN_PAUSE).await;
                self.recorded.channels.forget();
                for index in std::mem::take(&mut self.overtaken).into_iter().rev() {
                    self.waiting.push_front(index);
                }
            }
            let next = self.waiting.front().copied().filter(|_| self.overtaken.is_empty());
            let size = next.map_or(0, |index| self.recorded.records[index].raw.len());
            let due = start + self.recorded.pause.unwrap_or_default() * u32::try_from(self.sent).unwrap_or(u32::MAX);
            let credit = self.feed.credit().clone();
            let permit = async {
                tokio::time::sleep_until(due).await;
                credit.reserve(size).await
            };
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Some(ack) = self.acks.recv() => self.note(ack),
                () = tokio::time::sleep(REST), if !self.open.is_empty() => self.recorded.ledger.rest(),
                permit = permit, if next.is_some() => {
                    if let Some(index) = next {
                        tokio::select! {
                            event = self.event(index) => {
                                self.waiting.pop_front();
                                self.emit(index, event, permit);
                            }
                            () = stop.requested() => break,
                        }
                    }
                }
            }
            if is_watched && told.elapsed() >= PROGRESS {
                told = Instant::now();
                eprint!("\r{} of {count}", count - self.waiting.len());
            }
        }
        while !self.open.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(ack),
                () = tokio::time::sleep(REST) => self.recorded.ledger.rest(),
                () = stop.abandoned() => break,
            }
        }
        if is_watched {
            eprintln!("\r{} of {count} events", count - self.waiting.len());
        }
        self.recorded.ledger.rest();
    }

    fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.overtaken.is_empty() && self.open.is_empty())
    }

    /// The event of a record, with the id for this attempt.
    async fn event(&mut self, index: usize) -> Event {
        let Record { id, raw } = self.recorded.records[index].clone();
        let mut event = Event::new(EventId::Unknown, Timestamp::now(), raw);
        let behind = self.recorded.channels.next_id(&event).await;
        event.id = match (behind, id) {
            (Ok(Some(behind)), _) => behind.into(),
            // A node that does not report its ids has refused the id below.
            _ if self.was_overtaken[index] => EventId::new(event.received.0, self.sent + 1),
            (_, Some(id)) => id,
            // Below all ids that a source gives out.
            (_, None) => EventId::Numbered {
                epoch: 0,
                seq: event.received.0,
                part: u32::try_from(self.sent + 1).ok(),
            },
        };
        event
    }

    fn emit(&mut self, index: usize, event: Event, permit: Permit) {
        self.sent += 1;
        self.open.insert(self.sent, index);
        let handle = Handle::new(self.sent, AckTo::Recorded(self.ack_to.clone()), Some(permit));
        self.feed.emit(event, handle);
    }

    fn note(&mut self, ack: Ack) {
        let Some(index) = self.open.remove(&ack.ticket) else {
            return;
        };
        let parked = ack.parked.as_deref();
        let is_overtaken = parked.is_some_and(|parked| is_stale(&parked.text));
        match ack.outcome {
            Outcome::Released => {}
            Outcome::Parked if is_overtaken && self.taken.elapsed() < OVERTAKEN => {
                self.was_overtaken[index] = true;
                self.overtaken.insert(index);
            }
            outcome => {
                if outcome != Outcome::Parked {
                    self.taken = Instant::now();
                }
                if let Some(Parked {
                    id, component, text, ..
                }) = parked
                {
                    tracing::warn!("event {id} parked by {component}: {text}");
                }
                self.recorded.ledger.settled(index, parked);
            }
        }
    }
}
