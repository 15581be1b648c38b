//! Optional symbols of nginx, looked up at run time, so that one module loads into builds with and without them.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ngx::ffi::{NGX_ERROR, ngx_connection_t, ngx_int_t};

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

/// Shuts TLS down and frees its state, as `ngx_ssl_shutdown()`; NGX_AGAIN: it continues by itself.
///
/// # Safety
/// `connection` is open and has TLS.
pub unsafe fn ssl_shutdown(connection: *mut ngx_connection_t) -> ngx_int_t {
    static SHUTDOWN: Symbol = Symbol::new(c"ngx_ssl_shutdown");
    type Function = unsafe extern "C" fn(*mut ngx_connection_t) -> ngx_int_t;
    match SHUTDOWN.address() {
        // SAFETY: a connection with TLS exists only in an nginx that has the function, of this type.
        Some(function) => unsafe { std::mem::transmute::<*mut c_void, Function>(function)(connection) },
        None => NGX_ERROR as ngx_int_t,
    }
}

/// Frees the buffer that collects TLS records, as `ngx_ssl_free_buffer()`.
///
/// # Safety
/// `connection` is open and has TLS; nothing waits in that buffer.
pub unsafe fn ssl_free_buffer(connection: *mut ngx_connection_t) {
    static FREE: Symbol = Symbol::new(c"ngx_ssl_free_buffer");
    type Function = unsafe extern "C" fn(*mut ngx_connection_t);
    if let Some(function) = FREE.address() {
        // SAFETY: as above.
        unsafe { std::mem::transmute::<*mut c_void, Function>(function)(connection) }
    }
}

struct Symbol {
    name: &'static CStr,
    address: OnceLock<Option<usize>>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Symbol {
        Symbol {
            name,
            address: OnceLock::new(),
        }
    }

    fn address(&self) -> Option<*mut c_void> {
        let address = self.address.get_or_init(|| {
            // SAFETY: the name is a C string; nothing is called.
            let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, self.name.as_ptr()) };
            (!address.is_null()).then_some(address as usize)
        });
        address.map(|address| address as *mut c_void)
    }
}
