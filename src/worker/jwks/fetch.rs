//! One attempt to get a JWK Set: https only, within one server, with a bound on everything.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT, AGE, CACHE_CONTROL, CONTENT_ENCODING, ETAG, HOST, HeaderName, IF_NONE_MATCH, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use hyper::http::response::Parts;
use hyper::{Method, Request, StatusCode};
use push_stream_core::token::keys::LONGEST_FILE;

use super::schedule::{Freshness, retry_after};
use crate::client::{self, Address, Tls};

/// Redirects that are followed for one set.
const REDIRECTS: usize = 5;

/// Where the set is.
#[derive(Debug)]
pub struct Server {
    address: Address,
    path: String,
    tls: Option<Tls>,
    timeout: Duration,
}

/// What the server says.
#[derive(Debug)]
pub enum Answer {
    /// What was there before is there now.
    Unchanged,
    Set {
        bytes: Vec<u8>,
        tag: Option<String>,
    },
}

/// Why there is no set.
#[derive(Debug)]
pub struct Failure {
    pub text: String,
    /// When the server wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self {
            text,
            retry_after: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, self.path)
    }
}

impl Server {
    /// `tls` are the authorities to trust; `None` means those of this machine. `timeout` is for all of an attempt.
    pub fn new(url: &str, tls: Option<Tls>, timeout: Duration) -> Result<Self, String> {
        let url = url.split_once('#').map_or(url, |(url, _)| url);
        let (address, path) = Address::split(url)?;
        if !is_https(&address) {
            return Err(format!(
                "\"{url}\" is not https: whoever is on the way could put keys of their own in"
            ));
        }
        Ok(Self {
            address,
            path,
            tls,
            timeout,
        })
    }

    /// Asks for the set, or whether it is another one than that with this tag.
    pub async fn ask(&self, tag: Option<&str>) -> Result<(Freshness, Answer), Failure> {
        match tokio::time::timeout(self.timeout, self.follow(tag)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("{self}: no whole answer within {:?}", self.timeout).into()),
        }
    }

    async fn follow(&self, tag: Option<&str>) -> Result<(Freshness, Answer), Failure> {
        let mut path = self.path.clone();
        for _ in 0..=REDIRECTS {
            let (parts, bytes) = self.request(&path, tag).await?;
            match parts.status {
                StatusCode::OK => {
                    let encoding = text(&parts, CONTENT_ENCODING).filter(|coding| *coding != "identity");
                    if let Some(encoding) = encoding {
                        return Err(
                            format!("{self}: the answer is coded as {encoding}, which was not asked for").into(),
                        );
                    }
                    let tag = text(&parts, ETAG).map(str::to_owned);
                    return Ok((freshness(&parts), Answer::Set { bytes, tag }));
                }
                StatusCode::NOT_MODIFIED if tag.is_some() => return Ok((freshness(&parts), Answer::Unchanged)),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let target =
                        text(&parts, LOCATION).ok_or_else(|| format!("{self}: a redirect without a target"))?;
                    path = self.redirected(&path, target)?;
                }
                status => {
                    return Err(Failure {
                        text: format!("{self} answers {status}"),
                        retry_after: text(&parts, RETRY_AFTER).and_then(retry_after),
                    });
                }
            }
        }
        Err(format!("{self}: more than {REDIRECTS} redirects").into())
    }

    async fn request(&self, path: &str, tag: Option<&str>) -> Result<(Parts, Vec<u8>), Failure> {
        let failed = |error: &dyn fmt::Display| Failure::from(format!("{self}: {error}"));
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(HOST, self.address.host_header())
            .header(ACCEPT, "application/jwk-set+json, application/json;q=0.9, */*;q=0.1")
            .header(USER_AGENT, concat!("push-stream-worker/", env!("CARGO_PKG_VERSION")));
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let request = request.body(Full::<Bytes>::default()).map_err(|error| failed(&error))?;
        let mut sender = client::connect(&self.address, self.tls.as_ref())
            .await
            .map_err(|error| failed(&error))?;
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        client::read_body(response, LONGEST_FILE)
            .await
            .map_err(|error| failed(&error))
    }

    /// The path that a redirect from `path` leads to, if it stays with this server.
    fn redirected(&self, path: &str, target: &str) -> Result<String, Failure> {
        let target = target.split_once('#').map_or(target, |(target, _)| target);
        let bad = |problem: &dyn fmt::Display| Failure::from(format!("{self}: redirect to \"{target}\": {problem}"));
        let url = if target.starts_with("//") {
            format!("https:{target}")
        } else if target.starts_with('/') {
            format!("{}{target}", self.address)
        } else if target.contains("://") {
            target.to_owned()
        } else {
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{}{directory}/{target}", self.address)
        };
        let (address, path) = Address::split(&url).map_err(|error| bad(&error))?;
        if address != self.address {
            return Err(bad(&"another server is not followed"));
        }
        Ok(path)
    }
}

fn is_https(address: &Address) -> bool {
    matches!(address, Address::Tcp { tls: true, .. })
}

fn text(parts: &Parts, name: HeaderName) -> Option<&str> {
    parts.headers.get(name)?.to_str().ok()
}

fn freshness(parts: &Parts) -> Freshness {
    let age = text(parts, AGE).and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    let control = parts.headers.get_all(CACHE_CONTROL).iter();
    let directives: Vec<&str> = control.filter_map(|value| value.to_str().ok()).collect();
    Freshness::read(&directives.join(","), Duration::from_secs(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Result<Server, String> {
        Server::new(url, None, Duration::from_secs(1))
    }

    #[test]
    fn only_https_is_a_place_for_keys() {
        assert_eq!(
            server("https://Login.example.org/keys?v=1#x").unwrap().to_string(),
            "https://login.example.org:443/keys?v=1"
        );
        for bad in [
            "http://login.example.org/keys",
            "unix:/run/x.sock:/keys",
            "login.example.org",
            "https://",
            "ftp://a/keys",
        ] {
            assert!(server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_stay_with_their_server() {
        let server = server("https://login.example.org/a/keys?v=1").unwrap();
        for (target, path) in [
            ("/other", "/other"),
            ("/other?a=b#c", "/other?a=b"),
            ("keys2", "/a/keys2"),
            ("https://login.example.org/b", "/b"),
            ("https://LOGIN.example.org:443/b", "/b"),
            ("//login.example.org/b", "/b"),
        ] {
            let found = server.redirected("/a/keys?v=1", target);
            assert_eq!(found.map_err(|failure| failure.text), Ok(path.to_owned()), "{target}");
        }
        for target in [
            "https://login.example.org:444/b",
            "http://login.example.org/b",
            "http://login.example.org:443/b",
            "https://example.org/b",
            "https://login.example.org.evil/b",
            "https://login.example.org@evil/b",
            "//evil/b",
            "ftp://login.example.org/b",
        ] {
            assert!(server.redirected("/a/keys?v=1", target).is_err(), "{target}");
        }
    }
}
