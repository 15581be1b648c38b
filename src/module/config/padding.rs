//! `push_stream_padding_by_user_agent`: padding for browsers that buffer a minimum of bytes before they show anything.

use std::ffi::c_char;
use std::fmt::Display;
use std::ptr::NonNull;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;
use push_stream_core::wire::padding;

use super::values::REPORTED;
use crate::ffi::directive::Conf;

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
pub fn parse(conf: Conf<'_>, text: &[u8]) -> Result<Vec<Padding>, *mut c_char> {
    let mut paddings = Vec::new();
    for group in padding::groups(text) {
        let refuse = |reason: &dyn Display| {
            ngx_conf_log_error!(NGX_LOG_ERR, conf.raw(), "push stream module: {reason}");
            REPORTED
        };
        let group = group.map_err(|malformed| refuse(&malformed))?;
        let agents = conf.compile(group.agents);
        paddings.push(Padding {
            agents: agents.map_err(|reason| reason.map_or(REPORTED, |reason| refuse(&reason)))?,
            header_min: group.header_min,
            message_min: group.message_min,
        });
    }
    Ok(paddings)
}
