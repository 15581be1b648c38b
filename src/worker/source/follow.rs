//! Follows a growing file through rotation, truncation and restarts.
//!
//! * **Rename** (`comments.ndjson` → `comments.ndjson.1`, a new `comments.ndjson`): the old file stays open; once it is
//!   read to its end, has been quiet for a while, and its successor has data, reading continues there. After several
//!   renames, the files in between (`comments.ndjson.1`, by age) come first.
//! * **Truncation** (`copytruncate`, `> file`): detected by a size below the read offset, or by changed bytes before
//!   it. The unread rest is looked for in a copy beside it; then reading starts over.
//! * **A restart** at any of these points: a [`Position`] identifies its file by inode *and* by content, and finds it
//!   under its new name.
//! * **A last line without line end** is not an event yet. In a file that has been rotated away it is one.
//!
//! Nothing here waits for data: [`Follower::poll`] returns what is there now.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Bytes per read. Large enough that the system call's cost per line is negligible, small enough to stay in the cache.
const CHUNK_BYTES: usize = 128 * 1024;
/// Bytes at a file's start that identify it. Files of one application differ after the first lines.
const HEAD_BYTES: usize = 1024;
/// Bytes at the end of the last line that identify the position.
const TAIL_BYTES: usize = 64;
/// Files finished in this run, so that a late write does not reopen one. Rotations within one delay are few.
const REMEMBERED_FILES: usize = 16;

/// A position that can be found again after the file was renamed, copied or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub device: u64,
    pub inode: u64,
    /// After the last finished line.
    pub offset: u64,
    head: Fingerprint,
    tail: Fingerprint,
}

/// Hash of some bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fingerprint {
    start: u64,
    length: usize,
    hash: String,
}

impl Fingerprint {
    fn of(start: u64, bytes: &[u8]) -> Self {
        Self {
            start,
            length: bytes.len(),
            hash: blake3::hash(bytes).to_hex()[..32].to_owned(),
        }
    }

    fn matches(&self, file: &File) -> bool {
        let mut bytes = vec![0; self.length];
        file.read_exact_at(&mut bytes, self.start).is_ok() && Self::of(self.start, &bytes) == *self
    }
}

impl Position {
    /// Does the file have the same content up to the same position?
    fn matches(&self, file: &File) -> bool {
        self.head.matches(file) && self.tail.matches(file)
    }
}

/// [`Position`] before hashing: cheap enough to create for each line.
#[derive(Clone, Debug)]
pub struct Place {
    file: Arc<Known>,
    offset: u64,
    /// The last line and its offset.
    line: Bytes,
    line_start: u64,
}

/// State of an open file.
#[derive(Debug)]
struct Known {
    device: u64,
    inode: u64,
    head: Mutex<Vec<u8>>,
}

impl Place {
    pub fn position(&self) -> Position {
        let head = self.file.head.lock();
        let head_length = head.len().min(usize::try_from(self.offset).unwrap_or(usize::MAX));
        let skipped = self.line.len().saturating_sub(TAIL_BYTES);
        Position {
            device: self.file.device,
            inode: self.file.inode,
            offset: self.offset,
            head: Fingerprint::of(0, &head[..head_length]),
            tail: Fingerprint::of(self.line_start + skipped as u64, &self.line[skipped..]),
        }
    }
}

/// Result of [`Follower::poll`].
#[derive(Debug)]
pub enum Step {
    Line {
        text: Bytes,
        /// Only the first `max_line` bytes are included.
        too_long: bool,
        place: Place,
    },
    /// Reading continues at the start of another file.
    Moved(Place),
    /// No news.
    Idle,
}

/// Where to start when there is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Beginning,
    End,
}

pub struct Follower {
    path: PathBuf,
    max_line: usize,
    rotate_wait: Duration,
    current: Option<Open>,
    /// Applies to a file that exists at the very start; one that appears later is read from its beginning.
    start: Start,
    finished: Vec<(u64, u64)>,
}

