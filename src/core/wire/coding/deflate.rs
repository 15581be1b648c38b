//! Deflate (RFC 1951) without an end: each piece is compressed up to a byte boundary.

use flate2::{Compress, Compression, FlushCompress};

/// An empty block that is not compressed. It decodes to nothing, and shifts no reference.
pub const EMPTY: &[u8] = &[0x00, 0x00, 0x00, 0xff, 0xff];

/// The end of a piece, which a message leaves out (RFC 7692 §7.2.1).
pub const TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff];

/// The last block of a stream, empty.
pub const LAST: &[u8] = &[0x03, 0x00];

/// The most bytes of a block that is not compressed.
const STORED: usize = 0xffff;

/// Bytes by which a block that is not compressed is longer than its text.
const STORED_HEAD: usize = 5;

/// Appends a text in blocks that are not compressed.
pub fn push_stored(text: &[u8], out: &mut Vec<u8>) {
    for text in text.chunks(STORED) {
        let length = text.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(text);
    }
}

/// The length of a text in blocks that are not compressed.
pub fn stored_length(text: usize) -> usize {
    text + STORED_HEAD * text.div_ceil(STORED)
}

/// A compressor with its context.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Deflater {
    /// `level`: from 1, the fastest, to 9. `window_bits`: from 9 to 15.
    pub fn new(level: u32, window_bits: u8) -> Deflater {
        let window_bits = window_bits.clamp(9, 15);
        Deflater(Compress::new_with_window_bits(
            Compression::new(level),
            false,
            window_bits,
        ))
    }

    /// Forgets its context: what follows refers to nothing before.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// Appends a text, compressed up to a byte boundary. False if the compressor failed; it is of no use then.
    #[must_use]
    pub fn push(&mut self, mut text: &[u8], out: &mut Vec<u8>) -> bool {
        loop {
            out.reserve(text.len() / 2 + 64);
            let (before, length) = (self.0.total_in(), out.len());
            if self.0.compress_vec(text, out, FlushCompress::Sync).is_err() {
                out.truncate(length);
                return false;
            }
            text = &text[(self.0.total_in() - before) as usize..];
            // Room that is left shows that nothing waits for it.
            if text.is_empty() && out.len() < out.capacity() {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Decompress, FlushDecompress};

    fn inflate(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 << 20);
        Decompress::new(false)
            .decompress_vec(bytes, &mut out, FlushDecompress::Sync)
            .unwrap();
        out
    }

    #[test]
    fn each_piece_can_be_read_at_once() {
        let mut deflater = Deflater::new(6, 15);
        let (mut bytes, mut plain) = (Vec::new(), Vec::new());
        for number in 0..500 {
            let text = format!("data: {{\"number\":{number},\"text\":\"the same again\"}}\n\n").repeat(1 + number % 40);
            assert!(deflater.push(text.as_bytes(), &mut bytes));
            plain.extend_from_slice(text.as_bytes());
            assert!(bytes.ends_with(&[0x00, 0x00, 0xff, 0xff]));
            bytes.extend_from_slice(EMPTY);
            assert!(inflate(&bytes) == plain, "after {number}");
        }
    }

    #[test]
    fn stored_blocks_are_as_long_as_said() {
        for length in [0, 1, STORED - 1, STORED, STORED + 1, 3 * STORED + 7] {
            let text: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let mut bytes = Vec::new();
            push_stored(&text, &mut bytes);
            assert_eq!(bytes.len(), stored_length(length));
            assert!(inflate(&bytes) == text);
        }
    }
}
