//! Tests of [`super`]: readers that join, lag, leave and are handed over, and what they decode.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::Read;
use std::time::Duration;

use flate2::read::GzDecoder;
use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;
use zstd_safe::{DCtx, InBuffer, OutBuffer};

use super::super::ledger::{Figures, Pace};
use super::*;
use crate::wire::websocket::{Opcode, push_frame};

const TERMS: Terms = Terms {
    level: Some(6),
    min_length: 64,
    grouped: true,
};

/// Streams, in all codings. What was not built in is sent uncompressed.
const STREAMS: [Form; 2] = [Form::Gzip, Form::Zstd];

const NEVER: Pace = Pace {
    share: 1,
    burst: Duration::ZERO,
};

/// The whole stream, as a client that checks its end reads it.
fn decode(form: Form, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    if form == Form::Gzip {
        GzDecoder::new(bytes).read_to_end(&mut plain).expect("a whole member");
        return plain;
    }
    let mut live = Live::new(form);
    assert!(live.read(bytes, &mut plain));
    let Live::Frames { ended, .. } = live else {
        panic!("no stream of frames");
    };
    assert!(ended, "the last frame has an end");
    plain
}

/// Reads a stream as it comes.
enum Live {
    Gzip { inflate: Decompress, head: usize },
    Frames { context: DCtx<'static>, ended: bool },
}

impl Live {
    fn new(form: Form) -> Live {
        match form {
            Form::Gzip => Live::Gzip {
                inflate: Decompress::new(false),
                head: GZIP_HEAD.len(),
            },
            _ => Live::Frames {
                context: DCtx::create(),
                ended: true,
            },
        }
    }

    /// Appends what these bytes decode to; false if they are broken.
    fn read(&mut self, mut wire: &[u8], text: &mut Vec<u8>) -> bool {
        match self {
            Live::Gzip { inflate, head } => {
                wire = &wire[std::mem::take(head)..];
                inflate.decompress_vec(wire, text, FlushDecompress::Sync).is_ok()
            }
            Live::Frames { context, ended } => {
                // Calls that get nothing are an error after some times.
                if wire.is_empty() {
                    return true;
                }
                let mut input = InBuffer::around(wire);
                loop {
                    text.reserve(1000);
                    let (at, from) = (text.len(), input.pos());
                    let mut output = OutBuffer::around_pos(text, at);
                    match context.decompress_stream(&mut output, &mut input) {
                        Ok(left) if input.pos() > from || text.len() > at => *ended = left == 0,
                        Ok(_) => {}
                        Err(_) => return false,
                    }
                    if input.pos() == wire.len() && text.len() < text.capacity() {
                        return true;
                    }
                }
            }
        }
    }
}

/// Pieces of a channel, and one of its readers: what it has been sent, and pieces that wait for it.
struct Client {
    reader: Reader,
    wire: Vec<u8>,
    plain: Vec<u8>,
    /// Reads `wire` as it comes; this many bytes of it and of `plain` are read.
    live: Live,
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
            live: Live::new(coder.form()),
            read: (0, 0),
            queue: VecDeque::new(),
            slow: false,
        }
    }

    /// Can all that was sent be read by now?
    fn reads_all(&mut self) -> bool {
        let expected = &self.plain[self.read.1..];
        let mut read = Vec::with_capacity(expected.len() + 64);
        let wire = &self.wire[self.read.0..];
        let sound = self.live.read(wire, &mut read);
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
    fn each_reader_decodes_what_it_was_sent(
        events in prop::collection::vec(event(), 1..120),
        form in prop::sample::select(&STREAMS),
    ) {
        let ledger = Rc::new(Ledger::default());
        let coder = Coder::new(TERMS, form, ledger.clone());
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
                Event::Ping(who) => {
                    let client = &mut clients[who % count];
                    client.wire.extend_from_slice(coder.nothing(&client.reader));
                }
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
                    client.wire.extend_from_slice(coder.parting(&mut client.reader));
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
            prop_assert!(decode(form, &client.wire) == client.plain);
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
    for form in STREAMS
        .into_iter()
        .filter(|form| form.coding().is_none_or(Coding::is_built))
    {
        readers_inside_get_shorter_pieces(form);
    }
}

fn readers_inside_get_shorter_pieces(form: Form) {
    let ledger = Rc::new(Ledger::default());
    let coder = Coder::new(TERMS, form, ledger.clone());
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
    for (form, text) in STREAMS.into_iter().flat_map(|form| {
        [&b""[..], b"short", &event_text(7).repeat(300), &[7; 1 << 20]].map(|text| (form, text.to_vec()))
    }) {
        let coder = Coder::new(TERMS, form, Rc::default());
        let mut reader = Reader::default();
        let opening = coder.opening(&text, &mut reader);
        assert!(!opening.is_empty());
        assert!(decode(form, &[opening, coder.ending(b"", &mut reader)].concat()) == text);
    }
}

#[test]
fn a_frame_is_closed_where_its_group_begins_again() {
    let (coder, group) = (Coder::new(TERMS, Form::Zstd, Rc::default()), Rc::<Group>::default());
    if !Coding::Zstd.is_built() {
        return;
    }
    let piece = |number, readers: &mut [Reader]| {
        let (text, codings) = (event_text(number), Codings::new(Some(group.clone())));
        let mut wires = Vec::new();
        for reader in readers {
            wires.push(coder.piece(&codings, (&text, 0), reader, |bytes| bytes).wire.clone());
        }
        wires
    };
    // Only the first reader is inside when the next group begins, because nobody is inside any more.
    let mut readers = [Reader::default(); 2];
    piece(1, &mut readers[..1]);
    assert_eq!(coder.nothing(&readers[0]), zstd::EMPTY_BLOCK);
    assert_eq!(coder.nothing(&readers[1]), zstd::EMPTY_FRAME);
    piece(2, &mut []);
    group.begin(&Ledger::default());
    let wires = piece(3, &mut readers);
    assert_eq!(wires[0], [zstd::LAST_BLOCK, &wires[1]].concat());
    let mut window = [0; 8];
    window.copy_from_slice(&wires[1][..8]);
    assert_eq!(window[..5], [0x28, 0xb5, 0x2f, 0xfd, 0], "no checksum, no length");
    assert!(10 + (window[5] >> 3) <= 20, "RFC 9659 would allow 23 bits");
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
        let coder = Coder::new(Terms { level: Some(level), ..TERMS }, Form::Messages(agreed), ledger.clone());
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
        (figures.aligned, figures.gzip.before, figures.messages.before),
        (200, 0, plain as u64)
    );
    assert_eq!(figures.messages.after, wire as u64);
}
