//! Percent-decoding as `compat.md` §1.4 has it.

/// Decodes once; `+` stays, an incomplete escape stays as nginx' `ngx_unescape_uri` leaves it.
pub fn decode(_bytes: &[u8]) -> Vec<u8> {
    todo!()
}
