//! The arguments of a request's URI.

use super::percent;

/// Name and value of each argument, percent-decoded, in order; without `=`, no value.
pub fn arguments(query: &[u8]) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    query
        .split(|&byte| byte == b'&')
        .filter(|argument| !argument.is_empty())
        .map(|argument| match memchr::memchr(b'=', argument) {
            Some(equals) => (
                percent::decode(&argument[..equals]),
                Some(percent::decode(&argument[equals + 1..])),
            ),
            None => (percent::decode(argument), None),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Vec<(String, Option<String>)> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        arguments(query.as_bytes())
            .map(|(name, value)| (text(name), value.map(text)))
            .collect()
    }

    #[test]
    fn arguments_have_a_value_or_none() {
        let some = |name: &str, value: &str| (name.to_string(), Some(value.to_string()));
        assert_eq!(read(""), []);
        assert_eq!(read("&&"), []);
        assert_eq!(
            read("list&prefix=a%26b+c&after=&limit=1=2"),
            [
                ("list".to_string(), None),
                some("prefix", "a&b+c"),
                some("after", ""),
                some("limit", "1=2"),
            ]
        );
    }
}
