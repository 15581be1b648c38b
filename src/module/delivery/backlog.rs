//! What waits for one slow reader, and what is done when it becomes too much.

use std::cell::Cell;
use std::collections::VecDeque;

use super::burst::Piece;
use crate::config::SlowReader;

thread_local! {
    /// Bytes in all backlogs of this process.
    static QUEUED: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that wait for all slow readers of this worker together.
pub fn queued_bytes() -> u64 {
    QUEUED.get()
}

/// The subscriber's reader is too slow and the policy is to close its connection.
#[derive(Debug)]
pub struct Overflow;

/// Pieces in order. The first may be partly sent, and is then never dropped or merged: half of it is on the wire.
///
/// Nearly all subscribers have nothing here nearly always, so that costs one pointer.
#[derive(Debug, Default)]
pub struct Backlog(Option<Box<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// The first piece was offered to the socket.
    started: bool,
}

/// What a subscriber's queue may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub bytes: usize,
    pub policy: SlowReader,
    /// A piece that was offered must stay as it is until all of it is taken (TLS); otherwise whole messages that
    /// were not begun may be dropped from it.
    pub frozen: bool,
}

impl Backlog {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn front(&self) -> Option<&Piece> {
        self.0.as_ref()?.pieces.front()
    }

    /// The first piece is being offered to the socket.
    pub fn start(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.started = true;
        }
    }

    /// The socket took that many bytes of the first piece.
    pub fn advance(&mut self, taken: usize) {
        let Some(queue) = &mut self.0 else {
            return;
        };
        queue.shrink(taken);
        if let Some(piece) = queue.pieces.front_mut() {
            piece.from += taken as u32;
            if piece.len() == 0 {
                self.pop();
            }
        }
    }

    /// Takes the first piece out, whole.
    pub fn pop(&mut self) -> Option<Piece> {
        let queue = self.0.as_mut()?;
        let piece = queue.pieces.pop_front()?;
        queue.shrink(piece.len());
        queue.started = false;
        if queue.pieces.is_empty() {
            self.0 = None;
        }
        Some(piece)
    }

    /// Appends without a bound: what the subscriber itself asked for.
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

    /// Moves everything out of `other` behind what is here.
    pub fn append(&mut self, other: &mut Backlog) {
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

    /// Drops messages until `piece` fits, in the end some of its own. The last message of all is always kept.
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
        while self.bytes + piece.len() > bound.bytes && piece.from < piece.burst.last_start() {
            piece.from = piece.burst.boundary_after(piece.from);
            dropped += 1;
        }
        Ok(dropped)
    }

    /// Drops the oldest message that was not begun; false if there is none.
    fn drop_oldest(&mut self, frozen: bool) -> bool {
        let first = if self.started { self.split_started(frozen) } else { 0 };
        // What is no message (a handshake, a pong, the end) is never dropped.
        let Some(first) = (first..self.pieces.len()).find(|&index| self.pieces[index].burst.has_messages()) else {
            return false;
        };
        let Some(piece) = self.pieces.get_mut(first) else {
            return false;
        };
        let end = piece.burst.boundary_after(piece.from).min(piece.to);
        let dropped = (end - piece.from) as usize;
        piece.from = end;
        if piece.len() == 0 {
            self.pieces.remove(first);
        }
        self.shrink(dropped);
        true
    }

    /// Cuts the begun message off the first piece, so that the rest may be dropped. Returns how many pieces must stay.
    fn split_started(&mut self, frozen: bool) -> usize {
        let Some(piece) = self.pieces.front_mut() else {
            return 0;
        };
        if frozen {
            return 1;
        }
        if piece.burst.is_boundary(piece.from) {
            return 0;
        }
        let end = piece.burst.boundary_after(piece.from);
        if end < piece.to {
            let rest = Piece {
                from: end,
                to: piece.to,
                burst: piece.burst.clone(),
            };
            piece.to = end;
            self.pieces.insert(1, rest);
        }
        1
    }
}
