//! Compressed streams and WebSockets: pieces are compressed when they are sent.
//!
//! Queues of compressed readers hold plain pieces, which may still be dropped or replaced. A piece is coded when it is
//! offered to the connection: with the context of its channel's group if the reader is aligned, else alone. What was
//! coded is part of the reader's checksum, and is sent completely.

use std::rc::Rc;

use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::coding::checksum::Sum;
use push_stream_core::wire::coding::stream::{Reader, Terms};
use push_stream_core::wire::event_id::OrderedId;

use super::action::Delivered;
use super::compression::Compressed;
use super::ending::Ending;
use super::format::Transport;
use super::frames::{Content, Frames, Piece};
use super::hand_out::{push_at, queued};
use super::output::Progress;
use super::state::PROCESS;
use super::subscriber::{Kind, Subscriber};

/// Bytes of queued pieces that are coded for one send.
const GATHERED: usize = 16 * 1024;

/// The first bytes of a compressed stream, which decode to `text`, and its reader.
pub fn opening(terms: Terms, coding: Coding, text: &[u8]) -> Option<(Vec<u8>, Reader)> {
    let coder = PROCESS.with(|delivery| delivery.compression.coder(terms, coding.into()))?;
    let mut reader = Reader::default();
    Some((coder.opening(text, &mut reader), reader))
}

/// A whole answer, compressed.
pub fn member(terms: Terms, coding: Coding, text: &[u8]) -> Option<Vec<u8>> {
    PROCESS.with(|delivery| delivery.compression.member(terms, coding, text))
}

impl Subscriber {
    pub fn is_compressed(&self) -> bool {
        matches!(self.kind, Kind::Compressed(_) | Kind::Deflated(_))
    }

    /// May a live piece be coded and sent at once, to its socket or sealed?
    pub fn is_quick_compressed(&self) -> bool {
        let Some(compressed) = self.kind.compressed() else {
            return false;
        };
        if compressed.socket < 0 {
            return self.may_seal_now();
        }
        !self.ending && self.send_queue.is_empty() && self.replay.is_none() && self.disconnect_record.is_none()
    }

    /// Codes a piece: the next that is sent.
    fn code(&mut self, frames: &Frames, from: u32, to: u32) -> Option<Rc<Frames>> {
        let (Some(coder), Some(Compressed { reader, .. })) = (&self.style.coder, self.kind.compressed_mut()) else {
            return None;
        };
        let framing = self.style.framing;
        let text = frames.bytes().get(from as usize..to as usize).unwrap_or_default();
        let coded = match (frames.content(), frames.codings()) {
            (Content::Ping, _) if self.style.format.transport == Transport::EventSource => {
                Frames::coded(coder.nothing(reader), framing)
            }
            (Content::End, _) => Frames::coded_end(&coder.ending(frames.footer(), reader), framing),
            (_, Some(codings)) if to as usize == frames.bytes().len() => {
                let dress = |bytes: Vec<u8>| {
                    let mut coded = Frames::coded(&bytes, framing);
                    coded.note_last(frames.last_seq());
                    Rc::new(coded)
                };
                return Some(coder.piece(codings, (frames.bytes(), from), reader, dress).wire.clone());
            }
            _ => {
                let mut coded = Frames::coded(&coder.single(text, reader), framing);
                coded.note_last(frames.last_seq());
                coded
            }
        };
        Some(Rc::new(coded))
    }

    /// Codes a live piece and sends it; nothing waits before it. `position`: that of a reader that resumes in order,
    /// before this piece.
    pub fn send_compressed(&mut self, frames: &Rc<Frames>, from: u32, position: Option<OrderedId>) -> Delivered {
        let to = frames.bytes().len() as u32;
        let Some(coded) = self.code(frames, from, to) else {
            return Delivered::Cut(Ending::Failed);
        };
        let (taken, progress) = match self.kind.compressed() {
            Some(&Compressed { socket, .. }) if socket >= 0 => self.send_to_socket(socket, coded.bytes()),
            _ => self.offer(coded.bytes()),
        };
        self.count(taken);
        match progress {
            Progress::Done => Delivered::Sent,
            Progress::Failed => Delivered::Cut(Ending::Failed),
            Progress::Blocked => {
                // What is coded cannot be taken back: the reader's position is behind it.
                let behind = frames.last_position(from, to).map_or(position, |note| note.id);
                self.keep_rest(Piece::whole(coded), taken, behind)
            }
        }
    }

