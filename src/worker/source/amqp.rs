//! `amqp`: messages of a RabbitMQ queue.
//!
//! ```toml
//! posts = { type = "amqp", url = "amqp://user:password@127.0.0.1:5672/%2f", queue = "posts" }
//! log   = { type = "amqp", url = "amqp://127.0.0.1:5672/%2f", queue = "out", kind = "stream" }
//! ```
//!
//! **Quorum queues** (`kind = "quorum"`, default; `"classic"` likewise): messages are acknowledged when they are
//! published, and redelivered otherwise. With `consumers = "one"` (default) the queue is declared with a single active
//! consumer: others stand by, and get the active one's unacknowledged messages, in order. A queue has no ids of its
//! own: `ids = "message_id"` (default) takes the publisher's `message_id` and parks a message without one;
//! `ids = "none"` does without, so that a redelivery may be a duplicate in the browser. Parked messages are published to
//! `<queue>.parked`, with reason, confirmed by the broker, and only then acknowledged. There is no delivery limit: a
//! counting broker would park the messages that happened to be in flight when a worker died.
//!
//! **Stream queues** (`kind = "stream"`): every worker reads all messages, from its own offset stored in `state_dir`.
//! The id is `EPOCH-OFFSET`; raise `epoch` after recreating the stream.
//!
//! `heartbeat = "3s"` decides how soon another worker takes over from one that vanished silently, such as a machine
//! without power or network: the broker gives it up after two to three heartbeats. A worker whose process dies is given
//! up at once.
//!
//! A connection is closed and reopened when the broker closes it, when it is silent for three heartbeats, or when the
//! query for the queue's length fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::open::Open;
use super::trouble::Trouble;
use super::{Context, Guarantee, Kind, Limits, Operation, ParkedEvent, ParkedEvents, Run, Source, reason_json};
use crate::broker_tls::BrokerTls;
use crate::checkpoint::{self, Checkpointer};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::credit::Permit;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::event::{Event, EventId};
use crate::fence::Fence;
use crate::finalizer::{Ack, AckTo, Handle, Outcome, Parked};
use crate::retry::{Backoff, Policy};
use crate::watermark::Watermark;

pub const KIND: Kind = Kind {
    name: "amqp",
    about: "messages of a RabbitMQ queue or stream",
    read,
};

/// The broker detects a silently vanished worker within three heartbeats, and only then redelivers its messages.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Range allowed by AMQP and [`TICK`].
const HEARTBEATS: RangeInclusive<u64> = 2..=u16::MAX as u64;
/// A broker that does not answer for this long is considered down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of queue length queries, which also show that the broker is reachable.
const TICK: Duration = Duration::from_secs(1);
/// Messages that the broker sends ahead. Must cover a message's round trip to nginx and that of its acknowledgement.
pub const DEFAULT_PREFETCH: u16 = 1024;
/// Messages already received that are taken in one go, before other tasks of this thread run.
const AT_ONCE: usize = 64;
/// After a first outcome, others may arrive for this time, so that all are acknowledged together.
const ACK_PAUSE: Duration = Duration::from_millis(1);
const HELD_UP: &str = "this worker was held up for so long that the broker may have given its messages to another";
const REASON_HEADER: &str = "x-parked";
const OFFSET_HEADER: &str = "x-stream-offset";

#[derive(Clone)]
pub struct Amqp {
    url: Url,
    tls: BrokerTls,
    queue: String,
    kind: QueueKind,
    has_ids: bool,
    exclusive: bool,
    declare: bool,
    prefetch: u16,
    /// Epoch of a stream's ids.
    epoch: u64,
    from_end: bool,
    limits: Limits,
}

#[derive(Clone, Debug)]
struct Url(AMQPUri);

