//! `http_in`: takes events by POST, one JSON object or several (NDJSON).
//!
//! ```toml
//! comments = { type = "http_in", listen = "127.0.0.1:8081", path = "/comments", stamp = { id = "id", time = "created" } }
//! ```
//!
//! A 2xx is a promise. With `ack = "published"` (default): every required sink has accepted the event: 200. With
//! `ack = "spooled"`: the event is on this machine's disk and will be published, also after a crash: 202, and nginx may
//! be down.
//!
//! | answer | meaning |
//! |---|---|
//! | 200, 202 | `{"id": "…", "time": "…"}`, or `{"ids": […], "time": "…"}` for several events |
//! | 400 | not JSON objects; nothing was taken |
//! | 403 | the page's origin is not in `cors` |
//! | 408, 413 | the body came too slowly, or is too long |
//! | 422 | an event was put into the dead-letter file; the answer says why and how the others went |
//! | 503 + `Retry-After` | no room now, or the worker is stopping; nothing was taken |
//! | 504 | not published in time; it may still be |
//!
//! A reload loses no request: listener and connections stay, a request that is being read goes to the new
//! configuration, and one whose events cannot be published at present is handed over to it with its ids.
//!
//! `stamp` adds the event's id and time to the object under the given names, overwriting any client values.
//! `GET /health` answers 200 as long as events are accepted.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::spool::{self, Entry, Spool};
use super::{Context, Guarantee, Kind, Limits, Run, Source, next_epoch};
use crate::checkpoint::{self, Checkpointer};
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::config::value::ByteSize;
use crate::credit::Permit;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::event::{Event, EventId};
use crate::finalizer::{Ack, AckTo, Handle, Outcome, TakeAck};
use crate::json::{Members, mended};
use crate::server::{self, Answer, Front, Fronts, Service};
use crate::watermark::Watermark;

pub const KIND: Kind = Kind {
    name: "http_in",
    about: "takes events by POST; 2xx means published or on disk",
    read,
};

/// Value in a 503. Room comes back within milliseconds unless nginx is down.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");
/// How long a browser may cache the preflight's permission.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");
/// Polling interval of an ending source for requests that are still handing in events.
const HAND_IN_POLL: Duration = Duration::from_millis(1);
/// A segment is deleted as a whole; smaller ones free space sooner, larger ones need fewer files.
const MAX_SEGMENT_BYTES: u64 = 16 << 20;
/// The settled part of the spool may take one part in this many of `spool_max`.
const SEGMENTS: u64 = 16;

#[derive(Clone, Debug)]
pub struct HttpIn {
    listen: SocketAddr,
    /// The path for POSTs.
    path: String,
    ack: AckMode,
    /// Origins of pages that may post: `["https://example.com"]`, or `["*"]`. Without a list no CORS headers are sent.
    cors: Option<Vec<String>>,
    /// Largest body.
    max_body: usize,
    /// Time limit for reading a body, and for publishing with `ack = "published"`.
    timeout: Duration,
    max_connections: usize,
    /// Maximum unsettled bytes with `ack = "spooled"`. The disk may hold a sixteenth more, which is settled.
    spool_max: u64,
    stamp: Stamp,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckMode {
    Published,
    Spooled,
}

/// Names of fields that the server sets.
#[derive(Clone, Debug, Default)]
struct Stamp {
    id: Option<String>,
    time: Option<String>,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let listen = section.required("listen");
    let path = section.or("path", "/".to_owned());
    if !path.starts_with('/') || path == "/health" {
        section.complain_at("path", "must start with \"/\" and not be \"/health\"");
    }
    let words = [("published", AckMode::Published), ("spooled", AckMode::Spooled)];
    let ack = section.choice("ack", &words, AckMode::Published);
    let cors = section.optional::<Vec<String>>("cors");
    for origin in cors.iter().flatten().filter(|origin| *origin != "*") {
        let is_origin = origin
            .split_once("://")
            .is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
        if !is_origin || HeaderValue::from_str(origin).is_err() {
            section.complain_at(
                "cors",
                format!("\"{origin}\" is not an origin (example: \"https://example.com\")"),
            );
        }
    }
    let ByteSize(max_body) = section.or("max_body", ByteSize(64 << 10));
    let timeout = section.or("timeout", Duration::from_secs(10));
    let max_connections = section.or("max_connections", 1024);
    if max_body == 0 {
        section.complain_at("max_body", "must be at least 1B");
    }
    if max_connections == 0 {
        section.complain_at("max_connections", "must be at least 1");
    }
    let ByteSize(spool_max) = section.or("spool_max", ByteSize(1 << 30));
    if section.has("spool_max") && ack == AckMode::Published {
        section.complain_at("spool_max", "belongs to ack = \"spooled\"");
    }
    if ack == AckMode::Spooled && spool_max < max_body {
        let text = format!("must be at least max_body ({max_body}B), or there is never room for such a body");
        section.complain_at("spool_max", text);
    }
    let stamp = section.table("stamp", |stamp| Stamp {
        id: stamp.optional("id"),
        time: stamp.optional("time"),
    });
    Some(Box::new(HttpIn {
        listen: listen?,
        path,
        ack,
        cors,
        max_body,
        timeout,
        max_connections,
        spool_max: spool_max as u64,
        stamp: stamp.unwrap_or_default(),
        limits: Limits::read(section),
    }))
}

impl Source for HttpIn {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        match self.ack {
            AckMode::Published => Guarantee::Unacknowledged,
            AckMode::Spooled => Guarantee::AtLeastOnce,
        }
    }

