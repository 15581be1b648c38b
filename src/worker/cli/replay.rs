//! `replay`, and the retry of dead letters: recorded events through pipelines, in this process.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;

use super::parked_line::Line;
use super::{LogFormat, Outcome, load, start_logging};
use crate::clock::Timestamp;
use crate::config::{Config, Named, PipelineSpec};
use crate::engine;
use crate::engine::dead_letter::{self, Change};
use crate::engine::lane::{Ending, try_stages};
use crate::event::{Event, EventId, OrderedId};
use crate::finalizer::Parked;
use crate::ops::finding::Operation;
use crate::sink::Sink;
use crate::source::recorded::{Channels, Ledger, Record, Recorded};
use crate::stage::Stage;

/// Time to finish events in flight after Ctrl-C. They are recorded, and can be sent again.
const DRAIN: Duration = Duration::from_secs(2);
/// Minimum interval between rewrites of the dead-letter file …
const REWRITE_INTERVAL: Duration = Duration::from_millis(50);
/// … which take at most this fraction of the time, however long the file is.
const REWRITE_SHARE: u32 = 10;

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
            fs::read_to_string(&self.file)
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
        let config = load(&self.config)?;
        let names = config.pipelines.iter().map(|spec| spec.name.clone());
        let names: Vec<String> = names
            .filter(|name| self.pipeline.as_ref().is_none_or(|only| only == name))
            .collect();
        if names.is_empty() {
            let name = self.pipeline.unwrap_or_default();
            return Err(format!("there is no pipeline \"{name}\""));
        }
        let sum = Arc::new(Mutex::new(Sum::default()));
        let play = |name: String| Play {
            ledger: Box::new(Replayed {
                records: records.clone(),
                park: config.park_path.clone(),
                sum: Arc::clone(&sum),
            }),
            pipeline: name,
            records: records.clone(),
        };
        let total = records.len() * names.len();
        let played = play_all(&self.config, names.into_iter().map(play).collect(), pause);
        let sum = sum.lock();
        played.and_then(|()| sum.conclude(total, &config.park_path))
    }
}

/// Outcomes of records.
#[derive(Default)]
struct Sum {
    done: usize,
    parked: usize,
    /// The error that prevented saving an outcome.
    error: Option<String>,
}

impl Sum {
    fn conclude(&self, total: usize, park: &Path) -> Outcome {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let left = total - self.done - self.parked;
        let mut text = format!("{} of {total} events are done", self.done);
        if self.parked > 0 {
            text += &format!(", {} parked in {}", self.parked, park.display());
        }
        if left > 0 {
            text += &format!(", {left} not sent or not known to be there");
        }
        if self.done == total {
            println!("{text}");
            Ok(())
        } else {
            Err(text)
        }
    }
}

/// Parks failed events, as a worker would.
struct Replayed {
    records: Vec<Record>,
    park: PathBuf,
    sum: Arc<Mutex<Sum>>,
}

impl Ledger for Replayed {
    fn settled(&mut self, record: usize, parked: Option<&Parked>) {
        let mut sum = self.sum.lock();
        let Some(parked) = parked else {
            sum.done += 1;
            return;
        };
        let line = dead_letter::line("replay", parked, Timestamp::now(), &[], &self.records[record].raw);
        match dead_letter::append(&self.park, &line) {
            Ok(()) => sum.parked += 1,
            Err(error) => sum.error = Some(format!("cannot write {}: {error}", self.park.display())),
        }
    }

    fn rest(&mut self) {}
}

