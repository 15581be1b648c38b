//! `doctor`: is this machine fit, and is everything there that a configuration needs?
//!
//! Figures are those of docs/tuning.md. A warning is about load that may come; only what cannot work is an error.

use std::path::Path;
use std::time::Duration;

use super::{Outcome, block_on, load};
use crate::client::{self, Address};

/// Nobody waits for a doctor.
const TIMEOUT: Duration = Duration::from_secs(3);

enum Finding {
    Good(String),
    Warning(String),
    Bad(String),
}

pub fn run(config: Option<&Path>) -> Outcome {
    let mut findings = machine();
    if let Some(path) = config {
        findings.extend(needs(path));
    }
    let mut is_bad = false;
    for finding in findings {
        match finding {
            Finding::Good(text) => println!("ok       {text}"),
            Finding::Warning(text) => println!("warning  {text}"),
            Finding::Bad(text) => {
                is_bad = true;
                println!("ERROR    {text}");
            }
        }
    }
    if is_bad { Err(String::new()) } else { Ok(()) }
}

/// Kernel settings and limits that matter beside a push server.
fn machine() -> Vec<Finding> {
    let mut findings = vec![at_least("open files (ulimit -n)", open_files(), 65_536)];
    for (name, least) in [
        ("net/core/somaxconn", 4096),
        ("net/ipv4/tcp_max_syn_backlog", 65_536),
        ("net/core/netdev_max_backlog", 16_384),
        ("fs/file-max", 2_500_000),
    ] {
        findings.push(at_least(&name.replace('/', "."), sysctl(name), least));
    }
    let memory = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
    let pages = memory
        .split_whitespace()
        .nth(2)
        .and_then(|pages| pages.parse::<u64>().ok());
    // 6 KiB a subscriber: a million of them need 1.5 million pages.
    findings.push(at_least("net.ipv4.tcp_mem (third value, pages)", pages, 1_500_000));
    findings
}

fn sysctl(name: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/proc/sys/{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

fn open_files() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn at_least(what: &str, is: Option<u64>, least: u64) -> Finding {
    match is {
        Some(is) if is >= least => Finding::Good(format!("{what}: {is}")),
        Some(is) => Finding::Warning(format!("{what} is {is}; for many subscribers at least {least}")),
        None => Finding::Warning(format!("{what} cannot be read here")),
    }
}

/// Everything that a configuration talks to.
fn needs(path: &Path) -> Vec<Finding> {
    let config = match load(path) {
        Ok(config) => config,
        Err(error) => return vec![Finding::Bad(error)],
    };
    let mut findings = vec![Finding::Good(format!("{} is valid", path.display()))];
    for named in &config.sources {
        if let Some(asked) = named.component.open_since(crate::clock::Timestamp::now()) {
            findings.push(match block_on(timed(asked)) {
                Ok(open) => Finding::Good(format!("source {}: answers, {} open", named.name, open.events)),
                Err(error) => Finding::Bad(format!("source {}: {error}", named.name)),
            });
        }
    }
    for named in &config.sinks {
        for (address, tls) in named.component.addresses() {
            let found = block_on(timed(Box::pin(async {
                client::connect(&address, tls.as_ref())
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            })));
            let who = format!("sink {}: {address}", named.name);
            findings.push(match found {
                Ok(()) => Finding::Good(format!("{who} answers")),
                Err(error) => Finding::Bad(format!("{who}: {}", hint(&address, &error))),
            });
        }
    }
    findings
}

async fn timed<T>(asked: crate::source::Operation<'_, T>) -> Result<T, String> {
    tokio::time::timeout(TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

fn hint(address: &Address, error: &str) -> String {
    match address {
        Address::Unix(path) if !path.exists() => {
            format!("{error}; is nginx running, with \"listen unix:{};\"?", path.display())
        }
        Address::Unix(path) => format!("{error}; may this user write to {}?", path.display()),
        Address::Tcp { .. } => error.to_owned(),
    }
}
