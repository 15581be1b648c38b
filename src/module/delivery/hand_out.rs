//! Messages from the store to this worker's subscribers: drained, rendered once per style, handed out in slices.

use std::rc::Rc;
use std::time::{Duration, Instant};

use push_stream_core::store::{Batch, Drained, Membership, Now};
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::eventsource;

use super::action::{Action, Answer, Delivered};
use super::channel_queue::{ChannelQueue, DRAIN_BYTES};
use super::ending::{Ending, Reason};
use super::frames::{Frames, Piece};
use super::inbox::Inbox;
use super::output::Progress;
use super::profile::SlowReader;
use super::registry::Registry;
use super::send_queue::{Bound, Overflow, SendQueue};
use super::state::Delivery;
use super::subscriber::{Kind, Replaying, Subscriber, SubscriberId, Transit};
use crate::ffi::fault;

/// Time for handing out before other events get their turn: new readers and publishers do not wait for a broadcast.
const SLICE: Duration = Duration::from_millis(2);

/// Sends of one channel before another channel gets its turn, and between two looks at the clock.
pub const TURN: usize = 64;

/// Subscribers of a channel that are prefetched while its messages are rendered.
const PREFETCHED: usize = 3;

/// Actions (anything that takes more than a send) per slice.
const ACTIONS_PER_SLICE: usize = 64;

/// Slices of a replay for one subscriber before others get their turn.
const REPLAYS_PER_TURN: usize = 4;

/// A slice of work: its clocks are read once. Reading one takes as long as a good part of a delivery.
pub struct Slice {
    pub now: Now,
    pub started: Instant,
}

impl Slice {
    pub fn begin() -> Slice {
        Slice {
            now: Now::read(),
            started: Instant::now(),
        }
    }

    pub fn is_over(&self) -> bool {
        self.started.elapsed() >= SLICE
    }

    /// The wall clock now, in milliseconds since the epoch.
    pub fn unix_ms(&self) -> u64 {
        self.now.unix_ms + self.started.elapsed().as_millis() as u64
    }
}

/// How far a queue was handed out.
enum Handed {
    All,
    /// Up to the end of the queue's turn.
    Turn,
    /// Up to a subscriber whose socket did not take all bytes.
    Outcome {
        index: u32,
        delivered: Delivered,
    },
    /// Up to a subscriber that needs more than a send, and was not given anything.
    Special {
        index: u32,
        position: u32,
    },
}

impl Delivery {
    /// One slice of work; true if there is more.
    pub fn work(&mut self, slice: &Slice, actions: &mut Vec<Action>) -> bool {
        // Take new messages first: they need not wait until all earlier ones are handed out.
        self.take_messages();
        self.look_for_mail(actions);
        if !self.dismissals.is_empty() {
            self.dismiss_subjects(actions);
        }
        while actions.len() < ACTIONS_PER_SLICE {
            if self.inbox.is_handed_out() {
                let obeyed = self.control.is_busy() && self.obey(actions);
                if !self.take_messages() && !obeyed && !self.control.is_ready() {
                    break;
                }
            }
            self.hand_out(slice, actions);
            if !self.inbox.ordered.is_idle() {
                self.hand_out_ordered(slice, actions);
            }
            if !self.is_at_rest() && slice.is_over() {
                break;
            }
        }
        if !self.inbox.gathered.is_empty() {
            self.flush_streams(actions);
        }
        self.release_coalesced(slice.now.monotonic_ms, ACTIONS_PER_SLICE, actions);
        let turn = self.inbox.catching_up.len().min(ACTIONS_PER_SLICE);
        actions.extend(self.inbox.catching_up.drain(..turn).map(Action::Advance));
        self.count();
        !self.inbox.is_handed_out()
            || (self.inbox.dirty || self.control.is_busy()) && !self.handover.is_unplaced()
            || !self.inbox.catching_up.is_empty()
            || !self.inbox.coalescer.is_empty()
            || !self.dismissals.is_empty()
    }

    /// Are all messages taken and handed out that were published before the last look into the store?
    pub fn is_at_rest(&self) -> bool {
        self.inbox.is_handed_out() && !self.inbox.dirty
    }

