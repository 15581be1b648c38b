//! Preparing listeners whose connections may be taken over from OpenSSL (`push_stream_detach_tls`).

use ngx::ffi::*;
use ngx::ngx_conf_log_error;

use super::main::main_of;
use crate::ffi::directive::Conf;
use crate::ffi::openssl;
use crate::ffi::panic_guard;

/// Runs when all servers are read.
pub unsafe extern "C" fn prepare(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx passes it, inside of the http block.
    let conf = unsafe { Conf::new(cf) };
    panic_guard::guard(
        "postconfiguration",
        || NGX_ERROR as ngx_int_t,
        || {
            let servers = std::mem::take(&mut main_of(conf).tls_servers);
            if !servers.is_empty()
                && let Err(reason) = openssl::learn_from_listeners(conf, &servers)
            {
                ngx_conf_log_error!(NGX_LOG_EMERG, cf, "push_stream_detach_tls is not possible: {reason}");
                return NGX_ERROR as ngx_int_t;
            }
            NGX_OK as ngx_int_t
        },
    )
}
