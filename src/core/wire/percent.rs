//! Percent-decoding of the values of directives with variables, as in the C module.

/// Decodes once; `+` stays, an incomplete escape becomes what nginx' `ngx_unescape_uri` makes of it: `%zz` becomes
/// `zz`, `%%` becomes `%`, `%4z` and an escape cut off by the end vanish.
pub fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(percent) = memchr::memchr(b'%', rest) {
        decoded.extend_from_slice(&rest[..percent]);
        rest = &rest[percent + 1..];
        let [first, tail @ ..] = rest else { break };
        rest = tail;
        let Some(high) = nibble(*first) else {
            decoded.push(*first);
            continue;
        };
        let [second, tail @ ..] = rest else { break };
        rest = tail;
        if let Some(low) = nibble(*second) {
            decoded.push(high << 4 | low);
        }
    }
    decoded.extend_from_slice(rest);
    decoded
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Escapes all bytes that have a meaning in a URI.
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte),
            _ => {
                let digit = |nibble: u8| b"0123456789ABCDEF"[usize::from(nibble)];
                out.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), all);
        assert_eq!(encode(b"a-1 /?"), b"a-1%20%2F%3F");
    }

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(decode(b""), b"");
        assert_eq!(decode(b"plain"), b"plain");
        assert_eq!(decode(b"a%2Fb"), b"a/b");
        assert_eq!(decode(b"a%2fb"), b"a/b");
        assert_eq!(decode(b"a%252Fb"), b"a%2Fb");
        assert_eq!(decode(b"%00%ff%E2%82%AC"), b"\0\xff\xe2\x82\xac");
    }

    #[test]
    fn a_plus_stays_a_plus() {
        assert_eq!(decode(b"a+b%20c"), b"a+b c");
    }

    #[test]
    fn a_date_comes_out_readable() {
        assert_eq!(
            decode(b"Sun,%2022%20Nov%202026%2005:24:31%20GMT"),
            b"Sun, 22 Nov 2026 05:24:31 GMT"
        );
    }

    #[test]
    fn broken_escapes_are_left_as_nginx_leaves_them() {
        assert_eq!(decode(b"a%zzb"), b"azzb");
        assert_eq!(decode(b"a%4zb"), b"ab");
        assert_eq!(decode(b"a%%41"), b"a%41");
        assert_eq!(decode(b"a%"), b"a");
        assert_eq!(decode(b"a%4"), b"a");
    }

    proptest! {
        #[test]
        fn any_bytes_survive_being_escaped(bytes: Vec<u8>) {
            let escaped: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(escaped.as_bytes()), bytes);
        }

        #[test]
        fn nothing_grows(bytes: Vec<u8>) {
            prop_assert!(decode(&bytes).len() <= bytes.len());
        }
    }
}
