//! A flight: buffers on their way through nginx to one subscriber.

use std::ptr;

use ngx::ffi::*;

use super::frames::Piece;
use super::send_queue::SendQueue;

/// Maximum of pieces in a flight.
pub const FLIGHT: usize = 32;

/// Buffers that nginx has been given, and the bytes that they point to.
///
/// nginx's filters keep pointers to buffers, also to those that are sent, until they are called again: with the filters a
/// flight stays until its request ends, and is loaded again.
pub struct Flight {
    /// Never grows: buffers and links stay where they are.
    parts: Vec<Part>,
    /// Flights that were too small, which filters may still know.
    earlier: Option<Box<Flight>>,
    /// Of a stream with a stub: the links that nginx has not taken.
    pub rest: *mut ngx_chain_t,
}

struct Part {
    buf: ngx_buf_t,
    link: ngx_chain_t,
    /// None once nginx has finished with it.
    piece: Option<Piece>,
}

impl Part {
    fn new(piece: Piece) -> Part {
        Part {
            buf: buffer(piece.bytes()),
            link: ngx_chain_t {
                buf: ptr::null_mut(),
                next: ptr::null_mut(),
            },
            piece: Some(piece),
        }
    }
}

impl Flight {
    fn with_capacity(parts: usize) -> Box<Flight> {
        Box::new(Flight {
            parts: Vec::with_capacity(parts),
            earlier: None,
            rest: ptr::null_mut(),
        })
    }

    /// A flight with one piece.
    pub fn of(piece: Piece) -> Box<Flight> {
        let mut flight = Flight::with_capacity(1);
        flight.parts.push(Part::new(piece));
        flight
    }

    /// A flight with the first pieces of the send queue, at most so many; `before` is the one that nginx has finished with.
    pub fn load(before: Option<Box<Flight>>, send_queue: &mut SendQueue, most: usize) -> Box<Flight> {
        let wanted = send_queue.len().clamp(1, most);
        let mut flight = match before {
            Some(flight) if flight.parts.capacity() >= wanted => flight,
            earlier => {
                let mut flight = Flight::with_capacity(wanted.next_power_of_two());
                flight.earlier = earlier;
                flight
            }
        };
        flight.parts.clear();
        while flight.parts.len() < wanted
            && let Some(piece) = send_queue.pop()
        {
            flight.parts.push(Part::new(piece));
        }
        flight
    }

    /// The chain of its buffers, as nginx gets it; once for each load.
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

    /// Drops the bytes, which nginx has finished with.
    pub fn empty(&mut self) {
        for part in &mut self.parts {
            part.piece = None;
        }
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
