//! What a source reads from, or a sink writes to: is it the same place?

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::client::Address;
use crate::clock::{Timestamp, may_name};

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
    pub fn feeds(&self, read: &Self) -> bool {
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
pub fn resolved(path: &Path) -> PathBuf {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        use crate::config::value::FromText;
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