    /// Frees buffers, once a second: neither one large message nor one large burst may hold memory for ever.
    pub fn forget_buffers(&mut self) {
        let Inbox {
            batch,
            scratch,
            catching_up,
            taken,
            gathered,
            ..
        } = &mut self.inbox;
        let at_rest = !std::mem::take(taken);
        if at_rest || scratch.capacity() > DRAIN_BYTES {
            *scratch = Vec::new();
            *batch = Batch::default();
            catching_up.shrink_to_fit();
            gathered.shrink_to_fit();
        }
    }

    /// Drains the store, as far as there is room, and renders once per style. False if there was nothing.
    fn take_messages(&mut self) -> bool {
        if self.inbox.queues.are_full() || self.handover.is_unplaced() {
            return false;
        }
        if self.control.is_busy() {
            return self.inbox.is_handed_out() && self.take_up_to_change();
        }
        if self.inbox.ordered.has_readers() {
            return self.inbox.ordered.is_idle() && self.take_whole_drain();
        }
        let Some(worker) = self.worker.as_mut().filter(|_| self.inbox.dirty) else {
            return false;
        };
        let mut batch = std::mem::take(&mut self.inbox.batch);
        let queues = &self.inbox.queues;
        self.inbox.dirty = worker.drain_except(DRAIN_BYTES, &mut batch, |membership| queues.is_full(membership));
        self.fill_queues(&batch);
        let taken = !batch.is_empty();
        batch.clear();
        self.inbox.batch = batch;
        taken
    }

    /// Drains the store completely, for merged channels: merging needs all messages up to some point.
    fn take_whole_drain(&mut self) -> bool {
        let mut taken = false;
        while let Some(worker) = self.worker.as_mut().filter(|_| self.inbox.dirty) {
            let mut batch = Batch::default();
            let drained = worker.drain_whole(DRAIN_BYTES, &mut batch);
            taken |= !batch.is_empty();
            self.fill_queues(&batch);
            self.inbox.ordered.take_up(&Rc::new(batch), &self.registry);
            if let Drained::Whole { more, .. } = drained {
                self.inbox.dirty = more;
                break;
            }
        }
        self.inbox.ordered.begin(&mut self.registry);
        taken
    }

    /// Renders messages for subscribers that are not ordered.
    pub fn fill_queues(&mut self, batch: &Batch) {
        let Inbox {
            queues, scratch, taken, ..
        } = &mut self.inbox;
        *taken |= !batch.is_empty();
        for (source, message) in batch.iter() {
            let membership = Membership(source);
            if let Some(channel) = self.registry.channels.get(&membership) {
                // Rendering takes as long as fetching them.
                for &index in channel.members.iter().take(PREFETCHED) {
                    self.registry.slab.prefetch(index);
                }
                queues.add(membership, channel, &message, (scratch, &mut self.compression));
            }
        }
    }

    /// Hands out the next queue for one turn. If messages are left in it, it queues up behind the others.
    fn hand_out(&mut self, slice: &Slice, actions: &mut Vec<Action>) {
        let Some(queue) = self.inbox.queues.next() else {
            return;
        };
        let now_ms = slice.now.monotonic_ms;
        let mut left = TURN;
        loop {
            let handed = if queue.is_compressed() {
                self.hand_out_quickly::<true>(&queue, &mut left, now_ms)
            } else {
                self.hand_out_quickly::<false>(&queue, &mut left, now_ms)
            };
            match handed {
                Handed::All => {
                    self.local_counters.observe(queue.published_ms(), slice.unix_ms());
                    return self.inbox.queues.finish_part(queue);
                }
                Handed::Turn => return self.inbox.queues.put_back(queue),
                Handed::Outcome { index, delivered } => self.account(index, delivered, actions),
                Handed::Special { index, position } => self.hand_to(index, position, &queue, now_ms, actions),
            }
        }
    }

