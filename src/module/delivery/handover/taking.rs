//! The accepting worker's part: takes subscribers over from a leaving worker.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::Now;
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::coding::checksum::Sum;
use push_stream_core::wire::coding::permessage::Agreed;
use push_stream_core::wire::coding::stream::Reader;
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::handover::{self as wire, Answer, Keys, Offer, Rest, Unsent};
use push_stream_core::wire::tls;
use smallvec::SmallVec;

use super::sessions::{Key, Taking};
use super::{borrow, close, hear, is_possible, listen, socket};
use crate::delivery::action::Action;
use crate::delivery::compression::Compressed;
use crate::delivery::detach;
use crate::delivery::disconnect_log::DisconnectRecord;
use crate::delivery::ending::Ending;
use crate::delivery::frames::{Frames, Framing, Piece, Style};
use crate::delivery::profile::Audience;
use crate::delivery::state::{Delivery, PROCESS};
use crate::delivery::subscriber::{
    EndDue, Kind, NEVER, NOWHERE, Subscriber, SubscriberId, THROUGH_CONNECTION, THROUGH_TLS, Transit,
};
use crate::delivery::websocket::{Deflated, Socket};
use crate::ffi::connection::{Connection, Event};
use crate::ffi::panic_guard;

/// A leaving worker that is silent for this long while subscribers are in transit is given up.
const PATIENCE_MS: u64 = 2000;

/// Read handler: an invitation from a leaving worker may have come.
unsafe extern "C" fn on_invitation(event: *mut ngx_event_t) {
    panic_guard::event("invitation to take subscribers", || {
        let more = PROCESS.with(Delivery::take_invitation).unwrap_or(false);
        // SAFETY: nginx passes the read event of a connection that `listen` made.
        let event = unsafe { Event::new(event) };
        // It is, unless accepting was stopped.
        if event.is_active() {
            if more {
                // One at a time: other workers take the others.
                event.post_next();
            }
            event.set_ready(false);
            event.watch_read();
        }
    });
}

/// Read handler of a session: the other side sent a message, or is gone.
unsafe extern "C" fn on_session(event: *mut ngx_event_t) {
    panic_guard::event("handover from another worker", || {
        // SAFETY: nginx passes the read event of a connection that `listen` made.
        unsafe { hear(event, Delivery::hear_from_giver) };
    });
}

impl Delivery {
    /// Starts to accept other workers' subscribers, if configured.
    pub fn start_accepting(&mut self) {
        if !self.settings.handover || !is_possible() || self.handover.listening.is_some() || self.shutdown.begun() {
            return;
        }
        let (Some(worker), Some([receiver, _])) = (&self.worker, self.zone.handover_fds()) else {
            return;
        };
        // Duplicate the descriptor: the connection closes its own.
        let Ok(own) = borrow(receiver).try_clone_to_owned() else {
            return;
        };
        let log = ngx::log::ngx_cycle_log().as_ptr();
        self.handover.listening = listen(own, 0, on_invitation, log);
        let cycle = self.handover.cycle;
        worker.set_accepting(self.handover.listening.is_some().then_some(cycle));
    }

    /// Stops accepting: this worker leaves or stops.
    pub fn stop_accepting(&mut self) {
        if let Some(worker) = &self.worker {
            worker.set_accepting(None);
        }
        if let Some(listening) = self.handover.listening.take() {
            listening.unwatch();
            close(listening);
        }
        // Sessions with subscribers in transit may finish; the others are closed now.
        let (busy, idle) = std::mem::take(&mut self.handover.taking)
            .into_iter()
            .partition(|taking| !taking.arriving.is_empty());
        self.handover.taking = busy;
        for taking in idle {
            close(taking.connection);
        }
    }

