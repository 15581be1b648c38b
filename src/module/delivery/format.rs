//! Formats of messages: how a location renders them.

use push_stream_core::wire::coding::stream as coding;
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::template::{Fields, Template};
use push_stream_core::wire::websocket::{self, Opcode};
use push_stream_core::wire::{eventsource, gap};

/// Framing of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The rendered template as it is: streaming and polls.
    Plain,
    EventSource,
    /// One text frame per message.
    WebSocket {
        /// Send binary messages, and texts that are not UTF-8, unchanged in binary frames.
        binary: bool,
    },
}

/// One format of messages. Locations with equal formats share it, so that a message is rendered once for all of them.
#[derive(Debug, PartialEq)]
pub struct Format {
    pub transport: Transport,
    pub template: Template,
    /// A ping as sent.
    pub ping: Vec<u8>,
    /// The reader resumes by the order of event ids: only positions are shown as event ids.
    pub ordered: bool,
    /// Notice in place of messages that a reader has missed; None if gaps are not told.
    pub gap_text: Option<Vec<u8>>,
    /// How it is compressed for those who ask for it; None = never.
    pub compression: Option<Compression>,
}

/// Compression of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    pub terms: coding::Terms,
    /// The most groups of a worker.
    pub groups: usize,
}

impl Format {
    /// Appends one message; returns the length that padding is computed from.
    pub fn render(&self, fields: &Fields<'_>, is_binary: bool, out: &mut Vec<u8>) -> usize {
        match self.transport {
            Transport::Plain => {
                let start = out.len();
                self.template.render(fields, out);
                out.len() - start
            }
            Transport::EventSource => eventsource::render(&self.template, fields, out),
            Transport::WebSocket { binary } => {
                let start = out.len();
                if binary && (is_binary || str::from_utf8(fields.text).is_err()) {
                    websocket::push_frame(Opcode::Binary, fields.text, out);
                } else {
                    self.template.render(fields, out);
                    let mut header = Vec::new();
                    websocket::push_header(Opcode::Text, out.len() - start, &mut header);
                    out.splice(start..start, header);
                }
                out.len() - start
            }
        }
    }
}

impl Format {
    /// Appends a gap notice for `channel`: messages between the position `asked` and the id `first` are missing. The
    /// notice is a message except for EventSource, and has the new `position` as its event id.
    pub fn render_gap(
        &self,
        channel: &[u8],
        asked: Option<OrderedId>,
        first: Option<OrderedId>,
        position: Option<OrderedId>,
        out: &mut Vec<u8>,
    ) {
        let Some(text) = &self.gap_text else { return };
        if self.transport == Transport::EventSource {
            return gap::push_event(channel, asked, first, out);
        }
        let position = position.map(|id| id.to_text());
        let fields = Fields {
            id: gap::ID,
            channel,
            text,
            time: 0,
            tag: 0,
            event_id: position.as_deref(),
            event_type: None,
        };
        self.render(&fields, false, out);
    }
}
