//! Frames: messages as sent, rendered once per worker and style, shared by all subscribers.

use std::rc::Rc;

use ngx::ffi::NGX_LOG_ALERT;
use ngx::ngx_log_error;
use push_stream_core::store::{Message, MessageKind};
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::coding::group::Group;
use push_stream_core::wire::coding::permessage::Agreed;
use push_stream_core::wire::coding::stream::{Coder, Codings, Form};
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::template::Fields;

use super::format::{Format, Transport};
use super::profile::Audience;
use crate::config::Padding;

/// Upper bound, with a margin, of bytes that framing and padding add to a message.
const FRAME_MAX: usize = 64 * 1024;

/// Upper bound of the bytes that chunked framing adds to a piece.
const CHUNK_FRAME: usize = 8 + 4;

/// The end of a chunked response.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Stands for the end of a compressed response, which is more than its footer, until it is coded.
const END_MARK: u8 = 0;

/// Message id that templates show for a deletion notice.
const DELETED_ID: i64 = -2;

/// Framing of a piece for the transport below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// No framing: HTTP/1.0, HTTP/2, or nginx's filters do it.
    Raw,
    /// Each piece is an HTTP/1.1 chunk.
    Chunked,
    /// Pieces are compressed for each reader or group when they are sent, and then have no framing.
    Compressed(Coding),
    /// As above; then each is an HTTP/1.1 chunk.
    CompressedChunked(Coding),
    /// Frames of a WebSocket, whose messages are compressed in the same way.
    Deflated(Agreed),
}

impl Framing {
    /// This framing, of pieces compressed in this coding.
    pub fn compressed(self, coding: Coding) -> Framing {
        match self {
            Framing::Raw | Framing::Compressed(_) => Framing::Compressed(coding),
            Framing::Chunked | Framing::CompressedChunked(_) => Framing::CompressedChunked(coding),
            Framing::Deflated(_) => self,
        }
    }

    /// The framing of a piece that is compressed.
    pub fn around(self) -> Framing {
        match self {
            Framing::Raw | Framing::Compressed(_) | Framing::Deflated(_) => Framing::Raw,
            Framing::Chunked | Framing::CompressedChunked(_) => Framing::Chunked,
        }
    }

    pub fn is_compressed(self) -> bool {
        matches!(
            self,
            Framing::Compressed(_) | Framing::CompressedChunked(_) | Framing::Deflated(_)
        )
    }

    /// What pieces become; None if they are not compressed.
    pub fn form(self) -> Option<Form> {
        match self {
            Framing::Raw | Framing::Chunked => None,
            Framing::Compressed(coding) | Framing::CompressedChunked(coding) => Some(coding.into()),
            Framing::Deflated(agreed) => Some(Form::Messages(agreed)),
        }
    }

    /// The content coding of the response.
    pub fn coding(self) -> Option<Coding> {
        self.form()?.coding()
    }

    /// What was agreed on with the client of a WebSocket, if anything was.
    pub fn agreed(self) -> Option<Agreed> {
        match self {
            Framing::Deflated(agreed) => Some(agreed),
            _ => None,
        }
    }
}

/// Template, framing and padding of messages. Subscribers with equal styles get the same bytes.
#[derive(Clone, Debug)]
pub struct Style {
    pub format: Rc<Format>,
    pub framing: Framing,
    /// Bytes that a message is padded to; 0 = none.
    pub message_min: u32,
    /// The largest minimum of the configuration.
    pub padding_max: u32,
    /// Compresses its pieces, if its framing says so.
    pub coder: Option<Rc<Coder>>,
}

impl Style {
    /// Equal for equal styles.
    pub fn key(&self) -> (usize, Framing, u32) {
        (Rc::as_ptr(&self.format) as usize, self.framing, self.message_min)
    }
}

impl PartialEq for Style {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

/// Consecutive messages in one style: of one channel, or merged for readers that resume in order.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// One note for each message, where messages are merged; else empty.
    notes: Vec<Note>,
    content: Content,
    /// Sequence number of the last message in compressed bytes, which have no marks.
    coded_seq: u64,
    /// Its codings, if it is compressed for several readers.
    codings: Option<Box<Codings<Rc<Frames>>>>,
}

/// What frames consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Messages, or other texts.
    #[default]
    Text,
    Gap,
    /// A ping.
    Ping,
    /// The footer and the end of a compressed response.
    End,
    /// Compressed already.
    Coded,
}

/// Data of a message that merging for readers that resume in order needs.
#[derive(Clone, Debug)]
pub struct Note {
    pub channel: Rc<[u8]>,
    pub id: Option<OrderedId>,
    pub is_position: bool,
}

