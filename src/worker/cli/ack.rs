//! `ack`: end-to-end acknowledgement from the queue: are all events published that were queued before a moment?

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;

use super::{Outcome, block_on, load};
use crate::clock::Timestamp;
use crate::config::{Config, value};

/// Polling interval.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum Ack {
    /// What is open in each queue, and since when
    #[command(after_help = "Example:\n  push-stream-worker ack status worker.toml")]
    Status {
        /// The configuration file
        config: PathBuf,
    },
    /// Wait until everything that is in the queues now is published or parked
    #[command(after_help = "Example:\n  push-stream-worker ack wait worker.toml --timeout 30s")]
    Wait {
        /// The configuration file
        config: PathBuf,
        /// Give up after this time
        #[arg(long, default_value = "60s", value_parser = value::duration)]
        timeout: Duration,
    },
}

impl Ack {
    pub fn run(self) -> Outcome {
        match self {
            Self::Status { config } => status(&load(&config)?),
            Self::Wait { config, timeout } => wait(&load(&config)?, timeout),
        }
    }
}

fn status(config: &Config) -> Outcome {
    let now = Timestamp::now();
    for named in &config.sources {
        let Some(open) = named.component.open_since(now) else {
            println!("{}: a {} cannot be asked", named.name, named.component_type);
            continue;
        };
        let open = block_on(open)?;
        match open.oldest {
            None => println!("{}: all published", named.name),
            Some(oldest) => println!("{}: {} open, the oldest since {oldest}", named.name, open.events),
        }
    }
    Ok(())
}

fn wait(config: &Config, timeout: Duration) -> Outcome {
    let now = Timestamp::now();
    let deadline = Instant::now() + timeout;
    let mut asked = 0;
    for named in &config.sources {
        while let Some(open) = named.component.open_since(now) {
            asked += 1;
            let open = block_on(open)?;
            if open.oldest.is_none_or(|oldest| oldest > now) {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("{}: {} still open after {timeout:?}", named.name, open.events));
            }
            std::thread::sleep(POLL);
        }
    }
    if asked == 0 {
        Err("no source can be asked".to_owned())
    } else {
        Ok(())
    }
}
