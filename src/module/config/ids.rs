//! Directives about message ids: their assignment, their order, and resuming.

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_string;

use super::main::refuse;
use super::{Location, arguments, main_of, verdict, word};

/// `push_stream_resume`.
pub static mut RESUME: [ngx_conf_enum_t; 3] = [
    word(ngx_string!("exact"), 0),
    word(ngx_string!("ordered"), ORDERED),
    word(ngx_str_t::empty(), 0),
];

pub const ORDERED: ngx_uint_t = 1;

/// `push_stream_out_of_order`.
pub static mut OUT_OF_ORDER: [ngx_conf_enum_t; 3] = [
    word(ngx_string!("refuse"), 0),
    word(ngx_string!("store"), STORE),
    word(ngx_str_t::empty(), 0),
];

pub const STORE: ngx_uint_t = 1;

/// `push_stream_eventsource_retry`: minimum and maximum reconnection time for browsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    pub min_ms: u32,
    pub max_ms: u32,
}

/// Makes the zone track the order of ids.
unsafe fn track(cf: *mut ngx_conf_t, auto: bool) {
    // SAFETY: `cf` is what nginx passed to the setter.
    let main = unsafe { main_of(cf) };
    main.track_ids = true;
    main.auto_ids |= auto;
}

/// Setter of a flag that needs the zone to track the order of ids.
pub unsafe extern "C" fn set_flag(cf: *mut ngx_conf_t, command: *mut ngx_command_t, conf: *mut c_void) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and this level's configuration.
    unsafe {
        let problem = ngx_conf_set_flag_slot(cf, command, conf);
        if problem.is_null() && arguments(cf)[1].as_bytes().eq_ignore_ascii_case(b"on") {
            track(cf, (*command).offset == offset_of!(Location, auto_event_id));
        }
        problem
    }
}

/// Setter of a choice that needs the zone to track the order of ids, unless it is `exact`.
pub unsafe extern "C" fn set_choice(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and this level's configuration.
    unsafe {
        let problem = ngx_conf_set_enum_slot(cf, command, conf);
        if problem.is_null() && !arguments(cf)[1].as_bytes().eq_ignore_ascii_case(b"exact") {
            track(cf, false);
        }
        problem
    }
}

pub unsafe extern "C" fn set_retry(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration and the directive's words.
    let (location, words) = unsafe { (&mut *conf.cast::<Location>(), arguments(cf)) };
    if location.eventsource_retry.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let time = |word: &ngx_str_t| {
        let mut word = *word;
        // SAFETY: `word` is a valid string.
        let time = unsafe { ngx_parse_time(&mut word, 0) };
        u32::try_from(time).ok()
    };
    let (Some(min_ms), Some(max_ms)) = (time(&words[1]), time(words.last().unwrap_or(&words[1]))) else {
        return verdict(Err(c"invalid value"));
    };
    if min_ms > max_ms {
        return refuse(
            cf,
            c"push_stream_eventsource_retry: the first time cannot be longer than the second.",
        );
    }
    location.eventsource_retry = Some(Retry { min_ms, max_ms });
    ptr::null_mut()
}
