//! The user-mode share of a server's processor time.
//!
//! The kernel's own account (utime) is made in ticks of 10 ms and is too coarse over a few seconds. So a kernel timer
//! samples the mode a thousand times per second on a processor. That needs root.

use std::io;

use crate::perf::{Attributes, Event, RECORD_SAMPLE, Ring};

/// Samples per second: a prime, so that they are not synchronous with activity every millisecond.
const LOOKS_PER_SECOND: u64 = 997;

/// Mode bits in a record's flags, and their values for kernel and user mode.
const MODE_MASK: u16 = 7;
const KERNEL_MODE: u16 = 1;
const USER_MODE: u16 = 2;

/// Watched processes.
#[derive(Debug)]
pub struct Modes(Vec<(Event, Ring)>);

/// Number of samples per mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    pub user: u64,
    pub kernel: u64,
}

impl Modes {
    /// Starts to watch these processes.
    pub fn watch(pids: &[u32]) -> io::Result<Self> {
        let watch = |pid: &u32| {
            let event = Event::open(*pid, &Attributes::ticks(LOOKS_PER_SECOND), None)?;
            let ring = Ring::of(&event)?;
            Ok((event, ring))
        };
        Ok(Self(pids.iter().map(watch).collect::<io::Result<_>>()?))
    }

    /// Samples since the start, or of the first half minute on a processor: then the rings are full.
    pub fn end(mut self) -> Looks {
        let mut looks = Looks::default();
        for (_, ring) in &mut self.0 {
            ring.take(|record| match record.flags & MODE_MASK {
                KERNEL_MODE if record.kind == RECORD_SAMPLE => looks.kernel += 1,
                USER_MODE if record.kind == RECORD_SAMPLE => looks.user += 1,
                _ => {}
            });
        }
        looks
    }
}

impl Looks {
    /// The user-mode share, if there are samples.
    pub fn user_part(self) -> Option<f64> {
        let all = self.user + self.kernel;
        (all > 0).then(|| self.user as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::now_ns;

    #[test]
    fn who_computes_is_in_user_mode() {
        // SAFETY: it only asks.
        let own = unsafe { libc::gettid() } as u32;
        // Needs root.
        let Ok(modes) = Modes::watch(&[own]) else {
            return;
        };
        let end = now_ns() + 200_000_000;
        let mut sum = 0_u64;
        while now_ns() < end {
            sum = (0..10_000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
        }
        let looks = modes.end();
        let part = looks.user_part();
        // Beside other processes it may have had little processor time.
        assert!(part.is_none_or(|part| part > 0.5), "{looks:?}");
    }

    #[test]
    fn the_part_in_user_mode_is_known_only_if_something_was_seen() {
        assert_eq!(Looks::default().user_part(), None);
        assert_eq!(Looks { user: 1, kernel: 3 }.user_part(), Some(0.25));
    }
}
