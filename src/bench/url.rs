//! URL templates for publishing and subscribing, for any HTTP server.
//!
//! `http://127.0.0.1:8080/ev/{channel}` names one target and a path in which `{channel}` stands for the channel's name.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use anyhow::{Context, bail};

/// An `http://` or `https://` URL whose path and query may contain `{channel}`, any number of times.
#[derive(Clone, Debug)]
pub struct UrlTemplate {
    encrypted: bool,
    /// As written, for the `Host` header: `127.0.0.1:8080`.
    authority: String,
    address: SocketAddr,
    /// The path and query, split at the `{channel}` placeholders: always one piece more than placeholders.
    pieces: Vec<String>,
}

impl UrlTemplate {
    /// Whether this is an `https://` URL.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// The same as an `https://` URL.
    pub fn to_encrypted(&self) -> anyhow::Result<Self> {
        format!("https://{}{}", self.authority, self.path("{channel}")).parse()
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Path and query for `channel`.
    pub fn path(&self, channel: &str) -> String {
        self.pieces.join(channel)
    }

    /// Whether each channel has its own URL.
    pub fn names_channel(&self) -> bool {
        self.pieces.len() > 1
    }
}

impl FromStr for UrlTemplate {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> anyhow::Result<Self> {
        let (encrypted, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            (None, None) => bail!("\"{url}\" does not start with http:// or https://"),
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
            format!("{authority}:{}", if encrypted { 443 } else { 80 })
        };
        let address = with_port
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve \"{authority}\" of \"{url}\""))?
            .next()
            .with_context(|| format!("\"{authority}\" of \"{url}\" has no address"))?;
        Ok(Self {
            encrypted,
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
    fn a_url_can_be_encrypted() {
        let url: UrlTemplate = "http://[::1]/{channel}/x".parse().unwrap();
        let encrypted = url.to_encrypted().unwrap();
        assert!(!url.is_encrypted() && encrypted.is_encrypted());
        assert_eq!(
            (encrypted.address().port(), encrypted.path("c")),
            (443, "/c/x".to_owned())
        );
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        for url in [
            "ftp://127.0.0.1/",
            "127.0.0.1:80/",
            "http://127.0.0.1/a b",
            "http://127.0.0.1:notaport/",
        ] {
            assert!(url.parse::<UrlTemplate>().is_err(), "{url}");
        }
    }
}