impl FromText for Url {
    const WANTED: &'static str = "an AMQP URL such as \"amqp://user:password@127.0.0.1:5672/%2f\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let uri: AMQPUri = text
            .parse()
            .map_err(|error| format!("not an AMQP URL ({error}; example: \"amqp://127.0.0.1:5672/%2f\")"))?;
        match uri.authority.port {
            0 => Err(format!("\"{text}\": there is no port 0")),
            _ => Ok(Self(uri)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueKind {
    Quorum,
    Classic,
    Stream,
}

impl QueueKind {
    fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
            Self::Stream => "stream",
        }
    }
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let mut url = section.required::<Url>("url");
    let heartbeat = section.optional::<Duration>("heartbeat");
    if let Some(Url(uri)) = &mut url {
        set_heartbeat(section, uri, heartbeat);
    }
    let is_tls = url.as_ref().is_some_and(|url| url.0.scheme == AMQPScheme::AMQPS);
    let tls = BrokerTls::read(section, "amqps://", is_tls);
    let queue = section.required("queue");
    let kinds = [QueueKind::Quorum, QueueKind::Classic, QueueKind::Stream].map(|kind| (kind.name(), kind));
    let kind = section.choice("kind", &kinds, QueueKind::Quorum);
    let has_ids = section.choice("ids", &[("message_id", true), ("none", false)], true);
    let exclusive = section.choice("consumers", &[("one", true), ("many", false)], true);
    let prefetch = section.or("prefetch", DEFAULT_PREFETCH);
    if prefetch == 0 {
        section.complain_at("prefetch", "must be at least 1");
    }
    let declare = section.or("declare", true);
    let epoch = section.or("epoch", 0_usize) as u64;
    let from_end = section.choice("start", &[("beginning", false), ("end", true)], false);
    let is_stream = kind == QueueKind::Stream;
    for key in ["epoch", "start"] {
        if !is_stream && section.has(key) {
            section.complain_at(key, "belongs to kind = \"stream\"");
        }
    }
    for key in ["ids", "consumers"] {
        if is_stream && section.has(key) {
            section.complain_at(key, "a stream has its own ids, and every consumer gets everything");
        }
    }
    Some(Box::new(Amqp {
        url: url?,
        tls,
        queue: queue?,
        kind,
        has_ids,
        exclusive,
        declare,
        prefetch,
        epoch,
        from_end,
        limits: Limits::read(section),
    }))
}

/// A heartbeat in the URL, too, is a contradiction.
fn set_heartbeat(section: &Section<'_>, uri: &mut AMQPUri, heartbeat: Option<Duration>) {
    let (place, seconds) = match (heartbeat, uri.query.heartbeat) {
        (Some(_), Some(_)) => return section.complain_at("heartbeat", "stands in the URL, too"),
        (Some(time), None) if time.subsec_millis() > 0 => {
            return section.complain_at("heartbeat", "must be whole seconds");
        }
        (None, Some(seconds)) => ("url", u64::from(seconds)),
        (time, None) => ("heartbeat", time.unwrap_or(HEARTBEAT).as_secs()),
    };
    match u16::try_from(seconds) {
        Ok(seconds) if HEARTBEATS.contains(&seconds.into()) => uri.query.heartbeat = Some(seconds),
        _ => section.complain_at(
            place,
            format!(
                "a heartbeat must be from {}s to {}s",
                HEARTBEATS.start(),
                HEARTBEATS.end()
            ),
        ),
    }
}

impl Source for Amqp {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn gives_ids(&self) -> bool {
        self.has_ids
    }

    fn keeps_order(&self) -> bool {
        self.exclusive
    }

    fn may_block(&self) -> bool {
        false
    }

    fn starts_ready(&self) -> bool {
        false
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move { Work::start(*self, context)?.run().await })
    }

    fn open_since(&self, _until: Timestamp) -> Option<Operation<'_, super::Open>> {
        // RabbitMQ does not report a message's age; all messages in the queue are open.
        (self.kind != QueueKind::Stream).then(|| -> Operation<'_, super::Open> {
            Box::pin(async move {
                let (_connection, channel) = self.connect().await?;
                let declared =
                    answer(channel.queue_declare(self.queue.as_str().into(), passive(), FieldTable::default())).await?;
                let events = u64::from(declared.message_count());
                Ok(super::Open {
                    events,
                    oldest: (events > 0).then_some(Timestamp(0)),
                })
            })
        })
    }

    fn parked(&self) -> Option<Box<dyn ParkedEvents>> {
        (self.kind != QueueKind::Stream).then(|| -> Box<dyn ParkedEvents> { Box::new(self.clone()) })
    }
}

