//! `push-stream-bench`: a load generator for push servers that checks what it receives.
//!
//! # Layout
//!
//! * [`scenario`]: one file per load pattern, and their shared parts.
//! * [`processes`]: forks client processes that share counters; [`subscribers`] and [`publishers`] are their work, one
//!   epoll loop each; [`flows`]: the messages of each publisher in each channel.
//! * [`message`], [`text`]: the text of a message, published alone or in a [`batch`]. [`checker`] judges received messages, with
//!   the [`history`] of each subscriber. [`latency`]: histograms. [`arrivals`]: subscribers that come and go while
//!   messages flow.
//! * [`transport`]: EventSource, streaming, WebSocket, long polling. [`http`], [`h2`], [`url`], [`net`]: the layers
//!   below; [`wire`]: a connection, with [`tls`] or without; [`coding`]: compressed answers.
//! * [`killed`]: connections that ended because the bench killed their worker.
//! * [`proc`]: the server's cost, from `/proc`. [`loop_stalls`]: stalls of its event loops. [`report`]: tables.
//! * [`manual`]: man pages and completions.
//! * [`baseline`]: the bare server that everything is compared with, and [`baseline_tls`]: its encryption.

mod arrivals;
mod baseline;
mod baseline_tls;
mod batch;
mod checker;
mod coding;
mod flows;
mod h2;
mod history;
mod http;
mod killed;
mod latency;
mod loop_stalls;
mod manual;
mod message;
mod modes;
mod net;
mod perf;
mod proc;
mod processes;
mod publishers;
mod report;
mod scenario;
mod subscribers;
mod text;
mod tls;
mod transport;
mod url;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use report::Report;

/// Load generator for push servers: measures, and checks that nothing is lost, doubled, out of order or foreign
#[derive(Debug, Parser)]
#[command(name = "push-stream-bench", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bare epoll server that everything is compared with
    Baseline(baseline::Baseline),
    /// Memory per idle subscriber
    Idle(Scenario<scenario::idle::Idle>),
    /// CPU, latency and rate of messages on one channel with many subscribers
    Fanout(Scenario<scenario::fanout::Fanout>),
    /// CPU, latency and rate of messages on very many channels with few subscribers each
    Many(Scenario<scenario::fanout::Many>),
    /// CPU, latency and rate of publishing when nobody listens
    Publish(Scenario<scenario::publish::Publish>),
    /// CPU and latency of new subscribers at a fixed rate
    Storm(Scenario<scenario::storm::Storm>),
    /// Very many subscribers that come and go, to find leaks
    Churn(Scenario<scenario::churn::Churn>),
    /// Everything at once for a long time: what grows, and how slow it gets
    Soak(Scenario<scenario::soak::Soak>),
    /// The day of a large comment service: subscribers, new connections and messages at once, with latencies
    Disqus(Scenario<scenario::disqus::Disqus>),
    /// As many subscribers as the machine holds: memory, one broadcast to all, and what is left when they have gone
    Million(Scenario<scenario::million::Million>),
    /// Check that every subscriber gets every message once and in order, also through kills and reloads
    Verify(Scenario<scenario::verify::Verify>),
    /// Count the connections that are lost, and the messages, while the configuration is reloaded again and again
    Reload(Scenario<scenario::reload::Reload>),
    /// Put JSON reports side by side as a Markdown table
    Table(Table),
    /// Write man pages and shell completions to a directory
    #[command(hide = true)]
    Manual {
        /// The directory
        dir: PathBuf,
    },
}

#[derive(Args, Debug)]
struct Scenario<S: Args> {
    #[command(flatten)]
    scenario: S,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// `push-stream-bench table`
#[derive(Args, Debug)]
struct Table {
    /// File of JSON reports, one a line. Each label is a column, compared with the labels "baseline" and "nginx"; several
    /// reports of a label and scenario give medians and, from six on, a 95 % interval
    reports: PathBuf,
    /// Line to put under the table, on the machine and the versions
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Rewrite what is between the bench markers of this document
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("push-stream-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// 0: success. 1: the run completed and found something wrong. 2 (by `main`): the run failed.
fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Baseline(baseline) => baseline.run().map(|()| ExitCode::SUCCESS),
        Command::Idle(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Fanout(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Many(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Publish(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Storm(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Churn(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Soak(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Disqus(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Million(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Verify(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Reload(command) => Ok(command.print(&command.scenario.run()?)),
        Command::Table(table) => table.print().map(|()| ExitCode::SUCCESS),
        Command::Manual { dir } => manual::run(dir).map(|()| ExitCode::SUCCESS),
    }
}

impl<S: Args> Scenario<S> {
    fn print(&self, report: &Report) -> ExitCode {
        match self.json {
            true => {
                println!("{}", report.to_json());
                report
                    .problems()
                    .iter()
                    .for_each(|problem| eprintln!("FAILED: {problem}"));
            }
            false => print!("{}", report.to_table()),
        }
        ExitCode::from(u8::from(report.failed()))
    }
}

impl Table {
    fn print(&self) -> anyhow::Result<()> {
        let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let mut table = report::markdown(&read(&self.reports)?)?;
        if let Some(note) = &self.note {
            table.push_str(&format!("\n{note}\n"));
        }
        match &self.into {
            None => io::Write::write_all(&mut io::stdout(), table.as_bytes()).context("cannot print"),
            Some(path) => {
                let document = report::replace_between_markers(&read(path)?, &table)
                    .with_context(|| format!("cannot put the table into {}", path.display()))?;
                fs::write(path, document).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}
