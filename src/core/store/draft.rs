//! Drafts: messages being written, and published. Their blocks are reserved, and listed in the worker's slot, until published.

use super::layout::*;
use super::messages::{MAX_PAYLOAD, Shape, head_room};
use super::publishing::{Brought, Filled};
use super::worker::{ATTEMPTS, refused};
use super::*;
use crate::wire::event_id::OrderedId;

/// A reserved message that is being filled. Pass it to [`Worker::publish`] or [`Worker::discard`]; the blocks of a
/// dropped one are reclaimed by the next [`Worker::draft`].
#[derive(Debug)]
pub struct Draft {
    pub(super) shape: Shape,
    /// The block of the next byte; when complete, the last block.
    pub(super) block: BlockRef,
    at: usize,
    /// End of the text room in that block.
    end: usize,
    pub(super) missing: usize,
    pub(super) id: Brought,
}

impl Draft {
    /// Marks the text as binary data, for subscribers that distinguish binary from text.
    pub fn mark_binary(&mut self) {
        self.shape.flags |= link_flag::BINARY;
    }
}

impl Worker {
    /// Reserves room for a message and fills in event id and type; the text follows by [`Worker::write`]. `channels`:
    /// the number of ids it will be published to, at least 1.
    pub fn draft(
        &mut self,
        text_len: usize,
        event_id: Option<&[u8]>,
        event_type: Option<&[u8]>,
        channels: usize,
        now: Now,
    ) -> Result<Draft, Refusal> {
        self.unreserve();
        let shape = match Shape::of(text_len, event_id, event_type, channels) {
            Some(shape) => self.reserve(shape.blocks(), now).map(|()| shape),
            None if text_len > MAX_PAYLOAD as usize => Err(Refusal::TooLarge),
            None => Err(refused(&self.limits)),
        };
        let shape = shape.inspect_err(|&refusal| {
            self.unreserve();
            self.count_if_full(refusal);
        })?;
        let first = self.memory().peek(self.slot, slot::reserved);
        let mut draft = self.start(first, shape, event_id, event_type);
        draft.id = self.brought(event_id);
        Ok(draft)
    }

    pub(super) fn reserve(&mut self, blocks: u32, now: Now) -> Result<(), Refusal> {
        if blocks > self.memory().blocks {
            // No eviction could free enough blocks.
            return Err(refused(&self.limits));
        }
        let spare = eviction::spare(self.memory(), &self.limits);
        let mut missing = blocks;
        let mut attempts = 0;
        while missing > 0 {
            let taken = self.step(|locked, slot| {
                let free = locked.available().saturating_sub(spare);
                if free > 0 {
                    locked.reserve(slot, missing.min(free))
                } else {
                    0
                }
            });
            missing -= taken;
            if taken == 0 {
                attempts += 1;
                if attempts > ATTEMPTS {
                    return Err(refused(&self.limits));
                }
                eviction::make_room(&self.zone.memory, missing + spare, &self.limits, now)?;
            }
        }
        Ok(())
    }

    pub(super) fn unreserve(&mut self) {
        if self.memory().peek(self.slot, slot::reserved) != BlockRef::NONE {
            while self.step(|locked, slot| locked.unreserve(slot)) {}
        }
    }

    /// Begins a message in the reserved blocks from `first` on: its head follows the blocks for further links.
    pub(super) fn start(
        &mut self,
        first: BlockRef,
        shape: Shape,
        event_id: Option<&[u8]>,
        event_type: Option<&[u8]>,
    ) -> Draft {
        let mut block = first;
        for _ in 0..shape.link_blocks() {
            block = self.memory().peek(block, block::next);
        }
        let mut draft = Draft {
            shape,
            block,
            at: HEAD_TEXT,
            end: HEAD_TEXT + head_room(shape.multi()),
            missing: shape.payload_len as usize,
            id: Brought::default(),
        };
        for text in [event_id, event_type].into_iter().flatten() {
            self.write(&mut draft, &(text.len() as u16).to_le_bytes());
            self.write(&mut draft, text);
        }
        draft
    }

