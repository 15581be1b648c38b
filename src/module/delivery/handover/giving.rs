//! The leaving worker's part: offers its subscribers, delivers their messages up to the answer, and forgets them.

use std::os::fd::{AsFd, BorrowedFd};

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::{self, Counter, Now};
use push_stream_core::wire::handover::{self as wire, Answer, Keys, Offer, Rest, Unsent};
use push_stream_core::wire::tls;

use super::sessions::{Giving, Key, Loss, State};
use super::{borrow, close, hear, is_possible, listen, socket};
use crate::delivery::action::Action;
use crate::delivery::ending::{Ending, Reason};
use crate::delivery::frames::Framing;
use crate::delivery::shutdown::PACE_MS;
use crate::delivery::state::Delivery;
use crate::delivery::subscriber::{NEVER, Subscriber, SubscriberId, THROUGH_CONNECTION, Transit};
use crate::delivery::websocket::Socket;
use crate::ffi::connection::Connection;
use crate::ffi::panic_guard;

/// Subscribers in one offer: the descriptors that fit into a message, less one that may hold its payload.
const OFFERED: usize = 250;

/// Accepting workers that one leaving worker deals with at once.
const SESSIONS: usize = 16;

/// Time limit of the whole handover; remaining subscribers then end as at every reload.
const ALL_MS: u64 = 1500;

/// An accepting worker that is silent for this long is given up.
const PATIENCE_MS: u64 = 700;

/// Text of an invitation: the information is in the socket sent with it.
const INVITATION: &[u8] = b"push stream handover";

/// Read handler of a session: the other side sent a message, or is gone.
unsafe extern "C" fn on_session(event: *mut ngx_event_t) {
    panic_guard::event("handover to another worker", || {
        // SAFETY: nginx passes the read event of a connection that `listen` made.
        unsafe { hear(event, Delivery::hear_from_taker) };
    });
}

impl Delivery {
    /// Starts to give subscribers away, if another worker accepts.
    pub fn begin_giving(&mut self, now_ms: u64) {
        self.stop_accepting();
        let others = self
            .worker
            .as_ref()
            .map_or(0, |worker| worker.accepting(self.handover.cycle));
        if !self.settings.handover || !is_possible() || others == 0 || self.registry.slab.len() == 0 {
            return;
        }
        let Some([_, sender]) = self.zone.handover_fds() else {
            return;
        };
        for _ in 0..others.min(SESSIONS) {
            let Ok((own, other)) = socket::pair(true) else {
                break;
            };
            let key = self.handover.new_key();
            let log = ngx::log::ngx_cycle_log().as_ptr();
            let Some(connection) = listen(own, key, on_session, log) else {
                break;
            };
            if socket::send(borrow(sender), INVITATION, &[other.as_fd()]).is_err() {
                close(connection);
                break;
            }
            self.handover.giving.push(Giving {
                key,
                connection,
                state: State::Invited,
                since_ms: now_ms,
            });
        }
        if !self.handover.giving.is_empty() {
            self.handover.until_ms = Some(now_ms + ALL_MS);
        }
    }

    /// Are subscribers being given away?
    pub fn is_giving(&self) -> bool {
        self.handover.until_ms.is_some()
    }

    /// Is the subscriber at `index` in transit or to be given away, so that it must not be ended yet?
    pub fn is_given(&mut self, index: u32) -> bool {
        let giving = self.is_giving();
        let subscriber = self.registry.slab.at(index);
        subscriber.is_some_and(|subscriber| subscriber.is_in_transit() || giving && subscriber.may_be_given())
    }

    /// Checks the sessions from time to time while the worker leaves.
    pub fn look_after_giving(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(until_ms) = self.handover.until_ms else {
            return;
        };
        // When all workers exit, each finds that the others, which it has invited, are leaving too.
        let nobody = self
            .worker
            .as_ref()
            .is_none_or(|worker| worker.accepting(self.handover.cycle) == 0);
        let late = |giving: &Giving| match giving.state {
            _ if now_ms >= until_ms => true,
            State::Invited if nobody => true,
            State::Idle => false,
            _ => now_ms >= giving.since_ms + PATIENCE_MS,
        };
        let keys: Vec<Key> = self
            .handover
            .giving
            .iter()
            .filter(|giving| late(giving))
            .map(|giving| giving.key)
            .collect();
        for key in keys {
            self.stop_giving_to(key, actions);
        }
        for index in 0..self.handover.giving.len() {
            self.offer(index, now_ms);
        }
        self.end_giving_if_done();
    }