fn passive() -> QueueDeclareOptions {
    QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    }
}

/// Waits for the broker, with a timeout.
async fn answer<T>(question: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, question).await {
        Ok(answer) => answer.map_err(|error| format!("RabbitMQ: {error}")),
        Err(_) => Err(format!("RabbitMQ does not answer within {ANSWER_TIMEOUT:?}")),
    }
}

impl Amqp {
    async fn connect(&self) -> Result<(Connection, Channel), String> {
        let BrokerTls { authorities, identity } = self.tls.clone();
        let cert_chain = authorities.map(|pem| String::from_utf8_lossy(&pem.text).into_owned());
        let identity = identity.map(|(certificate, key)| OwnedIdentity::PKCS8 {
            pem: certificate.text,
            key: key.text,
        });
        let tls = OwnedTLSConfig { identity, cert_chain };
        let runtime = lapin::runtime::default_runtime().map_err(|error| format!("RabbitMQ: {error}"))?;
        let properties = ConnectionProperties::default();
        let connect = Connection::connect_uri_with_config(self.url.0.clone(), properties, tls, runtime);
        let connection = answer(connect).await?;
        let channel = answer(connection.create_channel()).await?;
        Ok((connection, channel))
    }

    /// How long a worker may assume that its messages are its own after it last ran: shorter than the broker's
    /// time-out, which is two heartbeats after the last one, itself sent up to half a heartbeat earlier.
    fn fence_time(&self) -> Duration {
        let heartbeat = self
            .url
            .0
            .query
            .heartbeat
            .map_or(HEARTBEAT, |seconds| Duration::from_secs(seconds.into()));
        heartbeat * 7 / 5
    }

    fn parked_queue(&self) -> String {
        format!("{}.parked", self.queue)
    }

    async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        if self.declare {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString(self.kind.name().into()));
            if self.exclusive && self.kind != QueueKind::Stream {
                arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
            }
            answer(channel.queue_declare(self.queue.as_str().into(), durable, arguments)).await?;
        }
        if self.kind != QueueKind::Stream {
            answer(channel.queue_declare(self.parked_queue().as_str().into(), durable, FieldTable::default())).await?;
        }
        Ok(())
    }

    fn event(&self, delivery: &Delivery, raw: Bytes) -> (Event, Option<String>) {
        let seconds = delivery.properties.timestamp().as_ref().copied();
        let received = seconds.map_or_else(Timestamp::now, |seconds| Timestamp(seconds.saturating_mul(1000)));
        if self.kind == QueueKind::Stream {
            return match offset_of(delivery) {
                Some(offset) => (Event::new(EventId::new(self.epoch, offset), received, raw), None),
                None => (
                    Event::new(EventId::Unknown, received, raw),
                    Some("the message has no stream offset".to_owned()),
                ),
            };
        }
        match delivery.properties.message_id() {
            Some(id) if self.has_ids => (Event::new(EventId::Brought(id.as_str().into()), received, raw), None),
            None if self.has_ids => (
                Event::new(EventId::Unknown, received, raw),
                Some("the message has no message_id".to_owned()),
            ),
            _ => (Event::new(EventId::Unknown, received, raw), None),
        }
    }
}

fn offset_of(delivery: &Delivery) -> Option<u64> {
    match delivery.properties.headers().as_ref()?.inner().get(OFFSET_HEADER)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

/// The position up to which a stream is settled.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    queue: String,
    epoch: u64,
    offset: u64,
}

struct Work {
    config: Amqp,
    name: String,
    feed: Feed,
    stop: Stop,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    /// Messages with the lanes; the session tells whether a tag is still valid.
    open: Open<Claim>,
    session: u64,
    done: Done,
    fence: Arc<Fence>,
    /// Does the broker deliver to this worker? It does not tell a consumer that another one is active, so this is
    /// unknown until the first message.
    is_active: bool,
    stream: Option<StreamPosition>,
}

struct Claim {
    session: u64,
    /// The delivery, without its data.
    delivery: Delivery,
    raw: Bytes,
    permit: Option<Permit>,
    /// Ticket of the watermark, for streams.
    mark: Option<u64>,
}

