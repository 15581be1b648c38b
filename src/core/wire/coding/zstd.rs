//! Zstandard (RFC 8878): messages alone are frames, those of a group are blocks of one frame.
//!
//! A stream is a sequence of frames without checksums. The frame of a group is open while its readers are inside; what
//! is not of the group follows after a last block that is empty.

/// A frame that decodes to nothing.
pub const EMPTY_FRAME: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00];

/// A block that decodes to nothing, within a frame.
pub const EMPTY_BLOCK: &[u8] = &[0x00, 0x00, 0x00];

/// The same, and the last of its frame.
pub const LAST_BLOCK: &[u8] = &[0x01, 0x00, 0x00];

/// The head of a frame of unknown length with blocks of up to [`BLOCK`] bytes, and a window of as many.
const STORED_HEAD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];

/// The most bytes of a block.
const BLOCK: usize = 128 * 1024;

const BLOCK_HEAD: usize = 3;

/// Appends a text in a frame whose blocks are not compressed.
pub fn push_stored(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(STORED_HEAD);
    let mut blocks = text.chunks(BLOCK).peekable();
    if blocks.peek().is_none() {
        out.extend_from_slice(LAST_BLOCK);
    }
    while let Some(block) = blocks.next() {
        let head = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        out.extend_from_slice(&head.to_le_bytes()[..BLOCK_HEAD]);
        out.extend_from_slice(block);
    }
}

/// The length of such a frame.
pub fn stored_length(text: usize) -> usize {
    STORED_HEAD.len() + BLOCK_HEAD * text.div_ceil(BLOCK).max(1) + text
}

#[cfg(feature = "zstd")]
pub use compressor::Zstd;

#[cfg(feature = "zstd")]
mod compressor {
    use std::fmt;

    use zstd_safe::zstd_sys::ZSTD_EndDirective;
    use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, compress_bound};

    /// The window of a group's frame: 2 to the power of so many bytes; RFC 9659 allows 23. A context's buffers grow with
    /// it: posts of 700 bytes become a fifth shorter with 18, for twice the memory.
    const WINDOW_LOG: u32 = 16;

    /// Entries of a group's tables, as a power of 2.
    const TABLE_LOG: u32 = 14;

    /// A compressor with its context.
    pub struct Zstd(CCtx<'static>);

    impl Zstd {
        /// `grouped`: frames are made of blocks, else of a whole text. None without memory.
        pub fn new(level: u32, grouped: bool) -> Option<Zstd> {
            let mut context = CCtx::try_create()?;
            let level = CParameter::CompressionLevel(level.try_into().unwrap_or(i32::MAX));
            let bounds = [
                CParameter::WindowLog(WINDOW_LOG),
                CParameter::HashLog(TABLE_LOG),
                CParameter::ChainLog(TABLE_LOG),
            ];
            for parameter in [level].into_iter().chain(bounds.into_iter().filter(|_| grouped)) {
                context.set_parameter(parameter).ok()?;
            }
            Some(Zstd(context))
        }

        /// What follows is a frame of its own.
        pub fn restart(&mut self) -> bool {
            self.0.reset(ResetDirective::SessionOnly).is_ok()
        }

        /// Appends a text as blocks of the open frame, which a reader can decode at once. False if the compressor
        /// failed; it is of no use then.
        #[must_use]
        pub fn push(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
            let (mut input, start) = (InBuffer::around(text), out.len());
            out.reserve(compress_bound(text.len()) + 32);
            loop {
                let at = out.len();
                let mut output = OutBuffer::around_pos(out, at);
                let flush = ZSTD_EndDirective::ZSTD_e_flush;
                match self.0.compress_stream2(&mut output, &mut input, flush) {
                    Ok(0) => return true,
                    Ok(waiting) => out.reserve(waiting),
                    Err(_) => {
                        out.truncate(start);
                        return false;
                    }
                }
            }
        }

        /// A text as a whole frame.
        pub fn whole(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
            out.clear();
            out.reserve(compress_bound(text.len()));
            self.0.compress2(out, text).is_ok()
        }

        /// Bytes of memory.
        pub fn memory(&self) -> usize {
            self.0.sizeof()
        }
    }

    impl fmt::Debug for Zstd {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Zstd({} bytes)", self.memory())
        }
    }
}
