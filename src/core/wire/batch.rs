//! Batch publish: many messages in one request body, a JSON object per line (NDJSON), with a verdict per line in the
//! answer.
//!
//! ```text
//! {"channels": ["news", "sport"], "text": "Hello", "id": "7", "type": "note", "store": true}
//! {"channels": ["news"], "base64": "SGVsbG8="}
//! ```
//!
//! A line is read in one pass, without an intermediate tree of values: strings without escapes are borrowed from the
//! body. Any other form is refused, with the column where reading stopped: unknown and repeated keys, other types,
//! strings that are not valid Unicode, invalid base64, invalid channel ids.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::channel_path;
use super::event_id::OrderedId;
use super::statistics::{Channel, Format, Record};

/// Content type of a batch and of its answer.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// Maximum number of channels in one line: more than any subscriber follows at once, and few enough for one step of the
/// store.
pub const MAX_CHANNELS: usize = 255;

/// Maximum bytes of an event id or event type.
const MAX_FIELD: usize = 255;

/// One message, as given by its line.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// 1 to [`MAX_CHANNELS`] ids, literally.
    pub channels: Vec<Cow<'a, str>>,
    /// The message, byte for byte; may be empty.
    pub body: Cow<'a, [u8]>,
    pub event_id: Option<Cow<'a, str>>,
    pub event_type: Option<Cow<'a, str>>,
    /// Shall it be stored? None: the location's setting applies.
    pub store: Option<bool>,
}

/// Why a line is not a valid message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at column {column}")]
pub struct Malformed {
    pub reason: String,
    /// In bytes, starting at 1; 0 = before the line's first byte.
    pub column: usize,
}

/// Why a body is not an acceptable batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    #[error("More than {0} lines.")]
    Lines(usize),
    #[error("Line {line} is longer than {max} bytes.")]
    Line { line: usize, max: usize },
}

/// The body's non-empty lines, each with its number, starting at 1.
pub fn lines(body: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut rest = Some(body);
    let split = std::iter::from_fn(move || {
        let text = rest?;
        let (line, after) = match memchr::memchr(b'\n', text) {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        rest = after;
        Some(line)
    });
    (1..).zip(split).filter(|(_, line)| !line.iter().all(is_space))
}

/// Checks a body's limits. `max_line` in bytes, without the line end.
pub fn check(body: &[u8], max_lines: usize, max_line: usize) -> Result<(), TooLarge> {
    for (count, (number, line)) in lines(body).enumerate() {
        if count == max_lines {
            return Err(TooLarge::Lines(max_lines));
        }
        if line.len() > max_line {
            return Err(TooLarge::Line {
                line: number,
                max: max_line,
            });
        }
    }
    Ok(())
}

/// Is this byte JSON white space?
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Parses one line.
pub fn parse(line: &[u8]) -> Result<Line<'_>, Malformed> {
    // The deserializer would also accept an array with the values in order.
    if let Some(start) = line.iter().position(|byte| !is_space(byte))
        && line[start] != b'{'
    {
        return Err(Malformed {
            reason: "expected an object".into(),
            column: start + 1,
        });
    }
    let fields: Fields<'_> = serde_json::from_slice(line).map_err(malformed)?;
    let body = match (fields.text, fields.base64) {
        (Some(text), None) => match text.0 {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        (None, Some(bytes)) => Cow::Owned(bytes.0),
        (both, _) => {
            let reason = if both.is_some() {
                "both `text` and `base64`"
            } else {
                "missing field `text`"
            };
            return Err(Malformed {
                reason: reason.into(),
                column: line.len(),
            });
        }
    };
    Ok(Line {
        channels: fields.channels.0,
        body,
        event_id: fields.id.map(|id| id.0),
        event_type: fields.event_type.map(|event_type| event_type.0),
        store: fields.store,
    })
}

fn malformed(error: serde_json::Error) -> Malformed {
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    Malformed {
        reason: text.strip_suffix(&position).unwrap_or(&text).to_string(),
        column: error.column(),
    }
}

/// A line's keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    channels: Channels<'a>,
    #[serde(borrow, default, deserialize_with = "given")]
    text: Option<Text<'a>>,
    #[serde(default, deserialize_with = "given")]
    base64: Option<Base64>,
    #[serde(borrow, default, deserialize_with = "given")]
    id: Option<Field<'a>>,
    #[serde(borrow, default, rename = "type", deserialize_with = "given")]
    event_type: Option<Field<'a>>,
    #[serde(default, deserialize_with = "given")]
    store: Option<bool>,
}

