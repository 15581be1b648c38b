//! Sending pieces of a response body through nginx's output filters.

use std::ptr;

use ngx::ffi::*;

use super::pool;

/// Sends `bytes` through the output filters, at once or as the end of the response. nginx keeps them until they are
/// sent.
///
/// # Safety
/// `r` is a request whose head was sent and whose end was not.
pub unsafe fn send(r: *mut ngx_http_request_t, bytes: Vec<u8>, last: bool) -> ngx_int_t {
    // SAFETY: the bytes live in the request's pool.
    unsafe {
        let len = bytes.len();
        match pool::place((*r).pool, bytes) {
            Some(place) => pass(r, (*place.as_ptr()).as_mut_ptr(), len, last),
            None => NGX_ERROR as ngx_int_t,
        }
    }
}

/// Bytes passed to nginx, with the buffer that shows when nginx has finished with them.
pub struct Sent {
    _bytes: Vec<u8>,
    buf: *const ngx_buf_t,
}

impl Sent {
    /// Has nginx sent or copied all of them?
    pub fn is_done(&self) -> bool {
        // SAFETY: the buffer is in the request's pool, as is the holder of this value.
        unsafe { (*self.buf).pos == (*self.buf).last }
    }
}

/// As [`send`], but the caller keeps the bytes and drops them when nginx has finished with them, or else with the
/// request.
///
/// # Safety
/// As for [`send`]; what is in `sent` lives until the request's pool is destroyed or until [`Sent::is_done`].
pub unsafe fn send_kept(r: *mut ngx_http_request_t, bytes: Vec<u8>, last: bool, sent: &mut Vec<Sent>) -> ngx_int_t {
    // SAFETY: the heap memory of a vector stays where it is when the vector is moved; the caller keeps it.
    unsafe {
        sent.retain(|before| !before.is_done());
        let mut bytes = bytes;
        let (at, len) = (bytes.as_mut_ptr(), bytes.len());
        let Some(buf) = buffer(r, at, len, last) else {
            return NGX_ERROR as ngx_int_t;
        };
        sent.push(Sent { _bytes: bytes, buf });
        pass_buffer(r, buf, len, last)
    }
}

/// Sends a copy of `bytes` at once: cheaper than [`send`] for few bytes.
///
/// # Safety
/// As for [`send`].
pub unsafe fn send_copy(r: *mut ngx_http_request_t, bytes: &[u8]) -> ngx_int_t {
    // SAFETY: the copy lives in the request's pool.
    unsafe {
        match pool::copy((*r).pool, bytes) {
            Some(copy) => pass(r, copy.as_ptr(), bytes.len(), false),
            None => NGX_ERROR as ngx_int_t,
        }
    }
}

/// Passes bytes of the request's pool to the output filters.
unsafe fn pass(r: *mut ngx_http_request_t, bytes: *mut u8, len: usize, last: bool) -> ngx_int_t {
    // SAFETY: buffer and bytes live in the request's pool, as long as anything that may send them.
    unsafe {
        match buffer(r, bytes, len, last) {
            Some(buf) => pass_buffer(r, buf, len, last),
            None => NGX_ERROR as ngx_int_t,
        }
    }
}

/// A buffer in the request's pool that refers to `bytes`.
unsafe fn buffer(r: *mut ngx_http_request_t, bytes: *mut u8, len: usize, last: bool) -> Option<*mut ngx_buf_t> {
    // SAFETY: the pool is valid; the buffer is all zeroes, and refers to what the caller vouches for.
    unsafe {
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>())
            .cast::<ngx_buf_t>()
            .as_mut()?;
        buf.pos = bytes;
        buf.last = buf.pos.add(len);
        buf.start = buf.pos;
        buf.end = buf.last;
        buf.set_memory((len > 0) as u32);
        buf.set_flush(!last as u32);
        buf.set_last_buf((last && (*r).main == r) as u32);
        buf.set_last_in_chain(last as u32);
        Some(buf)
    }
}

unsafe fn pass_buffer(r: *mut ngx_http_request_t, buf: *mut ngx_buf_t, len: usize, last: bool) -> ngx_int_t {
    // SAFETY: the caller vouches for request and buffer.
    unsafe {
        let mut chain = ngx_chain_t {
            buf,
            next: ptr::null_mut(),
        };
        let code = ngx_http_output_filter(r, &mut chain);
        if len == 0 && !last && code != NGX_ERROR as ngx_int_t {
            return flush_stream(r);
        }
        code
    }
}

/// Flushes an HTTP/2 stream. A flush without bytes does not go beyond nginx's write filter there: bytes in TLS's
/// buffer, for example the head, would stay there until something else is sent on the connection.
#[cfg(ngx_feature = "http_v2")]
unsafe fn flush_stream(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: the request is valid, and a stream has its connection as long as it lives.
    unsafe {
        let Some(stream) = (*r).stream.as_ref() else {
            return NGX_OK as ngx_int_t;
        };
        // A failure shows again at the next send.
        ngx_http_v2_send_output_queue(stream.connection);
        NGX_OK as ngx_int_t
    }
}

#[cfg(not(ngx_feature = "http_v2"))]
unsafe fn flush_stream(_r: *mut ngx_http_request_t) -> ngx_int_t {
    NGX_OK as ngx_int_t
}
