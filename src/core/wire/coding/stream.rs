//! The coder of a style, the codings of a piece, and what is kept for each reader.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use super::checksum::{Checksum, Sum};
use super::deflate::{self, Deflater};
use super::group::{Group, Place};
use super::ledger::Ledger;
use super::permessage::{self, Agreed};

/// The head of a gzip member (RFC 1952): no name, no time, of no particular system.
const GZIP_HEAD: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// How messages are compressed. Readers with equal settings get the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// From 1, the fastest, to 9.
    pub level: u32,
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
    /// Frames of a WebSocket, as agreed on with its client.
    Messages(Agreed),
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

/// The codings of a piece that several readers may get, made when the first of them needs it.
#[derive(Debug)]
pub struct Codings<W> {
    group: Option<Rc<Group>>,
    place: OnceCell<Place>,
    /// None inside: the group has gone on without it, or there was no time.
    in_group: OnceCell<Option<Rc<Coded<W>>>>,
    /// By the byte of the piece that they begin with.
    alone: RefCell<Vec<(u32, Rc<Coded<W>>)>>,
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
    alone: RefCell<Option<Deflater>>,
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
                Form::Gzip => true,
                Form::Messages(agreed) => agreed.takeover,
            }
    }

    /// Frees the compressor for single pieces if it was not needed since the last call.
    pub fn rest(&self) {
        if !self.busy.replace(false) {
            *self.alone.borrow_mut() = None;
        }
    }

    /// The head of a gzip stream, and its first text.
    pub fn opening(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        [GZIP_HEAD, &self.single(text, reader)].concat()
    }

    /// A text that only this reader gets.
    pub fn single(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        if text.is_empty() {
            return Vec::new();
        }
        let (bytes, compressed) = self.by_itself(text);
        if compressed {
            reader.place = Place::NOWHERE;
        }
        reader.append(&self.checksum(text));
        bytes
    }

    fn checksum(&self, text: &[u8]) -> Option<Checksum> {
        (self.form == Form::Gzip).then(|| Checksum::of(text))
    }

    /// The last text, and the end of a gzip stream.
    pub fn ending(&self, text: &[u8], reader: &mut Reader) -> Vec<u8> {
        let mut bytes = self.single(text, reader);
        bytes.extend_from_slice(deflate::LAST);
        bytes.extend_from_slice(&reader.sum.crc.to_le_bytes());
        bytes.extend_from_slice(&reader.sum.length.to_le_bytes());
        bytes
    }

    /// Bytes that decode to nothing, at any place of a gzip stream.
    pub fn nothing(&self) -> &'static [u8] {
        deflate::EMPTY
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
                    let push = match self.form {
                        Form::Gzip => Deflater::push,
                        Form::Messages(_) => permessage::push_together,
                    };
                    let bytes = self.timed(text, || group.compress(place, text, || self.new_deflater(), push))?;
                    Some(Rc::new(Coded {
                        wire: dress(bytes),
                        checksum: self.checksum(text),
                    }))
                });
                if let Some(coded) = in_group {
                    reader.place = place.next();
                    reader.append(&coded.checksum);
                    group.count(true);
                    self.ledger.count(true);
                    return coded.clone();
                }
            }
            group.count(false);
        }
        self.ledger.count(false);
        let coded = self.alone(codings, text, from, dress);
        reader.place = Place::NOWHERE;
        reader.append(&coded.checksum);
        coded
    }

    fn alone<W>(&self, codings: &Codings<W>, text: &[u8], from: u32, dress: impl Fn(Vec<u8>) -> W) -> Rc<Coded<W>> {
        let known = |codings: &Vec<(u32, Rc<Coded<W>>)>| {
            let mut codings = codings.iter();
            codings
                .find(|(start, _)| *start == from)
                .map(|(_, coded)| coded.clone())
        };
        if let Some(coded) = known(&codings.alone.borrow()) {
            return coded;
        }
        let coded = Rc::new(Coded {
            wire: dress(self.by_itself(text).0),
            checksum: self.checksum(text),
        });
        codings.alone.borrow_mut().push((from, coded.clone()));
        coded
    }

    /// A text that refers to nothing before it; not compressed if that does not pay. Also: does it take a place in the
    /// reader's window?
    fn by_itself(&self, text: &[u8]) -> (Vec<u8>, bool) {
        let compressed = |text: &[u8]| {
            let worth = text.len() >= self.terms.min_length;
            worth.then(|| self.timed(text, || self.compress(text))).flatten()
        };
        let mut bytes = Vec::new();
        match self.form {
            Form::Gzip => {
                let stored_length = deflate::stored_length(text.len());
                if let Some(shorter) = compressed(text).filter(|bytes| bytes.len() < stored_length) {
                    return (shorter, true);
                }
                bytes.reserve_exact(stored_length);
                deflate::push_stored(text, &mut bytes);
                (bytes, true)
            }
            Form::Messages(_) => {
                bytes.reserve(text.len());
                let some = permessage::push_apart(text, &mut bytes, compressed);
                (bytes, some)
            }
        }
    }

    fn compress(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.busy.set(true);
        let mut deflater = self.alone.borrow_mut();
        match deflater.as_mut() {
            Some(deflater) => deflater.reset(),
            None => *deflater = Some(self.new_deflater()),
        }
        let push = match self.form {
            Form::Gzip => Deflater::push,
            Form::Messages(_) => permessage::compress,
        };
        let mut out = Vec::with_capacity(text.len() / 2 + 64);
        if !push(deflater.as_mut()?, text, &mut out) {
            *deflater = None;
            return None;
        }
        Some(out)
    }

    fn new_deflater(&self) -> Deflater {
        let window_bits = match self.form {
            Form::Gzip => permessage::WINDOW_BITS,
            Form::Messages(agreed) => agreed.window_bits,
        };
        Deflater::new(self.terms.level, window_bits)
    }

    /// Runs the compressor on a text, if there is time left.
    fn timed(&self, text: &[u8], compress: impl FnOnce() -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        self.ledger.timed(text.len(), self.form != Form::Gzip, compress)
    }
}

