//! What setters and merge functions share: the words of a directive, values that were not given, refusals.

use std::ffi::{CStr, c_char};
use std::fmt::Display;
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;

use crate::ffi::directive::Conf;

/// Turns the result of a setter or merge function into nginx's return value.
pub fn verdict(result: Result<(), &'static CStr>) -> *mut c_char {
    match result {
        Ok(()) => ptr::null_mut(),
        Err(reason) => reason.as_ptr().cast_mut(),
    }
}

/// Return value of a setter that has already logged the error.
pub const REPORTED: *mut c_char = usize::MAX as *mut c_char;

/// Logs a refusal without values.
pub fn refuse(conf: Conf<'_>, reason: &CStr) -> *mut c_char {
    ngx_conf_log_error!(
        NGX_LOG_ERR,
        conf.raw(),
        "push stream module: {}",
        reason.to_string_lossy()
    );
    REPORTED
}

/// Logs a warning about the directive that is being read.
pub fn warn(conf: Conf<'_>, what: impl Display) {
    ngx_conf_log_error!(NGX_LOG_WARN, conf.raw(), "push stream module: {what}");
}

/// The "not given" value of each kind of field that nginx's own setters fill.
pub mod unset {
    use super::*;

    pub const FLAG: ngx_flag_t = -1;
    pub const NUMBER: ngx_int_t = -1;
    pub const SECONDS: time_t = -1;
    pub const MSEC: ngx_msec_t = ngx_msec_t::MAX;
    pub const SIZE: usize = usize::MAX;
    pub const FILE: *mut ngx_open_file_t = usize::MAX as *mut ngx_open_file_t;
    pub const ENUM: ngx_uint_t = ngx_uint_t::MAX;
}

/// A non-negative number, if it was given.
pub fn given(number: ngx_int_t) -> Option<u32> {
    (number != unset::NUMBER).then(|| u32::try_from(number).unwrap_or(u32::MAX))
}

/// A time in milliseconds, if it was given.
pub fn given_ms(time: ngx_msec_t) -> Option<u64> {
    (time != unset::MSEC).then_some(time as u64)
}

/// One word of an enumeration, for `ngx_conf_set_enum_slot`.
pub const fn word(name: ngx_str_t, value: ngx_uint_t) -> ngx_conf_enum_t {
    ngx_conf_enum_t { name, value }
}