    /// As [`Subscriber::deliver`].
    pub fn deliver_compressed(&mut self, piece: Piece, position: Option<Option<OrderedId>>) -> Delivered {
        let bound = self.bound(true);
        if let Some(replaying) = &mut self.replay {
            return queued(push_at(replaying.behind(), piece, bound, position));
        }
        if self.may_send_now() {
            return self.send_compressed(&piece.frames, piece.from, position.flatten());
        }
        if self.is_stream()
            && self.flight.is_none()
            && self.send_queue.is_empty()
            && let Some(coded) = self.code(&piece.frames, piece.from, piece.to)
            && let Some(delivered) = self.send_to_stream(&Piece::whole(coded))
        {
            return delivered;
        }
        let idle = self.is_filtered() && self.send_queue.is_empty();
        match queued(push_at(&mut self.send_queue, piece, bound, position)) {
            Delivered::Queued { .. } if idle => Delivered::Advance,
            delivered => delivered,
        }
    }

    /// The footer and the end of the response, for nginx to send.
    pub fn compressed_end(&mut self) -> Vec<u8> {
        match (&self.style.coder, &mut self.kind) {
            (Some(coder), Kind::Compressed(compressed)) => coder.ending(&self.audience.footer, &mut compressed.reader),
            _ => Vec::new(),
        }
    }

    /// Codes the first pieces of the queue, unless the first is coded. False if the queue is empty.
    pub fn code_front(&mut self) -> bool {
        match self.send_queue.front() {
            None => return false,
            Some(piece) if piece.frames.content() == Content::Coded => return true,
            Some(_) => {}
        }
        let pieces = self.send_queue.take_front(GATHERED);
        let coded: Vec<Rc<Frames>> = pieces
            .iter()
            .filter_map(|piece| self.code(&piece.frames, piece.from, piece.to))
            .collect();
        let coded = match &coded[..] {
            [only] => only.clone(),
            several => Rc::new(Frames::coded_together(several)),
        };
        self.send_queue.put_front(Piece::whole(coded));
        true
    }

    /// Sends the queue.
    pub fn flush_compressed(&mut self) -> Progress {
        while self.code_front()
            && let Some(piece) = self.send_queue.front()
        {
            let piece = piece.clone();
            let (taken, progress) = self.offer(piece.bytes());
            self.send_queue.advance(taken);
            self.count(taken);
            if progress != Progress::Done {
                return progress;
            }
        }
        Progress::Done
    }
}

/// Bytes for a compressed reader, its position behind them if they move it, and the checksum of its text up to there.
type Unsent = (Vec<u8>, Option<OrderedId>, Option<Sum>);

impl Subscriber {
    /// For the handover of a compressed reader: its unsent bytes without messages after sequence number `seq`, behind
    /// which nothing is open. None if it is not compressed; None inside if such a message is on the wire in part.
    pub fn unsent_compressed(&self, seq: u64) -> Option<Option<Unsent>> {
        let (Some(coder), Some(Compressed { reader, .. })) = (&self.style.coder, self.kind.compressed()) else {
            return None;
        };
        let coded = self.send_queue.up_to_coded(seq).map(|(coded, text, position)| {
            let mut reader = *reader;
            let mut rest = coder.single(&text, &mut reader);
            rest.extend_from_slice(coder.parting(&mut reader));
            let rest = Frames::coded(&rest, self.style.framing);
            ([coded, rest.bytes()].concat(), position, Some(reader.sum()))
        });
        Some(coded)
    }
}
