//! What compression of streams saves and costs: bytes on the wire and time per message, for posts of a discussion and
//! events of a dashboard, with groups, alone, and with one context for each reader.
//!
//!     cargo run --release -p push-stream-core --features zstd --example coding_cost
//!
//! With arguments it does one thing only, whose instructions valgrind can count: `posts zstd 3 alone`, or `group`, or
//! `nothing`, which makes the messages and does no more.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::coding::compressor::Compressor;
use push_stream_core::wire::coding::group::Group;
use push_stream_core::wire::coding::ledger::Ledger;
use push_stream_core::wire::coding::stream::{Coder, Codings, Form, Reader, Terms};

const MESSAGES: usize = 3000;

/// A reader comes after so many messages, and the one that has been there longest goes; none if it is 0.
const TURNOVERS: [usize; 4] = [0, 100, 10, 1];

const READERS: usize = 100;

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Sentences of the project's documents: text that people wrote.
fn sentences() -> Vec<String> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let mut text = String::new();
    let mut names: Vec<_> = fs::read_dir(docs)
        .expect("docs")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    names.sort();
    for name in names
        .iter()
        .filter(|name| name.extension().is_some_and(|extension| extension == "md"))
    {
        text += &fs::read_to_string(name).expect("a document");
    }
    let letters = |sentence: &&str| sentence.len() > 40 && !sentence.contains(['|', '`', '#', '{', '\\']);
    let sentences = text.split(". ").filter(letters);
    sentences.map(|sentence| sentence.replace(['\n', '"'], " ")).collect()
}

/// Posts of about 730 bytes.
fn posts() -> Vec<Vec<u8>> {
    let (sentences, mut noise) = (sentences(), Noise(7));
    let post = |number: usize| {
        let mut body = String::new();
        while body.len() < 330 {
            body += &sentences[noise.below(sentences.len())];
            body += ". ";
        }
        body.truncate(
            (300..body.len())
                .rev()
                .find(|&end| body.is_char_boundary(end) && end < 420)
                .unwrap_or(0),
        );
        let (user, id) = (noise.below(400), 5_000_000_000 + number * 37 + noise.below(30));
        format!(
            "id: {id}\ndata: {{\"type\":\"post\",\"id\":\"{id}\",\"thread\":\"{}\",\"parent\":\"{}\",\"createdAt\":\"2026-05-{:02}T{:02}:{:02}:{:02}\",\
             \"author\":{{\"username\":\"user_{user:x}\",\"name\":\"Reader {user}\",\"avatar\":\"https://cdn.example.org/avatars/{:08x}.jpg\"}},\
             \"message\":\"<p>{body}</p>\",\"likes\":{},\"isApproved\":true,\"isDeleted\":false,\"media\":[]}}\n\n",
            4_400_000 + noise.below(3), id - noise.below(5000), 1 + noise.below(28), noise.below(24), noise.below(60), noise.below(60),
            user.wrapping_mul(2_654_435_761) as u32, noise.below(20),
        )
        .into_bytes()
    };
    (0..MESSAGES).map(post).collect()
}

/// Events of about 200 bytes.
fn events() -> Vec<Vec<u8>> {
    let mut noise = Noise(9);
    let event = |number: usize| {
        format!(
            "id: {}\ndata: {{\"host\":\"web-{:02}.example.org\",\"at\":{},\"cpu\":{}.{:02},\"load\":{}.{:02},\"memory\":{},\"requests\":{},\
             \"errors\":{},\"state\":\"{}\",\"latency\":{{\"p50\":{},\"p99\":{}}}}}\n\n",
            number + 1, noise.below(24), 1_790_000_000_000_usize + number * 1000 + noise.below(1000), noise.below(100), noise.below(100),
            noise.below(9), noise.below(100), noise.below(1 << 34), noise.below(20_000), noise.below(30),
            ["ok", "ok", "ok", "busy", "draining"][noise.below(5)], noise.below(40), 40 + noise.below(400),
        )
        .into_bytes()
    };
    (0..MESSAGES).map(event).collect()
}

