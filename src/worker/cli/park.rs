//! `park`: the dead letters.
//!
//! Sources that are queues keep theirs with the broker; those of all others stand in the file under `[park]`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Outcome, block_on, load, replay};
use crate::config::Config;
use crate::source::{ParkedEvent, ParkedEvents};

#[derive(Debug, Subcommand)]
pub enum Park {
    /// One line per dead letter: source, id, reason
    #[command(after_help = "Example:\n  push-stream-worker park list worker.toml")]
    List {
        /// The configuration file
        config: PathBuf,
    },
    /// All there is to know about one
    #[command(after_help = "Example:\n  push-stream-worker park show worker.toml 1700000000000-7")]
    Show {
        /// The configuration file
        config: PathBuf,
        /// As `list` shows it
        id: String,
    },
    /// Try them again: with a broker they are queued anew, those of the file are run through their pipelines here and now
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
            Self::List { config } => list(&load(&config)?),
            Self::Show { config, id } => show(&load(&config)?, &id),
            Self::Retry(choice) => choice.apply(true),
            Self::Drop(choice) => choice.apply(false),
        }
    }
}

/// Where dead letters are: the broker of a source, or the file.
fn stores(config: &Config) -> Vec<(String, Box<dyn ParkedEvents>)> {
    let of_brokers = config
        .sources
        .iter()
        .filter_map(|named| Some((named.name.clone(), named.component.parked()?)));
    of_brokers.collect()
}

fn list(config: &Config) -> Outcome {
    for (name, store) in stores(config) {
        for event in block_on(store.list())? {
            println!("{name} {} {}", event.id, event.reason);
        }
    }
    for line in lines(&config.park_path)? {
        println!("file {} {}", line.id(), line.reason());
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
        Some(line) => println!("{}", serde_json::to_string_pretty(&line.0).unwrap_or_default()),
        None => return Err(format!("no dead letter has the id {id}")),
    }
    Ok(())
}

impl Choice {
    fn apply(self, again: bool) -> Outcome {
        let config = load(&self.config)?;
        let mut count = 0;
        for (_, store) in stores(&config) {
            let ids = match self.all {
                true => block_on(store.list())?.into_iter().map(|event| event.id).collect(),
                false => self.ids.clone(),
            };
            if !ids.is_empty() {
                count += block_on(if again { store.retry(ids) } else { store.forget(ids) })?;
            }
        }
        let is_chosen = |line: &Line| self.all || self.ids.iter().any(|id| *id == line.id());
        let taken = take(&config.park_path, is_chosen)?;
        count += taken.len() as u64;
        if again {
            println!("{count} queued again");
            if !taken.is_empty() {
                return replay::retry(&self.config, &taken);
            }
        } else {
            println!("{count} dropped");
        }
        Ok(())
    }
}

/// One line of the file.
pub struct Line(Value);

impl Line {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    pub fn id(&self) -> String {
        self.text("id").to_owned()
    }

    pub fn pipeline(&self) -> &str {
        self.text("pipeline")
    }

    fn reason(&self) -> String {
        format!(
            "{}: {}: {} (pipeline \"{}\")",
            self.text("parked"),
            self.text("component"),
            self.text("reason"),
            self.pipeline()
        )
    }

    /// The event as it came in.
    pub fn raw(&self) -> Vec<u8> {
        if let Some(raw) = self.0["raw"].as_str() {
            return raw.as_bytes().to_vec();
        }
        let hex = self.text("raw_hex").as_bytes().chunks_exact(2);
        hex.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect()
    }
}

fn lines(path: &Path) -> Result<Vec<Line>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let parse = |(number, line): (usize, &str)| {
        let value =
            serde_json::from_str(line).map_err(|error| format!("{}:{}: {error}", path.display(), number + 1))?;
        Ok(Line(value))
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(parse)
        .collect()
}

/// Takes lines out of the file. A running worker starts a new one when it finds it moved away, so nothing that it writes meanwhile is lost.
fn take(path: &Path, is_chosen: impl Fn(&Line) -> bool) -> Result<Vec<Line>, String> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let aside = path.with_extension(format!("taken-{}", std::process::id()));
    std::fs::rename(path, &aside).map_err(failed)?;
    let (taken, kept): (Vec<Line>, Vec<Line>) = lines(&aside)?.into_iter().partition(is_chosen);
    if !kept.is_empty() {
        let text: String = kept.iter().map(|line| format!("{}\n", line.0)).collect();
        crate::engine::park::append(path, text.as_bytes()).map_err(failed)?;
    }
    if taken.is_empty() {
        std::fs::remove_file(&aside).map_err(failed)?;
    } else {
        // What is tried again and fails comes back into the file; until then this copy is the only one.
        let done = path.with_extension("taken");
        let text: String = taken.iter().map(|line| format!("{}\n", line.0)).collect();
        crate::engine::park::append(&done, text.as_bytes()).map_err(failed)?;
        std::fs::remove_file(&aside).map_err(failed)?;
    }
    Ok(taken)
}
