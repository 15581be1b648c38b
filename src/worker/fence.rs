//! The right to deliver what was claimed, and its end.
//!
//! A source with a lease holds its fence for as long as the lease is certain to be its own: a little less than it lasts at the
//! broker, counted from *before* it was asked for. A worker that was paused, or that has lost its broker, finds the fence down before it
//! sends anything; its successor may have begun.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by a source and all events of one claim.
#[derive(Debug, Default)]
pub struct Fence {
    /// Milliseconds of [`now_ms`] until which the claim is certain; 0 is never. It stands alone, so relaxed.
    until_ms: AtomicU64,
}

/// Held until it is dropped, without a look at the clock.
const FOR_GOOD: u64 = u64::MAX;

impl Fence {
    /// Of a source without a lease: it falls when the source's work is given to another.
    pub fn standing() -> Self {
        Self {
            until_ms: AtomicU64::new(FOR_GOOD),
        }
    }

    /// Holds until `lease` after `asked`.
    pub fn hold(&self, asked: Instant, lease: Duration) {
        let until = millis(asked.saturating_duration_since(start()) + lease);
        self.until_ms.store(until, Ordering::Relaxed);
    }

    pub fn drop_now(&self) {
        self.until_ms.store(0, Ordering::Relaxed);
    }

    pub fn is_held(&self) -> bool {
        let until = self.until_ms.load(Ordering::Relaxed);
        until == FOR_GOOD || now_ms() < until
    }
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn now_ms() -> u64 {
    millis(start().elapsed())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_falls_by_itself() {
        let fence = Fence::default();
        assert!(!fence.is_held());
        fence.hold(Instant::now(), Duration::from_secs(60));
        assert!(fence.is_held());
        fence.drop_now();
        assert!(!fence.is_held());
        start();
        fence.hold(Instant::now(), Duration::ZERO);
        assert!(!fence.is_held());
        let standing = Fence::standing();
        assert!(standing.is_held());
        standing.drop_now();
        assert!(!standing.is_held());
    }
}
