//! The dead-letter file: what cannot go on is stored with its reason, and only then acknowledged.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::event::Event;
use crate::finalizer::{Handle, Parked};
use crate::ops::metrics::Metrics;

/// Pause between attempts when the disk refuses the file.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// So many parked events are told one by one in a second; a flood of them must not become a flood of lines.
const LOGGED_PER_SECOND: u32 = 10;

/// Why an event was parked, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stage or sink, or `source`.
    pub component: String,
    pub text: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// Takes in what cannot be delivered. It never refuses and never waits; the event stays unacknowledged until it lies on
/// the disk. What a source stores with its broker is only told and counted here.
#[derive(Clone, Debug)]
pub struct ParkingLot {
    entries: mpsc::Sender<(Vec<u8>, Parked, Handle)>,
    metrics: Arc<Metrics>,
    logged: Arc<Mutex<Logged>>,
}

/// What has been told of late.
#[derive(Debug)]
struct Logged {
    since: Instant,
    lines: u32,
    untold: u32,
}

impl Logged {
    /// May another line be written? If so, how many were not since the last one.
    fn admit(&mut self) -> Option<u32> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.lines) = (Instant::now(), 0);
        }
        if self.lines == LOGGED_PER_SECOND {
            self.untold += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// One line of the file.
#[derive(Serialize)]
struct Line<'a> {
    id: String,
    parked: String,
    received: String,
    pipeline: &'a str,
    component: &'a str,
    reason: &'a str,
    attempts: u32,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    channels: &'a [String],
    /// The event as it came in, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
    /// Else in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_hex: Option<String>,
}

impl ParkingLot {
    /// Starts the writer. It ends when the last clone is gone and everything is written.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> io::Result<(Self, JoinHandle<()>)> {
        let mut writer = Writer {
            file: open_file(path)?,
            path: path.to_owned(),
            buffer: Vec::new(),
        };
        let (entries, receiver) = mpsc::channel::<(Vec<u8>, Parked, Handle)>();
        let thread = std::thread::Builder::new().name("park".to_owned()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                // Everything that has come meanwhile shares one fsync.
                let batch: Vec<_> = std::iter::once(first).chain(receiver.try_iter()).collect();
                writer.append(batch.iter().map(|(line, ..)| line.as_slice()));
                for (_, parked, handle) in batch {
                    handle.resolve_parked(parked);
                }
            }
        })?;
        let logged = Arc::new(Mutex::new(Logged {
            since: Instant::now(),
            lines: 0,
            untold: 0,
        }));
        Ok((
            Self {
                entries,
                metrics,
                logged,
            },
            thread,
        ))
    }

    pub fn park(&self, pipeline: &str, event: &Event, reason: &Reason, handle: Handle) {
        let Reason {
            component,
            text,
            attempts,
        } = reason;
        match self.logged.lock().admit() {
            Some(0) => tracing::warn!("event {} parked by {component}: {text}", event.id),
            Some(untold) => tracing::warn!(
                "event {} parked by {component}: {text} ({untold} before it not told)",
                event.id
            ),
            None => {}
        }
        self.metrics.parked_total.fetch_add(1, Ordering::Relaxed);
        let parked = Parked {
            pipeline: pipeline.to_owned(),
            id: event.id.to_string(),
            component: component.clone(),
            text: text.clone(),
            attempts: *attempts,
        };
        if handle.is_parked_by_source() {
            return handle.resolve_parked(parked);
        }
        let raw = std::str::from_utf8(&event.raw).ok();
        let line = Line {
            id: event.id.to_string(),
            parked: Timestamp::now().to_string(),
            received: event.received.to_string(),
            pipeline,
            component,
            reason: text,
            attempts: *attempts,
            channels: &event.channels,
            raw,
            raw_hex: raw
                .is_none()
                .then(|| event.raw.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        let mut entry = serde_json::to_vec(&line).unwrap_or_default();
        entry.push(b'\n');
        // The writer outlives every clone of this sender; were it gone, the dropped handle would release the event.
        let _ = self.entries.send((entry, parked, handle));
    }
}

/// What is parked is what came in, personal data included: for the owner's eyes only.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Adds lines, and returns when they are on the disk.
pub fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = open_file(path)?;
    file.write_all(lines)?;
    file.sync_all()
}

struct Writer {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Writer {
    /// Returns when all lines are on the disk.
    fn append<'l>(&mut self, lines: impl Iterator<Item = &'l [u8]>) {
        self.buffer.clear();
        lines.for_each(|line| self.buffer.extend_from_slice(line));
        while let Err(error) = self.try_append() {
            tracing::error!(
                "cannot write {}: {error}; parked events stay in flight",
                self.path.display()
            );
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn try_append(&mut self) -> io::Result<()> {
        // The operator may have moved the file away to work through it.
        let same = |there: Metadata, ours: Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
        if !std::fs::metadata(&self.path).is_ok_and(|there| self.file.metadata().is_ok_and(|ours| same(there, ours))) {
            self.file = open_file(&self.path)?;
        }
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(&self.buffer).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // Half a line must not spoil the next one.
            let _ = self.file.set_len(before);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use crate::finalizer::{Ack, AckTo, Outcome};
    use crate::testing::TempDir;

    fn park(lot: &ParkingLot, seq: u64, raw: &'static [u8]) -> Ack {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let event = Event::new(EventId::new(7, seq), Timestamp(0), raw.into());
        let reason = Reason {
            component: "stage parse".into(),
            text: "not JSON".into(),
            attempts: 1,
        };
        lot.park("p", &event, &reason, Handle::new(0, AckTo::Reply(reply), None));
        answer.blocking_recv().unwrap()
    }

    #[test]
    fn a_flood_is_told_in_a_few_lines() {
        let mut logged = Logged {
            since: Instant::now(),
            lines: 0,
            untold: 0,
        };
        assert_eq!(
            (0..1000).filter_map(|_| logged.admit()).collect::<Vec<_>>(),
            [0; LOGGED_PER_SECOND as usize]
        );
        logged.since -= Duration::from_secs(1);
        assert_eq!(logged.admit(), Some(1000 - LOGGED_PER_SECOND));
    }

    #[test]
    fn a_file_that_was_moved_away_is_started_again() {
        let dir = TempDir::new();
        let path = dir.path().join("parked.ndjson");
        let (lot, thread) = ParkingLot::open(&path, Arc::default()).unwrap();
        park(&lot, 1, b"one");
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        park(&lot, 2, b"two");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"7-2\"") && !text.contains("\"7-1\""), "{text}");
        drop(lot);
        thread.join().unwrap();
    }

    #[test]
    fn a_parked_event_is_on_disk_before_it_is_acknowledged() {
        let dir = TempDir::new();
        let path = dir.path().join("parked.ndjson");
        let (lot, thread) = ParkingLot::open(&path, Arc::default()).unwrap();
        for (seq, raw) in [(1, &b"{\"a\":1}"[..]), (2, b"\xff\x00")] {
            let ack = park(&lot, seq, raw);
            assert_eq!(
                (ack.outcome, ack.parked.map(|parked| parked.text)),
                (Outcome::Parked, Some("not JSON".to_owned()))
            );
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count() as u64, seq);
        }
        drop(lot);
        thread.join().unwrap();
    }
}
