//! Streaming and long polling: the concatenated texts of messages, with only blanks and line ends between.
//!
//! Neither format marks the end of a message, but the text does (see [`crate::message`]).

use super::item::{Item, Message};
use super::unfinished::{Taken, Unfinished};
use crate::message::{PREFIX, announced_length};

/// A stream of texts so far.
#[derive(Debug, Default)]
pub struct Texts(Unfinished);

impl Texts {
    pub fn feed(&mut self, input: &[u8], mut sink: impl FnMut(Item<'_>)) {
        self.0.feed(input, |bytes| take_texts(bytes, &mut sink));
    }

    pub fn is_inside_text(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Passes on the complete texts at the start of `bytes`.
fn take_texts(bytes: &[u8], sink: &mut impl FnMut(Item<'_>)) -> Taken {
    let mut used = 0;
    loop {
        let left = &bytes[used..];
        let blanks = left.len() - left.trim_ascii_start().len();
        if blanks > 0 {
            sink(Item::Comment);
            used += blanks;
            continue;
        }
        if left.is_empty() {
            return Taken { used, missing: 0 };
        }
        if !left.starts_with(PREFIX) && !PREFIX.starts_with(left) {
            let end = memchr::memmem::find(left, PREFIX).unwrap_or(left.len());
            sink(Item::Foreign(&left[..end]));
            used += end;
            continue;
        }
        let Some(announced) = announced_length(left) else {
            return Taken { used, missing: 0 };
        };
        let Some(length) = announced else {
            // Skip the prefix, so that the next one is found.
            sink(Item::Foreign(left));
            used += PREFIX.len();
            continue;
        };
        let Some(data) = left.get(..length) else {
            return Taken {
                used,
                missing: length - left.len(),
            };
        };
        sink(Item::Message(Message { id: None, data }));
        used += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Mark, Messages, Stamped};

    fn text(sequence: u32, bytes: usize) -> Vec<u8> {
        let mark = Mark {
            channel: 0,
            publisher: 0,
            sequence,
        };
        let mut text = Vec::new();
        Messages::new(1, crate::text::Kind::Noise, 1000).write(&mut text, Stamped { mark, due_ns: 7 }, bytes);
        text
    }

    fn seen(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
        let mut texts = Texts::default();
        let (mut messages, mut foreign) = (Vec::new(), 0);
        for piece in pieces {
            texts.feed(piece, |item| match item {
                Item::Message(message) => messages.push(message.data.to_vec()),
                Item::Foreign(_) => foreign += 1,
                _ => {}
            });
        }
        (messages, foreign)
    }

    #[test]
    fn texts_are_the_same_however_they_are_cut() {
        let wanted = vec![text(0, 150), text(1, 900), text(2, 0)];
        let bytes = [wanted[0].as_slice(), b"\r\n", &wanted[1], &wanted[2], b" \r\n"].concat();
        for cut in 0..=bytes.len() {
            assert_eq!(
                seen(&[&bytes[..cut], &bytes[cut..]]),
                (wanted.clone(), 0),
                "cut at {cut}"
            );
        }
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(seen(&pieces), (wanted, 0));
    }

    #[test]
    fn what_stands_between_texts_is_foreign() {
        let bytes = [b"<html>".as_slice(), &text(0, 0), b"data: x\n", &text(1, 0)].concat();
        assert_eq!(seen(&[&bytes]), (vec![text(0, 0), text(1, 0)], 2));
        let bytes = [b"psb 1 x ".as_slice(), &text(0, 0)].concat();
        let (messages, foreign) = seen(&[&bytes]);
        assert_eq!(messages, [text(0, 0)]);
        assert!(foreign > 0);
    }
}
