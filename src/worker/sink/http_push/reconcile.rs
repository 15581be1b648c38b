//! Compares each node's own message count with ours.
//!
//! With `statistics = "/status"` the node's total of published messages is read every ten seconds and compared with the
//! number it has accepted from here, both counted from the same moment. A higher count at the node: there are other
//! publishers. A lower one: it accepted messages without counting them as new, as with duplicates; any other cause
//! needs attention. The difference is a gauge, `push_stream_worker_reconcile_delta`, and is logged when it stays
//! negative.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::http::response::Parts;
use hyper::{Request, StatusCode};
use serde::Deserialize;

use super::config::{HttpPush, MAX_ANSWER_BYTES};
use super::node::Node;
use crate::client::Pool;

const INTERVAL: Duration = Duration::from_secs(10);
/// A reading may fall between a publish and its count; a difference must persist for this many readings.
const LOOKS: u32 = 3;

#[derive(Deserialize)]
struct Summary {
    published_messages: u64,
    /// Absent from the statistics of a single channel.
    #[serde(rename = "channels")]
    _channels: u64,
}

/// Compares while polled.
pub async fn run(config: Arc<HttpPush>, node: Arc<Node>) {
    let Some(path) = config.statistics.clone() else { return };
    let pool = Pool::new(node.address.clone(), config.tls.clone(), MAX_ANSWER_BYTES);
    let mut books = Books::default();
    let mut is_told = false;
    loop {
        let ours = node.metrics.accepted_messages();
        let read = tokio::time::timeout(config.timeout, ask(&pool, &node, &path)).await;
        let (sink, address) = (&node.sink, &node.address);
        // A node that does not answer at all is reported elsewhere.
        let Ok(Ok((parts, body))) = read else {
            tokio::time::sleep(INTERVAL).await;
            continue;
        };
        match published(&parts, &body) {
            Ok(theirs) => {
                is_told = false;
                let delta = books.compare(theirs, ours);
                node.metrics.set_delta(delta);
                if books.is_worrying() {
                    tracing::warn!(
                        "sink {sink}: {address} counts {} published messages fewer than it accepted",
                        -delta
                    );
                }
            }
            Err(error) if !std::mem::replace(&mut is_told, true) => tracing::warn!(
                "sink {sink}: {address} tells no figures at {path}: {error}; check \"statistics\"; nothing is compared meanwhile"
            ),
            Err(_) => {}
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn ask(pool: &Pool, node: &Node, path: &str) -> Result<(Parts, Vec<u8>), String> {
    let request = Request::get(path)
        .header(HOST, node.host.clone())
        .header("Accept", "application/json");
    let request = request
        .body(Full::<Bytes>::default())
        .map_err(|error| error.to_string())?;
    pool.request(request).await.map_err(|error| error.to_string())
}

/// Total of published messages in a statistics answer.
pub fn published(parts: &Parts, body: &[u8]) -> Result<u64, String> {
    if parts.status != StatusCode::OK {
        return Err(format!("it answers {}", parts.status));
    }
    let summary: Summary = serde_json::from_slice(body).map_err(|_| "no summary of a push stream zone".to_owned())?;
    Ok(summary.published_messages)
}

/// Both counts at the start, and the recent course of the difference.
#[derive(Debug, Default)]
struct Books {
    begin: Option<(u64, u64)>,
    last_theirs: u64,
    last_delta: i64,
    lasting: u32,
}

impl Books {
    fn compare(&mut self, theirs: u64, ours: u64) -> i64 {
        // A restarted node counts from zero.
        if theirs < self.last_theirs {
            self.begin = None;
        }
        self.last_theirs = theirs;
        let (their_begin, our_begin) = *self.begin.get_or_insert((theirs, ours));
        let count = |now: u64, begin: u64| i64::try_from(now - begin).unwrap_or(i64::MAX);
        let delta = count(theirs, their_begin) - count(ours, our_begin);
        self.lasting = if delta == self.last_delta {
            self.lasting.saturating_add(1)
        } else {
            1
        };
        self.last_delta = delta;
        delta
    }

    /// True once for each lasting difference.
    fn is_worrying(&self) -> bool {
        self.last_delta < 0 && self.lasting == LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shortfall_that_stays_is_worrying_and_only_once() {
        let mut books = Books::default();
        assert_eq!(books.compare(1000, 5), 0);
        assert_eq!(books.compare(1010, 15), 0);
        assert_eq!(books.compare(1030, 25), 10, "others publish, too");
        let looks: Vec<bool> = (0..5)
            .map(|_| {
                assert_eq!(books.compare(1030, 40), -5);
                books.is_worrying()
            })
            .collect();
        assert_eq!(looks, [false, false, true, false, false]);
        assert_eq!(books.compare(3, 45), 0, "it was restarted");
    }
}
