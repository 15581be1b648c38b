//! Death at a chosen instruction: tests arm it in a child process and then do something to the zone.

use std::sync::atomic::{AtomicU64, Ordering};

/// Points still to pass before this process dies; `u64::MAX` = not armed.
static POINTS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// This process dies after `points` more points: as SIGKILL would have it, with nothing run on the way.
pub fn arm(points: u64) {
    POINTS_LEFT.store(points, Ordering::SeqCst);
}

/// Not any more. How many points were left.
pub fn disarm() -> u64 {
    POINTS_LEFT.swap(u64::MAX, Ordering::SeqCst)
}

#[inline]
pub(super) fn point() {
    let left = POINTS_LEFT.load(Ordering::Relaxed);
    if left == u64::MAX {
        return;
    }
    if left == 0 {
        // SAFETY: no memory is involved; the process is gone when it returns, which it does not.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
            libc::pause();
        }
    }
    POINTS_LEFT.store(left - 1, Ordering::Relaxed);
}
