//! `replay`, and the trying again of dead letters: recorded events through pipelines, here and now.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tracing::level_filters::LevelFilter;

use super::park::Line;
use super::{LogFormat, Outcome, load, start_logging};
use crate::config::{Config, Named};
use crate::engine;
use crate::event::EventId;
use crate::source::recorded::{Record, Recorded};

#[derive(Debug, Args)]
pub struct Replay {
    /// The configuration file
    config: PathBuf,
    /// One event per line; "-" is standard input
    file: PathBuf,
    /// Only through this pipeline; default: through all
    #[arg(long)]
    pipeline: Option<String>,
    /// Events per second; default: as fast as they are taken
    #[arg(long)]
    rate: Option<f64>,
}

impl Replay {
    pub fn run(self) -> Outcome {
        start_logging(LevelFilter::INFO, LogFormat::Text);
        let text = if self.file == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(&self.file)
        };
        let text = text.map_err(|error| format!("cannot read {}: {error}", self.file.display()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let record = |line: &str| Record {
            id: None,
            raw: Bytes::copy_from_slice(line.as_bytes()),
        };
        let records: Vec<Record> = lines.map(record).collect();
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err("--rate must be more than 0".to_owned());
        }
        let pause = self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        play(&self.config, self.pipeline.as_deref(), records, pause)
    }
}

/// Runs dead letters through the pipelines that parked them, under their old ids.
pub fn retry(config: &Path, lines: &[Line]) -> Outcome {
    start_logging(LevelFilter::WARN, LogFormat::Text);
    let mut pipelines: Vec<&str> = lines.iter().map(Line::pipeline).collect();
    pipelines.sort_unstable();
    pipelines.dedup();
    for pipeline in pipelines {
        let of_pipeline = lines.iter().filter(|line| line.pipeline() == pipeline);
        let record = |line: &Line| Record {
            id: Some(EventId::Brought(line.id().into())),
            raw: line.raw().into(),
        };
        play(config, Some(pipeline), of_pipeline.map(record).collect(), None)?;
    }
    Ok(())
}

fn play(path: &Path, pipeline: Option<&str>, records: Vec<Record>, pause: Option<Duration>) -> Outcome {
    let mut config: Config = load(path)?;
    config
        .pipelines
        .retain(|spec| pipeline.is_none_or(|name| spec.name == name));
    if config.pipelines.is_empty() {
        return Err(format!("there is no pipeline \"{}\"", pipeline.unwrap_or_default()));
    }
    for spec in &mut config.pipelines {
        spec.source = 0;
    }
    config.sources = vec![Named {
        name: "recorded".to_owned(),
        component_type: "recorded",
        component: Box::new(Recorded::new(records, pause)),
    }];
    // Beside a worker that runs: what fails is parked in the same file, everything else is apart.
    config.state_dir = config.state_dir.join(format!("replay-{}", std::process::id()));
    (config.admin, config.statsd) = (None, None);
    config.alerts.clear();
    let state_dir = config.state_dir.clone();
    let played = engine::run(path, config).map_err(|error| error.to_string());
    // Nothing in there is of use afterwards.
    let _ = std::fs::remove_dir_all(state_dir);
    played
}
