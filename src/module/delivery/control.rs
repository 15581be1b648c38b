//! Live subscriptions: what other nginx workers, or this one, ask of this worker's readers.
//!
//! A change joins its channels first, in one mutation that fixes a sequence number, and selects their history. Before it
//! takes effect, all messages up to that number are drained and handed out, and no other: so the reader has been given
//! everything of its channels up to there, and everything behind it comes to it as to a member of all of them. Between
//! the two it is sent the history. A reader that resumes in order is shown ids of the history as positions only if they
//! are above all that it has seen; at the end it is told its position, from which nothing is missing in any channel, and
//! which channels it has.
//!
//! Nothing of it lasts but the seats: a session's secret is computed, and a reader that cannot be changed has no part
//! in this.

use std::rc::Rc;

use smallvec::SmallVec;

use push_stream_core::store::{
    Batch, Command, Counter, Drained, JoinChannel, JoinMode, JoinRequest, Joined, Membership, Now, Position, Process,
    Refusal,
};
use push_stream_core::wire::control::{self, Change, Key, Outcome, Place, Refused, Session};
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::eventsource;

use super::action::Action;
use super::changes::{Origin, Pending};
use super::channel_queue::DRAIN_BYTES;
use super::format::Transport;
use super::frames::{Frames, Piece};
use super::state::Delivery;
use super::subjects::DISMISS;
use super::subscriber::{EndCause, EndDue, Kind, Replaying, SPREAD_MS, Subscriber, SubscriberId, random_below};

/// The kind of the command that brings a [`Change`]; its answer is an [`Outcome`].
pub const CHANGE: u16 = 1;

/// Commands obeyed before others get their turn.
const COMMANDS_PER_TURN: usize = 16;

/// Channels of a session at most, and bytes of their ids together: they fit into an answer.
const MOST_CHANNELS: usize = 1024;
const MOST_BYTES: usize = 12 * 1024;

/// What a change has joined, if anything, and the ids of those channels.
type Entered = (Option<Joined>, Vec<Rc<[u8]>>);

impl Subscriber {
    /// May its channels be changed?
    fn may_change(&self) -> bool {
        self.has_session() || self.kind.socket().is_some_and(|socket| socket.operates)
    }

    /// May its channels be changed by requests, and is its client told how?
    pub fn has_session(&self) -> bool {
        self.audience.control
            && self.style.format.transport == Transport::EventSource
            && matches!(self.kind, Kind::Stream | Kind::Compressed(_))
    }
}

impl Delivery {
    /// A reader's session.
    fn session(&mut self, id: SubscriberId) -> Option<Session> {
        let Process { slot, generation } = self.worker.as_ref()?.process();
        if self.control.key.is_none() {
            self.control.key = Key::new();
        }
        let place = Place {
            slot,
            slot_generation: generation,
            index: id.index,
            generation: id.generation,
        };
        Some(self.control.key.as_ref()?.session(place))
    }

    /// Queues the event that tells a reader its session, if it has one. True if it was queued.
    pub fn tell_session(&mut self, id: SubscriberId) -> bool {
        let Some(session) = self
            .registry
            .slab
            .get(id)
            .is_some_and(|subscriber| subscriber.has_session())
            .then(|| self.session(id))
            .flatten()
        else {
            return false;
        };
        if let Some(subscriber) = self.registry.slab.get(id) {
            // Before the history, which waits until the queue is empty.
            let event = Frames::of_bytes(&session.to_event(None), subscriber.style.framing);
            subscriber.send_queue.push(Piece::whole(event));
        }
        true
    }

    /// Obeys commands, once all messages that were taken are handed out. True if something was done.
    pub fn obey(&mut self, actions: &mut Vec<Action>) -> bool {
        let mut obeyed = false;
        for _ in 0..COMMANDS_PER_TURN {
            if let Some(pending) = self.control.pending.take_if(|pending| pending.reached) {
                self.apply(pending, actions);
                obeyed = true;
            }
            if self.control.pending.is_some() || self.handover.is_unplaced() {
                break;
            }
            if let Some((origin, id, change)) = self.next_operation() {
                obeyed = true;
                self.begin_change(origin, id, change, actions);
                continue;
            }
            let Some(command) = self.worker.as_mut().and_then(|worker| worker.take_command()) else {
                self.control.waiting = false;
                break;
            };
            obeyed = true;
            match command.kind {
                CHANGE => self.begin_command(command, actions),
                DISMISS => self.begin_dismissal(command),
                _ => self.answer(command, &[]),
            }
        }
        obeyed
    }

