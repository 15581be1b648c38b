//! When the server of a JWK Set is asked again: as `Cache-Control` says, within bounds.

use std::time::{Duration, SystemTime};

/// How often to ask.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Where the server does not say how long a set may be used.
    pub usual: Duration,
    pub min: Duration,
    pub max: Duration,
}

/// How long an answer may be used (RFC 9111 §5.2.2); `None` if the server does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness(pub Option<Duration>);

impl Freshness {
    /// `control` is the value of `Cache-Control`, `age` that of `Age`.
    pub fn read(control: &str, age: Duration) -> Self {
        let mut found = None;
        for directive in control.split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let name = name.trim();
            if name.eq_ignore_ascii_case("no-cache") || name.eq_ignore_ascii_case("no-store") {
                // Not to be used without asking: as often as is allowed here.
                return Self(Some(Duration::ZERO));
            }
            if name.eq_ignore_ascii_case("max-age") && found.is_none() {
                // Whatever is no number does not say anything.
                let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
                found = seconds.map(|seconds| Duration::from_secs(seconds).saturating_sub(age));
            }
        }
        Self(found)
    }
}

/// The pause after a good answer: up to a tenth less than its lifetime, so that many who began together do not ask together.
pub fn interval(freshness: Freshness, bounds: &Bounds) -> Duration {
    let wanted = freshness.0.unwrap_or(bounds.usual).clamp(bounds.min, bounds.max);
    wanted.mul_f64(0.9 + fastrand::f64() / 10.0).max(bounds.min)
}

/// `Retry-After`: seconds or a date.
pub fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        usual: Duration::from_secs(300),
        min: Duration::from_secs(30),
        max: Duration::from_secs(3600),
    };

    #[test]
    fn max_age_is_read_as_caches_do() {
        let read = |control, age| {
            Freshness::read(control, Duration::from_secs(age))
                .0
                .map(|time| time.as_secs())
        };
        for (control, age, seconds) in [
            ("", 0, None),
            ("public", 0, None),
            ("max-age=600", 0, Some(600)),
            ("public, MAX-AGE = 600 , must-revalidate", 100, Some(500)),
            ("max-age=600", 700, Some(0)),
            ("max-age=\"60\"", 0, Some(60)),
            ("max-age=soon", 0, None),
            ("s-maxage=9", 0, None),
            ("max-age=60, max-age=70", 0, Some(60)),
            ("max-age=600, no-cache", 0, Some(0)),
            ("no-store", 0, Some(0)),
        ] {
            assert_eq!(read(control, age), seconds, "{control}");
        }
    }

    #[test]
    fn intervals_stay_within_their_bounds_and_are_jittered() {
        let seconds =
            |freshness: Option<u64>| interval(Freshness(freshness.map(Duration::from_secs)), &BOUNDS).as_secs_f64();
        for (freshness, least, most) in [
            (None, 270.0, 300.0),
            (Some(0), 30.0, 30.0),
            (Some(60), 54.0, 60.0),
            (Some(u64::MAX), 3240.0, 3600.0),
        ] {
            for _ in 0..50 {
                let pause = seconds(freshness);
                assert!((least..=most).contains(&pause), "{freshness:?}: {pause}");
            }
        }
        assert_ne!(seconds(Some(3600)), seconds(Some(3600)));
    }

    #[test]
    fn retry_after_has_two_forms() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Fri, 01 Jan 1999 00:00:00 GMT"), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((90..=100).contains(&retry_after(&later).unwrap().as_secs()));
        assert_eq!(retry_after("soon"), None);
    }
}
