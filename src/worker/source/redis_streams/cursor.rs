//! Reads a whole stream from a cursor of the worker's own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::entry::{Entry, Format, StreamId};
use super::stream::{RedisStreams, wait_for_entry};
use super::trimmed::{Extent, Missed};
use crate::checkpoint::{self, Checkpointer};
use crate::clock::Timestamp;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::finalizer::{Ack, AckTo, Handle};
use crate::redis_link::describe_error;
use crate::source::Context;
use crate::source::trouble::Trouble;
use crate::source::watch::Watches;
use crate::watermark::Watermark;

/// An append whose reply was lost is repeated within seconds; this many ids are remembered to detect it.
const REMEMBERED: usize = 16_384;

/// The persistent state of a cursor.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    stream: String,
    id: StreamId,
    #[serde(default)]
    count: Option<u64>,
}

/// The position after an entry.
#[derive(Clone, Copy, Debug)]
struct Place {
    id: StreamId,
    /// As [`Cursor::count`].
    count: Option<u64>,
}

/// Reads a whole stream from its own cursor.
pub struct Cursor {
    config: RedisStreams,
    name: String,
    feed: Feed,
    stop: Stop,
    /// The last entry handed out.
    at: StreamId,
    /// Number of entries ever added to the stream, up to this one; unknown until the end was seen.
    count: Option<u64>,
    missed: Missed,
    marks: Watermark<Place>,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    checkpointer: Checkpointer<Position>,
    remembered: Remembered,
    pending: VecDeque<Entry>,
    /// The worker is ready when it has read up to here; `None`: not determined yet.
    catch_up_to: Option<StreamId>,
    /// The last node recovery that was answered by rereading.
    recovery: u64,
    /// The stream is read to its end, and a wait for more is under way.
    is_dry: bool,
    recoveries: tokio::sync::watch::Receiver<u64>,
    watches: Watches,
}

impl Cursor {
    pub fn start(config: RedisStreams, context: Context) -> std::io::Result<Self> {
        let Context {
            name,
            state_dir,
            feed,
            stop,
        } = context;
        let file = state_dir.join(format!("{name}.position.json"));
        let position = checkpoint::load::<Position>(&file)?.filter(|position| position.stream == config.stream);
        let count = position.as_ref().and_then(|position| position.count);
        let count = count.filter(|_| config.history.is_none());
        let at = match (config.history, position) {
            (Some(history), _) => before_now(history),
            (None, Some(position)) => position.id,
            (None, None) if config.from_end => StreamId {
                millis: u64::MAX,
                seq: u64::MAX,
            },
            (None, None) => StreamId::default(),
        };
        let (ack_to, acks) = mpsc::unbounded_channel();
        let mut recoveries = feed.recoveries();
        let recovery = *recoveries.borrow_and_update();
        Ok(Self {
            checkpointer: Checkpointer::spawn(&name, file, |_| ())?,
            recoveries,
            config,
            name,
            feed,
            stop,
            at,
            count,
            missed: Missed::default(),
            marks: Watermark::new(),
            acks,
            ack_to,
            remembered: Remembered::default(),
            pending: VecDeque::new(),
            catch_up_to: None,
            recovery,
            is_dry: false,
            watches: Watches::default(),
        })
    }

