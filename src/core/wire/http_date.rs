//! Dates in HTTP headers.
//!
//! Written in the preferred form of RFC 9110 §5.6.7, read in all three. Reading is as lenient as nginx itself is with
//! `If-Modified-Since`: the day's name is not checked, nor is the text behind the seconds.

const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];
const SECS_PER_DAY: u64 = 86_400;

/// The last second that has a four-digit year: 31 December 9999.
const LAST: u64 = 253_402_300_799;

/// Formats as `Sun, 22 Nov 2026 05:24:30 GMT`. Times past the year 9999 become its last second.
pub fn format(unix_secs: u64) -> [u8; 29] {
    let unix_secs = unix_secs.min(LAST);
    let date = Date::of(unix_secs);
    let mut out = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    out[..3].copy_from_slice(DAYS[(unix_secs / SECS_PER_DAY % 7) as usize]);
    two_digits(&mut out[5..], date.day);
    out[8..11].copy_from_slice(MONTHS[date.month as usize - 1]);
    two_digits(&mut out[12..], date.year / 100);
    two_digits(&mut out[14..], date.year % 100);
    two_digits(&mut out[17..], date.hour);
    two_digits(&mut out[20..], date.minute);
    two_digits(&mut out[23..], date.second);
    out
}

/// Formats as `2026-11-22T05:24:30`, the time in statistics.
pub(super) fn format_iso(unix_secs: u64) -> [u8; 19] {
    let date = Date::of(unix_secs.min(LAST));
    let mut out = *b"1970-01-01T00:00:00";
    two_digits(&mut out, date.year / 100);
    two_digits(&mut out[2..], date.year % 100);
    two_digits(&mut out[5..], date.month);
    two_digits(&mut out[8..], date.day);
    two_digits(&mut out[11..], date.hour);
    two_digits(&mut out[14..], date.minute);
    two_digits(&mut out[17..], date.second);
    out
}

/// Parses the RFC 1123, RFC 850 and asctime forms; None if it is not a date.
///
/// ```text
/// Sun, 06 Nov 1994 08:49:37 GMT
/// Sunday, 06-Nov-94 08:49:37 GMT
/// Sun Nov  6 08:49:37 1994
/// ```
pub fn parse(text: &[u8]) -> Option<u64> {
    let name_ends = text.iter().position(|byte| matches!(byte, b',' | b' '))?;
    let mut rest = Reader(text[name_ends + 1..].trim_ascii_start());
    let date = match text[name_ends] {
        b',' => rest.day_first()?,
        _ => rest.month_first()?,
    };
    date.unix_secs()
}

fn two_digits(out: &mut [u8], number: u32) {
    out[0] = b'0' + (number / 10) as u8;
    out[1] = b'0' + (number % 10) as u8;
}

struct Date {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Date {
    /// Calculates with years that begin in March, so that the leap day is a year's last.
    fn of(unix_secs: u64) -> Date {
        /// From 1 March 0000 to 1 January 1970.
        const DAYS_BEFORE_EPOCH: u64 = 719_468;
        const DAYS_IN_400_YEARS: u64 = 146_097;

        let days = unix_secs / SECS_PER_DAY + DAYS_BEFORE_EPOCH;
        let era = days / DAYS_IN_400_YEARS;
        let day_of_era = days % DAYS_IN_400_YEARS;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let second = unix_secs % SECS_PER_DAY;
        Date {
            year: year as u32,
            month: month as u32,
            day: day as u32,
            hour: (second / 3600) as u32,
            minute: (second / 60 % 60) as u32,
            second: (second % 60) as u32,
        }
    }

    /// None if the date does not exist, or is before the epoch.
    fn unix_secs(&self) -> Option<u64> {
        let Date {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = *self;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days_in_month = |month| match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if year < 1970 || day == 0 || day > days_in_month(month) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let past_years = u64::from(year - 1);
        let leap_days = past_years / 4 - past_years / 100 + past_years / 400;
        let before_month: u32 = (1..month).map(days_in_month).sum();
        /// From the first day of the year 1 to that of 1970.
        const EPOCH: u64 = 719_162;
        let days = 365 * past_years + leap_days + u64::from(before_month + day - 1) - EPOCH;
        Some(days * SECS_PER_DAY + u64::from(hour * 3600 + minute * 60 + second))
    }
}

/// Reads from the left; every method consumes the part that it returns.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// `06 Nov 1994 08:49:37` or `06-Nov-94 08:49:37`
    fn day_first(&mut self) -> Option<Date> {
        let day = self.number(2)?;
        let separator = self.byte()?;
        let month = self.month()?;
        self.expect(separator)?;
        let year = match separator {
            b' ' => self.number(4)?,
            b'-' => match self.number(2)? {
                year @ 0..70 => 2000 + year,
                year => 1900 + year,
            },
            _ => return None,
        };
        self.expect(b' ')?;
        let (hour, minute, second) = self.time()?;
        Some(Date {
            year,
            month,
            day,
            hour,
            minute,
            second,
        })
    }

