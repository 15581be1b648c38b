//! `push_stream_padding_by_user_agent`: padding for browsers that buffer a minimum of bytes before they show anything.

use std::ffi::c_char;
use std::ptr::NonNull;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;
use push_stream_core::wire::padding;

use super::values::REPORTED;
use crate::ffi::pool;

/// One group: minimum sizes for matching user agents.
#[derive(Debug)]
pub struct Padding {
    agents: NonNull<ngx_regex_t>,
    /// Minimum bytes of the header, filler included.
    pub header_min: u32,
    /// Minimum bytes of a message, filler included.
    pub message_min: u32,
}

impl Padding {
    /// Does this group apply to the user agent?
    pub fn matches(&self, agent: &[u8]) -> bool {
        let mut subject = ngx_str_t {
            len: agent.len(),
            data: agent.as_ptr().cast_mut(),
        };
        // SAFETY: the expression was compiled into the cycle's pool; no captures are asked for.
        unsafe { ngx_regex_exec(self.agents.as_ptr(), &mut subject, std::ptr::null_mut(), 0) >= 0 }
    }
}

/// Parses `REGEX,HEADERMIN,MESSAGEMIN:REGEX,...`; logs what is wrong with it.
///
/// # Safety
/// `cf` is what nginx passed to a merge function.
pub unsafe fn parse(cf: *mut ngx_conf_t, text: &[u8]) -> Result<Vec<Padding>, *mut c_char> {
    let mut paddings = Vec::new();
    for group in padding::groups(text) {
        let group = group.map_err(|malformed| {
            ngx_conf_log_error!(NGX_LOG_ERR, cf, "push stream module: {malformed}");
            REPORTED
        })?;
        paddings.push(Padding {
            // SAFETY: `cf` is valid for the call.
            agents: unsafe { compile(cf, group.agents)? },
            header_min: group.header_min,
            message_min: group.message_min,
        });
    }
    Ok(paddings)
}

unsafe fn compile(cf: *mut ngx_conf_t, pattern: &[u8]) -> Result<NonNull<ngx_regex_t>, *mut c_char> {
    let mut error = [0u8; NGX_MAX_CONF_ERRSTR as usize];
    // SAFETY: the structure is plain data; the pattern is copied with a NUL behind it, as the compiler wants it.
    unsafe {
        let terminated = [pattern, b"\0"].concat();
        let copy = pool::copy((*cf).pool, &terminated).ok_or(REPORTED)?;
        let mut request: ngx_regex_compile_t = std::mem::zeroed();
        request.pattern = ngx_str_t {
            len: pattern.len(),
            data: copy.as_ptr(),
        };
        request.pool = (*cf).pool;
        request.err = ngx_str_t {
            len: error.len(),
            data: error.as_mut_ptr(),
        };
        if ngx_regex_compile(&mut request) != NGX_OK as ngx_int_t {
            ngx_conf_log_error!(NGX_LOG_ERR, cf, "push stream module: {}", request.err);
            return Err(REPORTED);
        }
        NonNull::new(request.regex).ok_or(REPORTED)
    }
}
