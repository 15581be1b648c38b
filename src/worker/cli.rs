//! The command line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::config::{self, Config};
use crate::engine;
use crate::source::Guarantee;

/// Takes events from a source, runs them through a pipeline once and publishes them to nginx.
#[derive(Debug, Parser)]
#[command(name = "push-stream-worker", version, arg_required_else_help = true)]
#[command(after_help = "Example:\n  push-stream-worker validate worker.toml && push-stream-worker run worker.toml")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT, or until all sources have ended
    #[command(after_help = "Example:\n  push-stream-worker run worker.toml --log debug")]
    Run {
        /// The configuration file
        config: PathBuf,
        /// How much to write to standard error: error, warn, info, debug or trace
        #[arg(long, env = "PUSH_STREAM_LOG", default_value = "info", value_name = "LEVEL")]
        log: LevelFilter,
    },
    /// Check a configuration file: names file, line and key of every error
    #[command(after_help = "Example:\n  push-stream-worker validate worker.toml")]
    Validate {
        /// The configuration file
        config: PathBuf,
    },
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config, log } => run(&config, log),
        Command::Validate { config } => validate(&config),
    }
}

fn run(path: &Path, log: LevelFilter) -> ExitCode {
    start_logging(log);
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    config
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{}: {warning}", path.display()));
    match engine::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn validate(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    for warning in &config.warnings {
        eprintln!("{}: warning: {warning}", path.display());
    }
    println!("{}: ok", path.display());
    describe(&config).iter().for_each(|line| println!("  {line}"));
    ExitCode::SUCCESS
}

/// One line per pipeline, with what it promises.
fn describe(config: &Config) -> Vec<String> {
    let line = |spec: &config::PipelineSpec| {
        let source = &config.sources[spec.source];
        let promise = match source.component.guarantee() {
            Guarantee::AtLeastOnce => "at least once",
            Guarantee::Unacknowledged => "at least once for what was answered with 2xx",
            Guarantee::BestEffort => "best effort",
        };
        let stages = spec.stages.iter().map(|&index| config.stages[index].name.as_str());
        let way: Vec<&str> = std::iter::once(source.name.as_str()).chain(stages).collect();
        let sinks: Vec<&str> = spec
            .sinks
            .iter()
            .map(|&index| config.sinks[index].name.as_str())
            .collect();
        format!(
            "{}: {} -> {} ({promise})",
            spec.name,
            way.join(" -> "),
            sinks.join(", ")
        )
    };
    config.pipelines.iter().map(line).collect()
}

fn refuse(error: &config::Error) -> ExitCode {
    eprintln!("{error}");
    if let config::Error::Invalid { path, problems } = error {
        let plural = if problems.len() == 1 { "" } else { "s" };
        eprintln!("{}: {} error{plural}", path.display(), problems.len());
    }
    ExitCode::FAILURE
}

/// One line per message on standard error. Panics are messages, too.
fn start_logging(level: LevelFilter) {
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(colours)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or(String::new(), |place| format!(" at {}:{}", place.file(), place.line()));
        let text = panic.payload_as_str().unwrap_or("no message");
        let thread = std::thread::current();
        tracing::error!("panic in thread {}{place}: {text}", thread.name().unwrap_or("?"));
    }));
}
