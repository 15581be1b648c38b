//! The dead-letter file: an event that cannot be delivered is stored with its reason, and only then acknowledged.
//!
//! Workers append to the file; commands remove lines by writing a new file and renaming it over the old one. Both hold
//! the file's lock (`flock`) meanwhile, and check after locking that the path still names this file: no line is
//! appended to a replaced file.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
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

/// Pause between attempts after a disk error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Parked events logged individually per second; limits the log output of a flood.
const LOGGED_PER_SECOND: u32 = 10;

/// Why an event was parked, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stage or sink, or `source`.
    pub component: String,
    pub text: String,
    /// Number of attempts.
    pub attempts: u32,
}

/// Accepts events that cannot be delivered. It never refuses and never waits; the event stays unacknowledged until it
/// is on the disk. Events that a source stores with its broker are only logged and counted here.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    entries: mpsc::Sender<(Vec<u8>, Parked, Handle)>,
    metrics: Arc<Metrics>,
    logged: Arc<Mutex<Logged>>,
}

/// Rate limit of the log.
#[derive(Debug)]
struct Logged {
    since: Instant,
    lines: u32,
    untold: u32,
}

impl Logged {
    /// May another line be logged? If so, how many were suppressed since the last one.
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
    id: &'a str,
    parked: String,
    received: String,
    source: &'a str,
    pipeline: &'a str,
    component: &'a str,
    reason: &'a str,
    attempts: u32,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    channels: &'a [String],
    /// The event as it came in, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<&'a str>,
    /// Otherwise its bytes in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_hex: Option<String>,
}

/// The line, with its line end.
pub fn line(source: &str, parked: &Parked, received: Timestamp, channels: &[String], raw: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(raw).ok();
    let line = Line {
        id: &parked.id,
        parked: Timestamp::now().to_string(),
        received: received.to_string(),
        source,
        pipeline: &parked.pipeline,
        component: &parked.component,
        reason: &parked.text,
        attempts: parked.attempts,
        channels,
        raw: text,
        raw_hex: text
            .is_none()
            .then(|| raw.iter().map(|byte| format!("{byte:02x}")).collect()),
    };
    // Strings and numbers always serialize.
    let mut line = serde_json::to_vec(&line).unwrap_or_default();
    line.push(b'\n');
    line
}

impl DeadLetters {
    /// Starts the writer. It ends when the last clone is dropped and everything is written.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> io::Result<(Self, JoinHandle<()>)> {
        let mut writer = Writer {
            file: open_file(path)?,
            path: path.to_owned(),
            buffer: Vec::new(),
        };
        let (entries, receiver) = mpsc::channel::<(Vec<u8>, Parked, Handle)>();
        let thread = std::thread::Builder::new().name("park".to_owned()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                // All entries received meanwhile share one fsync.
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

    /// `pipeline` is empty for events that reached none.
    pub fn park(&self, source: &str, pipeline: &str, event: &Event, reason: &Reason, handle: Handle) {
        let Reason {
            component,
            text,
            attempts,
        } = reason;
        let told = (!handle.is_told_by_source())
            .then(|| self.logged.lock().admit())
            .flatten();
        match told {
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
        let entry = line(source, &parked, event.received, &event.channels, &event.raw);
        // The writer outlives every clone of this sender; otherwise the dropped handle would release the event.
        let _ = self.entries.send((entry, parked, handle));
    }
}

/// Parked events are the original input with personal data: readable by the owner only.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn is_same(there: &Metadata, ours: &Metadata) -> bool {
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}

/// Does the path still name this file?
fn is_current(file: &File, path: &Path) -> bool {
    let ours = file.metadata();
    std::fs::metadata(path).is_ok_and(|there| ours.is_ok_and(|ours| is_same(&there, &ours)))
}

/// Waits for the lock of the file at `path`. `file` is that file, or was it.
fn lock(file: &mut File, path: &Path) -> io::Result<()> {
    loop {
        file.lock()?;
        if is_current(file, path) {
            return Ok(());
        }
        // The file was moved away or replaced.
        *file = open_file(path)?;
    }
}

/// Appends lines, and returns when they are on the disk.
pub fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = open_file(path)?;
    append_to(&mut file, path, lines)
}

