//! One nginx node: its state shared by all lanes, and the meaning of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{HeaderValue, RETRY_AFTER};
use hyper::http::response::Parts;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::config::{HttpPush, STALE};
use crate::client::{self, Address};
use crate::event::Event;
use crate::ops::metrics::{Breaker, Code, Node as NodeMetrics};
use crate::retry::Backoff;

/// This many consecutive "not now" answers indicate a node failure; fewer may be about one event.
const FAILURES_OF_A_NODE: u32 = 5;
/// A failure that repeats for each event is logged once in this time.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(10);

const EXPLAIN: &str = "x-nginx-pushstream-explain";
const DUPLICATE: &str = "x-nginx-pushstream-duplicate";
const EXPLAIN_CHANNEL_LIMIT: &str = "Number of channels were exceeded.";

pub struct Node {
    pub sink: String,
    pub address: Address,
    pub host: HeaderValue,
    pub metrics: Arc<NodeMetrics>,
    /// Consecutive failures. An independent counter, so relaxed.
    failures: AtomicU32,
    /// Connections failed: nginx may have been restarted, with an empty memory.
    is_gone: AtomicBool,
    /// Number of its last recovery, counted over all nodes; 0 if it was never down.
    recovery: AtomicU64,
    /// Epoch of its memory when last asked; `None`: not reported.
    epoch: Mutex<Option<HeaderValue>>,
    state: Mutex<State>,
    error_logged: Mutex<Option<Instant>>,
    /// Wakes tasks that wait at an open breaker or for their next attempt.
    changed: Notify,
}

/// The circuit breaker. Open, it admits no request until a probe is due; half open, one probe is under way.
enum State {
    Closed,
    Open {
        since: Instant,
        probe_at: Instant,
        backoff: Backoff,
    },
    HalfOpen {
        since: Instant,
        backoff: Backoff,
    },
}

/// Outcome of one attempt.
#[derive(Clone, Debug)]
pub enum Attempt {
    Accepted,
    Permanent(String),
    Retry { failure: String, after: Option<Duration> },
}

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Batch(String),
}

impl Failure {
    pub fn code(&self) -> Code {
        Code::Failure(match self {
            Self::Client(client::Error::Connect(_)) => "connect",
            Self::Client(client::Error::Http(_)) => "io",
            Self::Client(client::Error::LongAnswer(_)) => "long_answer",
            Self::Timeout(_) => "timeout",
            Self::Batch(_) => "bad_batch_answer",
        })
    }
}

/// The relevant parts of a node's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub explain: Option<String>,
    pub retry_after: Option<Duration>,
    /// Number of channels in which the node already had the event.
    pub duplicates: u64,
}

impl Answer {
    fn of(parts: &Parts) -> Self {
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let retry_after = header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
        Self {
            status: parts.status.as_u16(),
            explain: header(EXPLAIN).map(str::to_owned),
            retry_after: retry_after.map(Duration::from_secs),
            duplicates: header(DUPLICATE).and_then(|text| text.parse().ok()).unwrap_or_default(),
        }
    }
}

impl Node {
    pub fn new(sink: &str, address: &Address, host: HeaderValue, metrics: Arc<NodeMetrics>) -> Self {
        Self {
            sink: sink.to_owned(),
            address: address.clone(),
            host,
            metrics,
            failures: AtomicU32::new(0),
            is_gone: AtomicBool::new(false),
            recovery: AtomicU64::new(0),
            epoch: Mutex::new(None),
            state: Mutex::new(State::Closed),
            error_logged: Mutex::new(None),
            changed: Notify::new(),
        }
    }