struct Open {
    file: File,
    known: Arc<Known>,
    /// The last bytes read; given out up to `begin`.
    buffer: Vec<u8>,
    begin: usize,
    /// No line end between `begin` and here.
    searched: usize,
    /// File offset of `begin`.
    consumed: u64,
    /// The start of a line longer than `max_line`, while the rest is skipped.
    long_line: Option<(Bytes, u64)>,
    last: (Bytes, u64),
    /// The file's modification time at the last poll.
    modified: Option<SystemTime>,
    /// When data last arrived, or the successor was first seen.
    quiet_since: Instant,
    has_successor: bool,
}

impl Open {
    fn new(file: File, offset: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let mut head = vec![0; HEAD_BYTES.min(usize::try_from(offset).unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0)?;
        let known = Known {
            device: metadata.dev(),
            inode: metadata.ino(),
            head: Mutex::new(head),
        };
        Ok(Self {
            file,
            known: Arc::new(known),
            buffer: Vec::new(),
            begin: 0,
            searched: 0,
            consumed: offset,
            long_line: None,
            last: (Bytes::new(), offset),
            modified: None,
            quiet_since: Instant::now(),
            has_successor: false,
        })
    }

    fn id(&self) -> (u64, u64) {
        (self.known.device, self.known.inode)
    }

    fn place(&self) -> Place {
        let (line, line_start) = self.last.clone();
        Place {
            file: Arc::clone(&self.known),
            offset: self.consumed,
            line,
            line_start,
        }
    }

    fn read_offset(&self) -> u64 {
        self.consumed + self.unread() as u64
    }

    fn unread(&self) -> usize {
        self.buffer.len() - self.begin
    }

    /// Reads new data. `false`: none.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + CHUNK_BYTES, 0);
        let offset = self.consumed + old as u64;
        let count = self.file.read_at(&mut self.buffer[old..], offset);
        self.buffer.truncate(old + count.as_ref().copied().unwrap_or(0));
        if count? == 0 {
            return Ok(false);
        }
        let mut head = self.known.head.lock();
        if offset == head.len() as u64 && head.len() < HEAD_BYTES {
            let room = (HEAD_BYTES - head.len()).min(self.buffer.len() - old);
            head.extend_from_slice(&self.buffer[old..old + room]);
        }
        self.quiet_since = Instant::now();
        Ok(true)
    }

    /// Are the bytes already read still those in the file?
    fn is_unchanged(&self, size: u64) -> bool {
        if size < self.read_offset() {
            return false;
        }
        let same = |start: u64, expected: &[u8]| {
            let mut found = vec![0; expected.len()];
            self.file.read_exact_at(&mut found, start).is_ok() && found == expected
        };
        let (line, start) = &self.last;
        let skipped = line.len().saturating_sub(TAIL_BYTES);
        same(0, &self.known.head.lock()) && same(start + skipped as u64, &line[skipped..])
    }

    /// Takes `length` bytes of text and `ending` bytes of line end off the buffer.
    fn take(&mut self, length: usize, ending: usize) -> (Bytes, u64) {
        let text = Bytes::copy_from_slice(&self.buffer[self.begin..self.begin + length]);
        let start = self.consumed;
        self.begin += length + ending;
        self.searched = self.begin;
        self.consumed += (length + ending) as u64;
        (text, start)
    }

