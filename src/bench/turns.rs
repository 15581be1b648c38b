//! How long a server's event loops are away from `epoll_wait`: nobody else is served meanwhile. And how long they had a processor
//! in that time: the rest they waited for one, because somebody else had it.
//!
//! The kernel's tracepoints tell when a process enters that system call and when it returns, through a ring of memory
//! that is shared with the kernel (perf_event_open(2)). That takes root and a mounted tracefs, and about a microsecond of
//! the server's for each turn.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use anyhow::Context;

use crate::latency::Latency;

/// The watched loops of all processes of a server.
#[derive(Debug)]
pub struct Turns {
    loops: Vec<Loop>,
    seen: Seen,
}

/// What was seen of the turns of all loops.
#[derive(Debug)]
pub struct Seen {
    /// From each return of `epoll_wait` to the next call.
    pub away: Latency,
    /// The part of it with a processor.
    pub busy: Latency,
    /// Events that the kernel had no room for.
    pub lost: u64,
}

impl Turns {
    /// Begins to watch these processes.
    pub fn watch(pids: &[u32]) -> anyhow::Result<Self> {
        let enter = tracepoint("sys_enter_epoll_wait")?;
        let exit = tracepoint("sys_exit_epoll_wait")?;
        let watched = pids.iter().map(|pid| Loop::watch(*pid, enter, exit));
        Ok(Self {
            loops: watched.collect::<io::Result<_>>().context("perf_event_open")?,
            seen: Seen {
                away: Latency::new(),
                busy: Latency::new(),
                lost: 0,
            },
        })
    }

    /// Takes what has happened since the last call; to be called some times a second, for the rings are small.
    pub fn look(&mut self) {
        for watched in &mut self.loops {
            watched.look(&mut self.seen);
        }
    }

    /// All turns so far.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}

/// The number of a tracepoint on system calls.
fn tracepoint(name: &str) -> anyhow::Result<u64> {
    let path = format!("/sys/kernel/tracing/events/syscalls/{name}/id");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: is tracefs mounted, and are you root?"))?;
    text.trim().parse().with_context(|| format!("{path} is no number"))
}

/// `perf_event_attr` in its first version, linux/perf_event.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

const KIND_SOFTWARE: u32 = 1;
const KIND_TRACEPOINT: u32 = 2;
/// The time that a task has had a processor, in nanoseconds.
const TASK_CLOCK: u64 = 1;
const SAMPLE_TIME: u64 = 1 << 2;
/// With each sample, what all events of the group have counted.
const SAMPLE_READ: u64 = 1 << 4;
const FORMAT_GROUP: u64 = 1 << 3;
const SAMPLE_IDENTIFIER: u64 = 1 << 16;
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
const IOC_SET_OUTPUT: libc::c_ulong = 0x2405;
const IOC_ID: libc::c_ulong = 0x8008_2407;

const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;

/// Where `struct perf_event_mmap_page` has its two ends of the ring.
const HEAD_OFFSET: usize = 1024;
const TAIL_OFFSET: usize = 1032;

/// One page of administration, then the ring: room for ten thousand system calls between two looks.
const PAGE_BYTES: usize = 4096;
const RING_BYTES: usize = 128 * PAGE_BYTES;

/// A record's head: type, flags, length.
const HEAD_BYTES: usize = 8;
/// What this module asks for in a sample: id, time, and the number of counts and the counts themselves of the group, of which the
/// clock's is the second.
const SAMPLE_BYTES: usize = HEAD_BYTES + 24 + 8 * GROUP;
const CLOCK_OFFSET: u64 = HEAD_BYTES as u64 + 32;

/// Events that belong to a loop.
const GROUP: usize = 3;

/// One watched process.
#[derive(Debug)]
struct Loop {
    /// Entering, the clock, returning: open as long as they are to be counted.
    _events: [OwnedFd; GROUP],
    enter_id: u64,
    exit_id: u64,
    map: NonNull<u8>,
    returned: Option<Moment>,
}

/// On the monotonic clock and on the loop's own, which stands still while it has no processor.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time_ns: u64,
    clock_ns: u64,
}

