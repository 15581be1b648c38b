//! Ordered mode: readers that resume by the order of ids. Messages of several of their channels are merged for them,
//! and only ids above all that they have seen are shown as positions.
//!
//! Messages of a whole drain wait here until all of them are known. They are rendered once for all readers of the same
//! channels at the same position; a reader that has seen a higher id, from a publisher's message in another channel,
//! gets a rendering of its own.

use std::collections::VecDeque;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use push_stream_core::store::{Batch, Membership, Message, MessageKind};
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::merge::merge;

use super::Delivery;
use super::action::{Action, Answer};
use super::frames::{Frames, Framing, Note, Piece, Style};
use super::inbox::TURN;
use super::registry::Registry;
use super::subscriber::{Kind, SubscriberId};

/// Renderings kept for other readers of the same channels.
const SHARED: usize = 256;

/// State of ordered readers and the messages for them.
#[derive(Default)]
pub struct Ordered {
    /// Position of each reader, by index.
    positions: FxHashMap<u32, Option<OrderedId>>,
    /// Channels in which readers that wait for one answer missed messages: a gap ends no wait.
    missed: FxHashMap<u32, Vec<Rc<[u8]>>>,
    /// New messages of each channel with ordered readers, and whether the channel was deleted.
    lists: FxHashMap<Membership, List>,
    /// Readers that have not been given the messages yet.
    waiting: VecDeque<SubscriberId>,
    /// Publish times of messages that only ordered readers get.
    published_ms: Vec<u64>,
    shared: FxHashMap<Key, Merged>,
    /// Rendering for the last reader: the next one mostly follows the same channels.
    recent: Option<(Key, Merged)>,
}

#[derive(Default)]
struct List {
    items: Vec<Item>,
    deleted: bool,
    /// Sequence number at which all current subscribers are dismissed.
    dismissed: Option<u64>,
    /// Sequence number of the last message evicted to make room, ahead of the items.
    lost: Option<u64>,
}

impl List {
    /// Index of the first item for a reader that joined at `joined_seq`.
    fn from(&self, joined_seq: u64) -> usize {
        self.items.partition_point(|item| item.seq <= joined_seq)
    }

    /// Did a reader that joined at `joined_seq` miss a message?
    fn has_lost(&self, joined_seq: u64) -> bool {
        self.lost.is_some_and(|lost| lost > joined_seq)
    }
}

struct Item {
    batch: Rc<Batch>,
    index: u32,
    seq: u64,
    /// None if it has no place in the order.
    id: Option<OrderedId>,
}

impl Item {
    fn message(&self) -> Option<Message<'_>> {
        self.batch.get(self.index as usize).map(|(_, message)| message)
    }
}

/// The channels with messages for a reader, each with the index of the first; and the reader's style.
type Key = (Sources, (usize, Framing, u32));
type Sources = SmallVec<[(Membership, usize); 4]>;

/// Messages of several channels, rendered for readers that have only seen ids below all of these.
#[derive(Clone)]
struct Merged {
    frames: Rc<Frames>,
    lowest: Option<OrderedId>,
    highest: Option<OrderedId>,
}

impl Ordered {
    /// Are there ordered readers?
    pub fn has_readers(&self) -> bool {
        !self.positions.is_empty()
    }

    pub fn add_reader(&mut self, index: u32, position: Option<OrderedId>) {
        self.positions.insert(index, position);
    }

    /// A reader's position.
    pub fn position(&self, index: u32) -> Option<OrderedId> {
        self.positions.get(&index).copied().flatten()
    }

    pub fn remove_reader(&mut self, index: u32) {
        self.positions.remove(&index);
        self.missed.remove(&index);
    }

    /// Channels in which a reader missed messages while it waited.
    pub fn take_missed(&mut self, index: u32) -> Vec<Rc<[u8]>> {
        self.missed.remove(&index).unwrap_or_default()
    }

