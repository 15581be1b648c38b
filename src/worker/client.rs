//! The HTTP client under `http_push`, `webhook`, alerts and the commands: one connection over TCP, TLS or a unix socket.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::response::Parts;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::value::FromText;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

/// The client end of a connection; it takes one request at a time.
pub type Sender = SendRequest<Full<Bytes>>;

/// Connecting or the exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("connection failed: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is longer than {0} bytes")]
    LongAnswer(usize),
}

impl Address {
    /// The value of the `Host` header.
    pub fn host_header(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp {
                tls: false,
                port: 80,
                host,
            }
            | Self::Tcp {
                tls: true,
                port: 443,
                host,
            } => bracketed(host),
            Self::Tcp { host, port, .. } => format!("{}:{port}", bracketed(host)),
        }
    }

    /// Splits `http://host:port/path?query` or `unix:/socket:/path`.
    pub fn split(text: &str) -> Result<(Self, String), String> {
        let split = match text.strip_prefix("unix:") {
            Some(rest) => rest.find(':').map(|at| at + "unix:".len()),
            None => text
                .find("://")
                .and_then(|at| Some(text[at + 3..].find(['/', '?'])? + at + 3)),
        };
        let (address, path) = match split {
            Some(at) => (&text[..at], text[at..].trim_start_matches(':')),
            None => (text, "/"),
        };
        if !path.starts_with('/') || path.parse::<Uri>().is_err() {
            return Err(format!("\"{path}\" is not a path"));
        }
        Ok((Self::from_text(address)?, path.to_owned()))
    }
}

/// The port as written. [`Uri`] accepts one that is out of range, and then reports none.
fn port_of(uri: &Uri) -> Result<Option<u16>, String> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let behind_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    let Some((_, port)) = behind_host.rsplit_once(':') else {
        return Ok(None);
    };
    match port.parse::<u16>() {
        Ok(number @ 1..) => Ok(Some(number)),
        _ => Err(format!("\"{port}\" is not a port: these are from 1 to 65535")),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

impl FromText for Address {
    const WANTED: &'static str =
        "a server such as \"http://127.0.0.1:8080\", \"https://push.example.com\" or \"unix:/run/nginx/pub.sock\"";

    fn from_text(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("\"unix:\" needs a path".to_owned())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let bad = || {
            format!(
                "\"{text}\" is not a server (examples: \"http://127.0.0.1:8080\", \"https://push.example.com\", \"unix:/run/nginx/pub.sock\")"
            )
        };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
            return Err(format!("\"{text}\": the path belongs into the key path"));
        }
        let port = port_of(&uri).map_err(|error| format!("\"{text}\": {error}"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(bad());
        }
        Ok(Self::Tcp {
            host: host.trim_matches(['[', ']']).to_ascii_lowercase(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            tls,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}:{port}", bracketed(host))
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Trusted certificate authorities.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// The system's certificate authorities; read once.
    pub fn of_this_machine() -> Self {
        static SHARED: OnceLock<Tls> = OnceLock::new();
        let read = || {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!("certificate authorities: {error}");
            }
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            Self::trusting(roots)
        };
        SHARED.get_or_init(read).clone()
    }

    /// Only the authorities in a PEM file.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let bad = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
            let certificate = certificate.map_err(|error| bad(&error))?;
            roots.add(certificate).map_err(|error| bad(&error))?;
        }
        if roots.is_empty() {
            return Err(bad(&"holds no certificate"));
        }
        Ok(Self::trusting(roots))
    }

    fn trusting(roots: RootCertStore) -> Self {
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }
}

/// Opens a connection. Call within a `LocalSet`.
pub async fn connect(address: &Address, tls: Option<&Tls>) -> Result<Sender, Error> {
    connect_watched(address, tls).await.map(|(sender, _)| sender)
}

/// Opens a connection; the second half of the result completes when the connection has ended.
pub async fn connect_watched(address: &Address, tls: Option<&Tls>) -> Result<(Sender, Rc<Notify>), Error> {
    match address {
        Address::Unix(path) => handshake(UnixStream::connect(path).await.map_err(Error::Connect)?).await,
        Address::Tcp {
            host,
            port,
            tls: is_tls,
        } => {
            let stream = TcpStream::connect((host.as_str(), *port))
                .await
                .map_err(Error::Connect)?;
            stream.set_nodelay(true).map_err(Error::Connect)?;
            if !is_tls {
                return handshake(stream).await;
            }
            let tls = tls.cloned().unwrap_or_else(Tls::of_this_machine);
            let name = ServerName::try_from(host.clone()).map_err(|error| Error::Connect(io::Error::other(error)))?;
            let stream = TlsConnector::from(tls.0)
                .connect(name, stream)
                .await
                .map_err(Error::Connect)?;
            handshake(stream).await
        }
    }
}

async fn handshake<S>(stream: S) -> Result<(Sender, Rc<Notify>), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let ended = Rc::new(Notify::new());
    let end = Rc::clone(&ended);
    // The task ends with the sender, which gets the same error.
    tokio::task::spawn_local(async move {
        drop(connection.await);
        end.notify_one();
    });
    Ok((sender, ended))
}

