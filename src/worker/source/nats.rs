//! `nats`: messages of a NATS JetStream stream, by a durable pull consumer.
//!
//! ```toml
//! posts = { type = "nats", url = "nats://127.0.0.1:4222", stream = "POSTS", consumer = "push" }
//! ```
//!
//! The stream must exist; the consumer is created as needed. Messages are acknowledged when they are published, and
//! redelivered otherwise, after `lease`. The id is `EPOCH-SEQUENCE`: the epoch is the millisecond in which the stream
//! was created.
//!
//! `consumers = "one"` (default) keeps the order: one worker holds a lease in the key-value bucket `glue_leases`,
//! others stand by. A worker that takes over, or reconnects, recreates the consumer after the last message up to which
//! all were acknowledged: messages claimed by the predecessor come first, in order, and those it finished out of turn
//! come again and are dropped by their ids. With `"many"` all workers share one consumer, and order is lost.
//!
//! Parked messages are copied to the stream `<stream>_parked`, with reason, and only then acknowledged. There is no
//! `max_deliver`: it would park messages that happened to be in flight when a worker died. Written for servers from 2.9
//! on.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::kv::{self, CreateErrorKind};
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, AckKind, Message};
use futures_util::StreamExt;
use tokio::sync::Notify;

use super::queue_driver::{self, Claimed, Grant, Queue, Terms};
use super::watch::Watches;
use super::{Context, Guarantee, Kind, Limits, Open, Operation, ParkedEvent, ParkedEvents, Run, Source, reason_json};
use crate::broker_tls::BrokerTls;
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::engine::feed::Feed;
use crate::event::{Event, EventId};
use crate::finalizer::Parked;
use crate::redis_link::process_name;

pub const KIND: Kind = Kind {
    name: "nats",
    about: "messages of a NATS JetStream stream",
    read,
};

/// A server that does not answer for this long is considered down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A request for the next message is renewed after this time.
const WAIT: Duration = Duration::from_secs(5);
const LEASES: &str = "glue_leases";
const REASON_HEADER: &str = "Parked";

#[derive(Clone)]
pub struct Nats {
    url: Url,
    tls: BrokerTls,
    stream: String,
    consumer: String,
    /// Only these subjects of the stream.
    subject: Option<String>,
    terms: Terms,
    limits: Limits,
}

#[derive(Clone, Debug)]
struct Url(async_nats::ServerAddr);

impl FromText for Url {
    const WANTED: &'static str = "a NATS URL such as \"nats://127.0.0.1:4222\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = |error| format!("not a NATS URL ({error}; example: \"nats://127.0.0.1:4222\")");
        let server: async_nats::ServerAddr = text.parse().map_err(bad)?;
        match server.port() {
            0 => Err(format!("\"{text}\": there is no port 0")),
            _ => Ok(Self(server)),
        }
    }
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let url = section.required::<Url>("url");
    let is_tls = url.as_ref().is_some_and(|url| url.0.tls_required());
    let tls = BrokerTls::read(section, "tls://", is_tls);
    let stream = section.required("stream");
    let consumer = section.or("consumer", "push".to_owned());
    let subject = section.optional("subject");
    let terms = Terms::read(section, 256, usize::MAX, Duration::from_secs(30));
    Some(Box::new(Nats {
        url: url?,
        tls,
        stream: stream?,
        consumer,
        subject,
        terms,
        limits: Limits::read(section),
    }))
}

impl Source for Nats {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn keeps_order(&self) -> bool {
        self.terms.exclusive
    }

    fn may_block(&self) -> bool {
        false
    }

    fn starts_ready(&self) -> bool {
        false
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let terms = self.terms;
            queue_driver::run(Pull::new(*self, &context.name), terms, context).await
        })
    }

    fn open_since(&self, _until: Timestamp) -> Option<Operation<'_, Open>> {
        // JetStream reports counts, no ages; pending messages are open.
        Some(Box::pin(async move {
            let stream = self.stream().await?;
            let Ok(info) = stream.consumer_info(&self.consumer).await else {
                return Ok(Open {
                    events: 0,
                    oldest: None,
                });
            };
            let events = info.num_pending + info.num_ack_pending as u64;
            Ok(Open {
                events,
                oldest: (events > 0).then_some(Timestamp(0)),
            })
        }))
    }

    fn parked(&self) -> Option<Box<dyn ParkedEvents>> {
        Some(Box::new(self.clone()))
    }
}

