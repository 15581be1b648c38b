//! Content codings of streams (RFC 9110 §8.4): compressed once for all readers, in groups.
//!
//! A compressor's back references reach into what it was given before, so only a reader that has been sent exactly
//! these bytes can decode what follows. Messages of a channel therefore form *groups*: the first message of a group
//! refers to nothing before it, and whoever has received all of the group so far is *aligned*. Each piece of a stream
//! exists in at most two codings: with the group's context for aligned readers, and alone for the others.
//!
//! * [`accept`]: which coding a client gets.
//! * [`deflate`]: compressing to a byte boundary, and blocks that are not compressed.
//! * [`zstd`]: the same in frames of Zstandard.
//! * [`compressor`]: one of both, as a form wants it.
//! * [`inflate`]: messages of clients.
//! * [`permessage`]: messages of WebSockets, which are compressed one by one.
//! * [`checksum`]: the CRC-32 of each reader's stream, combined from those of its pieces.
//! * [`group`]: the contexts, their beginning and end.
//! * [`ledger`]: figures, and the time that compression may take.
//! * [`stream`]: the coder of a style, a piece's codings, and what is kept for each reader.

pub mod accept;
pub mod checksum;
pub mod compressor;
pub mod deflate;
pub mod group;
pub mod inflate;
pub mod ledger;
pub mod permessage;
pub mod stream;
pub mod zstd;

/// A content coding of subscribers' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    pub const ALL: &[Coding] = &[Coding::Gzip, Coding::Zstd];

    /// Can this build compress in it?
    pub const fn is_built(self) -> bool {
        match self {
            Coding::Gzip => true,
            Coding::Zstd => cfg!(feature = "zstd"),
        }
    }

    /// Its highest level; the lowest is 1.
    pub const fn highest_level(self) -> u32 {
        match self {
            Coding::Gzip => 9,
            // Those above are for windows of many megabytes.
            Coding::Zstd => 19,
        }
    }

    /// Its name in headers and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    /// The coding of this name, in any case; `x-gzip` is another name of gzip (RFC 9110 §8.4.1.3).
    pub fn named(name: &[u8]) -> Option<Coding> {
        if name.eq_ignore_ascii_case(b"x-gzip") {
            return Some(Coding::Gzip);
        }
        let mut all = Coding::ALL.iter().copied();
        all.find(|coding| name.eq_ignore_ascii_case(coding.name().as_bytes()))
    }
}