    /// Takes an invitation; true if there may be more.
    fn take_invitation(&mut self) -> bool {
        let cycle = self.handover.cycle;
        if self.worker.as_ref().is_some_and(|worker| worker.accepting(cycle) > 0) {
            // This worker's turn to leave comes next: the invitation is for those of the newer configuration.
            self.stop_accepting();
            return false;
        }
        let Some(listening) = self.handover.listening else {
            return false;
        };
        let mut fds = match socket::receive(listening.socket()) {
            Ok(socket::Received::Message { fds, .. }) => fds,
            Ok(_) => return false,
            Err(_) => return true,
        };
        let Some(own) = fds.pop() else {
            return true;
        };
        let key = self.handover.new_key();
        let log = ngx::log::ngx_cycle_log().as_ptr();
        let ready = wire::encode(&Answer::default());
        if socket::send(own.as_fd(), &ready, &[]).is_ok()
            && let Some(connection) = listen(own, key, on_session, log)
        {
            self.handover.taking.push(Taking {
                key,
                connection,
                arriving: Vec::new(),
                since_ms: Now::read().monotonic_ms,
            });
        }
        true
    }

    fn hear_from_giver(&mut self, key: Key, actions: &mut Vec<Action>) {
        loop {
            let Some(index) = self.handover.taking.iter().position(|taking| taking.key == key) else {
                return;
            };
            let taking = &mut self.handover.taking[index];
            let (payload, secret, fds) = match socket::receive(taking.connection.socket()) {
                Ok(socket::Received::Nothing) => return,
                Ok(socket::Received::Message { payload, secret, fds }) => (payload, secret, fds),
                Ok(socket::Received::Closed) | Err(_) => return self.stop_taking_from(key),
            };
            taking.since_ms = Now::read().monotonic_ms;
            let arriving = std::mem::take(&mut taking.arriving);
            if arriving.is_empty() {
                let offer = wire::decode::<Offer>(&payload).filter(|offer| offer.subscribers.len() == fds.len());
                match offer {
                    Some(offer) if !self.shutdown.begun() => self.answer_offer(index, &offer, fds),
                    _ => return self.stop_taking_from(key),
                }
            } else {
                let rest = wire::decode::<Rest>(&payload).filter(|rest| rest.0.len() == arriving.len());
                let keys = Keys::decode(&secret, arriving.len());
                let (Some(Rest(rest)), Some(Keys(keys))) = (rest, keys) else {
                    self.handover.taking[index].arriving = arriving;
                    return self.stop_taking_from(key);
                };
                for ((id, rest), state) in arriving.into_iter().zip(rest).zip(keys) {
                    match (id, rest) {
                        (Some(id), Some(rest)) => self.settle_in(id, rest, state, actions),
                        (Some(id), None) => self.drop_arriving(id),
                        (None, _) => {}
                    }
                }
                if self.shutdown.begun() {
                    return self.stop_taking_from(key);
                }
            }
        }
    }

    /// Runs once a second: gives up leaving workers that have stopped in the middle.
    pub fn look_after_taking(&mut self, now_ms: u64) {
        let late = |taking: &Taking| !taking.arriving.is_empty() && now_ms >= taking.since_ms + PATIENCE_MS;
        while let Some(taking) = self.handover.taking.iter().find(|taking| late(taking)) {
            let key = taking.key;
            self.stop_taking_from(key);
        }
    }

    /// The leaving worker is gone: it is unknown which bytes subscribers in transit have been sent, so they are
    /// dropped.
    fn stop_taking_from(&mut self, key: Key) {
        let Some(index) = self.handover.taking.iter().position(|taking| taking.key == key) else {
            return;
        };
        let taking = self.handover.taking.swap_remove(index);
        close(taking.connection);
        for id in taking.arriving.into_iter().flatten() {
            self.drop_arriving(id);
        }
    }

