//! Kernel events of a process, read from a shared ring buffer: perf_event_open(2).
//!
//! All its `unsafe` is in this file.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// `perf_event_attr` in its first version, linux/perf_event.h.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Attributes {
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
/// Samples the time on a processor.
const CPU_CLOCK: u64 = 0;
/// Counts a task's time on a processor, in nanoseconds.
const TASK_CLOCK: u64 = 1;
const SAMPLE_TIME: u64 = 1 << 2;
/// Each sample carries the counts of all events of the group.
const SAMPLE_READ: u64 = 1 << 4;
const FORMAT_GROUP: u64 = 1 << 3;
const SAMPLE_IDENTIFIER: u64 = 1 << 16;
/// The period field is a frequency.
const FLAG_FREQUENCY: u64 = 1 << 10;
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;
const IOC_SET_OUTPUT: libc::c_ulong = 0x2405;
const IOC_ID: libc::c_ulong = 0x8008_2407;

pub const RECORD_LOST: u32 = 2;
pub const RECORD_SAMPLE: u32 = 9;

/// Offsets of the ring's two ends in `struct perf_event_mmap_page`.
const HEAD_OFFSET: usize = 1024;
const TAIL_OFFSET: usize = 1032;

/// One control page, then the ring.
const PAGE_BYTES: usize = 4096;
const RING_BYTES: usize = 128 * PAGE_BYTES;

/// A record's header: type, flags, length.
pub const HEAD_BYTES: usize = 8;

impl Attributes {
    fn grouped(kind: u32, config: u64) -> Self {
        Self {
            kind,
            size: size_of::<Attributes>() as u32,
            config,
            sample_type: SAMPLE_TIME | SAMPLE_READ | SAMPLE_IDENTIFIER,
            read_format: FORMAT_GROUP,
            ..Self::default()
        }
    }

    /// Every hit of a tracepoint, each with a sample: id, time, the number of counts of its group, the counts.
    pub fn tracepoint(number: u64) -> Self {
        Self {
            sample_period: 1,
            ..Self::grouped(KIND_TRACEPOINT, number)
        }
    }

    /// Counts the time on a processor, without samples.
    pub fn clock() -> Self {
        Self::grouped(KIND_SOFTWARE, TASK_CLOCK)
    }

    /// This many samples per second on a processor; the mode is in the record's header.
    pub fn ticks(per_second: u64) -> Self {
        Self {
            kind: KIND_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: CPU_CLOCK,
            sample_period: per_second,
            sample_type: SAMPLE_TIME,
            flags: FLAG_FREQUENCY,
            ..Self::default()
        }
    }
}

/// An event of a process, counted until dropped.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Starts to count an event of a process, in the group led by `leader`.
    pub fn open(pid: u32, attributes: &Attributes, leader: Option<&Event>) -> io::Result<Self> {
        let any_processor: libc::c_int = -1;
        let group = leader.map_or(-1, |leader| leader.0.as_raw_fd());
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
            Ok(fd @ 0..) => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The id in its samples.
    pub fn id(&self) -> io::Result<u64> {
        let mut id = 0_u64;
        // SAFETY: the call writes eight bytes.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), IOC_ID, &raw mut id) } {
            0 => Ok(id),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Redirects its samples into another event's ring, so that their common order is kept.
    pub fn write_to_ring_of(&self, other: &Event) -> io::Result<()> {
        // SAFETY: both descriptors are open; this call takes a descriptor by value.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), IOC_SET_OUTPUT, other.0.as_raw_fd()) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The ring buffer into which the kernel writes an event's records.
#[derive(Debug)]
pub struct Ring(NonNull<u8>);

/// One record written by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Record<'r> {
    ring: &'r Ring,
    position: u64,
    pub kind: u32,
    pub flags: u16,
    /// The record, including its header.
    pub bytes: usize,
}

impl Record<'_> {
    /// The number at this offset from the record's start.
    pub fn number(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.ring.bytes(self.position + offset as u64))
    }
}

impl Ring {
    pub fn of(event: &Event) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: asks for a new mapping anywhere.
        let map = unsafe {
            let (anywhere, fd) = (ptr::null_mut(), event.0.as_raw_fd());
            libc::mmap(anywhere, PAGE_BYTES + RING_BYTES, protection, libc::MAP_SHARED, fd, 0)
        };
        match NonNull::new(map.cast()) {
            Some(start) if map != libc::MAP_FAILED => Ok(Self(start)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Consumes all records present.
    pub fn take(&mut self, mut each: impl FnMut(Record<'_>)) {
        // Pairs with the kernel's release of the records it has written.
        let head = self.end(HEAD_OFFSET).load(Acquire);
        let mut tail = self.end(TAIL_OFFSET).load(Relaxed);
        while tail < head {
            let start = self.bytes::<HEAD_BYTES>(tail);
            let bytes = u16::from_le_bytes([start[6], start[7]]).max(HEAD_BYTES as u16);
            each(Record {
                ring: self,
                position: tail,
                kind: u32::from_le_bytes([start[0], start[1], start[2], start[3]]),
                flags: u16::from_le_bytes([start[4], start[5]]),
                bytes: usize::from(bytes),
            });
            tail += u64::from(bytes);
        }
        // Pairs with the kernel's check for room: everything before is read.
        self.end(TAIL_OFFSET).store(tail, Release);
    }

    fn end(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the mapping is longer than a page and page-aligned, both offsets are multiples of eight, and the kernel
        // accesses these words as whole ones.
        unsafe { self.0.add(offset).cast::<AtomicU64>().as_ref() }
    }

    /// The `N` bytes at `position` of the endless stream whose last part is in the ring.
    fn bytes<const N: usize>(&self, position: u64) -> [u8; N] {
        std::array::from_fn(|index| {
            let offset = PAGE_BYTES + (position as usize + index) % RING_BYTES;
            // SAFETY: the offset is inside the mapping, and the kernel does not write between tail and head.
            unsafe { self.0.add(offset).read_volatile() }
        })
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE_BYTES + RING_BYTES) };
    }
}
