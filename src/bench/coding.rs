//! A client's reader of a compressed stream: it reads what is there, and checks its end.

use clap::ValueEnum;
use flate2::{Decompress, FlushDecompress, Status};

use crate::http::Malformed;

/// The head of a gzip member without optional fields.
const HEAD: usize = 10;
const TRAILER: usize = 8;

/// Room for text at a time.
const ROOM: usize = 16 * 1024;

/// A content coding to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Coding {
    Gzip,
    #[cfg(feature = "zstd")]
    Zstd,
}

impl Coding {
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            #[cfg(feature = "zstd")]
            Coding::Zstd => "zstd",
        }
    }

    /// The coding of a Content-Encoding.
    pub fn named(name: &[u8]) -> Option<Coding> {
        let all = Coding::value_variants().iter().copied();
        all.into_iter().find(|coding| coding.name().as_bytes() == name)
    }
}

/// Reads a stream in some coding.
pub enum Decoder {
    Gzip(Box<Gunzip>),
    #[cfg(feature = "zstd")]
    Zstd(frames::Frames),
}

impl Decoder {
    pub fn new(coding: Coding) -> Decoder {
        match coding {
            Coding::Gzip => Decoder::Gzip(Box::new(Gunzip::new())),
            #[cfg(feature = "zstd")]
            Coding::Zstd => Decoder::Zstd(frames::Frames::default()),
        }
    }

    /// Appends the text of the next bytes.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        match self {
            Decoder::Gzip(gunzip) => gunzip.decode(input, out),
            #[cfg(feature = "zstd")]
            Decoder::Zstd(frames) => frames.decode(input, out),
        }
    }

    /// Is the stream complete, and its checksum right, if it has one?
    pub fn is_whole(&self) -> bool {
        match self {
            Decoder::Gzip(gunzip) => gunzip.is_whole(),
            #[cfg(feature = "zstd")]
            Decoder::Zstd(frames) => frames.is_whole(),
        }
    }
}

#[cfg(feature = "zstd")]
mod frames {
    use zstd_safe::{DCtx, InBuffer, OutBuffer};

    use super::ROOM;
    use crate::http::Malformed;

    /// A sequence of frames (RFC 8878).
    pub struct Frames {
        context: DCtx<'static>,
        ended: bool,
    }

    impl Default for Frames {
        fn default() -> Frames {
            Frames {
                context: DCtx::create(),
                ended: false,
            }
        }
    }

    impl Frames {
        pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
            let mut input_left = InBuffer::around(input);
            let mut full = false;
            while input_left.pos() < input.len() || full {
                let (read, start) = (input_left.pos(), out.len());
                out.reserve(ROOM);
                let mut output = OutBuffer::around_pos(out, start);
                match self.context.decompress_stream(&mut output, &mut input_left) {
                    Ok(wanted) if input_left.pos() > read || out.len() > start => self.ended = wanted == 0,
                    Ok(_) if full => {}
                    _ => return Err(Malformed("bytes that are no frame of zstd")),
                }
                full = out.len() == out.capacity();
            }
            Ok(())
        }

        pub fn is_whole(&self) -> bool {
            self.ended
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn frames_are_read_in_pieces_of_any_size() {
            let text: Vec<u8> = (0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
            let mut bytes = Vec::new();
            for text in text.chunks(70_000) {
                let mut frame = Vec::with_capacity(zstd_safe::compress_bound(text.len()));
                zstd_safe::compress(&mut frame, text, 3).unwrap();
                bytes.extend(frame);
            }
            for size in [1, 7, 1000, bytes.len()] {
                let (mut frames, mut read) = (Frames::default(), Vec::new());
                for piece in bytes.chunks(size) {
                    frames.decode(piece, &mut read).unwrap();
                }
                assert!(frames.is_whole() && read == text, "in pieces of {size}");
            }
            let mut cut = Frames::default();
            cut.decode(&bytes[..bytes.len() - 1], &mut Vec::new()).unwrap();
            assert!(!cut.is_whole());
            assert!(Frames::default().decode(b"plain text", &mut Vec::new()).is_err());
        }
    }
}

/// A gzip member.
#[derive(Debug)]
pub struct Gunzip {
    inflate: Decompress,
    /// Bytes of the head that were read.
    head: usize,
    crc: crc32fast::Hasher,
    length: u32,
    /// The last block was read; what follows is the trailer.
    ended: bool,
    trailer: Vec<u8>,
}

impl Gunzip {
    pub fn new() -> Self {
        Self {
            inflate: Decompress::new(false),
            head: 0,
            crc: crc32fast::Hasher::new(),
            length: 0,
            ended: false,
            trailer: Vec::new(),
        }
    }

    /// Appends the text of the next bytes.
    pub fn decode(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        const START: [u8; 3] = [0x1f, 0x8b, 8];
        while self.head < HEAD
            && let Some((&byte, rest)) = input.split_first()
        {
            let expected = match self.head {
                flags @ 3 => (flags, Some(0)),
                index => (index, START.get(index).copied()),
            };
            if expected.1.is_some_and(|expected| expected != byte) {
                return Err(Malformed("no head of a gzip member"));
            }
            (self.head, input) = (self.head + 1, rest);
        }
        while !self.ended && !input.is_empty() {
            let (read, start) = (self.inflate.total_in(), out.len());
            out.reserve(ROOM);
            let status = self.inflate.decompress_vec(input, out, FlushDecompress::Sync);
            let used = (self.inflate.total_in() - read) as usize;
            input = input.get(used..).unwrap_or_default();
            let text = &out[start..];
            self.crc.update(text);
            self.length = self.length.wrapping_add(text.len() as u32);
            match status {
                Ok(Status::StreamEnd) => self.ended = true,
                Ok(_) if used > 0 || !text.is_empty() => {}
                _ => return Err(Malformed("bytes that are not deflate")),
            }
        }
        self.trailer.extend_from_slice(input);
        if self.trailer.len() > TRAILER {
            return Err(Malformed("bytes behind the trailer"));
        }
        Ok(())
    }

    /// Is the stream complete, and the trailer right?
    pub fn is_whole(&self) -> bool {
        let sums = [self.crc.clone().finalize(), self.length];
        self.ended && self.trailer == sums.map(u32::to_le_bytes).concat()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn a_member_is_read_in_pieces_of_any_size() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let bytes = packed(&text);
        for size in [1, 7, 1000, bytes.len()] {
            let (mut gunzip, mut read) = (Gunzip::new(), Vec::new());
            for piece in bytes.chunks(size) {
                assert!(!gunzip.is_whole());
                gunzip.decode(piece, &mut read).unwrap();
            }
            assert!(gunzip.is_whole() && read == text, "in pieces of {size}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = packed(b"some text");
        for (index, bit) in [(0, 1), (3, 4), (bytes.len() - 8, 1), (bytes.len() - 1, 1)] {
            let mut damaged = bytes.clone();
            damaged[index] ^= bit;
            let mut gunzip = Gunzip::new();
            let decoded = gunzip.decode(&damaged, &mut Vec::new());
            assert!(decoded.is_err() || !gunzip.is_whole(), "byte {index}");
        }
        assert!(
            Gunzip::new()
                .decode(&[bytes, vec![0]].concat(), &mut Vec::new())
                .is_err()
        );
    }
}