    /// Appends to the draft's text. No lock is held. Bytes beyond the announced length are ignored.
    pub fn write(&mut self, draft: &mut Draft, bytes: &[u8]) {
        let mut bytes = &bytes[..bytes.len().min(draft.missing)];
        draft.missing -= bytes.len();
        while !bytes.is_empty() {
            if draft.at == draft.end {
                draft.block = self.memory().peek(draft.block, block::next);
                (draft.at, draft.end) = (4, BLOCK);
            }
            let (part, rest) = bytes.split_at(bytes.len().min(draft.end - draft.at));
            self.memory().copy_in(draft.block, draft.at, part);
            draft.at += part.len();
            bytes = rest;
        }
    }

    /// Frees a draft's blocks.
    pub fn discard(&mut self, _draft: Draft) {
        self.unreserve();
    }

    /// Publishes a fully written draft to all of `ids` (in order, duplicates twice), creating channels as needed: all
    /// or none. Returns the result for each, in order. On refusal the draft is discarded.
    pub fn publish(&mut self, draft: Draft, ids: &[&[u8]], terms: Terms, now: Now) -> Result<Vec<Published>, Refusal> {
        debug_assert_eq!(draft.missing, 0, "the whole text was announced");
        debug_assert_eq!(draft.shape.links as usize, ids.len());
        let message = Filled::new(draft.shape, draft.block, draft.id, terms);
        let hashes = self.hashes(ids.iter().copied());
        for &hash in &hashes {
            self.memory().prefetch_publish(hash);
        }
        let slot = self.slot;
        let limits = self.limits.clone();
        let cost = self.cost(ids.iter().copied()).of_publish(terms.idempotent);
        let channels = hashes.iter().copied().zip(ids.iter().copied());
        let published = self.mutate(cost, channels, now, |locked| {
            let mut published = Vec::with_capacity(ids.len());
            locked.publish_reserved(slot, &message, ids, &hashes, &limits, &mut published)?;
            Ok(published)
        });
        // If the draft was linked, the reservation is empty.
        self.unreserve();
        let mut published = published?;
        self.count_duplicates(&published);
        self.trim(&hashes, ids, &mut published);
        Ok(published)
    }

    pub(super) fn count_duplicates(&self, published: &[Published]) {
        let duplicates = published.iter().filter(|published| published.duplicate).count();
        self.count(Counter::Duplicate, duplicates as u64);
    }

    /// The ordered form and window key of a message's event id; none if ids are not tracked.
    pub(super) fn brought(&self, event_id: Option<&[u8]>) -> Brought {
        let Some(id) = event_id.filter(|_| self.memory().tracks_ids()) else {
            return Brought::default();
        };
        Brought {
            ordered: OrderedId::parse(id),
            key: Some(self.memory().id_key(id)),
        }
    }

    /// Drops stored messages that are over a limit lowered by a reload. (A publish itself drops only as many as it
    /// adds.)
    pub(super) fn trim(&mut self, hashes: &[u32], ids: &[&[u8]], channels: &mut [Published]) {
        let Some(max) = self.limits.max_stored_per_channel else {
            return;
        };
        for ((&hash, id), Published { info, .. }) in hashes.iter().zip(ids).zip(channels) {
            while info.stored > max.into() {
                self.step(|locked, _| {
                    let Some(channel) = locked.find(hash, id) else {
                        info.stored = 0;
                        return;
                    };
                    for _ in 0..32 {
                        if locked.get(channel, channel::stored) > max
                            && let Some(oldest) = locked.first_stored(channel)
                        {
                            locked.unstore(oldest);
                            locked.step();
                        }
                    }
                    info.stored = locked.get(channel, channel::stored).into();
                });
            }
        }
    }
}
