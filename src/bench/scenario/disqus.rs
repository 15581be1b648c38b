//! `disqus`: the load of a large comment service: very many subscribers on threads of very different size, constant new
//! connections, and messages. The default is a thirtieth of 1,500,000 subscribers, 15,000 new ones and 165,000 messages
//! a second.

use std::time::Duration;

use clap::Args;

use super::mix::{Crowd, Mix};
use super::per_second;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Disqus {
    #[command(flatten)]
    crowd: Crowd,
    /// Subscribers that are there all the time, though not always the same
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    subscribers: usize,
    /// Channels; a few have most subscribers
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    channels: u32,
    /// New subscribers a second, each in the place of one who leaves
    #[arg(long, default_value_t = 500.0, value_name = "N")]
    arrivals: f64,
    /// Messages a second, each to the next channel
    #[arg(long, default_value_t = 5_500.0, value_name = "N")]
    messages: f64,
    /// How long
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS")]
    seconds: f64,
}

impl Disqus {
    pub fn run(&self) -> anyhow::Result<Report> {
        let mix = Mix {
            subscribers: self.subscribers,
            channels: self.channels,
            arrivals: self.arrivals,
            messages: self.messages,
            publishers: self.crowd.publishers,
            bytes: self.crowd.bytes,
            duration: Duration::from_secs_f64(self.seconds.clamp(0.1, 86_400.0)),
        };
        let course = mix.run(&self.crowd)?;
        let findings = &course.findings;

        let mut report = self.crowd.target.report("disqus");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.count("channels", "channels", u64::from(self.channels));
        let came = findings.opened.saturating_sub(self.subscribers as u64);
        let rate = |count| per_second(count, course.elapsed);
        report.fact(
            "arrivals_per_second",
            "new subscribers per second",
            rate(came),
            Unit::PerSecond,
        );
        report.fact(
            "publishes_per_second",
            "messages per second",
            rate(findings.accepted),
            Unit::PerSecond,
        );
        report.fact(
            "deliveries_per_second",
            "deliveries per second",
            rate(findings.messages),
            Unit::PerSecond,
        );
        if course.server_is_known {
            let busy = course.cpu.total.as_secs_f64() / course.elapsed.as_secs_f64();
            report.fact(
                "cpu_percent",
                "server CPU, of one processor",
                busy * 100.0,
                Unit::Percent,
            );
            let memory = course.at(1.0).memory as f64 - course.empty.memory as f64;
            report.fact(
                "pss_bytes",
                "server memory per subscriber, channels included",
                memory / self.subscribers.max(1) as f64,
                Unit::Bytes,
            );
        }
        report.latency("latency", "publish to delivery", &findings.latency);
        report.latency("opening", "connect to response head", &findings.opening);
        report.latency("publish", "publish to answer", &findings.publish_latency);
        report.left(&course.left);
        // An open loop that missed its rate has measured something else.
        for (what, wanted, got) in [
            ("subscribers came", self.arrivals, rate(came)),
            ("messages were accepted", self.messages, rate(findings.accepted)),
        ] {
            if got < wanted * 0.95 {
                report.problem(format!("only {got:.0} of {wanted:.0} {what} per second"));
            }
        }
        findings.judge(&mut report, false);
        Ok(report)
    }
}
