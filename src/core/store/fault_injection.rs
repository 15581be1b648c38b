//! Fault injection for tests: death or a panic at a chosen instruction, or a shortage of blocks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Points still to pass before the fault; `u64::MAX` = not armed.
static POINTS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Blocks still available before the shortage, single or permanent; `u64::MAX` = not armed.
static BLOCKS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);
static FOR_GOOD: AtomicBool = AtomicBool::new(false);
static WAS_SHORT: AtomicBool = AtomicBool::new(false);

/// The fault is a panic, not death.
static PANICS: AtomicBool = AtomicBool::new(false);

/// Arms the death of this process after `points` more points: like SIGKILL, with no code run on the way.
pub fn arm(points: u64) {
    PANICS.store(false, Ordering::SeqCst);
    POINTS_LEFT.store(points, Ordering::SeqCst);
}

/// Arms a panic of this process after `points` more points inside a mutation.
pub fn arm_panic(points: u64) {
    PANICS.store(true, Ordering::SeqCst);
    POINTS_LEFT.store(points, Ordering::SeqCst);
}

/// Arms a shortage in this process: after `blocks` more blocks the zone has none, once or from then on.
pub fn arm_shortage(blocks: u64, for_good: bool) {
    FOR_GOOD.store(for_good, Ordering::SeqCst);
    WAS_SHORT.store(false, Ordering::SeqCst);
    BLOCKS_LEFT.store(blocks, Ordering::SeqCst);
}

/// Ends the shortage. True if it has not occurred.
pub fn disarm_shortage() -> bool {
    BLOCKS_LEFT.store(u64::MAX, Ordering::SeqCst);
    !WAS_SHORT.load(Ordering::SeqCst)
}

/// Counts a taken block; true if the shortage is in effect.
pub(super) fn is_short() -> bool {
    match BLOCKS_LEFT.load(Ordering::Relaxed) {
        u64::MAX => false,
        0 => {
            WAS_SHORT.store(true, Ordering::Relaxed);
            if !FOR_GOOD.load(Ordering::Relaxed) {
                BLOCKS_LEFT.store(u64::MAX, Ordering::Relaxed);
            }
            true
        }
        left => {
            BLOCKS_LEFT.store(left - 1, Ordering::Relaxed);
            false
        }
    }
}

/// Disarms. True if the fault has not occurred.
pub fn disarm() -> bool {
    POINTS_LEFT.swap(u64::MAX, Ordering::SeqCst) != u64::MAX
}

/// Blocks lent to the undo log in this process.
static BORROWED: AtomicU64 = AtomicU64::new(0);

pub(super) fn note_borrowed() {
    BORROWED.fetch_add(1, Ordering::Relaxed);
}

/// Number of blocks lent to the undo log in this process.
pub fn borrowed() -> u64 {
    BORROWED.load(Ordering::Relaxed)
}

/// Points still to pass before the armed fault.
pub fn left() -> u64 {
    POINTS_LEFT.load(Ordering::SeqCst)
}

/// A point at which a process can die.
#[inline]
pub(super) fn point() {
    if !PANICS.load(Ordering::Relaxed) {
        pass();
    }
}

/// A point at which a process can die or panic: inside a mutation that can be undone.
#[inline]
pub(super) fn mutation_point() {
    pass();
}

fn pass() {
    let left = POINTS_LEFT.load(Ordering::Relaxed);
    if left == u64::MAX {
        return;
    }
    if left > 0 {
        POINTS_LEFT.store(left - 1, Ordering::Relaxed);
        return;
    }
    if PANICS.load(Ordering::Relaxed) {
        // Only this once: undoing the mutation passes the same points.
        POINTS_LEFT.store(u64::MAX, Ordering::Relaxed);
        panic!("injected fault: a panic inside a mutation");
    }
    // SAFETY: no memory is involved; the process is gone when it returns, which it does not.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::pause();
    }
}
