//! What nginx has no function for: options of TCP sockets.

use std::ptr;

use ngx::ffi::ngx_connection_t;

/// The kernel gives a connection up when its peer has acknowledged nothing for this long (RFC 5482): a peer that is gone without
/// a word, or one whose window stays closed. It is no error if the socket is not TCP's.
///
/// # Safety
/// `connection` is open.
#[cfg(target_os = "linux")]
pub unsafe fn set_user_timeout(connection: *mut ngx_connection_t, timeout_ms: u32) {
    // SAFETY: the option takes an unsigned int, and the connection has a descriptor.
    unsafe {
        libc::setsockopt(
            (*connection).fd,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            ptr::from_ref(&timeout_ms).cast(),
            size_of_val(&timeout_ms) as libc::socklen_t,
        );
    }
}

/// Other systems have no such option.
///
/// # Safety
/// None.
#[cfg(not(target_os = "linux"))]
pub unsafe fn set_user_timeout(_connection: *mut ngx_connection_t, _timeout_ms: u32) {}