    fn reads(&self) -> Option<Endpoint> {
        Some(Endpoint::Listener(self.listen))
    }

    fn listens(&self) -> Option<SocketAddr> {
        Some(self.listen)
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let front = FRONTS.open(self.listen, self.max_connections, serve_front)?;
            let mut stop = context.stop.clone();
            let (intake, pump) = self.open_intake(&context)?;
            tracing::info!(
                "source {}: taking POST http://{}{} (2xx = {:?})",
                context.name,
                self.listen,
                self.path,
                self.ack
            );
            let desk = Arc::new(Desk {
                config: Arc::from(self),
                feed: context.feed.clone(),
                intake,
                waiting: Arc::default(),
            });
            if desk.take_over(&front, &mut stop).await {
                front.install(Arc::clone(&desk));
            }
            let withdrawn = async {
                let mut stop = context.stop.clone();
                stop.requested().await;
                front.withdraw();
                // A request that holds it is about to hand in events.
                while Arc::strong_count(&desk) > 1 {
                    tokio::time::sleep(HAND_IN_POLL).await;
                }
            };
            match pump {
                None => withdrawn.await,
                Some(mut pump) => {
                    tokio::join!(withdrawn, pump.run(&mut stop));
                }
            }
            // In published mode everything in flight has a waiting client; in spooled mode the pump has waited for it.
            context.feed.drained(&mut stop).await;
            front.hand_over(desk.waiting.take().into_iter());
            Ok(())
        })
    }
}

static FRONTS: Fronts<Desk> = Fronts::new();

/// Closes all addresses but these.
pub fn keep_only(addresses: &[SocketAddr]) {
    FRONTS.keep_only(addresses);
}

/// Starts a thread that outlives the source.
fn serve_front(front: Arc<Front<Desk>>, listener: std::net::TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = move || {
        if let Err(error) = LocalSet::new().block_on(&runtime, front.serve(listener)) {
            tracing::error!("http_in: {error}");
        }
    };
    std::thread::Builder::new().name("http-in".to_owned()).spawn(serve)?;
    Ok(())
}

