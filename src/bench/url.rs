//! URL templates: where to publish and where to subscribe, for any server that speaks HTTP.
//!
//! `http://127.0.0.1:8080/ev/{channel}` names one target and a path in which `{channel}` stands for the channel's name.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, bail};

/// An `http://` URL whose path and query may hold `{channel}`, any number of times.
#[derive(Clone, Debug)]
pub struct UrlTemplate {
    /// As written, for the `Host` header: `127.0.0.1:8080`.
    authority: String,
    address: SocketAddr,
    /// The path and query, cut where a channel's name belongs: always one piece more than there are names.
    pieces: Vec<String>,
}

impl UrlTemplate {
    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Path and query for `channel`.
    pub fn path(&self, channel: &str) -> String {
        self.pieces.join(channel)
    }

    /// Whether each channel has a URL of its own.
    pub fn names_channel(&self) -> bool {
        self.pieces.len() > 1
    }
}

impl FromStr for UrlTemplate {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("\"{url}\" does not start with http://");
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            bail!("\"{url}\" holds a blank or a control character: percent-encode it");
        }
        let with_port = if authority.parse::<SocketAddr>().is_ok() || has_port(authority) {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let address = with_port
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve \"{authority}\" of \"{url}\""))?
            .next()
            .with_context(|| format!("\"{authority}\" of \"{url}\" has no address"))?;
        Ok(Self {
            authority: authority.to_owned(),
            address,
            pieces: path.split("{channel}").map(str::to_owned).collect(),
        })
    }
}

/// `host:80` and `[::1]:80` have a port, `host` and `[::1]` have none.
fn has_port(authority: &str) -> bool {
    match authority.rsplit_once(':') {
        Some((host, port)) => port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_is_put_in_everywhere() {
        let url: UrlTemplate = "http://127.0.0.1:8080/{channel}/x?id={channel}".parse().unwrap();
        assert_eq!(url.path("a1"), "/a1/x?id=a1");
        assert_eq!(url.authority(), "127.0.0.1:8080");
        assert_eq!(url.address(), "127.0.0.1:8080".parse().unwrap());
        assert!(url.names_channel());
    }

    #[test]
    fn port_and_path_have_defaults() {
        let url: UrlTemplate = "http://127.0.0.1".parse().unwrap();
        assert_eq!((url.address().port(), url.path("c")), (80, "/".to_owned()));
        let six: UrlTemplate = "http://[::1]:81/x".parse().unwrap();
        assert_eq!(six.address(), "[::1]:81".parse().unwrap());
        assert_eq!("http://[::1]/x".parse::<UrlTemplate>().unwrap().address().port(), 80);
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for url in [
            "https://127.0.0.1/",
            "127.0.0.1:80/",
            "http://127.0.0.1/a b",
            "http://127.0.0.1:notaport/",
        ] {
            assert!(url.parse::<UrlTemplate>().is_err(), "{url}");
        }
    }
}
