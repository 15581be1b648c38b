//! `idle`: what a subscriber costs that has nothing to do.

use std::time::Duration;

use clap::Args;

use super::{Cast, Clients, Run, Target};
use crate::crew::Phase;
use crate::proc::{KernelMemory, Memory};
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Idle {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Idle EventSource subscribers
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    subscribers: usize,
    /// Channels they spread over
    #[arg(long, default_value_t = 1, value_name = "N")]
    channels: u32,
    /// Seconds of rest before each measurement
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    rest: f64,
    /// Then publish so many messages to each channel and measure what has grown
    #[arg(long, default_value_t = 0, value_name = "N")]
    messages: u64,
}

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    subscribers: usize,
    server: Memory,
    kernel: KernelMemory,
}

impl Idle {
    pub fn run(&self) -> anyhow::Result<Report> {
        let channels = self.channels.max(1);
        let cast = Cast {
            subscribers: self.subscribers,
            channels,
            messages: Some(self.messages * u64::from(channels)),
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let empty = self.sample(&run, 0);
        // The first half warms up what the server has to allocate once; the slope over the second is the true price.
        run.connect(self.subscribers / 2)?;
        let half = self.sample(&run, self.subscribers / 2);
        run.connect(self.subscribers)?;
        let full = self.sample(&run, self.subscribers);
        let mut grown = full;
        if self.messages > 0 {
            run.publish(|_| Ok(()))?;
            run.drain()?;
            grown = self.sample(&run, self.subscribers);
        }
        let left = run.leave()?;
        let after = self.sample(&run, 0);
        let known = run.server.is_known();
        run.crew.enter(Phase::Finish);
        let findings = run.finish()?;

        let mut report = self.target.report("idle");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        if known {
            for (key, label, part) in PARTS {
                let label = format!("{label} per subscriber");
                report.fact(&format!("{key}_bytes"), &label, slope(empty, full, part), Unit::Bytes);
                let label = format!("{label}, second half alone");
                report.fact(
                    &format!("{key}_slope_bytes"),
                    &label,
                    slope(half, full, part),
                    Unit::Bytes,
                );
            }
            if self.messages > 0 {
                let growth =
                    (grown.server.proportional as f64 - full.server.proportional as f64) / self.subscribers as f64;
                let label = format!("growth by {} messages per subscriber", self.messages);
                report.fact("growth_bytes", &label, growth, Unit::Bytes);
            }
            report.fact(
                "empty_private_bytes",
                "server before, private",
                empty.server.private as f64,
                Unit::Bytes,
            );
            report.fact(
                "full_private_bytes",
                "server with all, private",
                full.server.private as f64,
                Unit::Bytes,
            );
            report.fact(
                "after_private_bytes",
                "server after they left, private",
                after.server.private as f64,
                Unit::Bytes,
            );
        }
        let slab = slope(empty, full, |sample| sample.kernel.slab);
        report.fact(
            "kernel_slab_bytes",
            "kernel slab per connection, both ends",
            slab,
            Unit::Bytes,
        );
        let buffers = slope(empty, full, |sample| sample.kernel.socket_buffers);
        report.fact(
            "kernel_buffer_bytes",
            "kernel socket buffers per connection",
            buffers,
            Unit::Bytes,
        );
        report.fact(
            "client_bytes",
            "the bench's own per connection",
            findings.bytes_per_subscriber as f64,
            Unit::Bytes,
        );
        report.latency("opening", "connect to response head", &findings.opening);
        report.left(&left);
        findings.judge(&mut report, false);
        Ok(report)
    }

    fn sample(&self, run: &Run, subscribers: usize) -> Sample {
        std::thread::sleep(Duration::from_secs_f64(self.rest.clamp(0.0, 600.0)));
        Sample {
            subscribers,
            server: run.server.memory(),
            kernel: KernelMemory::now(),
        }
    }
}

type Part = fn(Sample) -> u64;

const PARTS: [(&str, &str, Part); 3] = [
    ("private", "private memory", |sample| sample.server.private),
    ("pss", "proportional memory", |sample| sample.server.proportional),
    ("rss", "resident memory", |sample| sample.server.resident),
];

/// What each of the subscribers that came between two samples added.
fn slope(from: Sample, to: Sample, part: impl Fn(Sample) -> u64) -> f64 {
    let count = to.subscribers.saturating_sub(from.subscribers).max(1);
    (part(to) as f64 - part(from) as f64) / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_ignores_what_was_there_before() {
        let sample = |subscribers, private| {
            let server = Memory {
                private,
                ..Memory::default()
            };
            Sample {
                subscribers,
                server,
                ..Sample::default()
            }
        };
        let slope = slope(sample(5_000, 12_000_000), sample(10_000, 12_640_000), |sample| {
            sample.server.private
        });
        assert_eq!(slope, 128.0);
    }
}