impl HttpIn {
    fn open_intake(&self, context: &Context) -> io::Result<(Intake, Option<Pump>)> {
        if self.ack == AckMode::Published {
            return Ok((
                Intake::Direct {
                    epoch: next_epoch(context)?,
                    seq: AtomicU64::new(0),
                },
                None,
            ));
        }
        let directory = context.state_dir.join(format!("{}.spool", context.name));
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("checkpoint.json");
        let start = SpoolCheckpoint {
            epoch: Timestamp::now().0,
            settled: 0,
            end: 0,
        };
        let checkpoint = checkpoint::load(&file)?.unwrap_or(start);
        checkpoint::store(&file, &checkpoint)?;
        let segment_bytes = (self.spool_max / SEGMENTS).clamp(1, MAX_SEGMENT_BYTES);
        let (spool, reader, cleaner) = spool::open(&directory, checkpoint.settled, segment_bytes)?;
        let stored = move |checkpoint: &SpoolCheckpoint| cleaner.settled(checkpoint.settled, checkpoint.end);
        let (ack_to, acks) = mpsc::unbounded_channel();
        let pump = Pump {
            epoch: checkpoint.epoch,
            stamp: self.stamp.clone(),
            reader,
            feed: context.feed.clone(),
            marks: Watermark::new(),
            acks,
            ack_to,
            checkpointer: Checkpointer::spawn(&context.name, file, stored)?,
        };
        Ok((
            Intake::Spool {
                epoch: checkpoint.epoch,
                spool,
            },
            Some(pump),
        ))
    }
}

/// Destination of accepted events.
enum Intake {
    Direct { epoch: u64, seq: AtomicU64 },
    Spool { epoch: u64, spool: Spool },
}

/// Takes in the events of requests, under one configuration.
struct Desk {
    config: Arc<HttpIn>,
    feed: Feed,
    intake: Intake,
    waiting: Arc<Waiting>,
}

/// An event, and the receiver of its outcome.
type Handed = (Event, oneshot::Sender<Ack>);

/// Events in flight with waiting clients, by ticket.
#[derive(Debug, Default)]
struct Waiting(Mutex<(u64, BTreeMap<u64, Handed>)>);

impl Waiting {
    fn insert(&self, handed: Handed) -> u64 {
        let (next, waiting) = &mut *self.0.lock();
        *next += 1;
        waiting.insert(*next, handed);
        *next
    }

    /// Takes all events, in the order of arrival.
    fn take(&self) -> Vec<Handed> {
        std::mem::take(&mut self.0.lock().1).into_values().collect()
    }
}

impl TakeAck for Waiting {
    fn take(&self, ack: Ack) {
        let waiting = self.0.lock().1.remove(&ack.ticket);
        // The client may have disconnected; handed-over events are no longer here.
        if let Some((_, reply)) = waiting {
            let _ = reply.send(ack);
        }
    }
}

