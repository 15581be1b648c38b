//! Watchdog: detects threads that make no progress.
//!
//! Each thread, and each source and publisher on it, keeps a [`Beat`]. A thread silent for 5 s is logged and makes
//! `/health` answer 503; after 30 s the process aborts, so that a supervisor starts a new one and a successor takes
//! over the claims. Under systemd with `WatchdogSec=` the supervisor is notified as long as no thread is silent.

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

#[derive(Debug)]
pub struct Watchdog {
    start: Instant,
    watched: Mutex<Vec<Weak<Watched>>>,
}

#[derive(Debug)]
struct Watched {
    name: String,
    start: Instant,
    /// Milliseconds since `start`. Independent of everything else, so relaxed.
    last_ms: AtomicU64,
}

/// One thread's watchdog beat. Once dropped, the thread is no longer watched.
#[derive(Debug)]
pub struct Beat(Arc<Watched>);

impl Beat {
    /// Beats for as long as the future is polled; it never completes.
    pub async fn keep(&self) {
        loop {
            self.0.last_ms.store(millis(self.0.start), Ordering::Relaxed);
            tokio::time::sleep(BEAT_INTERVAL).await;
        }
    }
}

impl Watchdog {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            watched: Mutex::default(),
        })
    }

    pub fn watch(&self, name: String) -> Beat {
        let watched = Arc::new(Watched {
            name,
            start: self.start,
            last_ms: AtomicU64::new(millis(self.start)),
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
        let oldest = millis(self.start).saturating_sub(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let list = self.watched.lock();
        let silent = list.iter().filter_map(Weak::upgrade);
        let silent = silent.filter(|one| one.last_ms.load(Ordering::Relaxed) < oldest);
        silent.map(|one| one.name.clone()).collect()
    }

    /// Checks every second.
    pub async fn run(self: Arc<Self>) {
        let supervisor = Supervisor::find();
        supervisor.tell("READY=1");
        let mut told = Vec::new();
        loop {
            tokio::time::sleep(BEAT_INTERVAL).await;
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

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
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

    #[test]
    fn a_thread_is_silent_only_while_it_is_watched_and_does_not_beat() {
        let watchdog = Watchdog::new();
        let (_good, bad) = (watchdog.watch("good".into()), watchdog.watch("bad".into()));
        assert!(watchdog.silent().is_empty());
        std::thread::sleep(Duration::from_millis(20));
        let beat = watchdog.watched.lock()[0].upgrade().unwrap();
        beat.last_ms.store(millis(watchdog.start), Ordering::Relaxed);
        assert_eq!(watchdog.silent_for(Duration::from_millis(10)), ["bad"]);
        drop(bad);
        assert!(watchdog.silent_for(Duration::from_millis(10)).is_empty());
    }
}
