//! Directives about message ids: their assignment, their order, and resuming.

use ngx::ffi::*;
use ngx::ngx_string;

use super::values::word;

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
