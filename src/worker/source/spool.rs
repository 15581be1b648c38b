//! A queue on disk: what `http_in` has promised to publish and has not published yet.
//!
//! A directory of segments, each named by its first sequence number, with lines `<seq> <unix ms> <json>`. One thread
//! appends; all requests that come while it is in fsync share the next one. A reader follows it as far as it is durable. A segment goes when
//! all its events are settled. A torn last line, which a crash leaves, was never promised to anybody and is cut off.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::clock::Timestamp;

/// One read.
const CHUNK_BYTES: usize = 128 * 1024;

/// The writing end.
pub struct Spool {
    appends: Option<mpsc::Sender<Append>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The reading end.
pub struct Reader {
    shared: Arc<Shared>,
    open: Option<(u64, File)>,
    /// Place of `buffer` in the open segment.
    offset: u64,
    buffer: VecDeque<Entry>,
    /// Smaller ones are settled.
    from: u64,
}

/// What came in, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub received: Timestamp,
    pub text: Bytes,
}

/// Deletes segments whose events are settled.
#[derive(Clone)]
pub struct Cleaner(Arc<Shared>);

struct Append {
    texts: Vec<Bytes>,
    received: Timestamp,
    /// The first sequence number.
    done: oneshot::Sender<io::Result<u64>>,
}

struct Shared {
    directory: PathBuf,
    segments: Mutex<VecDeque<Segment>>,
    /// Of all segments together.
    bytes: AtomicU64,
    grown: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u64,
    /// This much is on the disk.
    durable: u64,
}

impl Shared {
    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("{first:020}.log"))
    }
}

/// Opens the queue. Events up to `settled` are done and do not come again.
pub fn open(directory: &Path, settled: u64, segment_bytes: u64) -> io::Result<(Spool, Reader, Cleaner)> {
    fs::create_dir_all(directory)?;
    let mut firsts: Vec<u64> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    firsts.sort_unstable();
    let shared = Shared {
        directory: directory.to_owned(),
        segments: Mutex::default(),
        bytes: AtomicU64::new(0),
        grown: Notify::new(),
    };
    let mut next = settled + 1;
    for (index, &first) in firsts.iter().enumerate() {
        let (durable, last) = recover(&shared.path(first), index + 1 == firsts.len())?;
        next = next.max(last.map_or(first, |last| last + 1));
        shared.bytes.fetch_add(durable, Ordering::Relaxed);
        shared.segments.lock().push_back(Segment { first, durable });
    }
    let shared = Arc::new(shared);
    let mut writer = Writer {
        shared: Arc::clone(&shared),
        file: None,
        length: 0,
        next,
        segment_bytes,
    };
    writer.start_segment()?;
    let (appends, receiver) = mpsc::channel::<Append>();
    let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
        while let Ok(first) = receiver.recv() {
            writer.append(std::iter::once(first).chain(receiver.try_iter()).collect());
        }
    })?;
    let reader = Reader {
        shared: Arc::clone(&shared),
        open: None,
        offset: 0,
        buffer: VecDeque::new(),
        from: settled + 1,
    };
    let cleaner = Cleaner(Arc::clone(&shared));
    cleaner.settled(settled);
    Ok((
        Spool {
            appends: Some(appends),
            shared,
            thread: Some(thread),
        },
        reader,
        cleaner,
    ))
}

/// Length and last sequence number of a segment; cuts a torn end off the last one.
fn recover(path: &Path, is_last: bool) -> io::Result<(u64, Option<u64>)> {
    let text = fs::read(path)?;
    let whole = memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1);
    if whole < text.len() {
        if !is_last {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged at its end", path.display()),
            ));
        }
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    let last = text[..whole]
        .trim_ascii_end()
        .rsplit(|&b| b == b'\n')
        .next()
        .filter(|line| !line.is_empty());
    let last = last.map(|line| parse(line).ok_or_else(|| damaged(path))).transpose()?;
    Ok((whole as u64, last.map(|entry| entry.seq)))
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} holds a line that is no spool entry", path.display()),
    )
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(3, |&b| b == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (seq, received) = (number()?, Timestamp(number()?));
    Some(Entry {
        seq,
        received,
        text: Bytes::copy_from_slice(parts.next()?),
    })
}

