//! Jittered exponential back-off.

use std::time::Duration;

use crate::config::section::Section;

/// `retry = { initial = "50ms", max = "5s", max_age = "10m" }`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The first pause.
    pub initial: Duration,
    /// The longest pause; each pause doubles up to this.
    pub max: Duration,
    /// An event older than this after a failed attempt is parked. Where events wait for each other, an event's age
    /// begins with its first attempt.
    pub max_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(50),
            max: Duration::from_secs(5),
            max_age: Duration::from_secs(600),
        }
    }
}

impl Policy {
    pub fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        let policy = Self {
            initial: section.or("initial", default.initial),
            max: section.or("max", default.max),
            max_age: section.or("max_age", default.max_age),
        };
        if policy.initial.is_zero() {
            section.complain_at("initial", "must be longer than 0");
        }
        if policy.max < policy.initial {
            section.complain_at("max", "must not be shorter than initial");
        }
        policy
    }
}

/// The retry pauses of one event.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub fn new(policy: &Policy) -> Self {
        Self {
            next: policy.initial,
            max: policy.max,
        }
    }

    /// Between half and all of the nominal pause, so that events that failed together are not retried together.
    pub fn pause(&mut self) -> Duration {
        let nominal = self.next;
        self.next = (nominal * 2).min(self.max);
        nominal.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_are_jittered() {
        let policy = Policy {
            initial: Duration::from_millis(100),
            max: Duration::from_millis(350),
            ..Policy::default()
        };
        let mut backoff = Backoff::new(&policy);
        for nominal in [100, 200, 350, 350] {
            let pause = backoff.pause().as_millis();
            assert!((nominal / 2..=nominal).contains(&pause), "{pause} of {nominal}");
        }
        let many: std::collections::BTreeSet<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(many.len() > 1);
    }
}
