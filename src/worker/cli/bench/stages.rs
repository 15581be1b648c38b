//! The cost of a pipeline's stages.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Bench, Figures, post};
use crate::cli::load;
use crate::clock::Timestamp;
use crate::config;
use crate::engine::lane::{Ending, try_stages};
use crate::event::{Event, EventId};

/// Number of different posts; more would measure the cache.
const POSTS: u64 = 2000;

pub fn measure(bench: &Bench) -> Result<Figures, String> {
    let config = match &bench.config {
        Some(path) => load(path)?,
        None => {
            let text = super::journey::configuration("type = \"stdin\"", "unix:publish.sock", "state")?;
            config::parse(&text).map_err(|problems| format!("{problems:?}"))?
        }
    };
    let mut pipelines = config.pipelines.iter();
    let wanted = bench.pipeline.as_ref();
    let spec = pipelines.find(|spec| wanted.is_none_or(|name| spec.name == *name));
    let spec = spec.ok_or_else(|| format!("there is no pipeline \"{}\"", wanted.map_or("", String::as_str)))?;
    let stages = spec.stages.iter().map(|&stage| &config.stages[stage]);
    let stages: Vec<_> = stages.map(|named| (named.name.as_str(), &*named.component)).collect();
    let raws: Vec<Bytes> = match &bench.input {
        None => (0..POSTS)
            .map(|n| post::make(n, "2026-01-01T00:00:00Z").into())
            .collect(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
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
    let limit = Duration::from_secs(bench.seconds.max(1));
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
    let mut figures = Figures::default();
    figures.text("pipeline", spec.name.as_str());
    figures.count("stages", stages.len() as u64);
    figures.count("bytes/event", bytes as u64);
    figures.number("us/event", each * 1e6, 2);
    figures.number("events/s on one core", 1.0 / each, 0);
    figures.count("events in", events);
    figures.count("events out", out);
    Ok(figures)
}
