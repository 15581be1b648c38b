//! Keeps a key file of nginx (`push_stream_token_keys`) equal to the JWK Set at a URL, so that nginx itself fetches nothing.
//!
//! * [`fetch`]: one attempt, over https, within one server.
//! * [`key_file`]: what may become the file, and how it is replaced.
//! * [`schedule`]: when the server is asked again.
//!
//! Whatever goes wrong, the file stays as it was.

pub mod fetch;
pub mod key_file;
pub mod schedule;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use self::fetch::{Answer, Failure, Server};
use self::key_file::{KeyFile, Written};
use self::schedule::{Bounds, interval};
use crate::retry::{Backoff, Policy};

/// The first pause after a failure, and the longest as far as [`Bounds::max`] does not say less.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A server and a file that follows it.
#[derive(Debug)]
pub struct Follower {
    server: Server,
    file: KeyFile,
    bounds: Bounds,
    /// The `ETag` of what the file holds, if this process has written or compared it.
    tag: Option<String>,
}

impl Follower {
    pub fn new(server: Server, file: KeyFile, bounds: Bounds) -> Self {
        Self {
            server,
            file,
            bounds,
            tag: None,
        }
    }

    /// Asks once. The result is how long what came may be used.
    pub async fn update(&mut self) -> Result<Duration, Failure> {
        // Somebody else may have written the file, or removed it: then the whole set is wanted.
        if !self.file.is_ours() {
            self.tag = None;
        }
        let tag = self.tag.clone();
        let (freshness, answer) = self.server.ask(tag.as_deref()).await?;
        match answer {
            Answer::Unchanged => tracing::debug!("{}: unchanged", self.server),
            Answer::Set { bytes, tag } => {
                let summary = key_file::check(&bytes)
                    .map_err(|problem| Failure::from(format!("{} sends a set that {problem}", self.server)))?;
                let written = self.file.replace(&bytes);
                let written = written.map_err(|error| Failure::from(format!("{}: {error}", self.file)))?;
                self.tag = tag;
                match written {
                    Written::Replaced => tracing::info!("{}: {summary} from {}", self.file, self.server),
                    Written::Same => tracing::debug!("{}: still {summary} from {}", self.file, self.server),
                }
            }
        }
        Ok(interval(freshness, &self.bounds))
    }

    /// Asks again and again, until SIGTERM or SIGINT. SIGHUP asks at once.
    pub async fn run(mut self) -> Result<(), String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot listen to signals: {error}"));
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        let longest = LONGEST_PAUSE.min(self.bounds.max);
        let policy = Policy {
            initial: FIRST_PAUSE.min(longest),
            max: longest,
            ..Policy::default()
        };
        let mut backoff = Backoff::new(&policy);
        // The failure that was logged last: one line for each, and another when it is over.
        let mut told: Option<String> = None;
        loop {
            let outcome = tokio::select! {
                outcome = self.update() => outcome,
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            };
            let pause = match outcome {
                Ok(pause) => {
                    if told.take().is_some() {
                        tracing::info!("{}: is answered again", self.server);
                    }
                    backoff = Backoff::new(&policy);
                    pause
                }
                Err(failure) => {
                    if told.as_ref() != Some(&failure.text) {
                        tracing::error!("{failure}; {} stays as it is, and is tried again", self.file);
                    }
                    told = Some(failure.text);
                    let pause = backoff.pause();
                    failure
                        .retry_after
                        .map_or(pause, |wanted| pause.max(wanted.min(self.bounds.max)))
                }
            };
            tracing::debug!("{}: asked again in {pause:?}", self.server);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = hangup.recv() => backoff = Backoff::new(&policy),
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    }
}
