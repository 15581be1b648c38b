//! Operations: messages of WebSocket clients that have agreed on the subprotocol `push-stream.v1`. Each has a reply.
//!
//! A change of channels goes the same way as one that comes by a request ([`super::control`]); its reply comes behind
//! the history of the channels.

use std::rc::Rc;

use push_stream_core::store::Now;
use push_stream_core::token::Token;
use push_stream_core::wire::channel_path;
use push_stream_core::wire::control::{self, Change, Operation, Outcome, Request, Value};
use push_stream_core::wire::websocket::{self, Opcode};

use super::changes::Origin;
use super::frames::{Frames, Framing, Piece};
use super::state::Delivery;
use super::subscriber::SubscriberId;
use crate::token::subjects;

/// Operations of all clients that wait for their turn.
const MOST_WAITING: usize = 1024;

/// A status, and what explains it.
type Refusal = (u16, &'static str);

const NOT_GRANTED: Refusal = (403, "Token does not grant the channels.");

impl Delivery {
    /// Handles one operation.
    pub fn operate(&mut self, id: SubscriberId, text: &[u8]) {
        let (name, operation) = Operation::parse(text);
        let refused = match operation {
            Err(explain) => Some((400, explain)),
            Ok(Operation::Publish { channels, text, token }) => {
                let published = self.publish_to(id, &channels, text.as_bytes(), token.as_deref());
                Some(published.err().unwrap_or((200, "")))
            }
            Ok(Operation::Change(request)) => match self.change_of(id, request) {
                Err(refusal) => Some(refusal),
                Ok(_) if self.control.operations.len() >= MOST_WAITING => Some((503, "Too many operations wait.")),
                Ok(change) => {
                    self.control.operations.push_back((id, name.clone(), change));
                    self.events.post_work();
                    None
                }
            },
        };
        if let Some((status, explain)) = refused {
            let explain = Some(explain).filter(|explain| !explain.is_empty());
            self.push_reply(id, &control::reply(&name, status, explain, None));
        }
    }

    /// Replies to a change.
    pub fn reply(&mut self, id: SubscriberId, name: &Value, outcome: &Outcome) {
        let text = match outcome {
            Outcome::Done(channels) => control::reply(name, 200, None, Some(channels)),
            Outcome::Refused(refused) => {
                let (status, explain) = refused.verdict();
                control::reply(name, status, Some(explain), None)
            }
            // It is gone, or its socket is another worker's.
            Outcome::Unknown | Outcome::Moving => return,
        };
        self.push_reply(id, &text);
        // To be sent at the end of the slice.
        self.inbox.catching_up.push_back(id);
    }

    fn push_reply(&mut self, id: SubscriberId, text: &str) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let mut frame = Vec::new();
        websocket::push_frame(Opcode::Text, text.as_bytes(), &mut frame);
        let piece = Piece::whole(Frames::of_bytes(&frame, Framing::Raw));
        match &mut subscriber.replay {
            Some(replaying) => replaying.behind().push(piece),
            None => subscriber.send_queue.push(piece),
        }
    }

    /// Do more replies wait for the client than its queue may hold?
    pub fn is_flooded(&mut self, id: SubscriberId) -> bool {
        self.registry.slab.get(id).is_some_and(|subscriber| {
            let behind = subscriber
                .replay
                .as_mut()
                .map_or(0, |replaying| replaying.behind().bytes());
            subscriber.send_queue.bytes() + behind > subscriber.audience.queue_bytes
        })
    }

    /// The token of an operation, if it has one.
    fn token_of(&mut self, id: SubscriberId, text: Option<&str>) -> Result<Option<(Rc<Token>, u64)>, Refusal> {
        let Some(text) = text else {
            return Ok(None);
        };
        let audience = self.registry.slab.get(id).map(|subscriber| subscriber.audience.clone());
        let policy = audience.and_then(|audience| audience.policy);
        let policy = policy.ok_or((400, "Tokens are off in this location."))?;
        let tokens = &self.settings.tokens;
        let token = tokens.verify(policy, text.as_bytes());
        let token = token.map_err(|rejection| (401, rejection.explain()))?;
        Ok(Some((token, tokens.leeway(policy))))
    }

    /// Checks a change as a location for session control does.
    fn change_of(&mut self, id: SubscriberId, request: Request) -> Result<Change, Refusal> {
        let token = self.token_of(id, request.token.as_deref())?;
        let Some(audience) = self.registry.slab.get(id).map(|subscriber| subscriber.audience.clone()) else {
            return Err((404, "Session does not exist."));
        };
        let longest = self.settings.max_channel_id_length.unwrap_or(usize::from(u16::MAX));
        for wanted in &request.subscribe {
            if channel_path::is_reserved(&wanted.id) {
                return Err((403, "Channel id not authorized for this method."));
            }
            if wanted.id.len() > longest {
                return Err((400, "Channel id is too large."));
            }
            if token
                .as_ref()
                .is_some_and(|(token, _)| !token.subscribe.allows(&wanted.id))
            {
                return Err(NOT_GRANTED);
            }
        }
        let prefix = &self.settings.limits.wildcard_prefix;
        if let Some(max) = audience.wildcard_max.filter(|_| !prefix.is_empty()) {
            let wildcards = request.subscribe.iter().filter(|wanted| wanted.id.starts_with(prefix));
            if wildcards.count() > max as usize {
                return Err((403, "Subscribed too much wildcard channels."));
            }
        }
        let now = Now::read();
        let ends_ms = token.as_ref().map(|(token, leeway)| {
            let ends = token.ends?.saturating_add(*leeway).saturating_mul(1000);
            Some(now.monotonic_ms.saturating_add(ends.saturating_sub(now.unix_ms)))
        });
        Ok(Change {
            session: None,
            subscribe: request.subscribe,
            unsubscribe: request.unsubscribe,
            last_event_id: request.last_event_id.map(String::into_bytes),
            ends_ms,
            checked: token.is_some(),
            subject: token.as_ref().map(|(token, _)| subjects::hash(token.subject.as_ref()?)),
            authorized_channels_only: audience.authorized_channels_only,
            may_follow_events: audience.may_follow_events,
        })
    }

    /// Publishes to some of the client's channels, or all or none. Where the location has tokens, one has to grant it.
    fn publish_to(
        &mut self,
        id: SubscriberId,
        channels: &[Vec<u8>],
        text: &[u8],
        token: Option<&str>,
    ) -> Result<(), Refusal> {
        let token = self.token_of(id, token)?;
        let Some(audience) = self.registry.slab.get(id).map(|subscriber| subscriber.audience.clone()) else {
            return Err((404, "Session does not exist."));
        };
        let granted = match &token {
            Some((token, _)) => channels.iter().all(|id| token.publish.allows(id)),
            None => audience.policy.is_none(),
        };
        if !granted {
            return Err(NOT_GRANTED);
        }
        let held = self.channels_of(id);
        let ids: Vec<&[u8]> = channels.iter().map(Vec::as_slice).collect();
        let limits = &self.settings.limits;
        let may = |wanted: &&[u8]| held.iter().any(|id| **id == **wanted) && !limits.is_events(wanted);
        if !audience.incoming.publish || !ids.iter().all(may) {
            return Err((403, "Publishing is allowed to the client's own channels, if at all."));
        }
        let worker = self.worker.as_mut().ok_or((503, "Worker is not ready."))?;
        let now = Now::read();
        let published = worker
            .draft(text.len(), None, None, ids.len(), now)
            .and_then(|mut draft| {
                worker.write(&mut draft, text);
                worker.publish(draft, &ids, audience.incoming.terms, now)
            });
        let published = published.inspect_err(|&refusal| worker.count_refusal(refusal));
        self.look_if_woken();
        published.map(|_| ()).map_err(|_| (507, "Zone is full."))
    }

    /// The next operation, in the order in which they came.
    pub fn next_operation(&mut self) -> Option<(Origin, SubscriberId, Change)> {
        let (id, name, change) = self.control.operations.pop_front()?;
        Some((Origin::Operation(id, name), id, change))
    }
}