    /// Hands a queue to all subscribers that only need a send, up to the first that needs more. `COMPRESSED`: some of
    /// them are compressed.
    fn hand_out_quickly<const COMPRESSED: bool>(
        &mut self,
        queue: &ChannelQueue,
        left: &mut usize,
        now_ms: u64,
    ) -> Handed {
        let others = !self.inbox.queues.is_empty();
        let Registry { slab, channels, .. } = &mut self.registry;
        let Some(channel) = channels.get_mut(&queue.membership()) else {
            return Handed::All;
        };
        loop {
            let position = channel.done;
            let Some(&index) = channel.members.get(position) else {
                channel.done = 0;
                return Handed::All;
            };
            if *left == 0 {
                return Handed::Turn;
            }
            *left -= 1;
            channel.done += 1;
            if let Some(&next) = channel.members.get(channel.done) {
                slab.prefetch(next);
            }
            let special = Handed::Special {
                index,
                position: position as u32,
            };
            let Some(subscriber) = slab.at(index).filter(|_| !queue.ends_somebody()) else {
                return special;
            };
            let compressed = COMPRESSED && subscriber.is_quick_compressed();
            if !compressed && !subscriber.is_quick() || others && subscriber.seats.len() > 1 {
                if !subscriber.is_quick_over_tls() || others && subscriber.seats.len() > 1 {
                    return special;
                }
                let Some((frames, from, _, count)) = queue.part_for(subscriber) else {
                    continue;
                };
                self.local_counters.delivered += count as u64;
                subscriber.postpone_ping(now_ms);
                match subscriber.send_quickly_over_tls(frames, from) {
                    Delivered::Sent => continue,
                    delivered => return Handed::Outcome { index, delivered },
                }
            }
            let Some((frames, from, _, count)) = queue.part_for(subscriber) else {
                continue;
            };
            self.local_counters.delivered += count as u64;
            subscriber.postpone_ping(now_ms);
            let delivered = if compressed {
                subscriber.send_compressed(frames, from, None)
            } else {
                subscriber.send_quickly(frames, from, None)
            };
            match delivered {
                Delivered::Sent => {}
                delivered => return Handed::Outcome { index, delivered },
            }
        }
    }

    fn hand_to(&mut self, index: u32, position: u32, queue: &ChannelQueue, now_ms: u64, actions: &mut Vec<Action>) {
        self.hand_part(index, position, queue, now_ms, actions);
        // Readers that resume in order get it from the merge.
        let subscriber = self.registry.slab.at(index);
        if let Some(seq) = queue
            .dismissed()
            .filter(|_| !subscriber.is_some_and(|subscriber| subscriber.style.format.ordered))
        {
            self.dismiss(index, seq, actions);
        }
    }

    /// Ends a subscriber that was present when all were dismissed.
    pub fn dismiss(&mut self, index: u32, seq: u64, actions: &mut Vec<Action>) {
        let Some((id, subscriber)) = self.registry.slab.named(index) else {
            return;
        };
        if subscriber.transit == Transit::Leaving {
            self.note_loss(index, seq, true);
        } else if !subscriber.ending && subscriber.joined_seq < seq {
            actions.extend(self.begin_end(id, Reason::Dismissed));
        }
    }

    fn hand_part(&mut self, index: u32, position: u32, queue: &ChannelQueue, now_ms: u64, actions: &mut Vec<Action>) {
        let expects = self.expects_more(index);
        let Some((id, subscriber)) = self.registry.slab.named(index) else {
            return;
        };
        let Some((frames, from, mark, count)) = queue.part_for(subscriber) else {
            return;
        };
        fault::point("hand out");
        if let Kind::Waiting(_) = subscriber.kind {
            if subscriber.ending {
                return;
            }
            self.local_counters.delivered += 1;
            let to = mark.end();
            let answer = Answer {
                deleted: queue.is_deleted() && mark.seq == frames.last_seq(),
                piece: Piece {
                    frames: frames.clone(),
                    from,
                    to,
                },
                time: mark.time,
                tag: mark.tag,
                position: None,
                missed: Vec::new(),
            };
            self.leave_store(index);
            actions.push(Action::Answer(id, answer));
            return;
        }
        if !subscriber.ending {
            self.local_counters.delivered += count as u64;
            let piece = Piece::tail(frames, from);
            let delivered = if subscriber.may_coalesce() {
                self.coalesce(id, piece, expects, now_ms)
            } else {
                subscriber.deliver(piece, None, now_ms)
            };
            self.account(index, delivered, actions);
        }
        if queue.is_deleted() {
            let seq = frames.last_seq();
            self.lose_channel(index, (queue.membership(), position), seq, actions);
        }
    }

