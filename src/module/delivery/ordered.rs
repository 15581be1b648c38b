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

use super::compression::Compression;
use super::frames::{Frames, Framing, Note, Style};
use super::registry::Registry;
use super::subscriber::SubscriberId;

/// Renderings kept for other readers of the same channels.
const SHARED: usize = 256;

/// State of ordered readers and the messages for them.
#[derive(Default)]
pub struct Ordered {
    /// Position of each reader, by index.
    pub positions: FxHashMap<u32, Option<OrderedId>>,
    /// Channels in which readers that wait for one answer missed messages: a gap ends no wait.
    pub missed: FxHashMap<u32, Vec<Rc<[u8]>>>,
    /// New messages of each channel with ordered readers, and whether the channel was deleted.
    pub lists: FxHashMap<Membership, List>,
    /// Readers that have not been given the messages yet.
    pub waiting: VecDeque<SubscriberId>,
    /// Publish times of messages that only ordered readers get.
    pub published_ms: Vec<u64>,
    pub shared: FxHashMap<Key, Merged>,
    /// Rendering for the last reader: the next one mostly follows the same channels.
    pub recent: Option<(Key, Merged)>,
}

#[derive(Default)]
pub struct List {
    pub items: Vec<Item>,
    pub deleted: bool,
    /// Sequence number at which all current subscribers are dismissed.
    pub dismissed: Option<u64>,
    /// Sequence number of the last message evicted to make room, ahead of the items.
    pub lost: Option<u64>,
}

impl List {
    /// Index of the first item for a reader that joined at `joined_seq`.
    pub fn from(&self, joined_seq: u64) -> usize {
        self.items.partition_point(|item| item.seq <= joined_seq)
    }

    /// Did a reader that joined at `joined_seq` miss a message?
    pub fn has_lost(&self, joined_seq: u64) -> bool {
        self.lost.is_some_and(|lost| lost > joined_seq)
    }
}

pub struct Item {
    batch: Rc<Batch>,
    index: u32,
    pub seq: u64,
    /// None if it has no place in the order.
    pub id: Option<OrderedId>,
}

impl Item {
    fn message(&self) -> Option<Message<'_>> {
        self.batch.get(self.index as usize).map(|(_, message)| message)
    }
}

/// The channels with messages for a reader, each with the index of the first; and the reader's style.
pub type Key = (Sources, (usize, Framing, u32));
pub type Sources = SmallVec<[(Membership, usize); 4]>;

/// Messages of several channels, rendered for readers that have only seen ids below all of these.
#[derive(Clone)]
pub struct Merged {
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
    pub fn merged(
        &mut self,
        sources: Sources,
        style: &Rc<Style>,
        position: &mut Option<OrderedId>,
        names: &Registry,
        (scratch, compression): (&mut Vec<u8>, &mut Compression),
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
        let mut frames = match &style.coder {
            // Merged from several channels, or not from its first message on: others have got something else.
            Some(coder) if for_all => match key.0[..] {
                [(membership, 0)] => {
                    let members = names
                        .channels
                        .get(&membership)
                        .map_or(0, |channel| channel.members.len());
                    compression.frames(style, coder, membership, members)
                }
                _ => Frames::to_code(None),
            },
            _ => Frames::default(),
        };
        write(&parts, style, position, names, (scratch, &mut frames));
        let frames = Rc::new(frames);
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
    (scratch, frames): (&mut Vec<u8>, &mut Frames),
) {
    let ids: Vec<Vec<_>> = parts
        .iter()
        .map(|(_, items)| items.iter().map(|item| item.id).collect())
        .collect();
    let ids: Vec<&[_]> = ids.iter().map(Vec::as_slice).collect();
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
}