    /// Drops messages that are not handed out.
    pub fn forget_messages(&mut self) {
        *self = Ordered {
            positions: std::mem::take(&mut self.positions),
            missed: std::mem::take(&mut self.missed),
            ..Ordered::default()
        };
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a drain's messages for ordered readers.
    pub fn take_up(&mut self, batch: &Rc<Batch>, registry: &Registry) {
        for lost in batch.lost() {
            let channel = registry.channels.get(&lost.membership);
            if channel.is_some_and(|channel| channel.styles().any(|style| style.format.ordered)) {
                self.lists.entry(lost.membership).or_default().lost = Some(lost.seq);
            }
        }
        let (mut followed, mut only_ordered) = ((None, false), false);
        for (index, (source, message)) in batch.iter().enumerate() {
            let source = Membership(source);
            if followed.0 != Some(source) {
                let channel = registry.channels.get(&source);
                let has_readers = channel.is_some_and(|channel| channel.styles().any(|style| style.format.ordered));
                followed = (Some(source), has_readers);
                only_ordered = channel.is_some_and(|channel| channel.styles().all(|style| style.format.ordered));
            }
            if followed.1 {
                let list = self.lists.entry(source).or_default();
                if message.kind == MessageKind::Dismissed {
                    list.dismissed = Some(message.seq);
                    continue;
                }
                self.published_ms.extend(only_ordered.then_some(message.unix_ms));
                list.deleted |= message.kind == MessageKind::Deleted;
                list.items.push(Item {
                    batch: batch.clone(),
                    index: index as u32,
                    seq: message.seq,
                    id: message.event_id.filter(|_| !message.late).and_then(OrderedId::parse),
                });
            }
        }
    }

    /// Starts handing out once the drain is whole: to all ordered readers of its channels.
    pub fn begin(&mut self, registry: &mut Registry) {
        let mut indices = Vec::new();
        for membership in self.lists.keys() {
            if let Some(channel) = registry.channels.get(membership) {
                indices.extend(
                    channel
                        .members
                        .iter()
                        .filter(|index| self.positions.contains_key(index)),
                );
            }
        }
        indices.sort_unstable();
        indices.dedup();
        self.waiting = indices
            .into_iter()
            .filter_map(|index| registry.slab.id(index))
            .collect();
        self.forget_if_done();
    }

    fn forget_if_done(&mut self) {
        if self.waiting.is_empty() {
            self.lists.clear();
            self.shared.clear();
        }
    }

    /// Frames of the messages of these channels, for a reader at `position`, which is advanced.
    fn merged(
        &mut self,
        sources: Sources,
        style: &Style,
        position: &mut Option<OrderedId>,
        names: &Registry,
        scratch: &mut Vec<u8>,
    ) -> Rc<Frames> {
        let key = (sources, style.key());
        if let Some((_, merged)) = self.recent.as_ref().filter(|(recent, _)| *recent == key)
            && *position < merged.lowest
        {
            *position = merged.highest;
            return merged.frames.clone();
        }
        if let Some(merged) = self.shared.get(&key).filter(|merged| *position < merged.lowest) {
            *position = merged.highest;
            let merged = merged.clone();
            let frames = merged.frames.clone();
            self.recent = Some((key, merged));
            return frames;
        }
        let parts: Vec<(Membership, &[Item])> = key
            .0
            .iter()
            .filter_map(|&(membership, from)| Some((membership, self.lists.get(&membership)?.items.get(from..)?)))
            .collect();
        let lowest = parts
            .iter()
            .flat_map(|(_, items)| items.iter().filter_map(|item| item.id))
            .min();
        let for_all = lowest.is_some() && *position < lowest;
        let frames = Rc::new(write(&parts, style, position, names, scratch));
        if for_all && self.shared.len() < SHARED {
            let merged = Merged {
                frames: frames.clone(),
                lowest,
                highest: *position,
            };
            self.shared.insert(key.clone(), merged.clone());
            self.recent = Some((key, merged));
        }
        frames
    }
}

fn write(
    parts: &[(Membership, &[Item])],
    style: &Style,
    position: &mut Option<OrderedId>,
    names: &Registry,
    scratch: &mut Vec<u8>,
) -> Frames {
    let ids: Vec<Vec<_>> = parts
        .iter()
        .map(|(_, items)| items.iter().map(|item| item.id).collect())
        .collect();
    let ids: Vec<&[_]> = ids.iter().map(Vec::as_slice).collect();
    let mut frames = Frames::default();
    for turn in merge(&ids, position) {
        let (membership, items) = parts[turn.list];
        let item = &items[turn.index];
        let (Some(channel), Some(message)) = (names.channels.get(&membership), item.message()) else {
            continue;
        };
        let note = Note {
            channel: channel.id.clone(),
            id: item.id,
            is_position: turn.is_position,
        };
        frames.push_noted(style, &message, note, scratch);
    }
    frames
}

impl Delivery {
    /// Hands out merged messages, for one turn.
    pub fn hand_out_ordered(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        for _ in 0..TURN {
            let Some(id) = self.inbox.ordered.waiting.pop_front() else {
                break;
            };
            self.hand_ordered_to(id, now_ms, actions);
            self.dismiss_ordered(id, actions);
        }
        let ordered = &mut self.inbox.ordered;
        if ordered.waiting.is_empty() {
            ordered.lists.clear();
            ordered.shared.clear();
            ordered.recent = None;
            self.local_counters.observe(&std::mem::take(&mut ordered.published_ms));
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
        let frames = ordered.merged(sources, &style, &mut position, &self.registry, &mut self.inbox.scratch);
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
