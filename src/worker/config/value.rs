//! Syntax of single values: durations, sizes, and `${NAME}` from the environment.

use std::time::Duration;

/// A value parsed from a string.
pub trait FromText: Sized {
    /// Expected value, with its article: "a field path such as \"author.id\"".
    const WANTED: &'static str;
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A number of bytes, written `"64KiB"`, `"32MiB"`, `"1000B"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub usize);

/// Reads `50ms`, `2s`, `10m`, `1h`, `1d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a duration (examples: \"50ms\", \"2s\", \"10m\", \"1h\")");
    let (number, unit) = split_unit(text).ok_or_else(bad)?;
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number
        .checked_mul(millis_per_unit)
        .map(Duration::from_millis)
        .ok_or_else(bad)
}

/// Reads `64KiB`, `32MiB`, `1GiB`, `1000B`.
pub fn size(text: &str) -> Result<ByteSize, String> {
    let bad = || format!("\"{text}\" is not a size (examples: \"64KiB\", \"32MiB\", \"1000B\")");
    let (number, unit) = split_unit(text).ok_or_else(bad)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(bad()),
    };
    let bytes = number
        .checked_mul(1 << shift)
        .and_then(|bytes| usize::try_from(bytes).ok());
    bytes.map(ByteSize).ok_or_else(bad)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

/// Replaces `${NAME}` by the variable and `${NAME:-default}` by the variable or, if it is unset or empty, the default.
/// `$${` stands for a literal `${`; any other `$` is left alone.
pub fn substitute(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start]);
            out.push('{');
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let inner = &rest[start + 2..];
        let end = inner
            .find('}')
            .ok_or("\"${\" without its \"}\" (a literal \"${\" is written \"$${\")")?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("\"{name}\" is not the name of an environment variable"));
        }
        match (
            variable(name).filter(|value| !value.is_empty() || default.is_none()),
            default,
        ) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err(format!(
                    "environment variable {name} is not set (a default is written ${{{name}:-default}})"
                ));
            }
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(duration("2 s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86400)));
        for bad in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "5 fortnights",
            "99999999999999999999d",
            "99999999999999999d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_binary_and_say_so() {
        assert_eq!(size("32MiB"), Ok(ByteSize(32 << 20)));
        assert_eq!(size("1000B"), Ok(ByteSize(1000)));
        for bad in ["", "5", "5MB", "5kb", "-5MiB", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_are_replaced_and_defaults_taken() {
        let variable = |name: &str| match name {
            "PORT" => Some("9000".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let run = |text| substitute(text, variable);
        assert_eq!(run("http://a:${PORT}/${PORT:-1}").as_deref(), Ok("http://a:9000/9000"));
        assert_eq!(run("${GONE:-80}${EMPTY:-81}${GONE:-}").as_deref(), Ok("8081"));
        assert_eq!(run("$5 $${literal} {x}").as_deref(), Ok("$5 ${literal} {x}"));
        assert!(run("${GONE}").unwrap_err().contains("GONE is not set"));
        assert!(run("${open").is_err());
        assert!(run("${no space}").is_err());
    }
}