    pub fn answer(&mut self, command: Command, text: &[u8]) {
        let now = Now::read();
        if let Some(worker) = &mut self.worker
            && let Err((command, _)) = worker.answer(command, text, now)
        {
            let short = control::encode(&Outcome::Refused(Refused::ZoneFull));
            // There is always room for a short one.
            let _ = worker.answer(command, &short, now);
        }
        self.look_if_woken();
    }

    fn conclude(&mut self, origin: Origin, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Done(_) => Counter::SessionChanged,
            Outcome::Unknown | Outcome::Moving => Counter::SessionUnknown,
            Outcome::Refused(_) => Counter::SessionRefused,
        };
        if let Some(worker) = &self.worker {
            worker.count(counter, 1);
        }
        match origin {
            Origin::Command(command) => self.answer(command, &control::encode(outcome)),
            Origin::Operation(id, name) => self.reply(id, &name, outcome),
        }
    }

    /// The reader of a session.
    fn reader(&mut self, session: Session) -> Option<SubscriberId> {
        let place = session.place;
        let own = self.worker.as_ref()?.process();
        let here = (own.slot, own.generation) == (place.slot, place.slot_generation);
        let known = here && self.control.key.as_ref()?.knows(session);
        let id = SubscriberId {
            index: place.index,
            generation: place.generation,
        };
        Some(id).filter(|_| known)
    }

    /// Is the reader there, not ending, and may it be changed?
    fn is_present(&mut self, id: SubscriberId) -> Result<(), Outcome> {
        let subscriber = self.registry.slab.get(id);
        match subscriber.filter(|subscriber| !subscriber.ending && subscriber.may_change()) {
            None => Err(Outcome::Unknown),
            Some(subscriber) if subscriber.is_in_transit() => Err(Outcome::Moving),
            Some(_) => Ok(()),
        }
    }

    /// Ids of a reader's channels, each once, with its seats there.
    pub fn channels_of(&mut self, id: SubscriberId) -> Vec<Rc<[u8]>> {
        let mut ids: Vec<Rc<[u8]>> = Vec::new();
        let seats = self.registry.slab.get(id).map(|subscriber| subscriber.seats.clone());
        for seat in seats.into_iter().flatten() {
            if let Some(channel) = self.registry.channels.get(&seat.membership)
                && !ids.contains(&channel.id)
            {
                ids.push(channel.id.clone());
            }
        }
        ids
    }

    fn begin_command(&mut self, command: Command, actions: &mut Vec<Action>) {
        let Some(change) = control::decode::<Change>(&command.text) else {
            let outcome = Outcome::Refused(Refused::Unavailable);
            return self.conclude(Origin::Command(command), &outcome);
        };
        match change.session.and_then(|session| self.reader(session)) {
            Some(id) => self.begin_change(Origin::Command(command), id, change, actions),
            None => self.conclude(Origin::Command(command), &Outcome::Unknown),
        }
    }

    /// Joins the channels of a change.
    fn begin_change(&mut self, origin: Origin, id: SubscriberId, mut change: Change, actions: &mut Vec<Action>) {
        match self.join_further(id, &mut change) {
            Err(outcome) => self.conclude(origin, &outcome),
            Ok((joined, ids)) => {
                let pending = Pending {
                    origin,
                    change,
                    id,
                    reached: joined.is_none() || self.worker.as_ref().is_some_and(|worker| !worker.has_messages()),
                    joined,
                    ids,
                };
                if pending.reached {
                    self.apply(pending, actions);
                } else {
                    self.control.pending = Some(pending);
                }
            }
        }
    }

    /// Joins the channels that the reader does not have yet, if there are any. Returns their ids, too.
    fn join_further(&mut self, id: SubscriberId, change: &mut Change) -> Result<Entered, Outcome> {
        let refused = |refused| Outcome::Refused(refused);
        self.is_present(id)?;
        let held = self.channels_of(id);
        let mut ids: Vec<Rc<[u8]>> = Vec::new();
        change.subscribe.retain(|wanted| {
            let new = !held.iter().chain(&ids).any(|known| **known == *wanted.id);
            if new {
                ids.push(wanted.id[..].into());
            }
            new
        });
        let left = held
            .iter()
            .filter(|known| change.unsubscribe.iter().any(|id| ***known == **id));
        let kept = held.len() - left.count();
        if kept + ids.len() == 0 {
            return Err(refused(Refused::LastChannel));
        }
        let bytes: usize = held.iter().chain(&ids).map(|id| id.len() + 4).sum();
        if held.len() + ids.len() > MOST_CHANNELS || bytes > MOST_BYTES {
            return Err(refused(Refused::TooManyChannels));
        }
        if ids.is_empty() {
            return Ok((None, ids));
        }
        let guarded = self
            .registry
            .slab
            .get(id)
            .is_some_and(|subscriber| subscriber.audience.guarded);
        if guarded && !change.checked {
            return Err(refused(Refused::NotGranted));
        }
        let Some((subscriber, worker)) = self.registry.slab.get(id).zip(self.worker.as_mut()) else {
            return Err(Outcome::Unknown);
        };
        let format = &subscriber.style.format;
        let channels: Vec<JoinChannel<'_>> = change
            .subscribe
            .iter()
            .map(|wanted| JoinChannel {
                id: &wanted.id,
                backtrack: wanted.backtrack,
            })
            .collect();
        let request = JoinRequest {
            channels: &channels,
            position: Position {
                event_id: change.last_event_id.as_deref(),
                ..Position::default()
            },
            mode: JoinMode::Further,
            ordered: format.ordered,
            gap_notices: format.gap_text.is_some(),
            authorized_channels_only: change.authorized_channels_only,
            may_follow_events: change.may_follow_events,
            address: None,
        };
        let joined = worker.join(&request, Now::read()).map_err(|refusal| {
            refused(match refusal {
                Refusal::TooManySubscribers => Refused::TooManySubscribers,
                Refusal::TooManyChannels => Refused::ChannelLimit,
                Refusal::MayNotCreate => Refused::MayNotCreate,
                Refusal::EventsChannel => Refused::EventsChannel,
                Refusal::NothingToEvict | Refusal::Full => Refused::ZoneFull,
                _ => Refused::Unavailable,
            })
        })?;
        worker.count(Counter::GapNotice, u64::from(!joined.gaps.is_empty()));
        self.look_if_woken();
        Ok((Some(joined), ids))
    }

    /// Takes all messages up to the join of the pending change, and no other, once those before are handed out. False if
    /// there was nothing to take.
    pub fn take_up_to_change(&mut self) -> bool {
        let mut taken = false;
        let Some(last) = self.control.pending.as_ref().filter(|pending| !pending.reached) else {
            return false;
        };
        let last = last.joined.as_ref().map_or(0, |joined| joined.seq);
        while let Some(worker) = &mut self.worker {
            let mut batch = Batch::default();
            let drained = worker.drain_whole_to(last, DRAIN_BYTES, &mut batch);
            taken |= !batch.is_empty();
            self.fill_queues(&batch);
            if self.inbox.ordered.has_readers() {
                self.inbox.ordered.take_up(&Rc::new(batch), &self.registry);
            }
            if let Drained::Whole { more, until } = drained {
                self.inbox.dirty = more;
                if let Some(pending) = self.control.pending.as_mut().filter(|_| until >= last) {
                    pending.reached = true;
                }
                break;
            }
        }
        if self.inbox.ordered.has_readers() {
            self.inbox.ordered.begin(&mut self.registry);
        }
        taken
    }

    /// Gives a reader its new channels and takes the others from it: it has been given all messages up to the join.
    fn apply(&mut self, pending: Pending, actions: &mut Vec<Action>) {
        let Pending {
            origin,
            change,
            id,
            joined,
            ids,
            ..
        } = pending;
        if let Err(outcome) = self.is_present(id) {
            if let (Some(joined), Some(worker)) = (joined, &mut self.worker) {
                worker.leave(&joined.memberships, false);
            }
            self.look_if_woken();
            return self.conclude(origin, &outcome);
        }
        if let Some(joined) = joined {
            self.seat(id, joined, ids, change.last_event_id.as_deref());
        }
        self.unseat(id, &change.unsubscribe);
        if let Some(ends_ms) = change.ends_ms {
            self.renew(id, ends_ms);
        }
        match change.subject {
            Some(Some(subject)) => self.registry.subjects.set(id.index, subject),
            Some(None) => self.registry.subjects.remove(id.index),
            None => {}
        }
        let held: Vec<Vec<u8>> = self.channels_of(id).iter().map(|id| id.to_vec()).collect();
        if let (Some(subscriber), Some(session)) = (self.registry.slab.get(id), change.session) {
            // Behind the history: from then on the client's position is true for all of them.
            subscriber.push_event(&session.to_event(Some(&held)));
        }
        actions.push(Action::Advance(id));
        self.conclude(origin, &Outcome::Done(held));
    }

    fn seat(&mut self, id: SubscriberId, joined: Joined, ids: Vec<Rc<[u8]>>, asked: Option<&[u8]>) {
        for (&membership, channel) in joined.memberships.iter().zip(&ids) {
            self.registry.seat(id.index, membership, channel);
        }
        let ordered = &mut self.inbox.ordered;
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        subscriber.joined_seq = subscriber.joined_seq.max(joined.seq);
        let asked = asked.and_then(OrderedId::parse);
        let notice = joined.position_of_notice();
        for gap in &joined.gaps {
            let mut text = Vec::new();
            let channel = ids.get(gap.path_index as usize).map_or(&b""[..], |id| id);
            let format = &subscriber.style.format;
            format.render_gap(channel, asked, gap.first, notice, &mut text);
            subscriber.push_event(&text);
        }
        let eventsource = subscriber.style.format.transport == Transport::EventSource;
        let (mut floor, mut position) = (None, None);
        if subscriber.style.format.ordered {
            floor = ordered.position(id.index);
            position = joined.position.filter(|&position| Some(position) > floor);
            if position.is_some() {
                ordered.add_reader(id.index, position);
            }
        }
        match joined.replay {
            Some(replay) => {
                let further = Box::new(Replaying {
                    replay,
                    ids,
                    behind: Default::default(),
                    first: false,
                    position: position.filter(|_| eventsource),
                    last: asked.or(floor),
                    floor,
                    further: None,
                });
                match &mut subscriber.replay {
                    Some(before) => before.last().further = Some(further),
                    None => subscriber.replay = Some(further),
                }
            }
            None => {
                if let Some(position) = position.filter(|_| eventsource) {
                    subscriber.push_event(&eventsource::position(position));
                }
            }
        }
    }

    fn unseat(&mut self, id: SubscriberId, ids: &[Vec<u8>]) {
        let seats = self.registry.slab.get(id).map(|subscriber| subscriber.seats.clone());
        let mut left = SmallVec::<[Membership; 4]>::new();
        for seat in seats.into_iter().flatten() {
            let channel = self.registry.channels.get(&seat.membership);
            if channel.is_some_and(|channel| ids.iter().any(|id| *channel.id == **id)) {
                // Its position may have changed by the one before.
                let place = self.registry.seat_in(id.index, seat.membership);
                left.extend(place.and_then(|place| self.registry.unseat(id.index, Some((seat.membership, place)))));
            }
        }
        if let Some(worker) = self.worker.as_mut().filter(|_| !left.is_empty()) {
            worker.leave(&left, false);
        }
        self.look_if_woken();
    }

    /// A new token takes the place of the old one's end. The time limit of the location counts from now, where it is not
    /// known any more when it began.
    fn renew(&mut self, id: SubscriberId, ends_ms: Option<u64>) {
        let now_ms = Now::read().monotonic_ms;
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let due = subscriber.end_due;
        let ttl_ms = match due.cause() {
            EndCause::Ttl if due == EndDue::NEVER => None,
            EndCause::Ttl => Some(due.at_ms()),
            EndCause::Token | EndCause::TokenTold => subscriber.audience.ttl_ms.map(|ttl_ms| now_ms + ttl_ms),
        };
        let ends_ms = ends_ms.map(|ends_ms| ends_ms.saturating_add(random_below(SPREAD_MS)));
        subscriber.end_due = EndDue::earlier(ttl_ms, ends_ms);
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.schedule(id.index, now_ms);
    }
}
