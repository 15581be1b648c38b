//! The channels that a token opens.

use super::Rejection;

/// Grants in one token, for publishing and subscribing together.
const MOST: usize = 64;

/// Bytes of one grant.
const LONGEST: usize = 255;

/// A set of channels: single ids, and all ids with a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    ids: Vec<Box<[u8]>>,
    prefixes: Vec<Box<[u8]>>,
}

/// What a star at the end of a grant means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Star {
    /// `news.*`: all ids below `news.`; a star after anything else is no channel, since ids have none.
    AfterDot,
    /// `news*`: all ids that begin with `news`; `*`: all.
    Anywhere,
    /// `*` alone: all ids.
    Alone,
    /// Nothing.
    None,
}

impl Grants {
    /// These ids and no other.
    pub fn of_ids(ids: impl IntoIterator<Item = Vec<u8>>) -> Grants {
        Grants {
            ids: ids.into_iter().map(Into::into).collect(),
            prefixes: Vec::new(),
        }
    }

    /// Adds what one text grants.
    pub(super) fn add(&mut self, text: &str, star: Star) -> Result<(), Rejection> {
        if text.len() > LONGEST {
            return Err(Rejection::Grants);
        }
        let prefix = match star {
            Star::None => None,
            Star::AfterDot => text
                .strip_suffix('*')
                .filter(|prefix| prefix.len() > 1 && prefix.ends_with('.')),
            Star::Anywhere => text.strip_suffix('*'),
            Star::Alone => (text == "*").then_some(""),
        };
        match prefix {
            Some(prefix) => self.prefixes.push(prefix.as_bytes().into()),
            None => self.ids.push(text.as_bytes().into()),
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len() + self.prefixes.len()
    }

    /// Is this channel granted?
    pub fn allows(&self, id: &[u8]) -> bool {
        self.ids.iter().any(|granted| **granted == *id) || self.allows_all_from(id)
    }

    /// Is every channel granted whose id begins with `start`?
    pub fn allows_all_from(&self, start: &[u8]) -> bool {
        self.prefixes.iter().any(|prefix| start.starts_with(prefix))
    }
}

/// Refuses a token that grants too much.
pub(super) fn check_number(grants: [&Grants; 2]) -> Result<(), Rejection> {
    if grants.iter().map(|grants| grants.len()).sum::<usize>() > MOST {
        return Err(Rejection::Grants);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(texts: &[&str], star: Star) -> Grants {
        let mut grants = Grants::default();
        texts.iter().for_each(|text| grants.add(text, star).unwrap());
        grants
    }

    #[test]
    fn a_trailing_dot_and_star_grant_all_ids_below() {
        let grants = grants(&["news", "user.42.*", "a*", "*", ".*"], Star::AfterDot);
        for id in ["news", "user.42.x", "user.42.x.y", "user.42."] {
            assert!(grants.allows(id.as_bytes()), "{id}");
        }
        for id in ["", "new", "news.x", "user.42", "user.421", "ab", "x", ".x", "USER.42.x"] {
            assert!(!grants.allows(id.as_bytes()), "{id}");
        }
    }

    #[test]
    fn a_trailing_star_grants_what_begins_alike_in_a_dialect_that_has_it() {
        let some = grants(&["https://example.com/books/*", "x"], Star::Anywhere);
        assert!(some.allows(b"https://example.com/books/1"));
        assert!(some.allows(b"https://example.com/books/"));
        assert!(!some.allows(b"https://example.com/book"));
        let all = grants(&["*"], Star::Anywhere);
        assert!(all.allows(b"") && all.allows(b"anything") && all.allows_all_from(b""));
        assert!(
            !some.allows_all_from(b"")
                && !some.allows_all_from(b"https://example.com/book")
                && !some.allows_all_from(b"x")
        );
        assert!(some.allows_all_from(b"https://example.com/books/1"));
    }

    #[test]
    fn without_stars_a_star_is_a_letter() {
        let grants = grants(&["a.*", "*"], Star::None);
        assert!(!grants.allows(b"a.b") && !grants.allows(b"a"));
    }

    #[test]
    fn a_star_alone_grants_everything_and_any_other_nothing_more() {
        assert!(grants(&["*"], Star::Alone).allows(b"x"));
        let grants = grants(&["a*", "a.*"], Star::Alone);
        assert!(!grants.allows(b"ab") && !grants.allows(b"a.b"));
    }

    #[test]
    fn nothing_grants_nothing() {
        assert!(!Grants::default().allows(b"") && !Grants::default().allows_all_from(b""));
    }
}
