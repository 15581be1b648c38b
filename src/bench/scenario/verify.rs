//! `verify`: every subscriber gets every message of its channel, once, in order; also during kills of workers and
//! configuration reloads.
//!
//! Each channel has one publisher, which sends a message only after the answer to the previous one, so the order in
//! which the server accepted them is known. A publish without a 2xx is never repeated; the next one has a new id.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::{Cast, Clients, Run, Target, per_second};
use crate::message;
use crate::proc;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Verify {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Subscribers
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    subscribers: usize,
    /// Channels; subscriber I listens to channel I % CHANNELS
    #[arg(long, default_value_t = 50, value_name = "N")]
    channels: u32,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 8, value_name = "N")]
    publishers: u32,
    /// Messages to publish, over all channels
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    messages: u64,
    /// Messages a second (open loop); full speed if not given
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Length of a message
    #[arg(long, default_value_t = 150, value_name = "BYTES")]
    bytes: usize,
    /// Subscribers that lose their connection come back at once with Last-Event-ID and must have missed nothing
    #[arg(long)]
    reconnect: bool,
    /// Master process of an nginx: whom to signal, and whose workers to kill
    #[arg(long, value_name = "PID")]
    master_pid: Option<u32>,
    /// Kill (SIGKILL) a worker chosen at random this often while messages flow
    #[arg(long, value_name = "MS", requires_all = ["master_pid", "reconnect"])]
    kill_worker: Option<u64>,
    /// Workers to kill
    #[arg(long, default_value_t = 1, value_name = "N")]
    kill_count: u32,
    /// Reload the configuration (SIGHUP) this often while messages flow
    #[arg(long, value_name = "MS", requires_all = ["master_pid", "reconnect"])]
    reload: Option<u64>,
}

/// How long to listen for duplicates after all messages have arrived.
const AFTERMATH: Duration = Duration::from_millis(500);

impl Verify {
    pub fn run(&self) -> anyhow::Result<Report> {
        let channels = self.channels.max(1);
        // With more publishers than channels a channel would have several, and its order would be unknown.
        let publishers = self.publishers.clamp(1, channels);
        let cast = Cast {
            subscribers: self.subscribers,
            channels,
            publishers,
            messages: Some(self.messages),
            rate: self.rate,
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: true,
            reconnect: self.reconnect,
            ..Cast::default()
        };
        let mut trouble = Trouble::new(self);
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        run.connect(self.subscribers)?;
        run.prime()?;
        run.publish(|_| trouble.make())?;
        let complete = run.drain()?;
        std::thread::sleep(AFTERMATH);
        let findings = run.finish()?;

        let mut report = self.target.report("verify");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.count("channels", "channels", u64::from(channels));
        report.count("publishers", "publishers", u64::from(publishers));
        report.count("published", "messages accepted", findings.accepted);
        report.count("unanswered", "publishes without an answer", findings.unanswered);
        report.count("deliveries", "deliveries", findings.messages);
        report.count("killed", "workers killed", trouble.killed);
        report.count("reloads", "reloads", trouble.reloads);
        report.count("disconnects", "streams ended by the server", findings.disconnects);
        report.count("reconnects", "reconnects", findings.reconnects);
        report.count("comments", "pings and other comments", findings.comments);
        let rate = per_second(findings.messages, findings.delivering);
        report.fact("deliveries_per_second", "deliveries per second", rate, Unit::PerSecond);
        report.seconds("publishing_s", "time of publishing", findings.publishing);
        report.latency("latency", "publish to delivery", &findings.latency);
        if findings.accepted < self.messages {
            report.problem(format!(
                "only {} of {} messages accepted",
                findings.accepted, self.messages
            ));
        }
        if !complete {
            report.problem("some subscribers never came to the end");
        }
        if self.kill_worker.is_some() && trouble.killed < u64::from(self.kill_count) {
            report.problem("publishing ended before all workers were killed: use a lower --rate");
        }
        if self.reload.is_some() && trouble.reloads == 0 {
            report.problem("publishing ended before the first reload: use a lower --rate");
        }
        findings.judge(&mut report, self.reconnect);
        Ok(report)
    }
}

/// Kills and reloads, when due.
struct Trouble {
    master: u32,
    kill_every: Option<Duration>,
    kills: u64,
    reload_every: Option<Duration>,
    killed: u64,
    reloads: u64,
    start: Option<Instant>,
}

impl Trouble {
    fn new(verify: &Verify) -> Self {
        Self {
            master: verify.master_pid.unwrap_or(0),
            kill_every: verify.kill_worker.map(Duration::from_millis),
            kills: u64::from(verify.kill_count),
            reload_every: verify.reload.map(Duration::from_millis),
            killed: 0,
            reloads: 0,
            start: None,
        }
    }

    fn make(&mut self) -> anyhow::Result<()> {
        let elapsed = self.start.get_or_insert_with(Instant::now).elapsed();
        let due = |every: Option<Duration>, done: u64| every.is_some_and(|every| elapsed > every * (done as u32 + 1));
        if self.killed < self.kills && due(self.kill_every, self.killed) {
            let workers = proc::nginx_workers(self.master);
            // No worker just after a kill: the next call finds its successor.
            if let Some(worker) = fastrand::choice(&workers) {
                proc::signal(*worker, libc::SIGKILL).context("cannot kill a worker")?;
                self.killed += 1;
            }
        }
        if due(self.reload_every, self.reloads) {
            proc::signal(self.master, libc::SIGHUP).context("cannot signal the master")?;
            self.reloads += 1;
        }
        Ok(())
    }
}
