//! `top` and `tap`: inspect a running worker through its admin address.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use serde_json::Value;

use super::{Outcome, block_on, load};
use crate::client::{self, Address};

#[derive(Debug, Args)]
pub struct Top {
    /// The configuration file of the worker; its [admin] address is asked
    config: PathBuf,
    /// Print once and end
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Args)]
pub struct Tap {
    /// The configuration file of the worker; its [admin] address is asked
    config: PathBuf,
    /// The source or stage behind which to look
    component: String,
    /// Show values, and not only of what kind they are
    #[arg(long)]
    raw: bool,
    /// End after so many events
    #[arg(long)]
    count: Option<usize>,
}

fn admin(path: &Path) -> Result<SocketAddr, String> {
    load(path)?
        .admin
        .ok_or_else(|| format!("{}: there is no [admin] to ask", path.display()))
}

async fn get(address: SocketAddr, path: &str) -> Result<hyper::Response<Incoming>, String> {
    let describe_error = |error: client::Error| format!("{address}: {error}");
    let address = Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
        tls: false,
    };
    let mut sender = client::connect(&address, None).await.map_err(describe_error)?;
    let request = Request::get(path)
        .header("Host", "worker")
        .body(Full::<Bytes>::default());
    let request = request.map_err(|error| error.to_string())?;
    sender
        .send_request(request)
        .await
        .map_err(|error| describe_error(error.into()))
}

async fn body(answer: hyper::Response<Incoming>) -> Result<Bytes, String> {
    let body = answer.into_body().collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

impl Top {
    pub fn run(self) -> Outcome {
        let address = admin(&self.config)?;
        block_on(async {
            let mut before = HashMap::new();
            let is_terminal = std::io::stdout().is_terminal();
            loop {
                let answer = get(address, "/stats").await?;
                let stats = serde_json::from_slice(&body(answer).await?).map_err(|error| error.to_string())?;
                let screen = screen(&stats, &mut before);
                // Home and clear, so that the screen is redrawn in place.
                let clear = if is_terminal && !self.once { "\x1b[H\x1b[2J" } else { "" };
                print!("{clear}{screen}");
                std::io::stdout().flush().map_err(|error| error.to_string())?;
                if self.once {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    }
}

/// Renders one screen. `before` keeps the previous counts, for rates per second.
fn screen(stats: &Value, before: &mut HashMap<String, u64>) -> String {
    let mut out = String::new();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |key: &str| stats[key].as_array().cloned().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "up {} s, {} parked\n",
        number(&stats["uptime_seconds"]),
        number(&stats["parked"])
    );
    let _ = writeln!(
        out,
        "{:<24} {:>7} {:>10} {:>10} {:>10}",
        "SOURCE", "ready", "in flight", "waiting", "oldest"
    );
    for source in list("sources") {
        let ready = match (&source["ready"], &source["active"]) {
            (Value::Bool(true), Value::Bool(false)) => "standby",
            (Value::Bool(true), _) => "yes",
            _ => "no",
        };
        let lag = source["lag"].as_u64().map_or("?".to_owned(), |lag| lag.to_string());
        let oldest = format!("{:.1} s", source["oldest_seconds"].as_f64().unwrap_or_default());
        let (name, in_flight) = (text(&source["name"]), number(&source["in_flight"]));
        let _ = writeln!(out, "{name:<24} {ready:>7} {in_flight:>10} {lag:>10} {oldest:>10}");
    }
    let columns = ["in/s", "in", "out", "dropped", "parked", "in flight"];
    let _ = write!(out, "\n{:<24}", "PIPELINE / COMPONENT");
    for column in columns {
        let _ = write!(out, " {column:>10}");
    }
    out.push('\n');
    for component in list("components") {
        let pipeline = text(&component["pipeline"]);
        let name = if pipeline.is_empty() {
            text(&component["name"])
        } else {
            format!("{pipeline} / {}", text(&component["name"]))
        };
        let received = number(&component["received"]);
        let rate = received.saturating_sub(before.insert(name.clone(), received).unwrap_or(received));
        let _ = write!(out, "{name:<24} {rate:>10}");
        for key in ["received", "sent", "dropped", "parked", "in_flight"] {
            let _ = write!(out, " {:>10}", component[key].as_i64().unwrap_or_default());
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "\n{:<40} {:>10} {:>8} {:>10} {:>8}",
        "NODE", "breaker", "batches", "requests", "missed"
    );
    for node in list("nodes") {
        let batches = if node["batches"] == true { "yes" } else { "no" };
        let (name, breaker) = (
            format!("{} {}", text(&node["sink"]), text(&node["node"])),
            text(&node["breaker"]),
        );
        let (requests, missed) = (number(&node["requests"]), number(&node["missed"]));
        let _ = writeln!(out, "{name:<40} {breaker:>10} {batches:>8} {requests:>10} {missed:>8}");
    }
    out
}

impl Tap {
    pub fn run(self) -> Outcome {
        let address = admin(&self.config)?;
        let path = format!("/tap/{}{}", self.component, if self.raw { "?raw=1" } else { "" });
        block_on(async {
            let answer = get(address, &path).await?;
            if !answer.status().is_success() {
                return Err(String::from_utf8_lossy(&body(answer).await?).trim().to_owned());
            }
            let mut stream = answer.into_body();
            let (mut pending, mut shown) = (Vec::new(), 0);
            while self.count.is_none_or(|count| shown < count) {
                let Some(frame) = stream.frame().await else { break };
                let frame = frame.map_err(|error| error.to_string())?;
                pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = memchr::memchr(b'\n', &pending) {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if let Some(event) = line.strip_prefix(b"data: ") {
                        print!("{}", String::from_utf8_lossy(event));
                        shown += 1;
                    }
                    if self.count == Some(shown) {
                        break;
                    }
                }
                std::io::stdout().flush().map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_picture_shows_rates_since_the_last_one() {
        let stats = |received| {
            json!({"uptime_seconds": 5, "parked": 1, "sources": [{"name": "posts", "ready": true, "in_flight": 2, "lag": null, "oldest_seconds": 0.25}],
                "components": [{"name": "route", "pipeline": "live", "received": received, "sent": 1, "dropped": 0, "parked": 0, "in_flight": 7}],
                "nodes": [{"sink": "nginx", "node": "unix:a", "breaker": "open", "batches": true, "requests": 3, "missed": 0}]})
        };
        let mut before = HashMap::new();
        screen(&stats(10), &mut before);
        let picture = screen(&stats(25), &mut before);
        let line = |start: &str| {
            picture
                .lines()
                .find(|line| line.starts_with(start))
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(line("posts"), ["posts", "yes", "2", "?", "0.2", "s"]);
        assert_eq!(
            line("live / route"),
            ["live", "/", "route", "15", "25", "1", "0", "0", "7"]
        );
        assert_eq!(line("nginx"), ["nginx", "unix:a", "open", "yes", "3", "0"]);
    }
}