/// Finished messages to be acknowledged.
#[derive(Default)]
struct Done {
    /// By tag.
    ready: BTreeMap<u64, Option<Permit>>,
    /// Acknowledged individually, with an open message before them.
    alone: BTreeSet<u64>,
    /// All up to this tag are acknowledged.
    upto: u64,
}

impl Done {
    /// Acknowledges all messages before the first open one together, the rest individually.
    async fn acknowledge(&mut self, channel: &Channel) -> Result<(), String> {
        if let Some((last, permits)) = self.take_prefix() {
            answer(channel.basic_ack(last, BasicAckOptions { multiple: true })).await?;
            drop(permits);
        }
        while let Some((tag, permit)) = self.ready.pop_first() {
            answer(channel.basic_ack(tag, BasicAckOptions::default())).await?;
            self.alone.insert(tag);
            drop(permit);
        }
        Ok(())
    }

    /// The last tag that can be acknowledged together with all before it, and their permits.
    fn take_prefix(&mut self) -> Option<(u64, Vec<Option<Permit>>)> {
        let (mut last, mut permits) = (None, Vec::new());
        loop {
            let next = self.upto + 1;
            if let Some(permit) = self.ready.remove(&next) {
                last = Some(next);
                permits.push(permit);
            } else if !self.alone.remove(&next) {
                return Some((last?, permits));
            }
            self.upto = next;
        }
    }
}

struct StreamPosition {
    marks: Watermark<u64>,
    /// Position of the last message handed out.
    last: Option<u64>,
    checkpointer: Checkpointer<Position>,
}

impl Work {
    fn start(config: Amqp, context: Context) -> io::Result<Self> {
        let Context {
            name,
            state_dir,
            feed,
            stop,
        } = context;
        let stream = match config.kind {
            QueueKind::Stream => {
                let file = state_dir.join(format!("{name}.offset.json"));
                let is_ours = |position: &Position| position.queue == config.queue && position.epoch == config.epoch;
                let position = checkpoint::load::<Position>(&file)?.filter(is_ours);
                Some(StreamPosition {
                    marks: Watermark::new(),
                    last: position.map(|position| position.offset),
                    checkpointer: Checkpointer::spawn(&name, file, |_| ())?,
                })
            }
            _ => None,
        };
        let (ack_to, acks) = mpsc::unbounded_channel();
        Ok(Self {
            config,
            name,
            feed,
            stop,
            acks,
            ack_to,
            open: Open::default(),
            session: 0,
            done: Done::default(),
            fence: Arc::default(),
            is_active: false,
            stream,
        })
    }

    /// Runs sessions one after the other.
    async fn run(mut self) -> io::Result<()> {
        let policy = Policy {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(2),
            ..Policy::default()
        };
        let mut backoff = Backoff::new(&policy);
        let mut trouble = Trouble::default();
        let mut stop = self.stop.clone();
        loop {
            let began = Instant::now();
            let Err(error) = self.session(&mut trouble).await else {
                return Ok(());
            };
            // The broker redelivers the messages in flight.
            self.fence.drop_now();
            self.feed.gauges().set_ready(false);
            trouble.tell(&self.name, error, "connecting again");
            if began.elapsed() > policy.max {
                backoff = Backoff::new(&policy);
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => {}
                () = stop.requested() => {}
            }
            self.forget(&mut stop).await;
            if stop.is_requested() {
                return Ok(());
            }
        }
    }

