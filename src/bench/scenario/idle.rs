//! `idle`: the cost of an idle subscriber.

use std::time::Duration;

use clap::Args;

use super::{Cast, Clients, Run, Target};
use crate::proc::{KernelMemory, Server, kept_percent};
use crate::processes::Phase;
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Idle {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Idle subscribers; the price of one is the slope between half of them and all. With --streams: of a connection with
    /// one stream, between half of the connections and all, and of a further stream, behind that
    #[arg(long, default_value_t = 100_000, value_name = "N")]
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
    /// First a round that is only there to warm the server up: what it has after the rest is what the second is compared with
    #[arg(long)]
    warm_up: bool,
}

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    subscribers: usize,
    server: u64,
    /// The part outside shared zones.
    private: u64,
    clients: u64,
    kernel: KernelMemory,
}

impl Idle {
    pub fn run(&self) -> anyhow::Result<Report> {
        if self.warm_up {
            self.round()?;
        }
        self.round()
    }

    fn round(&self) -> anyhow::Result<Report> {
        let channels = self.channels.max(1);
        let cast = Cast {
            subscribers: self.subscribers,
            channels,
            messages: Some(self.messages * u64::from(channels)),
            ..Cast::default()
        };
        // Client processes set everything up for all their subscribers at their start.
        let no_clients = own_memory();
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let empty = self.sample(&run, 0);
        let zone_before = self.target.zone_bytes()?;
        // The first half warms up the server's one-time allocations; the slope over the second is the true cost.
        let streams = self.target.subscribers_share().unwrap_or(1);
        let connections = self.subscribers.div_ceil(streams);
        run.connect(connections / 2)?;
        let half = self.sample(&run, connections / 2);
        run.connect(connections)?;
        let single = self.sample(&run, connections);
        let mut full = single;
        if streams > 1 {
            run.connect(self.subscribers)?;
            full = self.sample(&run, self.subscribers);
        }
        let mut grown = full;
        if self.messages > 0 {
            run.publish(|_| Ok(()))?;
            run.drain()?;
            grown = self.sample(&run, self.subscribers);
        }
        let left = run.leave()?;
        let after = self.sample(&run, 0);
        let zone_after = self.target.zone_bytes()?;
        let known = run.server.is_known();
        run.processes.enter(Phase::Finish);
        let findings = run.finish()?;

        let mut report = self.target.report("idle");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        let mut bytes = |key: &str, label: &str, value: f64| report.fact(key, label, value, Unit::Bytes);
        if known {
            // Cost per subscriber if connections have this many streams.
            let each = |part: fn(Sample) -> u64| {
                let further = slope(single, full, part) * (self.subscribers - connections) as f64;
                (slope(half, single, part) * connections as f64 + further) / self.subscribers.max(1) as f64
            };
            bytes(
                "pss_bytes",
                "server memory per subscriber",
                each(|sample| sample.server),
            );
            bytes(
                "private_bytes",
                "of that in no shared zone",
                each(|sample| sample.private),
            );
            if streams > 1 {
                let (connection, stream) = (
                    slope(half, single, |sample| sample.private),
                    slope(single, full, |sample| sample.private),
                );
                bytes(
                    "connection_bytes",
                    "a connection with one stream, in no shared zone",
                    connection,
                );
                bytes("stream_bytes", "each further stream of it, in no shared zone", stream);
            }
            let first = slope(empty, half, |sample| sample.server);
            bytes("first_half_bytes", "of the first half", first);
            if self.messages > 0 {
                let label = format!("growth by {} messages each, per subscriber", self.messages);
                let growth = grown.server as f64 - full.server as f64;
                bytes("growth_bytes", &label, growth / self.subscribers.max(1) as f64);
            }
            let kept = (after.server as f64 - empty.server as f64) / self.subscribers.max(1) as f64;
            bytes("kept_bytes", "kept per subscriber after they left", kept);
            if self.warm_up {
                let percent = kept_percent(empty.private, after.private);
                report.fact(
                    "kept_percent",
                    "private memory after all have left, against before",
                    percent,
                    Unit::Percent,
                );
                self.target.report_zone_kept(zone_before, zone_after, &mut report);
            }
            let mut bytes = |key: &str, label: &str, value: f64| report.fact(key, label, value, Unit::Bytes);
            bytes("empty_bytes", "server before", empty.server as f64);
            bytes("full_bytes", "server with all", full.server as f64);
            bytes("after_bytes", "server after they left", after.server as f64);
        }
        let mut bytes = |key: &str, label: &str, value: f64| report.fact(key, label, value, Unit::Bytes);
        let kernel = |part: fn(KernelMemory) -> u64| {
            (part(full.kernel) as f64 - part(empty.kernel) as f64) / connections.max(1) as f64
        };
        let slab = kernel(|kernel| kernel.slab);
        bytes("kernel_slab_bytes", "kernel slab per connection, both ends", slab);
        let buffers = kernel(|kernel| kernel.socket_buffers);
        bytes("kernel_buffer_bytes", "kernel socket buffers per connection", buffers);
        let clients = (full.clients as f64 - no_clients as f64) / self.subscribers.max(1) as f64;
        bytes("client_bytes", "the bench's own per subscriber", clients);
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
            private: run.server.private_memory(),
            clients: own_memory(),
            kernel: KernelMemory::now(),
        }
    }
}

/// Memory of the bench's processes.
fn own_memory() -> u64 {
    // This process exists, so no relevant error is possible.
    Server::new(vec![std::process::id()]).unwrap_or_default().memory()
}

/// Growth per subscriber between two samples.
fn slope(from: Sample, to: Sample, part: impl Fn(Sample) -> u64) -> f64 {
    let count = to.subscribers.saturating_sub(from.subscribers).max(1);
    (part(to) as f64 - part(from) as f64) / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_ignores_what_was_there_before() {
        let sample = |subscribers, server| Sample {
            subscribers,
            server,
            ..Sample::default()
        };
        let slope = slope(sample(5_000, 12_000_000), sample(10_000, 12_640_000), |sample| {
            sample.server
        });
        assert_eq!(slope, 128.0);
    }
}