/// Waits for the server, with a timeout.
async fn answer<T, E: std::fmt::Display>(question: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, question).await {
        Ok(answer) => answer.map_err(|error| format!("NATS: {error}")),
        Err(_) => Err(format!("NATS does not answer within {ANSWER_TIMEOUT:?}")),
    }
}

impl Nats {
    async fn connect(&self) -> Result<jetstream::Context, String> {
        let mut options = async_nats::ConnectOptions::new()
            .connection_timeout(ANSWER_TIMEOUT)
            .event_callback(|_| async {});
        if let Some(authorities) = &self.tls.authorities {
            options = options.add_root_certificates(authorities.path.clone());
        }
        if let Some((certificate, key)) = &self.tls.identity {
            options = options.add_client_certificate(certificate.path.clone(), key.path.clone());
        }
        let client = answer(options.connect(self.url.0.clone())).await?;
        Ok(jetstream::new(client))
    }

    async fn stream(&self) -> Result<Stream, String> {
        let context = self.connect().await?;
        answer(context.get_stream(&self.stream)).await
    }

    fn parked_stream(&self) -> String {
        format!("{}_parked", self.stream)
    }

    async fn parked_messages(&self) -> Result<(Stream, Vec<(u64, Message)>), String> {
        let context = self.connect().await?;
        let stream = answer(context.get_or_create_stream(parked_config(&self.parked_stream()))).await?;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = answer(stream.create_consumer(config)).await?;
        let mut messages = Vec::new();
        let waiting = usize::try_from(consumer.cached_info().num_pending).unwrap_or(usize::MAX);
        let mut batch = answer(consumer.fetch().max_messages(waiting.max(1)).messages()).await?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| format!("NATS: {error}"))?;
            let sequence = message.info().map_err(|error| error.to_string())?.stream_sequence;
            messages.push((sequence, message));
        }
        Ok((stream, messages))
    }

    async fn work_through(&self, ids: Vec<String>, again: bool) -> Result<u64, String> {
        let (stream, messages) = self.parked_messages().await?;
        let context = self.connect().await?;
        let mut count = 0;
        for (sequence, message) in messages
            .into_iter()
            .filter(|(sequence, _)| ids.contains(&sequence.to_string()))
        {
            if again {
                let mut headers = message.headers.clone().unwrap_or_default();
                let subject = headers.get("Subject").map_or(String::new(), ToString::to_string);
                headers = headers
                    .iter()
                    .filter(|(name, _)| !["Subject", REASON_HEADER].contains(&name.as_ref()))
                    .fold(async_nats::HeaderMap::new(), |mut kept, (name, values)| {
                        values.iter().for_each(|value| kept.append(name.clone(), value.clone()));
                        kept
                    });
                let published = answer(context.publish_with_headers(subject, headers, message.payload.clone())).await?;
                answer(published.into_future()).await?;
            }
            answer(stream.delete_message(sequence)).await?;
            count += 1;
        }
        Ok(count)
    }
}

fn parked_config(name: &str) -> jetstream::stream::Config {
    jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.message")],
        ..jetstream::stream::Config::default()
    }
}

/// The stream under a key-value bucket. Created directly, because the client's own method needs account figures that
/// servers before 2.10 do not report.
fn leases_config() -> jetstream::stream::Config {
    jetstream::stream::Config {
        name: format!("KV_{LEASES}"),
        subjects: vec![format!("$KV.{LEASES}.>")],
        max_messages_per_subject: 1,
        discard: jetstream::stream::DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..jetstream::stream::Config::default()
    }
}

/// A durable consumer with its connection.
struct Pull {
    config: Nats,
    name: String,
    token: String,
    link: Option<Link>,
    /// The revision of the lease held.
    lease: Option<u64>,
    /// How often the queue's present head was taken over; counts for the messages after it.
    deaths: u32,
    /// The last message delivered to a predecessor.
    inherited: u64,
    /// Claimed messages by sequence.
    open: HashMap<u64, Message>,
    /// Messages received while waiting for more.
    found: Rc<RefCell<VecDeque<Message>>>,
    watches: Watches,
}

