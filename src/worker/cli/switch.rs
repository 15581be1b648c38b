//! `switch`: sets switches of running workers, through the Redis hash that they follow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use redis::aio::MultiplexedConnection;

use super::{Outcome, block_on, load};
use crate::config::Config;
use crate::redis_link::describe_error;
use crate::switch::State;
use crate::switch::live::Live;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// How the switches stand, in the file and in the hash
    #[command(after_help = "Example:\n  push-stream-worker switch list worker.toml")]
    List {
        /// The configuration file
        config: PathBuf,
    },
    /// Turn one: on, off, a percentage, inherit (what the file says), or JSON
    #[command(after_help = "Example:\n  push-stream-worker switch set worker.toml secure-firehose 20")]
    Set {
        /// The configuration file
        config: PathBuf,
        name: String,
        /// on, off, inherit, 0 to 100, or {"status": …, "percent": …, "include": […], "exclude": […], "value": …}
        value: String,
    },
}

impl Verb {
    pub fn run(self) -> Outcome {
        match self {
            Self::List { config } => block_on(list(&load(&config)?, &config)),
            Self::Set { config, name, value } => block_on(set(&load(&config)?, &config, &name, &value)),
        }
    }
}

async fn connect(config: &Config, path: &Path) -> Result<(MultiplexedConnection, Live), String> {
    let live = config.switches.live.clone();
    let live = live.ok_or_else(|| {
        format!(
            "{}: has no [switches], so that they cannot be turned live; add [switches] with url = \"redis://127.0.0.1:6379/0\"",
            path.display()
        )
    })?;
    Ok((live.server.connect().await?, live))
}

async fn list(config: &Config, path: &Path) -> Outcome {
    let fields: BTreeMap<String, String> = match &config.switches.live {
        None => BTreeMap::new(),
        Some(live) => {
            let (mut connection, _) = connect(config, path).await?;
            redis::cmd("HGETALL")
                .arg(&live.key)
                .query_async(&mut connection)
                .await
                .map_err(describe_error)?
        }
    };
    for (name, switch) in &config.switches.all {
        if let Some(text) = fields.get(name) {
            switch.set_live(State::parse(text, &switch.state())?);
        }
        println!("{name}: {}", switch.describe());
    }
    Ok(())
}

async fn set(config: &Config, path: &Path, name: &str, value: &str) -> Outcome {
    let switch = config.switches.all.get(name).ok_or_else(|| {
        let known: Vec<&str> = config.switches.all.keys().map(String::as_str).collect();
        format!("there is no switch \"{name}\"; there is: {}", known.join(", "))
    })?;
    let state = State::parse(value, &switch.state())?;
    let (mut connection, live) = connect(config, path).await?;
    redis::pipe()
        .hset(&live.key, name, value)
        .publish(&live.key, name)
        .query_async::<()>(&mut connection)
        .await
        .map_err(describe_error)?;
    switch.set_live(state);
    println!("{name}: {}", switch.describe());
    Ok(())
}
