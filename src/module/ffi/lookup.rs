//! Lookup of nginx's data that belongs to a module: indices, contexts, configurations.

use std::ffi::{CStr, c_void};

use ngx::ffi::*;

use crate::ngx_http_push_stream_module;

/// This module's index in arrays with an entry per http module.
pub fn own_index() -> usize {
    // SAFETY: nginx sets it while it loads the module, before anything else of the module runs.
    unsafe { ngx_http_push_stream_module.ctx_index }
}

/// The core http module's index.
pub fn core_index() -> usize {
    // SAFETY: as above.
    unsafe { ngx_http_core_module.ctx_index }
}

/// The index of an http module that has no header file, by its name; None if this nginx does not have it.
pub fn http_module_index(name: &CStr) -> Option<usize> {
    // SAFETY: the cycle's module list ends with NULL, and names are C strings.
    unsafe {
        let mut module = (*ngx_cycle).modules;
        while let Some(entry) = (*module).as_ref() {
            if !entry.name.is_null() && CStr::from_ptr(entry.name) == name {
                return Some(entry.ctx_index);
            }
            module = module.add(1);
        }
        None
    }
}

/// This module's context of a request.
///
/// # Safety
/// `r` is valid during `'a`.
pub unsafe fn context<'a>(r: *mut ngx_http_request_t) -> &'a mut *mut c_void {
    // SAFETY: the array has an entry per http module.
    unsafe { &mut *(*r).ctx.add(own_index()) }
}

/// The core module's configuration of a request's location.
///
/// # Safety
/// `r` is valid during `'a`.
pub unsafe fn core_location<'a>(r: *mut ngx_http_request_t) -> &'a ngx_http_core_loc_conf_t {
    // SAFETY: the array has an entry per http module, and the core module fills its own in every location.
    unsafe { &*(*r).loc_conf.add(core_index()).read().cast() }
}
