//! Pieces of a response body on their way into nginx's output filters.

use std::ptr;

use ngx::ffi::*;

use super::pool;

/// Sends `bytes` through the output filters, at once or as the end of the response. nginx keeps them until they are sent.
///
/// # Safety
/// `r` is a request whose head was sent and whose end was not.
pub unsafe fn send(r: *mut ngx_http_request_t, bytes: Vec<u8>, last: bool) -> ngx_int_t {
    // SAFETY: buffer and bytes live in the request's pool, as long as anything that may send them.
    unsafe {
        let len = bytes.len();
        let buf = ngx_pcalloc((*r).pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
        let (Some(buf), Some(place)) = (buf.as_mut(), pool::place((*r).pool, bytes)) else {
            return NGX_ERROR as ngx_int_t;
        };
        buf.pos = (*place.as_ptr()).as_mut_ptr();
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
        ngx_http_output_filter(r, &mut chain)
    }
}
