//! The text of a bench message: identifies its place in the run, and every byte of it can be checked.
//!
//! `psb RUN CHANNEL PUBLISHER SEQ NANOS LENGTH PADDING`, one line of printable ASCII. The padding is a slice of a fixed
//! [table](crate::text) at a message-specific start, so that bytes of another message, even of the same channel, are detected.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::text::{Kind, Table};

/// Start of every text.
pub const PREFIX: &[u8] = b"psb ";

/// Longest text without padding.
pub const MIN_BYTES: usize = 4 + 9 + 4 * 11 + 21 + 9;

/// The place of a message in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    pub channel: u32,
    /// Index of the publisher within the channel; each numbers its messages itself.
    pub publisher: u32,
    /// Counts from 0 per channel and publisher.
    pub sequence: u32,
}

/// A parsed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    pub mark: Mark,
    /// Due time at the publisher, on the monotonic clock.
    pub due_ns: u64,
}

/// Builds and checks the messages of one run.
#[derive(Debug)]
pub struct Messages {
    run: u32,
    padding: Table,
}

impl Messages {
    /// `run` distinguishes this run's messages from an earlier run's; `max_bytes` is the longest text to write or read.
    pub fn new(run: u32, kind: Kind, max_bytes: usize) -> Self {
        Self {
            run,
            padding: Table::new(kind, max_bytes.max(MIN_BYTES)),
        }
    }

    /// Replaces `out` by the text of the message; `bytes` is the desired length.
    pub fn write(&self, out: &mut Vec<u8>, message: Stamped, bytes: usize) {
        let Stamped { mark, due_ns } = message;
        out.clear();
        let bytes = bytes.max(MIN_BYTES);
        let Mark {
            channel,
            publisher,
            sequence,
        } = mark;
        let run = self.run;
        // Writing to a vector cannot fail.
        let _ = write!(out, "psb {run:x} {channel} {publisher} {sequence} {due_ns} {bytes} ");
        let left = bytes - out.len();
        out.extend_from_slice(self.padding(mark, left));
    }

    /// The mark of `text`, or `None` if it is not, byte for byte, a message of this run.
    pub fn read(&self, text: &[u8]) -> Option<Stamped> {
        let rest = text.strip_prefix(PREFIX)?;
        let (run, rest) = number(rest, 16)?;
        let (channel, rest) = number(rest, 10)?;
        let (publisher, rest) = number(rest, 10)?;
        let (sequence, rest) = number(rest, 10)?;
        let (due_ns, rest) = number(rest, 10)?;
        let (bytes, padding) = number(rest, 10)?;
        let mark = Mark {
            channel: u32::try_from(channel).ok()?,
            publisher: u32::try_from(publisher).ok()?,
            sequence: u32::try_from(sequence).ok()?,
        };
        let whole = run == u64::from(self.run)
            && bytes == text.len() as u64
            && text.len() <= self.padding.longest()
            && padding == self.padding(mark, padding.len());
        whole.then_some(Stamped { mark, due_ns })
    }

    /// Replaces `out` by the event id of a message: unique in its channel, as required by `Last-Event-ID`.
    pub fn write_id(&self, out: &mut String, mark: Mark) {
        out.clear();
        let _ = write!(
            out,
            "{:x}-{}-{}-{}",
            self.run, mark.channel, mark.publisher, mark.sequence
        );
    }

    fn padding(&self, mark: Mark, bytes: usize) -> &[u8] {
        let Mark {
            channel,
            publisher,
            sequence,
        } = mark;
        let mixed = channel.wrapping_mul(0x9e37_79b1) ^ publisher.wrapping_mul(0x85eb_ca77) ^ sequence.wrapping_mul(37);
        self.padding.get(mixed, bytes)
    }
}

