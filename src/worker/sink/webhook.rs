//! `webhook`: one signed POST per event to an external server.
//!
//! ```toml
//! partner = { type = "webhook", url = "https://example.com/hook", secret = { file = "keys/partner.key" } }
//! ```
//!
//! Headers as in the Standard Webhooks specification 1.0: `webhook-id` (the event id, the same in every attempt), `webhook-timestamp` (Unix seconds of
//! this attempt) and `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`. The key file holds the secret, at
//! least 24 bytes, as it is, or as `whsec_` and base64. 2xx is accepted; 408, 425, 429, 5xx and no answer are retried in place; anything else parks.
//! With `required = false` the source does not wait for this sink.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use sha2::Sha256;

use super::{Delivery, Kind, LaneSink, RunningSink, Scene, Sink, Verdict};
use crate::client::{Address, Pool, Tls};
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::engine::sequencer::Reservation;
use crate::event::Event;
use crate::retry::{Backoff, Policy};

pub const KIND: Kind = Kind {
    name: "webhook",
    about: "one signed POST per event",
    read,
};

/// The body of a webhook's answer is not used.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// 192 bits, the minimum of the specification.
const SECRET_BYTES: usize = 24;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("push-stream-worker/", env!("CARGO_PKG_VERSION")));

/// The target of POSTs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    address: Address,
    path: String,
}

impl FromText for Target {
    const WANTED: &'static str = "a URL such as \"https://example.com/hook\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let (address, path) = Address::split(text)?;
        Ok(Self { address, path })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, self.path)
    }
}

impl Target {
    pub fn new(address: Address, path: String) -> Self {
        Self { address, path }
    }

    fn request(
        &self,
        content_type: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.parse().map_err(|error| format!("{error}"))?;
        let map = request.headers_mut();
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
        map.insert(HOST, value(&self.address.host_header())?);
        map.insert(CONTENT_TYPE, value(content_type)?);
        map.insert(USER_AGENT, AGENT);
        for (name, text) in headers {
            map.insert(HeaderName::from_static(name), value(text)?);
        }
        Ok(request)
    }

    /// Sends one POST on its own connection.
    pub async fn post(
        &self,
        content_type: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<StatusCode, String> {
        let request = self.request(content_type, headers, body)?;
        let pool = Pool::new(self.address.clone(), None, MAX_ANSWER_BYTES);
        let (parts, _) = pool.request(request).await.map_err(|error| error.to_string())?;
        Ok(parts.status)
    }
}

#[derive(Clone)]
pub struct Webhook {
    target: Target,
    /// `None`: requests are not signed.
    secret: Option<Arc<[u8]>>,
    content_type: String,
    /// For one attempt, connecting included.
    timeout: Duration,
    retry: Policy,
    required: bool,
    tls: Option<Tls>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Sink>> {
    let target = section.required("url");
    let secret = section.table("secret", |secret| {
        let file = secret.required::<PathBuf>("file")?;
        read_secret(&file)
            .map_err(|error| secret.complain_at("file", error))
            .ok()
    });
    let timeout = section.or("timeout", Duration::from_secs(10));
    let retry = section.table("retry", Policy::read).unwrap_or_default();
    let tls = section.optional::<PathBuf>("ca_file");
    let tls = tls.and_then(|file| {
        Tls::of_file(&file)
            .map_err(|error| section.complain_at("ca_file", error))
            .ok()
    });
    Some(Arc::new(Webhook {
        content_type: section.or("content_type", "application/json".to_owned()),
        required: section.or("required", true),
        target: target?,
        secret: secret.flatten().map(Arc::from),
        timeout,
        retry,
        tls,
    }))
}

fn read_secret(file: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let bytes = bytes.trim_ascii();
    let secret = match bytes.strip_prefix(b"whsec_") {
        Some(text) => BASE64_STANDARD
            .decode(text)
            .map_err(|error| format!("{}: {error}", file.display()))?,
        None => bytes.to_vec(),
    };
    if secret.len() < SECRET_BYTES {
        return Err(format!("{} holds fewer than {SECRET_BYTES} bytes", file.display()));
    }
    Ok(secret)
}

impl Sink for Webhook {
    fn is_required(&self) -> bool {
        self.required
    }

    fn addresses(&self) -> Vec<(Address, Option<Tls>)> {
        vec![(self.target.address.clone(), self.tls.clone())]
    }