/// Memory of each reader.
const _: () = assert!(size_of::<Reader>() <= 16);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::io::Read;
    use std::time::Duration;

    use flate2::read::GzDecoder;
    use flate2::{Decompress, FlushDecompress};
    use proptest::prelude::*;

    use super::super::ledger::{Figures, Pace};
    use super::*;
    use crate::wire::websocket::{Opcode, push_frame};

    const TERMS: Terms = Terms {
        level: 6,
        min_length: 64,
        grouped: true,
    };

    const NEVER: Pace = Pace {
        share: 1,
        burst: Duration::ZERO,
    };

    /// The whole stream, as a client that checks the trailer reads it.
    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut plain).expect("a whole member");
        plain
    }

    /// Pieces of a channel, and one of its readers: what it has been sent, and pieces that wait for it.
    struct Client {
        reader: Reader,
        wire: Vec<u8>,
        plain: Vec<u8>,
        /// Reads `wire` as it comes; this many bytes of it and of `plain` are read.
        live: Decompress,
        read: (usize, usize),
        queue: VecDeque<(Rc<Piece>, u32)>,
        slow: bool,
    }

    struct Piece {
        text: Vec<u8>,
        codings: Codings<Vec<u8>>,
    }

    impl Client {
        fn join(coder: &Coder, header: &[u8]) -> Client {
            let mut reader = Reader::default();
            Client {
                wire: coder.opening(header, &mut reader),
                plain: header.to_vec(),
                reader,
                live: Decompress::new(false),
                read: (GZIP_HEAD.len(), 0),
                queue: VecDeque::new(),
                slow: false,
            }
        }

        /// Can all that was sent be read by now?
        fn reads_all(&mut self) -> bool {
            let expected = &self.plain[self.read.1..];
            let mut read = Vec::with_capacity(expected.len() + 64);
            let wire = &self.wire[self.read.0..];
            let sound = self.live.decompress_vec(wire, &mut read, FlushDecompress::Sync).is_ok();
            let right = read == expected;
            self.read = (self.wire.len(), self.plain.len());
            sound && right
        }

        fn drain(&mut self, coder: &Coder) {
            for (piece, from) in self.queue.drain(..) {
                let coded = coder.piece(&piece.codings, (&piece.text, from), &mut self.reader, |bytes| bytes);
                self.wire.extend_from_slice(&coded.wire);
                self.plain.extend_from_slice(&piece.text[from as usize..]);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        /// A piece of channel 0 or 1 to everybody.
        Publish {
            channel: usize,
            text: Vec<u8>,
        },
        Join(Vec<u8>),
        /// Bytes for one reader alone: a gap notice, replayed history.
        Single(usize, Vec<u8>),
        Ping(usize),
        /// Its socket is full, or takes bytes again.
        Slow(usize, bool),
        /// A slow reader skips its oldest piece, or a part of it.
        Skip(usize, u32),
        /// Goes to another process and comes back.
        HandOver(usize),
        /// Leaves regularly.
        Leave(usize),
        /// Time that compression may take from now on.
        Limit(bool),
        /// All compressors are freed.
        Idle,
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let word = prop::sample::select(vec![
            &b"data: {\"id\":"[..],
            b"\"name\":\"somebody\",",
            b"\"text\":\"nothing new\"}\n\n",
            b"17,",
            b"\0\xff\x80",
        ]);
        let words = prop::collection::vec(word, 1..40).prop_map(|words| words.concat());
        prop_oneof![
            8 => words,
            1 => prop::collection::vec(any::<u8>(), 1..200),
            1 => (any::<u8>(), 1_usize..5_000).prop_map(|(byte, length)| vec![byte; length]),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            12 => (0..2_usize, text()).prop_map(|(channel, text)| Event::Publish { channel: channel.min(1), text }),
            3 => text().prop_map(Event::Join),
            2 => (any::<usize>(), text()).prop_map(|(who, text)| Event::Single(who, text)),
            2 => any::<usize>().prop_map(Event::Ping),
            3 => (any::<usize>(), any::<bool>()).prop_map(|(who, slow)| Event::Slow(who, slow)),
            1 => (any::<usize>(), any::<u32>()).prop_map(|(who, from)| Event::Skip(who, from)),
            1 => any::<usize>().prop_map(Event::HandOver),
            1 => any::<usize>().prop_map(Event::Leave),
            1 => any::<bool>().prop_map(Event::Limit),
            1 => Just(Event::Idle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_reader_decodes_what_it_was_sent(events in prop::collection::vec(event(), 1..120)) {
            let ledger = Rc::new(Ledger::default());
            let coder = Coder::new(TERMS, Form::Gzip, ledger.clone());
            let mut groups: Vec<Rc<Group>> = vec![Rc::default(), Rc::default()];
            let mut clients: Vec<Client> = Vec::new();
            let mut left: Vec<Client> = Vec::new();
            for event in events {
                let count = clients.len();
                match event {
                    Event::Publish { channel, text } => {
                        let codings = Codings::new(Some(groups[channel].clone()));
                        let piece = Rc::new(Piece { text, codings });
                        // Readers follow channel 0, every third one both.
                        for client in clients.iter_mut().enumerate() {
                            if channel == 0 || client.0 % 3 == 0 {
                                client.1.queue.push_back((piece.clone(), 0));
                            }
                        }
                    }
                    Event::Join(header) => clients.push(Client::join(&coder, &header)),
                    _ if count == 0 => {}
                    Event::Single(who, text) => {
                        let client = &mut clients[who % count];
                        client.wire.extend(coder.single(&text, &mut client.reader));
                        client.plain.extend(text);
                    }
                    Event::Ping(who) => clients[who % count].wire.extend_from_slice(coder.nothing()),
                    Event::Slow(who, slow) => clients[who % count].slow = slow,
                    Event::Skip(who, from) => {
                        let queue = &mut clients[who % count].queue;
                        if let Some((piece, start)) = queue.front_mut() {
                            *start = from % (piece.text.len() as u32);
                        }
                        if from % 2 == 0 {
                            queue.pop_front();
                        }
                    }
                    Event::HandOver(who) => {
                        let client = &mut clients[who % count];
                        client.reader = Reader::continued(client.reader.sum());
                    }
                    Event::Leave(who) => left.push(clients.swap_remove(who % count)),
                    Event::Limit(limit) => {
                        ledger.pace.set(if limit { NEVER } else { Pace::FREE });
                    }
                    Event::Idle => {
                        groups = vec![Rc::default(), Rc::default()];
                        coder.rest();
                    }
                }
                for client in clients.iter_mut().filter(|client| !client.slow) {
                    client.drain(&coder);
                    prop_assert!(client.reads_all());
                }
            }
            for mut client in clients.into_iter().chain(left) {
                client.drain(&coder);
                client.wire.extend(coder.ending(b"bye", &mut client.reader));
                client.plain.extend_from_slice(b"bye");
                prop_assert!(gunzip(&client.wire) == client.plain);
            }
        }
    }

    fn event_text(number: u64) -> Vec<u8> {
        let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "id: {number}\ndata: {{\"user\":\"user{}\",\"value\":{},\"state\":\"open\"}}\n\n",
            noise % 97,
            noise % 9973
        )
        .into_bytes()
    }

    #[test]
    fn readers_inside_get_shorter_pieces_made_once() {
        let ledger = Rc::new(Ledger::default());
        let coder = Coder::new(TERMS, Form::Gzip, ledger.clone());
        let group = Rc::<Group>::default();
        let mut readers = [Reader::default(); 100];
        let mut late = Reader::default();
        let (mut plain, mut wire) = (0, 0);
        for number in 0..100 {
            let (text, codings) = (event_text(number), Codings::new(Some(group.clone())));
            let made = Cell::new(0);
            for reader in &mut readers {
                let coded = coder.piece(&codings, (&text, 0), reader, |bytes| {
                    made.set(made.get() + 1);
                    bytes
                });
                plain += text.len();
                wire += coded.wire.len();
            }
            if number > 50 {
                coder.piece(&codings, (&text, 0), &mut late, |bytes| {
                    made.set(made.get() + 1);
                    bytes
                });
            }
            assert_eq!(made.get(), 1 + u32::from(number > 50));
        }
        assert!(wire * 2 < plain, "{wire} of {plain} bytes");
        let figures = ledger.take_figures();
        assert_eq!((figures.aligned, figures.unaligned), (10_000, 49));
        assert_eq!(ledger.take_figures(), Figures::default());
    }

    #[test]
    fn without_a_group_or_time_everybody_gets_the_same() {
        let ledger = Rc::new(Ledger::default());
        let coder = Coder::new(TERMS, Form::Gzip, ledger.clone());
        let text = event_text(1).repeat(3);
        let codings = Codings::new(None);
        let mut readers = [Reader::default(); 2];
        let coded = coder.piece(&codings, (&text, 0), &mut readers[0], |bytes| bytes);
        assert!(coded.wire.len() < text.len());
        let again = coder.piece(&codings, (&text, 0), &mut readers[1], |bytes| bytes);
        assert!(Rc::ptr_eq(&coded, &again));
        ledger.pace.set(NEVER);
        let coded = coder.piece(&Codings::new(None), (&text, 0), &mut readers[0], |bytes| bytes);
        assert_eq!(coded.wire.len(), deflate::stored_length(text.len()));
        ledger.pace.set(Pace::FREE);
        let short = &text[..TERMS.min_length - 1];
        assert_eq!(
            coder.single(short, &mut readers[0]).len(),
            deflate::stored_length(short.len())
        );
    }

    #[test]
    fn a_member_is_a_whole_answer() {
        for text in [&b""[..], b"short", &event_text(7).repeat(300)] {
            let coder = Coder::new(TERMS, Form::Gzip, Rc::default());
            let mut reader = Reader::default();
            let opening = coder.opening(text, &mut reader);
            assert_eq!(gunzip(&[opening, coder.ending(b"", &mut reader)].concat()), text);
        }
    }

    /// The client's end of a WebSocket that has agreed on a window.
    struct Peer {
        reader: Reader,
        inflate: Decompress,
        agreed: Agreed,
        queue: VecDeque<(Rc<Piece>, u32)>,
        slow: bool,
        expected: Vec<Vec<u8>>,
        got: Vec<Vec<u8>>,
    }

    impl Peer {
        /// Reads whole frames, which a server sends.
        fn read(&mut self, mut wire: &[u8]) {
            while let [first, second, rest @ ..] = wire {
                let (length, rest) = match (second, rest) {
                    (126, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
                    (127, rest) => (u64::from_be_bytes(*rest.first_chunk().unwrap()) as usize, &rest[8..]),
                    _ => (usize::from(*second), rest),
                };
                let (payload, rest) = rest.split_at(length);
                wire = rest;
                match first {
                    0x89 => {}
                    0x81 => self.got.push(payload.to_vec()),
                    0xc1 => {
                        if !self.agreed.takeover {
                            self.inflate.reset(false);
                        }
                        let mut text = Vec::with_capacity(1 << 17);
                        let whole = [payload, deflate::TAIL].concat();
                        self.inflate
                            .decompress_vec(&whole, &mut text, FlushDecompress::Sync)
                            .expect("a message that was compressed");
                        self.got.push(text);
                    }
                    other => panic!("a frame that begins with {other:x}"),
                }
            }
            assert!(wire.is_empty(), "half a frame");
        }

        fn drain(&mut self, coder: &Coder) {
            for (piece, from) in std::mem::take(&mut self.queue) {
                let coded = coder.piece(&piece.codings, (&piece.text, from), &mut self.reader, |bytes| bytes);
                self.read(&coded.wire);
            }
        }
    }

    fn framed(texts: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        texts.iter().for_each(|text| push_frame(Opcode::Text, text, &mut out));
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn each_web_socket_decodes_what_it_was_sent(
            events in prop::collection::vec(event(), 1..120),
            window_bits in 9..=15_u8,
            takeover: bool,
            level in 1..=9_u32,
        ) {
            let ledger = Rc::new(Ledger::default());
            let agreed = Agreed { window_bits, takeover };
            let coder = Coder::new(Terms { level, ..TERMS }, Form::Messages(agreed), ledger.clone());
            let mut groups: Vec<Rc<Group>> = vec![Rc::default(), Rc::default()];
            let mut peers: Vec<Peer> = Vec::new();
            for (number, event) in events.into_iter().enumerate() {
                let count = peers.len();
                match event {
                    Event::Publish { channel, text } => {
                        // Several messages that go out together, now and then.
                        let texts: Vec<Vec<u8>> = text.chunks(1 + text.len() / (1 + number % 3)).map(<[u8]>::to_vec).collect();
                        let group = coder.is_grouped().then(|| groups[channel].clone());
                        let piece = Rc::new(Piece { text: framed(&texts), codings: Codings::new(group) });
                        for (index, peer) in peers.iter_mut().enumerate() {
                            if channel == 0 || index % 3 == 0 {
                                peer.queue.push_back((piece.clone(), 0));
                                peer.expected.extend(texts.iter().cloned());
                            }
                        }
                    }
                    Event::Join(_) => peers.push(Peer {
                        reader: Reader::default(),
                        inflate: Decompress::new_with_window_bits(false, window_bits),
                        agreed,
                        queue: VecDeque::new(),
                        slow: false,
                        expected: Vec::new(),
                        got: Vec::new(),
                    }),
                    _ if count == 0 => {}
                    Event::Single(who, text) => {
                        let peer = &mut peers[who % count];
                        peer.drain(&coder);
                        let wire = coder.single(&framed(std::slice::from_ref(&text)), &mut peer.reader);
                        peer.read(&wire);
                        peer.expected.push(text);
                    }
                    Event::Ping(who) => {
                        let peer = &mut peers[who % count];
                        let before = peer.reader;
                        let wire = coder.single(&[0x89, 0], &mut peer.reader);
                        prop_assert_eq!(&wire, &[0x89, 0]);
                        prop_assert_eq!(before, peer.reader, "control frames are outside of the window");
                    }
                    Event::Slow(who, slow) => peers[who % count].slow = slow,
                    Event::HandOver(who) => {
                        let peer = &mut peers[who % count];
                        peer.reader = Reader::continued(peer.reader.sum());
                    }
                    Event::Skip(who, _) | Event::Leave(who) => drop(peers.swap_remove(who % count)),
                    Event::Limit(limit) => ledger.pace.set(if limit { NEVER } else { Pace::FREE }),
                    Event::Idle => {
                        groups = vec![Rc::default(), Rc::default()];
                        coder.rest();
                    }
                }
                for peer in peers.iter_mut().filter(|peer| !peer.slow) {
                    peer.drain(&coder);
                    prop_assert!(peer.got == peer.expected);
                }
            }
        }
    }

    #[test]
    fn web_sockets_share_what_a_group_has_made() {
        let ledger = Rc::new(Ledger::default());
        let agreed = Agreed {
            window_bits: 15,
            takeover: true,
        };
        let coder = Coder::new(TERMS, Form::Messages(agreed), ledger.clone());
        let group = Rc::<Group>::default();
        let mut readers = [Reader::default(); 2];
        let (mut plain, mut wire) = (0, 0);
        for number in 0..100 {
            let (text, codings) = (framed(&[event_text(number)]), Codings::new(Some(group.clone())));
            let [one, other] = readers
                .each_mut()
                .map(|reader| coder.piece(&codings, (&text, 0), reader, |bytes| bytes));
            assert!(Rc::ptr_eq(&one, &other));
            plain += text.len();
            wire += one.wire.len();
        }
        assert!(wire * 2 < plain, "{wire} of {plain} bytes");
        let figures = ledger.take_figures();
        assert_eq!(
            (figures.aligned, figures.bytes_in, figures.messages_in),
            (200, 0, plain as u64)
        );
        assert_eq!(figures.messages_out, wire as u64);
    }
}
