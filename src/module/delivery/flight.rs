//! Buffers on their way through nginx's output filters to one attached subscriber.

use std::ptr;

use ngx::ffi::*;

use super::frames::Piece;
use super::send_queue::SendQueue;

/// Maximum of pieces in a flight.
const FLIGHT: usize = 32;

/// Buffers in nginx's output filters, and the bytes that they point to.
pub struct Flight {
    bufs: Vec<ngx_buf_t>,
    links: Vec<ngx_chain_t>,
    pieces: Vec<Piece>,
}

impl Flight {
    pub fn new() -> Flight {
        // Filters keep pointers to buffers and links: the vectors must never grow.
        Flight {
            bufs: Vec::with_capacity(FLIGHT),
            links: Vec::with_capacity(FLIGHT),
            pieces: Vec::with_capacity(FLIGHT),
        }
    }

    /// Are some of its buffers not taken yet?
    pub fn pending(&self) -> bool {
        self.bufs.iter().any(|buf| buf.pos < buf.last)
    }

    /// Starts a new flight with the first pieces of the send queue. The previous one was taken completely.
    pub fn load(&mut self, send_queue: &mut SendQueue) -> *mut ngx_chain_t {
        self.links.clear();
        self.bufs.clear();
        self.pieces.clear();
        while self.pieces.len() < FLIGHT
            && let Some(piece) = send_queue.pop()
        {
            self.bufs.push(buffer(piece.bytes()));
            self.pieces.push(piece);
        }
        if let Some(last) = self.bufs.last_mut() {
            last.set_flush(1);
        }
        let mut next = ptr::null_mut();
        // From the last to the first, so that each link can point to the next one.
        for buf in self.bufs.iter_mut().rev() {
            self.links.push(ngx_chain_t { buf, next });
            next = self.links.last_mut().map_or(ptr::null_mut(), ptr::from_mut);
        }
        next
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
