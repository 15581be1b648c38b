//! Wall-clock time in UTC: RFC 3339 text for events and strftime patterns for file names.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::UtcDateTime;

/// Unix milliseconds. Displayed as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Zero for a timestamp in the future: clocks differ.
    pub fn elapsed(self) -> Duration {
        Duration::from_millis(Self::now().0.saturating_sub(self.0))
    }

    /// Expands a pattern checked by [`check_pattern`]: `%Y %m %d %H %M %S %%`.
    pub fn format(self, pattern: &str) -> String {
        let moment = self.moment();
        let mut out = String::with_capacity(pattern.len() + 8);
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            out += &match chars.next() {
                Some('Y') => format!("{:04}", moment.year()),
                Some('m') => format!("{:02}", u8::from(moment.month())),
                Some('d') => format!("{:02}", moment.day()),
                Some('H') => format!("{:02}", moment.hour()),
                Some('M') => format!("{:02}", moment.minute()),
                Some('S') => format!("{:02}", moment.second()),
                _ => "%".to_owned(),
            };
        }
        out
    }

    /// Timestamps after the year 9999 become its end.
    fn moment(self) -> UtcDateTime {
        UtcDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).unwrap_or(UtcDateTime::MAX)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = self.moment();
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            moment.year(),
            u8::from(moment.month()),
            moment.day(),
            moment.hour(),
            moment.minute(),
            moment.second(),
            moment.millisecond()
        )
    }
}

/// Refuses conversion codes that [`Timestamp::format`] does not support.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            continue;
        }
        match chars.next() {
            Some('Y' | 'm' | 'd' | 'H' | 'M' | 'S' | '%') => {}
            Some(other) => return Err(format!("\"%{other}\" is not one of %Y %m %d %H %M %S %%")),
            None => return Err("ends in a lone \"%\" (a literal one is written \"%%\")".to_owned()),
        }
    }
    Ok(())
}

/// Can a pattern accepted by [`check_pattern`] produce this path, now or later? Past dates do not recur.
pub fn may_name(pattern: &str, path: &str, now: Timestamp) -> bool {
    let mut rest = path;
    // By conversion code, most significant first.
    let (mut found, mut current) = ([0_u32; 6], [0_u32; 6]);
    let mut has_year = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let code = if c == '%' { chars.next() } else { None };
        let Some(code) = code.filter(|code| *code != '%') else {
            let Some(after) = rest.strip_prefix(c) else {
                return false;
            };
            rest = after;
            continue;
        };
        let width = if code == 'Y' { 4 } else { 2 };
        let digits = rest
            .get(..width)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = |text: &str| text.parse().unwrap_or_default();
        let (Some(digits), Some(place)) = (digits, "YmdHMS".find(code)) else {
            return false;
        };
        (found[place], current[place]) = (number(digits), number(&now.format(&format!("%{code}"))));
        has_year |= code == 'Y';
        rest = &rest[width..];
    }
    rest.is_empty() && (!has_year || found >= current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_paths_of_today_and_later() {
        // 2024-02-29.
        let now = Timestamp(1_709_164_800_123);
        for (pattern, path, expected) in [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/c", false),
            ("/a/%Y-%m-%d", "/a/2024-02-29", true),
            ("/a/%Y-%m-%d", "/a/2025-01-01", true),
            ("/a/%Y-%m-%d", "/a/2024-02-28", false),
            ("/a/%d-%m-%Y", "/a/31-12-2023", false),
            ("/a/%H", "/a/00", true),
            ("/a/%H", "/a/xx", false),
            ("/a/%Y", "/a/2024x", false),
            ("/a/%%", "/a/%", true),
        ] {
            assert_eq!(may_name(pattern, path, now), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn known_moments_read_as_dates() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_123, "2024-02-29T00:00:00.123Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(millis).to_string(), text);
        }
    }

    #[test]
    fn patterns_expand_and_unknown_codes_are_refused() {
        assert_eq!(
            Timestamp(951_782_400_000).format("a/%Y-%m-%d_%H%M%S%%.ndjson"),
            "a/2000-02-29_000000%.ndjson"
        );
        assert!(check_pattern("%Y/%m").is_ok());
        assert!(check_pattern("%q").is_err());
        assert!(check_pattern("100%").is_err());
    }
}
