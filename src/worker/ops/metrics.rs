//! Counters of every component, and their Prometheus text.
//!
//! Names are those dashboards of similar tools know, with the prefix `glue_`. For each stage of each pipeline holds, at
//! every moment: received = sent + discarded + parked + in flight (a split counts one received and n sent).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::credit::Credit;

/// Upper bounds of the histogram buckets in microseconds: what "fast" and "late" mean for a live comment.
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
}

impl Component {
    pub fn receive(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub fn send(&self, events: u64) {
        self.sent.fetch_add(events, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn discard(&self, intentional: bool, reason: &'static str) {
        *self.discarded.lock().entry((intentional, reason)).or_default() += 1;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn park(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
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
    lag_bytes: AtomicU64,
}

/// A source that has not told its lag, or has none.
const UNKNOWN: u64 = u64::MAX;

impl Source {
    /// Bytes that are there and have not been claimed. Relaxed: the figure stands alone.
    pub fn set_lag_bytes(&self, bytes: u64) {
        self.lag_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// One server that a sink publishes to.
#[derive(Debug)]
pub struct Node {
    sink: String,
    node: String,
    up: AtomicBool,
    requests: Mutex<BTreeMap<Code, u64>>,
}

/// How a request ended.
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

    /// Returns what it was before. Relaxed: the flag stands alone.
    pub fn set_up(&self, up: bool) -> bool {
        self.up.swap(up, Ordering::Relaxed)
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
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

/// What a component is called in labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// `source`, `stage` or `sink`.
    pub kind: &'static str,
    /// Its type, such as `http_push`.
    pub component_type: &'static str,
    /// The name the user gave.
    pub id: String,
    /// Empty for sources.
    pub pipeline: String,
}

/// All there is to count. One per running worker.
#[derive(Debug, Default)]
pub struct Metrics {
    components: Mutex<BTreeMap<Labels, Arc<Component>>>,
    sources: Mutex<Vec<Arc<Source>>>,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// From the source's claim to the last required sink.
    pub event_age: Histogram,
    pub parked_total: AtomicU64,
}

impl Metrics {
    pub fn component(&self, labels: Labels) -> Arc<Component> {
        Arc::clone(self.components.lock().entry(labels).or_default())
    }

    pub fn source(&self, name: &str, credit: &Arc<Credit>) -> Arc<Source> {
        let source = Arc::new(Source {
            name: name.to_owned(),
            credit: Arc::clone(credit),
            lag_bytes: AtomicU64::new(UNKNOWN),
        });
        self.sources.lock().push(Arc::clone(&source));
        source
    }

    pub fn node(&self, sink: &str, node: &str) -> Arc<Node> {
        let node = Arc::new(Node {
            sink: sink.to_owned(),
            node: node.to_owned(),
            up: AtomicBool::new(true),
            requests: Mutex::default(),
        });
        self.nodes.lock().push(Arc::clone(&node));
        node
    }

    /// The nodes that do not answer now.
    pub fn nodes_down(&self) -> Vec<String> {
        let nodes = self.nodes.lock();
        nodes
            .iter()
            .filter(|node| !node.is_up())
            .map(|node| format!("{} {}", node.sink, node.node))
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

        out.family("glue_component_received_events_total", "counter");
        for (labels, component) in &components {
            out.sample("", labels, load(&component.received));
        }
        out.family("glue_component_sent_events_total", "counter");
        for (labels, component) in &components {
            out.sample("", labels, load(&component.sent));
        }
        out.family("glue_component_discarded_events_total", "counter");
        for (labels, component) in &components {
            for ((intentional, reason), count) in component.discarded.lock().iter() {
                out.sample(
                    "",
                    &format!("{labels},intentional=\"{intentional}\",reason=\"{reason}\""),
                    *count,
                );
            }
        }
        out.family("glue_component_parked_events_total", "counter");
        for (labels, component) in &components {
            out.sample("", labels, load(&component.parked));
        }
        out.family("glue_component_errors_total", "counter");
        for (labels, component) in &components {
            for (kind, count) in component.errors.lock().iter() {
                out.sample("", &format!("{labels},error_type=\"{kind}\""), *count);
            }
        }
        out.family("glue_component_in_flight", "gauge");
        for (labels, component) in &components {
            out.sample("", labels, component.in_flight.load(Ordering::Relaxed));
        }
        out.family("glue_component_latency_seconds", "histogram");
        for (labels, component) in components.iter().filter(|(_, c)| load(&c.latency.count) > 0) {
            out.histogram(labels, &component.latency);
        }
        out.family("glue_event_age_seconds", "histogram");
        out.histogram("", &self.event_age);
        let sources = self.sources.lock().clone();
        let label = |source: &Source| format!("component_id=\"{}\"", escape(&source.name));
        out.family("glue_source_in_flight_events", "gauge");
        for source in &sources {
            out.sample("", &label(source), source.credit.in_flight());
        }
        out.family("glue_source_in_flight_bytes", "gauge");
        for source in &sources {
            out.sample("", &label(source), source.credit.bytes_in_flight());
        }
        out.family("glue_source_lag_bytes", "gauge");
        for source in sources.iter().filter(|source| load(&source.lag_bytes) != UNKNOWN) {
            out.sample("", &label(source), load(&source.lag_bytes));
        }
        out.family("glue_sink_requests_total", "counter");
        let nodes = self.nodes.lock().clone();
        for node in &nodes {
            for (code, count) in node.requests.lock().iter() {
                out.sample("", &format!("{},code=\"{code}\"", node.labels()), *count);
            }
        }
        out.family("glue_node_up", "gauge");
        for node in &nodes {
            out.sample("", &node.labels(), u8::from(node.is_up()));
        }
        out.family("glue_parked_events_total", "counter");
        out.sample("", "", load(&self.parked_total));
        out.family("glue_build_info", "gauge");
        out.sample("", concat!("release=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
        out.text
    }
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
    fn family(&mut self, name: &'static str, kind: &str) {
        self.name = name;
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
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
        assert!(node.set_up(false));
        metrics.source("posts", &Credit::new(5, 5)).set_lag_bytes(7);

        let text = metrics.render();
        let base = "component_kind=\"stage\",component_type=\"route\",component_id=\"r\",pipeline=\"p\"";
        for line in [
            format!("glue_component_received_events_total{{{base}}} 4"),
            format!("glue_component_sent_events_total{{{base}}} 1"),
            format!("glue_component_discarded_events_total{{{base},intentional=\"true\",reason=\"gate\"}} 1"),
            format!("glue_component_parked_events_total{{{base}}} 1"),
            format!("glue_component_errors_total{{{base},error_type=\"no_channel\"}} 1"),
            format!("glue_component_in_flight{{{base}}} 1"),
            format!("glue_component_latency_seconds_bucket{{{base},le=\"0.0025\"}} 0"),
            format!("glue_component_latency_seconds_bucket{{{base},le=\"0.005\"}} 1"),
            format!("glue_component_latency_seconds_sum{{{base}}} 0.003"),
            "glue_sink_requests_total{component_id=\"nginx\",node=\"http://a\",code=\"200\"} 1".to_owned(),
            "glue_sink_requests_total{component_id=\"nginx\",node=\"http://a\",code=\"timeout\"} 1".to_owned(),
            "glue_node_up{component_id=\"nginx\",node=\"http://a\"} 0".to_owned(),
            "glue_source_in_flight_events{component_id=\"posts\"} 0".to_owned(),
            "glue_source_lag_bytes{component_id=\"posts\"} 7".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(metrics.nodes_down(), ["nginx http://a"]);
    }
}