/// Deserializes a key that may be missing, but not `null`.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A string that passes a check, borrowed if it has no escapes.
struct Checked<F>(&'static str, F);

impl<'de, T, F: FnOnce(Cow<'de, str>) -> Result<T, String>> Visitor<'de> for Checked<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<T, E> {
        (self.1)(Cow::Borrowed(text)).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(Cow::Owned(text.to_string())).map_err(E::custom)
    }
}

/// Any string.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Checked("a string", |text| Ok(Text(text))))
    }
}

/// Bytes as base64 (RFC 4648 §4, padded).
struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Checked("a string of base64", |text: Cow<'de, str>| {
            STANDARD
                .decode(text.as_bytes())
                .map(Base64)
                .map_err(|error| format!("bad base64: {error}"))
        }))
    }
}

/// An event id or event type.
struct Field<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Checked("a string", |text: Cow<'de, str>| {
            if text.len() > MAX_FIELD {
                Err(format!("more than {MAX_FIELD} bytes"))
            } else if text.bytes().any(|byte| byte.is_ascii_control()) {
                Err("a control character".into())
            } else {
                Ok(Field(text))
            }
        }))
    }
}

/// A literal channel id: one that publishers may name in a path, and that a path parser leaves in one piece.
struct ChannelId<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for ChannelId<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Checked("a channel id", |id: Cow<'de, str>| {
            if !channel_path::is_one_id(id.as_bytes()) {
                Err("no single channel id".into())
            } else if channel_path::is_reserved(id.as_bytes()) {
                Err("a reserved channel id".into())
            } else {
                Ok(ChannelId(id))
            }
        }))
    }
}

struct Channels<'a>(Vec<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Channels<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;

        impl<'de> Visitor<'de> for Ids {
            type Value = Channels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of channel ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Channels<'de>, A::Error> {
                let mut ids = Vec::with_capacity(1);
                while let Some(ChannelId(id)) = list.next_element()? {
                    if ids.len() == MAX_CHANNELS {
                        return Err(A::Error::custom(format!("more than {MAX_CHANNELS} channels")));
                    }
                    ids.push(id);
                }
                if ids.is_empty() {
                    return Err(A::Error::custom("no channel"));
                }
                Ok(Channels(ids))
            }
        }

        deserializer.deserialize_seq(Ids)
    }
}

/// The result for one line.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// Its line number in the body, starting at 1.
    pub line: usize,
    /// The status that a request with this message alone would get.
    pub status: u32,
    /// Why it failed.
    pub explain: Option<&'a str>,
    /// Number of channels that had already accepted its id.
    pub duplicates: usize,
    /// The id assigned by the zone.
    pub id: Option<OrderedId>,
}

