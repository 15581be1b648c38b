//! `park`: the dead letters.
//!
//! Queue sources keep theirs with the broker; those of all other sources are in the file under `[park]`.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::parked_line::{lines, told};
use super::{Outcome, block_on, load, replay};
use crate::config::Config;
use crate::engine::dead_letter::{self, Change};
use crate::source::{ParkedEvent, ParkedEvents};

/// How many characters of an event `list --json` shows.
const BEGINNING: usize = 400;

#[derive(Debug, Subcommand)]
pub enum Park {
    /// One line per dead letter: source, id, when and where it was parked, reason
    #[command(after_help = "Example:\n  push-stream-worker park list worker.toml")]
    List {
        /// The configuration file
        config: PathBuf,
        /// A JSON object for each, with the beginning of the event
        #[arg(long)]
        json: bool,
    },
    /// All there is to know about one
    #[command(after_help = "Example:\n  push-stream-worker park show worker.toml 1700000000000-7")]
    Show {
        /// The configuration file
        config: PathBuf,
        /// As `list` shows it
        id: String,
    },
    /// Try them again: with a broker they are queued anew, those of the file are run through their pipelines here and now, and leave the file when they are
    /// done. Exit status 1: some are still parked
    #[command(after_help = "Example:\n  push-stream-worker park retry worker.toml --all")]
    Retry(Choice),
    /// Forget them
    #[command(after_help = "Example:\n  push-stream-worker park drop worker.toml 1700000000000-7")]
    Drop(Choice),
}

#[derive(Debug, Args)]
pub struct Choice {
    /// The configuration file
    config: PathBuf,
    /// As `list` shows them
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// All there are
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

impl Park {
    pub fn run(self) -> Outcome {
        match self {
            Self::List { config, json } => list(&load(&config)?, json),
            Self::Show { config, id } => show(&load(&config)?, &id),
            Self::Retry(choice) => choice.apply(true),
            Self::Drop(choice) => choice.apply(false),
        }
    }
}

/// The stores of dead letters: the sources' brokers, and the file.
fn stores(config: &Config) -> Vec<(String, Box<dyn ParkedEvents>)> {
    let of_brokers = config
        .sources
        .iter()
        .filter_map(|named| Some((named.name.clone(), named.component.parked()?)));
    of_brokers.collect()
}

fn list(config: &Config, json: bool) -> Outcome {
    let tell = |source: &str, id: &str, reason: &str, raw: &dyn Fn() -> Vec<u8>| match json {
        true => {
            let raw = raw();
            let event: String = String::from_utf8_lossy(&raw).chars().take(BEGINNING).collect();
            println!(
                "{}",
                json!({"source": source, "id": id, "reason": reason, "event": event, "bytes": raw.len()})
            );
        }
        false => println!("{source} {id} {reason}"),
    };
    for (name, store) in stores(config) {
        for event in block_on(store.list())? {
            tell(&name, &event.id, &told(&event.reason), &|| event.raw.clone());
        }
    }
    for line in lines(&config.park_path)? {
        tell(&line.source(config), &line.id(), &line.reason(), &|| line.raw());
    }
    Ok(())
}

fn show(config: &Config, id: &str) -> Outcome {
    for (name, store) in stores(config) {
        let events = block_on(store.list())?;
        if let Some(ParkedEvent { reason, raw, .. }) = events.into_iter().find(|event| event.id == id) {
            println!(
                "source: {name}\nid: {id}\nreason: {reason}\n\n{}",
                String::from_utf8_lossy(&raw)
            );
            return Ok(());
        }
    }
    match lines(&config.park_path)?.into_iter().find(|line| line.id() == id) {
        Some(line) => println!("{}", serde_json::to_string_pretty(line.value()).unwrap_or_default()),
        None => return Err(format!("no dead letter has the id {id}")),
    }
    Ok(())
}

impl Choice {
    fn apply(self, again: bool) -> Outcome {
        let config = load(&self.config)?;
        let mut of_brokers = 0;
        for (_, store) in stores(&config) {
            let ids = match self.all {
                true => block_on(store.list())?.into_iter().map(|event| event.id).collect(),
                false => self.ids.clone(),
            };
            if !ids.is_empty() {
                of_brokers += block_on(if again { store.retry(ids) } else { store.forget(ids) })?;
            }
        }
        let _lock = lock(&config.park_path)?;
        let mut chosen = lines(&config.park_path)?;
        chosen.retain(|line| self.all || self.ids.iter().any(|id| *id == line.id()));
        let of_file = chosen.len();
        if of_brokers == 0 && of_file == 0 && !self.all {
            return Err(format!("no dead letter has the id {}", self.ids.join(" or ")));
        }
        if !again {
            let chosen: HashSet<String> = chosen.into_iter().map(|line| line.text).collect();
            let change = |line: &str| match chosen.contains(line) {
                true => Change::Remove,
                false => Change::Keep,
            };
            let dropped = dead_letter::rewrite(&config.park_path, change);
            dropped.map_err(|error| format!("cannot write {}: {error}", config.park_path.display()))?;
            println!("{} dropped", of_brokers + of_file as u64);
            return Ok(());
        }
        if of_brokers > 0 || of_file == 0 {
            println!("{of_brokers} queued again");
        }
        if of_file == 0 {
            return Ok(());
        }
        let done = replay::retry(&self.config, chosen)?;
        println!("{done} of {of_file} done");
        match of_file - done {
            0 => Ok(()),
            left => Err(format!("{left} still parked: see push-stream-worker park list")),
        }
    }
}

/// Two of these commands at once would send everything twice. The lock ends with the process, and leaves no file
/// behind.
fn lock(park: &Path) -> Result<Option<File>, String> {
    let directory = park.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    // Without the directory there are no dead letters either.
    let Ok(opened) = File::open(directory) else {
        return Ok(None);
    };
    match opened.try_lock() {
        Ok(()) => Ok(Some(opened)),
        Err(TryLockError::WouldBlock) => {
            Err("another park retry or park drop is at work; wait for it, or stop it".to_owned())
        }
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", directory.display())),
    }
}
