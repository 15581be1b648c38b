//! Batches: many events in one POST to nodes that offer it by `Accept-Post: application/x-ndjson` in their answer to
//! OPTIONS.
//!
//! One line per event, `{"channels":[…],"text":"…","id":"…","type":"…"}` (`base64` instead of `text` for what is not UTF-8). The node
//! answers with a verdict per line, or, as asked by `Prefer: return=minimal`, with the count and the verdicts of the lines that failed.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE as CONTENT_TYPE_HEADER, HOST, HeaderName, HeaderValue};
use hyper::http::response::Parts;
use hyper::{Method, Request};
use serde::{Deserialize, Serialize};

use super::config::{EPOCH, HttpPush};
use super::node::{Answer, Attempt, Failure, Node};
use crate::event::Event;

pub const CONTENT_TYPE: &str = "application/x-ndjson";
/// Maximum lines per POST; a node takes 1000 by default.
pub const DEFAULT_LINES: usize = 256;
/// Half of nginx's default `client_max_body_size`. A longer line is sent alone.
pub const MAX_BYTES: usize = 512 * 1024;

const ACCEPT_POST: &str = "accept-post";
const PREFER: HeaderName = HeaderName::from_static("prefer");
const RETURN_MINIMAL: HeaderValue = HeaderValue::from_static("return=minimal");

/// The OPTIONS request for a node's capabilities and epoch.
pub fn question(config: &HttpPush, host: &HeaderValue) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = Method::OPTIONS;
    *request.uri_mut() = config.batch_path.clone();
    request.headers_mut().insert(HOST, host.clone());
    request.headers_mut().insert(EPOCH, HeaderValue::from_static("?"));
    request
}

/// Does this answer offer batches?
pub fn is_offered(answer: &Parts) -> bool {
    let offers = answer.headers.get_all(ACCEPT_POST).iter();
    let mut kinds = offers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case(CONTENT_TYPE))
}

/// Number of lines from the head that fit into one POST.
pub fn fitting<'a>(lines: impl Iterator<Item = &'a Bytes>, max_lines: usize) -> usize {
    let mut bytes = 0;
    let fits = |line: &&Bytes| {
        bytes += line.len();
        bytes <= MAX_BYTES
    };
    lines.take(max_lines).take_while(fits).count()
}

/// The POST of these lines.
pub fn request(config: &HttpPush, node: &Node, lines: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(lines)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = config.batch_path.clone();
    let headers = request.headers_mut();
    headers.insert(HOST, node.host.clone());
    headers.insert(CONTENT_TYPE_HEADER, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(PREFER, RETURN_MINIMAL);
    request
}

/// A node's answer to a batch.
pub enum Outcome {
    /// One for each line.
    Verdicts(Vec<Attempt>),
    /// The same for all.
    Whole(Attempt),
    /// The same for all, and the node must be asked again whether it takes batches.
    Refused(Attempt),
    /// Send fewer lines next time; a single line that is still too large is sent as a plain POST and gets its own
    /// verdict.
    TooLarge,
    /// The node no longer takes batches.
    NotTaken,
}

/// Interprets the answer to a batch of `count` lines.
pub fn outcome(config: &HttpPush, node: &Node, parts: &Parts, body: &[u8], count: usize) -> Result<Outcome, Failure> {
    let answer = node.answered(parts);
    match answer.status {
        200 => {}
        413 => {
            return Ok(Outcome::TooLarge);
        }
        // A location without batch support misses the channel, which is in each line instead.
        400 | 415 => {
            return Ok(Outcome::NotTaken);
        }
        // The error is not about the first event.
        400..=499 => {
            let text = format!("{} {}", answer.status, answer.explain.unwrap_or_default());
            node.misconfigured(&text);
            return Ok(Outcome::Refused(Attempt::Retry {
                failure: text,
                after: answer.retry_after,
            }));
        }
        _ => return Ok(Outcome::Whole(node.judge(config, answer))),
    }
    let is_minimal = parts
        .headers
        .get("preference-applied")
        .is_some_and(|value| *value == RETURN_MINIMAL);
    let judge = |line: LineVerdict| {
        let answer = Answer {
            status: line.status,
            explain: line.explain,
            retry_after: None,
            duplicates: 0,
        };
        node.judge(config, answer)
    };
    if is_minimal && is_all_taken(body, count) {
        node.succeeded();
        return Ok(Outcome::Verdicts(vec![Attempt::Accepted; count]));
    }
    let lines = verdicts(body, is_minimal, count).map_err(Failure::Batch)?;
    Ok(Outcome::Verdicts(lines.into_iter().map(judge).collect()))
}

#[derive(Serialize)]
struct Line<'a> {
    channels: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
}