/// A refusal; nothing was accepted.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("the body is longer than {0} bytes, or holds more events than fit in at once")]
    TooLong(usize),
    #[error("the body came too slowly")]
    TooSlow,
    #[error("the body broke off")]
    Broken,
    #[error("no room now; try again")]
    NoRoom,
    #[error("the worker is stopping")]
    Stopping,
    #[error("the event cannot be stored: {0}")]
    Disk(io::Error),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::Broken => StatusCode::BAD_REQUEST,
            Self::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoom | Self::Stopping | Self::Disk(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Service for Desk {
    type Handed = Handed;
    type Body = Full<Bytes>;

    async fn answer(front: Arc<Front<Self>>, request: Request<Incoming>) -> Answer {
        match front.current().await {
            Some(desk) => {
                let config = Arc::clone(&desk.config);
                drop(desk);
                config.answer(&front, request).await
            }
            None => refused(&Refusal::Stopping),
        }
    }
}

impl HttpIn {
    async fn answer(&self, front: &Front<Desk>, request: Request<Incoming>) -> Answer {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let mut answer = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/health") => server::answer(StatusCode::OK, "text/plain", "ok\n"),
            (method, path) if path == self.path => {
                if origin.as_ref().is_some_and(|origin| !self.allows(origin)) {
                    json_answer(
                        StatusCode::FORBIDDEN,
                        &json!({"error": "this origin may not post here"}),
                    )
                } else if method == Method::POST {
                    self.take(front, request.into_body()).await
                } else if method == Method::OPTIONS {
                    self.preflight()
                } else {
                    let mut answer = json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "use POST"}));
                    answer
                        .headers_mut()
                        .insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
                    answer
                }
            }
            _ => json_answer(StatusCode::NOT_FOUND, &json!({"error": "not found"})),
        };
        if let (Some(origin), Some(_)) = (origin, &self.cors)
            && self.allows(&origin)
        {
            answer.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer
                .headers_mut()
                .insert(header::VARY, HeaderValue::from_static("Origin"));
        }
        answer
    }

    /// Without a list of origins there is nothing to check: the page then comes from the same origin, through nginx.
    fn allows(&self, origin: &HeaderValue) -> bool {
        let Some(allowed) = &self.cors else { return true };
        allowed
            .iter()
            .any(|one| one == "*" || one.as_bytes() == origin.as_bytes())
    }

    fn preflight(&self) -> Answer {
        let mut answer = server::answer(StatusCode::NO_CONTENT, "text/plain", "");
        let headers = answer.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        if self.cors.is_some() {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static("Content-Type"),
            );
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
        }
        answer
    }

    async fn take(&self, front: &Front<Desk>, body: Incoming) -> Answer {
        let taken = async {
            let texts = tokio::select! {
                texts = self.read(body) => texts?,
                () = front.closed() => return Err(Refusal::Stopping),
            };
            // A new one, if there was a reload meanwhile.
            let desk = front.current().await.ok_or(Refusal::Stopping)?;
            match &desk.intake {
                Intake::Direct { epoch, seq } => {
                    let (waiting, received) = desk.publish(texts, *epoch, seq)?;
                    drop(desk);
                    Ok(self.published(waiting, received).await)
                }
                Intake::Spool { epoch, spool } => desk.store(texts, *epoch, spool).await,
            }
        };
        taken.await.unwrap_or_else(|refusal| refused(&refusal))
    }

    /// The JSON texts of the body, each on one line.
    async fn read(&self, body: Incoming) -> Result<Vec<Bytes>, Refusal> {
        let max_body = self.max_body;
        if body.size_hint().lower() > max_body as u64 {
            return Err(Refusal::TooLong(max_body));
        }
        let collected = tokio::time::timeout(self.timeout, Limited::new(body, max_body).collect()).await;
        let body = match collected {
            Err(_) => return Err(Refusal::TooSlow),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLong(max_body)),
            Ok(Err(_)) => return Err(Refusal::Broken),
            Ok(Ok(body)) => body.to_bytes(),
        };
        let texts = split_objects(&body).map_err(Refusal::Invalid)?;
        let Limits { events, bytes } = self.limits;
        if texts.len() > events || body.len() > bytes {
            return Err(Refusal::TooLong(max_body));
        }
        Ok(texts)
    }

    /// Waits for the outcomes of the events.
    async fn published(&self, waiting: Vec<Promise>, received: Timestamp) -> Answer {
        let settled = async {
            let mut acks = Vec::with_capacity(waiting.len());
            for (id, answer) in waiting {
                acks.push((id, answer.await.ok()));
            }
            acks
        };
        match tokio::time::timeout(self.timeout, settled).await {
            Ok(acks) => answer_settled(&acks, received),
            Err(_) => json_answer(
                StatusCode::GATEWAY_TIMEOUT,
                &json!({"error": "not published in time; it may still be"}),
            ),
        }
    }
}

/// An event's id, and its future outcome.
type Promise = (EventId, oneshot::Receiver<Ack>);

impl Desk {
    /// Hands the events to the pipelines.
    fn publish(&self, texts: Vec<Bytes>, epoch: u64, seq: &AtomicU64) -> Result<(Vec<Promise>, Timestamp), Refusal> {
        let sizes = texts.iter().map(Bytes::len);
        let permits = self.feed.credit().try_reserve(sizes).ok_or(Refusal::NoRoom)?;
        let received = Timestamp::now();
        let mut waiting = Vec::with_capacity(texts.len());
        for (text, permit) in texts.into_iter().zip(permits) {
            // Requests are answered on one thread, so that this is also the order of the events.
            let number = seq.fetch_add(1, Ordering::Relaxed) + 1;
            let id = EventId::new(epoch, number);
            let (reply, answer) = oneshot::channel();
            let event = Event::new(id.clone(), received, self.config.stamp.apply(text, &id, received));
            self.emit((event, reply), permit);
            waiting.push((id, answer));
        }
        Ok((waiting, received))
    }

    fn emit(&self, handed: Handed, permit: Permit) {
        let event = handed.0.clone();
        let ticket = self.waiting.insert(handed);
        let to = AckTo::Taker(Arc::clone(&self.waiting) as Arc<dyn TakeAck>);
        self.feed.emit(event, Handle::new(ticket, to, Some(permit)));
    }

