//! EventSource framing (`compat.md` §12, §0.4; WHATWG HTML §9.2).

use super::template::{Fields, Template};

/// What a comment-only ping looks like on the wire.
pub const PING: &[u8] = b": -1\n";

/// The header template as sent: each line a comment. Empty becomes `: \n`.
pub fn header(_template: &[u8]) -> Vec<u8> {
    todo!()
}

/// The footer template as sent. Empty stays empty.
pub fn footer(_template: &[u8]) -> Vec<u8> {
    todo!()
}

/// The message template of an EventSource location, prepared from the configured one.
pub fn message_template(_configured: &[u8]) -> Template {
    todo!()
}

/// Appends one whole message: id line, event line, the data block, the empty line. Returns the length of the data block
/// without id and event lines (padding is computed from it).
pub fn render(_template: &Template, _fields: &Fields<'_>, _out: &mut Vec<u8>) -> usize {
    todo!()
}
