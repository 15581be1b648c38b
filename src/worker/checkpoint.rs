//! Small state files, replaced atomically: a crash leaves the old version or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::credit::Permit;

/// Pause between attempts to store a position after a disk error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Minimum time between two stores of a position: one fsync per few events would wear the disk for no gain.
const MIN_INTERVAL: Duration = Duration::from_millis(5);

/// Writes `value` as JSON to `path`: temporary file, fsync, rename, fsync of the directory.
pub fn store<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// Reads what [`store`] wrote; `None` if there is nothing yet.
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let invalid = |error| {
        let text = format!("{} is damaged ({error}); move it away to start over", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    serde_json::from_slice(&text).map(Some).map_err(invalid)
}

/// Stores positions on its own thread, always the newest one, and returns credit only afterwards: what is not durably
/// acknowledged counts as in flight, so a crash repeats at most `max_in_flight` events.
#[derive(Debug)]
pub struct Checkpointer<T> {
    positions: Option<mpsc::Sender<(T, Vec<Permit>)>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Serialize + Send + 'static> Checkpointer<T> {
    /// `stored` is called after each durable write.
    pub fn spawn(name: &str, path: PathBuf, mut stored: impl FnMut(&T) + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<(T, Vec<Permit>)>();
        let source = name.to_owned();
        let thread = std::thread::Builder::new().name(format!("ack-{name}")).spawn(move || {
            let mut stored_at = None;
            while let Ok((mut position, mut permits)) = receiver.recv() {
                let age = stored_at.map_or(MIN_INTERVAL, |at: Instant| at.elapsed());
                std::thread::sleep(MIN_INTERVAL.saturating_sub(age));
                for (newer, more) in receiver.try_iter() {
                    position = newer;
                    permits.extend(more);
                }
                while let Err(error) = store(&path, &position) {
                    tracing::error!(
                        "source {source}: cannot store {}: {error}; will try again",
                        path.display()
                    );
                    std::thread::sleep(RETRY_PAUSE);
                }
                stored_at = Some(Instant::now());
                stored(&position);
            }
        })?;
        Ok(Self {
            positions: Some(sender),
            thread: Some(thread),
        })
    }

    pub fn submit(&self, position: T, permits: Vec<Permit>) {
        if let Some(positions) = &self.positions {
            // The thread ends only when this sender is dropped.
            let _ = positions.send((position, permits));
        }
    }
}

impl<T> Drop for Checkpointer<T> {
    /// Waits until the last position is stored.
    fn drop(&mut self) {
        self.positions = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credit::Credit;
    use crate::testing::TempDir;

    #[test]
    fn the_newest_position_is_stored_before_credit_returns() {
        let dir = TempDir::new();
        let path = dir.path().join("position.json");
        assert_eq!(load::<u64>(&path).unwrap(), None);
        let credit = Credit::new(100, 100);
        let seen = credit.clone();
        let checkpointer = Checkpointer::spawn("test", path.clone(), move |_: &u64| {
            assert!(seen.in_flight() > 0, "credit is given back only after the write");
        });
        let checkpointer = checkpointer.unwrap();
        for position in 1..=50_u64 {
            checkpointer.submit(position, vec![credit.try_reserve_one(1).unwrap()]);
        }
        drop(checkpointer);
        assert_eq!(load::<u64>(&path).unwrap(), Some(50));
        assert_eq!(credit.in_flight(), 0);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_not_a_fresh_start() {
        let dir = TempDir::new();
        let path = dir.path().join("position.json");
        fs::write(&path, "{").unwrap();
        let error = load::<u64>(&path).unwrap_err().to_string();
        assert!(error.contains("position.json is damaged"), "{error}");
    }
}
