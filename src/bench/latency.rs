//! Latencies in an HDR histogram, in nanoseconds, from one microsecond to five minutes with three significant digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

const HIGHEST_NS: u64 = 300_000_000_000;

/// A histogram that can be sent through a pipe and added to others.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Latency {
    pub fn new() -> Self {
        // The bounds are constants that the library accepts.
        Self {
            histogram: Histogram::new_with_bounds(1_000, HIGHEST_NS, 3).expect("valid histogram bounds"),
        }
    }

    pub fn record(&mut self, nanos: u64) {
        self.histogram.saturating_record(nanos);
    }

    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so nothing can be out of range.
        let _ = self.histogram.add(&other.histogram);
    }

    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The time that `percent` of the values do not exceed; the maximum for 100.
    pub fn at(&self, percent: f64) -> Duration {
        Duration::from_nanos(match percent {
            100.0 => self.histogram.max(),
            percent => self.histogram.value_at_percentile(percent),
        })
    }

    /// `[[nanoseconds, count], …]`
    pub fn to_json(&self) -> Value {
        self.histogram
            .iter_recorded()
            .map(|step| json!([step.value_iterated_to(), step.count_at_value()]))
            .collect()
    }

    /// The inverse of [`Self::to_json`]; `None` if `value` is something else.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut latency = Self::new();
        for step in value.as_array()? {
            let (nanos, count) = (step.get(0)?.as_u64()?, step.get(1)?.as_u64()?);
            latency.histogram.saturating_record_n(nanos, count);
        }
        Some(latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut latency = Latency::new();
        (1..=10_000).for_each(|micros| latency.record(micros * 1_000));
        for (percent, micros) in [
            (50.0, 5_000.0),
            (90.0, 9_000.0),
            (99.0, 9_900.0),
            (99.9, 9_990.0),
            (100.0, 10_000.0),
        ] {
            let found = latency.at(percent).as_secs_f64() * 1e6;
            assert!(
                (found / micros - 1.0).abs() < 0.001,
                "p{percent}: {found} µs, not {micros}"
            );
        }
    }

    #[test]
    fn a_histogram_survives_the_pipe_and_adds_up() {
        let mut one = Latency::new();
        [5_000, 70_000, 70_000, 2_000_000_000]
            .into_iter()
            .for_each(|nanos| one.record(nanos));
        let mut sum = Latency::from_json(&one.to_json()).unwrap();
        for percent in [1.0, 50.0, 75.0, 99.0] {
            assert_eq!(sum.at(percent), one.at(percent), "p{percent}");
        }
        sum.add(&one);
        assert_eq!((sum.count(), sum.at(75.0)), (8, one.at(75.0)));
        assert!(Latency::from_json(&json!({"a": 1})).is_none());
    }

    #[test]
    fn what_is_out_of_range_is_clamped_and_counted() {
        let mut latency = Latency::new();
        latency.record(0);
        latency.record(u64::MAX);
        assert_eq!(latency.count(), 2);
        assert!(latency.at(100.0) >= Duration::from_secs(299));
    }
}
