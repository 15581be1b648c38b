//! What bench messages consist of beside their place: noise, or records as sites send them, for measurements of
//! compression.

use std::fmt::Write as _;

use clap::ValueEnum;

/// Number of starts in a table of noise: a prime, so that neighbouring messages do not share them.
const STARTS: usize = 8191;

/// Number of different records: more of them than any window of a compressor holds.
const RECORDS: usize = 4096;

/// The kind of text that messages carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Letters and digits at random
    Noise,
    /// Posts of a discussion, in JSON
    Posts,
    /// Events of a dashboard, in JSON
    Events,
}

/// Words of running text, the frequent ones first.
const WORDS: &str = "the of and to a in is that it was for on you with as are be this have not but at by from they we or an had what \
    all were when there can said which do their if will each about how up out them then she many some so these would other into has more \
    her two like him see time could no make than first been its who now people my made over did down only way find use may water long \
    little very after called just where most know get through back much before go good new write our used me man too any day same right \
    look think also around another came come work three word must because does part even place well such here take why things help put \
    years different away again off went old number great tell men say small every found still between name should home big give";

/// A table of what every message can carry.
#[derive(Debug)]
pub struct Table {
    kind: Kind,
    bytes: Vec<u8>,
    longest: usize,
}

impl Table {
    /// For texts of up to `longest` bytes.
    pub fn new(kind: Kind, longest: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(0x7073_6268);
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let fill = |record: Record, random: &mut fastrand::Rng| fill(record, random, &words, longest);
        let bytes = match kind {
            Kind::Noise => (0..STARTS + longest).map(|_| random.alphanumeric() as u8).collect(),
            Kind::Posts => (0..RECORDS)
                .flat_map(|number| {
                    let record = post(&mut random, number);
                    fill(record, &mut random)
                })
                .collect(),
            Kind::Events => (0..RECORDS)
                .flat_map(|number| {
                    let record = event(&mut random, number);
                    fill(record, &mut random)
                })
                .collect(),
        };
        Self { kind, bytes, longest }
    }

    pub fn longest(&self) -> usize {
        self.longest
    }

    /// `bytes` bytes, at most the longest text's; which ones depends on `mixed`, a different one for each message.
    pub fn get(&self, mixed: u32, bytes: usize) -> &[u8] {
        let start = match self.kind {
            Kind::Noise => mixed as usize % STARTS,
            // Neighbours must not be neighbours in the table: it is in the order of numbers that go up.
            Kind::Posts | Kind::Events => (mixed.wrapping_mul(0x9e37_79b1) >> 20) as usize % RECORDS * self.longest,
        };
        &self.bytes[start..start + bytes]
    }
}

/// The beginning of a record, and its end behind running text.
type Record = (String, &'static str);

/// A record of exactly so many bytes: longer ones are cut, and shorter ones are filled with running text.
fn fill((mut record, end): Record, random: &mut fastrand::Rng, words: &[&str], longest: usize) -> Vec<u8> {
    while record.len() + end.len() < longest {
        // As in language, frequent words are much more frequent.
        let most = random.usize(..words.len());
        record.push_str(words[random.usize(..=most)]);
        record.push_str(if random.u32(..12) == 0 { ". " } else { " " });
    }
    record.truncate(longest.saturating_sub(end.len()));
    record.push_str(end);
    record.truncate(longest);
    record.into_bytes()
}

fn post(random: &mut fastrand::Rng, number: usize) -> Record {
    let (user, id) = (random.u32(..400), 5_000_000_000 + 37 * number);
    let mut record = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        record,
        "{{\"type\":\"post\",\"id\":\"{id}\",\"thread\":\"{}\",\"parent\":\"{}\",\"createdAt\":\"2026-05-{:02}T{:02}:{:02}:{:02}\",\
         \"author\":{{\"username\":\"user_{user:x}\",\"name\":\"Reader {user}\",\
         \"avatar\":\"https://cdn.example.org/avatars/{:08x}.jpg\"}},\"likes\":{},\"message\":\"<p>",
        4_400_000 + random.u32(..3),
        id - random.usize(..5000),
        random.u32(1..29),
        random.u32(..24),
        random.u32(..60),
        random.u32(..60),
        user.wrapping_mul(2_654_435_761),
        random.u32(..20),
    );
    (record, "</p>\",\"isApproved\":true,\"isDeleted\":false,\"media\":[]}")
}

fn event(random: &mut fastrand::Rng, number: usize) -> Record {
    let mut record = String::new();
    let _ = write!(
        record,
        "{{\"host\":\"web-{:02}.example.org\",\"at\":{},\"cpu\":{}.{:02},\"load\":{}.{:02},\"memory\":{},\"requests\":{},\
         \"errors\":{},\"latency\":{{\"p50\":{},\"p99\":{}}},\"state\":\"{}\",\"note\":\"",
        random.u32(..24),
        1_790_000_000_000 + 1000 * number as u64 + random.u64(..1000),
        random.u32(..100),
        random.u32(..100),
        random.u32(..9),
        random.u32(..100),
        random.u64(..1 << 34),
        random.u32(..20_000),
        random.u32(..30),
        random.u32(..40),
        random.u32(40..440),
        ["ok", "ok", "ok", "busy", "draining"][random.usize(..5)],
    );
    (record, "\"}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_long_as_asked_for() {
        for kind in [Kind::Noise, Kind::Posts, Kind::Events] {
            for longest in [80, 200, 730] {
                let table = Table::new(kind, longest);
                assert!((0..5000).all(|mixed| table.get(mixed, longest).len() == longest));
                assert!(table.bytes.iter().all(|byte| (b' '..=b'~').contains(byte)));
                assert_ne!(table.get(1, longest), table.get(38, longest));
            }
        }
        let (posts, events) = (Table::new(Kind::Posts, 730), Table::new(Kind::Events, 260));
        for (table, longest) in [(posts, 730), (events, 260)] {
            assert!(
                (0..5000).all(|mixed| serde_json::from_slice::<serde_json::Value>(table.get(mixed, longest)).is_ok())
            );
        }
    }
}
