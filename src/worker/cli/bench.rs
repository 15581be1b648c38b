//! `bench`: what the stages of a pipeline cost, measured on this machine.
//!
//! The rest of the way is best measured from outside: a queue full of events, and the time until it is empty.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;

use super::{Outcome, load};
use crate::clock::Timestamp;
use crate::engine::lane::{Ending, try_stages};
use crate::event::{Event, EventId};

/// So many different posts; more would measure the cache.
const POSTS: u32 = 2000;
/// A comment of that time with all its fields.
const POST_BYTES: usize = 730;

#[derive(Debug, Args)]
pub struct Bench {
    /// The configuration file
    config: PathBuf,
    /// The pipeline whose stages are measured; default: the first
    #[arg(long)]
    pipeline: Option<String>,
    /// Events to use instead of made-up posts, one per line
    #[arg(long)]
    input: Option<PathBuf>,
    /// How long to measure
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

impl Bench {
    pub fn run(self) -> Outcome {
        let config = load(&self.config)?;
        let mut pipelines = config.pipelines.iter();
        let spec = pipelines.find(|spec| self.pipeline.as_ref().is_none_or(|name| spec.name == *name));
        let spec = spec.ok_or_else(|| format!("there is no pipeline \"{}\"", self.pipeline.unwrap_or_default()))?;
        let stages = spec.stages.iter().map(|&stage| &config.stages[stage]);
        let stages: Vec<_> = stages.map(|named| (named.name.as_str(), &*named.component)).collect();
        let raws: Vec<Bytes> = match &self.input {
            None => (0..POSTS).map(|n| post(n).into()).collect(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
                text.lines()
                    .map(|line| Bytes::copy_from_slice(line.as_bytes()))
                    .collect()
            }
        };
        if raws.is_empty() {
            return Err("there are no events to measure with".to_owned());
        }
        let bytes = raws.iter().map(Bytes::len).sum::<usize>() / raws.len();
        let (mut events, mut out) = (0_u64, 0_u64);
        let limit = Duration::from_secs(self.seconds.max(1));
        let start = Instant::now();
        while start.elapsed() < limit {
            for raw in &raws {
                let event = Event::new(EventId::new(1, events), Timestamp(0), raw.clone());
                let endings = try_stages(&stages, &spec.prefix, event);
                events += 1;
                out += endings.iter().filter(|ending| matches!(ending, Ending::Out(_))).count() as u64;
            }
        }
        let each = start.elapsed().as_secs_f64() / events as f64;
        println!(
            "pipeline {}: {} stages, {bytes} bytes per event on average",
            spec.name,
            stages.len()
        );
        println!(
            "{:.2} us per event, {:.0} events/s on one core, {out} of {events} came out",
            each * 1e6,
            1.0 / each
        );
        Ok(())
    }
}

/// Every second one holds markup.
fn post(n: u32) -> String {
    let message = match n % 2 {
        0 => "Plain words of a comment that nobody needs to clean, ".repeat(5),
        _ => "<p>Some <b>bold</b> words, a <a href='http://example.com/'>link</a> &amp; more</p> ".repeat(3),
    };
    let (forum, thread, author) = (n % 50, n % 1000, n % 5000);
    let post = format!(
        "{{\"id\":\"{n}\",\"forum\":\"f{forum}\",\"thread\":\"{thread}\",\"author\":{{\"id\":\"{author}\",\"name\":\"Ann\",\"email\":\
         \"a@example.com\",\"ip\":\"192.0.2.7\"}},\"message\":\"{message}\",\"created\":\"2026-01-01T00:00:00Z\",\"pad\":\""
    );
    let room = (POST_BYTES - 2).saturating_sub(post.len());
    format!("{post}{}\"}}", "x".repeat(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_post_is_json_of_the_size_it_should_have() {
        for n in 0..4 {
            let post = post(n);
            assert_eq!(post.len(), POST_BYTES);
            assert!(serde_json::from_str::<serde_json::Value>(&post).is_ok());
        }
    }
}