impl Spool {
    /// Makes the texts durable, then answers with the first of their consecutive sequence numbers. They must not
    /// hold line ends.
    pub async fn append(&self, texts: Vec<Bytes>, received: Timestamp) -> io::Result<u64> {
        let (done, wait) = oneshot::channel();
        let gone = || io::Error::other("the spool has stopped");
        self.appends
            .as_ref()
            .ok_or_else(gone)?
            .send(Append { texts, received, done })
            .map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    /// Disk space in use.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.appends = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    file: Option<File>,
    length: u64,
    next: u64,
    segment_bytes: u64,
}

impl Writer {
    fn append(&mut self, batch: Vec<Append>) {
        let mut text = Vec::new();
        let mut next = self.next;
        let mut firsts = Vec::with_capacity(batch.len());
        for append in &batch {
            firsts.push(next);
            for entry in &append.texts {
                // Writing to a Vec cannot fail.
                let _ = write!(text, "{next} {} ", append.received.0);
                text.extend_from_slice(entry);
                text.push(b'\n');
                next += 1;
            }
        }
        match self.write(&text) {
            Ok(()) => {
                self.next = next;
                for (append, first) in batch.into_iter().zip(firsts) {
                    // A client that has gone does not mind.
                    let _ = append.done.send(Ok(first));
                }
            }
            Err(error) => {
                tracing::error!("cannot write to {}: {error}", self.shared.directory.display());
                for append in batch {
                    let _ = append.done.send(Err(io::Error::new(error.kind(), error.to_string())));
                }
            }
        }
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.length >= self.segment_bytes || self.file.is_none() {
            self.start_segment()?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if let Err(error) = file.write_all(text).and_then(|()| file.sync_data()) {
            // Nobody was promised this; half of it must not stay before what comes next.
            file.set_len(self.length)?;
            return Err(error);
        }
        self.length += text.len() as u64;
        if let Some(segment) = self.shared.segments.lock().back_mut() {
            segment.durable = self.length;
        }
        self.shared.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        self.shared.grown.notify_one();
        Ok(())
    }

    fn start_segment(&mut self) -> io::Result<()> {
        let path = self.shared.path(self.next);
        // A segment of that name is one that has stayed empty. What people wrote is for the owner's eyes only.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        File::open(&self.shared.directory)?.sync_all()?;
        let mut segments = self.shared.segments.lock();
        if segments.back().is_none_or(|last| last.first != self.next) {
            segments.push_back(Segment {
                first: self.next,
                durable: 0,
            });
        }
        (self.file, self.length) = (Some(file), 0);
        Ok(())
    }
}

impl Reader {
    /// The next durable entry, if there is one now.
    pub fn poll(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.buffer.pop_front() {
                if entry.seq >= self.from {
                    return Ok(Some(entry));
                }
            } else if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Waits until there may be more.
    pub async fn grown(&self) {
        self.shared.grown.notified().await;
    }

    /// Reads a chunk of whole lines. `false`: nothing there.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let segments = self.shared.segments.lock().clone();
            let current = self.open.as_ref().map(|(first, _)| *first);
            let here = segments.iter().find(|segment| Some(segment.first) == current);
            match (here, &self.open) {
                (Some(segment), Some((_, file))) if segment.durable > self.offset => {
                    self.offset += read_lines(file, self.offset, segment.durable, &mut self.buffer)?;
                    return Ok(true);
                }
                _ => {}
            }
            let Some(next) = segments
                .iter()
                .find(|segment| current.is_none_or(|first| segment.first > first))
            else {
                return Ok(false);
            };
            self.open = Some((next.first, File::open(self.shared.path(next.first))?));
            self.offset = 0;
        }
    }
}

/// Reads about a chunk, at least one line, and returns how many bytes.
fn read_lines(file: &File, offset: u64, end: u64, into: &mut VecDeque<Entry>) -> io::Result<u64> {
    let mut chunk = CHUNK_BYTES as u64;
    loop {
        let length = chunk.min(end - offset);
        let mut text = vec![0; usize::try_from(length).unwrap_or(CHUNK_BYTES)];
        file.read_exact_at(&mut text, offset)?;
        let Some(whole) = memchr::memrchr(b'\n', &text) else {
            chunk *= 2;
            continue;
        };
        for line in text[..whole].split(|&b| b == b'\n') {
            into.push_back(parse(line).ok_or_else(|| damaged(Path::new("the spool")))?);
        }
        return Ok(whole as u64 + 1);
    }
}

impl Cleaner {
    /// All events up to `seq` are done.
    pub fn settled(&self, seq: u64) {
        let mut segments = self.0.segments.lock();
        while segments.len() > 1 && segments[1].first <= seq + 1 {
            let Some(segment) = segments.pop_front() else { return };
            self.0.bytes.fetch_sub(segment.durable, Ordering::Relaxed);
            let path = self.0.path(segment.first);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn append(spool: &Spool, texts: &[&str]) -> u64 {
        let texts = texts
            .iter()
            .map(|text| Bytes::copy_from_slice(text.as_bytes()))
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(spool.append(texts, Timestamp(5))).unwrap()
    }

    fn read_all(reader: &mut Reader) -> Vec<(u64, String)> {
        let mut entries = Vec::new();
        while let Some(entry) = reader.poll().unwrap() {
            assert_eq!(entry.received, Timestamp(5));
            entries.push((entry.seq, String::from_utf8(entry.text.to_vec()).unwrap()));
        }
        entries
    }

    fn entry(seq: u64, text: &str) -> (u64, String) {
        (seq, text.to_owned())
    }

    #[test]
    fn what_was_appended_is_read_and_again_after_a_restart_until_settled() {
        let dir = TempDir::new();
        let (spool, mut reader, _) = open(dir.path(), 0, 10).unwrap();
        assert_eq!(append(&spool, &["a", "b c"]), 1);
        assert_eq!(append(&spool, &["c"]), 3);
        assert_eq!(read_all(&mut reader), [entry(1, "a"), entry(2, "b c"), entry(3, "c")]);
        assert_eq!(append(&spool, &["d"]), 4);
        assert_eq!(read_all(&mut reader), [entry(4, "d")]);
        drop((spool, reader));

        let (spool, mut reader, cleaner) = open(dir.path(), 2, 10).unwrap();
        assert_eq!(read_all(&mut reader), [entry(3, "c"), entry(4, "d")]);
        assert_eq!(append(&spool, &["e"]), 5);
        assert_eq!(read_all(&mut reader), [entry(5, "e")]);
        let before = spool.bytes();
        cleaner.settled(4);
        assert!(spool.bytes() < before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop((spool, reader));
        let (spool, mut reader, _) = open(dir.path(), 5, 10).unwrap();
        assert!(read_all(&mut reader).is_empty());
        assert_eq!(append(&spool, &["f"]), 6, "numbers are never used twice");
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_damage_elsewhere_is_an_error() {
        let dir = TempDir::new();
        let (spool, ..) = open(dir.path(), 0, 1000).unwrap();
        append(&spool, &["a"]);
        drop(spool);
        let segment = dir.path().join(format!("{:020}.log", 1));
        let mut file = OpenOptions::new().append(true).open(&segment).unwrap();
        file.write_all(b"2 5 {\"to").unwrap();
        let (spool, mut reader, _) = open(dir.path(), 0, 1000).unwrap();
        assert_eq!(append(&spool, &["b"]), 2);
        assert_eq!(read_all(&mut reader), [entry(1, "a"), entry(2, "b")]);
        drop((spool, reader));
        fs::write(&segment, "nonsense\n").unwrap();
        assert!(open(dir.path(), 0, 1000).is_err());
    }
}
