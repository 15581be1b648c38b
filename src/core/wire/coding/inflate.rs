//! Inflating messages of WebSocket clients (RFC 7692 §7.2.2): each by itself, in pieces as they come, and never more
//! at once than a small buffer.

use flate2::{Decompress, FlushDecompress, Status};

use super::deflate;

/// Bytes that are inflated at once.
const CHUNK: usize = 8 * 1024;

/// The bytes are not what a compressor made, or end before their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Inflates messages that refer to nothing before them.
#[derive(Debug)]
pub struct Inflater {
    inner: Decompress,
    /// After a block that is marked as the last.
    ended: bool,
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater {
            inner: Decompress::new(false),
            ended: false,
        }
    }
}

impl Inflater {
    /// Inflates the next bytes of a message. `take` gets the text in pieces, and may refuse more of it.
    pub fn push<E: From<Broken>>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut chunk = [0; CHUNK];
        loop {
            if self.ended {
                if bytes.is_empty() {
                    return Ok(());
                }
                // RFC 7692 §7.2.3.4: a message may go on after a last block.
                self.restart();
            }
            let (read, made) = (self.inner.total_in(), self.inner.total_out());
            let status = self.inner.decompress(bytes, &mut chunk, FlushDecompress::Sync);
            let (read, made) = (self.inner.total_in() - read, self.inner.total_out() - made);
            bytes = bytes.get(read as usize..).unwrap_or_default();
            take(chunk.get(..made as usize).unwrap_or_default())?;
            // What comes before broken data is judged first, wherever the bytes were cut.
            match status.map_err(|_| Broken)? {
                Status::StreamEnd => self.ended = true,
                // Room that is left shows that nothing waits for it.
                _ if bytes.is_empty() && (made as usize) < CHUNK => return Ok(()),
                _ if read == 0 && made == 0 => return Err(Broken.into()),
                _ => {}
            }
        }
    }

    /// Ends a message, from which its sender has removed the end of the last block.
    pub fn finish<E: From<Broken>>(&mut self, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if !self.ended {
            self.push(deflate::TAIL, take)?;
        }
        if !self.ended {
            // Only between two blocks can another one follow.
            self.push(deflate::LAST, |text| {
                if text.is_empty() { Ok(()) } else { Err(E::from(Broken)) }
            })?;
        }
        if !self.ended {
            return Err(Broken.into());
        }
        self.restart();
        Ok(())
    }

    fn restart(&mut self) {
        self.inner.reset(false);
        self.ended = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::deflate::Deflater;
    use super::*;

    /// The text of a message that comes in pieces of so many bytes.
    fn inflate(inflater: &mut Inflater, bytes: &[u8], cut: usize) -> Result<Vec<u8>, Broken> {
        let mut text = Vec::new();
        let mut take = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        for piece in bytes.chunks(cut) {
            inflater.push(piece, &mut take)?;
        }
        inflater.finish(&mut take)?;
        Ok(text)
    }

    #[test]
    fn the_examples_of_the_rfc() {
        let mut inflater = Inflater::default();
        for bytes in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            // A block that is not compressed (§7.2.3.3).
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            // A last block, with and without the one that follows it (§7.2.3.4).
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // Two blocks (§7.2.3.5).
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
        ] {
            for cut in 1..=bytes.len() {
                assert_eq!(inflate(&mut inflater, bytes, cut), Ok(b"Hello".to_vec()), "{bytes:x?}");
            }
        }
        // An empty message (§7.2.3.6).
        assert_eq!(inflate(&mut inflater, &[0x00], 1), Ok(Vec::new()));
        // A text of the message before (§7.2.3.2).
        assert_eq!(inflate(&mut inflater, &[0xf2, 0x00, 0x11, 0x00, 0x00], 5), Err(Broken));
    }

    #[test]
    fn what_is_cut_or_wrong_is_broken() {
        let mut whole = Vec::new();
        assert!(Deflater::new(6, 15).push(&b"what is cut is not whole, ".repeat(9), &mut whole));
        let whole = whole.strip_suffix(deflate::TAIL).unwrap();
        assert!(inflate(&mut Inflater::default(), whole, 7).is_ok());
        for end in 1..whole.len() - 1 {
            assert_eq!(
                inflate(&mut Inflater::default(), &whole[..end], 7),
                Err(Broken),
                "{end}"
            );
        }
        assert_eq!(inflate(&mut Inflater::default(), &[0xff; 20], 7), Err(Broken));
        assert_eq!(inflate(&mut Inflater::default(), b"plain text", 7), Err(Broken));
    }

    #[test]
    fn more_can_be_refused_at_any_time() {
        let mut bomb = Vec::new();
        assert!(Deflater::new(9, 15).push(&vec![0; 8 << 20], &mut bomb));
        let mut taken = 0;
        let result = Inflater::default().push(&bomb, |text| {
            assert!(text.len() <= CHUNK);
            taken += text.len();
            if taken > 100_000 { Err(Broken) } else { Ok(()) }
        });
        assert_eq!(result, Err(Broken));
        assert!(taken <= 100_000 + CHUNK);
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(
            texts in prop::collection::vec(prop::collection::vec(0..4_u8, 0..3000), 1..5),
            cut in 1..500_usize,
            window_bits in 9..=15_u8,
            level in 1..=9_u32,
        ) {
            let mut inflater = Inflater::default();
            for text in texts {
                let mut bytes = Vec::new();
                prop_assert!(Deflater::new(level, window_bits).push(&text, &mut bytes));
                let bytes = bytes.strip_suffix(deflate::TAIL).unwrap_or(&[0]);
                prop_assert_eq!(inflate(&mut inflater, bytes, cut), Ok(text));
            }
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes: Vec<u8>, cut in 1..20_usize) {
            let _ = inflate(&mut Inflater::default(), &bytes, cut);
        }
    }
}
