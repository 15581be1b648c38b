//! The coder of a style, the codings of a piece, and what is kept for each reader.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use super::checksum::{Checksum, Sum};
use super::compressor::Compressor;
use super::group::{Group, Place};
use super::ledger::{Figures, Ledger, Volume};
use super::permessage::{self, Agreed};
use super::{Coding, deflate, zstd};

/// The head of a gzip member (RFC 1952): no name, no time, of no particular system.
const GZIP_HEAD: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// How messages are compressed. Readers with equal settings get the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// From 1, the fastest, to [`Coding::highest_level`]; None = the coding's default.
    pub level: Option<u32>,
    /// Bytes from which on a piece is compressed by itself.
    pub min_length: usize,
    /// May messages share a context?
    pub grouped: bool,
}

/// What a style's pieces become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Parts of a gzip stream.
    Gzip,
    /// Frames of Zstandard, and their blocks.
    Zstd,
    /// Frames of a WebSocket, as agreed on with its client.
    Messages(Agreed),
}

impl From<Coding> for Form {
    fn from(coding: Coding) -> Form {
        match coding {
            Coding::Gzip => Form::Gzip,
            Coding::Zstd => Form::Zstd,
        }
    }
}

impl Form {
    /// The content coding of a stream.
    pub fn coding(self) -> Option<Coding> {
        match self {
            Form::Gzip => Some(Coding::Gzip),
            Form::Zstd => Some(Coding::Zstd),
            Form::Messages(_) => None,
        }
    }

    fn volume(self, figures: &mut Figures) -> &mut Volume {
        match self {
            Form::Gzip => &mut figures.gzip,
            Form::Zstd => &mut figures.zstd,
            Form::Messages(_) => &mut figures.messages,
        }
    }
}

/// What a reader of a compressed stream has been sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reader {
    place: Place,
    sum: Sum,
}

impl Reader {
    /// A reader that another process has served until now; it is in no group here.
    pub fn continued(sum: Sum) -> Reader {
        Reader {
            place: Place::NOWHERE,
            sum,
        }
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    fn append(&mut self, checksum: &Option<Checksum>) {
        if let Some(checksum) = checksum {
            self.sum.append(checksum);
        }
    }
}

/// A coding of a piece, as sent.
#[derive(Debug)]
pub struct Coded<W> {
    pub wire: W,
    /// Of its text, where the stream ends with one.
    checksum: Option<Checksum>,
}

/// A coding of a piece, for all readers that get it.
#[derive(Debug)]
struct Made<W> {
    /// Kept where it may be needed twice.
    bytes: RefCell<Vec<u8>>,
    /// As it is, and behind the end of what the reader has open.
    as_sent: [OnceCell<Rc<Coded<W>>>; 2],
}

impl<W> Made<W> {
    fn new(bytes: Vec<u8>) -> Made<W> {
        Made {
            bytes: RefCell::new(bytes),
            as_sent: Default::default(),
        }
    }
}

/// The codings of a piece that several readers may get, made when the first of them needs it.
#[derive(Debug)]
pub struct Codings<W> {
    group: Option<Rc<Group>>,
    place: OnceCell<Place>,
    /// None inside: the group has gone on without it, or there was no time.
    in_group: OnceCell<Option<Made<W>>>,
    /// By the byte of the piece that they begin with.
    alone: RefCell<Vec<(u32, Made<W>)>>,
}

impl<W> Codings<W> {
    pub fn new(group: Option<Rc<Group>>) -> Codings<W> {
        Codings {
            group,
            place: OnceCell::new(),
            in_group: OnceCell::new(),
            alone: RefCell::default(),
        }
    }

    /// Has a reader got it?
    pub fn is_begun(&self) -> bool {
        self.place.get().is_some() || !self.alone.borrow().is_empty()
    }
}

/// Compresses for the readers of one style.
#[derive(Debug)]
pub struct Coder {
    terms: Terms,
    form: Form,
    ledger: Rc<Ledger>,
    alone: RefCell<Option<Compressor>>,
    /// Was that used since [`Coder::rest`]?
    busy: Cell<bool>,
}

impl Coder {
    pub fn new(terms: Terms, form: Form, ledger: Rc<Ledger>) -> Coder {
        Coder {
            terms,
            form,
            ledger,
            alone: RefCell::default(),
            busy: Cell::new(false),
        }
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub fn form(&self) -> Form {
        self.form
    }

    /// May pieces refer to those before them?
    pub fn is_grouped(&self) -> bool {
        self.terms.grouped
            && match self.form {
                Form::Gzip | Form::Zstd => true,
                Form::Messages(agreed) => agreed.takeover,
            }
    }

    /// Frees the compressor for single pieces if it was not needed since the last call.
    pub fn rest(&self) {
        if !self.busy.replace(false) {
            *self.alone.borrow_mut() = None;
        }
    }

    /// The beginning of a stream, and its first text. It is never empty.
    pub fn opening(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        match self.form {
            Form::Gzip => [GZIP_HEAD, &self.single(text, reader)].concat(),
            _ if text.is_empty() => self.nothing(reader).to_vec(),
            _ => self.single(text, reader),
        }
    }

    /// A text that only this reader gets.
    pub fn single(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        if text.is_empty() {
            return Vec::new();
        }
        let (mut bytes, compressed) = self.by_itself(text);
        let closing = self.closing(reader);
        if !closing.is_empty() {
            bytes.splice(..0, closing.iter().copied());
        }
        if compressed {
            reader.place = Place::NOWHERE;
        }
        reader.append(&self.checksum(text));
        bytes
    }

    fn checksum(&self, text: &[u8]) -> Option<Checksum> {
        (self.form == Form::Gzip).then(|| Checksum::of(text))
    }

    /// The end of what the reader has open: a group's frame of Zstandard.
    fn closing(&self, reader: &Reader) -> &'static [u8] {
        if self.form == Form::Zstd && reader.place != Place::NOWHERE {
            zstd::LAST_BLOCK
        } else {
            &[]
        }
    }