    /// Takes over events that the last configuration could not publish, before newer ones. `false`: stopped first.
    async fn take_over(&self, front: &Front<Self>, stop: &mut Stop) -> bool {
        let mut handed = front.take_handed().into_iter();
        while let Some(one) = handed.next() {
            let permit = tokio::select! {
                permit = self.feed.credit().reserve(one.0.raw.len()) => permit,
                () = stop.requested() => {
                    front.hand_over(std::iter::once(one).chain(handed));
                    return false;
                }
            };
            self.emit(one, permit);
        }
        true
    }

    async fn store(&self, texts: Vec<Bytes>, epoch: u64, spool: &Spool) -> Result<Answer, Refusal> {
        let received = Timestamp::now();
        let count = texts.len() as u64;
        let appended = spool.append(texts, received, self.config.spool_max).await;
        let first = appended.map_err(|error| match error {
            spool::Error::Full => Refusal::NoRoom,
            spool::Error::Io(error) => Refusal::Disk(error),
        })?;
        let ids: Vec<EventId> = (first..first + count).map(|seq| EventId::new(epoch, seq)).collect();
        Ok(json_answer(StatusCode::ACCEPTED, &ids_body(&ids, received)))
    }
}

fn refused(refusal: &Refusal) -> Answer {
    let mut answer = json_answer(refusal.status(), &json!({"error": refusal.to_string()}));
    let headers = answer.headers_mut();
    match refusal {
        Refusal::NoRoom | Refusal::Disk(_) => {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        Refusal::Stopping => {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // The rest of the body has not been read.
        Refusal::TooLong(_) | Refusal::TooSlow | Refusal::Broken => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Refusal::Invalid(_) => {}
    }
    answer
}

fn json_answer(status: StatusCode, body: &Value) -> Answer {
    server::answer(status, "application/json", body.to_string() + "\n")
}

fn ids_body(ids: &[EventId], received: Timestamp) -> Value {
    let time = received.to_string();
    match ids {
        [only] => json!({"id": only.to_string(), "time": time}),
        many => json!({"ids": many.iter().map(ToString::to_string).collect::<Vec<_>>(), "time": time}),
    }
}

/// Answers with the outcomes of the events; `None` if one will never be known.
fn answer_settled(acks: &[(EventId, Option<Ack>)], received: Timestamp) -> Answer {
    let outcome = |ack: &Option<Ack>| ack.as_ref().map_or(Outcome::Released, |ack| ack.outcome);
    let worst = acks
        .iter()
        .map(|(_, ack)| outcome(ack))
        .max()
        .unwrap_or(Outcome::Released);
    let status = match worst {
        Outcome::Accepted | Outcome::Dropped => {
            let ids: Vec<EventId> = acks.iter().map(|(id, _)| id.clone()).collect();
            return json_answer(StatusCode::OK, &ids_body(&ids, received));
        }
        Outcome::Parked => StatusCode::UNPROCESSABLE_ENTITY,
        Outcome::Released => StatusCode::SERVICE_UNAVAILABLE,
    };
    let result = |(id, ack): &(EventId, Option<Ack>)| {
        let word = match outcome(ack) {
            Outcome::Accepted | Outcome::Dropped => "accepted",
            Outcome::Parked => "parked",
            Outcome::Released => "unknown",
        };
        let reason = ack
            .as_ref()
            .and_then(|ack| ack.parked.as_ref())
            .map(|parked| &*parked.text);
        json!({"id": id.to_string(), "outcome": word, "reason": reason})
    };
    let results: Vec<Value> = acks.iter().map(result).collect();
    let error = if worst == Outcome::Parked {
        "an event was parked"
    } else {
        "the worker is stopping"
    };
    json_answer(status, &json!({"error": error, "results": results}))
}

/// Splits a body into JSON objects, each on one line: one multi-line object, one object per line, or both.
fn split_objects(body: &[u8]) -> Result<Vec<Bytes>, String> {
    let body = mended(body);
    let mut texts = Vec::new();
    for (number, object) in (1..).zip(serde_json::Deserializer::from_slice(&body).into_iter::<&RawValue>()) {
        let text = object
            .map_err(|error| format!("object {number} is not valid JSON: {error}"))?
            .get();
        if text.starts_with('[') {
            return Err(format!(
                "object {number} is a list: send its objects one per line, without brackets and commas"
            ));
        }
        if !text.starts_with('{') {
            return Err(format!("object {number} is not a JSON object"));
        }
        // Line ends within JSON strings are escaped; others are whitespace and become blanks.
        let line = text.bytes().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            other => other,
        });
        texts.push(line.collect());
    }
    if texts.is_empty() {
        Err("the body holds no JSON object".to_owned())
    } else {
        Ok(texts)
    }
}

