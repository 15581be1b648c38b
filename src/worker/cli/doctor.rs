//! `doctor`: checks this machine, and everything that a configuration needs.
//!
//! Recommended values are those of docs/tuning.md. A warning concerns possible load; only what cannot work is an error.

use std::path::Path;
use std::time::Duration;

use super::{Outcome, block_on, load};
use crate::client::{self, Address};
use crate::ops::finding::{Examination, Finding};

/// Short, for interactive use.
const TIMEOUT: Duration = Duration::from_secs(3);

pub fn run(config: Option<&Path>, nginx: Option<&Path>, module: Option<&Path>) -> Outcome {
    let mut findings = machine();
    if let Some(nginx) = nginx {
        findings.extend(super::nginx::examine(nginx, module));
    }
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

const TUNE: &str = "scripts/tune-kernel";

/// Kernel settings and limits relevant to a push server.
fn machine() -> Vec<Finding> {
    let limit = at_least(
        "open files (ulimit -n)",
        open_files(),
        65_536,
        "LimitNOFILE in the unit",
    );
    let mut findings = vec![limit];
    for (name, least) in [
        ("net/core/somaxconn", 4096),
        ("net/ipv4/tcp_max_syn_backlog", 65_536),
        ("net/core/netdev_max_backlog", 16_384),
        ("fs/file-max", 2_500_000),
    ] {
        findings.push(at_least(&name.replace('/', "."), sysctl(name), least, TUNE));
    }
    let memory = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default();
    let pages = memory
        .split_whitespace()
        .nth(2)
        .and_then(|pages| pages.parse::<u64>().ok());
    // 6 KiB a subscriber: a million of them need 1.5 million pages.
    findings.push(at_least(
        "net.ipv4.tcp_mem (third value, pages)",
        pages,
        1_500_000,
        TUNE,
    ));
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

fn at_least(what: &str, is: Option<u64>, least: u64, advice: &str) -> Finding {
    match is {
        Some(is) if is >= least => Finding::Good(format!("{what}: {is}")),
        Some(is) => Finding::Warning(format!(
            "{what} is {is}; for many subscribers at least {least}: {advice}"
        )),
        None => Finding::Warning(format!("{what} cannot be read here")),
    }
}

/// Checks all servers of a configuration.
fn needs(path: &Path) -> Vec<Finding> {
    let config = match load(path) {
        Ok(config) => config,
        Err(error) => return vec![Finding::Bad(error)],
    };
    let mut findings = vec![Finding::Good(format!("{} is valid", path.display()))];
    findings.push(state_dir(&config.state_dir));
    for named in &config.sources {
        if let Some(examined) = named.component.examine() {
            findings.extend(about("source", &named.name, look(examined)));
        }
        if let Some(asked) = named.component.open_since(crate::clock::Timestamp::now()) {
            findings.push(match block_on(timed(asked)) {
                Ok(open) => Finding::Good(format!("source {}: answers, {} open", named.name, open.events)),
                Err(error) if error.contains("NOT_FOUND") => Finding::Warning(format!(
                    "source {}: there is no such queue yet; the worker makes it when it starts, unless \"declare = false\"",
                    named.name
                )),
                Err(error) => Finding::Bad(format!("source {}: {}", named.name, with_advice(&error))),
            });
        }
    }
    for named in &config.sinks {
        if let Some(examined) = named.component.examine() {
            findings.extend(about("sink", &named.name, look(examined)));
        }
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

fn look(examined: Examination<'_>) -> Vec<Finding> {
    let asked = async { Ok(tokio::time::timeout(2 * TIMEOUT, examined).await) };
    match block_on(asked) {
        Ok(Ok(findings)) => findings,
        Ok(Err(_)) => vec![Finding::Bad(format!("no answer within {:?}", 2 * TIMEOUT))],
        Err(error) => vec![Finding::Bad(error)],
    }
}

/// The directory of checkpoints, spools and dead letters.
fn state_dir(path: &Path) -> Finding {
    let probe = path.join(format!(".doctor-{}", std::process::id()));
    // The worker creates it at its start.
    let written = std::fs::create_dir_all(path).and_then(|()| std::fs::write(&probe, b""));
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(()) => Finding::Good(format!("state_dir {} can be written to", path.display())),
        Err(error) => Finding::Bad(format!(
            "state_dir {}: {error}; it must belong to the user that runs the worker",
            path.display()
        )),
    }
}

fn about(kind: &str, name: &str, findings: Vec<Finding>) -> Vec<Finding> {
    let named = |text: String| format!("{kind} {name}: {text}");
    let named = |finding| match finding {
        Finding::Good(text) => Finding::Good(named(text)),
        Finding::Warning(text) => Finding::Warning(named(text)),
        Finding::Bad(text) => Finding::Bad(named(text)),
    };
    findings.into_iter().map(named).collect()
}

async fn timed<T>(asked: crate::source::Operation<'_, T>) -> Result<T, String> {
    tokio::time::timeout(TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

fn with_advice(error: &str) -> String {
    let advice = [
        ("ACCESS_REFUSED", "check user and password in \"url\""),
        (
            "NOT_ALLOWED",
            "may this user use that virtual host, the part of \"url\" behind the port (\"/%2f\" is the usual one)?",
        ),
        ("uthorization", "check user and password in \"url\""),
        ("refused", "is it running there, and does it listen on that address?"),
    ];
    let found = advice.iter().find(|(sign, _)| error.contains(sign));
    found.map_or_else(|| error.to_owned(), |(_, advice)| format!("{error}; {advice}"))
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
