//! The channels path: the channels that a request names.
//!
//! ```text
//! room.b18.beautiful.b3/news/x.b1.b2
//! └──────┬─────────┘ └┬┘└┬─┘ └─┬─┘└┬┘
//!        id    backtrack id   id  backtrack
//! ```
//!
//! A `.bN` counts only at the end of an element. Empty elements are channels with the empty id, except after the last
//! slash: `/a` names "" and `a`, `a/` names only `a`.

/// One element of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub id: &'a [u8],
    /// `.bN`; 0 if missing. A number too large to parse is `u32::MAX`: everything stored.
    pub backtrack: u32,
}

/// Splits a decoded path into its elements.
pub fn parse(path: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let element;
        (element, rest) = match memchr::memchr(b'/', rest) {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        Some(segment(element))
    })
}

/// Is this id reserved for statistics? `ALL` and ids with `*` are; publishers and subscribers may not use them.
pub fn is_reserved(id: &[u8]) -> bool {
    id == b"ALL" || memchr::memchr(b'*', id).is_some()
}

/// Does this text, read as a path, name one channel with exactly this id?
pub fn is_one_id(text: &[u8]) -> bool {
    !text.is_empty() && memchr::memchr(b'/', text).is_none() && segment(text).id == text
}

fn segment(element: &[u8]) -> Segment<'_> {
    let digits = element.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, number) = element.split_at(element.len() - digits);
    match head.strip_suffix(b".b") {
        Some(id) if digits > 0 => Segment {
            id,
            backtrack: saturating_number(number),
        },
        _ => Segment {
            id: element,
            backtrack: 0,
        },
    }
}

fn saturating_number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |number: u32, digit| {
        number.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn elements(path: &str) -> Vec<(&str, u32)> {
        parse(path.as_bytes())
            .map(|segment| (str::from_utf8(segment.id).unwrap(), segment.backtrack))
            .collect()
    }

    #[test]
    fn one_id_is_a_path_of_its_own() {
        for id in ["a", "a b", ".b", "x.b", "a.b3.c", "ALL"] {
            assert!(is_one_id(id.as_bytes()), "{id}");
        }
        for path in ["", "/", "/a", "a/", "a/b", "a.b3", ".b3"] {
            assert!(!is_one_id(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn one_channel_or_several_with_or_without_backtrack() {
        assert_eq!(elements("ch1"), [("ch1", 0)]);
        assert_eq!(elements("ch1.b5"), [("ch1", 5)]);
        assert_eq!(elements("ch1/ch2.b3"), [("ch1", 0), ("ch2", 3)]);
        assert_eq!(elements("ch1.b4/ch2.b5/ch3"), [("ch1", 4), ("ch2", 5), ("ch3", 0)]);
    }

    #[test]
    fn only_the_end_of_an_element_is_a_backtrack() {
        assert_eq!(elements("a.b18.c"), [("a.b18.c", 0)]);
        assert_eq!(elements("room.b18.beautiful.b3"), [("room.b18.beautiful", 3)]);
        assert_eq!(elements("x.b1.b2"), [("x.b1", 2)]);
        assert_eq!(elements("x.b0"), [("x", 0)]);
        assert_eq!(elements("x.b007"), [("x", 7)]);
    }

    #[test]
    fn what_only_looks_like_a_backtrack_belongs_to_the_id() {
        for id in ["x.b", "x.b-1", "x.B3", "x.b3 ", "xb3", "x.b3a", "b3", "3", ".b", "x.bb"] {
            assert_eq!(elements(id), [(id, 0)]);
        }
    }

    #[test]
    fn a_number_too_large_to_parse_means_everything_stored() {
        assert_eq!(elements("x.b4294967295"), [("x", u32::MAX)]);
        assert_eq!(elements("x.b4294967296"), [("x", u32::MAX)]);
        assert_eq!(elements("x.b99999999999999999999999999/y"), [("x", u32::MAX), ("y", 0)]);
    }

    #[test]
    fn empty_elements_are_the_empty_id_but_a_trailing_slash_adds_nothing() {
        assert_eq!(elements(""), []);
        assert_eq!(elements("/"), [("", 0)]);
        assert_eq!(elements("/a"), [("", 0), ("a", 0)]);
        assert_eq!(elements("//a"), [("", 0), ("", 0), ("a", 0)]);
        assert_eq!(elements("a//b"), [("a", 0), ("", 0), ("b", 0)]);
        assert_eq!(elements("a/"), [("a", 0)]);
        assert_eq!(elements("a//"), [("a", 0), ("", 0)]);
        assert_eq!(elements(".b3"), [("", 3)]);
        assert_eq!(elements("/.b3/"), [("", 0), ("", 3)]);
    }

    #[test]
    fn the_same_id_twice_stays_twice() {
        assert_eq!(elements("a/a.b2"), [("a", 0), ("a", 2)]);
    }

    #[test]
    fn an_id_may_hold_any_byte() {
        let ids: Vec<_> = parse(b"a b\0\xff\n%2F~text~\"<.b1").collect();
        assert_eq!(
            ids,
            [Segment {
                id: b"a b\0\xff\n%2F~text~\"<",
                backtrack: 1
            }]
        );
    }

    #[test]
    fn all_in_capitals_and_a_star_anywhere_are_reserved() {
        for id in [&b"ALL"[..], b"*", b"a*", b"*a", b"a*b"] {
            assert!(is_reserved(id), "{id:?}");
        }
        for id in [&b""[..], b"all", b"All", b"ALLa", b"a"] {
            assert!(!is_reserved(id), "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn a_joined_path_gives_back_its_channels(
            channels in prop::collection::vec(("[a-z.]{1,8}c", prop::option::of(any::<u32>())), 1..9)
        ) {
            let joined: Vec<_> = channels
                .iter()
                .map(|(id, backtrack)| backtrack.map_or_else(|| id.clone(), |n| format!("{id}.b{n}")))
                .collect();
            let expected: Vec<_> = channels.iter().map(|(id, n)| (id.as_str(), n.unwrap_or(0))).collect();
            let path = joined.join("/");
            prop_assert_eq!(elements(&path), expected);
        }

        #[test]
        fn no_byte_is_lost_and_none_invented(path in prop::collection::vec(prop::sample::select(&b"/.b0129ax\0"[..]), 0..40)) {
            let ids: usize = parse(&path).map(|segment| segment.id.len()).sum();
            prop_assert!(ids <= path.len());
            let slashes = path.iter().filter(|byte| **byte == b'/').count();
            let expected = slashes + usize::from(path.last().is_some_and(|byte| *byte != b'/'));
            prop_assert_eq!(parse(&path).count(), expected);
            prop_assert!(parse(&path).all(|segment| !segment.id.contains(&b'/')));
        }
    }
}
