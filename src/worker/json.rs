//! Lenient, exact JSON reading, used for all input.
//!
//! * A byte order mark before the text is skipped (RFC 8259 §8.1).
//! * A lone surrogate, as left by cutting a text inside an emoji (`"fun \ud83d"`), becomes U+FFFD, as in browsers.
//! * Numbers keep their digits (`10.00`, `1E400`, integers of any length), though [`Value`] holds 64 bits: a number
//!   that is not an integer of that size is in the tree as a float that stands for its text, and [`Digits`] maps each
//!   such float to its text. Numbers with different texts have different floats. Write values with [`write()`], get their
//!   text with [`Digits::text`]; code that only compares or computes uses the float.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// `\ud83d`
const ESCAPE_BYTES: usize = 6;
/// Nesting limit, as in `serde_json`.
const MAX_DEPTH: usize = 127;
/// Maximum number of texts of the same number, such as `10.0` and `10.00`, that get adjacent floats.
const MOST_NEAR: usize = 64;
/// Prefix of the keys that `serde_json` uses internally for raw values. Input objects may have such a key, too.
const PRIVATE_KEY: &[u8] = b"$serde_json::private::";

/// The texts of floats.
#[derive(Clone, Debug, Default)]
pub struct Digits(Option<Arc<HashMap<u64, Box<str>>>>);

impl Digits {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn text(&self, float: f64) -> Option<&str> {
        self.0.as_ref()?.get(&float.to_bits()).map(|text| &**text)
    }

    /// The text of a string, number or boolean; `None` for objects, arrays and null.
    pub fn scalar<'v>(&'v self, value: &'v Value) -> Option<Cow<'v, str>> {
        match value {
            Value::String(text) => Some(Cow::Borrowed(text)),
            Value::Number(number) => {
                let float = if number.is_f64() { number.as_f64() } else { None };
                let text = float.and_then(|float| self.text(float));
                Some(text.map_or_else(|| Cow::Owned(number.to_string()), Cow::Borrowed))
            }
            Value::Bool(flag) => Some(Cow::Borrowed(if *flag { "true" } else { "false" })),
            _ => None,
        }
    }
}

/// Reads one text.
pub fn parse(text: &[u8]) -> serde_json::Result<(Value, Digits)> {
    let text = mended(text);
    let is_plain = memchr::memmem::find(&text, PRIVATE_KEY).is_none();
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if is_plain && !has_floats(&value) => Ok((value, Digits::default())),
        // Any other error is found again by the exact reader.
        Err(error) if is_plain && !error.to_string().starts_with("number out of range") => Err(error),
        _ => {
            let mut texts = Texts {
                by_float: HashMap::new(),
                far: f64::MAX,
            };
            let value = exact(serde_json::from_slice(&text)?, 0, &mut texts)?;
            let texts = texts.by_float;
            Ok((value, Digits((!texts.is_empty()).then(|| Arc::new(texts)))))
        }
    }
}

fn has_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(list) => list.iter().any(has_floats),
        Value::Object(map) => map.values().any(has_floats),
        _ => false,
    }
}

/// The value of a text that is known to be valid JSON.
fn exact(raw: &RawValue, depth: usize, texts: &mut Texts) -> serde_json::Result<Value> {
    let text = raw.get();
    if depth > MAX_DEPTH {
        return Err(serde_json::Error::custom("recursion limit exceeded"));
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text)?;
            let mut map = Map::with_capacity(members.len());
            for (key, raw) in members {
                map.insert(key, exact(raw, depth + 1, texts)?);
            }
            Ok(Value::Object(map))
        }
        Some(b'[') => {
            let list: Vec<&RawValue> = serde_json::from_str(text)?;
            let list: serde_json::Result<_> = list.into_iter().map(|raw| exact(raw, depth + 1, texts)).collect();
            Ok(Value::Array(list?))
        }
        Some(b'-' | b'0'..=b'9') => Ok(number(text, texts)),
        _ => serde_json::from_str(text),
    }
}

/// Number texts seen, and the countdown from the largest float.
struct Texts {
    by_float: HashMap<u64, Box<str>>,
    far: f64,
}

fn number(text: &str, texts: &mut Texts) -> Value {
    if let Ok(number) = text.parse::<u64>() {
        return number.into();
    }
    // "-0" is not an integer: it would lose its sign.
    if let Some(number) = text.parse::<i64>().ok().filter(|&number| number != 0) {
        return number.into();
    }
    // Rust parses every JSON number; too large ones become infinite.
    let float: f64 = text.parse().unwrap_or(f64::MAX).clamp(f64::MIN, f64::MAX);
    let step = match (float.is_sign_positive(), float.abs() >= 1.0) {
        (true, true) | (false, false) => f64::next_down,
        (true, false) | (false, true) => f64::next_up,
    };
    // The nearest float that stands for no other text; with very many texts of the same number, later floats are far
    // away.
    let near = std::iter::successors(Some(float), |&float| Some(step(float))).take(MOST_NEAR);
    let Texts { by_float, far } = texts;
    let far = std::iter::from_fn(|| {
        *far = far.next_down();
        Some(*far)
    });
    let is_free = |float: &f64| by_float.get(&float.to_bits()).is_none_or(|other| **other == *text);
    let float = near.chain(far).find(is_free).unwrap_or(float);
    by_float.insert(float.to_bits(), text.into());
    float.into()
}

