//! A flight: buffers on their way through nginx to one subscriber. It exists while something is on its way.

use std::ptr;

use ngx::ffi::*;
use smallvec::SmallVec;

use super::frames::Piece;
use super::send_queue::SendQueue;

/// Maximum of pieces in a flight.
const FLIGHT: usize = 32;

/// Buffers that nginx has been given, and the bytes that they point to. nginx keeps pointers to buffers and links: they
/// stay where they are.
pub struct Flight {
    parts: SmallVec<[Part; 1]>,
    /// Of a stream with a stub: the links that nginx has not taken.
    pub rest: *mut ngx_chain_t,
}

struct Part {
    buf: ngx_buf_t,
    link: ngx_chain_t,
    _piece: Piece,
}

impl Part {
    fn new(piece: Piece) -> Part {
        Part {
            buf: buffer(piece.bytes()),
            link: ngx_chain_t {
                buf: ptr::null_mut(),
                next: ptr::null_mut(),
            },
            _piece: piece,
        }
    }
}

impl Flight {
    /// A flight with the first pieces of the send queue.
    pub fn load(send_queue: &mut SendQueue) -> Box<Flight> {
        let pieces = std::iter::from_fn(|| send_queue.pop()).take(FLIGHT);
        Box::new(Flight {
            parts: pieces.map(Part::new).collect(),
            rest: ptr::null_mut(),
        })
    }

    /// A flight with one piece.
    pub fn of(piece: Piece) -> Box<Flight> {
        Box::new(Flight {
            parts: SmallVec::from_buf([Part::new(piece)]),
            rest: ptr::null_mut(),
        })
    }

    /// The chain of its buffers, as nginx gets it; once for each flight.
    pub fn chain(&mut self) -> *mut ngx_chain_t {
        if let Some(last) = self.parts.last_mut() {
            last.buf.set_flush(1);
        }
        let mut next = ptr::null_mut();
        // From the last to the first, so that each link can point to the next one.
        for part in self.parts.iter_mut().rev() {
            part.link.buf = &raw mut part.buf;
            part.link.next = next;
            next = &raw mut part.link;
        }
        next
    }

    /// Are some of its buffers not taken yet?
    pub fn is_pending(&self) -> bool {
        self.parts.iter().any(|part| part.buf.pos < part.buf.last)
    }
}

fn buffer(bytes: &[u8]) -> ngx_buf_t {
    // SAFETY: a buffer of all zeroes is an empty one.
    let mut buf: ngx_buf_t = unsafe { std::mem::zeroed() };
    let range = bytes.as_ptr_range();
    (buf.pos, buf.last) = (range.start.cast_mut(), range.end.cast_mut());
    (buf.start, buf.end) = (buf.pos, buf.last);
    buf.set_memory(1);
    buf
}
