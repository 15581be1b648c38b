//! The key file: what may be in it, and how it is replaced without a moment in which it is not whole.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use push_stream_core::token::KeySet;
use serde_json::Value;

/// Of a file that was not there before: keys are public, and nginx's workers must read them.
const MODE: u32 = 0o644;

/// Between a file's name and the number of who writes it.
const TEMPORARY: &str = ".push-stream-jwks-";

/// Whether nginx would take this set, as the words for the log; else what is wrong with it, as words behind "that".
pub fn check(bytes: &[u8]) -> Result<String, String> {
    let set: Value = serde_json::from_slice(bytes).map_err(|error| format!("is no JSON: {error}"))?;
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or("is no JWK Set: it has no array keys")?;
    for (number, key) in (1..).zip(keys) {
        // RFC 7518 §6: what only one side may know.
        if key.get("kty").is_some_and(|kind| kind == "oct") || key.get("d").is_some() {
            return Err(format!(
                "has a secret in key {number}: whoever can read it there could sign tokens"
            ));
        }
    }
    let set = KeySet::parse(bytes, &[])?;
    let ids: Vec<&str> = set.keys().iter().filter_map(|key| key.id()).collect();
    let count = set.keys().len();
    let plural = if count == 1 { "" } else { "s" };
    Ok(match ids.is_empty() {
        true => format!("{count} key{plural}"),
        // As JSON, so that no name can make a line of its own.
        false => format!("{count} key{plural} {}", Value::from(ids)),
    })
}

#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    /// What was written last, or found to be the same.
    known: Option<Vec<u8>>,
}

/// What became of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Replaced,
    /// The file has these bytes already; it was not touched.
    Same,
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl KeyFile {
    /// A link is followed: the file that it leads to is replaced, in its directory. What a process that was killed has
    /// left there is removed.
    pub fn open(path: &Path) -> Result<Self, String> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let bad = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        if path.file_name().is_none() || path.is_dir() {
            return Err(bad(&"is no name of a file"));
        }
        let directory = directory(&path);
        let entries = fs::read_dir(directory).map_err(|error| bad(&error))?;
        let left = temporary_name(&path, "");
        for entry in entries.flatten() {
            let found = entry.file_name();
            if found.as_encoded_bytes().starts_with(left.as_bytes()) {
                fs::remove_file(entry.path()).map_err(|error| bad(&error))?;
            }
        }
        Ok(Self { path, known: None })
    }

    /// Does the file hold what this process knows of?
    pub fn is_ours(&self) -> bool {
        self.known.is_some() && fs::read(&self.path).ok() == self.known
    }

    /// Puts these bytes in the place of the file: another file in the same directory, with the same mode and, as far as
    /// is allowed, owner, is written to the disk and renamed.
    pub fn replace(&mut self, bytes: &[u8]) -> io::Result<Written> {
        if fs::read(&self.path).is_ok_and(|found| found == bytes) {
            self.known = Some(bytes.to_owned());
            return Ok(Written::Same);
        }
        let name = temporary_name(&self.path, &std::process::id().to_string());
        let temporary = directory(&self.path).join(name);
        let written = self.write(&temporary, bytes);
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        self.known = Some(bytes.to_owned());
        Ok(Written::Replaced)
    }

    fn write(&self, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(bytes)?;
        let mode = match fs::metadata(&self.path) {
            Ok(before) => {
                // Only root may give files away; the group is tried alone, too.
                if fchown(&file, Some(before.uid()), Some(before.gid())).is_err() {
                    let _ = fchown(&file, None, Some(before.gid()));
                }
                before.mode() & 0o7777
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => MODE,
            Err(error) => return Err(error),
        };
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        File::open(directory(&self.path))?.sync_all()
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_name(path: &Path, end: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}{TEMPORARY}{end}")
}