    /// The next complete line in the buffer. Empty lines are skipped.
    fn next_line(&mut self, max_line: usize) -> Option<Step> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.buffer[self.searched..]).map(|i| i + self.searched) else {
                self.searched = self.buffer.len();
                if self.unread() > max_line {
                    let (text, start) = self.take(self.unread(), 0);
                    self.long_line.get_or_insert((text.slice(..max_line), start));
                }
                return None;
            };
            let carriage_return = usize::from(end > self.begin && self.buffer[end - 1] == b'\r');
            let (text, start) = self.take(end - self.begin - carriage_return, carriage_return + 1);
            if let Some(step) = self.line(text, start, max_line) {
                return Some(step);
            }
        }
    }

    /// The rest of a file that will not grow any more.
    fn last_line(&mut self, max_line: usize) -> Option<Step> {
        if self.unread() == 0 && self.long_line.is_none() {
            return None;
        }
        let (text, start) = self.take(self.unread(), 0);
        self.line(text, start, max_line)
    }

    fn line(&mut self, text: Bytes, start: u64, max_line: usize) -> Option<Step> {
        let (text, start, too_long) = match self.long_line.take() {
            Some((beginning, start)) => (beginning, start, true),
            None if text.len() > max_line => (text.slice(..max_line), start, true),
            None if text.is_empty() => return None,
            None => (text, start, false),
        };
        self.last = (text.clone(), start);
        Some(Step::Line {
            text,
            too_long,
            place: self.place(),
        })
    }
}

impl Follower {
    /// Continues at `position`, or starts afresh.
    pub fn new(
        path: PathBuf,
        position: Option<&Position>,
        start: Start,
        max_line: usize,
        rotate_wait: Duration,
    ) -> Self {
        let mut follower = Self {
            path,
            max_line,
            rotate_wait,
            current: None,
            start,
            finished: Vec::new(),
        };
        if let Some(position) = position {
            follower.start = Start::Beginning;
            follower.resume(position);
        }
        follower
    }

    /// The next event of the file, if any.
    pub fn poll(&mut self) -> io::Result<Step> {
        let Some(open) = &mut self.current else {
            return self.open_path();
        };
        if let Some(step) = open.next_line(self.max_line) {
            return Ok(step);
        }
        let metadata = open.file.metadata()?;
        // Check the time as well: a file can be overwritten with the same size.
        let modified = metadata.modified().ok();
        if metadata.len() != open.read_offset() || modified != open.modified {
            open.modified = modified;
            if !open.is_unchanged(metadata.len()) {
                return self.start_over();
            }
            while open.fill()? {
                if let Some(step) = open.next_line(self.max_line) {
                    return Ok(step);
                }
            }
        }
        self.look_for_successor()
    }

    /// The followed path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes from the last line given out to the end of the file.
    pub fn lag_bytes(&self) -> u64 {
        let size = |open: &Open| open.file.metadata().map_or(0, |metadata| metadata.len());
        self.current
            .as_ref()
            .map_or(0, |open| size(open).saturating_sub(open.consumed))
    }

