//! Channel queues: messages taken from the store that have not reached all subscribers of their channel yet.
//!
//! Channels with such messages take turns. Messages that arrive while a channel is being handed out wait in its next
//! part, and then go out together: one send for each subscriber, however many they are. Each queue is bounded, and so
//! are all of them together; beyond that messages wait in the store.

use std::collections::VecDeque;
use std::rc::Rc;

use push_stream_core::store::{Membership, Message, MessageKind};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::compression::Compression;
use super::frames::{Frames, Mark, Style};
use super::registry::LocalChannel;
use super::subscriber::Subscriber;
use crate::ffi::fault;

/// Text drained from the store at once: messages drained together go out together, one send per subscriber.
pub const DRAIN_BYTES: usize = 256 * 1024;

/// Limit of a part and of a queue, in bytes on the wire; a queue at the limit gets no more for now.
const QUEUE_BYTES: usize = DRAIN_BYTES;

/// Bytes of all queues at which nothing more is taken from the store.
const ALL_BYTES: usize = 16 * QUEUE_BYTES;

/// All queues, and their turns.
#[derive(Default)]
pub struct ChannelQueues {
    /// All queues but the one that is being handed out.
    waiting: FxHashMap<Membership, ChannelQueue>,
    turns: VecDeque<Membership>,
    bytes: usize,
    spares: Spares,
}

/// Buffers of parts that were handed out, for the next ones: where channels are small, allocating them for each message
/// takes longer than sending it.
#[derive(Default)]
struct Spares {
    frames: Vec<Rc<Frames>>,
    published_ms: Vec<u64>,
}

/// Spare frames that are kept, and the capacity up to which they are.
const SPARE_FRAMES: usize = 4;
const SPARE_BYTES: usize = 4 * 1024;

/// Messages of one channel that are being handed out.
pub struct ChannelQueue {
    membership: Membership,
    part: Part,
    /// Parts that follow when all subscribers have been given the first.
    behind: VecDeque<Part>,
    /// Bytes of all parts.
    bytes: usize,
}

/// Messages of one channel that go out together.
#[derive(Default)]
struct Part {
    rendered: SmallVec<[(Rc<Style>, Rc<Frames>); 1]>,
    /// When the messages were published, in milliseconds since the epoch.
    published_ms: Vec<u64>,
    bytes: usize,
    deleted: bool,
    /// Sequence number at which all current subscribers are dismissed.
    dismissed: Option<u64>,
}

impl ChannelQueues {
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Does this channel have messages, besides those being handed out?
    pub fn contain(&self, membership: Membership) -> bool {
        self.waiting.contains_key(&membership)
    }

    /// Are the queues full together?
    pub fn are_full(&self) -> bool {
        self.bytes >= ALL_BYTES
    }

    /// Is the queue of this channel full?
    pub fn is_full(&self, membership: Membership) -> bool {
        self.waiting
            .get(&membership)
            .is_some_and(|queue| queue.bytes >= QUEUE_BYTES)
    }

    /// Renders a message for those members of the channel that are not ordered, if there are any.
    pub fn add(
        &mut self,
        membership: Membership,
        channel: &LocalChannel,
        message: &Message<'_>,
        tools: (&mut Vec<u8>, &mut Compression),
    ) {
        if !styles(channel).any(|_| true) {
            return;
        }
        let queue = self.waiting.entry(membership).or_insert_with(|| {
            self.turns.push_back(membership);
            ChannelQueue {
                membership,
                part: Part {
                    published_ms: std::mem::take(&mut self.spares.published_ms),
                    ..Part::default()
                },
                behind: VecDeque::new(),
                bytes: 0,
            }
        });
        let part = queue.open_part(channel.done);
        let grown = part.write((membership, channel), message, &mut self.spares, tools);
        queue.bytes += grown;
        self.bytes += grown;
    }

    /// Takes out the queue whose turn it is. It must be [put back](ChannelQueues::put_back) or
    /// [finished](ChannelQueues::finish_part).
    pub fn next(&mut self) -> Option<ChannelQueue> {
        self.waiting.remove(&self.turns.pop_front()?)
    }

    /// Ends the queue's turn.
    pub fn put_back(&mut self, queue: ChannelQueue) {
        self.turns.push_back(queue.membership);
        self.waiting.insert(queue.membership, queue);
    }