    /// Waits until the lanes have dropped all messages of the last session.
    async fn forget(&mut self, stop: &mut Stop) {
        while self.config.kind != QueueKind::Stream && !self.open.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => drop(self.open.remove(ack.ticket)),
                () = stop.abandoned() => return,
            }
        }
    }

    /// Runs from connect to a stop, or to an error.
    async fn session(&mut self, trouble: &mut Trouble) -> Result<(), String> {
        let (connection, channel) = self.config.connect().await?;
        self.config.declare(&channel).await?;
        let parking = answer(connection.create_channel()).await?;
        answer(parking.confirm_select(ConfirmSelectOptions::default())).await?;
        answer(channel.basic_qos(self.config.prefetch, BasicQosOptions::default())).await?;
        let mut consumer = self.consume(&channel).await?;
        self.session += 1;
        self.done = Done::default();
        self.fence = Arc::default();
        self.hold_fence();
        self.is_active = !self.config.exclusive || self.config.kind == QueueKind::Stream;
        self.feed.gauges().set_active(self.is_active);
        self.feed.gauges().set_ready(true);
        let (name, queue) = (&self.name, &self.config.queue);
        tracing::info!("source {name}: consuming {} queue {queue}", self.config.kind.name());
        if !self.is_active {
            tracing::info!("source {name}: standing by until the broker gives a message to this worker");
        }
        trouble.is_over();
        let mut stop = self.stop.clone();
        let mut tick = tokio::time::interval(TICK);
        let mut waiting: Option<Delivery> = None;
        let mut ack_at = None;
        loop {
            if stop.is_requested() {
                return self.leave(connection, &channel, &parking).await;
            }
            let credit = Arc::clone(self.feed.credit());
            let wanted = waiting.as_ref().map(|delivery| delivery.data.len());
            tokio::select! {
                biased;
                () = stop.requested() => {}
                Some(ack) = self.acks.recv(), if ack_at.is_none() => {
                    self.settle(ack, &parking).await?;
                    ack_at = Some(tokio::time::Instant::now() + ACK_PAUSE);
                }
                () = tokio::time::sleep_until(ack_at.unwrap_or_else(tokio::time::Instant::now)), if ack_at.is_some() => {
                    ack_at = None;
                    self.settle_all(&channel, &parking).await?;
                }
                _ = tick.tick() => {
                    if !self.fence.is_held() {
                        return Err(HELD_UP.to_owned());
                    }
                    self.hold_fence();
                    self.tell_lag(&channel).await?;
                }
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() => {
                    if let Some(delivery) = waiting.take() {
                        self.emit(delivery, permit);
                    }
                }
                delivery = consumer.next(), if wanted.is_none() => {
                    waiting = self.take(delivery, &mut consumer)?;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn consume(&self, channel: &Channel) -> Result<Consumer, String> {
        let mut arguments = FieldTable::default();
        if let Some(stream) = &self.stream {
            let offset = match stream.last {
                Some(last) => AMQPValue::LongLongInt(i64::try_from(last + 1).unwrap_or(i64::MAX)),
                None if self.config.from_end => AMQPValue::LongString("next".into()),
                None => AMQPValue::LongString("first".into()),
            };
            arguments.insert(OFFSET_HEADER.into(), offset);
        }
        let tag = crate::redis_link::process_name();
        let options = BasicConsumeOptions::default();
        answer(channel.basic_consume(
            self.config.queue.as_str().into(),
            tag.as_str().into(),
            options,
            arguments,
        ))
        .await
    }

    /// Takes this message and those already received. Returns the one without credit.
    fn take(
        &mut self,
        first: Option<lapin::Result<Delivery>>,
        consumer: &mut Consumer,
    ) -> Result<Option<Delivery>, String> {
        let mut next = first;
        for left in (0..AT_ONCE).rev() {
            let delivery = match next {
                Some(delivery) => delivery.map_err(|error| format!("RabbitMQ: {error}"))?,
                None => return Err("the broker has cancelled the consumer".to_owned()),
            };
            match self.feed.credit().try_reserve_one(delivery.data.len()) {
                Some(permit) => self.emit(delivery, permit),
                None => return Ok(Some(delivery)),
            }
            if left == 0 {
                break;
            }
            // A message polled here must be taken.
            match consumer.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        Ok(None)
    }

    fn emit(&mut self, mut delivery: Delivery, permit: Permit) {
        let raw = Bytes::from(std::mem::take(&mut delivery.data));
        let (mut event, unusable) = self.config.event(&delivery, raw.clone());
        if !std::mem::replace(&mut self.is_active, true) {
            self.feed.gauges().set_active(true);
            tracing::info!("source {}: active from now on", self.name);
        }
        if delivery.redelivered {
            self.feed.gauges().count_redelivered(1);
        }
        let (mut mark, mut held) = (None, Some(permit));
        let ack_to = self.ack_to.clone();
        let to = match &mut self.stream {
            None => {
                event.fence = Some(Arc::clone(&self.fence));
                AckTo::Broker(ack_to)
            }
            Some(stream) => {
                if let (Some(offset), Some(permit)) = (offset_of(&delivery), held.take()) {
                    mark = Some(stream.marks.begin(offset, permit));
                    stream.last = Some(offset);
                }
                AckTo::Queue(ack_to)
            }
        };
        let attempts = 1 + u32::from(delivery.redelivered);
        let claim = Claim {
            session: self.session,
            delivery,
            raw,
            permit: held,
            mark,
        };
        let ticket = self.open.insert(claim);
        let handle = Handle::new(ticket, to, None);
        self.feed.emit_usable(event, unusable, attempts, handle);
    }

    /// Settles everything finished so far.
    async fn settle_all(&mut self, channel: &Channel, parking: &Channel) -> Result<(), String> {
        while let Ok(ack) = self.acks.try_recv() {
            self.settle(ack, parking).await?;
        }
        self.done.acknowledge(channel).await
    }

    /// Records an outcome; a message to be parked is stored first.
    async fn settle(&mut self, ack: Ack, parking: &Channel) -> Result<(), String> {
        let Some(claim) = self.open.remove(ack.ticket) else {
            return Ok(());
        };
        if !ack.outcome.is_settled() {
            // Later messages must not overtake it: the broker redelivers everything, in order.
            let is_hole = claim.session == self.session && claim.mark.is_none() && !self.stop.is_requested();
            return if is_hole { Err(HELD_UP.to_owned()) } else { Ok(()) };
        }
        if let (Some(stream), Some(mark)) = (&mut self.stream, claim.mark) {
            stream.marks.finish(mark);
            if let Some(advance) = stream.marks.advance() {
                let position = Position {
                    queue: self.config.queue.clone(),
                    epoch: self.config.epoch,
                    offset: advance.position,
                };
                stream.checkpointer.submit(position, advance.permits);
            }
        }
        if claim.session != self.session {
            // The broker has requeued it long ago.
            self.feed.gauges().count_lost_claims(1);
            return Ok(());
        }
        if let (Outcome::Parked, Some(parked), None) = (ack.outcome, &ack.parked, claim.mark) {
            self.store_parked(&claim, parked, parking).await?;
        }
        self.done.ready.insert(claim.delivery.delivery_tag, claim.permit);
        Ok(())
    }

    /// Publishes the copy, and returns when the broker has confirmed it.
    async fn store_parked(&self, claim: &Claim, parked: &Parked, parking: &Channel) -> Result<(), String> {
        let properties = &claim.delivery.properties;
        let mut headers = properties.headers().clone().unwrap_or_default();
        headers.insert(
            REASON_HEADER.into(),
            AMQPValue::LongString(LongString::from(reason_json(parked))),
        );
        let properties = properties.clone().with_headers(headers).with_delivery_mode(2);
        publish(parking, &self.config.parked_queue(), &claim.raw, properties).await
    }

    fn hold_fence(&self) {
        self.fence.hold(Instant::now(), self.config.fence_time());
    }

    async fn tell_lag(&self, channel: &Channel) -> Result<(), String> {
        let declared =
            answer(channel.queue_declare(self.config.queue.as_str().into(), passive(), FieldTable::default())).await?;
        self.feed.gauges().set_lag(u64::from(declared.message_count()), None);
        Ok(())
    }

    /// Finishes the messages in flight; the broker requeues the rest when the connection closes.
    async fn leave(&mut self, connection: Connection, channel: &Channel, parking: &Channel) -> Result<(), String> {
        let mut stop = self.stop.clone();
        // Finished messages may still wait to be acknowledged together.
        self.settle_all(channel, parking).await?;
        while !self.open.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => {
                    self.settle(ack, parking).await?;
                    self.settle_all(channel, parking).await?;
                }
                () = tokio::time::sleep(TICK) => self.hold_fence(),
                () = stop.abandoned() => break,
            }
        }
        self.fence.drop_now();
        // A query first: an immediate close may precede the broker's processing of the last acknowledgements.
        self.tell_lag(channel).await?;
        answer(connection.close(200, "bye".into())).await
    }
}

async fn publish(channel: &Channel, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), String> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let confirm = answer(channel.basic_publish("".into(), queue.into(), options, body, properties)).await?;
    match answer(confirm).await? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => Err(format!("there is no queue {queue}")),
        _ => Err(format!("the broker did not take a message for {queue}")),
    }
}

