//! The compressor of a form.

use super::deflate::Deflater;
use super::permessage;
use super::stream::Form;
#[cfg(feature = "zstd")]
use super::zstd::Zstd;

/// Levels where none is asked for.
const DEFLATE_LEVEL: u32 = 4;
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: u32 = 3;

/// A compressor with its context.
#[derive(Debug)]
pub enum Compressor {
    Deflate(Deflater),
    /// Of frames of a WebSocket.
    Messages(Deflater),
    #[cfg(feature = "zstd")]
    Zstd(Zstd),
}

impl Compressor {
    /// `grouped`: several texts share its context. None without memory, and for a coding that was not built in.
    pub fn new(form: Form, level: Option<u32>, grouped: bool) -> Option<Compressor> {
        let deflater = |window_bits| Deflater::new(level.unwrap_or(DEFLATE_LEVEL), window_bits);
        match form {
            Form::Gzip => Some(Compressor::Deflate(deflater(permessage::WINDOW_BITS))),
            Form::Messages(agreed) => Some(Compressor::Messages(deflater(agreed.window_bits))),
            #[cfg(feature = "zstd")]
            Form::Zstd => Zstd::new(level.unwrap_or(ZSTD_LEVEL), grouped).map(Compressor::Zstd),
            #[cfg(not(feature = "zstd"))]
            Form::Zstd => {
                let _ = grouped;
                None
            }
        }
    }

    /// Bytes of its memory, if the library tells.
    pub fn memory(&self) -> Option<usize> {
        match self {
            Compressor::Deflate(_) | Compressor::Messages(_) => None,
            #[cfg(feature = "zstd")]
            Compressor::Zstd(zstd) => Some(zstd.memory()),
        }
    }

    /// Forgets its context: what follows refers to nothing before. False if it is of no use any more.
    #[must_use]
    pub fn restart(&mut self) -> bool {
        match self {
            Compressor::Deflate(deflater) | Compressor::Messages(deflater) => {
                deflater.reset();
                true
            }
            #[cfg(feature = "zstd")]
            Compressor::Zstd(zstd) => zstd.restart(),
        }
    }

    /// Appends a text that may refer to those before it. False if the compressor failed; it is of no use then.
    #[must_use]
    pub fn push(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        match self {
            Compressor::Deflate(deflater) => deflater.push(text, out),
            Compressor::Messages(deflater) => permessage::push_together(deflater, text, out),
            #[cfg(feature = "zstd")]
            Compressor::Zstd(zstd) => zstd.push(text, out),
        }
    }

    /// A text by itself; of a WebSocket, a payload. `out` is empty before.
    #[must_use]
    pub fn alone(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        match self {
            Compressor::Deflate(deflater) => {
                deflater.reset();
                deflater.push(text, out)
            }
            Compressor::Messages(deflater) => {
                deflater.reset();
                permessage::compress(deflater, text, out)
            }
            #[cfg(feature = "zstd")]
            Compressor::Zstd(zstd) => zstd.whole(text, out),
        }
    }
}