    /// Bytes that leave nothing open: behind them, another process can go on, which is in no group.
    pub fn parting(&self, reader: &mut Reader) -> &'static [u8] {
        let closing = self.closing(reader);
        reader.place = Place::NOWHERE;
        closing
    }

    /// The last text, and the end of the stream.
    pub fn ending(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        let mut bytes = self.single(text, reader);
        if self.form == Form::Gzip {
            bytes.extend_from_slice(deflate::LAST);
            bytes.extend_from_slice(&reader.sum.crc.to_le_bytes());
            bytes.extend_from_slice(&reader.sum.length.to_le_bytes());
        }
        bytes.extend_from_slice(self.parting(reader));
        bytes
    }

    /// Bytes that decode to nothing, and change nothing for the reader.
    pub fn nothing(&self, reader: &Reader) -> &'static [u8] {
        match self.form {
            Form::Zstd if reader.place == Place::NOWHERE => zstd::EMPTY_FRAME,
            Form::Zstd => zstd::EMPTY_BLOCK,
            Form::Gzip | Form::Messages(_) => deflate::EMPTY,
        }
    }

    /// A piece of the stream, from byte `from` on: the next for `reader`. `dress` makes it ready to be sent.
    pub fn piece<W>(
        &self,
        codings: &Codings<W>,
        (piece, from): (&[u8], u32),
        reader: &mut Reader,
        dress: impl Fn(Vec<u8>) -> W,
    ) -> Rc<Coded<W>> {
        let text = piece.get(from as usize..).unwrap_or_default();
        let group = codings.group.as_deref().filter(|_| from == 0);
        if let Some(group) = group {
            let place = *codings.place.get_or_init(|| group.begin(&self.ledger));
            if place.is_start() || place == reader.place {
                let in_group = codings.in_group.get_or_init(|| {
                    let bytes = self.timed(text, || group.compress(place, text, || self.new_compressor(true)))?;
                    Some(Made::new(bytes))
                });
                if let Some(made) = in_group {
                    // Only its first piece is not of the frame that the reader has open.
                    let closing = if place.is_start() { self.closing(reader) } else { &[] };
                    let coded = self.as_sent(made, text, closing, dress);
                    reader.place = place.next();
                    reader.append(&coded.checksum);
                    group.count(true);
                    self.ledger.count(true);
                    return coded;
                }
            }
            group.count(false);
        }
        self.ledger.count(false);
        let mut alone = codings.alone.borrow_mut();
        let known = alone.iter().position(|&(start, _)| start == from);
        let index = known.unwrap_or_else(|| {
            alone.push((from, Made::new(self.by_itself(text).0)));
            alone.len() - 1
        });
        let coded = self.as_sent(&alone[index].1, text, self.closing(reader), dress);
        reader.place = Place::NOWHERE;
        reader.append(&coded.checksum);
        coded
    }

    /// A coding of `text` behind `closing`.
    fn as_sent<W>(&self, made: &Made<W>, text: &[u8], closing: &[u8], dress: impl Fn(Vec<u8>) -> W) -> Rc<Coded<W>> {
        let as_sent = made.as_sent[usize::from(!closing.is_empty())].get_or_init(|| {
            let bytes = match self.form {
                Form::Zstd => [closing, &made.bytes.borrow()].concat(),
                Form::Gzip | Form::Messages(_) => made.bytes.take(),
            };
            Rc::new(Coded {
                wire: dress(bytes),
                checksum: self.checksum(text),
            })
        });
        as_sent.clone()
    }

    /// A text that refers to nothing before it; not compressed if that does not pay. Also: does it take a place in the
    /// reader's window?
    fn by_itself(&self, text: &[u8]) -> (Vec<u8>, bool) {
        let compressed = |text: &[u8]| {
            let worth = text.len() >= self.terms.min_length;
            worth.then(|| self.timed(text, || self.compress(text))).flatten()
        };
        let stored_length = match self.form {
            Form::Gzip => deflate::stored_length(text.len()),
            Form::Zstd => zstd::stored_length(text.len()),
            Form::Messages(_) => {
                let mut bytes = Vec::with_capacity(text.len());
                let some = permessage::push_apart(text, &mut bytes, compressed);
                return (bytes, some);
            }
        };
        if let Some(shorter) = compressed(text).filter(|bytes| bytes.len() < stored_length) {
            return (shorter, true);
        }
        let mut bytes = Vec::with_capacity(stored_length);
        match self.form {
            Form::Zstd => zstd::push_stored(text, &mut bytes),
            Form::Gzip | Form::Messages(_) => deflate::push_stored(text, &mut bytes),
        }
        (bytes, true)
    }

    fn compress(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.busy.set(true);
        let mut compressor = self.alone.borrow_mut();
        if compressor.is_none() {
            *compressor = self.new_compressor(false);
        }
        let mut out = Vec::with_capacity(text.len() / 2 + 64);
        if !compressor.as_mut()?.alone(text, &mut out) {
            *compressor = None;
            return None;
        }
        Some(out)
    }

    fn new_compressor(&self, grouped: bool) -> Option<Compressor> {
        Compressor::new(self.form, self.terms.level, grouped)
    }

    /// Runs the compressor on a text, if there is time left.
    fn timed(&self, text: &[u8], compress: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.ledger
            .timed(text.len(), |figures| self.form.volume(figures), compress)
    }
}

/// Memory of each reader.
const _: () = assert!(size_of::<Reader>() <= 16);

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