/// One thread's connections to one server.
#[derive(Debug)]
pub struct Pool {
    address: Address,
    tls: Option<Tls>,
    idle: RefCell<Vec<Sender>>,
    /// Longest response body in bytes.
    limit: usize,
}

impl Pool {
    pub fn new(address: Address, tls: Option<Tls>, limit: usize) -> Self {
        Self {
            address,
            tls,
            idle: RefCell::default(),
            limit,
        }
    }

    /// Sends on an idle connection, or on a new one.
    pub async fn request(&self, request: Request<Full<Bytes>>) -> Result<(Parts, Vec<u8>), Error> {
        while let Some(mut sender) = self.take_idle() {
            // The server may have closed it since; nothing was sent then, so try the next one.
            if sender.ready().await.is_err() {
                continue;
            }
            match self.send(sender, request.clone()).await {
                // The server may have closed the idle connection while the request was in transit: no sign of a fault,
                // retry.
                Err(Error::Http(_)) => break,
                other => return other,
            }
        }
        let sender = connect(&self.address, self.tls.as_ref()).await?;
        self.send(sender, request).await
    }

    fn take_idle(&self) -> Option<Sender> {
        self.idle.borrow_mut().pop()
    }

    async fn send(&self, mut sender: Sender, request: Request<Full<Bytes>>) -> Result<(Parts, Vec<u8>), Error> {
        let answer = sender.send_request(request).await?;
        let answer = read_body(answer, self.limit).await?;
        self.idle.borrow_mut().push(sender);
        Ok(answer)
    }
}

/// Reads a response body to its end, so that the connection can be reused.
pub async fn read_body(response: Response<Incoming>, limit: usize) -> Result<(Parts, Vec<u8>), Error> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > limit {
            return Err(Error::LongAnswer(limit));
        }
    }
    Ok((parts, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, printed, host) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:81/", "http://[::1]:81", "[::1]:81"),
            ("http://nginx", "http://nginx:80", "nginx"),
            ("https://nginx", "https://nginx:443", "nginx"),
            ("unix:run/pub.sock", "unix:run/pub.sock", "localhost"),
        ] {
            let address = Address::from_text(text).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.host_header().as_str()),
                (printed, host)
            );
        }
        for bad in [
            "",
            "127.0.0.1:8080",
            "http://",
            "http://a/pub",
            "ftp://a",
            "unix:",
            "http://u@a",
        ] {
            assert!(Address::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_splits_into_server_and_path() {
        let split = |text| Address::split(text).map(|(address, path)| (address.to_string(), path));
        assert_eq!(
            split("https://a/b?c=/d"),
            Ok(("https://a:443".into(), "/b?c=/d".into()))
        );
        assert_eq!(split("http://a"), Ok(("http://a:80".into(), "/".into())));
        assert_eq!(
            split("unix:/run/x.sock:/hook"),
            Ok(("unix:/run/x.sock".into(), "/hook".into()))
        );
        assert_eq!(split("unix:/run/x.sock"), Ok(("unix:/run/x.sock".into(), "/".into())));
        assert!(split("http://a/ b").is_err());
    }
}
