//! Common part of `disqus`, `churn` and `soak`: subscribers that come and go while messages flow, sampled throughout.

use std::time::{Duration, Instant};

use clap::Args;

use super::{Cast, Clients, Findings, Run, Target};
use crate::flows::Audience;
use crate::message;
use crate::proc::{Cpu, Server, kept_percent};
use crate::report::{Report, Unit};

/// A crowd of subscribers and publishers. All rates are open loops, independent of the server's speed.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub subscribers: usize,
    pub channels: u32,
    /// Subscribers a second that leave and are replaced.
    pub arrivals: f64,
    /// Messages a second, over all channels.
    pub messages: f64,
    pub publishers: u32,
    pub bytes: usize,
    pub duration: Duration,
}

/// What is the same in the arguments of all three.
#[derive(Args, Clone, Debug)]
pub struct Crowd {
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub clients: Clients,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub publishers: u32,
    /// Length of a message
    #[arg(long, default_value_t = 150, value_name = "BYTES")]
    pub bytes: usize,
    /// Seconds of rest before memory is measured with nobody coming or going
    #[arg(long, default_value_t = 1.5, value_name = "SECONDS")]
    pub rest: f64,
    /// First a round that is only there to warm the server up: what it has after the rest is what the second is compared with
    #[arg(long)]
    pub warm_up: bool,
}

/// The server's processes at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Subscriptions so far.
    pub opened: u64,
    pub memory: u64,
    /// The part outside shared zones.
    pub private: u64,
    pub descriptors: u64,
    /// Bytes of the zone in use, if reported.
    pub zone: Option<u64>,
}

impl Sample {
    fn of(server: &Server, opened: u64) -> Self {
        Self {
            opened,
            memory: server.memory(),
            private: server.private_memory(),
            descriptors: server.descriptors(),
            zone: None,
        }
    }

    /// Sample of an idle server.
    fn at_rest(server: &Server, opened: u64, target: &Target) -> anyhow::Result<Self> {
        Ok(Self {
            zone: target.zone_bytes()?,
            ..Self::of(server, opened)
        })
    }
}

/// All measurements of a crowd.
#[derive(Debug)]
pub struct Course {
    /// Before the first subscriber.
    pub empty: Sample,
    /// With all subscribers connected, while they come and go, from start to end.
    pub samples: Vec<Sample>,
    /// After all subscribers have left.
    pub after: Sample,
    /// Time until the statistics showed no subscribers, or the reason why not.
    pub left: Result<Duration, String>,
    /// The server's processor time while messages flowed.
    pub cpu: Cpu,
    pub elapsed: Duration,
    pub findings: Findings,
    pub server_is_known: bool,
}

/// Number of samples; each costs the server something.
const SAMPLES: u32 = 40;

impl Mix {
    pub fn run(&self, crowd: &Crowd) -> anyhow::Result<Course> {
        if crowd.warm_up {
            self.round(crowd)?;
        }
        self.round(crowd)
    }

    fn round(&self, crowd: &Crowd) -> anyhow::Result<Course> {
        let cast = Cast {
            subscribers: self.subscribers,
            channels: self.channels.max(1),
            audience: Audience::Skewed,
            publishers: self.publishers.max(1),
            duration: Some(self.duration),
            rate: Some(self.messages.max(0.001)),
            message_bytes: self.bytes.max(message::MIN_BYTES),
            arrival_rate: Some(self.arrivals.max(0.001)),
            ..Cast::default()
        };
        let mut run = Run::muster(&crowd.target, &crowd.clients, cast)?;
        let server = run.server.clone();
        let rest = || std::thread::sleep(Duration::from_secs_f64(crowd.rest.clamp(0.0, 600.0)));
        let empty = Sample::at_rest(&server, 0, &crowd.target)?;
        run.connect(self.subscribers)?;
        rest();

        let every = self.duration / SAMPLES;
        let mut samples = vec![Sample::of(&server, self.subscribers as u64)];
        let (meter, start) = (server.meter(), Instant::now());
        run.publish(|processes| {
            if start.elapsed() >= every * samples.len() as u32 {
                samples.push(Sample::of(&server, processes.opened()));
            }
            Ok(())
        })?;
        let (elapsed, cpu) = (start.elapsed(), meter.read());
        run.drain()?;
        samples.push(Sample::of(&server, run.processes.opened()));

        let left = run.leave()?;
        // The publishers close their connections, too.
        let findings = run.finish()?;
        rest();
        Ok(Course {
            empty,
            samples,
            after: Sample::at_rest(&server, findings.opened, &crowd.target)?,
            left,
            cpu,
            elapsed,
            findings,
            server_is_known: server.is_known(),
        })
    }
}

impl Course {
    /// Reports the memory that the server kept, if an earlier round has warmed it up.
    pub fn report_kept(&self, crowd: &Crowd, report: &mut Report) {
        if crowd.warm_up && self.server_is_known {
            let kept = kept_percent(self.empty.private, self.after.private);
            report.fact(
                "kept_percent",
                "private memory after all have left, against before",
                kept,
                Unit::Percent,
            );
            crowd.target.report_zone_kept(self.empty.zone, self.after.zone, report);
        }
    }

    /// The sample nearest to this part of the time, from 0 to 1.
    pub fn at(&self, part: f64) -> Sample {
        let last = self.samples.len().saturating_sub(1);
        self.samples[((last as f64 * part).round() as usize).min(last)]
    }
}
