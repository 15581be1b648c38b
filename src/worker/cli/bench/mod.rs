//! `bench`: the worker's performance on this machine. Without `--source` the stages of a pipeline alone; with it the
//! whole way from a queue through the worker to nginx, with servers started for the purpose: throughput, or, with
//! `--rate`, latency.

mod journey;
mod post;
mod process;
mod queue;
mod reader;
mod stages;

use std::path::PathBuf;

use clap::Args;

use self::queue::SourceKind;
use super::Outcome;

#[derive(Debug, Args)]
pub struct Bench {
    /// The configuration file whose stages are measured; default: those of the public pipeline
    #[arg(conflicts_with = "source")]
    config: Option<PathBuf>,
    /// The pipeline whose stages are measured; default: the first
    #[arg(long, conflicts_with = "source")]
    pipeline: Option<String>,
    /// Events to use instead of made-up posts, one per line
    #[arg(long, conflicts_with = "source")]
    input: Option<PathBuf>,
    /// Measure the whole way: from this queue through the worker to nginx
    #[arg(long)]
    source: Option<SourceKind>,
    /// With --source: so many posts are in the queue at the start
    #[arg(long, default_value_t = 1_000_000, conflicts_with = "rate")]
    messages: u64,
    /// With --source: instead, put so many posts a second into the queue and measure when an EventSource client has them
    #[arg(long, requires = "source")]
    rate: Option<u32>,
    /// How long to measure stages, or with --rate
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The redis-server to be used: "always" or "everysec"
    #[arg(long, default_value = "everysec")]
    fsync: String,
    /// The nginx to be used
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// The module to be used; default: beside this program, else where Debian has modules
    #[arg(long)]
    module: Option<PathBuf>,
    /// Write the figures as JSON to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Bench {
    pub fn run(self) -> Outcome {
        let figures = match self.source {
            None => stages::measure(&self)?,
            Some(source) => journey::measure(&self, source)?,
        };
        for (name, value) in &figures.0 {
            println!("{name:<34} {value}");
        }
        let Some(path) = &self.json else { return Ok(()) };
        let object: serde_json::Map<String, serde_json::Value> = figures
            .0
            .into_iter()
            .map(|(name, value)| (key(name), value.into()))
            .collect();
        let text = serde_json::to_string_pretty(&object).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// `worker CPU, % of a core` is `worker_cpu_percent_of_a_core`.
fn key(name: &str) -> String {
    let name = name.replace('%', "percent").to_lowercase();
    let words = name
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

/// Measured values, in the order of printing.
#[derive(Debug, Default)]
struct Figures(Vec<(&'static str, Figure)>);

#[derive(Debug)]
enum Figure {
    Text(String),
    Count(u64),
    /// With this many decimals.
    Number(f64, usize),
}

impl Figures {
    fn text(&mut self, name: &'static str, text: impl Into<String>) {
        self.0.push((name, Figure::Text(text.into())));
    }

    fn count(&mut self, name: &'static str, count: u64) {
        self.0.push((name, Figure::Count(count)));
    }

    fn number(&mut self, name: &'static str, number: f64, decimals: usize) {
        self.0.push((name, Figure::Number(number, decimals)));
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Count(count) => write!(f, "{count}"),
            Self::Number(number, decimals) => write!(f, "{number:.decimals$}"),
        }
    }
}

impl From<Figure> for serde_json::Value {
    fn from(figure: Figure) -> Self {
        match figure {
            Figure::Text(text) => text.into(),
            Figure::Count(count) => count.into(),
            Figure::Number(number, _) => number.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_words() {
        assert_eq!(key("worker CPU, % of a core"), "worker_cpu_percent_of_a_core");
        assert_eq!(key("messages/s"), "messages_s");
        assert_eq!(key("p99.9 ms"), "p99_9_ms");
    }
}
