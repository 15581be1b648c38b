//! What this worker needs to compress: coders, groups, and the time that they may take. Formats and groups are in
//! [`push_stream_core::wire::coding`].

use std::rc::Rc;
use std::time::Duration;

use push_stream_core::store::{Counter, Membership, Worker};
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::coding::group::{Group, Groups};
use push_stream_core::wire::coding::ledger::{Ledger, Pace};
use push_stream_core::wire::coding::stream::{Coder, Form, Reader, Terms};

use super::frames::{Frames, Style};

/// Compression may take a fifth of a worker's time, and so much at once.
const PACE: Pace = Pace {
    share: 5,
    burst: Duration::from_micros(500),
};

/// This worker's part of the compression.
pub struct Compression {
    ledger: Rc<Ledger>,
    used: bool,
    /// One for each kind of terms and form in use.
    coders: Vec<Rc<Coder>>,
    /// By channel, and address of the style: groups of equal text have equal addresses, and no group minds another text.
    groups: Groups<(Membership, usize)>,
    /// The last whole answer: its terms, its coding, its text, and as sent. Many polls wait for the same message.
    member: Option<(Terms, Coding, Vec<u8>, Vec<u8>)>,
}

impl Default for Compression {
    fn default() -> Compression {
        Compression {
            ledger: Rc::new(Ledger::new(PACE)),
            used: false,
            coders: Vec::new(),
            groups: Groups::default(),
            member: None,
        }
    }
}

impl Compression {
    /// The coder for these terms and this form.
    pub fn coder(&mut self, terms: Terms, form: Form) -> Rc<Coder> {
        let known = |coder: &&Rc<Coder>| *coder.terms() == terms && coder.form() == form;
        if let Some(coder) = self.coders.iter().find(known) {
            return coder.clone();
        }
        self.used = true;
        let coder = Rc::new(Coder::new(terms, form, self.ledger.clone()));
        self.coders.push(coder.clone());
        coder
    }

    /// A whole answer.
    pub fn member(&mut self, terms: Terms, coding: Coding, text: &[u8]) -> Vec<u8> {
        if let Some((known_terms, known_coding, same, member)) = &self.member
            && (*known_terms, *known_coding) == (terms, coding)
            && same == text
        {
            return member.clone();
        }
        let mut reader = Reader::default();
        let coder = self.coder(terms, coding.into());
        let mut member = coder.opening(text, &mut reader);
        member.extend(coder.ending(b"", &mut reader));
        self.member = Some((terms, coding, text.to_vec(), member.clone()));
        member
    }

    /// Frames for messages of a channel with so many members, in this style; the coder is the style's.
    pub fn frames(&mut self, style: &Rc<Style>, coder: &Coder, membership: Membership, members: usize) -> Frames {
        Frames::to_code(self.group(style, coder, membership, members))
    }

    fn group(&mut self, style: &Rc<Style>, coder: &Coder, membership: Membership, members: usize) -> Option<Rc<Group>> {
        let most = style.format.compression.filter(|_| coder.is_grouped())?.groups;
        let key = (membership, Rc::as_ptr(style) as usize);
        self.groups.of(&key, members, most, self.ledger.now_ms())
    }

    /// Frees what has not been used for long.
    pub fn tidy(&mut self) {
        if !self.used {
            return;
        }
        self.member = None;
        self.groups.end_idle(self.ledger.now_ms());
        self.coders.retain(|coder| Rc::strong_count(coder) > 1);
        self.coders.iter().for_each(|coder| coder.rest());
    }

    /// Adds the figures since the last call to the zone's.
    pub fn count(&self, worker: &Worker) {
        if !self.used {
            return;
        }
        let figures = self.ledger.take_figures();
        for (counter, count) in [
            (Counter::CompressedIn, figures.gzip.before),
            (Counter::CompressedOut, figures.gzip.after),
            (Counter::ZstdIn, figures.zstd.before),
            (Counter::ZstdOut, figures.zstd.after),
            (Counter::DeflatedIn, figures.messages.before),
            (Counter::DeflatedOut, figures.messages.after),
            (Counter::CompressedUs, figures.time.as_micros() as u64),
            (Counter::DeliveredAligned, figures.aligned),
            (Counter::DeliveredUnaligned, figures.unaligned),
        ] {
            worker.count(counter, count);
        }
        worker.set_compress_groups(self.groups.len());
    }
}

/// What a compressed stream needs beside what every stream needs.
#[derive(Clone, Copy, Debug)]
pub struct Compressed {
    pub reader: Reader,
    /// The socket, if bytes may be sent to it directly; else below zero.
    pub socket: i32,
}

impl Compressed {
    pub fn new(reader: Reader) -> Compressed {
        Compressed { reader, socket: -1 }
    }
}