/// Runs dead letters through the pipelines that parked them. Each is removed from the file when it is done; one that is
/// parked again stays, with its new reason. Returns the number of finished letters.
pub fn retry(path: &Path, lines: Vec<Line>) -> Result<usize, String> {
    start_logging(LevelFilter::WARN, LogFormat::Text);
    let config = load(path)?;
    let mut records: Vec<(String, Vec<Record>, Vec<usize>)> = Vec::new();
    let mut letters = Vec::with_capacity(lines.len());
    for (index, line) in lines.into_iter().enumerate() {
        let pipelines = line.pipelines(&config);
        if pipelines.is_empty() {
            let (id, name) = (line.id(), line.pipeline());
            tracing::error!("{id} stays where it is: there is no pipeline \"{name}\" any more");
        }
        let record = Record {
            id: (line.id() != EventId::Unknown.to_string()).then(|| EventId::Brought(line.id().into())),
            raw: line.raw().into(),
        };
        letters.push(Letter {
            open: pipelines.len(),
            parked: Vec::new(),
            line,
        });
        for name in pipelines {
            let at = records.iter().position(|(pipeline, ..)| *pipeline == name);
            let at = at.unwrap_or_else(|| {
                records.push((name, Vec::new(), Vec::new()));
                records.len() - 1
            });
            records[at].1.push(record.clone());
            records[at].2.push(index);
        }
    }
    let letters = Arc::new(Mutex::new(Letters {
        park: config.park_path,
        letters,
        done: 0,
        changes: HashMap::new(),
        rewritten: Instant::now(),
        pause: REWRITE_INTERVAL,
    }));
    let play = |(pipeline, records, index)| Play {
        pipeline,
        records,
        ledger: Box::new(Retried {
            index,
            letters: Arc::clone(&letters),
        }),
    };
    let played = play_all(path, records.into_iter().map(play).collect(), None);
    let mut letters = letters.lock();
    letters.rewrite()?;
    played.map(|()| letters.done)
}

/// A line of the file being retried.
struct Letter {
    line: Line,
    /// Number of pipelines still processing it.
    open: usize,
    parked: Vec<Parked>,
}

struct Letters {
    park: PathBuf,
    letters: Vec<Letter>,
    /// Number of letters removed from the file, or about to be.
    done: usize,
    /// Changes to lines, by their text.
    changes: HashMap<String, Option<String>>,
    rewritten: Instant,
    pause: Duration,
}

impl Letters {
    fn settled(&mut self, index: usize, parked: Option<&Parked>) {
        let letter = &mut self.letters[index];
        letter.open -= 1;
        letter.parked.extend(parked.cloned());
        if letter.open > 0 {
            return;
        }
        let lines: Vec<String> = letter
            .parked
            .iter()
            .map(|parked| letter.line.parked_again(parked))
            .collect();
        self.done += usize::from(lines.is_empty());
        let change = (!lines.is_empty()).then(|| lines.join("\n"));
        self.changes.insert(letter.line.text.clone(), change);
        if self.rewritten.elapsed() >= self.pause {
            self.rest();
        }
    }

    fn rest(&mut self) {
        if let Err(error) = self.rewrite() {
            tracing::error!("{error}; will try again");
        }
    }

    /// Writes the known outcomes to the file.
    fn rewrite(&mut self) -> Outcome {
        if self.changes.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let change = |line: &str| match self.changes.get(line) {
            None => Change::Keep,
            Some(None) => Change::Remove,
            Some(Some(lines)) => Change::Replace(lines.clone()),
        };
        let written = dead_letter::rewrite(&self.park, change);
        self.rewritten = Instant::now();
        self.pause = REWRITE_INTERVAL.max(start.elapsed() * REWRITE_SHARE);
        written.map_err(|error| format!("cannot write {}: {error}", self.park.display()))?;
        self.changes.clear();
        Ok(())
    }
}

/// The dead letters for one pipeline.
struct Retried {
    index: Vec<usize>,
    letters: Arc<Mutex<Letters>>,
}

impl Ledger for Retried {
    fn settled(&mut self, record: usize, parked: Option<&Parked>) {
        self.letters.lock().settled(self.index[record], parked);
    }

    fn rest(&mut self) {
        let mut letters = self.letters.lock();
        if letters.rewritten.elapsed() >= letters.pause {
            letters.rest();
        }
    }
}

/// The records for one pipeline.
struct Play {
    pipeline: String,
    records: Vec<Record>,
    ledger: Box<dyn Ledger>,
}

