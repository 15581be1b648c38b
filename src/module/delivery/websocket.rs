//! What is kept of a WebSocket client.

use push_stream_core::wire::coding::stream::Reader;
use push_stream_core::wire::websocket::Decoder;

use super::compression::Compressed;

/// The input side of a WebSocket subscriber.
pub struct Socket {
    /// The first bytes sent: the head of the answer and the header template. Taken when the subscriber is added.
    opening: Vec<u8>,
    /// Only set while a frame or a message is incomplete: an idle connection needs none.
    pub decoder: Option<Box<Decoder>>,
    /// When the oldest ping was sent that no input followed.
    pub unanswered_since_ms: Option<u64>,
    /// Its access token does not grant publishing, so that its messages are dropped.
    pub muted: bool,
    /// Its messages are operations: the subprotocol was agreed on.
    pub operates: bool,
}

/// A WebSocket whose messages are compressed.
pub struct Deflated {
    pub socket: Socket,
    pub compressed: Compressed,
}

impl Deflated {
    pub fn new(socket: Socket) -> Deflated {
        Deflated {
            socket,
            compressed: Compressed::new(Reader::default()),
        }
    }
}

impl Socket {
    pub fn new(opening: Vec<u8>, muted: bool, operates: bool) -> Socket {
        Socket {
            muted,
            operates,
            opening,
            decoder: None,
            unanswered_since_ms: None,
        }
    }

    /// A socket whose handshake another worker has answered.
    pub fn taken_over(unanswered_since_ms: Option<u64>, muted: bool, operates: bool) -> Socket {
        Socket {
            unanswered_since_ms,
            ..Socket::new(Vec::new(), muted, operates)
        }
    }

    /// Is no frame or message of the client incomplete?
    pub fn is_idle(&self) -> bool {
        self.decoder.is_none()
    }

    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.unanswered_since_ms
    }

    pub fn take_opening(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.opening)
    }

    /// Records a ping sent now. False if the peer is dead: no input since a ping of two intervals ago.
    pub fn ping(&mut self, now_ms: u64, interval_ms: u64) -> bool {
        let since = *self.unanswered_since_ms.get_or_insert(now_ms);
        now_ms - since < 2 * interval_ms
    }
}
