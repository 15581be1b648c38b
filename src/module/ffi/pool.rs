//! Rust values that live as long as an nginx pool.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use ngx::ffi::{ngx_pool_cleanup_add, ngx_pool_t};

use super::fence;

/// Moves `value` into `pool`; it is dropped when the pool is destroyed. None if there is no memory.
///
/// # Safety
/// `pool` is a valid pool. The pointer is valid until the pool is destroyed.
pub unsafe fn place<T>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    // SAFETY: the pool is valid; the cleanup record is ours until the pool runs it.
    unsafe {
        let cleanup = ngx_pool_cleanup_add(pool, 0).as_mut()?;
        let place = Box::into_raw(Box::new(value));
        cleanup.data = place.cast();
        cleanup.handler = Some(drop_box::<T>);
        NonNull::new(place)
    }
}

unsafe extern "C" fn drop_box<T>(data: *mut c_void) {
    // SAFETY: `place` registered this pointer with this type, and a pool runs each cleanup once.
    fence::event("pool cleanup", || unsafe { drop(Box::from_raw(data.cast::<T>())) });
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
