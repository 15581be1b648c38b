//! The POST of one event.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::config::HttpPush;
use super::node::Node;
use crate::event::Event;

const EVENT_ID: HeaderName = HeaderName::from_static("event-id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("event-type");
/// All but the unreserved characters of RFC 3986 §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The POST of one event.
pub fn event_request(config: &HttpPush, node: &Node, event: &Event) -> Result<Request<Full<Bytes>>, String> {
    let path = publish_path(&config.path, &event.channels);
    let uri = path
        .parse::<Uri>()
        .map_err(|error| format!("channels make no URL: {error}"))?;
    let mut request = Request::new(Full::new(event.payload()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(HOST, node.host.clone());
    headers.insert(CONTENT_TYPE, config.content_type.clone());
    if event.id.is_known() {
        let id = HeaderValue::from_str(&event.id.to_string());
        headers.insert(
            EVENT_ID,
            id.map_err(|_| "the event id is not a header value".to_owned())?,
        );
    }
    if let Some(kind) = &event.event_type {
        let kind = HeaderValue::from_bytes(kind.as_bytes());
        headers.insert(
            EVENT_TYPE,
            kind.map_err(|_| "the event type is not a header value".to_owned())?,
        );
    }
    Ok(request)
}

/// `/pub?id=` and `a b`, `c` make `/pub?id=a%20b/c`.
pub fn publish_path(base: &str, channels: &[String]) -> String {
    let mut path = String::with_capacity(base.len() + channels.iter().map(|id| id.len() + 8).sum::<usize>());
    path.push_str(base);
    for (index, id) in channels.iter().enumerate() {
        if index > 0 {
            path.push('/');
        }
        path.extend(utf8_percent_encode(id, RESERVED));
    }
    path
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
}
