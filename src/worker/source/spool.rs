//! A queue on disk: events that `http_in` has promised to publish and has not published yet.
//!
//! A directory of segments, each named by its first sequence number, with lines `<seq> <unix ms> <json>`. One thread
//! appends; all requests that arrive during its fsync share the next one. A reader follows up to the durable position.
//! A segment is deleted when all its events are settled. A torn last line, left by a crash, was never acknowledged and
//! is cut off.
//!
//! Settled events take no room: positions count the bytes of all lines since the oldest segment found at the start, so
//! the waiting bytes are the difference of two positions, wherever segments begin.

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

/// Bytes per read.
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
    /// Offset of `buffer` in the open segment.
    offset: u64,
    buffer: VecDeque<Entry>,
    /// Position after the bytes read.
    position: u64,
    /// Smaller sequence numbers are settled.
    from: u64,
}

/// An event, and its time of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub received: Timestamp,
    pub text: Bytes,
    /// The position after it.
    pub end: u64,
}

/// Deletes segments whose events are settled.
#[derive(Clone)]
pub struct Cleaner(Arc<Shared>);

struct Append {
    texts: Vec<Bytes>,
    /// Counted in [`Shared::pending`] until it is written.
    size: u64,
    received: Timestamp,
    /// The first sequence number.
    done: oneshot::Sender<io::Result<u64>>,
}

struct Shared {
    directory: PathBuf,
    segments: Mutex<VecDeque<Segment>>,
    /// Bytes of appends under way.
    pending: AtomicU64,
    /// Position after the last durable line.
    written: AtomicU64,
    /// Position up to which all events are settled.
    settled: AtomicU64,
    grown: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u64,
    /// Durable length.
    durable: u64,
}

impl Shared {
    fn path(&self, first: u64) -> PathBuf {
        self.directory.join(format!("{first:020}.log"))
    }
}

/// The texts were not stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the spool is full")]
    Full,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens the queue. Events up to `settled` do not come again.
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
        pending: AtomicU64::new(0),
        written: AtomicU64::new(0),
        settled: AtomicU64::new(0),
        grown: Notify::new(),
    };
    let mut next = settled + 1;
    for (index, &first) in firsts.iter().enumerate() {
        let found = recover(&shared.path(first), index + 1 == firsts.len(), settled)?;
        next = next.max(found.last.map_or(first, |last| last + 1));
        shared.written.fetch_add(found.durable, Ordering::Relaxed);
        shared.settled.fetch_add(found.settled, Ordering::Relaxed);
        let durable = found.durable;
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
    let mut reader = Reader {
        shared: Arc::clone(&shared),
        open: None,
        offset: 0,
        buffer: VecDeque::new(),
        position: 0,
        from: settled + 1,
    };
    let cleaner = Cleaner(Arc::clone(&shared));
    // The reader counts from the oldest segment left.
    reader.position = cleaner.remove_segments(settled);
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

/// Contents of a segment.
struct Found {
    durable: u64,
    /// Bytes of the settled lines.
    settled: u64,
    /// The last sequence number.
    last: Option<u64>,
}

/// Scans a segment; cuts a torn end off the last one.
fn recover(path: &Path, is_last: bool, settled: u64) -> io::Result<Found> {
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
    let (mut last, mut done) = (None, 0);
    for line in text[..whole].split_inclusive(|&byte| byte == b'\n') {
        let (seq, ..) = parse(line).ok_or_else(|| damaged(path))?;
        last = Some(seq);
        if seq <= settled {
            done += line.len() as u64;
        }
    }
    Ok(Found {
        durable: whole as u64,
        settled: done,
        last,
    })
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} holds a line that is no spool entry", path.display()),
    )
}

