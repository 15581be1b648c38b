//! `http_push`: publishes to nginx by POST.
//!
//! ```toml
//! nginx = { type = "http_push", nodes = ["http://127.0.0.1:8080", "unix:/run/nginx/pub.sock"], path = "/pub?id=" }
//! ```
//!
//! One POST per event and node, with all channels in its path, joined by `/` and percent-encoded; `Event-Id` is the same in every
//! attempt, so that a node can drop what it has already stored. An event is accepted when *every* node said 2xx; nodes
//! that did are not asked again. What an answer means:
//!
//! | answer | meaning |
//! |---|---|
//! | 2xx | accepted |
//! | 408, 424, 425, 429, 5xx, no answer | retried |
//! | 403 `Number of channels were exceeded.` | retried: room comes back |
//! | 401, 404, 405, 407, 1xx, 3xx | the configuration is wrong somewhere: logged as error, retried |
//! | 409 | the node has newer events already: parked as stale |
//! | any other 4xx | parked |
//!
//! `permanent` adds statuses to be parked at once. Retries stay in place: the events of one key wait for each other, others go on.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore};

use super::{Delivery, Kind, LaneSink, RunningSink, Sink, Verdict};
use crate::config::section::{FromText, Section};
use crate::engine::join::join_all;
use crate::event::Event;
use crate::ops::metrics::{Code, Metrics, Node as NodeMetrics};
use crate::retry::{Backoff, Policy};

pub const KIND: Kind = Kind {
    name: "http_push",
    about: "publishes to nginx push stream nodes by POST",
    read,
};

/// Enough to keep one nginx worker busy from one lane; each costs a socket on both ends.
const DEFAULT_CONNECTIONS: usize = 16;
/// Channel information is a few hundred bytes per channel; more than this is not an answer to a publish.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// So many answers in a row that mean "not now" are about the node; fewer may be about an event.
const FAILURES_OF_A_NODE: u32 = 5;
/// What fails event after event is told once in this time.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(10);

const EVENT_ID: HeaderName = HeaderName::from_static("event-id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("event-type");
const EXPLAIN: &str = "x-nginx-pushstream-explain";
const EXPLAIN_CHANNEL_LIMIT: &str = "Number of channels were exceeded.";

#[derive(Clone, Debug)]
pub struct HttpPush {
    /// Where the nodes listen: `http://host:port` or `unix:/path`.
    nodes: Vec<Address>,
    /// What comes before the channels: `/pub?id=` (default) or `/pub/`.
    path: String,
    /// The `Host` header, if it is not the node's own address.
    host: Option<HeaderValue>,
    content_type: HeaderValue,
    /// For one attempt, connecting included.
    timeout: Duration,
    /// Most connections of one lane to one node.
    connections: usize,
    /// Further statuses that park at once.
    permanent: Vec<u16>,
    retry: Policy,
}

/// Where one node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Sink>> {
    let nodes = section.required::<Vec<Address>>("nodes");
    if nodes.as_ref().is_some_and(Vec::is_empty) {
        section.complain_at("nodes", "needs at least one node");
    }
    let path = section.or("path", "/pub?id=".to_owned());
    if !path.starts_with('/') || path.parse::<Uri>().is_err() {
        section.complain_at("path", format!("\"{path}\" is not a path (example: \"/pub?id=\")"));
    }
    let header = |key, default: Option<&str>| {
        let text = section.optional::<String>(key).or(default.map(str::to_owned))?;
        let value = HeaderValue::from_str(&text);
        if value.is_err() {
            section.complain_at(key, "is not a header value");
        }
        value.ok()
    };
    let host = header("host", None);
    let content_type = header("content_type", Some("application/json"));
    let timeout = section.or("timeout", Duration::from_secs(2));
    if timeout.is_zero() {
        section.complain_at("timeout", "must be longer than 0");
    }
    let connections = section.or("connections", DEFAULT_CONNECTIONS);
    if connections == 0 {
        section.complain_at("connections", "must be at least 1");
    }
    let permanent = section.or("permanent", Vec::<u16>::new());
    for status in permanent.iter().filter(|status| !(400..600).contains(*status)) {
        section.complain_at("permanent", format!("{status} is not an error status"));
    }
    let retry = section.table("retry", Policy::read).unwrap_or_default();
    let content_type = content_type?;
    Some(Arc::new(HttpPush {
        nodes: nodes?,
        path,
        host,
        content_type,
        timeout,
        connections,
        permanent,
        retry,
    }))
}