    pub async fn run(mut self) -> std::io::Result<()> {
        let mut trouble = Trouble::default();
        while !self.stop.is_requested() {
            let Err(error) = self.session(&mut trouble).await else {
                break;
            };
            self.feed.gauges().set_ready(false);
            trouble.tell(&self.name, error, "connecting again");
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1000))) => {}
                () = stop.requested() => {}
            }
        }
        self.settle();
        while !self.marks.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(&ack),
                () = self.stop.abandoned() => break,
            }
            self.settle();
        }
        Ok(())
    }

    async fn session(&mut self, trouble: &mut Trouble) -> Result<(), String> {
        let mut connection = self.config.server.connect().await?;
        let waiting = self.config.server.connect_patiently().await?;
        let end = newest(&mut connection, &self.config.stream).await?;
        self.at = self.at.min(end);
        self.catch_up_to.get_or_insert(end);
        let (name, stream) = (&self.name, &self.config.stream);
        tracing::info!("source {name}: reading stream {stream} after {}", self.at);
        trouble.is_over();
        let more = Arc::new(Notify::new());
        self.is_dry = false;
        let mut lag_at = Instant::now();
        let mut stop = self.stop.clone();
        while !stop.is_requested() {
            self.settle();
            self.refill();
            if self.catch_up_to.is_none() {
                self.catch_up_to = Some(newest(&mut connection, &self.config.stream).await?);
            }
            if Instant::now() >= lag_at {
                lag_at = Instant::now() + Duration::from_secs(1);
                self.tell_lag(&mut connection).await?;
            }
            let mut is_moving = false;
            if self.pending.is_empty() && !self.is_dry && self.feed.credit().room() > 0 {
                let room = self.config.terms.batch.min(self.feed.credit().room());
                let entries = read_after(&mut connection, &self.config.stream, self.read_from(), room).await?;
                self.is_dry = entries.is_empty();
                is_moving = !self.is_dry;
                self.pending.extend(entries);
                if self.is_dry {
                    let (connection, stream, after) = (waiting.clone(), self.config.stream.clone(), self.at);
                    let more = Arc::clone(&more);
                    self.watches.spawn(async move {
                        wait_for_entry(connection, &stream, after).await;
                        more.notify_one();
                    });
                }
            }
            self.emit_pending();
            self.look_whether_ready();
            if is_moving {
                tokio::task::yield_now().await;
                continue;
            }
            let wanted = match self.pending.front() {
                Some(entry) => Some(entry.size()),
                // More may be read once the finished entries are stored.
                None if !self.is_dry => Some(0),
                None => None,
            };
            let credit = Arc::clone(self.feed.credit());
            tokio::select! {
                biased;
                () = stop.requested() => {}
                Some(ack) = self.acks.recv() => self.note(&ack),
                () = more.notified(), if self.is_dry => self.is_dry = false,
                _ = self.recoveries.changed(), if self.config.history.is_some() => self.recoveries.mark_changed(),
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() => drop(permit),
                () = tokio::time::sleep_until(lag_at.into()) => {}
            }
        }
        Ok(())
    }

    /// The position for the next read, after entries read but not handed out yet.
    fn read_from(&self) -> StreamId {
        self.pending.back().map_or(self.at, |entry| entry.id)
    }

    /// Rereads the history after a node recovery: the node's memory may be lost.
    fn refill(&mut self) {
        let Some(history) = self.config.history else { return };
        if !self.recoveries.has_changed().unwrap_or(false) {
            return;
        }
        self.recovery = *self.recoveries.borrow_and_update();
        // Events in flight are not sent to the recovered node; they may be older than the history.
        let waiting = self.marks.unfinished().map(|place| place.id).min();
        let waiting = waiting.map(StreamId::before);
        let from = waiting.into_iter().fold(before_now(history), StreamId::min);
        if from < self.at {
            tracing::info!("source {}: a node is back; reading again from {from}", self.name);
            // Up to the current end, including what had no room while the node was down.
            self.catch_up_to = None;
            self.feed.gauges().set_ready(false);
            (self.at, self.count) = (from, None);
            self.pending.clear();
            self.remembered = Remembered::default();
            self.is_dry = false;
        }
    }

    fn emit_pending(&mut self) {
        while let Some(entry) = self.pending.front() {
            let Some(permit) = self.feed.credit().try_reserve_one(entry.size()) else {
                return;
            };
            let Some(entry) = self.pending.pop_front() else { return };
            self.at = entry.id;
            self.count = self.count.map(|count| count + 1);
            let place = Place {
                id: entry.id,
                count: self.count,
            };
            let ticket = self.marks.begin(place, permit);
            let is_repeat =
                self.config.format == Format::Envelope && entry.origin().is_some_and(|id| self.remembered.has(id));
            if is_repeat {
                self.marks.finish(ticket);
                continue;
            }
            let (mut event, unusable) = entry.into_event(&self.config.format);
            if self.config.history.is_some() {
                event.recovery = self.recovery;
            }
            let handle = Handle::new(ticket, AckTo::Queue(self.ack_to.clone()), None);
            self.feed.emit_usable(event, unusable, 1, handle);
        }
    }

    /// Sets ready once everything present at the start is published.
    fn look_whether_ready(&mut self) {
        if self.catch_up_to.is_some_and(|end| self.at >= end) && self.marks.is_empty() {
            self.catch_up_to = Some(StreamId::default());
            if self.config.history.is_some() {
                self.feed.gauges().set_refilled(self.recovery);
            }
            self.feed.gauges().set_ready(true);
        }
    }

    async fn tell_lag(&mut self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        let newest = newest(connection, &self.config.stream).await?;
        self.tell_missed(connection).await?;
        let is_behind = newest > self.at;
        // Redis does not know the number of entries after a cursor; the time is known.
        self.feed.gauges().set_lag(
            u64::from(is_behind),
            is_behind.then_some(Timestamp(self.at.millis.max(1))),
        );
        Ok(())
    }

    async fn tell_missed(&mut self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        let extent = Extent::of(connection, &self.config.stream).await?.unwrap_or_default();
        if let Some(count) = self.count {
            let read = count + self.pending.len() as u64;
            let missed = self.missed.since(&extent, self.read_from(), read);
            self.feed.note_missed(&self.name, missed);
        }
        if self.count.is_none() && self.read_from() == StreamId::default() {
            // Entries removed before the start are not missed.
            self.count = Some(extent.removed);
        }
        if extent.last == self.read_from() {
            self.count = Some(extent.added.saturating_sub(self.pending.len() as u64));
            self.missed = Missed::default();
        }
        Ok(())
    }

    fn note(&mut self, ack: &Ack) {
        // Refill first: a recovered node accepts events that it will get again, and they must still be known here.
        self.refill();
        if ack.outcome.is_settled() {
            self.marks.finish(ack.ticket);
        }
    }

    fn settle(&mut self) {
        while let Ok(ack) = self.acks.try_recv() {
            self.note(&ack);
        }
        if let Some(advance) = self.marks.advance() {
            let stream = self.config.stream.clone();
            self.checkpointer.submit(
                Position {
                    stream,
                    id: advance.position.id,
                    count: advance.position.count,
                },
                advance.permits,
            );
        }
    }
}