/// The end of a message within the frames, with its data.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub seq: u64,
    pub time: u64,
    pub tag: u32,
    /// Is it the deletion notice of its channel?
    pub deleted: bool,
    end: u32,
}

impl Frames {
    /// Frames of bytes that are not a message: a ping, the end of an answer.
    pub fn of_bytes(bytes: &[u8], framing: Framing) -> Rc<Frames> {
        let mut frames = Frames::default();
        frame(framing, bytes, &mut frames.bytes);
        Rc::new(frames)
    }

    /// Frames of messages that readers of a compressed style get, with the context of a group if there is one.
    pub fn to_code(group: Option<Rc<Group>>) -> Frames {
        Frames {
            codings: Some(Box::new(Codings::new(group))),
            ..Frames::default()
        }
    }

    /// Frames of compressed bytes.
    pub fn coded(bytes: &[u8], framing: Framing) -> Frames {
        let mut frames = Frames {
            content: Content::Coded,
            ..Frames::default()
        };
        frame(framing.around(), bytes, &mut frames.bytes);
        frames
    }

    /// The end of a compressed response.
    pub fn coded_end(bytes: &[u8], framing: Framing) -> Frames {
        let mut frames = Frames::coded(bytes, framing);
        if framing.around() == Framing::Chunked {
            frames.bytes.extend_from_slice(LAST_CHUNK);
        }
        frames
    }

    /// The text of the end of a compressed response.
    pub fn footer(&self) -> &[u8] {
        self.bytes.strip_suffix(&[END_MARK]).unwrap_or_default()
    }

    /// Joins compressed pieces.
    pub fn coded_together(pieces: &[Rc<Frames>]) -> Frames {
        Frames {
            bytes: pieces.iter().flat_map(|piece| &piece.bytes).copied().collect(),
            coded_seq: pieces.iter().map(|piece| piece.coded_seq).max().unwrap_or(0),
            content: Content::Coded,
            ..Frames::default()
        }
    }

    /// Frames of a ping.
    pub fn of_ping(style: &Style) -> Rc<Frames> {
        let mut frames = Frames::default();
        frame(style.framing, &style.format.ping, &mut frames.bytes);
        frames.content = Content::Ping;
        Rc::new(frames)
    }

    /// Frames of texts that are not messages, each framed by itself.
    pub fn of_texts(texts: &[Vec<u8>], framing: Framing) -> Rc<Frames> {
        let mut frames = Frames::default();
        for text in texts {
            frame(framing, text, &mut frames.bytes);
        }
        Rc::new(frames)
    }

    /// Frames of gap notices for a slow reader, which later notices may replace when it misses more.
    pub fn of_gaps(notices: &[Vec<u8>], framing: Framing) -> Rc<Frames> {
        let mut frames = Frames::of_texts(notices, framing);
        if let Some(frames) = Rc::get_mut(&mut frames) {
            frames.content = Content::Gap;
        }
        frames
    }

    /// Makes them empty, for other messages. False if their buffers are larger than this, and should go.
    pub fn reset(&mut self, largest: usize) -> bool {
        let Frames {
            bytes,
            marks,
            notes,
            content,
            coded_seq,
            codings,
        } = self;
        bytes.clear();
        marks.clear();
        notes.clear();
        (*content, *coded_seq, *codings) = (Content::Text, 0, None);
        bytes.capacity() + marks.capacity() * size_of::<Mark>() + notes.capacity() * size_of::<Note>() <= largest
    }

    /// Is it neither a gap notice nor merged from several channels?
    pub fn is_plain(&self) -> bool {
        !self.is_gap() && self.notes.is_empty()
    }

    /// Joins pieces: the same bytes and messages in one value.
    pub fn united(pieces: impl IntoIterator<Item = Piece>) -> Frames {
        let mut united = Frames::default();
        for piece in pieces {
            let start = united.bytes.len() as u32;
            let marks = piece.frames.marks.iter();
            let within = marks.filter(|mark| mark.end > piece.from && mark.end <= piece.to);
            united.marks.extend(within.map(|mark| Mark {
                end: start + mark.end - piece.from,
                ..*mark
            }));
            united.bytes.extend_from_slice(piece.bytes());
        }
        united
    }

    pub fn is_gap(&self) -> bool {
        self.content == Content::Gap
    }

    pub fn content(&self) -> Content {
        self.content
    }

    pub fn codings(&self) -> Option<&Codings<Rc<Frames>>> {
        self.codings.as_deref()
    }