impl Stamp {
    /// Sets the server's fields in a JSON object.
    fn apply(&self, text: Bytes, id: &EventId, received: Timestamp) -> Bytes {
        let id_field = self.id.as_ref().map(|name| (name, id.to_string()));
        let time_field = self.time.as_ref().map(|name| (name, received.to_string()));
        let fields: Vec<(&String, String)> = id_field.into_iter().chain(time_field).collect();
        if fields.is_empty() {
            return text;
        }
        let may_be_there = |name: &str| text.contains(&b'\\') || memchr::memmem::find(&text, name.as_bytes()).is_some();
        if fields.iter().any(|(name, _)| may_be_there(name)) {
            let Ok(Members(mut members)) = serde_json::from_slice(&text) else {
                return text;
            };
            members.retain(|(name, _)| fields.iter().all(|(own, _)| *own != name));
            let mut out = b"{".to_vec();
            for (name, value) in members {
                out.extend_from_slice(json!(name).to_string().as_bytes());
                out.push(b':');
                out.extend_from_slice(value.get().as_bytes());
                out.push(b',');
            }
            // Remaining fields are set at the end.
            if out.last() == Some(&b',') {
                out.pop();
            }
            out.push(b'}');
            return self.append(out.into(), &fields);
        }
        self.append(text, &fields)
    }

    /// Appends fields that are missing.
    fn append(&self, text: Bytes, fields: &[(&String, String)]) -> Bytes {
        let mut out = Vec::with_capacity(text.len() + 96);
        out.extend_from_slice(text.trim_ascii_end());
        out.pop();
        let is_empty = out.trim_ascii_end().ends_with(b"{");
        for (index, (name, value)) in fields.iter().enumerate() {
            if index > 0 || !is_empty {
                out.push(b',');
            }
            out.extend_from_slice(json!(name).to_string().as_bytes());
            out.push(b':');
            out.extend_from_slice(json!(value).to_string().as_bytes());
        }
        out.push(b'}');
        out.into()
    }
}

/// The settled part of a spool.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SpoolCheckpoint {
    epoch: u64,
    settled: u64,
    /// The spool position after it, in this process.
    #[serde(skip)]
    end: u64,
}

/// Takes events out of the spool as credit allows.
struct Pump {
    epoch: u64,
    stamp: Stamp,
    reader: spool::Reader,
    feed: Feed,
    /// Sequence numbers and the positions after their lines.
    marks: Watermark<(u64, u64)>,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    checkpointer: Checkpointer<SpoolCheckpoint>,
}

