//! The command line: one file per group of commands.

mod ack;
mod bench;
mod doctor;
mod inspect;
mod jwks;
mod live;
mod manual;
mod nginx;
mod park;
mod parked_line;
mod publish;
mod replay;
mod switch;

use std::future::Future;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::task::LocalSet;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

use crate::config::{self, Config};
use crate::engine;
use crate::engine::lane::panic_text;

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
    /// Run until SIGTERM or SIGINT, or until all sources have ended; SIGHUP reads the configuration again
    #[command(after_help = "Example:\n  push-stream-worker run worker.toml --log debug --log-format json")]
    Run {
        /// The configuration file
        config: PathBuf,
        /// How much to write to standard error: error, warn, info, debug or trace
        #[arg(long, env = "PUSH_STREAM_LOG", default_value = "info", value_name = "LEVEL")]
        log: LevelFilter,
        /// One line of text, or one JSON object, per message
        #[arg(long, env = "PUSH_STREAM_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
        log_format: LogFormat,
    },
    /// Check a configuration file: names file, line and key of every error, and what each pipeline promises
    #[command(after_help = "Example:\n  push-stream-worker validate worker.toml")]
    Validate {
        /// The configuration file
        config: PathBuf,
    },
    /// Run the tests that stand in a configuration file
    #[command(after_help = "Example:\n  push-stream-worker test worker.toml scrubbed")]
    Test {
        /// The configuration file
        config: PathBuf,
        /// Only these tests
        names: Vec<String>,
    },
    /// Print the pipelines as a graph in DOT
    #[command(after_help = "Example:\n  push-stream-worker graph worker.toml | dot -Tsvg > worker.svg")]
    Graph {
        /// The configuration file
        config: PathBuf,
    },
    /// Watch a running worker: rates, queues and nodes, every second
    #[command(after_help = "Example:\n  push-stream-worker top worker.toml")]
    Top(live::Top),
    /// Look at the events that leave a component of a running worker; values are hidden unless asked for
    #[command(after_help = "Example:\n  push-stream-worker tap worker.toml route --raw --count 10")]
    Tap(live::Tap),
    /// Look through what could not be delivered, try it again, or forget it
    #[command(subcommand, after_help = "Example:\n  push-stream-worker park list worker.toml")]
    Park(park::Park),
    /// Ask the queue what is still open
    #[command(
        subcommand,
        after_help = "Example:\n  push-stream-worker ack wait worker.toml --timeout 30s"
    )]
    Ack(ack::Ack),
    /// Turn switches of running workers
    #[command(
        subcommand,
        after_help = "Example:\n  push-stream-worker switch set worker.toml secure-firehose 20"
    )]
    Switch(switch::Verb),
    /// Run recorded events through pipelines again
    #[command(after_help = "Example:\n  push-stream-worker replay worker.toml posts.ndjson --pipeline live --rate 500")]
    Replay(replay::Replay),
    /// Measure the stages of a pipeline, or the whole way from a queue to nginx, with made-up posts
    #[command(
        after_help = "Examples:\n  push-stream-worker bench worker.toml --pipeline live\n  push-stream-worker bench --source redis_streams --messages 1000000\n  push-stream-worker bench --source redis_streams --rate 10000 --seconds 300 --json latency.json"
    )]
    Bench(bench::Bench),
    /// Compare this machine, and what a configuration needs, with what they should be
    #[command(
        after_help = "Examples:\n  push-stream-worker doctor worker.toml\n  push-stream-worker doctor --nginx /usr/sbin/nginx"
    )]
    Doctor {
        /// A configuration file whose brokers and nodes are asked, too
        config: Option<PathBuf>,
        /// An nginx: does its module fit it?
        #[arg(long, value_name = "PATH")]
        nginx: Option<PathBuf>,
        /// The module, if it is not where this nginx has its modules
        #[arg(long, value_name = "PATH", requires = "nginx")]
        module: Option<PathBuf>,
    },
    /// Publish one message, or standard input line by line
    #[command(
        after_help = "Example:\n  echo '{\"n\":1}' | push-stream-worker publish 'http://127.0.0.1:9080/pub?id=news' --type post"
    )]
    Publish(publish::Publish),
    /// Keep a key file of nginx equal to the JWK Set at a URL; SIGHUP asks at once, SIGTERM and SIGINT end it
    #[command(
        after_help = "Examples:\n  push-stream-worker jwks --url https://login.example.org/.well-known/jwks.json --out /etc/nginx/push-keys.json\n  push-stream-worker jwks --once --url https://login.example.org/.well-known/jwks.json --out /etc/nginx/push-keys.json"
    )]
    Jwks(jwks::Jwks),
    /// Write man pages and shell completions to a directory
    #[command(hide = true)]
    Manual {
        /// The directory
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run {
            config,
            log,
            log_format,
        } => return run(&config, log, log_format),
        Command::Validate { config } => return inspect::validate(&config),
        Command::Test { config, names } => inspect::test(&config, &names),
        Command::Graph { config } => inspect::graph(&config),
        Command::Top(top) => top.run(),
        Command::Tap(tap) => tap.run(),
        Command::Park(park) => park.run(),
        Command::Ack(ack) => ack.run(),
        Command::Switch(verb) => verb.run(),
        Command::Replay(replay) => replay.run(),
        Command::Bench(bench) => bench.run(),
        Command::Doctor { config, nginx, module } => {
            doctor::run(config.as_deref(), nginx.as_deref(), module.as_deref())
        }
        Command::Publish(publish) => publish.run(),
        Command::Jwks(jwks) => return jwks.run(),
        Command::Manual { dir } => manual::run(&dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_empty() {
                eprintln!("push-stream-worker: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A command's error message; empty if already printed.
type Outcome = Result<(), String>;

fn run(path: &Path, log: LevelFilter, format: LogFormat) -> ExitCode {
    start_logging(log, format);
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    config
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{}: {warning}", path.display()));
    match engine::run(path, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn load(path: &Path) -> Result<Config, String> {
    config::load(path).map_err(|error| error.to_string())
}

fn refuse(error: &config::Error) -> ExitCode {
    eprintln!("{error}");
    if let config::Error::Invalid { path, problems } = error {
        let plural = if problems.len() == 1 { "" } else { "s" };
        eprintln!("{}: {} error{plural}", path.display(), problems.len());
    }
    ExitCode::FAILURE
}

/// Runs a command with network I/O.
fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, future)
}

/// Logs to standard error, panics included.
fn start_logging(level: LevelFilter, format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    // RabbitMQ's library logs lost connections without naming them; the source logs these itself.
    let is_ours = filter_fn(move |line| level >= LevelFilter::DEBUG || !line.target().starts_with("lapin"));
    match format {
        LogFormat::Text => {
            let log = log.with_ansi(std::io::stderr().is_terminal());
            log.finish().with(is_ours).init();
        }
        LogFormat::Json => log.json().flatten_event(true).finish().with(is_ours).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or(String::new(), |place| format!(" at {}:{}", place.file(), place.line()));
        let text = panic_text(panic.payload());
        let thread = std::thread::current();
        tracing::error!("panic in thread {}{place}: {text}", thread.name().unwrap_or("?"));
    }));
}