    /// Counts the outcome of a live piece, and queues the action that it needs.
    pub fn account(&mut self, index: u32, delivered: Delivered, actions: &mut Vec<Action>) {
        let Some((id, subscriber)) = self.registry.slab.named(index) else {
            return;
        };
        match delivered {
            Delivered::Sent => {}
            Delivered::Queued { dropped } => {
                self.counters.dropped += dropped as u64;
                if let Some(disconnect_record) = &mut subscriber.disconnect_record {
                    disconnect_record.drop_messages(dropped);
                }
                self.local_counters.slow(subscriber.audience.slow_reader, dropped > 0);
                if dropped > 0 {
                    self.local_counters.gap_notices += u64::from(subscriber.tell_missed());
                }
            }
            Delivered::Advance => actions.push(Action::Advance(id)),
            Delivered::Gathered => self.gather(id, actions),
            Delivered::Cut(ending) => {
                // Nothing more may be written: TLS would take it for a bad repetition.
                subscriber.ending = true;
                self.counters.too_slow += u64::from(ending == Ending::TooSlow);
                self.local_counters.slow(SlowReader::Close, ending == Ending::TooSlow);
                actions.push(Action::End(id, ending));
            }
        }
    }

    /// Removes a subscriber from a deleted channel, by the deletion notice `seq`; with its last channel the subscriber
    /// ends. `seat`: the channel, and the position in it.
    pub fn lose_channel(&mut self, index: u32, seat: (Membership, u32), seq: u64, actions: &mut Vec<Action>) {
        let Some(left) = self.registry.unseat(index, Some(seat)) else {
            return;
        };
        if let Some(worker) = &mut self.worker {
            worker.leave(&[left], false);
        }
        let Some(subscriber) = self.registry.slab.at(index) else {
            return;
        };
        if subscriber.transit == Transit::Leaving {
            self.note_loss(index, seq, false);
        } else if subscriber.seats.is_empty() {
            self.end_without_channels(index, actions);
        }
    }

    /// Ends a subscriber whose last channel was deleted.
    pub fn end_without_channels(&mut self, index: u32, actions: &mut Vec<Action>) {
        let Some((id, subscriber)) = self.registry.slab.named(index) else {
            return;
        };
        subscriber.ends(Reason::ChannelDeleted);
        let address: Vec<Membership> = subscriber.take_address().into_iter().collect();
        subscriber.push_farewell();
        subscriber.ending = true;
        actions.push(Action::Advance(id));
        if let Some(worker) = &mut self.worker {
            worker.leave(&address, true);
        }
        self.look_if_woken();
    }

    /// Fetches the next messages of a replay, for a subscriber whose send queue is empty.
    pub fn replay(&mut self, id: SubscriberId, turns: &mut usize) -> Replayed {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return Replayed::Nothing;
        };
        let Some(mut replaying) = subscriber.replay.take() else {
            return Replayed::Nothing;
        };
        if *turns == REPLAYS_PER_TURN {
            subscriber.replay = Some(replaying);
            self.inbox.catching_up.push_back(id);
            return Replayed::Later;
        }
        *turns += 1;
        let Some(worker) = &mut self.worker else {
            return Replayed::Nothing;
        };
        let more = worker.replay(&mut replaying.replay, &mut self.inbox.batch);
        if subscriber.is_broken_off(&mut replaying) {
            self.inbox.batch.clear();
            return Replayed::Broken;
        }
        self.local_counters.delivered += self.inbox.batch.len() as u64;
        self.local_counters.gap_notices += u64::from(subscriber.tell_lost(&mut replaying, &self.inbox.batch));
        let mut frames = Frames::default();
        for (index, mut message) in self.inbox.batch.iter() {
            if replaying.floor.is_some() && message.event_id.and_then(OrderedId::parse) <= replaying.floor {
                message.repeated_id = true;
            }
            let channel = replaying.ids.get(index as usize).map_or(&b""[..], |id| id);
            if let Kind::Answer(rest) = &subscriber.kind
                && !std::mem::take(&mut replaying.first)
            {
                frames.push_bytes(rest.separator, subscriber.style.framing);
            }
            frames.push(&subscriber.style, channel, &message, &mut self.inbox.scratch);
            if let Some(id) = message.event_id.filter(|_| !message.repeated_id) {
                replaying.position = None;
                replaying.last = OrderedId::parse(id).or(replaying.last);
            }
        }
        self.inbox.batch.clear();
        if let Some(disconnect_record) = &mut subscriber.disconnect_record {
            disconnect_record.add_messages(frames.messages_from(0));
        }
        subscriber.send_queue.push(Piece::whole(Rc::new(frames)));
        if more {
            subscriber.replay = Some(replaying);
        } else {
            subscriber.caught_up(*replaying);
        }
        Replayed::Some
    }
}