    fn writes(&self) -> Vec<Endpoint> {
        vec![Endpoint::Server(self.target.address.clone())]
    }

    fn start(&self, scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>> {
        let name = scene.name.to_owned();
        Ok(Arc::new(Running {
            name,
            config: self.clone(),
        }))
    }
}

struct Running {
    name: String,
    config: Webhook,
}

impl RunningSink for Running {
    fn open(&self) -> Rc<dyn LaneSink> {
        let Webhook { target, tls, .. } = &self.config;
        let pool = Pool::new(target.address.clone(), tls.clone(), MAX_ANSWER_BYTES);
        let (name, config) = (self.name.clone(), self.config.clone());
        Rc::new(Lane(Rc::new(Hook { name, config, pool })))
    }
}

struct Lane(Rc<Hook>);

impl LaneSink for Lane {
    fn deliver(&self, event: Arc<Event>, _reservation: Option<Reservation>) -> Delivery {
        let hook = Rc::clone(&self.0);
        Box::pin(async move { hook.deliver(&event).await })
    }
}

struct Hook {
    name: String,
    config: Webhook,
    pool: Pool,
}

impl Hook {
    async fn deliver(&self, event: &Event) -> Verdict {
        let Webhook { retry, timeout, .. } = &self.config;
        let mut backoff = Backoff::new(retry);
        for attempts in 1.. {
            if event.is_fenced() {
                return Verdict::Released;
            }
            let request = match self.request(event) {
                Ok(request) => request,
                Err(reason) => return Verdict::Refused { reason, attempts },
            };
            let answer = tokio::time::timeout(*timeout, self.pool.request(request)).await;
            let (failure, after) = match answer {
                Ok(Ok((parts, _))) if parts.status.is_success() => return Verdict::Accepted,
                Ok(Ok((parts, _))) => {
                    let status = parts.status;
                    if !matches!(status.as_u16(), 408 | 425 | 429 | 500..=599) {
                        let reason = format!("{}: {status}", self.config.target);
                        return Verdict::Refused { reason, attempts };
                    }
                    let after = parts
                        .headers
                        .get(RETRY_AFTER)
                        .and_then(|value| value.to_str().ok()?.parse().ok());
                    (status.to_string(), after.map_or(Duration::ZERO, Duration::from_secs))
                }
                Ok(Err(error)) => (error.to_string(), Duration::ZERO),
                Err(_) => (format!("no answer within {timeout:?}"), Duration::ZERO),
            };
            if attempts == 1 {
                tracing::warn!(
                    "sink {}: {}: {failure}; the event is retried",
                    self.name,
                    self.config.target
                );
            }
            let pause = backoff.pause().max(after).min(retry.max);
            if event.received_at.elapsed() + pause > retry.max_age {
                let reason = format!(
                    "{}: gave up at the age of {:?}: {failure}",
                    self.config.target, retry.max_age
                );
                return Verdict::Refused { reason, attempts };
            }
            tokio::time::sleep(pause).await;
        }
        Verdict::Released
    }

    fn request(&self, event: &Event) -> Result<Request<Full<Bytes>>, String> {
        let body = event.payload();
        let id = event.id.to_string();
        let seconds = (Timestamp::now().0 / 1000).to_string();
        let mut headers = vec![("webhook-id", id.clone()), ("webhook-timestamp", seconds.clone())];
        if let Some(secret) = &self.config.secret {
            headers.push(("webhook-signature", sign(secret, &id, &seconds, &body)));
        }
        self.config.target.request(&self.config.content_type, &headers, body)
    }
}

fn sign(secret: &[u8], id: &str, seconds: &str, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else {
        return String::new();
    };
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(seconds.as_bytes());
    mac.update(b".");
    mac.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The example of the Standard Webhooks specification.
        let secret = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(
            &secret,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "1614265330",
            b"{\"test\": 2432232314}",
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_raw_or_encoded_and_long_enough() {
        let dir = TempDir::new();
        let file = dir.path().join("key");
        std::fs::write(&file, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        assert_eq!(read_secret(&file).unwrap().len(), 24);
        std::fs::write(&file, "a raw secret of 24 bytes").unwrap();
        assert_eq!(read_secret(&file).unwrap(), b"a raw secret of 24 bytes");
        std::fs::write(&file, "short").unwrap();
        assert!(read_secret(&file).unwrap_err().contains("24 bytes"));
    }
}