    fn answer_offer(&mut self, index: usize, offer: &Offer, fds: Vec<OwnedFd>) {
        let locations: Vec<Option<Rc<Audience>>> =
            offer.locations.iter().map(|name| self.location_named(name)).collect();
        let mut arriving = Vec::with_capacity(fds.len());
        let mut answer = Answer::default();
        for (subscriber, fd) in offer.subscribers.iter().zip(fds) {
            let audience = locations.get(subscriber.location as usize).cloned().flatten();
            let taken = audience.and_then(|audience| self.take_over(subscriber, audience, fd));
            arriving.push(taken.map(|(id, _)| id));
            answer.0.push(taken.map(|(_, seq)| seq));
        }
        let taking = &mut self.handover.taking[index];
        taking.arriving = arriving;
        if socket::send(taking.connection.socket(), &wire::encode(&answer), &[]).is_err() {
            let key = taking.key;
            self.stop_taking_from(key);
        }
    }

    /// Joins a subscriber's channels. Nothing is sent to it before the rest has come.
    fn take_over(
        &mut self,
        offered: &wire::Subscriber,
        audience: Rc<Audience>,
        fd: OwnedFd,
    ) -> Option<(SubscriberId, u64)> {
        let format = audience.format.clone();
        let agreed = offered
            .deflate
            .map(|(window_bits, takeover)| Agreed { window_bits, takeover });
        let kind = match offered.mode.as_str() {
            "websocket" => {
                let socket = Socket::taken_over(offered.unanswered_since_ms, offered.muted, offered.operates);
                match agreed {
                    Some(_) => Kind::Deflated(Box::new(Deflated::new(socket))),
                    None => Kind::Socket(Box::new(socket)),
                }
            }
            _ if offered.coding.is_some() => Kind::Compressed(Compressed::new(Reader::default())),
            _ => Kind::Stream,
        };
        if !audience.detach || offered.channels.is_empty() || offered.tls && !audience.detach_tls {
            return None;
        }
        let named = |name: &String| audience.codings.iter().find(|coding| coding.name() == name).copied();
        let coding: Option<Coding> = match &offered.coding {
            None => None,
            Some(name) => Some(named(name)?),
        };
        if agreed.is_some() && format.compression.is_none() {
            return None;
        }
        let framing = if offered.chunked {
            Framing::Chunked
        } else {
            Framing::Raw
        };
        let style = Style {
            format: format.clone(),
            framing: match (agreed, coding) {
                (Some(agreed), _) => Framing::Deflated(agreed),
                (None, Some(coding)) => framing.compressed(coding),
                (None, None) => framing,
            },
            message_min: offered.message_min,
            padding_max: audience.padding_max.get(),
            coder: None,
        };
        let style = self.registry.styles.intern(style, &mut self.compression);
        let now = Now::read();
        let ids: SmallVec<[&[u8]; 2]> = offered.channels.iter().map(|id| &id[..]).collect();
        let connection = Connection::accepted(fd, audience.error_log)?;
        let ping_due_ms = audience.ping_interval_ms.map_or(NEVER, |interval| {
            let latest = now.monotonic_ms + interval;
            offered.ping_due_ms.unwrap_or(latest).min(latest)
        });
        let disconnect_record = offered
            .disconnect_record
            .as_ref()
            .filter(|_| !audience.log_disconnect.is_null())
            .map(|disconnect_record| Box::new(DisconnectRecord::from_wire(audience.log_disconnect, disconnect_record)));
        let mut subscriber = Subscriber {
            request: ptr::null_mut(),
            // Nothing can be sent through TLS before its state has come.
            socket: if offered.tls { THROUGH_TLS } else { THROUGH_CONNECTION },
            connection: connection.raw(),
            style,
            kind,
            flight: None,
            tls: None,
            joined_seq: 0,
            seats: SmallVec::new(),
            address: NOWHERE,
            send_queue: Default::default(),
            replay: None,
            ping_due_ms,
            end_due: EndDue::from_word(offered.end_due),
            ending: false,
            end_reason: None,
            attach_reason: None,
            transit: Transit::Arriving,
            disconnect_record,
            place: Default::default(),
            audience,
        };
        let adopted = match &mut self.worker {
            // The location's mode must be the same: another mode has another format.
            Some(worker) if subscriber.mode().name() == offered.mode => {
                worker.adopt(&ids, offered.address.as_deref(), now).ok().flatten()
            }
            _ => None,
        };
        let Some(adopted) = adopted else {
            close(connection);
            return None;
        };
        subscriber.joined_seq = adopted.seq;
        subscriber.address = adopted.address.unwrap_or(NOWHERE);
        let connected = subscriber.connected();
        let id = self.registry.add(subscriber, &adopted.memberships, &ids);
        if let Some(subject) = offered.subject {
            self.registry.subjects.set(id.index, subject);
        }
        if let Some(worker) = &self.worker {
            worker.count_in(connected);
        }
        if format.ordered {
            self.inbox.ordered.add_reader(id.index, None);
            self.handover.unplaced += 1;
        }
        Some((id, adopted.seq))
    }

