//! Pieces of a response body on their way into nginx's output filters.

use std::ptr;

use ngx::ffi::*;

use super::pool;

/// Sends `bytes` through the output filters, at once or as the end of the response. nginx keeps them until they are sent.
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

/// Sends a copy of `bytes` at once: less effort than [`send`] for few of them.
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
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        let Some(buf) = buf.as_mut() else {
            return NGX_ERROR as ngx_int_t;
        };
        buf.pos = bytes;
        buf.last = buf.pos.add(len);
        buf.start = buf.pos;
        buf.end = buf.last;
        buf.set_memory((len > 0) as u32);
        buf.set_flush(!last as u32);
        buf.set_last_buf((last && (*r).main == r) as u32);
        buf.set_last_in_chain(last as u32);
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

/// A flush that carries no bytes does not go beyond nginx's write filter if the request is a stream of HTTP/2: what waits in TLS's
/// buffer, the head for one, would stay there until something else is sent on the connection.
#[cfg(ngx_feature = "http_v2")]
unsafe fn flush_stream(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: the request is valid, and a stream has its connection as long as it lives.
    unsafe {
        let Some(stream) = (*r).stream.as_ref() else {
            return NGX_OK as ngx_int_t;
        };
        // A failure is met again at the next send.
        ngx_http_v2_send_output_queue(stream.connection);
        NGX_OK as ngx_int_t
    }
}

#[cfg(not(ngx_feature = "http_v2"))]
unsafe fn flush_stream(_r: *mut ngx_http_request_t) -> ngx_int_t {
    NGX_OK as ngx_int_t
}