/// Bytes of one context for each reader, as nginx's gzip filter keeps it, and the context's memory.
fn one_for_each(messages: &[Vec<u8>], form: Form, level: u32) -> (usize, Option<usize>) {
    let mut compressor = Compressor::new(form, Some(level), true).expect("a compressor");
    let mut out = Vec::new();
    messages
        .iter()
        .for_each(|message| assert!(compressor.push(message, &mut out)));
    (out.len(), compressor.memory())
}

/// Bytes for all readers, and the time of compression of a message.
fn in_groups(messages: &[Vec<u8>], form: Form, level: u32, grouped: bool, turnover: usize) -> (f64, Duration) {
    let terms = Terms {
        level: Some(level),
        min_length: 64,
        grouped,
    };
    let ledger = Rc::new(Ledger::default());
    let (coder, group) = (Coder::new(terms, form, ledger.clone()), Rc::<Group>::default());
    let mut readers = [Reader::default(); READERS];
    let mut bytes = 0;
    for (number, message) in messages.iter().enumerate() {
        if turnover > 0 && number % turnover == 0 {
            readers[number / turnover % READERS] = Reader::default();
        }
        let codings = Codings::new(grouped.then(|| group.clone()));
        for reader in &mut readers {
            bytes += coder.piece(&codings, (message, 0), reader, |bytes| bytes.len()).wire;
        }
    }
    (
        bytes as f64 / READERS as f64,
        ledger.take_figures().time / messages.len() as u32,
    )
}

/// One way for messages of one kind.
fn only(messages: &[Vec<u8>], coding: &str, level: &str, way: &str) {
    let form = Form::from(Coding::named(coding.as_bytes()).expect("a coding"));
    let level = level.parse().expect("a level");
    if way != "nothing" {
        let (bytes, _) = in_groups(messages, form, level, way == "group", 0);
        println!("{} messages, {bytes} bytes", messages.len());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [kind, coding, level, way] = &arguments[..] {
        let messages = if kind == "posts" { posts() } else { events() };
        return only(&messages, coding, level, way);
    }
    for (name, messages) in [("posts", posts()), ("events", events())] {
        let plain: usize = messages.iter().map(Vec::len).sum();
        let of_plain = |bytes: f64| bytes / plain as f64;
        println!("{name} of {} bytes", plain / messages.len());
        let codings = Coding::ALL.iter().filter(|coding| coding.is_built());
        for (coding, level) in codings.flat_map(|coding| [1, 2, 3, 4, 5, 6, 7, 9].map(|level| (*coding, level))) {
            let form = Form::from(coding);
            let (bytes, memory) = one_for_each(&messages, form, level);
            let each = of_plain(bytes as f64);
            let (alone, alone_time) = in_groups(&messages, form, level, false, 0);
            print!(
                "  {} level {level}: one context each {each:.3}, alone {:.3} ({alone_time:.1?}), groups",
                coding.name(),
                of_plain(alone)
            );
            for turnover in TURNOVERS {
                let (bytes, time) = in_groups(&messages, form, level, true, turnover);
                print!(" {:.3} ({time:.1?})", of_plain(bytes));
            }
            println!(
                "{}",
                memory.map_or_else(String::new, |bytes| format!(", {} KiB each", bytes >> 10))
            );
        }
    }
    let (messages, started) = (events(), Instant::now());
    let coder = Coder::new(
        Terms {
            level: None,
            min_length: usize::MAX,
            grouped: false,
        },
        Form::Gzip,
        Rc::default(),
    );
    let mut reader = Reader::default();
    for message in &messages {
        let codings = Codings::new(None);
        for _ in 0..100 {
            coder.piece(&codings, (message, 0), &mut reader, |_| ());
        }
    }
    println!(
        "per delivery beside compression: {:.1?}",
        started.elapsed() / (100 * messages.len() as u32)
    );
}
