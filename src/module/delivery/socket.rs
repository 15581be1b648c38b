//! Input of WebSocket clients (RFC 6455).

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::{Now, Terms};
use push_stream_core::wire::eventsource;
use push_stream_core::wire::websocket::{self, Decoder, Opcode, Received, Rules, Violation};

use super::ending::{Ending, Reason};
use super::frames::{Frames, Framing, Piece};
use super::perform::{advance, end, subscriber_event};
use super::state::{Delivery, PROCESS};
use super::subscriber::{EndDue, Kind, NEVER, Subscriber, SubscriberId};
use crate::ffi::connection::{Connection, Transfer};
use crate::ffi::lookup;

/// Bytes read at once.
const READ: usize = 16 * 1024;

/// Reads per turn, before other events get theirs.
const READS_PER_TURN: u32 = 16;

/// The same of a client that may compress: a read can be a thousand times as long when it is inflated.
pub const DEFLATED_READS: u32 = 1;

/// A close frame without a reason, as in the C module.
const CLOSE: &[u8] = &[0x88, 0x00];

/// The close code of a client whose access token has expired.
const TOKEN_EXPIRED: u16 = 3000;

/// That of a client whose subject was sent away.
const DISMISSED: u16 = 3001;

/// Reaction to the client's input.
enum Reaction {
    Nothing,
    /// Send the queued bytes.
    Advance,
    End(Ending),
}

/// Takes bytes that came together with the handshake: they belong to the frames.
///
/// # Safety
/// `r` is a valid request.
pub unsafe fn take_early_bytes(r: *mut ngx_http_request_t) -> Vec<u8> {
    // SAFETY: a request's header buffer holds what was read and not parsed.
    unsafe {
        match (*r).header_in.as_mut() {
            Some(buffer) if buffer.pos < buffer.last => {
                let len = buffer.last.offset_from(buffer.pos) as usize;
                let early = std::slice::from_raw_parts(buffer.pos, len).to_vec();
                buffer.pos = buffer.last;
                early
            }
            _ => Vec::new(),
        }
    }
}

/// Read handler: the client sent something, or is gone.
pub unsafe extern "C" fn readable(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes a valid request that `enlist` gave this handler and its context.
    let (id, connection) = unsafe {
        (
            SubscriberId::from_pointer(*lookup::context(r)),
            Connection::new((*r).connection),
        )
    };
    subscriber_event("read event", id, || {
        // SAFETY: as above.
        let early = unsafe { take_early_bytes(r) };
        if early.is_empty() || react(id, &early) {
            read(id, connection);
        }
    });
}

/// Reads a subscriber's input.
pub fn read(id: SubscriberId, connection: Connection<'_>) {
    let mut buffer = [0u8; READ];
    let compressed = PROCESS.with(|delivery| Some(delivery.registry.slab.get(id)?.is_compressed()));
    let reads = if compressed.flatten() == Some(true) {
        DEFLATED_READS
    } else {
        READS_PER_TURN
    };
    for _ in 0..reads {
        match connection.recv(&mut buffer) {
            Transfer::Bytes(read) => {
                if !react(id, &buffer[..read]) {
                    return;
                }
            }
            Transfer::Again => {
                // A failure shows at the next event.
                connection.read().watch_read();
                return;
            }
            Transfer::Over => return end(id, Ending::Gone),
        }
    }
    connection.read().post_next();
}

/// Handles the client's bytes; false if the subscriber has ended.
pub fn react(id: SubscriberId, bytes: &[u8]) -> bool {
    let reaction = PROCESS.with(|delivery| delivery.take_input(id, bytes));
    match reaction {
        None => return false,
        Some(Reaction::Nothing) => {}
        Some(Reaction::Advance) => advance(id),
        Some(Reaction::End(ending)) => end(id, ending),
    }
    PROCESS
        .with(|delivery| delivery.registry.slab.get(id).is_some())
        .unwrap_or(false)
}

