//! The shared memory zone: its choice, size, and life across reloads.
//!
//! nginx maps the zone once and passes the mapping on to every later cycle as long as name, size and tag stay the same.
//! So a changed size is ignored (the running zone's size is looked up in the previous cycle), and the tag is a number
//! derived from the layout, not an address: a replaced .so finds its zone again; another layout gets a new one.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::io;
use std::ptr;

use ngx::ffi::*;
use ngx::{ngx_conf_log_error, ngx_log_error, ngx_string};
use push_stream_core::store::{LAYOUT_VERSION, Now, Zone};

use super::main::Main;
use super::place::Place;
use super::values::REPORTED;
use crate::ffi::cell::ProcessCell;
use crate::ffi::directive::Conf;
use crate::ffi::{panic_guard, shared_memory};

/// Identifies zones of this module and layout: "pushs" and the layout's number.
const TAG: usize = 0x70_7573_6873_0000 | LAYOUT_VERSION as usize;

/// Pages of the smallest zone.
const MIN_PAGES: usize = 32;

/// Worker slots that every zone has. Old and new workers live side by side after a reload.
const MIN_SLOTS: usize = 64;

/// Bytes of zone for each slot reserved for a later, higher `worker_processes`: the slots take a thirty-second part of
/// the zone.
const ZONE_PER_SLOT: usize = 32 * Zone::BYTES_PER_SLOT;

/// One `push_stream_shared_memory_size` line.
pub struct Wanted {
    pub name: Pinned,
    pub size: usize,
    place: Option<Place>,
}

/// A string in the cycle's pool.
#[derive(Clone, Copy, PartialEq)]
pub struct Pinned(pub ngx_str_t);

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Wanted {
    /// Parses `SIZE [NAME]`; logs what is wrong with it.
    pub fn parse(conf: Conf<'_>, words: &[ngx_str_t]) -> Result<Wanted, *mut c_char> {
        // SAFETY: set by nginx before any configuration is read, and constant.
        let page = unsafe { ngx_pagesize };
        let size = words.get(1).map_or(0, |word| {
            let mut word = *word;
            // SAFETY: `word` is a valid string.
            let size = unsafe { ngx_parse_offset(&mut word) };
            usize::try_from(size).unwrap_or(0).next_multiple_of(page)
        });
        if size < MIN_PAGES * page {
            let least = MIN_PAGES * page / 1024;
            ngx_conf_log_error!(
                NGX_LOG_WARN,
                conf.raw(),
                "The push_stream_shared_memory_size value must be at least {least}KiB"
            );
            return Err(REPORTED);
        }
        let name = Pinned(words.get(2).copied().unwrap_or(ngx_string!("push_stream_module")));
        let place = Place::of(conf);
        Ok(Wanted { name, size, place })
    }
}

/// Registers the zone of this cycle, the last one wanted. `init` gets `main`; the next cycle's `init` gets it too, as a
/// sign that the memory is in use, and must not dereference it.
///
/// # Safety
/// `main` lives as long as the cycle.
pub unsafe fn add(conf: Conf<'_>, wanted: &[Wanted], main: *mut Main) -> Result<*mut ngx_shm_zone_t, *mut c_char> {
    let Some((last, ignored)) = wanted.split_last() else {
        return Ok(ptr::null_mut());
    };
    for zone in ignored {
        let warn = || {
            ngx_conf_log_error!(
                NGX_LOG_WARN,
                conf.raw(),
                "push stream module: there is one zone only, \"{}\" is used instead of \"{}\"",
                last.name,
                zone.name
            );
        };
        Place::during(zone.place, conf, warn);
    }
    let size = keep_running_size(conf, last);
    let mut name = last.name.0;
    // SAFETY: the name is in the cycle's pool or a constant.
    unsafe {
        let zone = ngx_shared_memory_add(conf.raw(), &mut name, size, TAG as *mut c_void);
        let Some(zone) = zone.as_mut() else {
            return Err(REPORTED);
        };
        zone.init = Some(init);
        zone.data = main.cast();
        ngx_conf_log_error!(
            NGX_LOG_INFO,
            conf.raw(),
            "Using {}KiB of shared memory for push stream module on zone: {}",
            size / 1024,
            last.name
        );
        Ok(zone)
    }
}

