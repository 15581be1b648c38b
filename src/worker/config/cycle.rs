//! Does a sink's output come back through a source?
//!
//! Such an event would circulate for ever. Sources and sinks report their [`Endpoint`]; the cycle may run over several
//! pipelines.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::section::Problems;
use super::{LocatedSpec, Named};
use crate::client::Address;
use crate::clock::{Timestamp, may_name};
use crate::sink::Sink;
use crate::source::Source;

/// What a source reads from, or a sink writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    File(PathBuf),
    /// Dated files; a strftime pattern.
    Files(String),
    /// A stream on one server and database.
    RedisStream {
        server: String,
        stream: String,
    },
    /// An address where this worker accepts requests.
    Listener(SocketAddr),
    Server(Address),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Files(pattern) => write!(f, "file {pattern}"),
            Self::RedisStream { server, stream } => write!(f, "stream {stream} at {server}"),
            Self::Listener(address) => address.fmt(f),
            Self::Server(address) => address.fmt(f),
        }
    }
}

impl Endpoint {
    /// Does data written here appear at `read`?
    fn feeds(&self, read: &Self) -> bool {
        match (self, read) {
            (Self::Files(pattern), Self::File(path)) => {
                let pattern = resolved(Path::new(pattern));
                may_name(
                    &pattern.to_string_lossy(),
                    &resolved(path).to_string_lossy(),
                    Timestamp::now(),
                )
            }
            (Self::Server(Address::Tcp { host, port, .. }), Self::Listener(listener)) => {
                *port == listener.port() && is_reached_as(host, listener.ip())
            }
            (written, read) => written == read,
        }
    }
}

/// The absolute path, with symbolic links resolved as far as the path exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = Vec::new();
    let mut known = absolute.as_path();
    loop {
        if let Ok(real) = known.canonicalize() {
            return rest.iter().rev().fold(real, |path: PathBuf, part| path.join(part));
        }
        let (Some(name), Some(parent)) = (known.file_name(), known.parent()) else {
            return absolute;
        };
        rest.push(name.to_owned());
        known = parent;
    }
}

/// Does this host name or address mean a server that listens there?
fn is_reached_as(host: &str, listener: IpAddr) -> bool {
    let address = match host.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) if host.eq_ignore_ascii_case("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        // A name's address may change, and resolving it needs the network.
        Err(_) => return false,
    };
    let is_loopback_name = !host.starts_with(|c: char| c.is_ascii_digit()) && listener.is_loopback();
    address == listener
        || is_loopback_name
        // An address that can be bound belongs to this machine.
        || (listener.is_unspecified() && UdpSocket::bind((address, 0)).is_ok())
}

/// Reports each sink of a pipeline that feeds its own source, directly or through other pipelines.
pub(super) fn refuse(
    pipelines: &[LocatedSpec],
    sources: &[Named<Box<dyn Source>>],
    sinks: &[Named<Arc<dyn Sink>>],
    park_path: &Path,
    problems: &Problems,
) {
    let read: Vec<Option<Endpoint>> = sources.iter().map(|source| source.component.reads()).collect();
    let fed_by = |sink: usize| -> Vec<(usize, &Endpoint)> {
        let written = sinks[sink].component.writes();
        let fed = read
            .iter()
            .enumerate()
            .filter_map(|(index, place)| Some((index, place.as_ref()?)));
        fed.filter(|(_, place)| written.iter().any(|one| one.feeds(place)))
            .collect()
    };
    // Steps from source to source, over each sink of each pipeline.
    let mut steps = Vec::new();
    for (pipeline, located) in pipelines.iter().enumerate() {
        for (position, &sink) in located.spec.sinks.iter().enumerate() {
            for (to, place) in fed_by(sink) {
                steps.push((located.spec.source, to, pipeline, position, place));
            }
        }
    }
    for &(from, to, pipeline, position, place) in &steps {
        let Some(way) = way_between(to, from, &steps) else {
            continue;
        };
        let name = &pipelines[pipeline].sinks[position];
        let source = &sources[to].name;
        let mut text = format!(
            "a cycle: \"{}\" writes to {place}, which source \"{source}\" reads",
            name.value
        );
        for pipeline in way {
            text += &format!(", and pipeline \"{}\" leads back", pipelines[pipeline].spec.name);
        }
        problems.add(name.at, name.key.clone(), text);
    }
    for (source, place) in sources.iter().zip(&read) {
        let parked = Endpoint::File(resolved(park_path));
        if matches!(place, Some(Endpoint::File(path)) if Endpoint::File(resolved(path)) == parked) {
            problems.add(
                source.at,
                format!("source.{}.path", source.name),
                format!(
                    "a cycle: {} is where this worker parks what it cannot deliver; \"push-stream-worker park retry\" tries that again",
                    park_path.display()
                ),
            );
        }
    }
}

/// The pipelines on the way from one source to another; none if they are the same.
fn way_between(from: usize, to: usize, steps: &[(usize, usize, usize, usize, &Endpoint)]) -> Option<Vec<usize>> {
    let mut ways = vec![(from, Vec::new())];
    let mut seen = vec![from];
    while let Some((at, way)) = ways.pop() {
        if at == to {
            return Some(way);
        }
        for &(_, next, pipeline, ..) in steps.iter().filter(|step| step.0 == at) {
            if !seen.contains(&next) {
                seen.push(next);
                let longer = way.iter().copied().chain([pipeline]).collect();
                ways.push((next, longer));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        use crate::config::section::FromText;
        Address::from_text(text).unwrap()
    }

    #[test]
    fn a_listener_is_known_by_all_its_addresses() {
        let listener = |text: &str| Endpoint::Listener(text.parse().unwrap());
        for (server, at, expected) in [
            ("http://127.0.0.1:80", "127.0.0.1:80", true),
            ("http://127.0.0.1:80", "0.0.0.0:80", true),
            ("http://localhost:80", "127.0.0.1:80", true),
            ("http://localhost:80", "0.0.0.0:80", true),
            ("http://127.0.0.1:81", "127.0.0.1:80", false),
            ("http://127.0.0.2:80", "127.0.0.1:80", false),
            ("http://192.0.2.1:80", "0.0.0.0:80", false),
            ("http://elsewhere:80", "127.0.0.1:80", false),
        ] {
            let server = Endpoint::Server(address(server));
            assert_eq!(server.feeds(&listener(at)), expected, "{server} {at}");
        }
    }
}
