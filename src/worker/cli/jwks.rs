//! `jwks`: keeps a key file of nginx equal to the JWK Set at a URL.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tracing::level_filters::LevelFilter;

use super::{LogFormat, Outcome, block_on, start_logging};
use crate::client::Tls;
use crate::config::value;
use crate::jwks::Follower;
use crate::jwks::fetch::Server;
use crate::jwks::key_file::KeyFile;
use crate::jwks::schedule::Bounds;

#[derive(Debug, Args)]
pub struct Jwks {
    /// The JWK Set, over https: often /.well-known/jwks.json of the identity provider
    #[arg(long, env = "PUSH_STREAM_JWKS_URL")]
    url: String,
    /// The file that push_stream_token_keys names
    #[arg(long, env = "PUSH_STREAM_JWKS_OUT", value_name = "FILE")]
    out: PathBuf,
    /// Trust only the authorities in this PEM file, in place of those of this machine
    #[arg(long, env = "PUSH_STREAM_JWKS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Ask once and end: status 0 if the file is what the server has, else 1
    #[arg(long)]
    once: bool,
    /// How often to ask a server that does not say how long its set may be used
    #[arg(long, default_value = "5m", value_parser = value::duration, value_name = "TIME")]
    interval: Duration,
    /// Not more often, whatever the server says
    #[arg(long, default_value = "30s", value_parser = value::duration, value_name = "TIME")]
    min_interval: Duration,
    /// Not more seldom, whatever the server says
    #[arg(long, default_value = "1h", value_parser = value::duration, value_name = "TIME")]
    max_interval: Duration,
    /// How long one attempt may take, redirects and all
    #[arg(long, default_value = "10s", value_parser = value::duration, value_name = "TIME")]
    timeout: Duration,
    /// How much to write to standard error: error, warn, info, debug or trace
    #[arg(long, env = "PUSH_STREAM_LOG", default_value = "info", value_name = "LEVEL")]
    log: LevelFilter,
    /// One line of text, or one JSON object, per message
    #[arg(long, env = "PUSH_STREAM_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
}

impl Jwks {
    pub fn run(self) -> ExitCode {
        start_logging(self.log, self.log_format);
        match self.follow() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error}");
                ExitCode::FAILURE
            }
        }
    }

    fn follow(self) -> Outcome {
        if self.min_interval.is_zero() || self.timeout.is_zero() {
            return Err("--min-interval and --timeout must be longer than 0".to_owned());
        }
        if self.max_interval < self.min_interval {
            return Err("--max-interval must not be shorter than --min-interval".to_owned());
        }
        let bounds = Bounds {
            usual: self.interval,
            min: self.min_interval,
            max: self.max_interval,
        };
        let tls = match &self.ca {
            Some(path) => Some(Tls::of_file(path).map_err(|error| format!("--ca {error}"))?),
            None => None,
        };
        let server = Server::new(&self.url, tls, self.timeout).map_err(|error| format!("--url {error}"))?;
        let file = KeyFile::open(&self.out).map_err(|error| format!("--out {error}"))?;
        let mut follower = Follower::new(server, file, bounds);
        if self.once {
            return block_on(async {
                let asked = follower.update().await;
                asked.map(drop).map_err(|failure| failure.text)
            });
        }
        block_on(follower.run())
    }
}
