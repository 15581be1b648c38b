//! Ordered event ids, such as `1795325070123-42`.
//!
//! An ordered id is one to four groups of one to twenty decimal digits, joined by `-`. Each is a number below 2^64
//! without leading zeros. Groups compare as numbers from the left, and a missing group sorts before any present one:
//! `7` < `7-0` < `7-1` < `10`. All other ids can only be compared for equality.

use std::cmp::Ordering;
use std::fmt;

/// Maximum number of groups of an ordered id.
pub const MAX_GROUPS: usize = 4;

/// Maximum bytes of an ordered id's text: four groups of twenty digits, and the separators.
pub const MAX_LEN: usize = MAX_GROUPS * 20 + MAX_GROUPS - 1;

/// An ordered id. Its groups determine its text, so equal ids have the same text.
#[derive(Clone, Copy, Eq)]
pub struct OrderedId {
    /// Missing groups are 0.
    groups: [u64; MAX_GROUPS],
    len: u8,
}

impl OrderedId {
    /// The lowest id.
    pub const LOWEST: OrderedId = OrderedId {
        groups: [0; MAX_GROUPS],
        len: 1,
    };

    /// The highest id.
    pub const HIGHEST: OrderedId = OrderedId {
        groups: [u64::MAX; MAX_GROUPS],
        len: MAX_GROUPS as u8,
    };

    /// None if the text is not an ordered id.
    pub fn parse(text: &[u8]) -> Option<OrderedId> {
        if text.is_empty() || text.len() > MAX_LEN {
            return None;
        }
        let mut id = OrderedId {
            groups: [0; MAX_GROUPS],
            len: 0,
        };
        for group in text.split(|&byte| byte == b'-') {
            *id.groups.get_mut(usize::from(id.len))? = parse_group(group)?;
            id.len += 1;
        }
        Some(id)
    }

    /// An id of two groups, as assigned by the zone.
    pub fn pair(first: u64, second: u64) -> OrderedId {
        OrderedId {
            groups: [first, second, 0, 0],
            len: 2,
        }
    }

    /// From its groups; those behind the first `len` are ignored. None if `len` is 0 or above [`MAX_GROUPS`].
    pub fn from_groups(groups: [u64; MAX_GROUPS], len: usize) -> Option<OrderedId> {
        if len == 0 || len > MAX_GROUPS {
            return None;
        }
        let mut id = OrderedId {
            groups: [0; MAX_GROUPS],
            len: len as u8,
        };
        id.groups[..len].copy_from_slice(&groups[..len]);
        Some(id)
    }

    /// At least one group.
    pub fn groups(&self) -> &[u64] {
        &self.groups[..usize::from(self.len)]
    }

    /// Appends its text.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (index, &group) in self.groups().iter().enumerate() {
            if index > 0 {
                out.push(b'-');
            }
            super::push_number(group, out);
        }
    }

    pub fn to_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        self.write(&mut text);
        text
    }
}

fn parse_group(digits: &[u8]) -> Option<u64> {
    let (&first, rest) = digits.split_first()?;
    if first == b'0' && !rest.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

impl PartialEq for OrderedId {
    fn eq(&self, other: &Self) -> bool {
        self.groups() == other.groups()
    }
}

impl Ord for OrderedId {
    fn cmp(&self, other: &Self) -> Ordering {
        // A slice that is a prefix of the other is the lesser.
        self.groups().cmp(other.groups())
    }
}

impl PartialOrd for OrderedId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for OrderedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_text()))
    }
}

impl fmt::Debug for OrderedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Maximum bytes of an event id or an event type, where they are checked.
pub const MAX_CHECKED_LEN: usize = 255;

/// Is the text acceptable as an event id or event type, where they are checked? No control bytes, and not too long.
pub fn is_acceptable(text: &[u8]) -> bool {
    text.len() <= MAX_CHECKED_LEN && !text.iter().any(u8::is_ascii_control)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> OrderedId {
        OrderedId::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text} is an ordered id"))
    }

    #[test]
    fn numbers_joined_by_a_hyphen_are_ordered_ids() {
        for text in ["0", "7", "18446744073709551615", "1-0", "1795325070123-42", "1-2-3-4"] {
            assert_eq!(id(text).to_text(), text.as_bytes());
        }
    }

    #[test]
    fn anything_else_is_not() {
        let long = "1".repeat(MAX_LEN + 1);
        let texts = [
            "",
            "-",
            "1-",
            "-1",
            "1--2",
            "01",
            "00",
            "1-02",
            "1-2-3-4-5",
            "18446744073709551616",
            "1e3",
            "+1",
            " 1",
            "1 ",
            "a",
            "1.2",
            "1_2",
            "\u{661}",
            &long,
        ];
        for text in texts {
            assert_eq!(OrderedId::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn groups_compare_as_numbers_and_a_missing_one_comes_first() {
        let ascending = [
            "0", "0-0", "1", "1-5", "1-5-0", "1-5-1", "1-10", "2", "9", "10", "10-0-0-1", "100",
        ];
        for pair in ascending.windows(2) {
            assert!(id(pair[0]) < id(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn an_id_with_control_bytes_or_too_long_is_not_acceptable() {
        assert!(is_acceptable(b""));
        assert!(is_acceptable("täglich ~ 1".as_bytes()));
        assert!(is_acceptable(&[b'x'; 255]));
        assert!(!is_acceptable(&[b'x'; 256]));
        for byte in (0..0x20).chain([0x7f]) {
            assert!(!is_acceptable(&[b'a', byte]), "{byte:#x}");
        }
    }

    fn groups() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(prop_oneof![0..12u64, any::<u64>()], 1..=MAX_GROUPS)
    }

    fn from(groups: &[u64]) -> OrderedId {
        let mut padded = [7; MAX_GROUPS];
        padded[..groups.len()].copy_from_slice(groups);
        OrderedId::from_groups(padded, groups.len()).unwrap()
    }

    proptest! {
        #[test]
        fn the_text_is_read_back(groups in groups()) {
            let id = from(&groups);
            let text = groups.iter().map(u64::to_string).collect::<Vec<_>>().join("-");
            prop_assert_eq!(String::from_utf8(id.to_text()).unwrap(), text.clone());
            prop_assert_eq!(OrderedId::parse(text.as_bytes()), Some(id));
            prop_assert!(text.len() <= MAX_LEN);
        }

        #[test]
        fn the_order_is_total_and_that_of_the_groups(a in groups(), b in groups(), c in groups()) {
            let (x, y, z) = (from(&a), from(&b), from(&c));
            prop_assert_eq!(x.cmp(&y), y.cmp(&x).reverse());
            prop_assert_eq!(x == y, a == b);
            if x <= y && y <= z {
                prop_assert!(x <= z);
            }
            let differing = a.iter().zip(&b).find(|(a, b)| a != b);
            let expected = differing.map_or(a.len().cmp(&b.len()), |(a, b)| a.cmp(b));
            prop_assert_eq!(x.cmp(&y), expected);
        }

        #[test]
        fn any_bytes_are_judged_and_what_is_accepted_is_its_own_text(
            text in prop_oneof![any::<Vec<u8>>(), "[0-9-]{0,30}".prop_map(String::into_bytes)]
        ) {
            if let Some(id) = OrderedId::parse(&text) {
                prop_assert_eq!(id.to_text(), text);
            }
        }
    }
}