/// Appends a verdict and the figures of the line's channels: for one channel in the single form, for several in the
/// form of a group, for an empty list none.
pub fn push_verdict(verdict: Verdict<'_>, channels: &[Channel<'_>], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut record = Record::new(Format::Json, "", ", ", out);
    record
        .number("line", verdict.line as u64)
        .number("status", verdict.status.into());
    if let Some(explain) = verdict.explain {
        record.text("explain", explain.as_bytes());
    }
    if verdict.duplicates > 0 {
        record.number("duplicate", verdict.duplicates as u64);
    }
    if let Some(id) = verdict.id {
        record.text("id", &id.to_text());
    }
    match channels {
        [] => {}
        [channel] => {
            record.channel("channel", "subscribers", channel);
        }
        several => {
            record.list("infos", several, |channel, record| {
                record.channel("channel", "subscribers", channel);
            });
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends the summary line that precedes the verdicts, when the client wants only those of failed lines.
pub fn push_summary(lines: usize, failed: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    Record::new(Format::Json, "", ", ", out)
        .number("lines", lines as u64)
        .number("ok", (lines - failed) as u64)
        .number("failed", failed as u64);
    out.extend_from_slice(b"}\n");
}

/// Is this the content type of a batch? Parameters are ignored.
pub fn is_batch(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
}

/// Does a Prefer header ask for `return=minimal` (RFC 7240 §4.2)? The first of several `return`s counts.
pub fn prefers_minimal<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> bool {
    headers
        .into_iter()
        .flat_map(|header| header.split(|&byte| byte == b','))
        .find_map(|preference| {
            let word = preference.split(|&byte| byte == b';').next()?;
            let equals = memchr::memchr(b'=', word)?;
            let (name, value) = (word[..equals].trim_ascii(), word[equals + 1..].trim_ascii());
            name.eq_ignore_ascii_case(b"return").then_some(value)
        })
        .is_some_and(|value| value == b"minimal" || value == b"\"minimal\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn refused(line: &str) -> String {
        parse(line.as_bytes()).expect_err(line).to_string()
    }

    #[test]
    fn a_line_with_every_key() {
        let line = br#" { "store" : false, "type":"note","channels":["a","b c"] ,"id":"1-7", "text":"Hello" } "#;
        let line = parse(line).unwrap();
        assert_eq!(line.channels, ["a", "b c"]);
        assert_eq!(&*line.body, b"Hello");
        assert_eq!(line.event_id.as_deref(), Some("1-7"));
        assert_eq!(line.event_type.as_deref(), Some("note"));
        assert_eq!(line.store, Some(false));
    }

    #[test]
    fn strings_without_escapes_are_not_copied() {
        let line = parse(r#"{"channels": ["ä"], "text": "wörld", "id": "1"}"#.as_bytes()).unwrap();
        assert!(matches!(line.channels[0], Cow::Borrowed("ä")));
        assert!(matches!(line.body, Cow::Borrowed(_)));
        assert!(matches!(line.event_id, Some(Cow::Borrowed("1"))));
    }

    #[test]
    fn escapes_mean_what_json_says() {
        let line = parse(br#"{"channels": ["a\u002Db"], "text": "\"\\\/\b\f\n\r\t\u0000\ud83d\ude00"}"#).unwrap();
        assert_eq!(line.channels, ["a-b"]);
        assert_eq!(&*line.body, "\"\\/\u{8}\u{c}\n\r\t\0😀".as_bytes());
    }

    #[test]
    fn any_bytes_come_as_base64() {
        let line = parse(br#"{"channels": ["a"], "base64": "/wD\/"}"#).unwrap();
        assert_eq!(&*line.body, [0xff, 0, 0xff]);
        assert_eq!(&*parse(br#"{"channels": ["a"], "base64": ""}"#).unwrap().body, b"");
    }

    #[test]
    fn what_is_not_exactly_a_line_is_refused_with_its_place() {
        for (line, reason) in [
            ("[]", "expected an object at column 1"),
            (r#"  [["a"], "x"]"#, "expected an object at column 3"),
            ("{", "EOF while parsing an object at column 1"),
            (
                r#"{"channels": ["a"], "text": "x"} {}"#,
                "trailing characters at column 34",
            ),
            (r#"{"channels": ["a"], "text": "x",}"#, "trailing comma at column 33"),
            (r#"{"text": "x"}"#, "missing field `channels` at column 13"),
            (r#"{"channels": ["a"]}"#, "missing field `text` at column 19"),
            (
                r#"{"channels": ["a"], "text": "x", "base64": "eA=="}"#,
                "both `text` and `base64` at column 50",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "text": "y"}"#,
                "duplicate field `text` at column 39",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "\u0074ext": "y"}"#,
                "duplicate field `text` at column 44",
            ),
            (r#"{"channels": [], "text": "x"}"#, "no channel at column 15"),
            (
                r#"{"channels": "a", "text": "x"}"#,
                "invalid type: string \"a\", expected a list of channel ids at column 16",
            ),
            (
                r#"{"channels": ["a", 1], "text": "x"}"#,
                "invalid type: integer `1`, expected a channel id at column 20",
            ),
            (
                r#"{"channels": ["a"], "text": null}"#,
                "invalid type: null, expected a string at column 32",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "id": null}"#,
                "invalid type: null, expected a string at column 43",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "store": 1}"#,
                "invalid type: integer `1`, expected a boolean at column 43",
            ),
            (
                r#"{"channels": ["a"], "text": "\ud800"}"#,
                "unexpected end of hex escape at column 36",
            ),
            (
                r#"{"channels": ["a"], "text": "\udc00"}"#,
                "lone leading surrogate in hex escape at column 35",
            ),
            (
                r#"{"channels": [""], "text": "x"}"#,
                "no single channel id at column 16",
            ),
            (
                r#"{"channels": ["a/b"], "text": "x"}"#,
                "no single channel id at column 19",
            ),
            (
                r#"{"channels": ["a/"], "text": "x"}"#,
                "no single channel id at column 18",
            ),
            (
                r#"{"channels": ["a.b3"], "text": "x"}"#,
                "no single channel id at column 20",
            ),
            (
                r#"{"channels": ["ALL"], "text": "x"}"#,
                "a reserved channel id at column 19",
            ),
            (
                r#"{"channels": ["a*"], "text": "x"}"#,
                "a reserved channel id at column 18",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "id": "\u0001"}"#,
                "a control character at column 47",
            ),
            (
                r#"{"channels": ["a"], "text": "x", "type": "\u007f"}"#,
                "a control character at column 49",
            ),
        ] {
            assert_eq!(refused(line), reason, "{line}");
        }
        assert!(refused(r#"{"channels": ["a"], "texts": "x"}"#).starts_with("unknown field `texts`, expected one of"));
        assert!(refused(r#"{"channels": ["a"], "base64": "e!=="}"#).starts_with("bad base64: Invalid symbol 33"));
        assert!(refused(r#"{"channels": ["a"], "base64": "eA"}"#).starts_with("bad base64: "));
        let latin1 = parse(b"{\"channels\": [\"a\"], \"text\": \"\xe9\"}").unwrap_err();
        assert_eq!(latin1.to_string(), "invalid unicode code point at column 30");
        // Text that would be a backtrack in a path is part of the id here.
        assert!(parse(br#"{"channels": ["a.b3.c", ".b", "a.b"], "text": "x"}"#).is_ok());
    }

    #[test]
    fn limits_of_fields_and_channels() {
        let with_id = |len: usize| json!({"channels": ["a"], "text": "", "id": "x".repeat(len)}).to_string();
        assert!(parse(with_id(MAX_FIELD).as_bytes()).is_ok());
        assert!(refused(&with_id(MAX_FIELD + 1)).starts_with("more than 255 bytes"));
        let to = |count: usize| json!({"channels": vec!["a"; count], "text": "x"}).to_string();
        assert_eq!(parse(to(MAX_CHANNELS).as_bytes()).unwrap().channels.len(), MAX_CHANNELS);
        assert!(refused(&to(MAX_CHANNELS + 1)).starts_with("more than 255 channels"));
    }

    #[test]
    fn empty_lines_count_and_are_left_out() {
        let numbered: Vec<_> = lines(b"a\n\n \t\r\nb\r\n\nc").collect();
        assert_eq!(numbered, [(1, &b"a"[..]), (4, b"b\r"), (6, b"c")]);
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"\n\n").count(), 0);
    }

    #[test]
    fn a_body_beyond_the_limits_is_refused_as_a_whole() {
        assert_eq!(check(b"a\n\nb\n", 2, 1), Ok(()));
        assert_eq!(check(b"a\nb\nc", 2, 1), Err(TooLarge::Lines(2)));
        assert_eq!(check(b"a\n\nbb\n", 2, 1), Err(TooLarge::Line { line: 3, max: 1 }));
    }

    #[test]
    fn verdicts_are_lines_of_json() {
        let figures = |id| Channel {
            id,
            published: 2,
            stored: 1,
            subscribers: 0,
        };
        let verdict = |status, explain| Verdict {
            line: 3,
            status,
            explain,
            duplicates: 0,
            id: None,
        };
        let mut out = Vec::new();
        push_verdict(verdict(200, None), &[], &mut out);
        push_verdict(verdict(400, Some("not \"so\"")), &[], &mut out);
        push_verdict(verdict(200, None), &[figures(b"a")], &mut out);
        push_verdict(verdict(200, None), &[figures(b"a"), figures(b"b")], &mut out);
        let special = Verdict {
            duplicates: 2,
            id: OrderedId::parse(b"5-7"),
            ..verdict(200, None)
        };
        push_verdict(special, &[], &mut out);
        push_summary(4, 1, &mut out);
        let expected = r#"{"line": 3, "status": 200}
{"line": 3, "status": 400, "explain": "not \"so\""}
{"line": 3, "status": 200, "channel": "a", "published_messages": 2, "stored_messages": 1, "subscribers": 0}
{"line": 3, "status": 200, "infos": [{"channel": "a", "published_messages": 2, "stored_messages": 1, "subscribers": 0}, {"channel": "b", "published_messages": 2, "stored_messages": 1, "subscribers": 0}]}
{"line": 3, "status": 200, "duplicate": 2, "id": "5-7"}
{"lines": 4, "ok": 3, "failed": 1}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn content_type_and_preference() {
        for yes in ["application/x-ndjson", "Application/X-NDJSON ; charset=utf-8"] {
            assert!(is_batch(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "application/x-ndjson2",
            "application/json",
            "text/plain; application/x-ndjson",
        ] {
            assert!(!is_batch(no.as_bytes()), "{no}");
        }
        let minimal = |headers: &[&str]| prefers_minimal(headers.iter().map(|header| header.as_bytes()));
        assert!(minimal(&["return=minimal"]));
        assert!(minimal(&["respond-async, wait=10", "RETURN = \"minimal\"; x=1"]));
        assert!(!minimal(&[]));
        assert!(!minimal(&["return=representation, return=minimal"]));
        assert!(!minimal(&["return", "minimal"]));
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[a-z\"\\\\\u{0}-\u{20}]{0,20}"]
    }

    prop_compose! {
        fn objects()(
            channels in prop::collection::vec(prop_oneof!["[a-z]{1,3}", text()], 0..4),
            text in prop::option::of(text()),
            bytes in prop::option::of(any::<Vec<u8>>()),
            id in prop::option::of(text()),
            kind in prop::option::of("[a-z]{0,5}"),
            store in prop::option::of(any::<bool>()),
        ) -> Value {
            let mut object = json!({"channels": channels});
            let keys = [
                ("text", text.map(Value::from)),
                ("base64", bytes.map(|bytes| STANDARD.encode(bytes).into())),
                ("id", id.map(Value::from)),
                ("type", kind.map(Value::from)),
                ("store", store.map(Value::from)),
            ];
            for (key, value) in keys {
                if let Some(value) = value {
                    object[key] = value;
                }
            }
            object
        }
    }

    /// The documented format of an object, checked on the tree of its values.
    fn is_line(object: &Value) -> bool {
        let channels = object["channels"].as_array().unwrap();
        let is_channel = |id: &str| {
            let backtrack = id
                .rsplit_once(".b")
                .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()));
            !id.is_empty() && !id.contains(['/', '*']) && id != "ALL" && !backtrack
        };
        let is_field = |key: &str| {
            object[key]
                .as_str()
                .is_none_or(|text| text.len() <= 255 && !text.contains(|c: char| c < ' ' || c == '\x7f'))
        };
        !channels.is_empty()
            && channels.iter().all(|id| is_channel(id.as_str().unwrap()))
            && object["text"].is_null() != object["base64"].is_null()
            && is_field("id")
            && is_field("type")
    }

    proptest! {
        #[test]
        fn a_line_is_what_its_values_say(object in objects()) {
            let written = object.to_string();
            let parsed = parse(written.as_bytes());
            prop_assert_eq!(parsed.is_ok(), is_line(&object), "{:?}", parsed);
            if let Ok(line) = parsed {
                prop_assert_eq!(json!(line.channels), object["channels"].clone());
                let body = match object["text"].as_str() {
                    Some(text) => text.as_bytes().to_vec(),
                    None => STANDARD.decode(object["base64"].as_str().unwrap()).unwrap(),
                };
                prop_assert_eq!(&*line.body, body);
                prop_assert_eq!(line.event_id.as_deref(), object["id"].as_str());
                prop_assert_eq!(line.event_type.as_deref(), object["type"].as_str());
                prop_assert_eq!(line.store, object["store"].as_bool());
            }
        }

        #[test]
        fn a_line_that_is_cut_anywhere_is_refused(object in objects(), cut in any::<prop::sample::Index>()) {
            let written = object.to_string();
            prop_assert!(parse(&written.as_bytes()[..cut.index(written.len())]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            for (_, line) in lines(&bytes) {
                let _ = parse(line);
            }
            let _ = check(&bytes, 3, 10);
            let _ = is_batch(&bytes);
            let _ = prefers_minimal([&bytes[..]]);
        }

        #[test]
        fn a_changed_byte_never_makes_it_panic(object in objects(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut written = object.to_string().into_bytes();
            let at = at.index(written.len());
            written[at] = byte;
            if let Ok(line) = parse(&written) {
                prop_assert!((1..=MAX_CHANNELS).contains(&line.channels.len()));
            }
        }

        #[test]
        fn lines_are_all_there_is(parts in prop::collection::vec("[a-z \t]{0,4}", 0..8)) {
            let body = parts.join("\n");
            let expected: Vec<_> = parts
                .iter()
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
                .map(|(index, line)| (index + 1, line.as_bytes()))
                .collect();
            prop_assert_eq!(lines(body.as_bytes()).collect::<Vec<_>>(), expected);
        }
    }
}
