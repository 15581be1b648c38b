//! The fence: until when a worker may deliver what it has claimed.
//!
//! A source with a lease holds its fence while the lease is certainly its own: slightly shorter than the broker's
//! lease, counted from *before* the request for it. A worker that was paused, or that has lost its broker, finds the
//! fence down before it sends anything; its successor may have started.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by a source and all events of one claim.
#[derive(Debug, Default)]
pub struct Fence {
    /// Milliseconds of [`now_ms`] until which the claim is certain; 0 is never. Independent of other data, so relaxed.
    until_ms: AtomicU64,
}

/// Held until dropped, regardless of the clock.
const FOR_GOOD: u64 = u64::MAX;

impl Fence {
    /// For a source without a lease: it falls when the source's work passes to a successor.
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
