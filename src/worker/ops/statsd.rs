//! StatsD: the metrics of `/metrics`, as increments, by UDP.
//!
//! ```toml
//! [statsd]
//! address = "127.0.0.1:8125"
//! prefix = "worker."
//! interval = "1s"
//! ```
//!
//! Names are those of Prometheus, with a dot after `push_stream_worker`, then the label values. Counters are sent as
//! increments since the last report, gauges as they are, histograms as count and sum. Fire and forget, several lines
//! per datagram.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;

use super::metrics::{Metrics, PREFIX};
use crate::config::section::Section;

/// Fits into one Ethernet frame.
const DATAGRAM_BYTES: usize = 1400;

#[derive(Clone, Debug)]
pub struct Statsd {
    address: SocketAddr,
    prefix: String,
    interval: Duration,
}

impl Statsd {
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let address = section.required("address");
        let interval = section.or("interval", Duration::from_secs(1));
        if interval.is_zero() {
            section.complain_at("interval", "must be longer than 0");
        }
        Some(Self {
            prefix: section.or("prefix", String::new()),
            address: address?,
            interval,
        })
    }

    pub async fn run(self, metrics: Arc<Metrics>) {
        let local = if self.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = match UdpSocket::bind(local).await {
            Ok(socket) => socket,
            Err(error) => return tracing::error!("no StatsD: {error}"),
        };
        let mut before = HashMap::new();
        loop {
            for datagram in datagrams(&lines(&metrics.render(), &self.prefix, &mut before)) {
                // Errors are ignored: UDP needs no listener.
                let _ = socket.send_to(datagram.as_bytes(), self.address).await;
            }
            tokio::time::sleep(self.interval).await;
        }
    }
}

/// Turns a Prometheus text into StatsD lines.
fn lines(text: &str, prefix: &str, before: &mut HashMap<String, f64>) -> Vec<String> {
    let mut out = Vec::new();
    let mut kind = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.rsplit(' ').next().unwrap_or_default();
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Ok(value) = value.parse::<f64>() else { continue };
        if series.contains("_bucket{") {
            continue;
        }
        let name = format!("{prefix}{}", dotted(series));
        if kind == "gauge" {
            out.push(format!("{name}:{value}|g"));
            continue;
        }
        let last = before.insert(name.clone(), value).unwrap_or_default();
        if value > last {
            out.push(format!("{name}:{}|c", value - last));
        }
    }
    out
}

/// `push_stream_worker_a{b="c",d="e.f"}` becomes `push_stream_worker.a.c.e_f`.
fn dotted(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut out = match name.strip_prefix(PREFIX) {
        Some(rest) => format!("{}.{rest}", PREFIX.trim_end_matches('_')),
        None => name.to_owned(),
    };
    // Label values are every second piece between quotes; names that `validate` accepts contain no escaped quotes.
    for value in labels.split('"').skip(1).step_by(2).filter(|value| !value.is_empty()) {
        out.push('.');
        out.extend(
            value
                .chars()
                .map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }),
        );
    }
    out
}

fn datagrams(lines: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        match out.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= DATAGRAM_BYTES => {
                last.push('\n');
                last.push_str(line);
            }
            _ => out.push(line.clone()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_sent_as_increments_and_gauges_as_they_are() {
        let mut before = HashMap::new();
        let text = |n| {
            format!(
                "# TYPE push_stream_worker_a_total counter\npush_stream_worker_a_total{{x=\"p q\",y=\"r\"}} {n}\n# TYPE push_stream_worker_g gauge\npush_stream_worker_g 5\n"
            )
        };
        assert_eq!(
            lines(&text(3), "w.", &mut before),
            ["w.push_stream_worker.a_total.p_q.r:3|c", "w.push_stream_worker.g:5|g"]
        );
        assert_eq!(
            lines(&text(7), "w.", &mut before),
            ["w.push_stream_worker.a_total.p_q.r:4|c", "w.push_stream_worker.g:5|g"]
        );
        assert_eq!(lines(&text(7), "w.", &mut before), ["w.push_stream_worker.g:5|g"]);
    }

    #[test]
    fn several_lines_share_a_datagram_and_none_is_too_long() {
        let lines: Vec<String> = (0..200).map(|n| format!("name.of.a.series.{n}:1|c")).collect();
        let sent = datagrams(&lines);
        assert!(sent.len() > 1 && sent.iter().all(|datagram| datagram.len() <= DATAGRAM_BYTES));
        assert_eq!(sent.join("\n").lines().count(), 200);
    }
}