/// Sequence number, time and text of a line.
fn parse(line: &[u8]) -> Option<(u64, Timestamp, &[u8])> {
    let mut parts = line.splitn(3, |&b| b == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (seq, received) = (number()?, Timestamp(number()?));
    Some((seq, received, parts.next()?))
}

impl Spool {
    /// Makes the texts durable, then returns the first of their consecutive sequence numbers. They must not contain
    /// line ends. At most about `max` bytes wait; larger appends enter alone.
    pub async fn append(&self, texts: Vec<Bytes>, received: Timestamp, max: u64) -> Result<u64, Error> {
        let size: u64 = texts.iter().map(|text| text.len() as u64).sum();
        let waiting = self.waiting();
        if waiting > 0 && waiting + size > max {
            return Err(Error::Full);
        }
        let (done, wait) = oneshot::channel();
        let gone = || io::Error::other("the spool has stopped");
        let append = Append {
            texts,
            size,
            received,
            done,
        };
        self.shared.pending.fetch_add(size, Ordering::Relaxed);
        let appends = self.appends.as_ref().ok_or_else(gone)?;
        appends.send(append).map_err(|_| gone())?;
        Ok(wait.await.map_err(|_| gone())??)
    }

    /// Unsettled bytes, and those on their way to the disk.
    pub fn waiting(&self) -> u64 {
        let Shared {
            pending,
            written,
            settled,
            ..
        } = &*self.shared;
        // In this order, so that nothing is missed: written bytes were counted as pending first, and settled bytes are
        // written.
        let (pending, settled) = (pending.load(Ordering::Acquire), settled.load(Ordering::Acquire));
        pending + written.load(Ordering::Acquire).saturating_sub(settled)
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
        let written = self.write(&text);
        let size = batch.iter().map(|append| append.size).sum();
        // Release: an observer of the decrement also sees the new `written`.
        self.shared.pending.fetch_sub(size, Ordering::Release);
        match written {
            Ok(()) => {
                self.next = next;
                for (append, first) in batch.into_iter().zip(firsts) {
                    // The client may have disconnected.
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
            // These lines were never acknowledged; a partial one must not precede the next.
            file.set_len(self.length)?;
            return Err(error);
        }
        self.length += text.len() as u64;
        if let Some(segment) = self.shared.segments.lock().back_mut() {
            segment.durable = self.length;
        }
        self.shared.written.fetch_add(text.len() as u64, Ordering::Release);
        self.shared.grown.notify_one();
        Ok(())
    }

    fn start_segment(&mut self) -> io::Result<()> {
        let path = self.shared.path(self.next);
        // An existing segment of that name is empty. User input is readable by the owner only.
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

    /// Waits until there may be more entries.
    pub async fn grown(&self) {
        self.shared.grown.notified().await;
    }

    /// Reads a chunk of whole lines. `false`: no data.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            let segments = self.shared.segments.lock().clone();
            let current = self.open.as_ref().map(|(first, _)| *first);
            let here = segments.iter().find(|segment| Some(segment.first) == current);
            match (here, &self.open) {
                (Some(segment), Some((_, file))) if segment.durable > self.offset => {
                    let length = read_lines(file, self.offset, segment.durable, self.position, &mut self.buffer)?;
                    self.offset += length;
                    self.position += length;
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

/// Reads about a chunk, at least one line, and returns the number of bytes. The chunk begins at `position`.
fn read_lines(file: &File, offset: u64, end: u64, mut position: u64, into: &mut VecDeque<Entry>) -> io::Result<u64> {
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
            let (seq, received, text) = parse(line).ok_or_else(|| damaged(Path::new("the spool")))?;
            position += line.len() as u64 + 1;
            into.push_back(Entry {
                seq,
                received,
                text: Bytes::copy_from_slice(text),
                end: position,
            });
        }
        return Ok(whole as u64 + 1);
    }
}

impl Cleaner {
    /// Settles all events up to `seq`, which ends at the position `end`.
    pub fn settled(&self, seq: u64, end: u64) {
        self.0.settled.fetch_max(end, Ordering::Release);
        self.remove_segments(seq);
    }

    /// Returns the number of bytes deleted.
    fn remove_segments(&self, seq: u64) -> u64 {
        let mut segments = self.0.segments.lock();
        let mut bytes = 0;
        while segments.len() > 1 && segments[1].first <= seq + 1 {
            let Some(segment) = segments.pop_front() else { break };
            bytes += segment.durable;
            let path = self.0.path(segment.first);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
        bytes
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
        runtime.block_on(spool.append(texts, Timestamp(5), u64::MAX)).unwrap()
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
        assert_eq!(reader.poll().unwrap().map(|entry| entry.seq), Some(3));
        let four = reader.poll().unwrap().unwrap();
        assert_eq!((four.seq, &four.text[..]), (4, &b"d"[..]));
        let end_of_four = four.end;
        assert_eq!(append(&spool, &["e"]), 5);
        assert_eq!(read_all(&mut reader), [entry(5, "e")]);
        let before = spool.waiting();
        cleaner.settled(4, end_of_four);
        assert!(spool.waiting() < before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop((spool, reader));
        let (spool, mut reader, _) = open(dir.path(), 5, 10).unwrap();
        assert!(read_all(&mut reader).is_empty());
        assert_eq!(append(&spool, &["f"]), 6, "numbers are never used twice");
    }

    #[test]
    fn only_what_is_not_settled_takes_room() {
        let dir = TempDir::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (spool, mut reader, cleaner) = open(dir.path(), 0, 1 << 20).unwrap();
        let append =
            |spool: &Spool| runtime.block_on(spool.append(vec![Bytes::from_static(b"0123456789")], Timestamp(5), 50));
        for round in 0..100 {
            append(&spool).unwrap();
            append(&spool).unwrap();
            append(&spool).unwrap();
            assert!(
                matches!(append(&spool), Err(Error::Full)),
                "three lines and a fourth are more than 50 bytes"
            );
            let last = std::iter::from_fn(|| reader.poll().unwrap()).last().unwrap();
            assert_eq!(last.seq, (round + 1) * 3);
            cleaner.settled(last.seq, last.end);
            assert_eq!(spool.waiting(), 0);
        }
        append(&spool).unwrap();
        let waiting = spool.waiting();
        drop((spool, reader));
        let (spool, mut reader, cleaner) = open(dir.path(), 300, 1 << 20).unwrap();
        assert_eq!(spool.waiting(), waiting, "a restart changes nothing");
        let last = reader.poll().unwrap().unwrap();
        cleaner.settled(last.seq, last.end);
        assert_eq!(spool.waiting(), 0);
        let large = vec![Bytes::from(vec![b'x'; 100])];
        assert!(
            runtime.block_on(spool.append(large, Timestamp(5), 50)).is_ok(),
            "alone it fits"
        );
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
