//! `publish`: publishing throughput without subscribers. Whether messages are stored depends on the URL.

use std::time::Duration;

use anyhow::bail;
use clap::Args;

use super::{Cast, Clients, Run, Target, ask, cpu_facts, per_second};
use crate::report::{Report, Unit};
use crate::url::UrlTemplate;
use crate::{batch, http, message};

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
    /// Publish one message to every channel before anything is measured, and report what that takes of memory
    #[arg(long)]
    fill: bool,
    /// Messages in one request, if the server offers batches: application/x-ndjson in the Accept-Post of its OPTIONS
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
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

/// A live server answers within this time, however many channels there are to fill.
const FILL_REST: Duration = Duration::from_millis(500);

impl Publish {
    pub fn run(&self) -> anyhow::Result<Report> {
        if self.batch > 1 && !offers_batches(&self.target.pub_url)? {
            bail!(
                "the server offers no batches: its Accept-Post says nothing of {}",
                batch::CONTENT_TYPE
            );
        }
        let channels = self.channels.max(1);
        let cast = Cast {
            channels,
            publishers: self.publishers.max(1),
            duration: Some(Duration::from_secs_f64(self.seconds.clamp(0.01, 86_400.0))),
            rate: self.rate,
            batch: self.batch.max(1),
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: self.event_ids,
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let server = run.server.clone();
        let empty = server.memory();
        if self.fill {
            run.prime()?;
            std::thread::sleep(FILL_REST);
        }
        let filled = server.memory();
        let meter = server.meter();
        run.publish(|_| Ok(()))?;
        let cpu = meter.read();
        let published = server.memory();
        let findings = run.finish()?;
        let accepted = findings.accepted - findings.primed;

        let mut report = self.target.report("publish");
        report.count("publishers", "publishers", u64::from(self.publishers));
        report.count("channels", "channels", u64::from(channels));
        report.count("published", "messages published", accepted);
        let rate = per_second(accepted, findings.publishing);
        report.fact("publishes_per_second", "publishes per second", rate, Unit::PerSecond);
        if server.is_known() {
            cpu_facts(&mut report, cpu, accepted, "publish");
        }
        if server.is_known() && self.fill {
            let message = (published as f64 - filled as f64) / accepted.max(1) as f64;
            report.fact("message_bytes", "memory per further message", message, Unit::Bytes);
            let first = (filled as f64 - empty as f64) / f64::from(channels);
            report.fact(
                "first_bytes",
                "memory per channel with its first message",
                first,
                Unit::Bytes,
            );
            report.fact("channel_bytes", "of that for the channel", first - message, Unit::Bytes);
        }
        report.latency("latency", "publish to answer", &findings.publish_latency);
        findings.judge(&mut report, false);
        Ok(report)
    }
}

/// Whether the server takes batches at this URL, according to its OPTIONS answer.
fn offers_batches(url: &UrlTemplate) -> anyhow::Result<bool> {
    let answer = ask("OPTIONS", url)?;
    let types = http::header(&answer.head, "Accept-Post").unwrap_or_default();
    Ok(memchr::memmem::find(types, batch::CONTENT_TYPE.as_bytes()).is_some())
}