    /// The rest has come: the subscriber belongs to this worker alone.
    fn settle_in(&mut self, id: SubscriberId, rest: Unsent, state: Option<tls::State>, actions: &mut Vec<Action>) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            // It was cut as too slow for messages that came meanwhile.
            return;
        };
        let ordered = subscriber.style.format.ordered;
        let position = rest.position.as_deref().and_then(OrderedId::parse);
        let unsent = match (subscriber.kind.compressed_mut(), rest.sum) {
            (Some(compressed), Some((crc, length))) => {
                compressed.reader = Reader::continued(Sum { crc, length });
                Rc::new(Frames::coded(&rest.bytes, Framing::Raw))
            }
            _ => Frames::of_bytes(&rest.bytes, Framing::Raw),
        };
        subscriber.send_queue.prepend(Piece::whole(unsent), position);
        subscriber.transit = Transit::None;
        let connection = subscriber.connection();
        connection.set_data(id.to_pointer());
        connection.read().set_handler(detach::ON_READ);
        connection.write().set_handler(detach::ON_WRITE);
        let (mut failed, socket) = (!connection.watch(), connection.fd());
        match (rest.ciphertext, state) {
            (Some(ciphertext), Some(state)) if subscriber.has_own_tls() => {
                failed |= !subscriber.resume_tls(state, ciphertext);
            }
            (None, None) if !subscriber.has_own_tls() => subscriber.set_direct_socket(socket),
            // One with TLS is never taken for one without.
            _ => failed = true,
        }
        let named = !failed && subscriber.audience.control;
        if failed {
            actions.push(Action::End(id, Ending::Failed));
        } else {
            actions.push(Action::Advance(id));
        }
        if ordered {
            self.inbox.ordered.add_reader(id.index, position);
            self.place_one();
        }
        if named {
            // The one that it had is that of the leaving worker.
            self.tell_session(id);
        }
        self.schedule(id.index, Now::read().monotonic_ms);
        if self.shutdown.begun() {
            self.events.shutdown_in(0);
        }
    }

    /// Drops a subscriber in transit that does not arrive.
    fn drop_arriving(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let ordered = subscriber.style.format.ordered;
        let (connection, connected) = (subscriber.connection, subscriber.connected());
        subscriber.disconnect_record = None;
        let address = subscriber.take_address();
        let mut left = self.registry.unseat_all(id.index);
        left.extend(address);
        if let Some(worker) = &mut self.worker {
            worker.count_out(connected);
            worker.leave_quietly(&left);
        }
        self.inbox.ordered.remove_reader(id.index);
        self.registry.take(id);
        if ordered {
            self.place_one();
        }
        // SAFETY: the subscriber is forgotten, and nothing else refers to it. The leaving worker has the socket, or has died.
        unsafe { Connection::new(connection).close() };
    }

    fn place_one(&mut self) {
        self.handover.unplaced -= 1;
        if self.handover.unplaced == 0 {
            self.wake();
        }
    }
}
