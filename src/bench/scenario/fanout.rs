//! `fanout`: messages to many subscribers, and what each delivery costs. With more channels it is `many`.

use std::time::Duration;

use clap::Args;

use super::{Cast, Clients, Run, Target, cpu_facts, per_second};
use crate::message;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Fanout {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// EventSource subscribers
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    subscribers: usize,
    /// Channels they spread over
    #[arg(long, default_value_t = 1, value_name = "N")]
    channels: u32,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 1, value_name = "N")]
    publishers: u32,
    /// Messages to publish, over all channels
    #[arg(long, default_value_t = 100, conflicts_with = "seconds", value_name = "N")]
    messages: u64,
    /// Publish for so long instead
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Messages a second (open loop: latency counts from when a message was due); full speed if not given
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Let the publishers wait while so many messages have not reached the subscribers: full speed, but no faster than
    /// they are delivered
    #[arg(long, value_name = "N")]
    max_ahead: Option<u64>,
    /// Length of a message
    #[arg(long, default_value_t = 150, value_name = "BYTES")]
    bytes: usize,
    /// Send an Event-Id with each message and check that it arrives
    #[arg(long)]
    event_ids: bool,
    /// Name of the scenario in the report
    #[arg(long, default_value = "fanout", value_parser = ["fanout", "flood", "many"])]
    name: String,
}

impl Fanout {
    pub fn run(&self) -> anyhow::Result<Report> {
        let cast = Cast {
            subscribers: self.subscribers,
            channels: self.channels.max(1),
            publishers: self.publishers.max(1),
            messages: self.seconds.is_none().then_some(self.messages),
            duration: self
                .seconds
                .map(|seconds| Duration::from_secs_f64(seconds.clamp(0.01, 86_400.0))),
            rate: self.rate,
            max_ahead: self.max_ahead,
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: self.event_ids,
            reconnect: false,
            connect_rate: None,
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        run.connect(self.subscribers)?;
        std::thread::sleep(Duration::from_millis(500));
        let before = run.server.cpu();
        run.publish(|| Ok(()))?;
        run.drain()?;
        let cpu = run.server.cpu() - before;
        let known = run.server.is_known();
        let findings = run.finish()?;

        let mut report = Report::new(
            match self.name.as_str() {
                "flood" => "flood",
                "many" => "many",
                _ => "fanout",
            },
            &self.target.label,
        );
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.count("channels", "channels", u64::from(self.channels));
        report.count("publishers", "publishers", u64::from(self.publishers));
        report.count("published", "messages published", findings.accepted);
        report.count("deliveries", "deliveries", findings.messages);
        let rate = per_second(findings.messages, findings.delivering);
        report.fact("deliveries_per_second", "deliveries per second", rate, Unit::PerSecond);
        let rate = per_second(findings.accepted, findings.publishing);
        report.fact("publishes_per_second", "publishes per second", rate, Unit::PerSecond);
        if known {
            cpu_facts(&mut report, cpu, findings.messages, "delivery");
        }
        report.latency("latency", "publish to delivery", &findings.latency);
        report.latency("publish", "publish to answer", &findings.publish_latency);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