    /// May a message be added? None after some reader got what is in it.
    pub fn is_open(self: &Rc<Frames>) -> bool {
        Rc::strong_count(self) == 1 && self.codings.as_ref().is_none_or(|codings| !codings.is_begun())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends one message, with its note for merging.
    pub fn push_noted(&mut self, style: &Style, message: &Message<'_>, note: Note, scratch: &mut Vec<u8>) {
        let shown = Message {
            event_id: message.event_id.filter(|_| note.is_position),
            ..*message
        };
        let before = self.marks.len();
        self.push(style, &note.channel, &shown, scratch);
        if self.marks.len() > before {
            self.notes.push(note);
        }
    }

    /// Notes of the messages that end between these two bytes.
    pub fn notes(&self, from: u32, to: u32) -> &[Note] {
        let first = self.marks.partition_point(|mark| mark.end <= from);
        let last = self.marks.partition_point(|mark| mark.end <= to);
        self.notes.get(first..last).unwrap_or_default()
    }

    /// The last of those notes that is a position.
    pub fn last_position(&self, from: u32, to: u32) -> Option<&Note> {
        self.notes(from, to).iter().rfind(|note| note.is_position)
    }

    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The footer and the end of a response.
    pub fn end_of_response(footer: &[u8], framing: Framing) -> Rc<Frames> {
        let mut frames = Frames::default();
        frame(framing, footer, &mut frames.bytes);
        if framing == Framing::Chunked {
            frames.bytes.extend_from_slice(LAST_CHUNK);
        }
        if framing.is_compressed() {
            frames.content = Content::End;
            frames.bytes.push(END_MARK);
        }
        Rc::new(frames)
    }

    /// Appends one message of `channel`; returns the number of bytes appended.
    pub fn push(&mut self, style: &Style, channel: &[u8], message: &Message<'_>, scratch: &mut Vec<u8>) -> usize {
        let before = self.bytes.len();
        scratch.clear();
        let length = style
            .format
            .render(&fields(&style.format, channel, message), message.binary, scratch);
        // Offsets have 32 bits. Only a template that repeats a text of many megabytes reaches the limit.
        if u32::try_from(before + scratch.len() + FRAME_MAX).is_err() {
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_ALERT,
                log,
                "push stream: a message of {} bytes is {} bytes with its template, which is too much, and not delivered",
                message.text.len(),
                scratch.len()
            );
            return 0;
        }
        self.bytes.reserve(scratch.len() + CHUNK_FRAME);
        frame(style.framing, scratch, &mut self.bytes);
        if let Some(filler) = filler(style.format.transport, length, style.message_min, style.padding_max) {
            frame(style.framing, &filler, &mut self.bytes);
        }
        self.marks.push(Mark {
            seq: message.seq,
            time: message.time,
            tag: message.tag,
            deleted: message.kind == MessageKind::Deleted,
            end: self.bytes.len() as u32,
        });
        self.bytes.len() - before
    }

    /// Appends bytes that belong to the next message.
    pub fn push_bytes(&mut self, bytes: &[u8], framing: Framing) {
        frame(framing, bytes, &mut self.bytes);
    }

    /// The start of the messages after `seq`, the first of them and their number.
    pub fn after(&self, seq: u64) -> Option<(u32, &Mark, usize)> {
        let first = self.marks.first()?;
        if first.seq > seq {
            // As for nearly all subscribers.
            return Some((0, first, self.marks.len()));
        }
        let index = self.marks.partition_point(|mark| mark.seq <= seq);
        let mark = self.marks.get(index)?;
        Some((self.marks[index - 1].end, mark, self.marks.len() - index))
    }

    /// The end of the message that byte `at` belongs to.
    pub fn boundary_after(&self, at: u32) -> u32 {
        let index = self.marks.partition_point(|mark| mark.end <= at);
        self.marks.get(index).map_or(self.bytes.len() as u32, |mark| mark.end)
    }

    /// The start of the last message.
    pub fn last_start(&self) -> u32 {
        self.marks.len().checked_sub(2).map_or(0, |index| self.marks[index].end)
    }

    /// Is byte `at` a boundary between messages?
    pub fn is_boundary(&self, at: u32) -> bool {
        at == 0 || self.marks.binary_search_by_key(&at, |mark| mark.end).is_ok()
    }

    /// Bytes from byte `from` on.
    pub fn bytes_from(&self, from: u32) -> &[u8] {
        self.bytes.get(from as usize..).unwrap_or_default()
    }

    /// Number of messages that end after byte `at`.
    pub fn messages_from(&self, at: u32) -> usize {
        self.marks.len() - self.marks.partition_point(|mark| mark.end <= at)
    }