    /// `Nov  6 08:49:37 1994`
    fn month_first(&mut self) -> Option<Date> {
        let month = self.month()?;
        self.expect(b' ')?;
        let day = match self.0.first()? {
            b' ' => {
                self.expect(b' ')?;
                self.number(1)?
            }
            _ => self.number(2)?,
        };
        self.expect(b' ')?;
        let (hour, minute, second) = self.time()?;
        self.expect(b' ')?;
        let year = self.number(4)?;
        Some(Date {
            year,
            month,
            day,
            hour,
            minute,
            second,
        })
    }

    fn time(&mut self) -> Option<(u32, u32, u32)> {
        let hour = self.number(2)?;
        self.expect(b':')?;
        let minute = self.number(2)?;
        self.expect(b':')?;
        Some((hour, minute, self.number(2)?))
    }

    fn month(&mut self) -> Option<u32> {
        let (name, rest) = self.0.split_at_checked(3)?;
        let index = MONTHS.iter().position(|month| *month == name)?;
        self.0 = rest;
        Some(index as u32 + 1)
    }

    fn number(&mut self, digits: usize) -> Option<u32> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        number
            .iter()
            .try_fold(0, |value, digit| Some(value * 10 + char::from(*digit).to_digit(10)?))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.byte()? == wanted).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_forms_mean_the_same() {
        assert_eq!(parse(b"Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse(b"Sunday, 06-Nov-94 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse(b"Sun Nov  6 08:49:37 1994"), Some(784_111_777));
        assert_eq!(parse(b"Wed Nov 16 08:49:37 1994"), Some(784_975_777));
    }

    #[test]
    fn the_epoch_is_a_date() {
        assert_eq!(&format(0), b"Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(parse(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }

    #[test]
    fn two_digit_years_up_to_69_are_in_this_century() {
        assert_eq!(parse(b"Thursday, 01-Jan-70 00:00:00 GMT"), Some(0));
        assert_eq!(
            parse(b"Friday, 22-Nov-69 00:00:00 GMT"),
            parse(b"Fri, 22 Nov 2069 00:00:00 GMT")
        );
    }

    #[test]
    fn the_name_of_the_day_and_the_zone_are_not_judged() {
        assert_eq!(parse(b"Xyz, 06 Nov 1994 08:49:37"), Some(784_111_777));
        assert_eq!(parse(b"Sun,06 Nov 1994 08:49:37 GMT; length=12"), Some(784_111_777));
    }

    #[test]
    fn what_is_no_date_is_none() {
        let texts = [
            "",
            "now",
            "Sun,",
            "0",
            "1795325070",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Mon, 29 Feb 2100 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:37 GMT",
            "Sun, 06 Nov 1994 08:49:60 GMT",
            "Sun, 06 Nov 1994 08:49",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun, 06-Nov 94 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
        ];
        for text in texts {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_time_in_statistics_has_no_zone() {
        assert_eq!(&format_iso(1_795_325_070), b"2026-11-22T05:24:30");
    }

    #[test]
    fn a_clock_out_of_range_still_gives_a_date() {
        assert_eq!(&format(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #[test]
        fn dates_are_those_of_the_httpdate_crate(secs in 0..=LAST) {
            let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(secs));
            prop_assert_eq!(&format(secs)[..], theirs.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_back(secs in 0..=LAST) {
            prop_assert_eq!(parse(&format(secs)), Some(secs));
        }

        #[test]
        fn any_bytes_are_judged_without_panic(text: Vec<u8>) {
            let _ = parse(&text);
        }

        #[test]
        fn anything_like_a_date_is_judged_without_panic(
            text in "[A-Z][a-z]{2,5},? [0-9]{1,2}[- ][A-Z][a-z]{2}[- ][0-9]{2,4} [0-9]{2}:[0-9]{2}:[0-9]{2}( GMT)?"
        ) {
            let ours = parse(text.as_bytes());
            if let Ok(theirs) = httpdate::parse_http_date(&text) {
                let secs = theirs.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
                prop_assert_eq!(ours, secs);
            }
        }
    }
}
