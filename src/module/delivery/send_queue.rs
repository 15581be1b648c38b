//! The send queue of one slow reader, and the policy when it is full.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use push_stream_core::wire::event_id::OrderedId;

use super::frames::{Content, Frames, Piece};
use super::profile::SlowReader;

thread_local! {
    /// Bytes in all send queues of this process, and beside them.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
}

/// Bytes queued for all slow readers of this worker.
pub fn queued_bytes() -> u64 {
    QUEUED.get()
}

/// Bytes that wait for one slow reader beside its send queue; counted as long as this lives.
#[derive(Default)]
pub struct Waiting(usize);

impl Waiting {
    pub fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.0, bytes);
        QUEUED.set(QUEUED.get() + bytes as u64 - before as u64);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The reader is too slow and the policy is to close its connection.
#[derive(Debug)]
pub struct Overflow;

/// Pieces in order. The first may be partly sent, and is then never dropped or merged: half of it is on the wire.
///
/// Nearly all queues are empty nearly always, so an empty one costs one pointer.
#[derive(Debug, Default)]
pub struct SendQueue(Option<Box<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// The first piece was offered to the socket.
    started: bool,
    /// For readers that resume in order: the reader's position, once all before the queue's first piece is sent.
    position: Option<OrderedId>,
    /// Channels with dropped messages of which the reader was not told yet.
    missed: Vec<Rc<[u8]>>,
    /// Number of front pieces that stayed when messages were last dropped: the piece that is begun.
    kept: usize,
}

/// A gap of a slow reader in one channel.
#[derive(Debug)]
pub struct Missed {
    pub channel: Rc<[u8]>,
    /// The reader's position.
    pub position: Option<OrderedId>,
    /// The next id of the channel that will be sent.
    pub first: Option<OrderedId>,
}

/// Limit and policy of a subscriber's queue.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub bytes: usize,
    pub policy: SlowReader,
    /// A piece that was offered must stay unchanged until all of it is taken (TLS); otherwise whole messages that were
    /// not begun may be dropped from it.
    pub frozen: bool,
}

