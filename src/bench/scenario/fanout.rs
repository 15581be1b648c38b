//! `fanout` and `many`: messages to many subscribers, and the cost of each delivery.

use std::time::Duration;

use clap::Args;

use super::{Cast, Clients, Run, Target, cpu_facts, per_second, stall_facts};
use crate::loop_stalls::LoopStalls;
use crate::message;
use crate::report::{Report, Unit};

/// One channel with all subscribers
#[derive(Args, Debug)]
pub struct Fanout {
    /// Subscribers
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    subscribers: usize,
    /// Channels they spread over
    #[arg(long, default_value_t = 1, value_name = "N")]
    channels: u32,
    /// Messages a second (open loop: latency counts from when a message was due); full speed if not given
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    #[command(flatten)]
    flow: Flow,
}

/// Very many channels with few subscribers each
#[derive(Args, Debug)]
pub struct Many {
    /// Subscribers
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    subscribers: usize,
    /// Channels they spread over
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    channels: u32,
    /// Messages a second, each to the next channel (open loop: latency counts from when a message was due)
    #[arg(long, default_value_t = 1_000.0, value_name = "N")]
    rate: f64,
    #[command(flatten)]
    flow: Flow,
}

/// What both have in common.
#[derive(Args, Debug)]
struct Flow {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 1, value_name = "N")]
    publishers: u32,
    /// Messages to publish, over all channels
    #[arg(long, default_value_t = 100, conflicts_with = "seconds", value_name = "N")]
    messages: u64,
    /// Publish for so long instead
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
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
    /// Also report how long the server's event loops are away from epoll_wait; needs root and tracefs, and costs the
    /// server about a microsecond for each turn of a loop
    #[arg(long)]
    watch_stalls: bool,
}

impl Fanout {
    pub fn run(&self) -> anyhow::Result<Report> {
        self.flow
            .run("fanout", self.subscribers, self.channels.max(1), self.rate)
    }
}

impl Many {
    pub fn run(&self) -> anyhow::Result<Report> {
        self.flow
            .run("many", self.subscribers, self.channels.max(1), Some(self.rate))
    }
}

impl Flow {
    fn run(&self, scenario: &str, subscribers: usize, channels: u32, rate: Option<f64>) -> anyhow::Result<Report> {
        let cast = Cast {
            subscribers,
            channels,
            publishers: self.publishers.max(1),
            messages: self.seconds.is_none().then_some(self.messages),
            duration: self
                .seconds
                .map(|seconds| Duration::from_secs_f64(seconds.clamp(0.01, 86_400.0))),
            rate,
            max_ahead: self.max_ahead,
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: self.event_ids,
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        run.connect(subscribers)?;
        std::thread::sleep(Duration::from_millis(500));
        if self.watch_stalls {
            run.watch_stalls()?;
        }
        let meter = run.server.meter();
        run.publish(|_| Ok(()))?;
        run.drain()?;
        let cpu = meter.read();
        let known = run.server.is_known();
        // Before they leave: departures are not turns of a broadcast.
        let loop_stalls = run.loop_stalls.take().map(LoopStalls::end);
        let findings = run.finish()?;

        let mut report = self.target.report(scenario);
        report.count("subscribers", "subscribers", subscribers as u64);
        report.count("channels", "channels", u64::from(channels));
        report.count("publishers", "publishers", u64::from(self.publishers));
        report.count("published", "messages published", findings.accepted);
        report.count("deliveries", "deliveries", findings.messages);
        let rate = per_second(findings.messages, findings.delivering);
        report.fact("deliveries_per_second", "deliveries per second", rate, Unit::PerSecond);
        let rate = per_second(findings.accepted, findings.publishing);
        report.fact("publishes_per_second", "publishes per second", rate, Unit::PerSecond);
        report.seconds("delivering_s", "first publish to last delivery", findings.delivering);
        if known {
            cpu_facts(&mut report, cpu, findings.messages, "delivery");
        }
        if findings.wire_bytes > 0 {
            let bytes = findings.wire_bytes as f64 / findings.messages.max(1) as f64;
            report.fact("wire_bytes", "bytes on the wire per delivery", bytes, Unit::Bytes);
        }
        report.latency("latency", "publish to delivery", &findings.latency);
        report.latency("publish", "publish to answer", &findings.publish_latency);
        stall_facts(&mut report, loop_stalls);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