fn append_to(file: &mut File, path: &Path, lines: &[u8]) -> io::Result<()> {
    lock(file, path)?;
    let written = file.metadata().and_then(|before| {
        let written = file.write_all(lines).and_then(|()| file.sync_data());
        if written.is_err() {
            // A partial line must not corrupt the next one.
            let _ = file.set_len(before.len());
        }
        written
    });
    file.unlock().and(written)
}

/// What to do with a line.
pub enum Change {
    Keep,
    /// Remove it, also from the disk.
    Remove,
    Replace(String),
}

/// Changes lines atomically: a crash leaves all old or all new lines.
pub fn rewrite(path: &Path, mut change: impl FnMut(&str) -> Change) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    loop {
        file.lock()?;
        if is_current(&file, path) {
            break;
        }
        file = OpenOptions::new().read(true).append(true).open(path)?;
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut kept = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.is_empty()) {
        match change(line) {
            Change::Keep => kept.push_str(line),
            Change::Replace(line) => kept.push_str(&line),
            Change::Remove => continue,
        }
        kept.push('\n');
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new_path = PathBuf::from(name);
    // A leftover from a crash is overwritten.
    let mut new = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&new_path)?;
    let (theirs, ours) = (file.metadata()?, new.metadata()?);
    if (theirs.uid(), theirs.gid()) != (ours.uid(), ours.gid()) {
        // The operator may be root; the unprivileged worker must still be able to use the file.
        std::os::unix::fs::fchown(&new, Some(theirs.uid()), Some(theirs.gid()))?;
    }
    new.write_all(kept.as_bytes())?;
    new.sync_all()?;
    std::fs::rename(&new_path, path)?;
    File::open(
        path.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )?
    .sync_all()
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
        append_to(&mut self.file, &self.path, &self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;
    use crate::finalizer::{Ack, AckTo, Outcome};
    use crate::testing::TempDir;

    fn park(lot: &DeadLetters, seq: u64, raw: &'static [u8]) -> Ack {
        let (acks, mut answer) = tokio::sync::mpsc::unbounded_channel();
        let event = Event::new(EventId::new(7, seq), Timestamp(0), raw.into());
        let reason = Reason {
            component: "stage parse".into(),
            text: "not JSON".into(),
            attempts: 1,
        };
        lot.park("s", "p", &event, &reason, Handle::new(0, AckTo::Queue(acks), None));
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
        let (lot, thread) = DeadLetters::open(&path, Arc::default()).unwrap();
        park(&lot, 1, b"one");
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        park(&lot, 2, b"two");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"7-2\"") && !text.contains("\"7-1\""), "{text}");
        drop(lot);
        thread.join().unwrap();
    }

    #[test]
    fn no_line_is_lost_while_others_are_taken_out() {
        let dir = TempDir::new();
        let path = dir.path().join("parked.ndjson");
        std::fs::write(&path, "").unwrap();
        let without_fives = |line: &str| match line.ends_with('5') {
            true => Change::Remove,
            false => Change::Keep,
        };
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let path = &path;
                scope.spawn(move || {
                    let mut file = open_file(path).unwrap();
                    for n in 0..200 {
                        append_to(&mut file, path, format!("{writer}-{n}\n").as_bytes()).unwrap();
                    }
                });
            }
            for _ in 0..100 {
                rewrite(&path, without_fives).unwrap();
            }
        });
        rewrite(&path, without_fives).unwrap();
        rewrite(&path, |line| Change::Replace(format!("<{line}>"))).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3 * 180);
        assert!(text.lines().all(|line| line.starts_with('<') && line.ends_with('>')));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_parked_event_is_on_disk_before_it_is_acknowledged() {
        let dir = TempDir::new();
        let path = dir.path().join("parked.ndjson");
        let (lot, thread) = DeadLetters::open(&path, Arc::default()).unwrap();
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