impl SendQueue {
    /// Queued bytes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.pieces.len())
    }

    pub fn front(&self) -> Option<&Piece> {
        self.0.as_ref()?.pieces.front()
    }

    /// Records that the first piece is being offered to the socket.
    pub fn start(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.started = true;
        }
    }

    /// Was the first piece offered to the socket?
    pub fn is_started(&self) -> bool {
        self.0.as_ref().is_some_and(|queue| queue.started)
    }

    /// The first pieces joined, if there are several; stops at `enough` bytes or a little more.
    pub fn gather(&self, enough: usize) -> Option<Vec<u8>> {
        let queue = self.0.as_ref().filter(|queue| queue.pieces.len() > 1)?;
        let mut bytes = Vec::with_capacity(queue.bytes.min(enough));
        for piece in &queue.pieces {
            if bytes.len() >= enough {
                break;
            }
            bytes.extend_from_slice(piece.bytes());
        }
        Some(bytes)
    }

    /// Joins the first pieces, up to `most` bytes, for a connection that must be offered the same bytes again. It does
    /// nothing if a piece was offered, and stops at merged messages, which have a note each.
    pub fn unite(&mut self, most: usize) {
        let Some(queue) = self.0.as_mut().filter(|queue| !queue.started) else {
            return;
        };
        let (mut count, mut bytes) = (0, 0);
        for piece in &queue.pieces {
            bytes += piece.len();
            if bytes > most || !piece.frames.is_plain() {
                break;
            }
            count += 1;
        }
        if count > 1 {
            let united = Frames::united(queue.pieces.drain(..count));
            queue.pieces.push_front(Piece::whole(Rc::new(united)));
        }
    }

    /// Removes bytes of the first pieces that the socket took.
    pub fn advance(&mut self, mut taken: usize) {
        while taken > 0
            && let Some(queue) = &mut self.0
            && let Some(piece) = queue.pieces.front_mut()
        {
            let from = piece.from;
            let part = taken.min(piece.len());
            piece.from += part as u32;
            if let Some(note) = piece.frames.last_position(from, piece.from) {
                queue.position = note.id;
            }
            let done = piece.len() == 0;
            queue.shrink(part);
            queue.started = true;
            taken -= part;
            if done {
                self.pop();
            }
        }
    }

    /// Removes the whole first piece.
    pub fn pop(&mut self) -> Option<Piece> {
        let queue = self.0.as_mut()?;
        let piece = queue.pieces.pop_front()?;
        queue.pass(&piece);
        queue.shrink(piece.len());
        queue.started = false;
        if queue.pieces.is_empty() {
            self.0 = None;
        }
        Some(piece)
    }

    /// Takes the first pieces out, up to `most` bytes but at least one. They must be [put back](Self::put_front) in the
    /// form in which they are sent.
    pub fn take_front(&mut self, most: usize) -> Vec<Piece> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let Some(queue) = &mut self.0 else {
            return pieces;
        };
        while let Some(next) = queue.pieces.front()
            && (pieces.is_empty() || bytes + next.len() <= most)
            && let Some(piece) = queue.pieces.pop_front()
        {
            bytes += piece.len();
            queue.pass(&piece);
            queue.shrink(piece.len());
            pieces.push(piece);
        }
        pieces
    }

    /// Puts a piece in front of all others: it is being offered to the socket.
    pub fn put_front(&mut self, piece: Piece) {
        let queue = self.0.get_or_insert_default();
        queue.grow(piece.len());
        queue.pieces.push_front(piece);
        queue.started = true;
    }

    /// Appends without a limit: for bytes that the subscriber itself asked for.
    pub fn push(&mut self, piece: Piece) {
        if piece.len() > 0 {
            let queue = self.0.get_or_insert_default();
            queue.grow(piece.len());
            queue.pieces.push_back(piece);
        }
    }

    /// Appends a live piece; an empty queue always takes one. Returns how many messages were dropped to make room.
    pub fn push_bounded(&mut self, mut piece: Piece, bound: Bound) -> Result<usize, Overflow> {
        let dropped = match &mut self.0 {
            Some(queue) => queue.make_room(&mut piece, bound)?,
            None => 0,
        };
        self.push(piece);
        Ok(dropped)
    }

    /// The queued bytes without messages after sequence number `seq`, and the last position among the others.
    pub fn up_to(&self, seq: u64) -> (Vec<u8>, Option<OrderedId>) {
        let (mut bytes, mut position) = (Vec::new(), None);
        for piece in self.0.iter().flat_map(|queue| &queue.pieces) {
            position = piece.push_up_to(seq, &mut bytes).or(position);
        }
        (bytes, position)
    }

    /// As [`SendQueue::up_to`], where the first piece may be coded: that one apart, and the text of the others. None if
    /// the coded one has messages after `seq`.
    pub fn up_to_coded(&self, seq: u64) -> Option<(&[u8], Vec<u8>, Option<OrderedId>)> {
        let mut pieces = self.0.iter().flat_map(|queue| &queue.pieces).peekable();
        let coded = pieces.next_if(|piece| piece.frames.content() == Content::Coded);
        if coded.is_some_and(|piece| piece.frames.last_seq() > seq) {
            return None;
        }
        let (mut text, mut position) = (Vec::new(), None);
        for piece in pieces {
            position = piece.push_up_to(seq, &mut text).or(position);
        }
        Some((coded.map_or(&[], Piece::bytes), text, position))
    }

    /// Is a message after sequence number `seq` queued?
    pub fn is_beyond(&self, seq: u64) -> bool {
        let mut pieces = self.0.iter().flat_map(|queue| &queue.pieces);
        pieces.any(|piece| piece.frames.after(seq).is_some())
    }

    /// The reader's position before the queued pieces.
    pub fn position(&self) -> Option<OrderedId> {
        self.0.as_ref()?.position
    }

    /// Puts a piece, which may be partly sent, in front of all others. The reader is at `position` before what follows
    /// it.
    pub fn prepend(&mut self, piece: Piece, position: Option<OrderedId>) {
        if piece.len() > 0 {
            let queue = self.0.get_or_insert_default();
            queue.grow(piece.len());
            queue.pieces.push_front(piece);
            queue.started = true;
        }
        self.set_position(position);
    }

    /// Sets the reader's position before the queued pieces.
    pub fn set_position(&mut self, position: Option<OrderedId>) {
        if let Some(queue) = &mut self.0 {
            queue.position = position;
        }
    }

    /// Gaps of which the reader was not told yet.
    pub fn missed(&self) -> Vec<Missed> {
        self.0.as_ref().map_or_else(Vec::new, |queue| queue.missed())
    }

    /// Puts a gap notice in front of the next messages, replacing an earlier one.
    pub fn put_gap(&mut self, piece: Piece) {
        if let Some(queue) = &mut self.0 {
            queue.put_gap(piece);
        }
    }

    /// Moves all pieces of `other` to the end of this queue.
    pub fn append(&mut self, other: &mut SendQueue) {
        while let Some(piece) = other.pop() {
            self.push(piece);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

impl Queue {
    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        QUEUED.set(QUEUED.get() + bytes as u64);
    }

    fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        QUEUED.set(QUEUED.get() - bytes as u64);
    }

    /// Records that a piece was sent: updates the position, and clears gaps that it tells.
    fn pass(&mut self, piece: &Piece) {
        if piece.frames.is_gap() {
            self.missed.clear();
        }
        if let Some(note) = piece.frames.last_position(piece.from, piece.to) {
            self.position = note.id;
        }
    }

    fn missed(&self) -> Vec<Missed> {
        let begun = self.pieces.iter().take(self.kept);
        let position = begun
            .filter_map(|piece| piece.frames.last_position(piece.from, piece.to))
            .next_back()
            .map_or(self.position, |note| note.id);
        let coming = || {
            let pieces = self.pieces.iter().skip(self.kept);
            pieces.flat_map(|piece| piece.frames.notes(piece.from, piece.to))
        };
        let missed = |channel: &Rc<[u8]>| Missed {
            channel: channel.clone(),
            position,
            first: coming()
                .filter(|note| note.channel == *channel)
                .find_map(|note| note.id),
        };
        self.missed.iter().map(missed).collect()
    }

    fn put_gap(&mut self, piece: Piece) {
        let at = self.kept;
        if let Some(old) = self.pieces.get(at).filter(|old| old.frames.is_gap()) {
            let old = old.len();
            self.shrink(old);
            self.pieces.remove(at);
        }
        self.grow(piece.len());
        self.pieces.insert(at.min(self.pieces.len()), piece);
    }

    /// Records the gap left by dropped messages: those of the piece between `from` and `to`.
    fn note_dropped(&mut self, frames: &Frames, from: u32, to: u32) {
        for note in frames.notes(from, to) {
            if !self.missed.contains(&note.channel) {
                self.missed.push(note.channel.clone());
            }
        }
    }

    /// Drops messages until `piece` fits, in the end some of its own. The very last message is always kept.
    fn make_room(&mut self, piece: &mut Piece, bound: Bound) -> Result<usize, Overflow> {
        let mut dropped = 0;
        if self.bytes + piece.len() <= bound.bytes {
            return Ok(dropped);
        }
        match bound.policy {
            SlowReader::Close => return Err(Overflow),
            SlowReader::Skip => {
                while self.bytes + piece.len() > bound.bytes && self.drop_oldest(bound.frozen) {
                    dropped += 1;
                }
            }
            SlowReader::Latest => {
                while self.drop_oldest(bound.frozen) {
                    dropped += 1;
                }
            }
        }
        self.kept = usize::from(self.started && self.is_begun(bound.frozen));
        while self.bytes + piece.len() > bound.bytes && piece.from < piece.frames.last_start() {
            let from = piece.from;
            piece.from = piece.frames.boundary_after(from);
            self.note_dropped(&piece.frames, from, piece.from);
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Is the first piece partly sent, or must it stay as it was offered?
    fn is_begun(&self, frozen: bool) -> bool {
        let front = self.pieces.front();
        front.is_some_and(|piece| frozen || !piece.frames.is_boundary(piece.from))
    }

    /// Drops the oldest message that was not begun; false if there is none.
    fn drop_oldest(&mut self, frozen: bool) -> bool {
        let first = if self.started { self.split_started(frozen) } else { 0 };
        // Bytes that are not a message (a handshake, a pong, the end) are never dropped.
        let Some(first) = (first..self.pieces.len()).find(|&index| self.pieces[index].frames.has_messages()) else {
            return false;
        };
        let Some(piece) = self.pieces.get_mut(first) else {
            return false;
        };
        let end = piece.frames.boundary_after(piece.from).min(piece.to);
        let (frames, from) = (piece.frames.clone(), piece.from);
        let dropped = (end - from) as usize;
        piece.from = end;
        if piece.len() == 0 {
            self.pieces.remove(first);
        }
        self.shrink(dropped);
        self.note_dropped(&frames, from, end);
        true
    }

    /// Splits the begun message off the first piece, so that the rest may be dropped. Returns how many pieces must
    /// stay.
    fn split_started(&mut self, frozen: bool) -> usize {
        let Some(piece) = self.pieces.front_mut() else {
            return 0;
        };
        if frozen {
            return 1;
        }
        if piece.frames.is_boundary(piece.from) {
            return 0;
        }
        let end = piece.frames.boundary_after(piece.from);
        if end < piece.to {
            let rest = Piece {
                from: end,
                to: piece.to,
                frames: piece.frames.clone(),
            };
            piece.to = end;
            self.pieces.insert(1, rest);
        }
        1
    }
}
