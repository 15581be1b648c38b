//! What nginx workers tell each other when an operator sends a subject away.

use std::num::NonZeroU64;

/// The command: the subject's number.
pub fn command(subject: NonZeroU64) -> [u8; 8] {
    subject.get().to_le_bytes()
}

/// None if the text is no such command.
pub fn read_command(text: &[u8]) -> Option<NonZeroU64> {
    NonZeroU64::new(u64::from_le_bytes(text.try_into().ok()?))
}

/// What one worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Connections that it has ended.
    pub ended: u64,
    /// It gives its subscribers to other workers: some may have gone to one that had looked before.
    pub giving: bool,
    /// A connection of the subject is just coming to it from another worker, and cannot be ended yet.
    pub arriving: bool,
}

impl Done {
    pub fn to_text(self) -> [u8; 9] {
        let mut text = [0; 9];
        text[..8].copy_from_slice(&self.ended.to_le_bytes());
        text[8] = u8::from(self.giving) | u8::from(self.arriving) << 1;
        text
    }

    /// None if the text is no such answer.
    pub fn read(text: &[u8]) -> Option<Done> {
        let (ended, flags) = text.split_first_chunk::<8>()?;
        let [flags @ 0..=3] = *flags else {
            return None;
        };
        Some(Done {
            ended: u64::from_le_bytes(*ended),
            giving: flags & 1 != 0,
            arriving: flags & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_answers_come_back() {
        let subject = NonZeroU64::new(u64::MAX - 7).unwrap();
        assert_eq!(read_command(&command(subject)), Some(subject));
        for (giving, arriving) in [(false, false), (true, false), (false, true), (true, true)] {
            let done = Done {
                ended: 1 << 40,
                giving,
                arriving,
            };
            assert_eq!(Done::read(&done.to_text()), Some(done));
        }
        for bad in [&b""[..], &[0; 8], &[0; 7], &[0; 10], &[0, 0, 0, 0, 0, 0, 0, 0, 4]] {
            assert_eq!(Done::read(bad), None, "{bad:?}");
        }
        assert_eq!(read_command(&[0; 8]), None);
        assert_eq!(read_command(&[1; 7]), None);
    }
}
