//! The position from which a client wants to resume, from its headers.

use super::coding::Coding;

/// The tag in `If-None-Match`: an optional `W/`, then digits, and the coding if the answer had one; None for any other
/// text.
pub fn parse_tag(text: &[u8]) -> Option<u32> {
    let digits = match text.strip_prefix(b"W/") {
        Some(rest) if !rest.is_empty() => rest,
        _ => text,
    };
    let suffix = |coding: &Coding| digits.strip_suffix(coding.name().as_bytes())?.strip_suffix(b"-");
    let digits = Coding::ALL.iter().find_map(suffix).unwrap_or(digits);
    // The standard library accepts a sign, which is not a digit.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tag_is_a_number_with_or_without_the_weak_mark() {
        assert_eq!(parse_tag(b"0"), Some(0));
        assert_eq!(parse_tag(b"17"), Some(17));
        assert_eq!(parse_tag(b"W/17"), Some(17));
        assert_eq!(parse_tag(b"W/007"), Some(7));
        assert_eq!(parse_tag(b"W/17-gzip"), Some(17));
        assert_eq!(parse_tag(b"17-gzip"), Some(17));
    }

    #[test]
    fn anything_else_is_no_tag() {
        let texts: [&[u8]; 16] = [
            b"-gzip",
            b"1gzip",
            b"1-gzip-gzip",
            b"",
            b"W/",
            b"w/1",
            b"W/W/1",
            b"\"1\"",
            b"W/\"1\"",
            b"1 ",
            b" 1",
            b"+1",
            b"-1",
            b"1, 2",
            b"abc",
            b"4294967296",
        ];
        for text in texts {
            assert_eq!(parse_tag(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_we_send_as_etag_comes_back_as_tag(tag: u32) {
            prop_assert_eq!(parse_tag(format!("W/{tag}").as_bytes()), Some(tag));
        }

        #[test]
        fn any_bytes_are_judged_without_panic(text: Vec<u8>) {
            let _ = parse_tag(&text);
        }
    }
}