/// The running zone's size, kept: nginx would replace a zone whose size changed, and all messages would be lost.
fn keep_running_size(conf: Conf<'_>, wanted: &Wanted) -> usize {
    // SAFETY: the previous cycle is alive while the next one is read.
    match unsafe { shared_memory::size_in(conf.old_cycle(), wanted.name.0, TAG) } {
        Some(running) if running != wanted.size => {
            ngx_conf_log_error!(
                NGX_LOG_WARN,
                conf.raw(),
                "Cannot change memory area size without restart, ignoring change on zone: {}",
                wanted.name
            );
            running
        }
        _ => wanted.size,
    }
}

/// nginx calls this once the zone is mapped; `old` is NULL for new memory.
///
/// No configuration is written to shared memory: the reload may still fail.
unsafe extern "C" fn init(zone: *mut ngx_shm_zone_t, old: *mut c_void) -> ngx_int_t {
    panic_guard::guard(
        "zone init",
        || NGX_ERROR as ngx_int_t,
        || {
            // SAFETY: nginx passes a mapped zone whose slab pool it has initialized.
            let result = unsafe {
                let workers = (*(*zone).data.cast::<Main>()).worker_processes();
                if old.is_null() {
                    shared_memory::create(zone, |len| slots(workers, len))
                } else {
                    shared_memory::attach(zone).and_then(|zone| admit(&zone, workers))
                }
            };
            match result {
                Ok(_) => NGX_OK as ngx_int_t,
                Err(reason) => {
                    let log = ngx::log::ngx_cycle_log().as_ptr();
                    // SAFETY: the zone's name lives as long as the cycle.
                    let name = unsafe { (*zone).shm.name };
                    ngx_log_error!(NGX_LOG_EMERG, log, "push stream: zone \"{name}\": {reason}");
                    NGX_ERROR as ngx_int_t
                }
            }
        },
    )
}

/// Slots of a new zone: the workers of two generations, also if a later configuration says `auto`.
fn slots(workers: usize, len: usize) -> u16 {
    // SAFETY: set by nginx before any configuration is read, and constant.
    let processors = usize::try_from(unsafe { ngx_ncpu }).unwrap_or(1);
    let generations = |workers: usize| 2 * workers + 8;
    let later = generations(processors).min(len / ZONE_PER_SLOT);
    u16::try_from(MIN_SLOTS.max(generations(workers)).max(later)).unwrap_or(u16::MAX)
}

/// Refuses a reload with more workers than the zone has slots: the excess would answer 503.
fn admit(zone: &Zone, workers: usize) -> Result<Zone, String> {
    let slots = usize::from(zone.slots());
    if workers > slots {
        return Err(format!(
            "it was made for {slots} worker processes at most, and worker_processes is {workers} now: restart nginx for that"
        ));
    }
    let alive = zone.summary(Now::read()).workers.len();
    if alive + workers > slots {
        ngx_log_error!(
            NGX_LOG_WARN,
            ngx::log::ngx_cycle_log().as_ptr(),
            "push stream: the zone has {slots} slots, for {workers} new workers beside {alive} that are still there: \
             some wait for one, and answer 503 meanwhile"
        );
    }
    Ok(*zone)
}

/// The eventfds of this process family, kept in case a reload brings a new zone.
static WAKE_FDS: ProcessCell<Vec<i32>> = ProcessCell::empty();

/// Fills in the zone's eventfds, one per slot, if it has none.
pub fn prepare_wake_fds(zone: &Zone) -> io::Result<()> {
    if !zone.wake_fds().is_empty() {
        return Ok(());
    }
    let slots = usize::from(zone.slots());
    let mut fds = WAKE_FDS.take().unwrap_or_default();
    let made = add_eventfds(&mut fds, slots);
    if made.is_ok() {
        zone.set_wake_fds(&fds[..slots]);
    }
    // If there are too few, the next cycle continues with these.
    WAKE_FDS.set(fds);
    made
}

fn add_eventfds(fds: &mut Vec<i32>, wanted: usize) -> io::Result<()> {
    while fds.len() < wanted {
        fds.push(shared_memory::eventfd()?);
    }
    Ok(())
}

/// Forgets the eventfds at the end of a process, which closes them.
pub fn forget_wake_fds() {
    drop(WAKE_FDS.take());
}