/// Takes dead letters off their queue one by one; those not selected go back to its end.
impl ParkedEvents for Amqp {
    fn list(&self) -> Operation<'_, Vec<ParkedEvent>> {
        Box::pin(async move {
            let (connection, channel) = self.connect().await?;
            self.declare(&channel).await?;
            let mut events = Vec::new();
            while let Some(message) = get(&channel, &self.parked_queue()).await? {
                events.push(parked_event(&message));
            }
            // Nothing was acknowledged: the broker requeues all of them in place.
            answer(connection.close(200, "bye".into())).await?;
            Ok(events)
        })
    }

    fn retry(&self, ids: Vec<String>) -> Operation<'_, u64> {
        Box::pin(self.work_through(ids, true))
    }

    fn forget(&self, ids: Vec<String>) -> Operation<'_, u64> {
        Box::pin(self.work_through(ids, false))
    }
}

impl Amqp {
    async fn work_through(&self, ids: Vec<String>, again: bool) -> Result<u64, String> {
        let (connection, channel) = self.connect().await?;
        self.declare(&channel).await?;
        answer(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let parked = self.parked_queue();
        // No more than the present number: retried messages may be parked again before the end.
        let there = answer(channel.queue_declare(parked.as_str().into(), passive(), FieldTable::default())).await?;
        let mut count = 0;
        for _ in 0..there.message_count() {
            let Some(message) = get(&channel, &parked).await? else {
                break;
            };
            if !ids.contains(&parked_event(&message).id) {
                continue;
            }
            if again {
                let mut headers = message.properties.headers().clone().unwrap_or_default();
                let headers: FieldTable = std::mem::take(&mut headers)
                    .inner()
                    .iter()
                    .filter(|(name, _)| name.as_str() != REASON_HEADER)
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect::<std::collections::BTreeMap<_, _>>()
                    .into();
                publish(
                    &channel,
                    &self.queue,
                    &message.data,
                    message.properties.clone().with_headers(headers),
                )
                .await?;
            }
            answer(channel.basic_ack(message.delivery_tag, BasicAckOptions::default())).await?;
            count += 1;
        }
        answer(connection.close(200, "bye".into())).await?;
        Ok(count)
    }
}

async fn get(channel: &Channel, queue: &str) -> Result<Option<Delivery>, String> {
    let message = answer(channel.basic_get(queue.into(), lapin::options::BasicGetOptions::default())).await?;
    Ok(message.map(|message| message.delivery))
}

/// A message without an id is identified by its content.
fn parked_event(message: &Delivery) -> ParkedEvent {
    let reason = message
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| headers.inner().get(REASON_HEADER).cloned());
    let reason = match reason {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    };
    let hash = || format!("sha-{}", &blake3::hash(&message.data).to_hex()[..16]);
    let id = message
        .properties
        .message_id()
        .as_ref()
        .map_or_else(hash, ToString::to_string);
    ParkedEvent {
        id,
        reason,
        raw: message.data.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_nothing_open_before_it_is_acknowledged_together() {
        let mut done = Done::default();
        let add = |done: &mut Done, tags: &[u64]| tags.iter().for_each(|&tag| drop(done.ready.insert(tag, None)));
        let prefix = |done: &mut Done| done.take_prefix().map(|(last, permits)| (last, permits.len()));
        add(&mut done, &[2, 3]);
        assert_eq!(prefix(&mut done), None, "the first is open");
        // Acknowledged individually.
        done.ready.clear();
        done.alone.extend([2, 3]);
        add(&mut done, &[1]);
        assert_eq!(prefix(&mut done), Some((1, 1)));
        assert_eq!((done.upto, done.alone.len()), (3, 0));
        add(&mut done, &[4, 5, 7]);
        assert_eq!(prefix(&mut done), Some((5, 2)));
        assert_eq!(done.ready.len(), 1);
    }
}
