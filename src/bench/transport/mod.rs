//! Transports: a subscriber's request, the accepted answer, and the extraction of messages from the response. One file
//! per format.

mod event_source;
mod item;
mod texts;
mod unfinished;
mod websocket;

use clap::ValueEnum;

use crate::http::{self, ResponseHead};

use event_source::EventStream;
pub use item::{Item, Message};
use texts::Texts;
use websocket::Frames;
pub use websocket::{ACCEPT as WEBSOCKET_ACCEPT, pong, text as websocket_text};

/// A way to subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    #[value(name = "eventsource")]
    EventSource,
    /// One endless response: texts, one behind the other.
    Streaming,
    #[value(name = "websocket")]
    WebSocket,
    /// A response for each message, then the next request, which says where the last one ended.
    LongPolling,
    /// Not a subscription: a GET that is answered at once, after which the connection rests. What others cost is
    /// compared with it.
    Plain,
}

/// Headers that a current browser sends with every request: servers keep them in memory, so their size must be
/// realistic.
const BROWSER_HEADERS: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\nAccept-Language: en-US,en;q=0.9\r\nCache-Control: no-cache\r\n\
    Referer: http://example.com/forum/thread/1234567\r\n";

impl Transport {
    /// The request's header lines other than `Host`.
    pub fn headers(self) -> String {
        let own = match self {
            Self::EventSource => "Accept: text/event-stream\r\nConnection: keep-alive\r\n",
            Self::Streaming | Self::LongPolling | Self::Plain => "Accept: */*\r\nConnection: keep-alive\r\n",
            Self::WebSocket => websocket::HANDSHAKE,
        };
        format!("{BROWSER_HEADERS}{own}")
    }

    /// Whether the answer `head`, whose bytes are `raw`, accepts the subscription; else the reason.
    pub fn accepts(self, head: &ResponseHead, raw: &[u8]) -> Result<(), String> {
        match (self, head.status) {
            (Self::EventSource, 200) if !head.event_stream => Err("the answer is no event stream".to_owned()),
            (Self::WebSocket, 101) => match http::header(raw, "Sec-WebSocket-Accept") {
                Some(accept) if accept == websocket::ACCEPT.as_bytes() => Ok(()),
                _ => Err("the answer to the WebSocket handshake has a wrong key".to_owned()),
            },
            (Self::EventSource | Self::Streaming | Self::Plain, 200) | (Self::LongPolling, 200 | 304) => Ok(()),
            (_, status) => Err(format!("refused with status {status}")),
        }
    }

    /// Whether messages carry their event ids.
    pub fn shows_ids(self) -> bool {
        self == Self::EventSource
    }

    /// A message parser for one connection.
    pub fn feed(self) -> Feed {
        match self {
            Self::EventSource => Feed::EventSource(EventStream::default()),
            Self::Streaming | Self::LongPolling => Feed::Texts(Texts::default()),
            Self::WebSocket => Feed::WebSocket(Frames::default()),
            Self::Plain => Feed::Anything,
        }
    }
}

/// Finds messages in input that may be cut anywhere. No heap memory as long as messages arrive whole.
#[derive(Debug)]
pub enum Feed {
    EventSource(EventStream),
    Texts(Texts),
    WebSocket(Frames),
    Anything,
}

impl Feed {
    /// Passes every item completed by `input` to `sink`.
    pub fn feed(&mut self, input: &[u8], sink: impl FnMut(Item<'_>)) {
        match self {
            Self::EventSource(events) => events.feed(input, sink),
            Self::Texts(texts) => texts.feed(input, sink),
            Self::WebSocket(frames) => frames.feed(input, sink),
            Self::Anything => {}
        }
    }

    /// Whether a message has started but not ended.
    pub fn is_inside_message(&self) -> bool {
        match self {
            Self::EventSource(events) => events.is_inside_event(),
            Self::Texts(texts) => texts.is_inside_text(),
            Self::WebSocket(frames) => frames.is_inside_frame(),
            Self::Anything => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(transport: Transport, raw: &[u8]) -> Result<(), String> {
        let (head, length) = ResponseHead::parse(raw).unwrap().unwrap();
        transport.accepts(&head, &raw[..length])
    }

    #[test]
    fn only_the_right_answer_is_a_yes() {
        let events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        let plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n";
        let switched =
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let wrong_key = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
        let unchanged = b"HTTP/1.1 304 Not Modified\r\n\r\n";
        let refused = b"HTTP/1.1 403 Forbidden\r\n\r\n";
        for (transport, good, bad) in [
            (Transport::EventSource, events.as_slice(), plain.as_slice()),
            (Transport::Streaming, plain, refused),
            (Transport::WebSocket, switched, wrong_key),
            (Transport::WebSocket, switched, plain),
            (Transport::LongPolling, unchanged, refused),
            (Transport::Plain, plain, unchanged),
        ] {
            assert_eq!(judged(transport, good), Ok(()), "{transport:?}");
            assert!(judged(transport, bad).is_err(), "{transport:?}");
        }
    }

    #[test]
    fn a_connection_s_feed_is_small() {
        assert!(size_of::<Feed>() <= 40, "{}", size_of::<Feed>());
    }
}