/// Outcome of [`Delivery::replay`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    Nothing,
    /// Messages were put into the send queue.
    Some,
    /// Other subscribers get their turn first.
    Later,
    /// Messages are missing and the head cannot say so any more: the answer must not look complete.
    Broken,
}

impl Subscriber {
    /// Can a live piece be delivered by a plain send?
    pub fn is_quick(&self) -> bool {
        self.socket >= 0
            && !self.ending
            && self.send_queue.is_empty()
            && self.replay.is_none()
            && self.disconnect_record.is_none()
    }

    /// Sends frames from byte `from` on to a [quick](Subscriber::is_quick) subscriber.
    /// `position`: as for [`Subscriber::deliver`].
    pub fn send_quickly(&mut self, frames: &Rc<Frames>, from: u32, position: Option<OrderedId>) -> Delivered {
        match self.send_to_socket(self.socket, frames.bytes_from(from)) {
            (_, Progress::Done) => Delivered::Sent,
            (taken, Progress::Blocked) => self.keep_rest(Piece::tail(frames, from), taken, position),
            (_, Progress::Failed) => Delivered::Cut(Ending::Failed),
        }
    }

    /// Can a live piece be delivered by sealing and sending it?
    pub fn is_quick_over_tls(&self) -> bool {
        self.may_seal_now() && !self.is_compressed()
    }

    /// Can what comes next be sealed and sent, with nothing before it?
    pub fn may_seal_now(&self) -> bool {
        self.has_own_tls()
            && !self.ending
            && !self.is_in_transit()
            && self.send_queue.is_empty()
            && self.replay.is_none()
            && self.disconnect_record.is_none()
            && self.tls.as_ref().is_some_and(|tls| !tls.session.is_blocked())
    }

    /// Seals and sends frames from byte `from` on to a [quick](Subscriber::is_quick_over_tls) subscriber.
    pub fn send_quickly_over_tls(&mut self, frames: &Rc<Frames>, from: u32) -> Delivered {
        match self.seal(frames.bytes_from(from)) {
            (_, Progress::Done) => Delivered::Sent,
            (sealed, Progress::Blocked) => self.keep_rest(Piece::tail(frames, from), sealed, None),
            (_, Progress::Failed) => Delivered::Cut(Ending::Failed),
        }
    }

    /// Queues the rest of a piece until the socket is writable again.
    pub fn keep_rest(&mut self, piece: Piece, taken: usize, position: Option<OrderedId>) -> Delivered {
        self.send_queue.push(piece);
        self.send_queue.set_position(position);
        self.send_queue.start();
        self.send_queue.advance(taken);
        self.wait_writable();
        Delivered::Queued { dropped: 0 }
    }

    /// Records a live piece: postpones the ping, counts messages for the disconnect log.
    pub fn note_live(&mut self, piece: &Piece, now_ms: u64) {
        self.postpone_ping(now_ms);
        if let Some(disconnect_record) = &mut self.disconnect_record {
            disconnect_record.add_messages(piece.frames.messages_from(piece.from));
        }
    }