impl Loop {
    fn watch(pid: u32, enter: u64, exit: u64) -> io::Result<Self> {
        let enter = open(pid, &Attributes::tracepoint(enter), None)?;
        let clock = open(pid, &Attributes::clock(), Some(&enter))?;
        let exit = open(pid, &Attributes::tracepoint(exit), Some(&enter))?;
        let map = map_ring(enter.as_raw_fd())?;
        let watched = Self {
            enter_id: event_id(enter.as_raw_fd())?,
            exit_id: event_id(exit.as_raw_fd())?,
            map,
            returned: None,
            _events: [enter, clock, exit],
        };
        let [enter, _, exit] = &watched._events;
        // Into the same ring, so that the order of both is kept.
        // SAFETY: both descriptors are open; this call takes a descriptor by value.
        let done = unsafe { libc::ioctl(exit.as_raw_fd(), IOC_SET_OUTPUT, enter.as_raw_fd()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(watched)
    }

    fn end(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the mapping is longer than a page and page-aligned, both offsets are multiples of eight, and the kernel
        // accesses these words as whole ones.
        unsafe { self.map.add(offset).cast::<AtomicU64>().as_ref() }
    }

    /// The `N` bytes at `position` of the endless stream of which the ring keeps the last part.
    fn bytes<const N: usize>(&self, position: u64) -> [u8; N] {
        std::array::from_fn(|index| {
            let offset = PAGE_BYTES + (position as usize + index) % RING_BYTES;
            // SAFETY: the offset is inside the mapping, and the kernel does not write between tail and head.
            unsafe { self.map.add(offset).read_volatile() }
        })
    }

    fn look(&mut self, seen: &mut Seen) {
        // Pairs with the kernel's release of what it has written.
        let head = self.end(HEAD_OFFSET).load(Acquire);
        let mut tail = self.end(TAIL_OFFSET).load(Relaxed);
        while tail < head {
            let record = self.bytes::<HEAD_BYTES>(tail);
            let kind = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            let length = u64::from(u16::from_le_bytes([record[6], record[7]]));
            match kind {
                RECORD_SAMPLE if length as usize >= SAMPLE_BYTES => {
                    let id = u64::from_le_bytes(self.bytes(tail + 8));
                    let moment = Moment {
                        time_ns: u64::from_le_bytes(self.bytes(tail + 16)),
                        clock_ns: u64::from_le_bytes(self.bytes(tail + CLOCK_OFFSET)),
                    };
                    self.sample(id, moment, seen);
                }
                RECORD_LOST => {
                    seen.lost += u64::from_le_bytes(self.bytes(tail + 16));
                    self.returned = None;
                }
                _ => {}
            }
            tail += length.max(HEAD_BYTES as u64);
        }
        // Pairs with the kernel's look at how much room there is: everything before is read.
        self.end(TAIL_OFFSET).store(tail, Release);
    }

    fn sample(&mut self, id: u64, now: Moment, seen: &mut Seen) {
        if id == self.exit_id {
            self.returned = Some(now);
        } else if id == self.enter_id
            && let Some(returned) = self.returned.take()
        {
            seen.away.record(now.time_ns.saturating_sub(returned.time_ns));
            seen.busy.record(now.clock_ns.saturating_sub(returned.clock_ns));
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), PAGE_BYTES + RING_BYTES) };
    }
}

impl Attributes {
    fn new(kind: u32, config: u64) -> Self {
        Self {
            kind,
            size: size_of::<Attributes>() as u32,
            config,
            sample_type: SAMPLE_TIME | SAMPLE_READ | SAMPLE_IDENTIFIER,
            read_format: FORMAT_GROUP,
            ..Self::default()
        }
    }

    /// Every passage through a tracepoint, each with a sample.
    fn tracepoint(number: u64) -> Self {
        Self {
            sample_period: 1,
            ..Self::new(KIND_TRACEPOINT, number)
        }
    }

    /// The time with a processor, only counted.
    fn clock() -> Self {
        Self::new(KIND_SOFTWARE, TASK_CLOCK)
    }
}

/// Begins to count an event of a process, in the group that `leader` leads.
fn open(pid: u32, attributes: &Attributes, leader: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let any_processor: libc::c_int = -1;
    let group = leader.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: the attributes are valid and say how long they are.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            ptr::from_ref(attributes),
            pid as libc::pid_t,
            any_processor,
            group,
            CLOSE_ON_EXEC,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn map_ring(fd: RawFd) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: asks for a new mapping anywhere.
    let map = unsafe {
        let anywhere = std::ptr::null_mut();
        libc::mmap(anywhere, PAGE_BYTES + RING_BYTES, protection, libc::MAP_SHARED, fd, 0)
    };
    match NonNull::new(map.cast()) {
        Some(start) if map != libc::MAP_FAILED => Ok(start),
        _ => Err(io::Error::last_os_error()),
    }
}

fn event_id(fd: RawFd) -> io::Result<u64> {
    let mut id = 0_u64;
    // SAFETY: the call writes eight bytes.
    match unsafe { libc::ioctl(fd, IOC_ID, &raw mut id) } {
        0 => Ok(id),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Epoll;
    use std::time::Duration;

    #[test]
    fn a_loop_s_absence_is_seen() {
        // Only root may, and only where tracefs is mounted: elsewhere it must say so.
        let mut turns = match Turns::watch(&[std::process::id()]) {
            Ok(turns) => turns,
            Err(error) => {
                return assert!(format!("{error:#}").contains("tracefs") || format!("{error:#}").contains("perf"));
            }
        };
        let mut epoll = Epoll::new().unwrap();
        // The main thread is the one that is watched by a process' id; tests run in others.
        let own = unsafe { libc::gettid() } as u32;
        turns.loops = Turns::watch(&[own]).unwrap().loops;
        for pause in [0, 0, 20] {
            epoll.wait(Some(Duration::ZERO)).unwrap();
            std::thread::sleep(Duration::from_millis(pause));
        }
        epoll.wait(Some(Duration::ZERO)).unwrap();
        turns.look();
        let Seen { away, busy, lost } = turns.seen();
        assert_eq!((away.count(), busy.count(), *lost), (3, 3, 0));
        let longest = away.at(100.0);
        assert!(longest >= Duration::from_millis(20), "{longest:?}");
        // Who sleeps has no processor.
        let busiest = busy.at(100.0);
        assert!(
            busiest > Duration::ZERO && busiest < longest,
            "{busiest:?} of {longest:?}"
        );
    }
}
