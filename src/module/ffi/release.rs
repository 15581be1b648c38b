//! Giving a request back to nginx while its connection stays.

use std::ffi::c_void;
use std::ptr;

use ngx::ffi::*;

use super::connection::Connection;
use super::pool;

/// The handler of a cleanup.
pub type Cleanup = unsafe extern "C" fn(*mut c_void);

/// Does another module want to be told of the request's end?
///
/// # Safety
/// `r` is a valid request; `own` is this module's cleanup of it, `realip` that module's index.
pub unsafe fn is_claimed(r: *mut ngx_http_request_t, own: Cleanup, realip: Option<usize>) -> bool {
    // SAFETY: lists of cleanups end with NULL. What realip registers is also its context: it only puts the connection's own
    // address back.
    unsafe {
        let mut cleanup = (*r).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            let is_other = |handler: Cleanup| handler as usize != own as usize && !is_of_stream(r, entry.data);
            if entry.handler.is_some_and(is_other) {
                return true;
            }
            cleanup = entry.next;
        }
        let realip = realip.map(|index| (*r).ctx.add(index).read());
        let mut cleanup = (*(*r).pool).cleanup;
        while let Some(entry) = cleanup.as_ref() {
            if entry.handler.is_some() && !pool::is_own(entry) && realip != Some(entry.data) {
                return true;
            }
            cleanup = entry.next;
        }
    }
    false
}

/// Is this what nginx's own cleanup of an HTTP/2 stream gets?
#[cfg(ngx_feature = "http_v2")]
unsafe fn is_of_stream(r: *mut ngx_http_request_t, data: *mut c_void) -> bool {
    // SAFETY: the request is valid.
    unsafe { !data.is_null() && data == (*r).stream.cast() }
}

/// This nginx has no HTTP/2.
#[cfg(not(ngx_feature = "http_v2"))]
unsafe fn is_of_stream(_r: *mut ngx_http_request_t, _data: *mut c_void) -> bool {
    false
}

/// Frees the request. Returns its connection.
///
/// # Safety
/// `r` is a valid request, and nothing refers to it but its connection, whose handlers the caller replaces. The only
/// cleanup is the caller's, which is not run.
pub unsafe fn release<'c>(r: *mut ngx_http_request_t) -> Connection<'c> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let connection = Connection::new((*r).connection);
        let http = (*r).http_connection;
        let mut cleanup = (*r).cleanup;
        while let Some(entry) = cleanup.as_mut() {
            entry.handler = None;
            cleanup = entry.next;
        }
        ngx_http_free_request(r, 0);
        (*connection.raw()).set_destroyed(0);
        if !connection.can_do_without_pool() {
            free_header_buffers(connection.raw(), http);
        }
        connection
    }
}

/// Frees the buffers that requests are read into, as nginx does between two requests of a connection.
unsafe fn free_header_buffers(connection: *mut ngx_connection_t, http: *mut ngx_http_connection_t) {
    // SAFETY: the buffers are in the connection's pool, and no request refers to them any more.
    unsafe {
        let pool = (*connection).pool;
        for list in [&raw mut (*http).free, &raw mut (*http).busy] {
            let mut link = std::mem::replace(&mut *list, ptr::null_mut());
            while let Some(entry) = link.as_ref() {
                ngx_pfree(pool, (*entry.buf).start.cast());
                link = entry.next;
            }
        }
        (*http).nbusy = 0;
        if let Some(buffer) = (*connection).buffer.as_ref() {
            ngx_pfree(pool, buffer.start.cast());
        }
        (*connection).buffer = ptr::null_mut();
    }
}
