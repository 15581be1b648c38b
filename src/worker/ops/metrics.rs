//! Counters of every component, and their Prometheus text.
//!
//! Names follow those of similar tools, with the prefix `push_stream_worker_`. For each stage of each pipeline at every
//! moment: received = sent + discarded + parked + in flight (a split counts one received and n sent).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::tap::Tap;
use crate::clock::Timestamp;
use crate::credit::Credit;

/// Prefix of all names here. nginx's own metrics of its workers (`push_stream_worker_restarts`, `_subscribers`,
/// `_queue_bytes`, `_start_time_seconds` and the stall of its event loop) share it; no name may be in both.
pub const PREFIX: &str = "push_stream_worker_";

/// Upper bounds of the histogram buckets in microseconds, chosen for the latency of live comments.
const BUCKETS_US: [u64; 12] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000, 10_000_000, 60_000_000,
];

/// Counters of one component in one pipeline. All atomics are independent counters, so relaxed is enough.
#[derive(Debug, Default)]
pub struct Component {
    pub received: AtomicU64,
    pub sent: AtomicU64,
    pub in_flight: AtomicI64,
    /// From the start of the component's work on an event to its end; recorded by sinks.
    pub latency: Histogram,
    /// By (intentional, reason).
    discarded: Mutex<BTreeMap<(bool, &'static str), u64>>,
    parked: AtomicU64,
    /// By kind of error.
    errors: Mutex<BTreeMap<&'static str, u64>>,
    /// Events that were sent, dropped or parked.
    done: AtomicU64,
    pub tap: Tap,
}

impl Component {
    pub fn receive(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub fn send(&self, events: u64) {
        self.sent.fetch_add(events, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn discard(&self, intentional: bool, reason: &'static str) {
        *self.discarded.lock().entry((intentional, reason)).or_default() += 1;
        self.done.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn park(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts an event that bypassed the component.
    pub fn miss(&self, reason: &'static str) {
        *self.discarded.lock().entry((false, reason)).or_default() += 1;
    }

    /// Received events minus finished ones and those in flight; 0 if balanced.
    fn imbalance(&self) -> i64 {
        let count = |counter: &AtomicU64| i64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        count(&self.received) - count(&self.done) - self.in_flight.load(Ordering::Relaxed)
    }

    pub fn error(&self, kind: &'static str) {
        *self.errors.lock().entry(kind).or_default() += 1;
    }
}

#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|&bound| us <= bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Gauges of a source.
#[derive(Debug)]
pub struct Source {
    name: String,
    credit: Arc<Credit>,
    is_ready: AtomicBool,
    is_active: AtomicBool,
    lag_bytes: AtomicU64,
    lag_events: AtomicU64,
    /// Unix milliseconds at which the oldest open event was put into the queue.
    oldest: AtomicU64,
    redelivered: AtomicU64,
    lost_claims: AtomicU64,
    missed: AtomicU64,
    /// The node recovery up to which this source has refilled node memory; unknown if it does not refill.
    refilled: AtomicU64,
}

/// The value is not reported, or does not exist for this source.
const UNKNOWN: u64 = u64::MAX;

impl Source {
    /// Sets the number of bytes available and not claimed. Relaxed: the gauge is independent of other data.
    pub fn set_lag_bytes(&self, bytes: u64) {
        self.lag_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Sets the number of events available and not claimed, and when the oldest unfinished one was queued.
    pub fn set_lag(&self, events: u64, oldest: Option<Timestamp>) {
        self.lag_events.store(events, Ordering::Relaxed);
        self.oldest
            .store(oldest.map_or(UNKNOWN, |time| time.0), Ordering::Relaxed);
    }

    /// Is the source connected and caught up with the present?
    pub fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }

    /// Is this worker active, or on standby for another?
    pub fn set_active(&self, is_active: bool) {
        self.is_active.store(is_active, Ordering::Relaxed);
    }

    /// All events that nodes may have lost up to this recovery are published again.
    pub fn set_refilled(&self, recovery: u64) {
        self.refilled.store(recovery, Ordering::Relaxed);
    }

    /// Counts redelivered events.
    pub fn count_redelivered(&self, events: u64) {
        self.redelivered.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts events that another worker had claimed by the time they were finished here.
    pub fn count_lost_claims(&self, events: u64) {
        self.lost_claims.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts events that the queue dropped before they were read.
    pub fn count_missed(&self, events: u64) {
        self.missed.fetch_add(events, Ordering::Relaxed);
    }

    fn oldest_age(&self) -> Duration {
        match self.oldest.load(Ordering::Relaxed) {
            UNKNOWN => Duration::ZERO,
            since => Timestamp(since).elapsed(),
        }
    }
}

/// One server that a sink publishes to.
#[derive(Debug)]
pub struct Node {
    sink: String,
    node: String,
    breaker: AtomicU8,
    takes_batches: AtomicBool,
    requests: Mutex<BTreeMap<Code, u64>>,
    duplicates: AtomicU64,
    missed: AtomicU64,
    accepted: AtomicU64,
    delta: AtomicI64,
    /// The recovery counter of the whole worker.
    recoveries: watch::Sender<u64>,
}

/// State of a node's circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    Closed = 0,
    Open = 1,
    /// A probe is under way.
    HalfOpen = 2,
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    Status(u16),
    /// No answer; the kind of failure.
    Failure(&'static str),
}

impl Node {
    pub fn count(&self, code: Code) {
        *self.requests.lock().entry(code).or_default() += 1;
    }

    /// Counts channels in which the node already had an event.
    pub fn count_duplicates(&self, channels: u64) {
        self.duplicates.fetch_add(channels, Ordering::Relaxed);
    }

    /// Counts an event that other nodes have and this node will not get.
    pub fn miss(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event that the node accepted, for this many channels.
    pub fn accept(&self, channels: u64) {
        self.accepted.fetch_add(channels, Ordering::Relaxed);
    }

    /// Accepted messages, one per channel, as the node counts them.
    pub fn accepted_messages(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Sets how many more messages the node counts than it accepted from here.
    pub fn set_delta(&self, delta: i64) {
        self.delta.store(delta, Ordering::Relaxed);
    }

    pub fn set_batches(&self, takes_batches: bool) {
        self.takes_batches.store(takes_batches, Ordering::Relaxed);
    }

    /// Relaxed, as all here: the state is independent of other data.
    pub fn set_breaker(&self, breaker: Breaker) {
        self.breaker.store(breaker as u8, Ordering::Relaxed);
    }

    /// Counts a recovery of the node. Returns its number.
    pub fn recovered(&self) -> u64 {
        let mut recovery = 0;
        self.recoveries.send_modify(|count| {
            *count += 1;
            recovery = *count;
        });
        recovery
    }

    pub fn is_up(&self) -> bool {
        self.breaker.load(Ordering::Relaxed) == Breaker::Closed as u8
    }

    fn labels(&self) -> String {
        format!(
            "component_id=\"{}\",node=\"{}\"",
            escape(&self.sink),
            escape(&self.node)
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Failure(kind) => kind.fmt(f),
        }
    }
}

/// A component's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// `source`, `stage` or `sink`.
    pub kind: &'static str,
    /// Its type, such as `http_push`.
    pub component_type: &'static str,
    /// The configured name.
    pub id: String,
    /// Empty for sources.
    pub pipeline: String,
}

/// All metrics. One instance per running worker.
#[derive(Debug, Default)]
pub struct Metrics {
    start: Start,
    components: Mutex<BTreeMap<Labels, Arc<Component>>>,
    sources: Mutex<Vec<Arc<Source>>>,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// By sink: number of nodes that must answer.
    needed: Mutex<BTreeMap<String, usize>>,
    recoveries: watch::Sender<u64>,
    /// Failed and successful.
    reloads: [AtomicU64; 2],
    /// Components out of balance at the last check, and by how much.
    unbalanced: Mutex<BTreeMap<Labels, i64>>,
    /// From the source's claim to the last required sink.
    pub event_age: Histogram,
    pub parked_total: AtomicU64,
    /// Watchdog checks that found no silent thread.
    pub watchdog_beats: AtomicU64,
}

impl Metrics {
    pub fn component(&self, labels: Labels) -> Arc<Component> {
        Arc::clone(self.components.lock().entry(labels).or_default())
    }

    /// Adds a source; replaces the gauges of an earlier configuration.
    pub fn source(&self, name: &str, credit: &Arc<Credit>, is_ready: bool) -> Arc<Source> {
        let source = Arc::new(Source {
            name: name.to_owned(),
            credit: Arc::clone(credit),
            is_ready: AtomicBool::new(is_ready),
            is_active: AtomicBool::new(true),
            lag_bytes: AtomicU64::new(UNKNOWN),
            lag_events: AtomicU64::new(UNKNOWN),
            oldest: AtomicU64::new(UNKNOWN),
            redelivered: AtomicU64::new(0),
            lost_claims: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            refilled: AtomicU64::new(UNKNOWN),
        });
        let mut sources = self.sources.lock();
        sources.retain(|one| one.name != name);
        sources.push(Arc::clone(&source));
        source
    }

    /// Adds a node; replaces that of an earlier configuration.
    pub fn node(&self, sink: &str, node: &str) -> Arc<Node> {
        let node = Arc::new(Node {
            sink: sink.to_owned(),
            node: node.to_owned(),
            breaker: AtomicU8::new(Breaker::Closed as u8),
            takes_batches: AtomicBool::new(false),
            requests: Mutex::default(),
            duplicates: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            delta: AtomicI64::new(0),
            recoveries: self.recoveries.clone(),
        });
        let mut nodes = self.nodes.lock();
        nodes.retain(|one| (&one.sink, &one.node) != (&node.sink, &node.node));
        nodes.push(Arc::clone(&node));
        node
    }

    /// `needed` of the last `count` nodes of a sink must answer.
    pub fn require_nodes(&self, sink: &str, needed: usize, count: usize) {
        let mut nodes = self.nodes.lock();
        let of_sink = nodes.iter().filter(|node| node.sink == sink).count();
        let mut gone = of_sink.saturating_sub(count);
        nodes.retain(|node| {
            let is_gone = gone > 0 && node.sink == sink;
            gone -= usize::from(is_gone);
            !is_gone
        });
        self.needed.lock().insert(sink.to_owned(), needed);
    }

    /// Nodes of the configuration started last.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().clone()
    }

    pub fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.subscribe()
    }

    pub fn reloaded(&self, is_good: bool) {
        self.reloads[usize::from(is_good)].fetch_add(1, Ordering::Relaxed);
    }

    /// Nodes that do not answer at present.
    pub fn nodes_down(&self) -> Vec<String> {
        let nodes = self.nodes.lock();
        let down = nodes.iter().filter(|node| !node.is_up());
        down.map(|node| format!("{} {}", node.sink, node.node)).collect()
    }

    /// Reasons why events do not get through at present.
    pub fn not_ready(&self) -> Vec<String> {
        let sources = self.sources.lock();
        let recovery = *self.recoveries.borrow();
        let is_behind = |source: &Source| source.refilled.load(Ordering::Relaxed) < recovery;
        let is_waiting = |source: &Source| !source.is_ready.load(Ordering::Relaxed) || is_behind(source);
        let waiting = sources.iter().filter(|source| is_waiting(source));
        let mut reasons: Vec<String> = waiting
            .map(|source| format!("source {} is not connected, or still catching up", source.name))
            .collect();
        let nodes = self.nodes.lock();
        for (sink, needed) in self.needed.lock().iter() {
            let (up, down): (Vec<_>, Vec<_>) = nodes
                .iter()
                .filter(|node| node.sink == *sink)
                .partition(|node| node.is_up());
            if up.len() < *needed {
                reasons.extend(
                    down.iter()
                        .map(|node| format!("not answering: {} {}", node.sink, node.node)),
                );
            }
        }
        reasons
    }

    /// Sources for which another worker is active.
    pub fn standing_by(&self) -> Vec<String> {
        let sources = self.sources.lock();
        let passive = sources
            .iter()
            .filter(|source| !source.is_active.load(Ordering::Relaxed));
        passive.map(|source| source.name.clone()).collect()
    }

    /// Taps a component's output; `None` if there is no such component.
    pub fn tap(&self, name: &str, raw: bool) -> Option<mpsc::Receiver<String>> {
        let components = self.components.lock();
        let (_, component) = components.iter().find(|(labels, _)| labels.id == name)?;
        Some(component.tap.open(raw))
    }

    pub fn component_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.components.lock().keys().map(|labels| labels.id.clone()).collect();
        names.dedup();
        names
    }

    /// The values that `top` shows.
    pub fn snapshot(&self) -> serde_json::Value {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let known = |counter: &AtomicU64| Some(load(counter)).filter(|&value| value != UNKNOWN);
        let components = self.components.lock();
        let components = components.iter().map(|(labels, component)| {
            json!({
                "kind": labels.kind,
                "type": labels.component_type,
                "name": labels.id,
                "pipeline": labels.pipeline,
                "received": load(&component.received),
                "sent": load(&component.sent),
                "dropped": component.discarded.lock().values().sum::<u64>(),
                "parked": load(&component.parked),
                "in_flight": component.in_flight.load(Ordering::Relaxed),
            })
        });
        let sources = self.sources.lock();
        let sources = sources.iter().map(|source| {
            json!({
                "name": source.name,
                "ready": source.is_ready.load(Ordering::Relaxed),
                "active": source.is_active.load(Ordering::Relaxed),
                "in_flight": source.credit.in_flight(),
                "in_flight_bytes": source.credit.bytes_in_flight(),
                "lag": known(&source.lag_events),
                "oldest_seconds": source.oldest_age().as_secs_f64(),
            })
        });
        let nodes = self.nodes.lock();
        let nodes = nodes.iter().map(|node| {
            let state = ["closed", "open", "half-open"][usize::from(node.breaker.load(Ordering::Relaxed)).min(2)];
            let requests: u64 = node.requests.lock().values().sum();
            json!({
                "sink": node.sink,
                "node": node.node,
                "breaker": state,
                "batches": node.takes_batches.load(Ordering::Relaxed),
                "requests": requests,
                "missed": load(&node.missed),
            })
        });
        json!({
            "uptime_seconds": self.start.0.elapsed().as_secs(),
            "components": components.collect::<Vec<_>>(),
            "sources": sources.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
            "parked": load(&self.parked_total),
        })
    }

    /// Sums for alerts.
    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let components = self.components.lock();
        let sources = self.sources.lock();
        let received = components
            .iter()
            .filter(|(labels, _)| labels.kind == "source")
            .map(|(_, c)| load(&c.received));
        let failures = components
            .values()
            .map(|component| component.errors.lock().values().sum::<u64>());
        let lags = sources
            .iter()
            .map(|source| load(&source.lag_events))
            .filter(|&lag| lag != UNKNOWN);
        Totals {
            events: received.sum(),
            failed: failures.sum::<u64>() + load(&self.parked_total),
            parked: load(&self.parked_total),
            lag: lags.sum(),
            oldest: sources
                .iter()
                .map(|source| source.oldest_age())
                .max()
                .unwrap_or_default(),
        }
    }

    /// Components out of balance by the same amount as at the last call. A single reading may fall between two
    /// counters.
    pub fn check_invariant(&self) -> Vec<String> {
        let components = self.components.lock();
        let off = components
            .iter()
            .map(|(labels, component)| (labels.clone(), component.imbalance()));
        let now: BTreeMap<Labels, i64> = off.filter(|(_, delta)| *delta != 0).collect();
        let before = std::mem::replace(&mut *self.unbalanced.lock(), now.clone());
        let lasting = now.iter().filter(|(labels, delta)| before.get(labels) == Some(delta));
        lasting
            .map(|(labels, delta)| format!("{} {} ({delta:+})", labels.kind, labels.id))
            .collect()
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let mut out = Text::default();
        let components: Vec<_> = self
            .components
            .lock()
            .iter()
            .map(|(l, c)| (label_text(l), Arc::clone(c)))
            .collect();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);

        out.family(
            "push_stream_worker_component_received_events_total",
            "counter",
            "Events that a source, stage or sink took in, per pipeline.",
        );
        for (labels, component) in &components {
            out.sample("", labels, load(&component.received));
        }
        out.family(
            "push_stream_worker_component_sent_events_total",
            "counter",
            "Events that went on from here: to the next component, or accepted by the sink.",
        );
        for (labels, component) in &components {
            out.sample("", labels, load(&component.sent));
        }
        out.family(
            "push_stream_worker_component_discarded_events_total",
            "counter",
            "Events that ended here, by reason; intentional is a filter, not a fault.",
        );
        for (labels, component) in &components {
            for ((intentional, reason), count) in component.discarded.lock().iter() {
                out.sample(
                    "",
                    &format!("{labels},intentional=\"{intentional}\",reason=\"{reason}\""),
                    *count,
                );
            }
        }
        out.family(
            "push_stream_worker_component_parked_events_total",
            "counter",
            "Events that were parked here as dead letters.",
        );
        for (labels, component) in &components {
            out.sample("", labels, load(&component.parked));
        }
        out.family(
            "push_stream_worker_component_errors_total",
            "counter",
            "Errors that did not end an event, by kind.",
        );
        for (labels, component) in &components {
            for (kind, count) in component.errors.lock().iter() {
                out.sample("", &format!("{labels},error_type=\"{kind}\""), *count);
            }
        }
        out.family(
            "push_stream_worker_component_in_flight",
            "gauge",
            "Events that are being worked on here.",
        );
        for (labels, component) in &components {
            out.sample("", labels, component.in_flight.load(Ordering::Relaxed));
        }
        out.family(
            "push_stream_worker_component_latency_seconds",
            "histogram",
            "Time from the hand-over of an event to a sink until the sink settled it.",
        );
        for (labels, component) in components.iter().filter(|(_, c)| load(&c.latency.count) > 0) {
            out.histogram(labels, &component.latency);
        }
        out.family(
            "push_stream_worker_event_age_seconds",
            "histogram",
            "Time from the receipt of an event until every required sink accepted it.",
        );
        out.histogram("", &self.event_age);
        let sources = self.sources.lock().clone();
        let label = |source: &Source| format!("component_id=\"{}\"", escape(&source.name));
        out.family(
            "push_stream_worker_source_in_flight_events",
            "gauge",
            "Events claimed and not yet durably acknowledged.",
        );
        for source in &sources {
            out.sample("", &label(source), source.credit.in_flight());
        }
        out.family(
            "push_stream_worker_source_in_flight_bytes",
            "gauge",
            "Raw size of events claimed and not yet durably acknowledged.",
        );
        for source in &sources {
            out.sample("", &label(source), source.credit.bytes_in_flight());
        }
        out.family(
            "push_stream_worker_source_lag_bytes",
            "gauge",
            "Bytes that are there and not yet claimed.",
        );
        for source in sources.iter().filter(|source| load(&source.lag_bytes) != UNKNOWN) {
            out.sample("", &label(source), load(&source.lag_bytes));
        }
        out.family(
            "push_stream_worker_source_lag_events",
            "gauge",
            "Events that are there and not yet claimed.",
        );
        for source in sources.iter().filter(|source| load(&source.lag_events) != UNKNOWN) {
            out.sample("", &label(source), load(&source.lag_events));
        }
        out.family(
            "push_stream_worker_source_oldest_seconds",
            "gauge",
            "Age of the oldest event that is not yet done.",
        );
        for source in sources.iter().filter(|source| load(&source.lag_events) != UNKNOWN) {
            out.sample("", &label(source), source.oldest_age().as_secs_f64());
        }
        out.family(
            "push_stream_worker_source_ready",
            "gauge",
            "1 if the source is connected and up to date, else 0.",
        );
        for source in &sources {
            out.sample("", &label(source), u8::from(source.is_ready.load(Ordering::Relaxed)));
        }
        out.family(
            "push_stream_worker_source_active",
            "gauge",
            "1 if this worker does the source's work, 0 if it stands by for another.",
        );
        for source in &sources {
            out.sample("", &label(source), u8::from(source.is_active.load(Ordering::Relaxed)));
        }
        out.family(
            "push_stream_worker_source_redelivered_total",
            "counter",
            "Events that came a second time.",
        );
        for source in &sources {
            out.sample("", &label(source), load(&source.redelivered));
        }
        out.family(
            "push_stream_worker_lost_lease_total",
            "counter",
            "Events that belonged to another worker by the time they were done here.",
        );
        for source in &sources {
            out.sample("", &label(source), load(&source.lost_claims));
        }
        out.family(
            "push_stream_worker_source_missed_total",
            "counter",
            "Events that the queue trimmed away before they were read.",
        );
        for source in &sources {
            out.sample("", &label(source), load(&source.missed));
        }
        out.family(
            "push_stream_worker_sink_requests_total",
            "counter",
            "Publish requests to a node, whatever number of events each held, by status or kind of failure.",
        );
        let nodes = self.nodes.lock().clone();
        for node in &nodes {
            for (code, count) in node.requests.lock().iter() {
                out.sample("", &format!("{},code=\"{code}\"", node.labels()), *count);
            }
        }
        out.family("push_stream_worker_node_up", "gauge", "1 if the node answers, else 0.");
        for node in &nodes {
            out.sample("", &node.labels(), u8::from(node.is_up()));
        }
        out.family(
            "push_stream_worker_node_breaker_state",
            "gauge",
            "Circuit breaker of the node: 0 closed, 1 open, 2 half open.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), node.breaker.load(Ordering::Relaxed));
        }
        out.family(
            "push_stream_worker_node_takes_batches",
            "gauge",
            "1 if the node offers batch publishing, else 0.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), u8::from(node.takes_batches.load(Ordering::Relaxed)));
        }
        out.family(
            "push_stream_worker_sink_duplicates_total",
            "counter",
            "Messages that the node had already, per channel.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), load(&node.duplicates));
        }
        out.family(
            "push_stream_worker_node_accepted_messages_total",
            "counter",
            "Messages that the node accepted, per channel.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), node.accepted_messages());
        }
        out.family(
            "push_stream_worker_reconcile_delta",
            "gauge",
            "Messages that the node counts minus those that it accepted from here.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), node.delta.load(Ordering::Relaxed));
        }
        out.family(
            "push_stream_worker_node_missed_events_total",
            "counter",
            "Events that other nodes have and this node will not get.",
        );
        for node in &nodes {
            out.sample("", &node.labels(), load(&node.missed));
        }
        out.family(
            "push_stream_worker_reload_total",
            "counter",
            "Reloads of the configuration, by result.",
        );
        for (result, count) in ["failed", "ok"].iter().zip(&self.reloads) {
            out.sample("", &format!("result=\"{result}\""), load(count));
        }
        out.family(
            "push_stream_worker_uptime_seconds",
            "gauge",
            "Time since the worker started.",
        );
        out.sample("", "", self.start.0.elapsed().as_secs());
        out.family(
            "push_stream_worker_parked_events_total",
            "counter",
            "Events that were parked as dead letters.",
        );
        out.sample("", "", load(&self.parked_total));
        out.family(
            "push_stream_worker_watchdog_beats_total",
            "counter",
            "Checks of all threads that found none of them silent.",
        );
        out.sample("", "", load(&self.watchdog_beats));
        out.family(
            "push_stream_worker_build_info",
            "gauge",
            "1, labelled with the release.",
        );
        out.sample("", concat!("release=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
        out.text
    }
}

/// Start time of the worker.
#[derive(Debug)]
struct Start(Instant);

impl Default for Start {
    fn default() -> Self {
        Self(Instant::now())
    }
}

/// Sums over all components and sources.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    pub events: u64,
    pub failed: u64,
    pub parked: u64,
    pub lag: u64,
    pub oldest: Duration,
}

fn label_text(labels: &Labels) -> String {
    let Labels {
        kind,
        component_type,
        id,
        pipeline,
    } = labels;
    let (id, pipeline) = (escape(id), escape(pipeline));
    format!(
        "component_kind=\"{kind}\",component_type=\"{component_type}\",component_id=\"{id}\",pipeline=\"{pipeline}\""
    )
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[derive(Default)]
struct Text {
    text: String,
    name: &'static str,
}

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        let name = self.name;
        let _ = match labels {
            "" => writeln!(self.text, "{name}{suffix} {value}"),
            labels => writeln!(self.text, "{name}{suffix}{{{labels}}} {value}"),
        };
    }

    fn histogram(&mut self, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, bucket) in BUCKETS_US.iter().zip(&histogram.buckets) {
            below += bucket.load(Ordering::Relaxed);
            self.sample("_bucket", &format!("{labels}{comma}le=\"{}\"", seconds(*bound)), below);
        }
        let count = histogram.count.load(Ordering::Relaxed).max(below);
        self.sample("_bucket", &format!("{labels}{comma}le=\"+Inf\""), count);
        self.sample("_sum", labels, seconds(histogram.sum_us.load(Ordering::Relaxed)));
        self.sample("_count", labels, count);
    }
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_valid_and_names_every_component() {
        let metrics = Metrics::default();
        let labels = Labels {
            kind: "stage",
            component_type: "route",
            id: "r".into(),
            pipeline: "p".into(),
        };
        let component = metrics.component(labels.clone());
        for _ in 0..3 {
            component.receive();
        }
        component.send(1);
        component.discard(true, "gate");
        component.park();
        component.error("no_channel");
        component.latency.observe(Duration::from_millis(3));
        metrics.component(labels).receive();
        let node = metrics.node("nginx", "http://a");
        node.count(Code::Status(200));
        node.count(Code::Failure("timeout"));
        node.set_breaker(Breaker::Open);
        metrics.source("posts", &Credit::new(5, 5), true).set_lag_bytes(7);

        let text = metrics.render();
        let base = "component_kind=\"stage\",component_type=\"route\",component_id=\"r\",pipeline=\"p\"";
        for line in [
            format!("push_stream_worker_component_received_events_total{{{base}}} 4"),
            format!("push_stream_worker_component_sent_events_total{{{base}}} 1"),
            format!(
                "push_stream_worker_component_discarded_events_total{{{base},intentional=\"true\",reason=\"gate\"}} 1"
            ),
            format!("push_stream_worker_component_parked_events_total{{{base}}} 1"),
            format!("push_stream_worker_component_errors_total{{{base},error_type=\"no_channel\"}} 1"),
            format!("push_stream_worker_component_in_flight{{{base}}} 1"),
            format!("push_stream_worker_component_latency_seconds_bucket{{{base},le=\"0.0025\"}} 0"),
            format!("push_stream_worker_component_latency_seconds_bucket{{{base},le=\"0.005\"}} 1"),
            format!("push_stream_worker_component_latency_seconds_sum{{{base}}} 0.003"),
            "push_stream_worker_sink_requests_total{component_id=\"nginx\",node=\"http://a\",code=\"200\"} 1"
                .to_owned(),
            "push_stream_worker_sink_requests_total{component_id=\"nginx\",node=\"http://a\",code=\"timeout\"} 1"
                .to_owned(),
            "push_stream_worker_node_up{component_id=\"nginx\",node=\"http://a\"} 0".to_owned(),
            "push_stream_worker_source_in_flight_events{component_id=\"posts\"} 0".to_owned(),
            "push_stream_worker_source_lag_bytes{component_id=\"posts\"} 7".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(metrics.nodes_down(), ["nginx http://a"]);
        metrics.require_nodes("nginx", 1, 1);
        assert_eq!(metrics.not_ready(), ["not answering: nginx http://a"]);
    }

    #[test]
    fn a_count_that_does_not_add_up_is_found_at_the_second_look() {
        let metrics = Metrics::default();
        let labels = Labels {
            kind: "stage",
            component_type: "route",
            id: "r".into(),
            pipeline: "p".into(),
        };
        let component = metrics.component(labels);
        component.receive();
        component.receive();
        component.send(5);
        assert!(metrics.check_invariant().is_empty() && metrics.check_invariant().is_empty());
        component.done.fetch_add(1, Ordering::Relaxed);
        assert!(metrics.check_invariant().is_empty());
        assert_eq!(metrics.check_invariant(), ["stage r (-1)"]);
    }
}