struct Link {
    context: jetstream::Context,
    stream: Stream,
    leases: kv::Store,
    consumer: Option<PullConsumer>,
    epoch: u64,
}

impl Pull {
    fn new(config: Nats, name: &str) -> Self {
        Self {
            config,
            name: name.to_owned(),
            token: process_name(),
            link: None,
            lease: None,
            deaths: 0,
            inherited: 0,
            open: HashMap::new(),
            found: Rc::default(),
            watches: Watches::default(),
        }
    }

    fn link(&mut self) -> Result<&mut Link, String> {
        self.link.as_mut().ok_or_else(|| "no connection".to_owned())
    }

    fn key(&self, kind: &str) -> String {
        format!("{}.{}.{kind}", self.config.stream, self.config.consumer)
    }

    fn consumer_config(&self, begin: DeliverPolicy) -> pull::Config {
        pull::Config {
            durable_name: Some(self.config.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.config.terms.lease,
            deliver_policy: begin,
            filter_subject: self.config.subject.clone().unwrap_or_default(),
            max_ack_pending: i64::try_from(self.config.limits.events.max(self.config.terms.batch) * 2)
                .unwrap_or(i64::MAX),
            ..pull::Config::default()
        }
    }

    /// Recreates the consumer after the last message finished without a gap, which voids the old holder's claims.
    async fn take_over(&mut self) -> Result<(), String> {
        let consumer = self.config.consumer.clone();
        let floor_key = self.key("floor");
        let all = self.consumer_config(DeliverPolicy::All);
        let link = self.link()?;
        let mut deaths = 1;
        let (made, inherited) = match answer(link.stream.consumer_info(&consumer)).await {
            Err(_) => (answer(link.stream.create_consumer(all)).await?, 0),
            Ok(info) if info.num_ack_pending == 0 => (answer(link.stream.get_consumer(&consumer)).await?, 0),
            Ok(info) => {
                let floor = info.ack_floor.stream_sequence;
                let noted = answer(link.leases.get(floor_key.as_str())).await?;
                let noted = noted.and_then(|text| String::from_utf8(text.to_vec()).ok());
                let noted = noted.as_deref().and_then(|text| text.split_once(' '));
                if let Some((_, count)) = noted.filter(|(at, _)| *at == floor.to_string()) {
                    deaths = count.parse::<u32>().unwrap_or_default() + 1;
                }
                answer(link.leases.put(floor_key.as_str(), format!("{floor} {deaths}").into())).await?;
                answer(link.stream.delete_consumer(&consumer)).await?;
                let begin = DeliverPolicy::ByStartSequence {
                    start_sequence: floor + 1,
                };
                let config = pull::Config {
                    deliver_policy: begin,
                    ..all
                };
                (
                    answer(link.stream.create_consumer(config)).await?,
                    info.delivered.stream_sequence,
                )
            }
        };
        link.consumer = Some(made);
        self.deaths = deaths;
        self.inherited = inherited;
        self.open.clear();
        self.found.borrow_mut().clear();
        Ok(())
    }

    fn claimed(&mut self, message: Message) -> Option<Claimed<u64>> {
        let (sequence, published, delivered) = {
            let info = message.info().ok()?;
            (info.stream_sequence, info.published, info.delivered)
        };
        let millis = u64::try_from(published.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        let id = EventId::new(self.link.as_ref()?.epoch, sequence);
        let event = Event::new(id, Timestamp(millis), message.payload.clone());
        let inherited = if sequence <= self.inherited { self.deaths } else { 0 };
        self.open.insert(sequence, message);
        Some(Claimed {
            claim: sequence,
            event,
            deliveries: u32::try_from(delivered).unwrap_or(1) + inherited,
            unusable: None,
        })
    }

    async fn fetch(&mut self, count: usize) -> Result<Vec<Claimed<u64>>, String> {
        let mut messages: Vec<Message> = self.found.borrow_mut().drain(..).collect();
        let room = count.saturating_sub(messages.len());
        if room > 0 {
            let consumer = self.link()?.consumer.clone().ok_or_else(|| "no consumer".to_owned())?;
            let mut batch = answer(consumer.fetch().max_messages(room).messages()).await?;
            while let Some(message) = answer(async { Ok::<_, String>(batch.next().await) }).await? {
                messages.push(message.map_err(|error| format!("NATS: {error}"))?);
            }
        }
        Ok(messages
            .into_iter()
            .filter_map(|message| self.claimed(message))
            .collect())
    }

    /// An acknowledgement merely written to the connection is lost if this process dies, and its message comes again.
    /// The server takes acknowledgements in order, so its confirmation of the last one covers all.
    async fn acknowledge(&mut self, sequences: &[u64]) -> Result<(), String> {
        let messages: Vec<Message> = sequences.iter().filter_map(|one| self.open.remove(one)).collect();
        let Some((last, others)) = messages.split_last() else {
            return Ok(());
        };
        for message in others {
            answer(message.ack()).await?;
        }
        answer(last.double_ack()).await
    }

    async fn holds_lease(&mut self) -> Result<bool, String> {
        if !self.config.terms.exclusive {
            return Ok(true);
        }
        let key = self.key("lease");
        let token = self.token.clone();
        let holder = answer(self.link()?.leases.get(key)).await?;
        Ok(holder.is_some_and(|holder| holder == token.as_bytes()))
    }
}

impl Queue for Pull {
    type Claim = u64;

    fn name(&self) -> &str {
        &self.name
    }

    async fn connect(&mut self) -> Result<(), String> {
        let context = self.config.connect().await?;
        let stream = answer(context.get_stream(&self.config.stream)).await?;
        let created = stream.cached_info().created.unix_timestamp_nanos() / 1_000_000;
        answer(context.get_or_create_stream(parked_config(&self.config.parked_stream()))).await?;
        answer(context.get_or_create_stream(leases_config())).await?;
        let leases = answer(context.get_key_value(LEASES)).await?;
        let consumer = match self.config.terms.exclusive {
            true => None,
            false => Some(answer(stream.create_consumer(self.consumer_config(DeliverPolicy::All))).await?),
        };
        self.link = Some(Link {
            context,
            stream,
            leases,
            consumer,
            epoch: u64::try_from(created).unwrap_or_default(),
        });
        // Claims over the old connection are no longer certain.
        self.lease = None;
        tracing::info!(
            "source {}: consuming stream {} as {}",
            self.name,
            self.config.stream,
            self.config.consumer
        );
        Ok(())
    }

    /// The bucket has no expiry of its own: the holder writes the end of its lease, and a later worker takes an expired
    /// one by a write that only one worker can make.
    async fn take_lease(&mut self) -> Result<Option<bool>, String> {
        let (key, token, lease) = (self.key("lease"), self.token.clone(), self.config.terms.lease);
        let revision = self.lease;
        let link = self.link()?;
        let value = bytes::Bytes::from(token.clone());
        if let Some(revision) = revision {
            self.lease = link.leases.update(&key, value, revision).await.ok();
            return Ok(self.lease.map(|_| true));
        }
        let entry = answer(link.leases.entry(key.as_str())).await?;
        let taken = match entry {
            None => match link.leases.create(&key, value).await {
                Ok(revision) => Some(revision),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => None,
                Err(error) => return Err(format!("NATS: {error}")),
            },
            Some(entry) => {
                let written =
                    Timestamp(u64::try_from(entry.created.unix_timestamp_nanos() / 1_000_000).unwrap_or_default());
                let is_free = entry.operation != kv::Operation::Put
                    || entry.value == token.as_bytes()
                    || written.elapsed() > lease;
                match is_free {
                    true => link.leases.update(&key, value, entry.revision).await.ok(),
                    false => None,
                }
            }
        };
        self.lease = taken;
        Ok(taken.map(|_| false))
    }

    async fn release_lease(&mut self) -> Result<(), String> {
        let key = self.key("lease");
        if self.lease.take().is_some() {
            answer(self.link()?.leases.delete(key)).await?;
        }
        Ok(())
    }

    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<u64>>>, String> {
        match self.holds_lease().await? {
            true => Ok(Grant::Granted(self.fetch(count).await?)),
            false => Ok(Grant::Lost),
        }
    }

    async fn start_over(&mut self) -> Result<(), String> {
        self.take_over().await
    }

    async fn recover(&mut self, _count: usize) -> Result<Grant<(Vec<Claimed<u64>>, bool)>, String> {
        // The recreated consumer starts with the predecessor's open messages.
        Ok(Grant::Granted((Vec::new(), true)))
    }

    async fn mark_suspect(&mut self, claim: &u64) -> Result<u32, String> {
        let key = self.key(&format!("suspect.{claim}"));
        let leases = &self.link()?.leases;
        let noted = answer(leases.get(key.as_str())).await?;
        let noted = noted.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u32>().ok());
        let count = noted.unwrap_or_default() + 1;
        answer(leases.put(key.as_str(), count.to_string().into())).await?;
        Ok(count)
    }

    async fn settle(&mut self, finished: &[u64], parked: &[(u64, Parked)]) -> Result<Grant<u64>, String> {
        if !self.holds_lease().await? {
            return Ok(Grant::Lost);
        }
        for (sequence, parked) in parked {
            let Some(message) = self.open.get(sequence).cloned() else {
                continue;
            };
            let mut headers = message.headers.clone().unwrap_or_default();
            headers.insert("Subject", message.subject.as_str());
            headers.insert(REASON_HEADER, reason_json(parked).as_str());
            let subject = format!("{}.message", self.config.parked_stream());
            let context = &self.link()?.context;
            let stored = answer(context.publish_with_headers(subject, headers, message.payload.clone())).await?;
            answer(stored.into_future()).await?;
        }
        let parked = parked.iter().map(|(sequence, _)| *sequence);
        let done: Vec<u64> = finished.iter().copied().chain(parked).collect();
        self.acknowledge(&done).await?;
        Ok(Grant::Granted(0))
    }

    async fn renew(&mut self, claims: Vec<u64>) -> Result<(), String> {
        for sequence in claims {
            if let Some(message) = self.open.get(&sequence) {
                answer(message.ack_with(AckKind::Progress)).await?;
            }
        }
        Ok(())
    }

    async fn give_back(&mut self, claims: Vec<u64>) -> Result<(), String> {
        // With a lease, the next holder starts with them anyway.
        if !self.config.terms.exclusive {
            for sequence in claims {
                if let Some(message) = self.open.remove(&sequence) {
                    answer(message.ack_with(AckKind::Nak(None))).await?;
                }
            }
        }
        let client = self.link()?.context.client();
        answer(client.flush()).await
    }

    fn wait_for_more(&mut self, _count: usize, more: Arc<Notify>) -> bool {
        let Some(consumer) = self.link.as_ref().and_then(|link| link.consumer.clone()) else {
            return false;
        };
        let found = Rc::downgrade(&self.found);
        self.watches.spawn(async move {
            if let Ok(mut batch) = consumer.batch().max_messages(1).expires(WAIT).messages().await {
                while let Some(Ok(message)) = batch.next().await {
                    if let Some(found) = found.upgrade() {
                        found.borrow_mut().push_back(message);
                    }
                }
            }
            more.notify_one();
        });
        false
    }

    async fn lag(&mut self, feed: &Feed) -> Result<(), String> {
        let consumer = self.config.consumer.clone();
        let info = answer(self.link()?.stream.consumer_info(consumer)).await?;
        feed.gauges().set_lag(info.num_pending, None);
        Ok(())
    }
}

impl ParkedEvents for Nats {
    fn list(&self) -> Operation<'_, Vec<ParkedEvent>> {
        Box::pin(async move {
            let (_, messages) = self.parked_messages().await?;
            let event = |(sequence, message): (u64, Message)| ParkedEvent {
                id: sequence.to_string(),
                reason: message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get(REASON_HEADER))
                    .map_or(String::new(), ToString::to_string),
                raw: message.payload.to_vec(),
            };
            Ok(messages.into_iter().map(event).collect())
        })
    }

    fn retry(&self, ids: Vec<String>) -> Operation<'_, u64> {
        Box::pin(self.work_through(ids, true))
    }

    fn forget(&self, ids: Vec<String>) -> Operation<'_, u64> {
        Box::pin(self.work_through(ids, false))
    }
}
