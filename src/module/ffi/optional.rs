//! Optional symbols of nginx, looked up at run time, so that one module loads into builds with and without them.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ngx::ffi::*;

use super::connection::Connection;

/// Counters that `stub_status` shows as active and writing connections; no-ops if nginx was built without it.
#[derive(Clone, Copy, Debug)]
pub enum Stat {
    Active,
    Writing,
}

impl Stat {
    pub fn add(self, difference: isize) {
        static ACTIVE: Symbol = Symbol::new(c"ngx_stat_active");
        static WRITING: Symbol = Symbol::new(c"ngx_stat_writing");
        let symbol = match self {
            Stat::Active => &ACTIVE,
            Stat::Writing => &WRITING,
        };
        if let Some(variable) = symbol.address() {
            // SAFETY: the variable points to an atomic counter in memory that all of nginx's processes share
            // (src/event/ngx_event.c); wrapping addition of a negative number subtracts.
            unsafe {
                let counter = variable.cast::<*const AtomicUsize>().read();
                (*counter).fetch_add(difference as usize, Ordering::Relaxed);
            }
        }
    }
}

/// Shuts TLS down and frees its state, as `ngx_ssl_shutdown()`; NGX_AGAIN: it continues by itself, and calls `then`.
#[cfg(ngx_feature = "ssl")]
pub fn ssl_shutdown(connection: Connection<'_>, then: unsafe extern "C" fn(*mut ngx_connection_t)) -> ngx_int_t {
    static SHUTDOWN: Symbol = Symbol::new(c"ngx_ssl_shutdown");
    type Function = unsafe extern "C" fn(*mut ngx_connection_t) -> ngx_int_t;
    let Some(function) = SHUTDOWN.address().filter(|_| connection.has_tls()) else {
        return NGX_ERROR as ngx_int_t;
    };
    // SAFETY: the function has this type, and the connection has TLS, until it was shut down.
    unsafe {
        let code = std::mem::transmute::<*mut c_void, Function>(function)(connection.raw());
        if code == NGX_AGAIN as ngx_int_t {
            (*(*connection.raw()).ssl).handler = Some(then);
        }
        code
    }
}

/// This nginx has no TLS.
#[cfg(not(ngx_feature = "ssl"))]
pub fn ssl_shutdown(_connection: Connection<'_>, _then: unsafe extern "C" fn(*mut ngx_connection_t)) -> ngx_int_t {
    NGX_OK as ngx_int_t
}

/// Frees the buffer that collects TLS records, as `ngx_ssl_free_buffer()`; nginx makes it again at the next send. Nothing
/// happens if bytes wait in it.
pub fn ssl_free_buffer(connection: Connection<'_>) {
    static FREE: Symbol = Symbol::new(c"ngx_ssl_free_buffer");
    type Function = unsafe extern "C" fn(*mut ngx_connection_t);
    if connection.has_tls()
        && !connection.is_buffered()
        && let Some(function) = FREE.address()
    {
        // SAFETY: the function has this type, and the connection TLS; without `buffered` nothing waits.
        unsafe { std::mem::transmute::<*mut c_void, Function>(function)(connection.raw()) }
    }
}

/// Where nginx keeps the connection of an `SSL`; None without TLS.
#[cfg(ngx_feature = "ssl")]
pub fn ssl_connection_index() -> Option<std::ffi::c_int> {
    static INDEX: Symbol = Symbol::new(c"ngx_ssl_connection_index");
    // SAFETY: the variable is nginx's, of this type.
    INDEX
        .address()
        .map(|index| unsafe { index.cast::<std::ffi::c_int>().read() })
}

/// The index of the http module for TLS among the http modules; None if this nginx does not have it.
#[cfg(ngx_feature = "ssl")]
pub fn http_ssl_index() -> Option<usize> {
    static MODULE: Symbol = Symbol::new(c"ngx_http_ssl_module");
    // SAFETY: the variable is nginx's, of this type.
    MODULE
        .address()
        .map(|module| unsafe { (*module.cast::<ngx_module_t>()).ctx_index })
}

/// A symbol of nginx, or of a library that it is linked with.
pub struct Symbol {
    name: &'static CStr,
    address: OnceLock<Option<usize>>,
}

impl Symbol {
    pub const fn new(name: &'static CStr) -> Symbol {
        Symbol {
            name,
            address: OnceLock::new(),
        }
    }

    pub fn address(&self) -> Option<*mut c_void> {
        let address = self.address.get_or_init(|| {
            // SAFETY: the name is a C string; nothing is called.
            let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, self.name.as_ptr()) };
            (!address.is_null()).then_some(address as usize)
        });
        address.map(|address| address as *mut c_void)
    }
}
