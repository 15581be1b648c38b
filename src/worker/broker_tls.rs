//! TLS to brokers: trusted authorities and the worker's client certificate.
//!
//! ```toml
//! posts = { type = "redis_streams", url = "rediss://redis.example.com:6379/0", ca_file = "ca.pem", cert_file = "worker.pem", key_file = "worker.key", … }
//! ```
//!
//! Without `ca_file` the system's certificate authorities are trusted; without `cert_file` and `key_file` the worker
//! presents no certificate.

use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::section::Section;

/// A file that existed and was valid when the configuration was read.
#[derive(Clone, Debug)]
pub struct Pem {
    pub path: PathBuf,
    pub text: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct BrokerTls {
    pub authorities: Option<Pem>,
    /// Certificate and key.
    pub identity: Option<(Pem, Pem)>,
}

impl BrokerTls {
    /// `scheme` is the prefix of a TLS URL, `is_tls` whether this URL has it.
    pub fn read(section: &Section<'_>, scheme: &str, is_tls: bool) -> Self {
        for key in ["ca_file", "cert_file", "key_file"] {
            if section.has(key) && !is_tls {
                section.complain_at(key, format!("belongs to a URL that begins with \"{scheme}\""));
            }
        }
        for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
            if section.has(one) && !section.has(other) {
                section.complain_at(one, format!("needs {other}"));
            }
        }
        let pem = |key, check: fn(&[u8]) -> bool, what: &str| {
            let path = section.optional::<PathBuf>(key)?;
            let read = read(&path, check, what);
            read.map_err(|error| section.complain_at(key, error)).ok()
        };
        let is_certificate = |text: &[u8]| CertificateDer::from_pem_slice(text).is_ok();
        let is_key = |text: &[u8]| PrivateKeyDer::from_pem_slice(text).is_ok();
        let authorities = pem("ca_file", is_certificate, "certificate");
        let certificate = pem("cert_file", is_certificate, "certificate");
        let key = pem("key_file", is_key, "private key");
        Self {
            authorities,
            identity: certificate.zip(key),
        }
    }
}

fn read(path: &Path, check: fn(&[u8]) -> bool, what: &str) -> Result<Pem, String> {
    let text = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if !check(&text) {
        return Err(format!("{} holds no {what} in PEM", path.display()));
    }
    Ok(Pem {
        path: path.to_owned(),
        text,
    })
}