/// The length that a text announces, given its `start`; `Some(None)` if it is not a message, `None` while undetermined.
pub fn announced_length(start: &[u8]) -> Option<Option<usize>> {
    let fields = || {
        let mut rest = start.strip_prefix(PREFIX)?;
        for radix in [16, 10, 10, 10, 10] {
            (_, rest) = number(rest, radix)?;
        }
        number(rest, 10)
    };
    match fields() {
        Some((length, _)) => Some(usize::try_from(length).ok().filter(|length| *length >= MIN_BYTES)),
        // Every field is a number and at most as long as the longest.
        None if start.len() < MIN_BYTES && start[PREFIX.len().min(start.len())..].iter().all(is_part_of_number) => None,
        None => Some(None),
    }
}

fn is_part_of_number(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b' ')
}

/// The number at the start of `text` and the rest after the following blank. Called six times per received message, so
/// it avoids std's parsers, which first need the end.
fn number(text: &[u8], radix: u64) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, &byte) in text.iter().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => u64::from(byte - b'0'),
            b'a'..=b'f' if radix == 16 => u64::from(byte - b'a') + 10,
            b' ' if index > 0 => return Some((value, &text[index + 1..])),
            _ => return None,
        };
        value = value.checked_mul(radix)?.checked_add(digit)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped(channel: u32, publisher: u32, sequence: u32) -> Stamped {
        Stamped {
            mark: Mark {
                channel,
                publisher,
                sequence,
            },
            due_ns: 123_456_789_012,
        }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let messages = Messages::new(0xabc, Kind::Noise, 5000);
        let mut text = Vec::new();
        for (message, bytes) in [
            (stamped(0, 0, 0), 100),
            (stamped(49, 7, 20_000), 5000),
            (
                Stamped {
                    mark: Mark {
                        channel: u32::MAX,
                        publisher: u32::MAX,
                        sequence: u32::MAX,
                    },
                    due_ns: u64::MAX,
                },
                0,
            ),
        ] {
            messages.write(&mut text, message, bytes);
            assert_eq!(text.len(), bytes.max(MIN_BYTES));
            assert_eq!(messages.read(&text), Some(message));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let messages = Messages::new(7, Kind::Noise, 200);
        let mut text = Vec::new();
        messages.write(&mut text, stamped(3, 1, 5), 150);
        // The time is the only field that can be changed into another valid value.
        let time = text.windows(12).position(|window| window == b"123456789012").unwrap();
        for at in (0..text.len()).filter(|at| !(time..time + 12).contains(at)) {
            let mut broken = text.clone();
            broken[at] ^= 1;
            assert_eq!(messages.read(&broken), None, "byte {at}");
        }
        for length in 0..text.len() {
            assert_eq!(messages.read(&text[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn padding_of_another_message_is_foreign() {
        let messages = Messages::new(7, Kind::Noise, 200);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        messages.write(&mut one, stamped(3, 1, 5), 150);
        messages.write(&mut other, stamped(3, 1, 6), 150);
        one[120..].copy_from_slice(&other[120..]);
        assert_eq!(messages.read(&one), None);
    }

    #[test]
    fn a_message_of_an_earlier_run_is_foreign() {
        let mut text = Vec::new();
        Messages::new(7, Kind::Noise, 200).write(&mut text, stamped(0, 0, 0), 100);
        assert_eq!(Messages::new(8, Kind::Noise, 200).read(&text), None);
    }

    #[test]
    fn ids_differ_within_a_channel() {
        let messages = Messages::new(0xff, Kind::Noise, 100);
        let (mut one, mut other) = (String::new(), String::new());
        messages.write_id(
            &mut one,
            Mark {
                channel: 1,
                publisher: 2,
                sequence: 3,
            },
        );
        messages.write_id(
            &mut other,
            Mark {
                channel: 1,
                publisher: 2,
                sequence: 4,
            },
        );
        assert_eq!((one.as_str(), other.as_str()), ("ff-1-2-3", "ff-1-2-4"));
    }
}