    /// Does it contain a message?
    pub fn has_messages(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Sequence number of the last message.
    pub fn last_seq(&self) -> u64 {
        self.marks.last().map_or(self.coded_seq, |mark| mark.seq)
    }

    /// Records the last message in compressed bytes.
    pub fn note_last(&mut self, seq: u64) {
        self.coded_seq = seq;
    }
}

impl Mark {
    pub fn end(&self) -> u32 {
        self.end
    }
}

/// A range of frames for one subscriber.
#[derive(Clone, Debug)]
pub struct Piece {
    pub frames: Rc<Frames>,
    pub from: u32,
    pub to: u32,
}

impl Piece {
    pub fn whole(frames: Rc<Frames>) -> Piece {
        Piece {
            from: 0,
            to: frames.bytes.len() as u32,
            frames,
        }
    }

    /// The frames from byte `from` on.
    pub fn tail(frames: &Rc<Frames>, from: u32) -> Piece {
        Piece {
            from,
            to: frames.bytes.len() as u32,
            frames: frames.clone(),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        self.frames
            .bytes
            .get(self.from as usize..self.to as usize)
            .unwrap_or_default()
    }

    /// Number of messages that end in it.
    pub fn messages(&self) -> usize {
        self.frames.messages_from(self.from) - self.frames.messages_from(self.to)
    }

    pub fn len(&self) -> usize {
        self.to.saturating_sub(self.from) as usize
    }

    /// Appends its bytes without messages after sequence number `seq`; returns the last position among the appended
    /// ones.
    pub fn push_up_to(&self, seq: u64, out: &mut Vec<u8>) -> Option<OrderedId> {
        let bytes = |from: u32, to: u32| self.frames.bytes.get(from as usize..to as usize).unwrap_or_default();
        let (mut from, mut position) = (self.from, None);
        for (index, mark) in self.frames.marks.iter().enumerate() {
            if mark.end <= self.from || mark.end > self.to {
                continue;
            }
            if mark.seq <= seq {
                out.extend_from_slice(bytes(from, mark.end));
                let note = self.frames.notes.get(index).filter(|note| note.is_position);
                position = note.and_then(|note| note.id).or(position);
            }
            from = mark.end;
        }
        out.extend_from_slice(bytes(from, self.to));
        position
    }
}

/// The values of a template's tokens for this message.
pub fn fields<'m>(format: &Format, channel: &'m [u8], message: &Message<'m>) -> Fields<'m> {
    // Resuming from this id would skip the copies still to come.
    let hidden = format.ordered && message.repeated_id;
    let ordinary = message.kind == MessageKind::Ordinary;
    Fields {
        id: if ordinary { message.id as i64 } else { DELETED_ID },
        channel,
        text: message.text,
        time: if ordinary { message.time } else { 0 },
        tag: if ordinary { message.tag } else { 0 },
        event_id: message.event_id.filter(|_| !hidden),
        event_type: message.event_type,
    }
}

/// Frames a piece. An empty piece gets no frame: an empty chunk would end the response.
fn frame(framing: Framing, piece: &[u8], out: &mut Vec<u8>) {
    if piece.is_empty() {
        return;
    }
    match framing {
        Framing::Raw | Framing::Compressed(_) | Framing::CompressedChunked(_) | Framing::Deflated(_) => {
            out.extend_from_slice(piece)
        }
        Framing::Chunked => {
            push_hex(piece.len(), out);
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn push_hex(number: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    out.extend(
        (0..digits)
            .rev()
            .map(|digit| b"0123456789abcdef"[number >> (digit * 4) & 15]),
    );
}

/// The filler after the header template for clients of this group.
pub fn header_filler(audience: &Audience, padding: &Padding) -> Option<Vec<u8>> {
    if audience.header.is_empty() {
        return None;
    }
    filler(
        audience.format.transport,
        audience.header.len(),
        padding.header_min,
        audience.padding_max.get(),
    )
}

/// A filler up to the minimum, in steps of a hundred bytes, never more than the largest minimum of the configuration.
fn filler(transport: Transport, sent: usize, min: u32, max: u32) -> Option<Vec<u8>> {
    let (min, max) = (min as usize, max as usize);
    let missing = min.checked_sub(sent).filter(|&missing| missing > 0)?;
    let hundreds = missing / 100;
    let length = if hundreds == max / 100 {
        max
    } else {
        (hundreds + 1) * 100
    };
    let mut filler = Vec::with_capacity(length);
    match transport {
        Transport::Plain => {
            filler.extend_from_slice(&b"\n"[..length % 2]);
            filler.extend(b"\r\n".iter().cycle().take(length - length % 2));
        }
        Transport::EventSource => {
            filler.resize(length - 1, b':');
            filler.push(b'\n');
        }
        Transport::WebSocket { .. } => return None,
    }
    Some(filler)
}
