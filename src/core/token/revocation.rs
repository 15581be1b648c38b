//! Revoked tokens: a file with one `jti=…` or `sub=…` a line.

use std::collections::HashSet;

/// Tokens and subjects that are not valid any more.
#[derive(Debug, Default)]
pub struct Revocations {
    ids: HashSet<Box<str>>,
    subjects: HashSet<Box<str>>,
}

impl Revocations {
    /// Reads a file. Empty lines and those that begin with `#` are skipped; the error names the first other line that
    /// revokes nothing.
    pub fn parse(text: &[u8]) -> Result<Revocations, String> {
        let text = str::from_utf8(text).map_err(|_| "is not UTF-8".to_owned())?;
        let mut revocations = Revocations::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (set, value) = match line.split_once('=') {
                Some(("jti", value)) => (&mut revocations.ids, value),
                Some(("sub", value)) => (&mut revocations.subjects, value),
                _ => return Err(format!("line {}: neither jti=ID nor sub=SUBJECT", index + 1)),
            };
            if value.is_empty() {
                return Err(format!("line {}: nothing after the =", index + 1));
            }
            set.insert(value.into());
        }
        Ok(revocations)
    }

    /// Is the token with this id or subject revoked?
    pub fn revokes(&self, id: Option<&str>, subject: Option<&str>) -> bool {
        id.is_some_and(|id| self.ids.contains(id)) || subject.is_some_and(|subject| self.subjects.contains(subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_subjects_are_revoked_line_by_line() {
        let revocations = Revocations::parse(b"# gone\njti=a=b\r\n\n  sub=42  \n").unwrap();
        assert!(revocations.revokes(Some("a=b"), None));
        assert!(revocations.revokes(Some("other"), Some("42")));
        assert!(!revocations.revokes(Some("42"), Some("a=b")));
        assert!(!revocations.revokes(None, None));
        assert!(!Revocations::parse(b"").unwrap().revokes(Some(""), Some("")));
    }

    #[test]
    fn a_line_that_revokes_nothing_is_an_error() {
        for text in ["jti", "jti=", "sub= ", "id=3", "JTI=3", "jti = 3"] {
            assert!(Revocations::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Revocations::parse(b"sub=\xff").is_err());
        assert_eq!(
            Revocations::parse(b"sub=1\nx").unwrap_err(),
            "line 2: neither jti=ID nor sub=SUBJECT"
        );
    }
}
