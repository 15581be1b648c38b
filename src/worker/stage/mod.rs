//! Stages: transform events between source and sinks.
//!
//! A stage is synchronous and shared by all lanes: no I/O and no waiting, so that a lane can run a whole pipeline
//! inline. It must give the same result when the same event comes again, after a panic or a redelivery. So stages keep
//! no state of earlier events, except `dedupe`, which remembers keys with the id of the first event that had them and
//! lets that event through again, and counters that affect no result.
//!
//! Each stage is one file: its configuration, how it is read, how it runs, its tests. [`KINDS`] lists them.

pub mod anonymise;
pub mod assert;
pub mod clean_html;
pub mod dedupe;
pub mod encrypt;
mod expression;
pub mod filter;
pub mod format;
pub mod gate;
pub mod parse_json;
pub mod route;
pub mod sample;
pub mod select;
mod template_check;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::section::Section;
use crate::event::Event;
use crate::field::FieldPath;

/// What to do with an event after a stage.
#[derive(Debug)]
pub enum Flow {
    /// Pass it to the next stage.
    Next,
    /// Pass it on, and count this kind of error.
    Doubtful(&'static str),
    /// Drop it on purpose. The reason is a metrics label: a few words, no data.
    Drop(&'static str),
    /// Put it in the dead-letter file.
    Park(String),
    /// Continue with these events instead. The pipeline numbers their ids.
    Split(Vec<Event>),
}

pub trait Stage: Send + Sync {
    fn run(&self, event: &mut Event) -> Flow;

    /// Does it need parsed fields? Then `validate` requires an earlier `parse_json`.
    fn needs_fields(&self) -> bool {
        true
    }

    /// Does it parse the raw bytes into fields?
    fn gives_fields(&self) -> bool {
        false
    }

    /// Does it choose channels? A publishing sink needs such a stage before it.
    fn gives_channels(&self) -> bool {
        false
    }

    /// Does it malfunction on events without ids? Then `validate` refuses a source without ids.
    fn needs_ids(&self) -> bool {
        false
    }

    /// The event order it requires, if it determines one.
    fn order(&self) -> Option<Order> {
        None
    }
}

/// Which events of a pipeline must stay in the order of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// All events.
    Source,
    /// Events with the same value in this field of the incoming event. Events without it keep order among themselves.
    By(FieldPath),
    /// No events.
    Unordered,
}

/// An entry of the table of stages.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub read: fn(&Section<'_>) -> Option<Arc<dyn Stage>>,
}

pub const KINDS: &[Kind] = &[
    parse_json::KIND,
    filter::KIND,
    select::KIND,
    dedupe::KIND,
    sample::KIND,
    assert::KIND,
    anonymise::KIND,
    clean_html::KIND,
    format::KIND,
    encrypt::KIND,
    gate::KIND,
    route::KIND,
];

/// Length of the keys that stages work with.
pub const KEY_BYTES: usize = 32;

/// `key = { file = "…" }`: the file holds 32 raw bytes or 64 hex digits and an optional line end.
fn key_file(key: &Section<'_>) -> Option<[u8; KEY_BYTES]> {
    let file = key.required::<PathBuf>("file")?;
    read_key(&file).map_err(|error| key.complain_at("file", error)).ok()
}

fn read_key(file: &Path) -> Result<[u8; KEY_BYTES], String> {
    let bytes = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()) {
        return Ok(raw);
    }
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    blake3::Hash::from_hex(text).map(|hash| *hash.as_bytes()).map_err(|_| {
        format!(
            "{} must hold 32 bytes or 64 hex digits (make one: head -c 32 /dev/urandom > {0})",
            file.display()
        )
    })
}

/// Handling of a field that is missing, null or of the wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Null,
    Skip,
    Park,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_key_file_is_raw_or_hex_and_nothing_else() {
        let dir = TempDir::new();
        let file = dir.path().join("key");
        std::fs::write(&file, [7; 32]).unwrap();
        assert_eq!(read_key(&file), Ok([7; 32]));
        std::fs::write(&file, "07".repeat(32) + "\n").unwrap();
        assert_eq!(read_key(&file), Ok([7; 32]));
        std::fs::write(&file, "short").unwrap();
        assert!(read_key(&file).unwrap_err().contains("32 bytes"));
        assert!(read_key(&dir.path().join("gone")).unwrap_err().contains("cannot read"));
    }
}
