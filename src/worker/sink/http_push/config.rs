//! A configured sink, and the words it shares with the nodes.

use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;

use super::quorum::Required;
use crate::client::{Address, Tls};
use crate::retry::Policy;

/// Channel information is a few hundred bytes per channel; a larger body is no answer to a publish.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Start of a node's refusal reason if it already has newer events.
pub const STALE: &str = "stale";

/// Was an event refused as stale?
pub fn is_stale(reason: &str) -> bool {
    // After the node's address.
    reason.contains(&format!(": {STALE}: 409"))
}

/// Request and response header with the epoch of a node's memory.
pub const EPOCH: &str = "x-nginx-pushstream-epoch";

#[derive(Clone, Debug)]
pub struct HttpPush {
    /// Where the nodes listen: `http://host:port`, `https://host:port` or `unix:/path`.
    pub nodes: Vec<Address>,
    /// Number of nodes that must have an event.
    pub required: Required,
    /// Path before the channels: `/pub?id=` (default) or `/pub/`.
    pub path: String,
    /// Path of batches: `path` up to its `?`.
    pub batch_path: Uri,
    /// The `Host` header, if it is not the node's own address.
    pub host: Option<HeaderValue>,
    pub content_type: HeaderValue,
    /// For one attempt, connecting included.
    pub timeout: Duration,
    /// `None`: ordered if the source gives ids.
    pub ordered: Option<bool>,
    /// Maximum events per POST; 0 disables batches.
    pub batch: usize,
    /// Maximum connections of one lane to one node, if unordered.
    pub connections: usize,
    /// Further statuses that park an event at once.
    pub permanent: Vec<u16>,
    /// Does a node that already has newer events count as having accepted this one?
    pub accepts_stale: bool,
    pub retry: Policy,
    /// The node's statistics location, to compare its counts with ours.
    pub statistics: Option<String>,
    /// Trusted authorities for `https` nodes; default: the system's.
    pub tls: Option<Tls>,
}

#[cfg(test)]
impl HttpPush {
    pub fn for_tests() -> Self {
        Self {
            nodes: vec![],
            required: Required::All,
            path: "/".into(),
            batch_path: Uri::from_static("/"),
            host: None,
            content_type: HeaderValue::from_static("text/plain"),
            timeout: Duration::from_secs(1),
            ordered: None,
            batch: 0,
            connections: 1,
            permanent: vec![],
            accepts_stale: false,
            retry: Policy::default(),
            statistics: None,
            tls: None,
        }
    }
}
