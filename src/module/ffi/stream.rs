//! HTTP/2 streams: what nginx's requests are multiplexed on.

use ngx::ffi::*;

use super::connection::Connection;

/// The connection that carries a request: over HTTP/2 the client's, not the stream's. None if nginx has bytes to send on it.
///
/// # Safety
/// `r` is a valid request.
pub unsafe fn carrier<'r>(r: *mut ngx_http_request_t) -> Option<Connection<'r>> {
    // SAFETY: a request has its connection, and a stream the client's.
    unsafe {
        #[cfg(ngx_feature = "http_v2")]
        if let Some(stream) = (*r).stream.as_ref() {
            let http2 = &*stream.connection;
            let carrier = Connection::new(http2.connection);
            return (http2.last_out.is_null() && !carrier.is_buffered()).then_some(carrier);
        }
        let carrier = Connection::new((*r).connection);
        (!carrier.is_buffered()).then_some(carrier)
    }
}