    /// Drops the queue's first part, which all subscribers have been given.
    pub fn finish_part(&mut self, mut queue: ChannelQueue) {
        queue.bytes -= queue.part.bytes;
        self.bytes -= queue.part.bytes;
        let next = queue.behind.pop_front();
        let goes_on = next.is_some();
        self.spares
            .keep(std::mem::replace(&mut queue.part, next.unwrap_or_default()));
        if goes_on {
            self.put_back(queue);
        }
    }
}

impl Spares {
    fn keep(&mut self, part: Part) {
        for (_, mut frames) in part.rendered {
            if self.frames.len() < SPARE_FRAMES
                && let Some(unused) = Rc::get_mut(&mut frames)
                && unused.reset(SPARE_BYTES)
            {
                self.frames.push(frames);
            }
        }
        let mut published_ms = part.published_ms;
        if published_ms.capacity() * size_of::<u64>() <= SPARE_BYTES {
            published_ms.clear();
            self.published_ms = published_ms;
        }
    }
}

impl ChannelQueue {
    pub fn membership(&self) -> Membership {
        self.membership
    }

    /// Are some of its readers compressed?
    pub fn is_compressed(&self) -> bool {
        let mut styles = self.part.rendered.iter().map(|(style, _)| style);
        styles.any(|style| style.coder.is_some())
    }

    pub fn is_deleted(&self) -> bool {
        self.part.deleted
    }

    pub fn dismissed(&self) -> Option<u64> {
        self.part.dismissed
    }

    /// Will some subscriber lose a channel, or end?
    pub fn ends_somebody(&self) -> bool {
        self.part.ends_somebody()
    }

    pub fn published_ms(&self) -> &[u64] {
        &self.part.published_ms
    }

    /// A subscriber's part of it: the frames of its style, the first byte, the first message and the number of
    /// messages.
    pub fn part_for(&self, subscriber: &Subscriber) -> Option<(&Rc<Frames>, u32, &Mark, usize)> {
        let mut rendered = self.part.rendered.iter();
        let (_, frames) = rendered.find(|(style, _)| Rc::ptr_eq(style, &subscriber.style))?;
        let (from, mark, count) = frames.after(subscriber.joined_seq)?;
        Some((frames, from, mark, count))
    }

    /// The part for the next message. `done`: how many subscribers have been given the first part.
    fn open_part(&mut self, done: usize) -> &mut Part {
        let open = match self.behind.back() {
            Some(part) => part.is_open(),
            None => done == 0 && self.part.is_open(),
        };
        if !open {
            self.behind.push_back(Part::default());
        }
        self.behind.back_mut().unwrap_or(&mut self.part)
    }
}

impl Part {
    /// May more messages be added?
    fn is_open(&self) -> bool {
        let unsent = self.rendered.iter().all(|(_, frames)| frames.is_open());
        unsent && self.bytes < QUEUE_BYTES && !self.ends_somebody()
    }

    fn ends_somebody(&self) -> bool {
        self.deleted || self.dismissed.is_some()
    }

    /// Appends a message; returns by how many bytes the part grows.
    fn write(
        &mut self,
        (membership, channel): (Membership, &LocalChannel),
        message: &Message<'_>,
        spares: &mut Spares,
        (scratch, compression): (&mut Vec<u8>, &mut Compression),
    ) -> usize {
        // Subscribers of other styles may have come since the last message; earlier messages are not for them.
        for style in styles(channel) {
            if !self.rendered.iter().any(|(known, _)| Rc::ptr_eq(known, style)) {
                let frames = match &style.coder {
                    Some(coder) => Rc::new(compression.frames(style, coder, membership, channel.members.len())),
                    None => spares.frames.pop().unwrap_or_default(),
                };
                self.rendered.push((style.clone(), frames));
            }
        }
        if message.kind == MessageKind::Dismissed {
            self.dismissed = Some(message.seq);
            return 0;
        }
        self.published_ms.push(message.unix_ms);
        self.deleted |= message.kind == MessageKind::Deleted;
        fault::point("render");
        // More than the rendered bytes, or empty messages would never fill a queue.
        let mut grown = size_of::<Mark>();
        for (style, frames) in &mut self.rendered {
            if let Some(frames) = Rc::get_mut(frames) {
                grown += frames.push(style, &channel.id, message, scratch);
            }
        }
        self.bytes += grown;
        grown
    }
}

/// The styles of members that are not ordered.
fn styles(channel: &LocalChannel) -> impl Iterator<Item = &Rc<Style>> {
    channel.styles().filter(|style| !style.format.ordered)
}
