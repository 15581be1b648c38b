//! Handing merged messages out to readers that resume in order.

use std::rc::Rc;

use push_stream_core::store::Membership;
use smallvec::SmallVec;

use super::action::{Action, Answer};
use super::frames::{Frames, Piece};
use super::hand_out::{Slice, TURN};
use super::ordered::Sources;
use super::state::Delivery;
use super::subscriber::{Kind, SubscriberId};

impl Delivery {
    /// Hands out merged messages, for one turn.
    pub fn hand_out_ordered(&mut self, slice: &Slice, actions: &mut Vec<Action>) {
        for _ in 0..TURN {
            let Some(id) = self.inbox.ordered.waiting.pop_front() else {
                break;
            };
            self.hand_ordered_to(id, slice.now.monotonic_ms, actions);
            self.dismiss_ordered(id, actions);
        }
        let ordered = &mut self.inbox.ordered;
        if ordered.waiting.is_empty() {
            ordered.lists.clear();
            ordered.shared.clear();
            ordered.recent = None;
            let published_ms = std::mem::take(&mut ordered.published_ms);
            if !published_ms.is_empty() {
                self.local_counters.observe(&published_ms, slice.unix_ms());
            }
        }
    }

    /// Ends a reader that was present when all subscribers of one of its channels were dismissed.
    fn dismiss_ordered(&mut self, id: SubscriberId, actions: &mut Vec<Action>) {
        let Some(subscriber) = self.registry.slab.get(id) else {
            return;
        };
        let lists = &self.inbox.ordered.lists;
        let dismissed = |membership| lists.get(membership).and_then(|list| list.dismissed);
        if let Some(seq) = subscriber
            .seats
            .iter()
            .filter_map(|seat| dismissed(&seat.membership))
            .max()
        {
            self.dismiss(id.index, seq, actions);
        }
    }

    /// Tells a reader, before the messages of this drain, that a full zone evicted messages that it would have got
    /// next.
    fn tell_taken_away(&mut self, id: SubscriberId, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(subscriber) = self.registry.slab.get(id).filter(|subscriber| !subscriber.ending) else {
            return;
        };
        let style = subscriber.style.clone();
        let ordered = &mut self.inbox.ordered;
        if style.format.gap_text.is_none() || ordered.lists.values().all(|list| list.lost.is_none()) {
            return;
        }
        let position = ordered.positions.get(&id.index).copied().flatten();
        let waits = matches!(subscriber.kind, Kind::Waiting(_));
        let mut told = SmallVec::<[Membership; 2]>::new();
        let mut notices = Vec::new();
        for membership in subscriber.seats.iter().map(|seat| seat.membership) {
            let list = ordered.lists.get(&membership);
            let Some(list) = list.filter(|list| list.has_lost(subscriber.joined_seq)) else {
                continue;
            };
            let Some(channel) = self.registry.channels.get(&membership) else {
                continue;
            };
            if told.contains(&membership) {
                continue;
            }
            told.push(membership);
            if waits {
                let missed = ordered.missed.entry(id.index).or_default();
                if !missed.contains(&channel.id) {
                    missed.push(channel.id.clone());
                }
                continue;
            }
            let first = list.items[list.from(subscriber.joined_seq)..]
                .iter()
                .find_map(|item| item.id);
            let mut notice = Vec::new();
            style.format.render_gap(&channel.id, position, first, None, &mut notice);
            notices.push(notice);
        }
        self.local_counters.gap_notices += u64::from(!told.is_empty());
        if !notices.is_empty() {
            let piece = Piece::whole(Frames::of_texts(&notices, style.framing));
            let delivered = subscriber.deliver(piece, Some(position), now_ms);
            self.account(id.index, delivered, actions);
        }
    }

    fn hand_ordered_to(&mut self, id: SubscriberId, now_ms: u64, actions: &mut Vec<Action>) {
        self.tell_taken_away(id, now_ms, actions);
        let Some(subscriber) = self.registry.slab.get(id).filter(|subscriber| !subscriber.ending) else {
            return;
        };
        let ordered = &mut self.inbox.ordered;
        let mut sources = Sources::new();
        for seat in &subscriber.seats {
            if let Some(list) = ordered.lists.get(&seat.membership) {
                let from = list.from(subscriber.joined_seq);
                if from < list.items.len() {
                    sources.push((seat.membership, from));
                }
            }
        }
        let Some(before) = ordered
            .positions
            .get(&id.index)
            .copied()
            .filter(|_| !sources.is_empty())
        else {
            return;
        };
        let deletion = |membership: Membership| {
            let list = ordered.lists.get(&membership).filter(|list| list.deleted)?;
            // The deletion notice is the channel's last message.
            Some((membership, list.items.last()?.seq))
        };
        let deleted: SmallVec<[(Membership, u64); 1]> = sources
            .iter()
            .filter_map(|&(membership, _)| deletion(membership))
            .collect();
        let style = subscriber.style.clone();
        let waits = matches!(subscriber.kind, Kind::Waiting(_));
        let mut position = before;
        let tools = (&mut self.inbox.scratch, &mut self.compression);
        let frames = ordered.merged(sources, &style, &mut position, &self.registry, tools);
        ordered.positions.insert(id.index, position);
        if waits {
            if let Some(mut answer) = first_message(&frames) {
                answer.missed = self.inbox.ordered.take_missed(id.index);
                self.local_counters.delivered += answer.piece.messages() as u64;
                self.leave_store(id.index);
                actions.push(Action::Answer(id, answer));
            }
            return;
        }
        self.local_counters.delivered += frames.marks().len() as u64;
        if let Some(subscriber) = self.registry.slab.get(id) {
            let delivered = if subscriber.is_quick() {
                subscriber.postpone_ping(now_ms);
                subscriber.send_quickly(&frames, 0, before)
            } else {
                subscriber.deliver(Piece::whole(frames), Some(before), now_ms)
            };
            self.account(id.index, delivered, actions);
        }
        for (membership, seq) in deleted {
            while let Some(place) = self.registry.seat_in(id.index, membership) {
                self.lose_channel(id.index, (membership, place), seq, actions);
            }
        }
    }
}

/// The first message, with all its copies: the last one carries the id that the client must ask with next.
fn first_message(frames: &Rc<Frames>) -> Option<Answer> {
    let (marks, notes) = (frames.marks(), frames.notes(0, u32::MAX));
    let id = notes.first()?.id;
    let copies = notes
        .iter()
        .take_while(|note| id.is_some() && note.id == id)
        .count()
        .max(1);
    let last = marks.get(copies - 1)?;
    Some(Answer {
        piece: Piece {
            frames: frames.clone(),
            from: 0,
            to: last.end(),
        },
        time: last.time,
        tag: last.tag,
        position: notes.get(copies - 1).filter(|note| note.is_position).and(id),
        deleted: last.deleted,
        missed: Vec::new(),
    })
}
