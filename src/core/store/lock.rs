//! Process-shared robust mutexes: locks that do not outlive their owner.

use libc::pthread_mutex_t;

/// How a lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Clean,
    /// Its owner died holding it. The guarded data needs a repair, and then [`consistent`], before the unlock.
    OwnerDied,
}

/// The result of [`try_lock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    Taken(Taken),
    /// A living process (or this one) holds it.
    Busy,
}

/// Makes the lock.
///
/// # Safety
/// `mutex` points to memory shared by all its users, aligned to 8, that is not in use as a lock yet.
pub unsafe fn init(mutex: *mut pthread_mutex_t) -> Result<(), i32> {
    // SAFETY: the attribute object lives through the calls that use it; the caller guarantees that `mutex` is valid.
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        check(libc::pthread_mutexattr_init(&mut attributes))?;
        check(libc::pthread_mutexattr_setpshared(
            &mut attributes,
            libc::PTHREAD_PROCESS_SHARED,
        ))?;
        check(libc::pthread_mutexattr_setrobust(
            &mut attributes,
            libc::PTHREAD_MUTEX_ROBUST,
        ))?;
        let made = check(libc::pthread_mutex_init(mutex, &attributes));
        libc::pthread_mutexattr_destroy(&mut attributes);
        made
    }
}

/// Takes the lock, waiting for a living owner.
///
/// # Safety
/// `mutex` was made by [`init`] and is not held by this thread.
pub unsafe fn lock(mutex: *mut pthread_mutex_t) -> Taken {
    // SAFETY: guaranteed by the caller.
    match unsafe { libc::pthread_mutex_lock(mutex) } {
        0 => Taken::Clean,
        libc::EOWNERDEAD => Taken::OwnerDied,
        // Any other error means a lock unlocked without repair, held twice or never made: the zone is lost, and going
        // on would corrupt it. The master starts a new worker, which fails the same way; the log gives the reason.
        error => fatal("taken", error),
    }
}

/// Takes the lock if no living process has it.
///
/// # Safety
/// As for [`lock`], but this thread may hold it: then it is busy.
pub unsafe fn try_lock(mutex: *mut pthread_mutex_t) -> Tried {
    // SAFETY: guaranteed by the caller.
    match unsafe { libc::pthread_mutex_trylock(mutex) } {
        0 => Tried::Taken(Taken::Clean),
        libc::EOWNERDEAD => Tried::Taken(Taken::OwnerDied),
        _ => Tried::Busy,
    }
}

/// Declares the data that the lock guards whole again.
///
/// # Safety
/// This thread took it as [`Taken::OwnerDied`].
pub unsafe fn consistent(mutex: *mut pthread_mutex_t) {
    // SAFETY: guaranteed by the caller.
    unsafe { libc::pthread_mutex_consistent(mutex) };
}

/// # Safety
/// This thread holds it, and it is consistent.
pub unsafe fn unlock(mutex: *mut pthread_mutex_t) {
    // SAFETY: guaranteed by the caller.
    unsafe { libc::pthread_mutex_unlock(mutex) };
}

fn check(result: i32) -> Result<(), i32> {
    if result == 0 { Ok(()) } else { Err(result) }
}

fn fatal(what: &str, error: i32) -> ! {
    eprintln!("push stream: the zone's lock cannot be {what}: error {error}");
    std::process::abort()
}
