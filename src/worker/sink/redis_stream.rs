//! `redis_stream`: appends finished events to a Redis Stream, the log read by the workers beside the nodes.
//!
//! ```toml
//! log = { type = "redis_stream", url = "redis://127.0.0.1:6379/0", stream = "out", keep = "1h" }
//! ```
//!
//! An entry has the fields `id` (the event's), `channels` (a JSON list), `type` (optional) and `body`; a
//! `redis_streams` source with `envelope = true` turns them back into events. The entry's own id becomes nginx's
//! `Event-Id`, so it is the same on every node. `keep` trims by age, `max_length` by number. All lanes share one
//! connection and keep the order of the source. An append is repeated until Redis confirms it; if a confirmation is
//! lost, the entry is there twice, and readers drop the second by its `id`.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::sync::oneshot;

use super::{Delivery, DirectSink, Kind, LaneSink, RunningSink, Scene, Sink, Verdict};
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::engine::sequencer::{Reservation, Sequencer};
use crate::engine::settlement::{Reply, SinkAck};
use crate::event::Event;
use crate::ops::finding::Examination;
use crate::redis_link::{Server, describe_error};
use crate::retry::{Backoff, Policy};

pub const KIND: Kind = Kind {
    name: "redis_stream",
    about: "appends finished events to a Redis Stream",
    read,
};

/// Maximum appends per round trip.
const BATCH: usize = 256;

#[derive(Clone)]
pub struct RedisStream {
    server: Server,
    stream: String,
    /// Entries older than this may be trimmed.
    keep: Option<Duration>,
    /// Approximate maximum number of entries.
    max_length: Option<usize>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Sink>> {
    let server = Server::read(section);
    let stream = section.required("stream");
    let (keep, max_length) = (section.optional("keep"), section.optional("max_length"));
    if section.has("keep") && section.has("max_length") {
        section.complain_at("max_length", "contradicts keep");
    }
    if !section.has("keep") && !section.has("max_length") {
        section.complain("needs keep or max_length, or the stream grows for ever");
    }
    Some(Arc::new(RedisStream {
        server: server?,
        stream: stream?,
        keep,
        max_length,
    }))
}

impl Sink for RedisStream {
    fn examine(&self) -> Option<Examination<'_>> {
        Some(Box::pin(self.server.examine(true)))
    }

    fn needs_channels(&self) -> bool {
        true
    }

    fn writes(&self) -> Vec<Endpoint> {
        vec![self.server.stream_endpoint(&self.stream)]
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>> {
        let sequencer = Sequencer::new(1);
        let writer = Writer {
            name: scene.name.to_owned(),
            config: self.clone(),
            sequencer: Arc::clone(&sequencer),
            connection: None,
            queue: VecDeque::new(),
        };
        scene.run(format!("stream-{}", scene.name), || writer.run());
        Ok(Arc::new(Running(sequencer)))
    }
}

/// An event to append, and the receiver of its verdict.
#[derive(Clone)]
struct Append {
    event: Arc<Event>,
    reply: Arc<Mutex<Option<Reply>>>,
}

impl Append {
    fn settle(&self, verdict: Verdict) {
        let reply = self.reply.lock().take();
        if let Some(reply) = reply {
            reply.tell(verdict);
        }
    }
}

struct Running(Arc<Sequencer<Append>>);

impl RunningSink for Running {
    fn open(&self) -> Rc<dyn LaneSink> {
        Rc::new(Lane(Arc::clone(&self.0)))
    }

    fn keeps_order(&self) -> bool {
        true
    }

    fn reserve(&self) -> Option<Reservation> {
        Some(self.0.reserve())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Lane(Arc<Sequencer<Append>>);

impl LaneSink for Lane {
    fn deliver(&self, event: Arc<Event>, reservation: Option<Reservation>) -> Delivery {
        let (reply, verdict) = oneshot::channel();
        self.put(event, reservation, Reply::Waiting(reply));
        Box::pin(async move { verdict.await.unwrap_or(Verdict::Released) })
    }

    fn direct(&self) -> Option<&dyn DirectSink> {
        Some(self)
    }
}

impl DirectSink for Lane {
    fn hand_over(&self, event: Arc<Event>, reservation: Option<Reservation>, sink_ack: SinkAck) {
        self.put(event, reservation, Reply::SinkAck(sink_ack));
    }
}

impl Lane {
    fn put(&self, event: Arc<Event>, reservation: Option<Reservation>, reply: Reply) {
        let reservation = reservation.unwrap_or_else(|| self.0.reserve());
        let reply = Arc::new(Mutex::new(Some(reply)));
        self.0.put(&reservation, Append { event, reply });
    }
}

/// The task that appends.
struct Writer {
    name: String,
    config: RedisStream,
    sequencer: Arc<Sequencer<Append>>,
    connection: Option<MultiplexedConnection>,
    queue: VecDeque<Append>,
}

impl Writer {
    async fn run(mut self) {
        let policy = Policy {
            max: Duration::from_secs(2),
            ..Policy::default()
        };
        let mut backoff = Backoff::new(&policy);
        let mut is_told = false;
        while self.gather().await {
            match self.append().await {
                Ok(()) => {
                    if std::mem::take(&mut is_told) {
                        tracing::info!("sink {}: Redis answers again", self.name);
                    }
                    backoff = Backoff::new(&policy);
                }
                Err(error) => {
                    self.connection = None;
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("sink {}: {error}; events wait and are retried", self.name);
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    async fn gather(&mut self) -> bool {
        loop {
            let room = BATCH.saturating_sub(self.queue.len());
            if !self.sequencer.take(0, &mut self.queue, room) {
                return false;
            }
            self.queue.retain(|append| {
                let is_fenced = append.event.is_fenced();
                if is_fenced {
                    append.settle(Verdict::Released);
                }
                !is_fenced
            });
            if !self.queue.is_empty() {
                return true;
            }
            self.sequencer.grown(0).await;
        }
    }

    async fn append(&mut self) -> Result<(), String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.config.server.connect().await?),
        };
        let mut pipe = redis::pipe();
        for append in &self.queue {
            pipe.add_command(addition(&self.config, &append.event));
        }
        let ids: Vec<String> = pipe.query_async(connection).await.map_err(describe_error)?;
        for append in self.queue.drain(..ids.len()) {
            append.settle(Verdict::Accepted);
        }
        Ok(())
    }
}

fn addition(config: &RedisStream, event: &Event) -> redis::Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(&config.stream);
    if let Some(keep) = config.keep {
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        command
            .arg("MINID")
            .arg("~")
            .arg(Timestamp::now().0.saturating_sub(keep));
    }
    if let Some(length) = config.max_length {
        command.arg("MAXLEN").arg("~").arg(length);
    }
    command.arg("*");
    if event.id.is_known() {
        command.arg("id").arg(event.id.to_string());
    }
    command
        .arg("channels")
        .arg(serde_json::json!(event.channels).to_string());
    if let Some(kind) = &event.event_type {
        command.arg("type").arg(kind);
    }
    command.arg("body").arg(&event.payload()[..]);
    command
}