impl Pump {
    async fn run(&mut self, stop: &mut Stop) {
        let mut waiting: Option<Entry> = None;
        while !stop.is_requested() {
            self.settle();
            self.send_burst(&mut waiting).await;
            let credit = Arc::clone(self.feed.credit());
            let wanted = waiting.as_ref().map(|entry| entry.text.len());
            tokio::select! {
                biased;
                () = stop.requested() => {}
                Some(ack) = self.acks.recv() => self.note(ack),
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() => {
                    if let Some(entry) = waiting.take() {
                        self.emit(entry, permit);
                    }
                }
                () = self.reader.grown(), if wanted.is_none() => {}
            }
        }
        self.settle();
        while !self.marks.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(ack),
                () = stop.abandoned() => return,
            }
            self.settle();
        }
    }

    /// Sends available entries as credit allows. An entry without credit stays in `waiting`.
    async fn send_burst(&mut self, waiting: &mut Option<Entry>) {
        loop {
            let entry = match waiting
                .take()
                .map_or_else(|| self.reader.poll(), |entry| Ok(Some(entry)))
            {
                Ok(Some(entry)) => entry,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("cannot read the spool: {error}; will try again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    return;
                }
            };
            match self.feed.credit().try_reserve_one(entry.text.len()) {
                Some(permit) => self.emit(entry, permit),
                None => {
                    *waiting = Some(entry);
                    return;
                }
            }
        }
    }

    fn emit(&mut self, entry: Entry, permit: Permit) {
        let id = EventId::new(self.epoch, entry.seq);
        let ticket = self.marks.begin((entry.seq, entry.end), permit);
        let text = self.stamp.apply(entry.text, &id, entry.received);
        let event = Event::new(id, entry.received, text);
        self.feed
            .emit(event, Handle::new(ticket, AckTo::Queue(self.ack_to.clone()), None));
    }

    fn note(&mut self, ack: Ack) {
        if ack.outcome.is_settled() {
            self.marks.finish(ack.ticket);
        }
    }

    fn settle(&mut self) {
        while let Ok(ack) = self.acks.try_recv() {
            self.note(ack);
        }
        if let Some(advance) = self.marks.advance() {
            let (settled, end) = advance.position;
            let checkpoint = SpoolCheckpoint {
                epoch: self.epoch,
                settled,
                end,
            };
            self.checkpointer.submit(checkpoint, advance.permits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_one_object_or_several_in_any_layout() {
        assert_eq!(split_objects(b" {\"a\":1} ").unwrap(), ["{\"a\":1}"]);
        assert_eq!(
            split_objects(b"{\"a\":1}\n{\"a\": 2}\r\n\n{\"b\":3}").unwrap(),
            ["{\"a\":1}", "{\"a\": 2}", "{\"b\":3}"]
        );
        assert_eq!(
            split_objects(b"{\n  \"z\": 1,\n  \"a\": 2\n}\n").unwrap(),
            ["{   \"z\": 1,   \"a\": 2 }"]
        );
        assert_eq!(
            split_objects("\u{feff}{\"a\":\"\\ud83d\"}\n{\"n\":10.00}".as_bytes()).unwrap(),
            ["{\"a\":\"\\ufffd\"}", "{\"n\":10.00}"]
        );
        for (body, error) in [
            (&b""[..], "no JSON object"),
            (b"\n\n", "no JSON object"),
            (b"1", "object 1 is not a JSON object"),
            (
                b"[{\"a\":1},\n{\"a\":2}]",
                "object 1 is a list: send its objects one per line",
            ),
            (b"{}{\"a\"}", "object 2 is not valid JSON"),
            (b"{\"a\":\"\xff\"}", "object 1 is not valid JSON"),
            (b"hello", "object 1 is not valid JSON"),
        ] {
            let found = split_objects(body).unwrap_err();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn a_stamp_wins_over_what_the_client_wrote() {
        let stamp = Stamp {
            id: Some("id".into()),
            time: Some("created".into()),
        };
        let apply = |text: &'static str| stamp.apply(text.into(), &EventId::new(1, 2), Timestamp(0));
        let tail = r#""id":"1-2","created":"1970-01-01T00:00:00.000Z"}"#;
        assert_eq!(apply("{}"), format!("{{{tail}"));
        assert_eq!(apply("{ }"), format!("{{ {tail}"));
        assert_eq!(apply("{\"a\":1}"), format!("{{\"a\":1,{tail}"));
        assert_eq!(apply("{\"id\":\"mine\",\"a\":1}"), format!("{{\"a\":1,{tail}"));
        assert_eq!(apply("{\"\\u0069d\":\"mine\",\"a\":1}"), format!("{{\"a\":1,{tail}"));
        assert_eq!(
            apply("{\"n\":1.00,\"id\":5,\"n\":1E400, \"o\": {\"z\":-0}}"),
            format!("{{\"n\":1.00,\"n\":1E400,\"o\":{{\"z\":-0}},{tail}")
        );
        let none = Stamp::default();
        assert_eq!(none.apply("{ }".into(), &EventId::new(1, 2), Timestamp(0)), "{ }");
    }
}
