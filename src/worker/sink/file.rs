//! `file`: appends events to NDJSON files.
//!
//! ```toml
//! archive = { type = "file", path = "archive/%Y-%m-%d.ndjson", fsync = true, required = false }
//! ```
//!
//! The path is a strftime pattern (`%Y %m %d %H %M %S`, UTC) over the event's time of arrival; directories are created
//! as needed. One line per event: a multi-line JSON body is put on one line, and a non-JSON body with line ends becomes
//! a JSON string.
//!
//! All lanes hand their events to one writer thread, which writes batches and, with `fsync`, makes them durable before
//! it acknowledges. With `required = false` the source does not wait for this sink.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::{Delivery, Kind, LaneSink, RunningSink, Scene, Sink, Verdict};
use crate::clock::{Timestamp, check_pattern};
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::engine::sequencer::Reservation;
use crate::event::Event;

pub const KIND: Kind = Kind {
    name: "file",
    about: "appends events to NDJSON files named by date",
    read,
};

/// Pause between attempts after a disk error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// A pattern with hours rarely needs more than two files at a time; the oldest are closed.
const MAX_OPEN_FILES: usize = 8;

#[derive(Clone, Debug)]
pub struct FileSink {
    /// strftime pattern.
    path: Pattern,
    /// Is an event accepted only when it is on the disk, or already when written to the kernel?
    fsync: bool,
    required: bool,
}

#[derive(Clone, Debug)]
struct Pattern(String);

impl FromText for Pattern {
    const WANTED: &'static str = "a path such as \"archive/%Y-%m-%d.ndjson\"";

    fn from_text(text: &str) -> Result<Self, String> {
        check_pattern(text)?;
        if text.is_empty() || text.ends_with('/') {
            return Err("must name a file".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Sink>> {
    let path = section.required("path");
    let (fsync, required) = (section.or("fsync", false), section.or("required", true));
    Some(Arc::new(FileSink {
        path: path?,
        fsync,
        required,
    }))
}

impl Sink for FileSink {
    fn is_required(&self) -> bool {
        self.required
    }

    fn writes(&self) -> Vec<Endpoint> {
        vec![Endpoint::Files(self.path.0.clone())]
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>> {
        let (lines, receiver) = mpsc::channel();
        let mut writer = Writer {
            name: scene.name.to_owned(),
            config: self.clone(),
            open: HashMap::new(),
        };
        std::thread::Builder::new()
            .name(format!("file-{}", scene.name))
            .spawn(move || {
                while let Ok(first) = receiver.recv() {
                    writer.write(std::iter::once(first).chain(receiver.try_iter()).collect());
                }
            })?;
        Ok(Arc::new(Running(lines)))
    }
}

struct Line {
    received: Timestamp,
    body: Bytes,
    written: oneshot::Sender<()>,
}

struct Running(mpsc::Sender<Line>);

impl RunningSink for Running {
    fn open(&self) -> Rc<dyn LaneSink> {
        Rc::new(Lane(self.0.clone()))
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

struct Lane(mpsc::Sender<Line>);

impl LaneSink for Lane {
    fn deliver(&self, event: Arc<Event>, _reservation: Option<Reservation>) -> Delivery {
        let (written, wait) = oneshot::channel();
        // The writer thread lives until this sender is dropped, and answers every line.
        let _ = self.0.send(Line {
            received: event.received,
            body: event.payload(),
            written,
        });
        Box::pin(async move {
            match wait.await {
                Ok(()) => Verdict::Accepted,
                Err(_) => Verdict::Refused {
                    reason: "the file writer has stopped".to_owned(),
                    attempts: 1,
                },
            }
        })
    }
}

struct Writer {
    name: String,
    config: FileSink,
    open: HashMap<String, File>,
}

impl Writer {
    fn write(&mut self, lines: Vec<Line>) {
        // Group lines by file, keeping their order.
        let mut by_file: Vec<(String, Vec<u8>)> = Vec::new();
        for line in &lines {
            let name = line.received.format(&self.config.path.0);
            let index = by_file.iter().position(|(file, _)| *file == name).unwrap_or_else(|| {
                by_file.push((name, Vec::new()));
                by_file.len() - 1
            });
            push_line(&mut by_file[index].1, &line.body);
        }
        for (file, text) in by_file {
            while let Err(error) = self.append(&file, &text) {
                tracing::error!("sink {}: cannot write {file}: {error}; will try again", self.name);
                self.open.remove(&file);
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        for line in lines {
            // The lane may have stopped waiting.
            let _ = line.written.send(());
        }
    }

    fn append(&mut self, path: &str, text: &[u8]) -> io::Result<()> {
        if !self.open.contains_key(path) {
            if self.open.len() >= MAX_OPEN_FILES {
                self.open.clear();
            }
            self.open.insert(path.to_owned(), open(Path::new(path))?);
        }
        let Some(file) = self.open.get_mut(path) else {
            return Ok(());
        };
        let before = file.metadata()?.len();
        let written = file
            .write_all(text)
            .and_then(|()| if self.config.fsync { file.sync_data() } else { Ok(()) });
        if written.is_err() {
            // A partial line must not corrupt the next attempt.
            let _ = file.set_len(before);
        }
        written
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all::<PathBuf>(directory.into())?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Appends a body as one line.
fn push_line(out: &mut Vec<u8>, body: &[u8]) {
    if memchr::memchr2(b'\n', b'\r', body).is_none() {
        out.extend_from_slice(body);
    } else {
        match serde_json::from_slice::<&RawValue>(body) {
            // Line ends within JSON strings are escaped; others are whitespace and become blanks.
            Ok(_) => out.extend(
                body.iter()
                    .map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }),
            ),
            Err(_) => out.extend_from_slice(Value::from(String::from_utf8_lossy(body)).to_string().as_bytes()),
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spawn::{Spawn, Task};
    use crate::event::EventId;
    use crate::ops::metrics::Metrics;
    use crate::testing::TempDir;

    struct NoTasks;

    impl Spawn for NoTasks {
        fn spawn(&mut self, name: String, _task: Task) {
            panic!("{name}: it has no tasks");
        }
    }

    fn deliver(sink: &dyn LaneSink, received: u64, body: &'static str) {
        let event = Event::new(EventId::new(1, 1), Timestamp(received), body.into());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(sink.deliver(Arc::new(event), None)), Verdict::Accepted);
    }

    #[test]
    fn events_are_lines_in_the_file_of_their_day() {
        let dir = TempDir::new();
        let pattern = format!("{}/sub/%Y-%m-%d.ndjson", dir.path().display());
        let config = FileSink {
            path: Pattern(pattern),
            fsync: true,
            required: true,
        };
        let mut scene = Scene {
            name: "archive",
            metrics: &Metrics::default(),
            has_ids: true,
            spawn: &mut NoTasks,
        };
        let lane = config.start(&mut scene).unwrap().open();
        deliver(&*lane, 0, "{\"a\":1}");
        deliver(&*lane, 86_400_000, "{\n\"a\":\r\n2.00}");
        deliver(&*lane, 0, "two\nlines");
        let read = |day: &str| fs::read_to_string(dir.path().join(format!("sub/{day}.ndjson"))).unwrap();
        assert_eq!(read("1970-01-01"), "{\"a\":1}\n\"two\\nlines\"\n");
        assert_eq!(read("1970-01-02"), "{ \"a\":  2.00}\n");
    }
}
