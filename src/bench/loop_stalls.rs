//! Time that a server's event loops spend outside `epoll_wait`: other connections are not served meanwhile. And how
//! much of it was on a processor: for the rest they waited for one that was busy elsewhere.
//!
//! The kernel's tracepoints report when a process enters that system call and when it returns. That needs root and a
//! mounted tracefs, and about a microsecond of the server's time per turn.

use std::fs;
use std::io;

use anyhow::Context;

use crate::latency::Latency;
use crate::perf::{Attributes, Event, HEAD_BYTES, RECORD_LOST, RECORD_SAMPLE, Record, Ring};

/// The watched loops of all processes of a server.
#[derive(Debug)]
pub struct LoopStalls {
    loops: Vec<Loop>,
    seen: Seen,
}

/// Measurements of the turns of all loops.
#[derive(Debug)]
pub struct Seen {
    /// From each return of `epoll_wait` to the next call.
    pub away: Latency,
    /// Its part on a processor.
    pub busy: Latency,
    /// Events dropped by the kernel for lack of room.
    pub lost: u64,
}

impl LoopStalls {
    /// Starts to watch these processes.
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

    /// Takes the events since the last call; call several times a second, since the rings hold ten thousand system
    /// calls.
    pub fn look(&mut self) {
        for watched in &mut self.loops {
            watched.look(&mut self.seen);
        }
    }

    /// Ends the watch: returns all turns so far.
    pub fn end(mut self) -> Seen {
        self.look();
        self.seen
    }
}

/// The number of a tracepoint on system calls.
fn tracepoint(name: &str) -> anyhow::Result<u64> {
    let path = format!("/sys/kernel/tracing/events/syscalls/{name}/id");
    let text = fs::read_to_string(&path).with_context(|| format!("{path}: is tracefs mounted, and are you root?"))?;
    text.trim().parse().with_context(|| format!("{path} is no number"))
}

/// Layout of a sample: its id, the time, and the number of counts and the counts themselves of the group, of which the
/// clock's is the second.
const ID_OFFSET: usize = HEAD_BYTES;
const TIME_OFFSET: usize = HEAD_BYTES + 8;
const CLOCK_OFFSET: usize = HEAD_BYTES + 32;
const SAMPLE_BYTES: usize = HEAD_BYTES + 24 + 8 * GROUP;
/// Offset of the count in a record of lost events.
const LOST_OFFSET: usize = HEAD_BYTES + 8;

/// Events per loop.
const GROUP: usize = 3;

/// One watched process.
#[derive(Debug)]
struct Loop {
    /// Entering, the clock, returning: open while they are counted.
    _events: [Event; GROUP],
    ring: Ring,
    passages: Passages,
}

/// State of a loop between entering and leaving the system call.
#[derive(Debug)]
struct Passages {
    enter_id: u64,
    exit_id: u64,
    returned: Option<Moment>,
}

/// Time on the monotonic clock and on the loop's own, which stands still while it has no processor.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time_ns: u64,
    clock_ns: u64,
}

impl Loop {
    fn watch(pid: u32, enter: u64, exit: u64) -> io::Result<Self> {
        let enter = Event::open(pid, &Attributes::tracepoint(enter), None)?;
        let clock = Event::open(pid, &Attributes::clock(), Some(&enter))?;
        let exit = Event::open(pid, &Attributes::tracepoint(exit), Some(&enter))?;
        let ring = Ring::of(&enter)?;
        exit.write_to_ring_of(&enter)?;
        Ok(Self {
            ring,
            passages: Passages {
                enter_id: enter.id()?,
                exit_id: exit.id()?,
                returned: None,
            },
            _events: [enter, clock, exit],
        })
    }

    fn look(&mut self, seen: &mut Seen) {
        let Self { ring, passages, .. } = self;
        ring.take(|record| passages.record(record, seen));
    }
}

impl Passages {
    fn record(&mut self, record: Record<'_>, seen: &mut Seen) {
        match record.kind {
            RECORD_SAMPLE if record.bytes >= SAMPLE_BYTES => {
                let now = Moment {
                    time_ns: record.number(TIME_OFFSET),
                    clock_ns: record.number(CLOCK_OFFSET),
                };
                self.sample(record.number(ID_OFFSET), now, seen);
            }
            RECORD_LOST => {
                seen.lost += record.number(LOST_OFFSET);
                self.returned = None;
            }
            _ => {}
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Epoll;
    use std::time::Duration;

    #[test]
    fn a_loop_s_absence_is_seen() {
        // Only root may watch, and only with tracefs mounted: otherwise an error must be returned.
        let mut loop_stalls = match LoopStalls::watch(&[std::process::id()]) {
            Ok(loop_stalls) => loop_stalls,
            Err(error) => {
                return assert!(format!("{error:#}").contains("tracefs") || format!("{error:#}").contains("perf"));
            }
        };
        let mut epoll = Epoll::new().unwrap();
        // The main thread is the one that is watched by a process' id; tests run in others.
        // SAFETY: it only asks.
        let own = unsafe { libc::gettid() } as u32;
        loop_stalls.loops = LoopStalls::watch(&[own]).unwrap().loops;
        for pause in [0, 0, 20] {
            epoll.wait(Some(Duration::ZERO)).unwrap();
            std::thread::sleep(Duration::from_millis(pause));
        }
        epoll.wait(Some(Duration::ZERO)).unwrap();
        let Seen { away, busy, lost } = loop_stalls.end();
        assert_eq!((away.count(), busy.count(), lost), (3, 3, 0));
        let longest = away.at(100.0);
        assert!(longest >= Duration::from_millis(20), "{longest:?}");
        // A sleeping thread uses no processor.
        let busiest = busy.at(100.0);
        assert!(
            busiest > Duration::ZERO && busiest < longest,
            "{busiest:?} of {longest:?}"
        );
    }
}
