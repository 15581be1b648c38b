//! `push_stream_padding_by_user_agent`: fillers for browsers that wait for more before they show anything.

use std::ffi::c_char;
use std::ptr::NonNull;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;

use super::REPORTED;
use crate::ffi::pool;

/// One group: agents that match get at least this much.
#[derive(Debug)]
pub struct Padding {
    agents: NonNull<ngx_regex_t>,
    /// Bytes of the header, filler included.
    pub header_min: u32,
    /// Bytes of a message, filler included.
    pub message_min: u32,
}

impl Padding {
    /// Does this group apply to the agent?
    pub fn matches(&self, agent: &[u8]) -> bool {
        let mut subject = ngx_str_t {
            len: agent.len(),
            data: agent.as_ptr().cast_mut(),
        };
        // SAFETY: the expression was compiled into the cycle's pool; no captures are asked for.
        unsafe { ngx_regex_exec(self.agents.as_ptr(), &mut subject, std::ptr::null_mut(), 0) >= 0 }
    }
}

/// One group as written.
struct Group<'a> {
    agents: &'a [u8],
    header_min: u32,
    message_min: u32,
}

/// Reads `REGEX,HEADERMIN,MESSAGEMIN:REGEX,...`; says what is wrong with it.
///
/// # Safety
/// `cf` is what nginx passed to a merge function.
pub unsafe fn parse(cf: *mut ngx_conf_t, text: &[u8]) -> Result<Vec<Padding>, *mut c_char> {
    let mut groups = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (written, after) = split(rest);
        let Some(group) = group(written) else {
            let reason = if rest.split(|&byte| byte == b':').any(|part| self::group(part).is_some()) {
                "error applying padding pattern to"
            } else {
                "padding pattern not match the value"
            };
            let rest = String::from_utf8_lossy(rest);
            ngx_conf_log_error!(NGX_LOG_ERR, cf, "push stream module: {reason} {rest}");
            return Err(REPORTED);
        };
        groups.push(Padding {
            // SAFETY: `cf` is valid for the call.
            agents: unsafe { compile(cf, group.agents)? },
            header_min: group.header_min,
            message_min: group.message_min,
        });
        rest = after;
    }
    Ok(groups)
}

/// The text up to the next `:`, and what follows it.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b':') {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &[]),
    }
}

/// The last two numbers count: the expression may have commas.
fn group(text: &[u8]) -> Option<Group<'_>> {
    let mut parts = text.rsplitn(3, |&byte| byte == b',');
    let message_min = number(parts.next()?)?;
    let header_min = number(parts.next()?)?;
    Some(Group {
        agents: parts.next()?,
        header_min,
        message_min,
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?
        .parse()
        .ok()
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