fn before_now(history: Duration) -> StreamId {
    let millis = u64::try_from(history.as_millis()).unwrap_or(u64::MAX);
    StreamId {
        millis: Timestamp::now().0.saturating_sub(millis),
        seq: 0,
    }
}

async fn newest(connection: &mut MultiplexedConnection, stream: &str) -> Result<StreamId, String> {
    let mut last = redis::cmd("XREVRANGE");
    last.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
    let entries: Vec<Value> = last.query_async(connection).await.map_err(describe_error)?;
    Ok(entries
        .into_iter()
        .find_map(Entry::of)
        .map_or(StreamId::default(), |entry| entry.id))
}

async fn read_after(
    connection: &mut MultiplexedConnection,
    stream: &str,
    after: StreamId,
    count: usize,
) -> Result<Vec<Entry>, String> {
    let mut read = redis::cmd("XREAD");
    read.arg("COUNT")
        .arg(count)
        .arg("STREAMS")
        .arg(stream)
        .arg(after.to_string());
    read.query_async(connection)
        .await
        .map(Entry::of_read)
        .map_err(describe_error)
}

/// Recent ids, to detect repeated entries.
#[derive(Default)]
struct Remembered {
    order: VecDeque<Box<[u8]>>,
    ids: std::collections::HashSet<Box<[u8]>>,
}

impl Remembered {
    /// Remembers the id and says whether it was there before.
    fn has(&mut self, id: &[u8]) -> bool {
        if self.ids.contains(id) {
            return true;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back(id.into());
        self.ids.insert(id.into());
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_append_is_remembered() {
        let mut remembered = Remembered::default();
        assert!(!remembered.has(b"a") && remembered.has(b"a"));
        for n in 0..REMEMBERED {
            assert!(!remembered.has(n.to_string().as_bytes()));
        }
        assert!(!remembered.has(b"a"), "only the ids of late");
    }
}