    /// Ends the handover if no worker accepts any more or no subscriber is left.
    fn end_giving_if_done(&mut self) {
        if self.is_giving() && (self.handover.giving.is_empty() || self.registry.slab.len() == 0) {
            for giving in std::mem::take(&mut self.handover.giving) {
                close(giving.connection);
            }
            self.handover.until_ms = None;
            let (given, left) = (self.handover.given, self.registry.slab.len());
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_NOTICE,
                log,
                "push stream: {given} subscribers handed over, {left} left to end"
            );
        }
    }

    /// Ends a session: its offered subscribers stay in this worker.
    fn stop_giving_to(&mut self, key: Key, actions: &mut Vec<Action>) {
        let Some(index) = self.handover.giving.iter().position(|giving| giving.key == key) else {
            return;
        };
        let giving = self.handover.giving.swap_remove(index);
        close(giving.connection);
        match giving.state {
            State::Invited | State::Idle => {}
            State::Offered(ids) => ids.into_iter().for_each(|id| self.keep(id, Transit::None, actions)),
            State::Settling(ids) => ids
                .into_iter()
                .for_each(|(id, _)| self.keep(id, Transit::None, actions)),
        }
        self.end_giving_if_done();
    }

    fn hear_from_taker(&mut self, key: Key, actions: &mut Vec<Action>) {
        let now_ms = Now::read().monotonic_ms;
        loop {
            let Some(index) = self.handover.giving.iter().position(|giving| giving.key == key) else {
                return;
            };
            let giving = &mut self.handover.giving[index];
            let payload = match socket::receive(giving.connection.socket()) {
                Ok(socket::Received::Nothing) => return,
                Ok(socket::Received::Message { payload, .. }) => payload,
                Ok(socket::Received::Closed) | Err(_) => return self.stop_giving_to(key, actions),
            };
            giving.since_ms = now_ms;
            match (
                std::mem::replace(&mut giving.state, State::Idle),
                wire::decode(&payload),
            ) {
                (State::Invited, Some(Answer(none))) if none.is_empty() => self.offer(index, now_ms),
                (State::Offered(ids), Some(Answer(joined))) if joined.len() == ids.len() => {
                    giving.state = State::Settling(ids.into_iter().zip(joined).collect());
                    // All messages up to now are drained and handed out before the subscribers go.
                    self.wake();
                }
                (state, _) => {
                    giving.state = state;
                    return self.stop_giving_to(key, actions);
                }
            }
        }
    }

    /// Offers the next subscribers in an idle session.
    fn offer(&mut self, index: usize, now_ms: u64) {
        if !matches!(self.handover.giving.get(index), Some(Giving { state: State::Idle, .. })) {
            return;
        }
        let ids = self.next_to_give();
        if ids.is_empty() {
            return;
        }
        let (offer, sockets) = self.describe(&ids);
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|&fd| borrow(fd)).collect();
        let giving = &mut self.handover.giving[index];
        match socket::send(giving.connection.socket(), &wire::encode(&offer), &fds) {
            Ok(()) => {
                giving.state = State::Offered(ids.clone());
                giving.since_ms = now_ms;
                for id in ids {
                    self.put_on_offer(id);
                }
            }
            // Too many descriptors are in flight: try later.
            Err(_) => self.events.shutdown_in(PACE_MS),
        }
    }

    /// Subscribers that can be given away now.
    fn next_to_give(&mut self) -> Vec<SubscriberId> {
        let mut ids = Vec::new();
        let end = self.registry.slab.end();
        for _ in 0..end {
            if ids.len() == OFFERED {
                break;
            }
            let index = self.handover.next % end;
            self.handover.next = (index + 1) % end;
            if let Some((id, subscriber)) = self.registry.slab.named(index)
                && subscriber.may_be_given()
                && subscriber.is_ready_to_go()
            {
                ids.push(id);
            }
        }
        ids
    }

    fn describe(&mut self, ids: &[SubscriberId]) -> (Offer, Vec<i32>) {
        let mut offer = Offer::default();
        let mut audiences = Vec::new();
        let mut sockets = Vec::with_capacity(ids.len());
        for &id in ids {
            let Some(subscriber) = self.registry.slab.get(id) else {
                continue;
            };
            sockets.push(subscriber.connection().fd());
            let audience = subscriber.audience.clone();
            let channels = subscriber
                .seats
                .iter()
                .filter_map(|seat| self.registry.channels.get(&seat.membership))
                .map(|channel| channel.id.to_vec())
                .collect();
            let location = audiences.iter().position(|known| std::rc::Rc::ptr_eq(known, &audience));
            let address = subscriber.share_of_address();
            let socket = subscriber.kind.socket();
            let (unanswered_since_ms, muted, operates) = socket.map_or((None, false, false), |socket| {
                (socket.unanswered_since_ms(), socket.muted, socket.operates)
            });
            let deflate = subscriber.style.framing.agreed();
            let due = |due_ms: u64| (due_ms != NEVER).then_some(due_ms);
            let mut described = wire::Subscriber {
                location: location.unwrap_or(audiences.len()) as u32,
                mode: subscriber.mode().name().to_owned(),
                chunked: subscriber.style.framing.around() == Framing::Chunked,
                tls: subscriber.has_own_tls(),
                coding: subscriber.style.framing.coding().map(|coding| coding.name().to_owned()),
                deflate: deflate.map(|agreed| (agreed.window_bits, agreed.takeover)),
                message_min: subscriber.style.message_min,
                channels,
                address: None,
                ping_due_ms: due(subscriber.ping_due_ms),
                end_due: subscriber.end_due.to_word(),
                subject: self.registry.subjects.get(id.index),
                unanswered_since_ms,
                muted,
                operates,
                disconnect_record: subscriber
                    .disconnect_record
                    .as_ref()
                    .map(|disconnect_record| disconnect_record.to_wire()),
            };
            if let (Some(worker), Some(address)) = (&self.worker, address) {
                described.address = Some(worker.address_key(address));
            }
            if location.is_none() {
                offer.locations.push(self.name_of(&audience));
                audiences.push(audience);
            }
            offer.subscribers.push(described);
        }
        (offer, sockets)
    }

    /// Marks a subscriber as on offer: nothing is sent to it or read from it, and messages for it are queued.
    fn put_on_offer(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        subscriber.transit = Transit::Leaving;
        // Nobody takes a subscriber with TLS for one without, whatever happens.
        if !subscriber.has_own_tls() {
            subscriber.set_direct_socket(THROUGH_CONNECTION);
        }
        let connection = subscriber.connection();
        connection.read().forget();
        connection.write().forget();
        connection.unwatch();
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.handover.losses.insert(id.index, Loss::default());
    }

    /// Records that a subscriber on offer lost a channel, or was dismissed, by the notice `seq`. Which worker ends it
    /// is decided later.
    pub fn note_loss(&mut self, index: u32, seq: u64, dismissed: bool) {
        if let Some(loss) = self.handover.losses.get_mut(&index) {
            loss.seq = Some(loss.seq.map_or(seq, |first| first.min(seq)));
            loss.dismissed |= dismissed;
        }
    }

    /// Records that the subject of a subscriber on offer was sent away: this worker ends it, whatever the other one says.
    /// False if that was known.
    pub fn note_dismissal(&mut self, index: u32) -> bool {
        let loss = self.handover.losses.entry(index).or_default();
        // Before any message that the other worker could begin with.
        loss.seq = Some(0);
        !std::mem::replace(&mut loss.subject, true)
    }

    /// Keeps a subscriber after all: it continues, or ends now if its end came due meanwhile.
    fn keep(&mut self, id: SubscriberId, transit: Transit, actions: &mut Vec<Action>) {
        let loss = self.handover.losses.remove(&id.index).unwrap_or_default();
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        subscriber.transit = transit;
        if !subscriber.has_own_tls() {
            subscriber.set_direct_socket(subscriber.connection().fd());
        }
        let failed = !subscriber.connection().watch();
        if failed {
            actions.push(Action::End(id, Ending::Failed));
            return;
        }
        if loss.subject {
            actions.extend(self.begin_end(id, Reason::SubjectDismissed));
        } else if loss.dismissed {
            actions.extend(self.begin_end(id, Reason::Dismissed));
        } else if loss.seq.is_some() && subscriber.seats.is_empty() {
            self.end_without_channels(id.index, actions);
        } else {
            self.schedule(id.index, Now::read().monotonic_ms);
            actions.push(Action::Advance(id));
        }
    }

    /// Once all messages published before the answers are handed out: sends the rest, and forgets the subscribers
    /// taken.
    pub fn conclude_giving(&mut self, actions: &mut Vec<Action>) {
        if !self.is_giving() || !self.is_at_rest() {
            return;
        }
        let now_ms = Now::read().monotonic_ms;
        let settling = |giving: &&mut Giving| matches!(giving.state, State::Settling(_));
        while let Some(giving) = self.handover.giving.iter_mut().find(settling) {
            let (key, connection) = (giving.key, giving.connection);
            let State::Settling(answers) = std::mem::replace(&mut giving.state, State::Idle) else {
                return;
            };
            giving.since_ms = now_ms;
            let (mut rest, mut keys) = (Rest::default(), Keys::default());
            for &(id, joined) in &answers {
                let mut unsent = joined.and_then(|joined| self.unsent(id, joined));
                keys.0
                    .push(unsent.as_mut().and_then(|unsent| self.part_with_tls(id, unsent)));
                rest.0.push(unsent);
            }
            let sent = socket::send_with(connection.socket(), &wire::encode(&rest), &keys.encode(), &[]).is_ok();
            for ((&(id, joined), rest), state) in answers.iter().zip(rest.0).zip(keys.0) {
                match (sent, rest, joined) {
                    (true, Some(_), _) => self.forget_given(id),
                    (_, rest, Some(_)) => {
                        // Nobody else has the state: nothing was sent.
                        if let (
                            Some(Unsent {
                                ciphertext: Some(ciphertext),
                                ..
                            }),
                            Some(state),
                        ) = (rest, state)
                            && let Some(subscriber) = self.registry.slab.get(id)
                        {
                            subscriber.resume_tls(state, ciphertext);
                        }
                        self.keep(id, Transit::None, actions);
                    }
                    // No worker will take it.
                    (_, _, None) => self.keep(id, Transit::Refused, actions),
                }
            }
            match self.handover.giving.iter().position(|giving| giving.key == key) {
                Some(index) if sent => self.offer(index, now_ms),
                _ => self.stop_giving_to(key, actions),
            }
        }
        self.end_giving_if_done();
    }

    /// The unsent rest of a subscriber, unless it was ended by a notice up to `joined`.
    fn unsent(&mut self, id: SubscriberId, joined: u64) -> Option<Unsent> {
        let loss = self.handover.losses.get(&id.index).copied().unwrap_or_default();
        let position = self.inbox.ordered.position(id.index);
        let subscriber = self.registry.slab.get(id)?;
        if subscriber.ending || loss.seq.is_some_and(|seq| seq <= joined) {
            return None;
        }
        let (bytes, last, sum) = match subscriber.unsent_compressed(joined) {
            Some(coded) => coded?,
            None => {
                let (bytes, last) = subscriber.send_queue.up_to(joined);
                (bytes, last, None)
            }
        };
        let position = match subscriber.send_queue.is_beyond(joined) {
            // Later messages have advanced it.
            true => last.or(subscriber.send_queue.position()),
            false => position,
        };
        Some(Unsent {
            bytes,
            position: position.map(|id| id.to_text().to_vec()),
            sum: sum.map(|sum| (sum.crc, sum.length)),
            ciphertext: None,
        })
    }

    /// Takes a subscriber's TLS apart, for the message that gives it away: from here on this worker can seal nothing more.
    fn part_with_tls(&mut self, id: SubscriberId, unsent: &mut Unsent) -> Option<tls::State> {
        let tls = self.registry.slab.get(id)?.tls.take()?;
        let (state, ciphertext) = tls.into_session().into_parts();
        unsent.ciphertext = Some(ciphertext);
        Some(state)
    }

    /// Forgets a subscriber that belongs to another worker now.
    fn forget_given(&mut self, id: SubscriberId) {
        self.handover.losses.remove(&id.index);
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let connection = subscriber.connection;
        let connected = subscriber.connected();
        debug_assert!(matches!(connected, store::Connection::Detached(_)));
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
        self.handover.given += 1;
        if let Some(worker) = &self.worker {
            worker.count(Counter::HandedOver, 1);
        }
        // SAFETY: the connection was the subscriber's; its socket stays open in the other process.
        unsafe { Connection::new(connection).close() };
    }
}

impl Subscriber {
    /// Can it be given away, now or later?
    fn may_be_given(&self) -> bool {
        self.transit == Transit::None
            && self.is_detached()
            && !self.ending
            && self.kind.is_endless()
            && !self.is_stream()
            && !self.frozen()
    }

    /// Is its replay complete, and no message of its client incomplete?
    fn is_ready_to_go(&self) -> bool {
        (self.direct_socket() >= 0 || self.tls.is_some())
            && self.replay.is_none()
            && self.kind.socket().is_none_or(Socket::is_idle)
    }
}
