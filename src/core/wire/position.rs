//! Where a client wants to resume, from its headers (`compat.md` §6).

/// The tag in `If-None-Match`: an optional `W/`, then digits; anything else is no tag.
pub fn parse_tag(_text: &[u8]) -> Option<u32> {
    todo!()
}
