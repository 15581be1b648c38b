//! What makes a text harmless where a template puts it: in a JSON string, in HTML, or anywhere.
//!
//! Each result is one line of UTF-8, whatever the text. What is not UTF-8 becomes U+FFFD, as a browser shows it; only
//! base64 keeps it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// How a value is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Escape {
    /// The inside of a JSON string, which may also stand in a script in HTML.
    Json,
    /// HTML text, or the value of an attribute in quotes of either kind.
    Html,
    /// Base64 (RFC 4648, section 4), with padding.
    Base64,
}

impl Escape {
    /// The names as written in a configuration, in any case.
    pub const ALL: [(&'static str, Escape); 3] = [
        ("json", Escape::Json),
        ("html", Escape::Html),
        ("base64", Escape::Base64),
    ];

    pub fn push(self, text: &[u8], out: &mut Vec<u8>) {
        match self {
            Escape::Json => push_replaced(text, json, out),
            Escape::Html => push_replaced(text, html, out),
            Escape::Base64 => {
                let start = out.len();
                out.resize(start + text.len().div_ceil(3) * 4, 0);
                let written = STANDARD.encode_slice(text, &mut out[start..]);
                debug_assert_eq!(written.ok(), Some(out.len() - start));
            }
        }
    }
}

/// Appends the text with what `replacement` says for the character at the beginning of a rest of it.
fn push_replaced(text: &[u8], replacement: impl Fn(&[u8]) -> Option<&'static str>, out: &mut Vec<u8>) {
    out.reserve(text.len());
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        let mut at = 0;
        while at < rest.len() {
            match replacement(&rest[at..]) {
                None => at += 1,
                Some(replacement) => {
                    out.extend_from_slice(&rest[..at]);
                    out.extend_from_slice(replacement.as_bytes());
                    // Only the two line separators that scripts know have more than one byte.
                    rest = &rest[at + if rest[at] < 0x80 { 1 } else { 3 }..];
                    at = 0;
                }
            }
        }
        out.extend_from_slice(rest);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// The controls of ASCII.
const CONTROLS: [&str; 0x20] = [
    r"\u0000", r"\u0001", r"\u0002", r"\u0003", r"\u0004", r"\u0005", r"\u0006", r"\u0007", r"\b", r"\t", r"\n",
    r"\u000b", r"\f", r"\r", r"\u000e", r"\u000f", r"\u0010", r"\u0011", r"\u0012", r"\u0013", r"\u0014", r"\u0015",
    r"\u0016", r"\u0017", r"\u0018", r"\u0019", r"\u001a", r"\u001b", r"\u001c", r"\u001d", r"\u001e", r"\u001f",
];

fn json(rest: &[u8]) -> Option<&'static str> {
    match rest[0] {
        control @ ..0x20 => Some(CONTROLS[usize::from(control)]),
        b'"' => Some("\\\""),
        b'\\' => Some("\\\\"),
        // A script in HTML would end at `</script>`.
        b'<' => Some(r"\u003c"),
        // Line ends in the strings of scripts, to browsers before 2018.
        0xe2 if rest.starts_with("\u{2028}".as_bytes()) => Some(r"\u2028"),
        0xe2 if rest.starts_with("\u{2029}".as_bytes()) => Some(r"\u2029"),
        _ => None,
    }
}

fn html(rest: &[u8]) -> Option<&'static str> {
    match rest[0] {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'"' => Some("&quot;"),
        b'\'' => Some("&#39;"),
        // As they are, they would end a line of an event, or of a poll's answer.
        b'\n' => Some("&#10;"),
        b'\r' => Some("&#13;"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(escape: Escape, text: &[u8]) -> String {
        let mut out = b"before".to_vec();
        escape.push(text, &mut out);
        String::from_utf8(out)
            .unwrap()
            .strip_prefix("before")
            .unwrap()
            .to_owned()
    }

    #[test]
    fn json_is_the_inside_of_a_string() {
        assert_eq!(
            escaped(
                Escape::Json,
                b"say \"hi\" \\ and\r\n\t\x08\x0c\x0b\x1f</script> \xf0\x9f\x98\x80 it's"
            ),
            "say \\\"hi\\\" \\\\ and\\r\\n\\t\\b\\f\\u000b\\u001f\\u003c/script> \u{1f600} it's"
        );
        assert_eq!(
            escaped(Escape::Json, "\u{2028}a\u{2029}\u{202a}".as_bytes()),
            "\\u2028a\\u2029\u{202a}"
        );
        assert_eq!(escaped(Escape::Json, b""), "");
    }

    #[test]
    fn html_is_text_and_the_value_of_an_attribute() {
        assert_eq!(
            escaped(Escape::Html, b"<b title=\"x\" id='y'>&amp;\r\n"),
            "&lt;b title=&quot;x&quot; id=&#39;y&#39;&gt;&amp;amp;&#13;&#10;"
        );
    }

    #[test]
    fn base64_is_any_bytes() {
        // RFC 4648, section 10.
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(escaped(Escape::Base64, text.as_bytes()), expected);
        }
        assert_eq!(escaped(Escape::Base64, b"\xfb\xff\0"), "+/8A");
    }

    #[test]
    fn what_is_not_utf_8_is_replaced() {
        for escape in [Escape::Json, Escape::Html] {
            assert_eq!(escaped(escape, b"a\xffb\xe2\x80"), "a\u{fffd}b\u{fffd}");
        }
    }

    /// Texts that are likely to hit what is escaped.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "[\"\\\\<>&'a-z\r\n\t\0\u{2028}\u{2029}ä😀]{0,6}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..6),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn json_reads_back(text in text()) {
            let inside = escaped(Escape::Json, &text);
            let read: String = serde_json::from_str(&format!("\"{inside}\"")).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&text));
        }

        #[test]
        fn json_is_as_serde_writes_it_but_for_what_html_would_read(text in text()) {
            let text = String::from_utf8_lossy(&text).into_owned();
            let expected = serde_json::to_string(&text).unwrap();
            let expected = expected[1..expected.len() - 1]
                .replace('<', "\\u003c")
                .replace('\u{2028}', "\\u2028")
                .replace('\u{2029}', "\\u2029");
            prop_assert_eq!(escaped(Escape::Json, text.as_bytes()), expected);
        }

        #[test]
        fn html_is_what_another_implementation_writes_and_reads(text in text()) {
            let lossy = String::from_utf8_lossy(&text).into_owned();
            let written = escaped(Escape::Html, &text);
            let expected = html_escape::encode_quoted_attribute(&lossy).into_owned();
            prop_assert_eq!(written.replace("&#39;", "&#x27;").replace("&#10;", "\n").replace("&#13;", "\r"), expected);
            prop_assert_eq!(html_escape::decode_html_entities(&written), lossy);
        }

        #[test]
        fn base64_reads_back(text: Vec<u8>) {
            prop_assert_eq!(STANDARD.decode(escaped(Escape::Base64, &text)).unwrap(), text);
        }

        #[test]
        fn nothing_ends_a_line_or_a_string(text in text()) {
            for (_, escape) in Escape::ALL {
                let out = escaped(escape, &text);
                prop_assert!(!out.contains(['\r', '\n', '<']), "{out:?}");
                prop_assert!(escape == Escape::Html || !out.replace("\\\\", "").replace("\\\"", "").contains('"'));
                prop_assert!(escape != Escape::Html || !out.contains(['"', '\'', '>']));
            }
        }
    }
}