    /// Delivers a live piece: sends it, or queues it behind waiting pieces. `position`: that of a reader that resumes
    /// in order, before this piece.
    pub fn deliver(&mut self, piece: Piece, position: Option<Option<OrderedId>>, now_ms: u64) -> Delivered {
        self.note_live(&piece, now_ms);
        if self.is_compressed() {
            return self.deliver_compressed(piece, position);
        }
        let bound = self.bound(self.frozen());
        if let Some(replaying) = &mut self.replay {
            return queued(push_at(replaying.behind(), piece, bound, position));
        }
        if self.is_stream()
            && let Some(delivered) = self.send_to_stream(&piece)
        {
            return delivered;
        }
        match self.send_now(&piece) {
            Some((_, Progress::Done)) => Delivered::Sent,
            Some((_, Progress::Failed)) => Delivered::Cut(Ending::Failed),
            Some((taken, Progress::Blocked)) => self.keep_rest(piece, taken, position.flatten()),
            None => {
                let idle = self.is_filtered() && self.send_queue.is_empty();
                match queued(push_at(&mut self.send_queue, piece, bound, position)) {
                    Delivered::Queued { .. } if idle => Delivered::Advance,
                    delivered => delivered,
                }
            }
        }
    }

    /// Puts a gap notice in front of the next messages of a slow reader; true if there is one.
    fn tell_missed(&mut self) -> bool {
        if self.style.format.gap_text.is_none() {
            return false;
        }
        let queue = match &mut self.replay {
            Some(replaying) => replaying.behind(),
            None => &mut self.send_queue,
        };
        let notices: Vec<Vec<u8>> = queue
            .missed()
            .iter()
            .map(|missed| {
                let mut notice = Vec::new();
                let format = &self.style.format;
                format.render_gap(&missed.channel, missed.position, missed.first, None, &mut notice);
                notice
            })
            .collect();
        if !notices.is_empty() {
            queue.put_gap(Piece::whole(Frames::of_gaps(&notices, self.style.framing)));
        }
        !notices.is_empty()
    }

    /// Is this a poll's answer that lost messages after its head was sent? The client asks again, and is told then.
    fn is_broken_off(&self, replaying: &mut Replaying) -> bool {
        let tells = self.style.format.gap_text.is_some() && matches!(self.kind, Kind::Answer(_));
        tells && !replaying.replay.take_gaps().is_empty()
    }

    /// Puts gap notices in front of the rest of `batch` if old messages were evicted before a slow reader got them.
    /// True if there are any.
    fn tell_lost(&mut self, replaying: &mut Replaying, batch: &Batch) -> bool {
        let lost = replaying.replay.take_gaps();
        if lost.is_empty() || self.style.format.gap_text.is_none() {
            return false;
        }
        for path_index in lost {
            let of_channel = batch.iter().filter(|(index, _)| *index == path_index);
            let first = of_channel
                .filter_map(|(_, message)| message.event_id)
                .find_map(OrderedId::parse);
            let channel = replaying.ids.get(path_index as usize).map_or(&b""[..], |id| id);
            let mut notice = Vec::new();
            self.style
                .format
                .render_gap(channel, replaying.last, first, None, &mut notice);
            self.send_queue
                .push(Piece::whole(Frames::of_gaps(&[notice], self.style.framing)));
        }
        true
    }

    /// The replay is in the send queue completely; the live messages behind it follow.
    fn caught_up(&mut self, mut replaying: Replaying) {
        if let Some(position) = replaying.position {
            let line = eventsource::position(position);
            self.send_queue
                .push(Piece::whole(Frames::of_bytes(&line, self.style.framing)));
        }
        self.send_queue.append(&mut replaying.behind);
        self.replay = replaying.further.take();
        if let Kind::Answer(rest) = &self.kind {
            let closing = Frames::of_bytes(&rest.closing, self.style.framing);
            self.send_queue.push(Piece::whole(closing));
            self.ending = true;
        }
    }
}

/// Queues a live piece; earlier pieces in the queue do not change the reader's position.
pub fn push_at(
    queue: &mut SendQueue,
    piece: Piece,
    bound: Bound,
    position: Option<Option<OrderedId>>,
) -> Result<usize, Overflow> {
    let first = queue.is_empty();
    let dropped = queue.push_bounded(piece, bound)?;
    if first {
        queue.set_position(position.flatten());
    }
    Ok(dropped)
}

pub fn queued(result: Result<usize, Overflow>) -> Delivered {
    match result {
        Ok(dropped) => Delivered::Queued { dropped },
        Err(_) => Delivered::Cut(Ending::TooSlow),
    }
}
