//! Shared memory: nginx's slab pools, which hold a zone each, eventfds, and plain words.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::AtomicU64;

use ngx::ffi::*;
use push_stream_core::store::{Now, Zone};

/// Takes all pages of the slab pool in one allocation and lays the zone out in them.
///
/// # Safety
/// `zone` is mapped, new, and nginx has made its slab pool.
pub unsafe fn create(zone: *mut ngx_shm_zone_t, slots: impl FnOnce(usize) -> u16) -> Result<Zone, String> {
    // SAFETY: the pool is fresh, so its free pages are one run; the memory is zero as mapped, because nginx's slab
    // only writes into the page table.
    unsafe {
        let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
        (*pool).set_log_nomem(0);
        let len = capacity(pool);
        let memory = ngx_slab_alloc(pool, len).cast::<u8>();
        if memory.is_null() {
            return Err(format!("cannot take its {len} bytes"));
        }
        let zone = Zone::create(memory, len, slots(len), Now::read()).map_err(|error| error.to_string())?;
        (*pool).data = memory.cast();
        Ok(zone)
    }
}

/// Opens the zone made by an earlier cycle.
///
/// # Safety
/// `zone` is mapped, by [`create`] in an earlier cycle.
pub unsafe fn attach(zone: *mut ngx_shm_zone_t) -> Result<Zone, String> {
    // SAFETY: `create` left the memory's address here; it is mapped at the same address in every process.
    unsafe {
        let pool = (*zone).shm.addr.cast::<ngx_slab_pool_t>();
        let memory = (*pool).data.cast::<u8>();
        if memory.is_null() {
            return Err("the running zone was never laid out".into());
        }
        Zone::attach(memory, capacity(pool)).map_err(|error| error.to_string())
    }
}

/// The zone of a cycle whose shared memory is mapped.
///
/// # Safety
/// `zone` is NULL or a zone that this module registered.
pub unsafe fn open(zone: *const ngx_shm_zone_t) -> Option<Zone> {
    // SAFETY: as above; it was made, or the cycle would not run.
    unsafe {
        let pool = zone.as_ref()?.shm.addr.cast::<ngx_slab_pool_t>();
        let memory = pool.as_ref()?.data.cast::<u8>();
        if memory.is_null() {
            return None;
        }
        Zone::attach(memory, capacity(pool)).ok()
    }
}

/// The size of a zone of a cycle, by its name and tag.
///
/// # Safety
/// `old` is NULL or alive.
pub unsafe fn size_in(old: *const ngx_cycle_t, name: ngx_str_t, tag: usize) -> Option<usize> {
    // SAFETY: the list's parts hold `nelts` zones each; the first cycle's list is empty.
    unsafe {
        let mut part: *const ngx_list_part_t = &raw const old.as_ref()?.shared_memory.part;
        while let Some(zones) = part.as_ref() {
            for index in 0..zones.nelts {
                let zone = &*zones.elts.cast::<ngx_shm_zone_t>().add(index);
                if zone.shm.name == name && zone.tag == tag as *mut c_void {
                    return Some(zone.shm.size);
                }
            }
            part = zones.next;
        }
    }
    None
}

/// Bytes in all pages of the slab pool.
unsafe fn capacity(pool: *const ngx_slab_pool_t) -> usize {
    // SAFETY: `pages..last` is the pool's page table.
    unsafe { (*pool).last.offset_from((*pool).pages) as usize * ngx_pagesize }
}

/// A new eventfd; workers inherit it.
pub fn eventfd() -> io::Result<i32> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(fd)
    }
}

/// So many words, all zero, as long as any process lives. None if there is no memory.
pub fn words(count: usize) -> Option<&'static [AtomicU64]> {
    let len = count.checked_mul(size_of::<AtomicU64>())?;
    // SAFETY: a new mapping touches nothing that exists.
    let address = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping has that many aligned words, is zero, is never unmapped, and is used as atomics only.
    Some(unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), count) })
}
