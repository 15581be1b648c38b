//! How JSON is read, wherever it comes from: as it was meant.
//!
//! * A byte order mark before the text is skipped (RFC 8259 §8.1).
//! * Half of a surrogate pair, as a text that was cut inside an emoji has it (`"fun \ud83d"`), is U+FFFD, as it is in browsers.

use std::borrow::Cow;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// `\ud83d`
const ESCAPE_BYTES: usize = 6;

/// The text as a strict reader takes it. Borrowed, unless a half had to be replaced; the length is the same but for the byte order mark.
pub fn mended(text: &[u8]) -> Cow<'_, [u8]> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut mended: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &text[at..]) {
        let start = at + found;
        at = match (surrogate_at(text, start), surrogate_at(text, start + ESCAPE_BYTES)) {
            // Not even that: `\n`, `\\`, `\u00e9`.
            (None, _) => (start + 2).min(text.len()),
            (Some(Half::High), Some(Half::Low)) => start + 2 * ESCAPE_BYTES,
            (Some(_), _) => {
                let mended = mended.get_or_insert_with(|| text.to_vec());
                mended[start..start + ESCAPE_BYTES].copy_from_slice(br"\ufffd");
                start + ESCAPE_BYTES
            }
        };
    }
    mended.map_or(Cow::Borrowed(text), Cow::Owned)
}

#[derive(Clone, Copy)]
enum Half {
    High,
    Low,
}

/// The half of a pair that is written there.
fn surrogate_at(text: &[u8], at: usize) -> Option<Half> {
    let [b'\\', b'u', digits @ ..] = text.get(at..at + ESCAPE_BYTES)? else {
        return None;
    };
    match digits {
        [b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', rest @ ..] if rest.iter().all(u8::is_ascii_hexdigit) => {
            Some(Half::High)
        }
        [b'd' | b'D', b'c'..=b'f' | b'C'..=b'F', rest @ ..] if rest.iter().all(u8::is_ascii_hexdigit) => {
            Some(Half::Low)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_of_pairs_are_replaced_and_nothing_else() {
        for (text, expected) in [
            (r#""fun \ud83d""#, r#""fun \ufffd""#),
            (r#""\uDE00 fun""#, r#""\ufffd fun""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\\ude00""#, r#""\ufffd\\ude00""#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
            ("\u{feff}{\"a\":\"\\ud83d\"}", r#"{"a":"\ufffd"}"#),
        ] {
            assert_eq!(mended(text.as_bytes()), expected.as_bytes(), "{text}");
        }
        for same in [
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#""\\\\ud83d""#,
            r#""\ud83""#,
            r#""\ud83x""#,
            r#""\u00e9\n\/""#,
            "\\",
            "\\u",
            "",
            "a\u{feff}",
        ] {
            assert!(
                matches!(mended(same.as_bytes()), Cow::Borrowed(text) if text == same.as_bytes()),
                "{same}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_of_a_language_with_utf16_strings_is_taken(units in prop::collection::vec(any::<u16>(), 0..40)) {
            let escaped: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let text = format!("\"{escaped}\"");
            let read: String = serde_json::from_slice(&mended(text.as_bytes())).unwrap();
            prop_assert_eq!(read, String::from_utf16_lossy(&units));
        }
    }
}
