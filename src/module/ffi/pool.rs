//! Rust values that live as long as an nginx pool.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use ngx::ffi::{ngx_pool_cleanup_add, ngx_pool_cleanup_t, ngx_pool_t};

use super::panic_guard;

/// A value in a pool, with its destructor. All types share one cleanup handler, so that it can be told from other
/// modules' handlers.
struct Placed {
    value: *mut c_void,
    drop: unsafe fn(*mut c_void),
}

/// The handler of every cleanup that [`place`] registers.
static CLEANUP: unsafe extern "C" fn(*mut c_void) = clean_up;

/// Moves `value` into `pool`; it is dropped when the pool is destroyed. None if out of memory.
///
/// # Safety
/// `pool` is a valid pool. The pointer is valid until the pool is destroyed.
pub unsafe fn place<T>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    // SAFETY: the pool is valid; the cleanup record and its data are ours until the pool runs it.
    unsafe {
        let cleanup = ngx_pool_cleanup_add(pool, size_of::<Placed>()).as_mut()?;
        let value = Box::into_raw(Box::new(value));
        cleanup.data.cast::<Placed>().write(Placed {
            value: value.cast(),
            drop: drop_box::<T>,
        });
        cleanup.handler = Some(CLEANUP);
        NonNull::new(value)
    }
}

/// Gives a value to `pool`, as [`place`]. It stays where it is; without memory for that it is never dropped.
///
/// # Safety
/// `pool` is a valid pool.
pub unsafe fn keep<T>(pool: *mut ngx_pool_t, value: Box<T>) {
    let value = Box::into_raw(value);
    // SAFETY: as in `place`.
    unsafe {
        if let Some(cleanup) = ngx_pool_cleanup_add(pool, size_of::<Placed>()).as_mut() {
            cleanup.data.cast::<Placed>().write(Placed {
                value: value.cast(),
                drop: drop_box::<T>,
            });
            cleanup.handler = Some(CLEANUP);
        }
    }
}

/// Did [`place`] register this cleanup?
pub fn is_own(cleanup: &ngx_pool_cleanup_t) -> bool {
    cleanup
        .handler
        .is_some_and(|handler| handler as usize == CLEANUP as usize)
}

/// Did [`place`] register all of these cleanups?
///
/// # Safety
/// A list of cleanups, which ends with NULL.
pub unsafe fn are_own(mut cleanup: *const ngx_pool_cleanup_t) -> bool {
    // SAFETY: guaranteed by the caller.
    while let Some(entry) = unsafe { cleanup.as_ref() } {
        if entry.handler.is_some() && !is_own(entry) {
            return false;
        }
        cleanup = entry.next;
    }
    true
}

unsafe extern "C" fn clean_up(data: *mut c_void) {
    panic_guard::event("pool cleanup", || {
        // SAFETY: `place` filled the record, and a pool runs each cleanup once.
        unsafe {
            let placed = data.cast::<Placed>().read();
            (placed.drop)(placed.value);
        }
    });
}

unsafe fn drop_box<T>(value: *mut c_void) {
    // SAFETY: `place` made the pointer from a box of this type.
    drop(unsafe { Box::from_raw(value.cast::<T>()) });
}

/// Copies `bytes` into the pool.
///
/// # Safety
/// `pool` is a valid pool. The copy is valid until the pool is destroyed.
pub unsafe fn copy(pool: *mut ngx_pool_t, bytes: &[u8]) -> Option<NonNull<u8>> {
    // SAFETY: the pool is valid, and gives at least `len` bytes or NULL.
    unsafe {
        let place = NonNull::new(ngx::ffi::ngx_pnalloc(pool, bytes.len().max(1)).cast::<u8>())?;
        ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_ptr(), bytes.len());
        Some(place)
    }
}
