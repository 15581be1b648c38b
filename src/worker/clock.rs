//! Wall-clock time in UTC: RFC 3339 text for events and strftime patterns for file names.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MILLIS_PER_DAY: u64 = 86_400_000;

/// Unix milliseconds. Displayed as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Zero for a moment in the future: clocks differ.
    pub fn elapsed(self) -> Duration {
        Duration::from_millis(Self::now().0.saturating_sub(self.0))
    }

    /// Expands a pattern checked by [`check_pattern`]: `%Y %m %d %H %M %S %%`.
    pub fn format(self, pattern: &str) -> String {
        let parts = self.parts();
        let mut out = String::with_capacity(pattern.len() + 8);
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            out += &match chars.next() {
                Some('Y') => format!("{:04}", parts.year),
                Some('m') => format!("{:02}", parts.month),
                Some('d') => format!("{:02}", parts.day),
                Some('H') => format!("{:02}", parts.hour),
                Some('M') => format!("{:02}", parts.minute),
                Some('S') => format!("{:02}", parts.second),
                _ => "%".to_owned(),
            };
        }
        out
    }

    fn parts(self) -> Parts {
        let (days, millis) = (self.0 / MILLIS_PER_DAY, self.0 % MILLIS_PER_DAY);
        let (year, month, day) = civil_from_days(days);
        Parts {
            year,
            month,
            day,
            hour: millis / 3_600_000,
            minute: millis / 60_000 % 60,
            second: millis / 1000 % 60,
            milli: millis % 1000,
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            year,
            month,
            day,
            hour,
            minute,
            second,
            milli,
        } = self.parts();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"
        )
    }
}

/// Refuses codes that [`Timestamp::format`] does not know.
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

struct Parts {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    milli: u64,
}

/// Days since 1970-01-01 to year, month, day. Eras of 400 years starting on 1 March make leap days the last of a year
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_read_as_dates() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_123, "2024-02-29T00:00:00.123Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
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