impl Delivery {
    fn take_input(&mut self, id: SubscriberId, mut bytes: &[u8]) -> Reaction {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return Reaction::Nothing;
        };
        let incoming = subscriber.audience.incoming;
        let deflate = subscriber.is_compressed();
        let Some(socket) = subscriber.kind.socket_mut() else {
            return Reaction::Nothing;
        };
        socket.unanswered_since_ms = None;
        let publishes = incoming.publish && !socket.muted;
        let operates = socket.operates;
        if subscriber.ending {
            // Ignore input after the close frame.
            return Reaction::Nothing;
        }
        let mut decoder = socket.decoder.take().unwrap_or_else(|| {
            Box::new(Decoder::new(Rules {
                deflate,
                keep: incoming.rules.keep || operates,
                ..incoming.rules
            }))
        });
        let mut answered = false;
        while let Some(received) = decoder.next(&mut bytes) {
            match received {
                Ok(Received::Text(text)) if operates => {
                    self.operate(id, text);
                    if self.is_flooded(id) {
                        return Reaction::End(Ending::TooSlow);
                    }
                    answered = true;
                }
                Ok(Received::Binary(_)) if operates => return self.close(id, CLOSE, Reason::Violation),
                Ok(message @ (Received::Text(bytes) | Received::Binary(bytes))) => {
                    if publishes && !bytes.is_empty() {
                        let binary = matches!(message, Received::Binary(_));
                        self.publish(id, bytes, binary, incoming.terms);
                    }
                }
                Ok(Received::Ping(payload)) => {
                    if !self.answer_ping(id, payload) {
                        return Reaction::End(Ending::TooSlow);
                    }
                    answered = true;
                }
                Ok(Received::Pong) => {}
                Ok(Received::Close(payload)) => {
                    let mut farewell = Vec::new();
                    websocket::push_frame(Opcode::Close, payload, &mut farewell);
                    return self.close(id, &farewell, Reason::ClientClosing);
                }
                Err(Violation::Binary) => return self.close(id, CLOSE, Reason::Violation),
                Err(violation) => {
                    let mut farewell = Vec::new();
                    websocket::push_close(violation.code(), b"", &mut farewell);
                    return self.close(id, &farewell, Reason::Violation);
                }
            }
        }
        if !decoder.is_idle()
            && let Some(subscriber) = self.registry.slab.get(id)
            && let Some(socket) = subscriber.kind.socket_mut()
        {
            socket.decoder = Some(decoder);
        }
        if answered { Reaction::Advance } else { Reaction::Nothing }
    }

    /// Queues a pong with the same payload (RFC 6455 §5.5.3). False if too many pongs are queued already.
    fn answer_ping(&mut self, id: SubscriberId, payload: &[u8]) -> bool {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return true;
        };
        let mut pong = Vec::new();
        websocket::push_frame(Opcode::Pong, payload, &mut pong);
        subscriber.push_bytes(&pong);
        subscriber.send_queue.bytes() <= subscriber.audience.queue_bytes
    }

    /// Ends the connection with a close frame: it counts as gone before the client sees that.
    fn close(&mut self, id: SubscriberId, farewell: &[u8], reason: Reason) -> Reaction {
        if let Some(subscriber) = self.registry.slab.get(id) {
            subscriber.replay = None;
            subscriber.end_due = EndDue::NEVER;
            subscriber.ping_due_ms = NEVER;
            subscriber.push_bytes(farewell);
            subscriber.ends(reason);
        }
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.leave_store(id.index);
        Reaction::Advance
    }

    /// Publishes to every channel of the connection, except the events channel.
    fn publish(&mut self, id: SubscriberId, bytes: &[u8], binary: bool, terms: Terms) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let memberships: Vec<_> = subscriber.seats.iter().map(|seat| seat.membership).collect();
        let limits = &self.settings.limits;
        let ids: Vec<&[u8]> = memberships
            .iter()
            .filter_map(|membership| Some(&*self.registry.channels.get(membership)?.id))
            .filter(|id| !limits.is_events(id))
            .collect();
        let (Some(worker), false) = (&mut self.worker, ids.is_empty()) else {
            return;
        };
        let now = Now::read();
        let published = worker
            .draft(bytes.len(), None, None, ids.len(), now)
            .and_then(|mut draft| {
                if binary {
                    draft.mark_binary();
                }
                worker.write(&mut draft, bytes);
                worker.publish(draft, &ids, terms, now)
            });
        if let Err(refusal) = published {
            worker.count_refusal(refusal);
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "push stream: a WebSocket client's message is lost: {refusal}"
            );
        }
        self.look_if_woken();
    }
}

impl Subscriber {
    /// Queues bytes that are not a message.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.send_queue
            .push(Piece::whole(Frames::of_bytes(bytes, Framing::Raw)));
    }

    /// Queues an event of an event stream that is not a message, behind what waits already.
    pub fn push_event(&mut self, event: &[u8]) {
        let event = Piece::whole(Frames::of_bytes(event, self.style.framing));
        match &mut self.replay {
            Some(replaying) => replaying.behind().push(event),
            None => self.send_queue.push(event),
        }
    }

    /// Queues the footer and the end of the response or close frame; an attached subscriber's end is sent with its
    /// request.
    pub fn push_farewell(&mut self) {
        if self.ending {
            return;
        }
        let said = match self.end_reason {
            Some(Reason::TokenExpired) => Some((eventsource::EXPIRED, TOKEN_EXPIRED, &b"token expired"[..])),
            Some(Reason::SubjectDismissed) => Some((eventsource::CLOSED, DISMISSED, &b"dismissed"[..])),
            _ => None,
        };
        if let Some((event, _, _)) = said
            && self.is_told_of_its_end()
        {
            self.push_event(event);
        }
        let farewell = match (&self.kind, said) {
            (Kind::Socket(_) | Kind::Deflated(_), Some((_, code, reason))) => {
                let mut farewell = self.audience.footer.clone();
                websocket::push_close(code, reason, &mut farewell);
                Frames::of_bytes(&farewell, Framing::Raw)
            }
            (Kind::Socket(_) | Kind::Deflated(_), None) => {
                Frames::of_bytes(&[&self.audience.footer[..], CLOSE].concat(), Framing::Raw)
            }
            (Kind::Stream | Kind::Compressed(_), _) if self.is_detached() => {
                Frames::end_of_response(&self.audience.footer, self.style.framing)
            }
            _ => return,
        };
        let waiting = match &mut self.replay {
            Some(replaying) => replaying.behind(),
            None => &mut self.send_queue,
        };
        waiting.push(Piece::whole(farewell));
    }
}