impl FromText for Address {
    const WANTED: &'static str = "a node such as \"http://127.0.0.1:8080\" or \"unix:/run/nginx/pub.sock\"";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("\"unix:\" needs a path".to_owned())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let bad =
            || format!("\"{text}\" is not a node (examples: \"http://127.0.0.1:8080\", \"unix:/run/nginx/pub.sock\")");
        let uri: Uri = text.parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(format!("\"{text}\": TLS is not supported; use http or unix")),
            _ => return Err(bad()),
        }
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(format!("\"{text}\": the path belongs into the key path"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(bad());
        }
        Ok(Self::Tcp {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Sink for HttpPush {
    fn needs_channels(&self) -> bool {
        true
    }

    fn start(&self, name: &str, metrics: &Metrics) -> io::Result<Arc<dyn RunningSink>> {
        let nodes = self.nodes.iter().map(|address| {
            let host = match address {
                Address::Tcp { .. } => address.to_string().split_off("http://".len()),
                Address::Unix(_) => "localhost".to_owned(),
            };
            let own_host = HeaderValue::from_str(&host).map_err(io::Error::other)?;
            Ok(Arc::new(Node {
                sink: name.to_owned(),
                address: address.clone(),
                host: self.host.clone().unwrap_or(own_host),
                metrics: metrics.node(name, &address.to_string()),
                failing_since: Mutex::new(None),
                failures: AtomicU32::new(0),
                error_logged: Mutex::new(None),
                recovered: Notify::new(),
            }))
        });
        Ok(Arc::new(Running {
            config: Arc::new(self.clone()),
            nodes: nodes.collect::<io::Result<_>>()?,
        }))
    }
}

struct Running {
    config: Arc<HttpPush>,
    nodes: Vec<Arc<Node>>,
}

impl RunningSink for Running {
    fn open(&self) -> Rc<dyn LaneSink> {
        let clients = self.nodes.iter().map(|node| Client {
            node: Arc::clone(node),
            config: Arc::clone(&self.config),
            idle: RefCell::default(),
            slots: Semaphore::new(self.config.connections),
        });
        Rc::new(Lane {
            config: Arc::clone(&self.config),
            clients: clients.collect(),
        })
    }
}

/// What all lanes know of a node.
struct Node {
    sink: String,
    address: Address,
    host: HeaderValue,
    metrics: Arc<NodeMetrics>,
    failing_since: Mutex<Option<Instant>>,
    /// In a row. A counter that stands alone, so relaxed.
    failures: AtomicU32,
    error_logged: Mutex<Option<Instant>>,
    /// Wakes those who wait for their next attempt when another one has succeeded.
    recovered: Notify,
}

impl Node {
    fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if !self.metrics.set_up(true) {
            let since = self.failing_since.lock().take();
            let seconds = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
            tracing::info!(
                "sink {}: {} answers again after {seconds:.1} s",
                self.sink,
                self.address
            );
            self.recovered.notify_waiters();
        }
    }

    /// No connection at all: that is the node.
    fn unreachable(&self, failure: &str) {
        if self.metrics.set_up(false) {
            *self.failing_since.lock() = Some(Instant::now());
            tracing::warn!(
                "sink {}: {} fails: {failure}; events wait and are retried",
                self.sink,
                self.address
            );
        }
    }

    /// An answer that means "not now", or none: that may be the node or the event.
    fn failed(&self, failure: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_OF_A_NODE {
            self.unreachable(failure);
        } else if self.may_log() {
            tracing::warn!("sink {}: {}: {failure}; the event is retried", self.sink, self.address);
        }
    }

    fn misconfigured(&self, failure: &str) {
        if self.may_log() {
            let path = "check path, nodes and the publisher location";
            tracing::error!(
                "sink {}: {} answers {failure}; {path}; events are retried",
                self.sink,
                self.address
            );
        }
    }

    fn may_log(&self) -> bool {
        let mut logged = self.error_logged.lock();
        let may = logged.is_none_or(|at| at.elapsed() >= ERROR_LOG_INTERVAL);
        if may {
            *logged = Some(Instant::now());
        }
        may
    }
}

/// One lane's connections to all nodes.
struct Lane {
    config: Arc<HttpPush>,
    clients: Vec<Client>,
}

impl LaneSink for Lane {
    fn deliver<'a>(&'a self, event: &'a Event) -> Delivery<'a> {
        Box::pin(async move {
            let uri = match publish_path(&self.config.path, &event.channels).parse::<Uri>() {
                Ok(uri) => uri,
                Err(error) => return refused(format!("channels make no URL: {error}"), 0),
            };
            let headers = match Headers::of(event) {
                Ok(headers) => headers,
                Err(reason) => return refused(reason, 0),
            };
            match self.clients.as_slice() {
                [only] => only.publish(event, &uri, &headers).await,
                many => {
                    let verdicts = join_all(many.iter().map(|client| client.publish(event, &uri, &headers))).await;
                    verdicts
                        .into_iter()
                        .find(|verdict| *verdict != Verdict::Accepted)
                        .unwrap_or(Verdict::Accepted)
                }
            }
        })
    }
}

/// The headers that an event brings.
struct Headers {
    id: HeaderValue,
    kind: Option<HeaderValue>,
}

impl Headers {
    fn of(event: &Event) -> Result<Self, String> {
        let id = HeaderValue::from_str(&event.id.to_string()).map_err(|error| error.to_string())?;
        let kind = event
            .event_type
            .as_ref()
            .map(|kind| HeaderValue::from_bytes(kind.as_bytes()))
            .transpose();
        Ok(Self {
            id,
            kind: kind.map_err(|_| "the event type is not a header value".to_owned())?,
        })
    }
}

/// One lane's connections to one node.
struct Client {
    node: Arc<Node>,
    config: Arc<HttpPush>,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    slots: Semaphore,
}

/// How one attempt ended.
enum Attempt {
    Accepted,
    Permanent(String),
    Retry { failure: String, after: Option<Duration> },
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("connection failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes")]
    LongAnswer,
}

impl Failure {
    fn code(&self) -> Code {
        Code::Failure(match self {
            Self::Connect(_) => "connect",
            Self::Http(_) => "io",
            Self::Timeout(_) => "timeout",
            Self::LongAnswer => "long_answer",
        })
    }
}

impl Client {
    /// Tries until there is a verdict.
    async fn publish(&self, event: &Event, uri: &Uri, headers: &Headers) -> Verdict {
        let policy = &self.config.retry;
        let mut backoff = Backoff::new(policy);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let recovered = self.node.recovered.notified();
            let (failure, after) = match self.attempt(event, uri, headers).await {
                Attempt::Accepted => return Verdict::Accepted,
                Attempt::Permanent(reason) => return refused(format!("{}: {reason}", self.node.address), attempts),
                Attempt::Retry { failure, after } => (failure, after),
            };
            let pause = backoff.pause().max(after.unwrap_or_default()).min(policy.max);
            if event.received_at.elapsed() + pause > policy.max_age {
                let reason = format!(
                    "{}: gave up at the age of {:?}: {failure}",
                    self.node.address, policy.max_age
                );
                return refused(reason, attempts);
            }
            let pause = tokio::time::sleep(pause);
            if self.node.metrics.is_up() {
                pause.await;
            } else {
                tokio::select! { () = pause => {}, () = recovered => {} }
            }
        }
    }

    async fn attempt(&self, event: &Event, uri: &Uri, headers: &Headers) -> Attempt {
        let timeout = self.config.timeout;
        // The slots are never closed. Waiting for one is not part of the attempt: the node is not to blame for it.
        let _slot = self.slots.acquire().await;
        let answer = match tokio::time::timeout(timeout, self.exchange(event, uri, headers)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Timeout(timeout)),
        };
        match answer {
            Ok(answer) => {
                self.node.metrics.count(Code::Status(answer.status.as_u16()));
                self.judge(answer)
            }
            Err(failure) => {
                self.node.metrics.count(failure.code());
                self.node.failed(&failure.to_string());
                Attempt::Retry {
                    failure: failure.to_string(),
                    after: None,
                }
            }
        }
    }

    fn judge(&self, answer: Answer) -> Attempt {
        let Answer {
            status,
            explain,
            retry_after,
        } = answer;
        let text = match &explain {
            Some(explain) => format!("{} {explain}", status.as_u16()),
            None => status.to_string(),
        };
        let code = status.as_u16();
        match code {
            200..=299 => {
                self.node.succeeded();
                Attempt::Accepted
            }
            _ if self.config.permanent.contains(&code) => Attempt::Permanent(text),
            403 if explain.as_deref() == Some(EXPLAIN_CHANNEL_LIMIT) => {
                self.node.misconfigured(&text);
                Attempt::Retry {
                    failure: text,
                    after: retry_after,
                }
            }
            408 | 424 | 425 | 429 | 500..=599 => {
                self.node.failed(&text);
                Attempt::Retry {
                    failure: text,
                    after: retry_after,
                }
            }
            401 | 404 | 405 | 407 | 100..=199 | 300..=399 => {
                self.node.misconfigured(&text);
                Attempt::Retry {
                    failure: text,
                    after: None,
                }
            }
            409 => Attempt::Permanent(format!("stale: {text}")),
            _ => Attempt::Permanent(text),
        }
    }

    async fn exchange(&self, event: &Event, uri: &Uri, headers: &Headers) -> Result<Answer, Failure> {
        while let Some(mut sender) = self.take_idle() {
            // The node may have closed it since; then nothing was sent and the next one serves.
            if sender.ready().await.is_err() {
                continue;
            }
            match self.send(&mut sender, event, uri, headers).await {
                // A node may close a connection while a request is on its way there. That says nothing about the node.
                Err(Failure::Http(_)) => break,
                Err(failure) => return Err(failure),
                Ok(answer) => {
                    self.idle.borrow_mut().push(sender);
                    return Ok(answer);
                }
            }
        }
        let mut sender = self.connect().await?;
        let answer = self.send(&mut sender, event, uri, headers).await?;
        self.idle.borrow_mut().push(sender);
        Ok(answer)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.borrow_mut().pop()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        match &self.node.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(Failure::Connect)?;
                stream.set_nodelay(true).map_err(Failure::Connect)?;
                handshake(stream).await
            }
            Address::Unix(path) => handshake(UnixStream::connect(path).await.map_err(Failure::Connect)?).await,
        }
    }

    async fn send(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        event: &Event,
        uri: &Uri,
        headers: &Headers,
    ) -> Result<Answer, Failure> {
        let mut request = Request::new(Full::new(event.payload()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = uri.clone();
        let map = request.headers_mut();
        map.insert(HOST, self.node.host.clone());
        map.insert(CONTENT_TYPE, self.config.content_type.clone());
        map.insert(EVENT_ID, headers.id.clone());
        if let Some(kind) = &headers.kind {
            map.insert(EVENT_TYPE, kind.clone());
        }
        Answer::read(sender.send_request(request).await?).await
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender; its error is also the sender's.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

/// What matters of a node's answer.
struct Answer {
    status: StatusCode,
    explain: Option<String>,
    retry_after: Option<Duration>,
}

impl Answer {
    /// Reads to the end, so that the connection can be used again.
    async fn read(response: Response<Incoming>) -> Result<Self, Failure> {
        let (parts, mut body) = response.into_parts();
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let explain = header(EXPLAIN).map(str::to_owned);
        let retry_after = header(RETRY_AFTER.as_str())
            .and_then(|text| text.parse().ok())
            .map(Duration::from_secs);
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
            if length > MAX_ANSWER_BYTES {
                return Err(Failure::LongAnswer);
            }
        }
        Ok(Self {
            status: parts.status,
            explain,
            retry_after,
        })
    }
}

fn refused(reason: String, attempts: u32) -> Verdict {
    Verdict::Refused { reason, attempts }
}

/// `/pub?id=` and `a b`, `c` make `/pub?id=a%20b/c`.
fn publish_path(base: &str, channels: &[String]) -> String {
    let mut path = String::with_capacity(base.len() + channels.iter().map(|id| id.len() + 8).sum::<usize>());
    path.push_str(base);
    for (index, id) in channels.iter().enumerate() {
        if index > 0 {
            path.push('/');
        }
        path.push_str(&percent_encode(id));
    }
    path
}

/// Everything but the unreserved characters of RFC 3986 §2.3.
fn percent_encode(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.extend([
                '%',
                char::from(HEX[usize::from(byte >> 4)]),
                char::from(HEX[usize::from(byte & 15)]),
            ]);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_joined_and_encoded() {
        let channels: Vec<String> = ["forum.cnn", "ü b", "100%&?#+", "a-b_c~d"].map(String::from).to_vec();
        let path = publish_path("/pub?id=", &channels);
        assert_eq!(path, "/pub?id=forum.cnn/%C3%BC%20b/100%25%26%3F%23%2B/a-b_c~d");
        assert!(path.parse::<Uri>().is_ok());
    }

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, printed) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://[::1]:81/", "http://[::1]:81"),
            ("http://nginx", "http://nginx:80"),
            ("unix:run/pub.sock", "unix:run/pub.sock"),
        ] {
            assert_eq!(Address::from_text(text).unwrap().to_string(), printed);
        }
        for bad in [
            "",
            "127.0.0.1:8080",
            "https://a",
            "http://",
            "http://a/pub",
            "ftp://a",
            "unix:",
            "http://u@a",
        ] {
            assert!(Address::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_status_has_its_meaning() {
        let metrics = Metrics::default();
        let config = Arc::new(HttpPush {
            nodes: vec![],
            path: "/".into(),
            host: None,
            content_type: HeaderValue::from_static("text/plain"),
            timeout: Duration::from_secs(1),
            connections: 1,
            permanent: vec![507],
            retry: Policy::default(),
        });
        let node = Node {
            sink: "s".into(),
            address: Address::Unix("x".into()),
            host: HeaderValue::from_static("x"),
            metrics: metrics.node("s", "x"),
            failing_since: Mutex::default(),
            failures: AtomicU32::new(0),
            error_logged: Mutex::default(),
            recovered: Notify::new(),
        };
        let client = Client {
            node: Arc::new(node),
            config,
            idle: RefCell::default(),
            slots: Semaphore::new(1),
        };
        let judge = |code: u16, explain: Option<&str>| {
            let status = StatusCode::from_u16(code).unwrap();
            match client.judge(Answer {
                status,
                explain: explain.map(str::to_owned),
                retry_after: None,
            }) {
                Attempt::Accepted => "accepted",
                Attempt::Permanent(_) => "parked",
                Attempt::Retry { .. } => "retried",
            }
        };
        for code in [200, 201, 204] {
            assert_eq!(judge(code, None), "accepted", "{code}");
        }
        for code in [301, 401, 404, 405, 408, 424, 429, 500, 502, 503] {
            assert_eq!(judge(code, None), "retried", "{code}");
        }
        for code in [400, 403, 409, 411, 413, 414, 507] {
            assert_eq!(judge(code, None), "parked", "{code}");
        }
        assert_eq!(judge(403, Some(EXPLAIN_CHANNEL_LIMIT)), "retried");
    }
}