    fn open_path(&mut self) -> io::Result<Step> {
        let start = std::mem::replace(&mut self.start, Start::Beginning);
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Step::Idle),
            Err(error) => return Err(error),
        };
        let offset = match start {
            Start::Beginning => 0,
            Start::End => end_of_last_line(&file)?,
        };
        self.switch_to(Open::new(file, offset)?)
    }

    fn switch_to(&mut self, open: Open) -> io::Result<Step> {
        if let Some(old) = self.current.take() {
            self.finished.push(old.id());
            if self.finished.len() > REMEMBERED_FILES {
                self.finished.remove(0);
            }
        }
        self.finished.retain(|id| *id != open.id());
        let place = open.place();
        self.current = Some(open);
        Ok(Step::Moved(place))
    }

    /// The file was truncated or overwritten in place.
    fn start_over(&mut self) -> io::Result<Step> {
        let Some(old) = self.current.take() else {
            return Ok(Step::Idle);
        };
        let position = old.place().position();
        let copy = self
            .siblings()
            .into_iter()
            .find_map(|(path, _)| open_matching(&path, &position));
        match copy {
            Some(file) => {
                tracing::info!("{} was truncated; its unread rest is in a copy", self.path.display());
                let copy = Open::new(file, position.offset)?;
                self.switch_to(copy)
            }
            None if position.offset == 0 => self.open_path(),
            None => {
                let (path, offset) = (self.path.display(), position.offset);
                tracing::warn!(
                    "{path} was truncated and there is no copy: what came after byte {offset} unread is lost"
                );
                self.open_path()
            }
        }
    }

    /// At the end of the current file: does the path name another file now?
    fn look_for_successor(&mut self) -> io::Result<Step> {
        let Some(open) = &mut self.current else {
            return Ok(Step::Idle);
        };
        let at_path = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            // Between rename and creation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Step::Idle),
            Err(error) => return Err(error),
        };
        if (at_path.dev(), at_path.ino()) == open.id() {
            return Ok(Step::Idle);
        }
        if !open.has_successor {
            open.has_successor = true;
            open.quiet_since = Instant::now();
        }
        if at_path.len() == 0 || open.quiet_since.elapsed() < self.rotate_wait {
            return Ok(Step::Idle);
        }
        if let Some(step) = open.last_line(self.max_line) {
            return Ok(step);
        }
        let between = self.between(open_metadata(&self.current)?);
        let next = File::open(between.as_deref().unwrap_or(&self.path))?;
        self.switch_to(Open::new(next, 0)?)
    }

    /// The oldest file that had the name after the current one and has been renamed since.
    fn between(&self, current: Metadata) -> Option<PathBuf> {
        let current_id = (current.dev(), current.ino());
        let changed = current.modified().ok()?;
        let is_newer = |metadata: &Metadata| metadata.modified().is_ok_and(|time| time > changed);
        let is_read = |id: (u64, u64)| id == current_id || self.finished.contains(&id);
        let mut newer = self.siblings();
        newer.retain(|(_, metadata)| is_newer(metadata) && !is_read((metadata.dev(), metadata.ino())));
        newer.into_iter().map(|(path, _)| path).next()
    }

    /// Files beside the path that rotation may have created, oldest change first.
    fn siblings(&self) -> Vec<(PathBuf, Metadata)> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let Some(base) = self.path.file_name().and_then(OsStr::to_str) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir(directory) else {
            return Vec::new();
        };
        let mut found: Vec<(PathBuf, Metadata)> = entries
            .flatten()
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .is_some_and(|name| is_rotated_name(base, name))
            })
            .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
            .filter(|(_, metadata)| metadata.is_file())
            .collect();
        found.sort_by_key(|(_, metadata)| metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        found
    }

    /// Finds the file of a stored position, by inode first.
    fn resume(&mut self, position: &Position) {
        let mut candidates = vec![self.path.clone()];
        candidates.extend(self.siblings().into_iter().map(|(path, _)| path));
        let has_inode =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (position.device, position.inode));
        candidates.sort_by_key(|path| !has_inode(path));
        // At offset 0 there is no content to identify the file by.
        candidates.retain(|path| position.offset > 0 || has_inode(path));
        let found = candidates.iter().find_map(|path| open_matching(path, position));
        match found.map(|file| Open::new(file, position.offset)) {
            Some(Ok(mut open)) => {
                let Fingerprint { start, length, .. } = position.tail;
                let mut line = vec![0; length];
                if open.file.read_exact_at(&mut line, start).is_ok() {
                    open.last = (line.into(), start);
                }
                self.current = Some(open);
            }
            _ if position.offset == 0 => {}
            _ => tracing::warn!(
                "the file that {} was at byte {} of is gone, truncated or compressed: its unread rest, if any, is lost; \
                 going on at the beginning of what is there",
                self.path.display(),
                position.offset
            ),
        }
    }
}

fn open_matching(path: &Path, position: &Position) -> Option<File> {
    File::open(path).ok().filter(|file| position.matches(file))
}

fn open_metadata(open: &Option<Open>) -> io::Result<Metadata> {
    open.as_ref().ok_or(io::ErrorKind::NotFound)?.file.metadata()
}

/// `base.1`, `base-20260101`, `base.2026-01-01`: the base, a separator, digits. Compressed files are not read.
fn is_rotated_name(base: &str, name: &str) -> bool {
    let Some(suffix) = name
        .strip_prefix(base)
        .and_then(|rest| rest.strip_prefix(['.', '-', '_']))
    else {
        return false;
    };
    suffix.bytes().any(|b| b.is_ascii_digit())
        && suffix
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.' | b':' | b'T' | b'Z'))
}

