//! `publish`: one message, or one per line of standard input, straight to a publisher location.

use std::io::BufRead;

use clap::Args;

use super::{Outcome, block_on};
use crate::client::Address;
use crate::sink::webhook::Target;

#[derive(Debug, Args)]
pub struct Publish {
    /// The publisher location with its channels, such as http://127.0.0.1:9080/pub?id=news; for a unix socket unix:/run/pub.sock:/pub?id=news
    url: String,
    /// The message; without it, each line of standard input is one
    text: Option<String>,
    /// Event-Id; with several messages, a number is put behind it
    #[arg(long)]
    id: Option<String>,
    /// Event-Type
    #[arg(long = "type")]
    kind: Option<String>,
    #[arg(long, default_value = "application/json")]
    content_type: String,
}

impl Publish {
    pub fn run(self) -> Outcome {
        let (address, path) = Address::split(&self.url)?;
        let target = Target::new(address, path);
        if let Some(text) = &self.text {
            return self.post(&target, text, self.id.clone());
        }
        let mut count = 0;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| error.to_string())?;
            if line.trim().is_empty() {
                continue;
            }
            count += 1;
            self.post(&target, &line, self.id.as_ref().map(|id| format!("{id}-{count}")))?;
        }
        Ok(())
    }

    fn post(&self, target: &Target, text: &str, id: Option<String>) -> Outcome {
        let id = id.map(|id| ("event-id", id));
        let kind = self.kind.clone().map(|kind| ("event-type", kind));
        let headers: Vec<_> = id.into_iter().chain(kind).collect();
        let status = block_on(target.post(&self.content_type, &headers, text.to_owned().into()))?;
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("{target} answered {status}"))
        }
    }
}