/// The event as a line, with its line end.
pub fn line(event: &Event) -> Bytes {
    let body = event.payload();
    let text = std::str::from_utf8(&body).ok();
    let line = Line {
        channels: &event.channels,
        text,
        base64: text.is_none().then(|| BASE64_STANDARD.encode(&body)),
        id: event.id.is_known().then(|| event.id.to_string()),
        kind: event.event_type.as_deref(),
    };
    let mut out = Vec::with_capacity(body.len() + body.len() / 8 + 128);
    // Strings and lists of strings always serialize.
    let _ = serde_json::to_writer(&mut out, &line);
    out.push(b'\n');
    out.into()
}

/// A node's verdict on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineVerdict {
    pub status: u16,
    pub explain: Option<String>,
}

#[derive(Deserialize)]
struct Count {
    lines: usize,
    ok: usize,
    failed: usize,
}

#[derive(Deserialize)]
struct Verdict {
    line: usize,
    status: u16,
    explain: Option<String>,
}

/// Does a minimal answer report no failure? Then the lines need no individual verdicts.
fn is_all_taken(body: &[u8], lines: usize) -> bool {
    serde_json::from_slice(body)
        .is_ok_and(|count: Count| count.lines == lines && count.ok == lines && count.failed == 0)
}

/// The verdicts on `lines` lines, in their order.
fn verdicts(body: &[u8], is_minimal: bool, lines: usize) -> Result<Vec<LineVerdict>, String> {
    let mut answer = body
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    let bad = |error: serde_json::Error| format!("the answer to a batch is not what it should be: {error}");
    if is_minimal {
        let count: Count = serde_json::from_slice(answer.next().unwrap_or_default()).map_err(bad)?;
        if count.lines != lines || count.ok + count.failed != lines {
            return Err(format!("the node counts {} lines of {lines}", count.lines));
        }
    }
    let mut failed: BTreeMap<usize, Verdict> = BTreeMap::new();
    for line in answer {
        let verdict: Verdict = serde_json::from_slice(line).map_err(bad)?;
        failed.insert(verdict.line, verdict);
    }
    let verdict = |number| match failed.remove(&number) {
        Some(Verdict { status, explain, .. }) => Ok(LineVerdict { status, explain }),
        None if is_minimal => Ok(LineVerdict {
            status: 200,
            explain: None,
        }),
        None => Err(format!("the node says nothing on line {number}")),
    };
    (1..=lines).map(verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;

    fn event(raw: &'static [u8]) -> Event {
        let mut event = Event::new(EventId::new(1, 2), Timestamp(0), raw.into());
        event.channels = vec!["a".into(), "ü\"".into()];
        event
    }

    #[test]
    fn a_line_says_all_and_is_one_line() {
        let mut event = event(b"two\nlines");
        event.event_type = Some("new".into());
        let expected = "{\"channels\":[\"a\",\"ü\\\"\"],\"text\":\"two\\nlines\",\"id\":\"1-2\",\"type\":\"new\"}\n";
        assert_eq!(line(&event), expected);
        event.id = EventId::Unknown;
        assert!(!line(&event).windows(4).any(|four| four == b"\"id\""));
    }

    #[test]
    fn what_is_no_text_goes_as_base64() {
        let line = line(&event(b"\xff\x00\x10"));
        assert!(std::str::from_utf8(&line).unwrap().contains("\"base64\":\"/wAQ\""));
    }

    #[test]
    fn verdicts_are_read_in_both_forms_and_must_be_complete() {
        let failed = LineVerdict {
            status: 409,
            explain: Some("late".into()),
        };
        let ok = LineVerdict {
            status: 200,
            explain: None,
        };
        let minimal = b"{\"lines\":3,\"ok\":2,\"failed\":1}\n{\"line\":2,\"status\":409,\"explain\":\"late\"}\n";
        assert_eq!(
            verdicts(minimal, true, 3),
            Ok(vec![ok.clone(), failed.clone(), ok.clone()])
        );
        let full = b"{\"line\":1,\"status\":200}\n{\"line\":2,\"status\":409,\"explain\":\"late\"}\n";
        assert_eq!(verdicts(full, false, 2), Ok(vec![ok, failed]));
        assert!(verdicts(full, false, 3).is_err());
        assert!(verdicts(minimal, true, 4).is_err());
        assert!(verdicts(b"<html>", true, 1).is_err());
    }
}