    /// Waits while the breaker is open. A caller admitted in the half-open state is the probe and must report its
    /// outcome.
    pub async fn admit(&self) {
        loop {
            let changed = self.changed.notified();
            let wait = {
                let mut state = self.state.lock();
                match *state {
                    State::Closed => return,
                    State::Open {
                        since,
                        probe_at,
                        backoff,
                    } if probe_at <= Instant::now() => {
                        *state = State::HalfOpen { since, backoff };
                        self.metrics.set_breaker(Breaker::HalfOpen);
                        return;
                    }
                    State::Open { probe_at, .. } => Some(probe_at),
                    State::HalfOpen { .. } => None,
                }
            };
            match wait {
                Some(probe_at) => tokio::select! {
                    () = tokio::time::sleep_until(probe_at.into()) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    pub fn is_closed(&self) -> bool {
        matches!(*self.state.lock(), State::Closed)
    }

    /// Waits for a pause, or until another attempt has shown that the node has recovered.
    pub async fn pause(&self, pause: Duration) {
        let changed = self.changed.notified();
        if self.is_closed() {
            tokio::time::sleep(pause).await;
        } else {
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = changed => {} }
        }
    }

    /// Notes that the node accepts connections and answers. After an absence that counts as a recovery, since older
    /// events must come before the waiting ones. The same applies to a node that was never down but has a new memory,
    /// as after a binary upgrade of nginx.
    pub fn arrived(&self, epoch: Option<&HeaderValue>) {
        let before = std::mem::replace(&mut *self.epoch.lock(), epoch.cloned());
        if self.is_gone.load(Ordering::Relaxed) {
            self.succeeded();
        } else if before.is_some() && epoch.is_some() && before.as_ref() != epoch {
            tracing::info!("sink {}: {} has begun with an empty memory", self.sink, self.address);
            self.recovery.store(self.metrics.recovered(), Ordering::Relaxed);
        }
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    /// Will this event's source publish it again to this node, along with events the node may have lost?
    pub fn gets_again(&self, event: &Event) -> bool {
        event.recovery < self.recovery.load(Ordering::Relaxed)
    }

    pub fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.is_gone.store(false, Ordering::Relaxed);
        let before = std::mem::replace(&mut *self.state.lock(), State::Closed);
        if let State::Open { since, .. } | State::HalfOpen { since, .. } = before {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(
                "sink {}: {} answers again after {seconds:.1} s",
                self.sink,
                self.address
            );
            // In this order: a source that refills the node's memory is not ready from the moment of recovery.
            self.recovery.store(self.metrics.recovered(), Ordering::Relaxed);
            self.metrics.set_breaker(Breaker::Closed);
            self.changed.notify_waiters();
        }
    }

    /// Opens the breaker: a failed connection is a node failure.
    fn open(&self, config: &HttpPush, failure: &str) {
        let mut state = self.state.lock();
        let (since, mut backoff) = match *state {
            State::Closed => (Instant::now(), Backoff::new(&config.retry)),
            State::Open { since, backoff, .. } | State::HalfOpen { since, backoff } => (since, backoff),
        };
        if matches!(*state, State::Closed) {
            let (sink, address) = (&self.sink, &self.address);
            tracing::warn!("sink {sink}: {address} fails: {failure}; events wait and are retried");
        }
        // Failures of attempts already under way do not postpone the probe.
        if !matches!(*state, State::Open { .. }) {
            *state = State::Open {
                since,
                probe_at: Instant::now() + backoff.pause(),
                backoff,
            };
            self.metrics.set_breaker(Breaker::Open);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Counts a "not now" answer, or none: the node or the event may be the cause.
    pub fn failed(&self, config: &HttpPush, failure: &str) {
        let in_a_row = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let is_probing = !self.is_closed();
        if in_a_row >= FAILURES_OF_A_NODE || is_probing {
            self.open(config, failure);
        } else if self.may_log() {
            tracing::warn!("sink {}: {}: {failure}; the event is retried", self.sink, self.address);
        }
    }

    pub fn misconfigured(&self, failure: &str) {
        if self.may_log() {
            let (sink, address) = (&self.sink, &self.address);
            let advice = "check path, nodes and the publisher location";
            tracing::error!("sink {sink}: {address} answers {failure}; {advice}; events are retried");
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

    /// Counts a missing answer.
    pub fn unanswered(&self, config: &HttpPush, failure: &Failure) -> Attempt {
        self.metrics.count(failure.code());
        let text = failure.to_string();
        if matches!(failure, Failure::Client(client::Error::Connect(_))) {
            self.is_gone.store(true, Ordering::Relaxed);
            self.open(config, &text);
        } else {
            self.failed(config, &text);
        }
        Attempt::Retry {
            failure: text,
            after: None,
        }
    }

    /// Reads and counts the answer to a request.
    pub fn answered(&self, parts: &Parts) -> Answer {
        let answer = Answer::of(parts);
        self.metrics.count(Code::Status(answer.status));
        answer
    }

    /// Interprets an answer to one event.
    pub fn judge(&self, config: &HttpPush, answer: Answer) -> Attempt {
        self.metrics.count_duplicates(answer.duplicates);
        if (200..=299).contains(&answer.status) {
            self.succeeded();
            return Attempt::Accepted;
        }
        let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = match &answer.explain {
            Some(explain) => format!("{} {explain}", answer.status),
            None => status.to_string(),
        };
        let retry = |text: String| Attempt::Retry {
            failure: text,
            after: answer.retry_after,
        };
        match answer.status {
            408 | 424 | 425 | 429 | 500..=599 if !config.permanent.contains(&answer.status) => {
                self.failed(config, &text);
                return retry(text);
            }
            _ => {}
        }
        // Whatever the verdict on the event, the node answers.
        self.succeeded();
        match answer.status {
            code if config.permanent.contains(&code) => Attempt::Permanent(text),
            403 if answer.explain.as_deref() == Some(EXPLAIN_CHANNEL_LIMIT) => {
                self.misconfigured(&text);
                retry(text)
            }
            401 | 404 | 405 | 407 | 100..=199 | 300..=399 => {
                self.misconfigured(&text);
                retry(text)
            }
            409 if config.accepts_stale => Attempt::Accepted,
            409 => Attempt::Permanent(format!("{STALE}: {text}")),
            _ => Attempt::Permanent(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::metrics::Metrics;
    use crate::retry::Policy;

    fn node() -> (Node, HttpPush) {
        let address = Address::Unix("x".into());
        let metrics = Metrics::default().node("s", "x");
        let config = HttpPush {
            permanent: vec![507],
            retry: Policy {
                initial: Duration::from_millis(300),
                ..Policy::default()
            },
            ..HttpPush::for_tests()
        };
        (Node::new("s", &address, HeaderValue::from_static("x"), metrics), config)
    }

    #[test]
    fn each_status_has_its_meaning() {
        let (node, config) = node();
        let judge = |code: u16, explain: Option<&str>| {
            let answer = Answer {
                status: code,
                explain: explain.map(str::to_owned),
                retry_after: None,
                duplicates: 0,
            };
            match node.judge(&config, answer) {
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

    #[test]
    fn another_memory_counts_as_a_recovery() {
        let (node, _) = node();
        let epoch = |text| HeaderValue::from_static(text);
        let recovery = || node.recovery.load(Ordering::Relaxed);
        node.arrived(None);
        node.arrived(Some(&epoch("1")));
        node.arrived(Some(&epoch("1")));
        assert_eq!(recovery(), 0);
        node.arrived(Some(&epoch("2")));
        assert_eq!(recovery(), 1);
        node.arrived(None);
        assert_eq!(recovery(), 1);
    }

    #[test]
    fn an_open_breaker_lets_one_probe_through_at_a_time() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (node, config) = node();
            let is_held = async |node: &Node| {
                tokio::time::timeout(Duration::from_millis(5), node.admit())
                    .await
                    .is_err()
            };
            assert!(!is_held(&node).await);
            for _ in 0..FAILURES_OF_A_NODE {
                node.failed(&config, "no");
            }
            assert!(is_held(&node).await, "open");
            node.admit().await;
            assert!(is_held(&node).await, "a probe is under way");
            node.failed(&config, "still no");
            assert!(is_held(&node).await, "open again");
            node.admit().await;
            node.succeeded();
            assert!(!is_held(&node).await && !is_held(&node).await, "closed");
        });
    }
}
