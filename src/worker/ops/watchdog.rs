//! Watchdog: detects threads that make no progress.
//!
//! Each thread, and each source and publisher on it, keeps a [`Beat`]. A thread silent for 5 s is logged and makes
//! `/health` answer 503; after 30 s the process aborts, so that a supervisor starts a new one and a successor takes
//! over the claims. Under systemd with `WatchdogSec=` the supervisor is notified as long as no thread is silent.
//!
//! Silence is measured on the watchdog's own clock, which stands still while the watchdog itself does not run: a
//! process that was stopped as a whole (SIGSTOP, a frozen cgroup, a paused machine) has no stuck threads.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Interval of each thread's beats.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A thread silent for this long is stuck.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
/// A thread silent for this long will not recover.
const ABORT_LIMIT: Duration = Duration::from_secs(30);
/// A check later than this was not delayed by load: the process did not run.
const HOLD_UP: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Watchdog {
    clock: Arc<Clock>,
    watched: Mutex<Vec<Weak<Watched>>>,
}

/// Milliseconds that the watchdog ran, advanced by each of its checks. Independent of everything else, so relaxed.
#[derive(Debug, Default)]
struct Clock {
    now_ms: AtomicU64,
    /// The end of the last hold-up. No beat counts as older than this.
    resumed_ms: AtomicU64,
}

#[derive(Debug)]
struct Watched {
    name: String,
    clock: Arc<Clock>,
    /// The clock at the last beat.
    last_ms: AtomicU64,
}

/// One thread's watchdog beat. Once dropped, the thread is no longer watched.
#[derive(Debug)]
pub struct Beat(Arc<Watched>);

impl Beat {
    /// Beats for as long as the future is polled; it never completes.
    pub async fn keep(&self) {
        loop {
            self.0.beat();
            tokio::time::sleep(BEAT_INTERVAL).await;
        }
    }
}

impl Watched {
    fn beat(&self) {
        self.last_ms.store(self.clock.now_ms(), Ordering::Relaxed);
    }
}

impl Clock {
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Counts the time since the last check. After a hold-up, whose length it returns, all beats count as new.
    fn advance(&self, elapsed: Duration) -> Option<Duration> {
        let late = elapsed.saturating_sub(BEAT_INTERVAL);
        if late > HOLD_UP {
            self.resumed_ms.store(self.now_ms(), Ordering::Relaxed);
            return Some(late);
        }
        self.now_ms.fetch_add(millis(elapsed), Ordering::Relaxed);
        None
    }
}

impl Watchdog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::default(),
            watched: Mutex::default(),
        })
    }

    pub fn watch(&self, name: String) -> Beat {
        let watched = Arc::new(Watched {
            name,
            clock: Arc::clone(&self.clock),
            last_ms: AtomicU64::new(self.clock.now_ms()),
        });
        let mut list = self.watched.lock();
        list.retain(|one| one.strong_count() > 0);
        list.push(Arc::downgrade(&watched));
        Beat(watched)
    }

    /// Threads without a recent beat.
    pub fn silent(&self) -> Vec<String> {
        self.silent_for(SILENCE_LIMIT)
    }

    fn silent_for(&self, limit: Duration) -> Vec<String> {
        let oldest = self.clock.now_ms().saturating_sub(millis(limit));
        let resumed = self.clock.resumed_ms.load(Ordering::Relaxed);
        let list = self.watched.lock();
        let silent = list.iter().filter_map(Weak::upgrade);
        let silent = silent.filter(|one| one.last_ms.load(Ordering::Relaxed).max(resumed) < oldest);
        silent.map(|one| one.name.clone()).collect()
    }

    /// Checks every second.
    pub async fn run(self: Arc<Self>) {
        let supervisor = Supervisor::find();
        supervisor.tell("READY=1");
        let mut told = Vec::new();
        let mut last_check = Instant::now();
        loop {
            tokio::time::sleep(BEAT_INTERVAL).await;
            let elapsed = last_check.elapsed();
            last_check += elapsed;
            if let Some(time) = self.clock.advance(elapsed) {
                tracing::warn!("the process was held up for {:.1} s", time.as_secs_f64());
            }
            let silent = self.silent();
            if silent.is_empty() {
                supervisor.tell("WATCHDOG=1");
            } else if silent != told {
                tracing::error!("no sign of life from {} for {SILENCE_LIMIT:?}", silent.join(", "));
            }
            let lost = self.silent_for(ABORT_LIMIT);
            if !lost.is_empty() {
                tracing::error!(
                    "no sign of life from {} for {ABORT_LIMIT:?}: giving up",
                    lost.join(", ")
                );
                std::process::abort();
            }
            told = silent;
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// systemd's notification socket (sd_notify(3)), if there is one.
struct Supervisor(Option<(UnixDatagram, SocketAddr)>);

impl Supervisor {
    fn find() -> Self {
        let open = || {
            let name = std::env::var("NOTIFY_SOCKET").ok()?;
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(name),
            };
            Some((UnixDatagram::unbound().ok()?, address.ok()?))
        };
        Self(open())
    }

    fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.0 {
            // A supervisor that does not listen will notice the missing notifications by itself.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One check of a watchdog that was not held up.
    const CHECK: Duration = Duration::from_millis(1010);

    #[test]
    fn a_thread_is_silent_only_while_it_is_watched_and_does_not_beat() {
        let watchdog = Watchdog::new();
        let (good, bad) = (watchdog.watch("good".into()), watchdog.watch("bad".into()));
        for _ in 0..5 {
            assert!(watchdog.silent().is_empty());
            assert_eq!(watchdog.clock.advance(CHECK), None);
            good.0.beat();
        }
        assert_eq!(watchdog.silent(), ["bad"]);
        assert!(watchdog.silent_for(ABORT_LIMIT).is_empty());
        for _ in 5..30 {
            assert_eq!(watchdog.clock.advance(CHECK), None);
            good.0.beat();
        }
        assert_eq!(watchdog.silent_for(ABORT_LIMIT), ["bad"]);
        drop(bad);
        assert!(watchdog.silent().is_empty());
    }

    #[test]
    fn a_process_that_was_held_up_has_no_silent_threads() {
        let watchdog = Watchdog::new();
        let _beat = watchdog.watch("lane".into());
        let held_up = watchdog.clock.advance(BEAT_INTERVAL + 2 * ABORT_LIMIT);
        assert_eq!(held_up, Some(2 * ABORT_LIMIT));
        assert!(watchdog.silent().is_empty());
    }

    #[test]
    fn a_hang_is_detected_an_interval_after_the_process_was_held_up() {
        let watchdog = Watchdog::new();
        let _beat = watchdog.watch("lane".into());
        (0..4).for_each(|_| assert_eq!(watchdog.clock.advance(CHECK), None));
        assert!(watchdog.clock.advance(ABORT_LIMIT).is_some());
        for _ in 0..5 {
            assert!(watchdog.silent().is_empty());
            assert_eq!(watchdog.clock.advance(CHECK), None);
        }
        assert_eq!(watchdog.silent(), ["lane"]);
        assert!(watchdog.silent_for(ABORT_LIMIT).is_empty());
        (5..30).for_each(|_| assert_eq!(watchdog.clock.advance(CHECK), None));
        assert_eq!(watchdog.silent_for(ABORT_LIMIT), ["lane"]);
    }

    #[test]
    fn a_check_that_is_late_under_load_is_no_hold_up() {
        let clock = Clock::default();
        assert_eq!(clock.advance(BEAT_INTERVAL + HOLD_UP), None);
        assert_eq!(clock.now_ms(), 3000);
    }
}
