//! `churn`: very many subscribers that come and go, to find leaks.

use std::time::Duration;

use clap::Args;

use super::mix::{Crowd, Mix};
use super::per_second;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Churn {
    #[command(flatten)]
    crowd: Crowd,
    /// Subscribers that are there all the time, though not always the same
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    subscribers: usize,
    /// Channels; a few have most subscribers
    #[arg(long, default_value_t = 100, value_name = "N")]
    channels: u32,
    /// New subscribers a second, each in the place of one who leaves
    #[arg(long, default_value_t = 3_000.0, value_name = "N")]
    arrivals: f64,
    /// Messages a second, each to the next channel
    #[arg(long, default_value_t = 100.0, value_name = "N")]
    messages: f64,
    /// How long
    #[arg(long, default_value_t = 20.0, value_name = "SECONDS")]
    seconds: f64,
    /// Growth for each new subscriber, from the middle to the end, from which on it is a leak
    #[arg(long, default_value_t = 64.0, value_name = "BYTES")]
    max_growth: f64,
}

/// A smaller growth of the heap is late settling, not a leak.
const MIN_LEAK_BYTES: f64 = 262_144.0;

impl Churn {
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
        let came = findings.opened.saturating_sub(self.subscribers as u64);

        let mut report = self.crowd.target.report("churn");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.count("visits", "subscribers that came and went", findings.departed);
        let rate = per_second(came, course.elapsed);
        report.fact(
            "arrivals_per_second",
            "new subscribers per second",
            rate,
            Unit::PerSecond,
        );
        if course.server_is_known {
            let (middle, end) = (course.at(0.5), course.at(1.0));
            let visits = end.opened.saturating_sub(middle.opened);
            let grown = end.memory as f64 - middle.memory as f64;
            let growth = grown / visits.max(1) as f64;
            report.fact("growth_bytes", "growth per new subscriber", growth, Unit::Bytes);
            for (key, label, sample) in [
                ("empty", "before", course.empty),
                ("full", "at the end", end),
                ("after", "after all have left", course.after),
            ] {
                let bytes = sample.memory as f64;
                report.fact(&format!("{key}_bytes"), &format!("server {label}"), bytes, Unit::Bytes);
                let files = format!("its open files {label}");
                report.count(&format!("{key}_descriptors"), &files, sample.descriptors);
            }
            if growth > self.max_growth && grown > MIN_LEAK_BYTES {
                report.problem(format!(
                    "the server keeps {growth:.0} bytes of each subscriber that left"
                ));
            }
            if course.after.descriptors > course.empty.descriptors {
                let left = course.after.descriptors - course.empty.descriptors;
                report.problem(format!("the server keeps {left} files open"));
            }
        }
        course.report_kept(&self.crowd, &mut report);
        report.latency("opening", "connect to response head", &findings.opening);
        report.latency("latency", "publish to delivery", &findings.latency);
        report.left(&course.left);
        findings.judge(&mut report, false);
        Ok(report)
    }
}
