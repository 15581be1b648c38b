//! The value of `push_stream_padding_by_user_agent`: `REGEX,HEADERMIN,MESSAGEMIN:REGEX,...`.

/// One group: minimum sizes for matching user agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// A regular expression; without `:`.
    pub agents: &'a [u8],
    /// Minimum bytes of the header, with padding.
    pub header_min: u32,
    /// Minimum bytes of a message, with padding.
    pub message_min: u32,
}

/// Why a value is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed<'a> {
    /// The text from here on contains no group.
    #[error("padding pattern not match the value {}", String::from_utf8_lossy(.0))]
    NoGroup(&'a [u8]),
    /// The text here is not a group, but a later part is.
    #[error("error applying padding pattern to {}", String::from_utf8_lossy(.0))]
    NotThisGroup(&'a [u8]),
}

/// The groups, up to the first malformed one. A `:` at the end is allowed.
pub fn groups(text: &[u8]) -> impl Iterator<Item = Result<Group<'_>, Malformed<'_>>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (written, after) = split(rest);
        let read = group(written).ok_or_else(|| {
            if rest.split(|&byte| byte == b':').any(|part| group(part).is_some()) {
                Malformed::NotThisGroup(rest)
            } else {
                Malformed::NoGroup(rest)
            }
        });
        rest = if read.is_ok() { after } else { &[] };
        Some(read)
    })
}

/// The text up to the next `:`, and what follows it.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b':') {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &[]),
    }
}

/// The last two numbers count: the expression may contain commas.
fn group(text: &[u8]) -> Option<Group<'_>> {
    let mut parts = text.rsplitn(3, |&byte| byte == b',');
    let message_min = number(parts.next()?)?;
    let header_min = number(parts.next()?)?;
    Some(Group {
        agents: parts.next()?,
        header_min,
        message_min,
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(agents: &str, header_min: u32, message_min: u32) -> Group<'_> {
        Group {
            agents: agents.as_bytes(),
            header_min,
            message_min,
        }
    }

    fn read(text: &str) -> Result<Vec<Group<'_>>, Malformed<'_>> {
        groups(text.as_bytes()).collect()
    }

    #[test]
    fn groups_are_read_in_order() {
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(read("[T|t]est,1024,508"), Ok(vec![group("[T|t]est", 1024, 508)]));
        assert_eq!(
            read("a{1,2},0,1:,4294967295,3:"),
            Ok(vec![group("a{1,2}", 0, 1), group("", u32::MAX, 3)])
        );
    }

    #[test]
    fn what_is_no_group_is_told() {
        for text in ["a", "a,1", "a,1,b", "a,1,-1", "a,1,4294967296", "a,+1,1", "::", "a,1,"] {
            assert_eq!(read(text), Err(Malformed::NoGroup(text.as_bytes())), "{text}");
        }
        assert_eq!(read("x:a,1,2"), Err(Malformed::NotThisGroup(b"x:a,1,2")));
        assert_eq!(read("a,1,2:x"), Err(Malformed::NoGroup(b"x")));
        let told = read("x:a,1,2").unwrap_err().to_string();
        assert_eq!(told, "error applying padding pattern to x:a,1,2");
    }
}
