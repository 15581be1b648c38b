//! `publish`: how many messages a server takes when nobody listens. Whether it stores them is up to the URL.

use std::time::Duration;

use clap::Args;

use super::{Cast, Clients, Run, Target, cpu_facts, per_second};
use crate::message;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Publish {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 8, value_name = "N")]
    publishers: u32,
    /// Channels they publish to
    #[arg(long, default_value_t = 8, value_name = "N")]
    channels: u32,
    /// Seconds to publish
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// Messages a second (open loop); full speed if not given
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Length of a message
    #[arg(long, default_value_t = 150, value_name = "BYTES")]
    bytes: usize,
    /// Send an Event-Id with each message
    #[arg(long)]
    event_ids: bool,
}

impl Publish {
    pub fn run(&self) -> anyhow::Result<Report> {
        let cast = Cast {
            channels: self.channels.max(1),
            publishers: self.publishers.max(1),
            duration: Some(Duration::from_secs_f64(self.seconds.clamp(0.01, 86_400.0))),
            rate: self.rate,
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: self.event_ids,
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let before = run.server.cpu();
        run.publish(|_| Ok(()))?;
        let cpu = run.server.cpu() - before;
        let known = run.server.is_known();
        let findings = run.finish()?;

        let mut report = self.target.report("publish");
        report.count("publishers", "publishers", u64::from(self.publishers));
        report.count("channels", "channels", u64::from(self.channels));
        report.count("published", "messages published", findings.accepted);
        let rate = per_second(findings.accepted, findings.publishing);
        report.fact("publishes_per_second", "publishes per second", rate, Unit::PerSecond);
        if known {
            cpu_facts(&mut report, cpu, findings.accepted, "publish");
        }
        report.latency("latency", "publish to answer", &findings.publish_latency);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
