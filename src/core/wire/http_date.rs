//! Dates in HTTP headers.

/// `Sun, 22 Nov 2026 05:24:30 GMT`.
pub fn format(_unix_secs: u64) -> [u8; 29] {
    todo!()
}

/// RFC 1123, RFC 850 and asctime forms; None if it is no date.
pub fn parse(_text: &[u8]) -> Option<u64> {
    todo!()
}
