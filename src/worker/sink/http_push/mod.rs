//! `http_push`: publishes to nginx by POST.
//!
//! ```toml
//! nginx = { type = "http_push", nodes = ["http://127.0.0.1:8080", "unix:/run/nginx/pub.sock"], path = "/pub?id=" }
//! ```
//!
//! An event goes to every node, with all channels in one POST; `Event-Id` is the same in every attempt, so that a node
//! can drop what it has already stored. It is accepted when `required` nodes (`"all"`, default) answered 2xx; these are
//! not sent it again. Meaning of answers:
//!
//! | answer | meaning |
//! |---|---|
//! | 2xx | accepted |
//! | 408, 424, 425, 429, 5xx, no answer | retried |
//! | 403 `Number of channels were exceeded.` | retried: room comes back |
//! | 401, 404, 405, 407, 1xx, 3xx | the configuration is wrong somewhere: logged as error, retried |
//! | 409 | the node has newer events already: parked as stale, or taken as accepted (`on_stale`) |
//! | any other 4xx | parked |
//!
//! `permanent` adds statuses to be parked at once.
//!
//! * `ordered = true` (default if the source gives ids): each node gets events in the order of the source, over all
//!   lanes and channels, one POST at a time ([`ordered`]). Up to `batch` events share a POST with a node that offers
//!   batches; an older node, or the C module, gets one POST each.
//! * `ordered = false`: each lane publishes on up to `connections` connections per node, in order per key
//!   ([`unordered`]); where the node offers batches, on two, and events waiting meanwhile share a POST.
//!
//! With `statistics` each node's own count is compared with ours ([`reconcile`]). A failed node gets only one probe at
//! a time ([`node`]). While it is down, events wait; with fewer nodes required they continue, and events more than a
//! few thousand behind miss that node, which is counted. An ordered sink detects a lost node by itself, when its
//! connection ends; a recovered node first gets what its source publishes again (`history`), then the waiting events: a
//! channel would refuse ids older than its newest event.

mod batch;
mod config;
mod examine;
mod node;
mod ordered;
mod quorum;
mod reconcile;
mod request;
mod unordered;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;

use self::config::HttpPush;
pub use self::config::is_stale;
use self::node::Node;
use self::ordered::{OrderedPublisher, Parcel};
use self::quorum::{Quorum, Required};
use super::{Delivery, DirectSink, Kind, LaneSink, RunningSink, Scene, Sink, Verdict};
use crate::client::{Address, Tls};
use crate::config::endpoint::Endpoint;
use crate::config::section::{Located, Section};
use crate::engine::sequencer::{Reservation, Sequencer};
use crate::engine::settlement::{Reply, SinkAck};
use crate::event::{Event, OrderedId};
use crate::ops::finding::{Examination, Operation};
use crate::retry::Policy;

pub const KIND: Kind = Kind {
    name: "http_push",
    about: "publishes to nginx push stream nodes by POST",
    read,
};

/// Enough for one lane to keep an nginx worker busy; each costs a socket on both ends.
const DEFAULT_CONNECTIONS: usize = 16;
fn read(section: &Section<'_>) -> Option<Arc<dyn Sink>> {
    let located = section.required::<Vec<Located<Address>>>("nodes");
    if located.as_ref().is_some_and(Vec::is_empty) {
        section.complain_at("nodes", "needs at least one node");
    }
    for (index, node) in located.iter().flatten().enumerate() {
        if located.iter().flatten().take(index).any(|one| one.value == node.value) {
            section.complain_about(node, format!("\"{}\" is there twice", node.value));
        }
    }
    let nodes: Option<Vec<Address>> = located.map(|nodes| nodes.into_iter().map(|node| node.value).collect());
    let required = section.or("required", Required::All);
    let count = nodes.as_ref().map_or(1, Vec::len);
    if !(1..=count).contains(&required.of(count)) {
        section.complain_at("required", format!("must be from 1 to {count}, the number of nodes"));
    }
    let path = section.or("path", "/pub?id=".to_owned());
    let batch_path = path.split('?').next().unwrap_or_default().parse::<Uri>();
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
    let ordered = section.optional("ordered");
    let batch = section.or("batch", batch::DEFAULT_LINES);
    let connections = section.or("connections", DEFAULT_CONNECTIONS);
    if connections == 0 {
        section.complain_at("connections", "must be at least 1");
    }
    if ordered == Some(true) && section.has("connections") {
        section.complain_at("connections", "belongs to ordered = false; an ordered node has one");
    }
    if ordered == Some(false) && section.has("statistics") {
        section.complain_at("statistics", "belongs to ordered = true");
    }
    let permanent = section.or("permanent", Vec::<u16>::new());
    for status in permanent.iter().filter(|status| !(400..600).contains(*status)) {
        section.complain_at("permanent", format!("{status} is not an error status"));
    }
    let accepts_stale = section.choice("on_stale", &[("park", false), ("accept", true)], false);
    let retry = section.table("retry", Policy::read).unwrap_or_default();
    let statistics = section.optional::<String>("statistics");
    if statistics
        .as_ref()
        .is_some_and(|path| !path.starts_with('/') || path.parse::<Uri>().is_err())
    {
        section.complain_at("statistics", "is not a path (example: \"/status\")");
    }
    let tls = section
        .optional::<PathBuf>("ca_file")
        .and_then(|file| match Tls::of_file(&file) {
            Ok(tls) => Some(tls),
            Err(error) => {
                section.complain_at("ca_file", error);
                None
            }
        });
    let content_type = content_type?;
    Some(Arc::new(HttpPush {
        nodes: nodes?,
        required,
        path,
        batch_path: batch_path.ok()?,
        host,
        content_type,
        timeout,
        ordered,
        batch,
        connections,
        permanent,
        accepts_stale,
        retry,
        statistics,
        tls,
    }))
}

