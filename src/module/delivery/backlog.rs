//! What waits for one slow reader, and what is done when it becomes too much.

use std::collections::VecDeque;

use super::burst::Piece;
use crate::config::SlowReader;

/// The subscriber's reader is too slow and the policy is to close its connection.
#[derive(Debug)]
pub struct Overflow;

/// Pieces in order. The first may be partly sent, and is then never dropped or merged: half of it is on the wire.
#[derive(Debug, Default)]
pub struct Backlog {
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
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn front(&self) -> Option<&Piece> {
        self.pieces.front()
    }

    /// The first piece is being offered to the socket.
    pub fn start(&mut self) {
        self.started = true;
    }

    /// The socket took that many bytes of the first piece.
    pub fn advance(&mut self, taken: usize) {
        self.bytes = self.bytes.saturating_sub(taken);
        if let Some(piece) = self.pieces.front_mut() {
            piece.from += taken as u32;
            if piece.len() == 0 {
                self.pop();
            }
        }
    }

    /// Takes the first piece out, whole.
    pub fn pop(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.bytes = self.bytes.saturating_sub(piece.len());
        self.started = false;
        if self.pieces.is_empty() {
            // Whoever caught up once is likely never to queue again.
            self.pieces = VecDeque::new();
        }
        Some(piece)
    }

    /// Appends without a bound: what the subscriber itself asked for.
    pub fn push(&mut self, piece: Piece) {
        if piece.len() > 0 {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Appends a live piece; an empty queue always takes one. Returns how many messages were dropped to make room.
    pub fn push_bounded(&mut self, mut piece: Piece, bound: Bound) -> Result<usize, Overflow> {
        let mut dropped = 0;
        if !self.is_empty() && self.bytes + piece.len() > bound.bytes {
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
        }
        self.push(piece);
        Ok(dropped)
    }

    /// Moves everything out of `other` behind what is here.
    pub fn append(&mut self, other: &mut Backlog) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.pieces.append(&mut other.pieces);
    }

    /// Drops the oldest message that was not begun; false if there is none.
    fn drop_oldest(&mut self, frozen: bool) -> bool {
        let first = if self.started { self.split_started(frozen) } else { 0 };
        let Some(piece) = self.pieces.get_mut(first) else {
            return false;
        };
        let end = piece.burst.boundary_after(piece.from).min(piece.to);
        self.bytes -= (end - piece.from) as usize;
        piece.from = end;
        if piece.len() == 0 {
            self.pieces.remove(first);
        }
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
