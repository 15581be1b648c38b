//! `storm`: new subscribers at a fixed rate, whether the server keeps up or not.

use std::time::Instant;

use clap::Args;

use super::{Cast, Clients, Run, Target, cpu_facts, per_second};
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Storm {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Subscribers that come, and stay until all have come
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    subscribers: usize,
    /// Channels they spread over
    #[arg(long, default_value_t = 1, value_name = "N")]
    channels: u32,
    /// New subscribers a second
    #[arg(long, default_value_t = 5_000.0, value_name = "N")]
    rate: f64,
}

impl Storm {
    pub fn run(&self) -> anyhow::Result<Report> {
        let cast = Cast {
            subscribers: self.subscribers,
            channels: self.channels.max(1),
            connect_rate: Some(self.rate.max(1.0)),
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let meter = run.server.meter();
        let start = Instant::now();
        run.connect(self.subscribers)?;
        let taken = start.elapsed();
        let cpu = meter.read();
        let left = run.leave()?;
        let known = run.server.is_known();
        let findings = run.finish()?;

        let mut report = self.target.report("storm");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.fact("wanted_per_second", "wanted per second", self.rate, Unit::PerSecond);
        let rate = per_second(self.subscribers as u64, taken);
        report.fact("opened_per_second", "opened per second", rate, Unit::PerSecond);
        if known {
            cpu_facts(&mut report, cpu, self.subscribers as u64, "new subscriber");
        }
        report.latency("opening", "connect to response head", &findings.opening);
        report.left(&left);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
