//! `soak`: everything at once for a long time, to find growth and slowdown.

use std::time::Duration;

use clap::Args;

use super::mix::{Crowd, Mix};
use super::per_second;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Soak {
    #[command(flatten)]
    crowd: Crowd,
    /// Subscribers that are there all the time, though not always the same
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    subscribers: usize,
    /// Channels; a few have most subscribers
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    channels: u32,
    /// New subscribers a second, each in the place of one who leaves
    #[arg(long, default_value_t = 200.0, value_name = "N")]
    arrivals: f64,
    /// Messages a second, each to the next channel
    #[arg(long, default_value_t = 500.0, value_name = "N")]
    messages: f64,
    /// How long
    #[arg(long, default_value_t = 3_600.0, value_name = "SECONDS")]
    seconds: f64,
    /// Growth of the server, from a quarter of the time to its end, from which on it is a leak
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT")]
    max_growth: f64,
}

impl Soak {
    pub fn run(&self) -> anyhow::Result<Report> {
        let mix = Mix {
            subscribers: self.subscribers,
            channels: self.channels,
            arrivals: self.arrivals,
            messages: self.messages,
            publishers: self.crowd.publishers,
            bytes: self.crowd.bytes,
            duration: Duration::from_secs_f64(self.seconds.clamp(0.1, 30.0 * 86_400.0)),
        };
        let course = mix.run(&self.crowd)?;
        let findings = &course.findings;

        let mut report = self.crowd.target.report("soak");
        report.seconds("elapsed_s", "time", course.elapsed);
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.count("visits", "subscribers that came and went", findings.departed);
        report.count("published", "messages published", findings.accepted);
        report.count("deliveries", "deliveries", findings.messages);
        let rate = per_second(findings.messages, course.elapsed);
        report.fact("deliveries_per_second", "deliveries per second", rate, Unit::PerSecond);
        if course.server_is_known {
            for (part, key, label) in [
                (0.0, "start", "at the start"),
                (0.25, "quarter", "after a quarter"),
                (0.5, "half", "after half"),
                (1.0, "end", "at the end"),
            ] {
                let bytes = course.at(part).memory as f64;
                report.fact(&format!("{key}_bytes"), &format!("server {label}"), bytes, Unit::Bytes);
            }
            let after = course.after.memory as f64;
            report.fact("after_bytes", "server after all have left", after, Unit::Bytes);
            let (quarter, end) = (course.at(0.25).memory, course.at(1.0).memory);
            let growth = (end as f64 / quarter.max(1) as f64 - 1.0) * 100.0;
            report.fact("growth_percent", "growth since a quarter", growth, Unit::Percent);
            if growth > self.max_growth {
                report.problem(format!("the server has grown by {growth:.1} %"));
            }
            if course.after.descriptors > course.empty.descriptors {
                let left = course.after.descriptors - course.empty.descriptors;
                report.problem(format!("the server keeps {left} files open"));
            }
        }
        course.report_kept(&self.crowd, &mut report);
        report.latency("latency", "publish to delivery", &findings.latency);
        report.latency("opening", "connect to response head", &findings.opening);
        report.latency("publish", "publish to answer", &findings.publish_latency);
        report.left(&course.left);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
