//! Variables of this module in the configuration.

use ngx::ffi::*;

use super::request::Request;
use super::{panic_guard, pool};

/// Registers a variable, before the configuration is read: `get` is called with `number`. False if there is no memory.
pub fn add(cf: *mut ngx_conf_t, name: &ngx_str_t, get: ngx_http_get_variable_pt, number: usize) -> bool {
    let mut name = *name;
    // SAFETY: nginx has passed the configuration that it reads, and copies the name.
    let Some(variable) = (unsafe { ngx_http_add_variable(cf, &raw mut name, 0).as_mut() }) else {
        return false;
    };
    variable.get_handler = get;
    variable.data = number;
    true
}

/// Sets the value that nginx asks for; without a text there is none.
///
/// # Safety
/// These are what nginx passes to a variable's handler.
pub unsafe fn set(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    text: impl FnOnce(Request<'_>) -> Option<Vec<u8>>,
) -> ngx_int_t {
    panic_guard::guard(
        "variable",
        || NGX_ERROR as ngx_int_t,
        || {
            // SAFETY: guaranteed by the caller.
            let (request, value) = unsafe { (Request::new(r), &mut *value) };
            let Some(text) = text(request) else {
                value.set_not_found(1);
                return NGX_OK as ngx_int_t;
            };
            // SAFETY: the request has a pool, in which the value lives as long as itself.
            let Some(copy) = (unsafe { pool::copy((*r).pool, &text) }) else {
                return NGX_ERROR as ngx_int_t;
            };
            value.set_len(text.len() as u32);
            value.set_valid(1);
            value.set_no_cacheable(0);
            value.set_not_found(0);
            value.data = copy.as_ptr();
            NGX_OK as ngx_int_t
        },
    )
}