/// Offset at which the first incomplete line starts.
fn end_of_last_line(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut chunk = vec![0; CHUNK_BYTES];
    while end > 0 {
        let length = chunk.len().min(usize::try_from(end).unwrap_or(usize::MAX));
        let start = end - length as u64;
        file.read_exact_at(&mut chunk[..length], start)?;
        if let Some(at) = memchr::memrchr(b'\n', &chunk[..length]) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::io::Write;

    struct Case {
        dir: TempDir,
        follower: Follower,
        last: Option<Place>,
    }

    impl Case {
        fn new(start: Start, initial: Option<&str>) -> Self {
            let dir = TempDir::new();
            let path = dir.path().join("log");
            if let Some(text) = initial {
                fs::write(&path, text).unwrap();
            }
            let follower = Follower::new(path, None, start, 100, Duration::ZERO);
            Self {
                dir,
                follower,
                last: None,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn append(&self, name: &str, text: &str) {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path(name))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            fs::rename(self.path(from), self.path(to)).unwrap();
        }

        /// All lines available now.
        fn lines(&mut self) -> Vec<String> {
            let mut lines = Vec::new();
            loop {
                match self.follower.poll().unwrap() {
                    Step::Line { text, too_long, place } => {
                        self.last = Some(place);
                        lines.push(format!(
                            "{}{}",
                            String::from_utf8_lossy(&text),
                            if too_long { "…" } else { "" }
                        ));
                    }
                    Step::Moved(place) => self.last = Some(place),
                    Step::Idle => return lines,
                }
            }
        }

        /// Simulates a kill and a restart at the last line given out.
        fn restart(&mut self) {
            let stored = serde_json::to_string(&self.last.as_ref().unwrap().position()).unwrap();
            let position = serde_json::from_str(&stored).unwrap();
            self.follower = Follower::new(self.path("log"), Some(&position), Start::End, 100, Duration::ZERO);
        }
    }

    /// Lets modification times differ.
    fn tick() {
        std::thread::sleep(Duration::from_millis(15));
    }

    #[test]
    fn a_growing_file_gives_whole_lines_only() {
        let mut case = Case::new(Start::Beginning, None);
        assert!(case.lines().is_empty(), "a missing file is waited for");
        case.append("log", "one\r\n\n\ntw");
        assert_eq!(case.lines(), ["one"]);
        case.append("log", "o\nthree\n");
        assert_eq!(case.lines(), ["two", "three"]);
    }

    #[test]
    fn the_end_is_behind_the_last_whole_line_and_a_later_file_starts_at_its_beginning() {
        let mut case = Case::new(Start::End, Some("old\nol"));
        assert!(case.lines().is_empty());
        case.append("log", "d2\nnew\n");
        assert_eq!(case.lines(), ["old2", "new"]);
        let mut case = Case::new(Start::End, None);
        assert!(case.lines().is_empty());
        case.append("log", "first\n");
        assert_eq!(case.lines(), ["first"]);
    }

    #[test]
    fn rotation_by_rename_loses_nothing_not_even_late_or_unfinished_lines() {
        let mut case = Case::new(Start::Beginning, Some("a\n"));
        assert_eq!(case.lines(), ["a"]);
        case.rename("log", "log.1");
        case.append("log.1", "b\n");
        assert_eq!(case.lines(), ["b"]);
        case.append("log", "");
        case.append("log.1", "c\nunfinished");
        assert_eq!(case.lines(), ["c"], "the new file is still empty");
        case.append("log", "d\n");
        assert_eq!(case.lines(), ["unfinished", "d"]);
    }

    #[test]
    fn two_rotations_between_two_looks_lose_nothing() {
        let mut case = Case::new(Start::Beginning, Some("a\n"));
        assert_eq!(case.lines(), ["a"]);
        case.append("log", "b\n");
        case.rename("log", "log.1");
        tick();
        case.append("log", "c\n");
        tick();
        case.rename("log.1", "log.2");
        case.rename("log", "log.1");
        case.append("log", "d\n");
        assert_eq!(case.lines(), ["b", "c", "d"]);
        // A late write to a finished file does not reopen it.
        tick();
        case.append("log.2", "z\n");
        case.rename("log", "log.0");
        case.append("log", "e\n");
        assert_eq!(case.lines(), ["e"]);
    }

    #[test]
    fn truncation_starts_over_even_if_the_file_has_grown_past_the_old_place() {
        let mut case = Case::new(Start::Beginning, Some("aaaa\nbbbb\n"));
        assert_eq!(case.lines(), ["aaaa", "bbbb"]);
        fs::write(case.path("log"), "c\n").unwrap();
        assert_eq!(case.lines(), ["c"]);
        fs::write(case.path("log"), "d\nsomething much longer than before\n").unwrap();
        assert_eq!(case.lines(), ["d", "something much longer than before"]);
    }

    #[test]
    fn copytruncate_reads_the_unread_rest_from_the_copy() {
        let mut case = Case::new(Start::Beginning, Some("a\n"));
        assert_eq!(case.lines(), ["a"]);
        case.append("log", "b\nc\n");
        fs::copy(case.path("log"), case.path("log.1")).unwrap();
        fs::write(case.path("log"), "d\n").unwrap();
        assert_eq!(case.lines(), ["b", "c", "d"]);
    }

    #[test]
    fn a_restart_goes_on_where_it_was_whatever_happened_to_the_name() {
        let mut case = Case::new(Start::Beginning, Some("a\nb\n"));
        assert_eq!(case.lines(), ["a", "b"]);
        case.restart();
        assert!(case.lines().is_empty());
        case.append("log", "c\n");
        case.restart();
        assert_eq!(case.lines(), ["c"]);

        // Renamed twice while down.
        case.append("log", "d\n");
        case.rename("log", "log.1");
        tick();
        case.append("log", "e\n");
        tick();
        case.rename("log.1", "log.2");
        case.rename("log", "log.1");
        case.append("log", "f\n");
        case.restart();
        assert_eq!(case.lines(), ["d", "e", "f"]);

        // Copied and truncated while down.
        case.append("log", "g\n");
        fs::copy(case.path("log"), case.path("log.3")).unwrap();
        fs::write(case.path("log"), "h\n").unwrap();
        case.restart();
        assert_eq!(case.lines(), ["g", "h"]);

        // Removed altogether.
        fs::write(case.path("log"), "i\n").unwrap();
        fs::remove_file(case.path("log.3")).unwrap();
        case.restart();
        assert_eq!(case.lines(), ["i"]);
    }

    #[test]
    fn a_restart_before_the_first_line_reads_from_the_beginning() {
        let mut case = Case::new(Start::Beginning, Some(""));
        assert!(case.lines().is_empty());
        case.append("log", "a\n");
        case.restart();
        assert_eq!(case.lines(), ["a"]);
    }

    #[test]
    fn an_endless_line_is_cut_and_marked_and_takes_no_memory() {
        let mut case = Case::new(Start::Beginning, Some("a\n"));
        for _ in 0..5 {
            case.append("log", &"x".repeat(90_000));
            let lines = case.lines();
            assert!(lines.is_empty() || lines == ["a"], "{lines:?}");
            assert!(case.follower.current.as_ref().unwrap().unread() <= 100);
        }
        case.append("log", "\nb\n");
        assert_eq!(case.lines(), [format!("{}…", "x".repeat(100)), "b".to_owned()]);
        case.restart();
        assert!(case.lines().is_empty());
    }

    #[test]
    fn only_names_made_by_rotation_are_siblings() {
        for name in ["log.1", "log-20260101", "log.2026-01-01", "log.2026-01-01T00:00:00Z"] {
            assert!(is_rotated_name("log", name), "{name}");
        }
        for name in [
            "log", "log.gz", "log.1.gz", "log.bak", "log2", "other.1", "log.-", "log.",
        ] {
            assert!(!is_rotated_name("log", name), "{name}");
        }
    }
}
