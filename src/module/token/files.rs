//! Files that are read with the configuration, and again when they change.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use push_stream_core::token::keys::LONGEST_FILE;
use push_stream_core::token::{Algorithm, KeySet, Revocations};

/// The longest file of revocations.
const LONGEST_REVOCATIONS: u64 = 64 << 20;

/// What a file is read as.
pub trait Kind: PartialEq {
    type Content;

    /// The directive that names the file.
    const DIRECTIVE: &str;

    fn path(&self) -> &[u8];

    fn longest(&self) -> u64;

    fn parse(&self, text: &[u8]) -> Result<Self::Content, String>;
}

/// A key file, and the algorithms that its keys are restricted to.
#[derive(Debug, PartialEq)]
pub struct KeyFile {
    pub path: Box<[u8]>,
    pub algorithms: Vec<Algorithm>,
}

impl Kind for KeyFile {
    type Content = KeySet;

    const DIRECTIVE: &str = "push_stream_token_keys";

    fn path(&self) -> &[u8] {
        &self.path
    }

    fn longest(&self) -> u64 {
        LONGEST_FILE as u64
    }

    fn parse(&self, text: &[u8]) -> Result<KeySet, String> {
        KeySet::parse(text, &self.algorithms)
    }
}

/// A file of revocations.
#[derive(Debug, PartialEq)]
pub struct RevocationFile(pub Box<[u8]>);

impl Kind for RevocationFile {
    type Content = Revocations;

    const DIRECTIVE: &str = "push_stream_token_revoked";

    fn path(&self) -> &[u8] {
        &self.0
    }

    fn longest(&self) -> u64 {
        LONGEST_REVOCATIONS
    }

    fn parse(&self, text: &[u8]) -> Result<Revocations, String> {
        Revocations::parse(text)
    }
}

/// A file with what was last read from it.
#[derive(Debug)]
pub struct File<K: Kind> {
    pub kind: K,
    pub content: Rc<K::Content>,
    /// The state of the file that was last read, or could not be read.
    stamp: Option<Stamp>,
}

impl File<KeyFile> {
    pub fn is(&self, path: &[u8], algorithms: &[Algorithm]) -> bool {
        *self.kind.path == *path && *self.kind.algorithms == *algorithms
    }
}

/// By this it is noticed that a file has changed. Also one that is replaced by `rename` is a changed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    size: u64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            size: metadata.size(),
        }
    }
}

/// Adds a file and reads it, unless it is known already.
pub fn add<K: Kind>(files: &mut Vec<File<K>>, kind: K) -> Result<(), String> {
    if files.iter().any(|file| file.kind == kind) {
        return Ok(());
    }
    let (content, stamp) = read(&kind).map_err(|(_, problem)| problem)?;
    files.push(File {
        kind,
        content: Rc::new(content),
        stamp: Some(stamp),
    });
    Ok(())
}

/// Reads those files again that have changed; true if one of them is another now. Appends what is wrong with files that
/// cannot be read, once for each of their states.
pub fn read_again<K: Kind>(files: &mut [File<K>], problems: &mut Vec<String>) -> bool {
    let mut changed = false;
    for file in files {
        let stamp = fs::metadata(path_of(&file.kind)).ok().as_ref().map(Stamp::of);
        if stamp == file.stamp {
            continue;
        }
        match read(&file.kind) {
            Ok((content, stamp)) => {
                (file.content, file.stamp) = (Rc::new(content), Some(stamp));
                changed = true;
            }
            Err((stamp, problem)) => {
                file.stamp = stamp;
                problems.push(problem);
            }
        }
    }
    changed
}

fn path_of(kind: &impl Kind) -> &Path {
    Path::new(OsStr::from_bytes(kind.path()))
}

/// Reads a file, and its state when it was opened. The error has that state, too.
fn read<K: Kind>(kind: &K) -> Result<(K::Content, Stamp), (Option<Stamp>, String)> {
    let path = path_of(kind);
    let name = path.display();
    let (stamp, text) = read_text(path, kind.longest());
    let describe = |problem: String| (stamp, format!("{}: file \"{name}\" {problem}", K::DIRECTIVE));
    let text = text.map_err(|error| describe(format!("cannot be read: {error}")))?;
    let content = kind.parse(&text).map_err(describe)?;
    let stamp = stamp.ok_or_else(|| describe("has no state".to_owned()))?;
    Ok((content, stamp))
}

fn read_text(path: &Path, longest: u64) -> (Option<Stamp>, io::Result<Vec<u8>>) {
    // A file that is there and may not be opened has a state as well.
    let before = match fs::metadata(path) {
        // Opening a pipe would wait for somebody who writes.
        Ok(metadata) if !metadata.is_file() => {
            return (
                Some(Stamp::of(&metadata)),
                Err(io::Error::other("it is no regular file")),
            );
        }
        Ok(metadata) => Some(Stamp::of(&metadata)),
        Err(error) => return (None, Err(error)),
    };
    let opened = fs::File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = match opened {
        Ok(opened) => opened,
        Err(error) => return (before, Err(error)),
    };
    let stamp = Some(Stamp::of(&metadata));
    if metadata.len() > longest {
        return (
            stamp,
            Err(io::Error::other(format!("it is longer than {longest} bytes"))),
        );
    }
    let mut text = Vec::new();
    let read = file.take(longest).read_to_end(&mut text);
    (stamp, read.map(|_| text))
}