impl Sink for HttpPush {
    fn needs_channels(&self) -> bool {
        true
    }

    fn needs_ids(&self) -> bool {
        self.ordered == Some(true)
    }

    fn writes(&self) -> Vec<Endpoint> {
        self.nodes.iter().cloned().map(Endpoint::Server).collect()
    }

    fn examine(&self) -> Option<Examination<'_>> {
        Some(Box::pin(self.look()))
    }

    fn newest_id<'a>(&'a self, channel: &'a str) -> Option<Operation<'a, Option<OrderedId>>> {
        Some(Box::pin(async move { Ok(self.ask_newest_id(channel).await) }))
    }

    fn refusing_stale(&self) -> Option<Arc<dyn Sink>> {
        Some(Arc::new(Self {
            accepts_stale: false,
            ..self.clone()
        }))
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>> {
        let needed = self.required.of(self.nodes.len());
        let nodes = self.nodes.iter().map(|address| {
            let own = HeaderValue::from_str(&address.host_header()).map_err(io::Error::other)?;
            let metrics = scene.metrics.node(scene.name, &address.to_string());
            Ok(Arc::new(Node::new(
                scene.name,
                address,
                self.host.clone().unwrap_or(own),
                metrics,
            )))
        });
        let nodes = nodes.collect::<io::Result<Vec<_>>>()?;
        scene.metrics.require_nodes(scene.name, needed, nodes.len());
        let config = Arc::new(self.clone());
        if !self.ordered.unwrap_or(scene.has_ids) {
            return Ok(Arc::new(Unordered { config, nodes }));
        }
        let sequencer = Sequencer::new(nodes.len());
        for (place, node) in nodes.iter().enumerate() {
            let publisher = OrderedPublisher {
                config: Arc::clone(&config),
                node: Arc::clone(node),
                sequencer: Arc::clone(&sequencer),
                place,
            };
            scene.run(format!("push-{}-{place}", scene.name), || publisher.run());
        }
        Ok(Arc::new(Ordered {
            sequencer,
            nodes: nodes.len(),
            needed,
            has_batches: self.batch > 0,
        }))
    }
}

struct Unordered {
    config: Arc<HttpPush>,
    nodes: Vec<Arc<Node>>,
}

impl RunningSink for Unordered {
    fn open(&self) -> Rc<dyn LaneSink> {
        Rc::new(unordered::Lane::new(&self.config, &self.nodes))
    }
}

struct Ordered {
    sequencer: Arc<Sequencer<Arc<Parcel>>>,
    nodes: usize,
    needed: usize,
    has_batches: bool,
}

impl RunningSink for Ordered {
    fn open(&self) -> Rc<dyn LaneSink> {
        Rc::new(OrderedLane {
            sequencer: Arc::clone(&self.sequencer),
            nodes: self.nodes,
            needed: self.needed,
            has_batches: self.has_batches,
        })
    }

    fn keeps_order(&self) -> bool {
        true
    }

    fn reserve(&self) -> Option<Reservation> {
        Some(self.sequencer.reserve())
    }
}

impl Drop for Ordered {
    fn drop(&mut self) {
        self.sequencer.close();
    }
}

struct OrderedLane {
    sequencer: Arc<Sequencer<Arc<Parcel>>>,
    nodes: usize,
    needed: usize,
    has_batches: bool,
}

impl LaneSink for OrderedLane {
    fn deliver(&self, event: Arc<Event>, reservation: Option<Reservation>) -> Delivery {
        let (quorum, verdict) = Quorum::awaited(self.nodes, self.needed);
        self.put(event, reservation, quorum);
        Box::pin(async move { verdict.await.unwrap_or(Verdict::Released) })
    }

    fn direct(&self) -> Option<&dyn DirectSink> {
        Some(self)
    }
}

impl DirectSink for OrderedLane {
    fn hand_over(&self, event: Arc<Event>, reservation: Option<Reservation>, sink_ack: SinkAck) {
        self.put(
            event,
            reservation,
            Quorum::new(self.nodes, self.needed, Reply::SinkAck(sink_ack)),
        );
    }
}

impl OrderedLane {
    fn put(&self, event: Arc<Event>, reservation: Option<Reservation>, quorum: Quorum) {
        let parcel = Parcel::new(event, quorum);
        if self.has_batches {
            // Render it here, where lanes work in parallel, and not in the single publisher.
            parcel.line();
        }
        // An event without a reservation was never announced; it is appended at the end.
        let reservation = reservation.unwrap_or_else(|| self.sequencer.reserve());
        self.sequencer.put(&reservation, parcel);
    }
}
