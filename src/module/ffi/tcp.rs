//! Options of TCP sockets for which nginx has no function.

use std::ptr;

use ngx::ffi::ngx_connection_t;

/// Makes the kernel drop the connection when the peer has acknowledged nothing for this long (`TCP_USER_TIMEOUT`,
/// RFC 5482): a peer that vanished, or whose window stays closed. Sockets that are not TCP are ignored.
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