fn play_all(path: &Path, plays: Vec<Play>, pause: Option<Duration>) -> Outcome {
    let mut config = load(path)?;
    let specs = std::mem::take(&mut config.pipelines);
    config.sources.clear();
    for sink in &mut config.sinks {
        if let Some(strict) = sink.component.refusing_stale() {
            sink.component = strict;
        }
    }
    for play in plays.into_iter().filter(|play| !play.records.is_empty()) {
        let Some(spec) = specs.iter().find(|spec| spec.name == play.pipeline) else {
            continue;
        };
        let channels = Box::new(Probe::new(path, spec)?);
        config.pipelines.push(PipelineSpec {
            source: config.sources.len(),
            // A replay waits for the outcome.
            is_dark: false,
            ..spec.clone()
        });
        config.sources.push(Named {
            name: format!("recorded for {}", spec.name),
            component_type: "recorded",
            component: Box::new(Recorded::new(play.records, pause, channels, play.ledger)),
            at: 0,
        });
    }
    if config.sources.is_empty() {
        return Ok(());
    }
    // A running worker may be beside us: only the dead-letter file is shared.
    forget_left_behind(&config.state_dir);
    config.state_dir = config.state_dir.join(format!("{STATE_DIR}{}", std::process::id()));
    config.drain = config.drain.min(DRAIN);
    (config.admin, config.statsd) = (None, None);
    config.alerts.clear();
    let state_dir = config.state_dir.clone();
    let played = engine::run_once(config).map_err(|error| error.to_string());
    // Its contents are of no further use.
    let _ = fs::remove_dir_all(state_dir);
    played
}

const STATE_DIR: &str = "replay-";

/// Removes the directories of killed replays.
fn forget_left_behind(state_dir: &Path) {
    for entry in fs::read_dir(state_dir).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(STATE_DIR);
        let lock = File::open(entry.path().join("lock"));
        if is_ours && lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Determines events' channels and the newest ids there.
struct Probe {
    /// Private instances, because some stages keep state.
    stages: Vec<Named<Arc<dyn Stage>>>,
    sinks: Vec<Arc<dyn Sink>>,
    prefix: String,
    /// The newest ids of channels, including those given out here.
    known: HashMap<String, Option<OrderedId>>,
}

impl Probe {
    fn new(path: &Path, spec: &PipelineSpec) -> Result<Self, String> {
        let mut config: Config = load(path)?;
        let mut stages: Vec<_> = config.stages.drain(..).map(Some).collect();
        let stages = spec.stages.iter().filter_map(|&index| stages[index].take());
        let sinks = spec
            .sinks
            .iter()
            .map(|&index| Arc::clone(&config.sinks[index].component));
        Ok(Self {
            stages: stages.collect(),
            sinks: sinks.collect(),
            prefix: spec.prefix.clone(),
            known: HashMap::new(),
        })
    }

    /// The channels of all events that the stages produce.
    fn channels_of(&self, event: &Event) -> Vec<String> {
        let stages: Vec<_> = self
            .stages
            .iter()
            .map(|named| (named.name.as_str(), &*named.component))
            .collect();
        let endings = try_stages(&stages, &self.prefix, event.clone()).into_iter();
        let channels = endings.flat_map(|ending| match ending {
            Ending::Out(event) => event.channels,
            Ending::Dropped { .. } | Ending::Parked { .. } => Vec::new(),
        });
        channels.collect()
    }
}

impl Channels for Probe {
    fn next_id<'a>(&'a mut self, event: &'a Event) -> Operation<'a, Option<OrderedId>> {
        Box::pin(async move {
            let channels = self.channels_of(event);
            let mut newest = None;
            for channel in &channels {
                if !self.known.contains_key(channel) {
                    let mut found = None;
                    for asked in self.sinks.iter().filter_map(|sink| sink.newest_id(channel)) {
                        found = found.max(asked.await?);
                    }
                    self.known.insert(channel.clone(), found);
                }
                newest = newest.max(self.known[channel].clone());
            }
            let next = newest.as_ref().map(OrderedId::next);
            if next.is_some() {
                self.known
                    .extend(channels.into_iter().map(|channel| (channel, next.clone())));
            }
            Ok(next)
        })
    }

    fn forget(&mut self) {
        self.known.clear();
    }
}