/// Writes a value with its original digits.
pub fn write(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized), digits: &Digits) -> serde_json::Result<()> {
    if digits.is_empty() {
        return serde_json::to_writer(out, value);
    }
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Exact(digits)))
}

/// As [`write()`], into a string.
pub fn to_string(value: &(impl Serialize + ?Sized), digits: &Digits) -> serde_json::Result<String> {
    let mut out = Vec::new();
    write(&mut out, value, digits)?;
    String::from_utf8(out).map_err(serde_json::Error::custom)
}

struct Exact<'d>(&'d Digits);

impl Formatter for Exact<'_> {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        match self.0.text(value) {
            Some(text) => writer.write_all(text.as_bytes()),
            None => CompactFormatter.write_f64(writer, value),
        }
    }
}

/// The members of an object, with their values as written.
pub struct Members<'j>(pub Vec<(String, &'j RawValue)>);

impl<'de: 'j, 'j> Deserialize<'de> for Members<'j> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// The text as a strict reader accepts it. Borrowed, unless a lone surrogate was replaced; the length is unchanged but
/// for the byte order mark.
pub fn mended(text: &[u8]) -> Cow<'_, [u8]> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut mended: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &text[at..]) {
        let start = at + found;
        at = match (surrogate_at(text, start), surrogate_at(text, start + ESCAPE_BYTES)) {
            // Some other escape: `\n`, `\\`, `\u00e9`.
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

/// The surrogate escaped at this offset.
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

    /// Parses a text and writes it again.
    fn again(text: &str) -> String {
        let (value, digits) = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        to_string(&value, &digits).unwrap()
    }

    #[test]
    fn numbers_keep_their_digits_and_everything_its_place() {
        for text in [
            r#"{"id":340282366920938463463374607431768211455,"other":340282366920938463463374607431768211450}"#,
            r#"{"price":10.00,"same":10.0,"again":[10.000,10.00],"n":10}"#,
            r#"[-0,0,0.0,-0.0,0.00,0e0]"#,
            "[1e5,1E5,1e+05,1.5E-07,1e400,-1e400,1E400,1e-400,123456789012345678901234567890.5]",
            "[18446744073709551615,18446744073709551616,-9223372036854775808,-9223372036854775809]",
            r#"{"z":1.0,"a":{"z":"\u0000\u001f\u007f","y":[]},"":null,"é":"€"}"#,
            r#"{"$serde_json::private::RawValue":"{}","n":1}"#,
            r#"{"$serde_json::private::Number":"5"}"#,
        ] {
            assert_eq!(again(text).replace('\u{7f}', "\\u007f"), text);
        }
        assert_eq!(
            again(r#"{"a":1.0,"b":2,"a":3.00}"#),
            r#"{"a":3.00,"b":2}"#,
            "the last one counts, as for all readers"
        );
    }

    #[test]
    fn many_texts_of_one_number_take_no_time() {
        let texts: Vec<String> = (400..40_400).map(|n| format!("1e{n}")).collect();
        let text = format!("[{}]", texts.join(","));
        assert_eq!(again(&text), text);
    }

    #[test]
    fn what_is_not_json_is_not_read_for_its_numbers() {
        for text in [
            "[1.5", "[1e400", "[01.5]", "[1.]", "[.5]", "[+1.0]", "[1e400,]", "[NaN]", "1.5 2",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        for number in ["1", "1.5", "1e400"] {
            let deep = |depth| format!("{}{number}{}", "[".repeat(depth), "]".repeat(depth));
            assert!(parse(deep(127).as_bytes()).is_ok());
            let error = parse(deep(128).as_bytes()).unwrap_err().to_string();
            assert!(
                error.starts_with("recursion limit exceeded") || number == "1e400",
                "{error}"
            );
            assert!(parse(deep(100_000).as_bytes()).is_err(), "and no stack overflows");
        }
    }

    proptest! {
        #[test]
        fn any_number_comes_out_as_it_came(numbers in prop::collection::vec(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", 1..20)) {
            let text = format!("[{}]", numbers.join(","));
            prop_assert_eq!(again(&text), text);
        }

        #[test]
        fn any_text_of_a_language_with_utf16_strings_is_taken(units in prop::collection::vec(any::<u16>(), 0..40)) {
            let escaped: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let text = format!("\"{escaped}\"");
            let read: String = serde_json::from_slice(&mended(text.as_bytes())).unwrap();
            prop_assert_eq!(read, String::from_utf16_lossy(&units));
        }
    }
}
