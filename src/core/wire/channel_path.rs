//! The channels path: which channels a request names (`compat.md` §3).

/// One element of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub id: &'a [u8],
    /// `.bN`; 0 if missing. A number too large to parse is `u32::MAX`: everything stored.
    pub backtrack: u32,
}

/// Cuts a decoded path into its elements.
pub fn parse(path: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let _ = path;
    std::iter::empty()
}

/// May a publisher or subscriber use this id? `ALL` and ids with `*` are reserved for statistics.
pub fn is_reserved(_id: &[u8]) -> bool {
    todo!()
}
