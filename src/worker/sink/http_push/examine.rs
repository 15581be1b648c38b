//! Checks each node for a publisher location and its capabilities.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::{ACCEPT, DATE, HOST, HeaderValue};
use hyper::http::response::Parts;

use super::config::{EPOCH, HttpPush, MAX_ANSWER_BYTES};
use super::request::publish_path;
use super::{batch, reconcile};
use crate::client::{Address, Pool};
use crate::event::OrderedId;
use crate::ops::finding::Finding;
use crate::redis_link::clock;

/// The newest id of a channel, in the answer to a GET at a publisher location that keeps ids in order.
const NEWEST_ID: &str = "x-nginx-pushstream-event-id";
/// Header by which a publisher location, asked for its epoch, says that it drops duplicates.
const IDEMPOTENT: &str = "x-nginx-pushstream-idempotent";
/// Short, for an interactive `doctor`.
const TIMEOUT: Duration = Duration::from_secs(3);

impl HttpPush {
    pub async fn look(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for address in &self.nodes {
            let seen = self.look_at(address).await;
            let named = |text: String| format!("{address} {text}");
            findings.extend(seen.into_iter().map(|finding| match finding {
                Finding::Good(text) => Finding::Good(named(text)),
                Finding::Warning(text) => Finding::Warning(named(text)),
                Finding::Bad(text) => Finding::Bad(named(text)),
            }));
        }
        findings
    }

    /// The newest ordered id of this channel at any node. A node that does not know the channel, or keeps no order,
    /// reports none.
    pub async fn ask_newest_id(&self, channel: &str) -> Option<OrderedId> {
        let path = publish_path(&self.path, &[channel.to_owned()]);
        let mut newest = None;
        for address in &self.nodes {
            let own = HeaderValue::from_str(&address.host_header()).ok();
            let (Some(host), Ok(request)) = (self.host.clone().or(own), Request::get(&path).body(Full::default()))
            else {
                continue;
            };
            let pool = Pool::new(address.clone(), self.tls.clone(), MAX_ANSWER_BYTES);
            let mut request = request;
            request.headers_mut().insert(HOST, host);
            if let Ok((parts, _)) = ask(&pool, request).await {
                let id = parts.headers.get(NEWEST_ID).and_then(|id| id.to_str().ok());
                newest = newest.max(id.and_then(OrderedId::parse));
            }
        }
        newest
    }

    async fn look_at(&self, address: &Address) -> Vec<Finding> {
        let own = HeaderValue::from_str(&address.host_header()).ok();
        let Some(host) = self.host.clone().or(own) else {
            return vec![Finding::Bad("is no host name".to_owned())];
        };
        let pool = Pool::new(address.clone(), self.tls.clone(), MAX_ANSWER_BYTES);
        let parts = match ask(&pool, batch::question(self, &host)).await {
            Ok((parts, _)) => parts,
            Err(error) => {
                return vec![Finding::Bad(format!(
                    "does not answer: {}",
                    with_advice(address, &error)
                ))];
            }
        };
        let mut findings = vec![self.judge(&parts)];
        if matches!(findings[0], Finding::Good(_)) {
            findings.extend(self.offers(&parts));
        }
        findings.extend(ahead(&parts).and_then(clock).map(|finding| match finding {
            Finding::Warning(text) => Finding::Warning(format!("is there, but {text}")),
            other => other,
        }));
        if let Some(path) = &self.statistics {
            findings.push(look_at_statistics(&pool, &host, path).await);
        }
        findings
    }

    fn judge(&self, parts: &Parts) -> Finding {
        let path = &self.batch_path;
        match parts.status.as_u16() {
            200..=299 => Finding::Good(format!("answers at {path}")),
            401 | 403 => Finding::Bad(format!(
                "answers {} at {path}: let this machine in there (\"allow\", \"auth_basic\", \"auth_request\")",
                parts.status
            )),
            404 | 405 => Finding::Bad(format!(
                "answers {} at {path}: there is no push_stream_publisher; check \"path\", \"host\" and nginx's locations",
                parts.status
            )),
            500..=599 => Finding::Bad(format!("answers {} at {path}: see nginx's error log", parts.status)),
            _ => Finding::Warning(format!(
                "answers {} at {path}: is that a push_stream_publisher?",
                parts.status
            )),
        }
    }

    fn offers(&self, parts: &Parts) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.batch > 0 && !batch::is_offered(parts) {
            findings.push(Finding::Warning(
                "takes one event to a POST: \"push_stream_batch_publish on\" makes it many times faster; the C module and old versions have none"
                    .to_owned(),
            ));
        }
        if !parts.headers.contains_key(EPOCH) {
            findings.push(Finding::Warning(
                "does not say which memory it has, as the C module and old versions: nobody notices an upgrade of its binary (USR2)".to_owned(),
            ));
        }
        if !parts.headers.contains_key(IDEMPOTENT) {
            findings.push(Finding::Warning(
                "does not say that it takes an id only once: without \"push_stream_idempotent_publish on\" readers may see an event twice after a crash, \
                 a lost connection or a hand-over"
                    .to_owned(),
            ));
        }
        findings
    }
}

async fn ask(pool: &Pool, request: Request<Full<Bytes>>) -> Result<(Parts, Vec<u8>), String> {
    match tokio::time::timeout(TIMEOUT, pool.request(request)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("nothing within {TIMEOUT:?}")),
    }
}

/// The version of worker and module, if they are of one release.
const OURS: &str = env!("CARGO_PKG_VERSION");

async fn look_at_statistics(pool: &Pool, host: &HeaderValue, path: &str) -> Finding {
    let request = Request::get(path)
        .header(HOST, host.clone())
        .header(ACCEPT, "application/json");
    let Ok(request) = request.body(Full::<Bytes>::default()) else {
        return Finding::Bad(format!("statistics = \"{path}\" is no path"));
    };
    let answer = ask(pool, request).await.and_then(|(parts, body)| {
        let version = parts
            .headers
            .get("X-Nginx-PushStream-Tag")
            .and_then(|tag| tag.to_str().ok());
        Ok((reconcile::published(&parts, &body)?, version.map(str::to_owned)))
    });
    match answer {
        Ok((count, version)) => match version {
            Some(theirs) if theirs != OURS => Finding::Warning(format!(
                "counts {count} published messages at {path}; its module is version {theirs}, this worker {OURS}: they are tested together in one version"
            )),
            _ => Finding::Good(format!("counts {count} published messages at {path}")),
        },
        Err(error) => Finding::Bad(format!(
            "tells no figures at {path}: {error}; check \"statistics\" and the location with push_stream_channels_statistics"
        )),
    }
}

/// The node's clock minus ours, in milliseconds; the node's has whole seconds.
fn ahead(parts: &Parts) -> Option<i128> {
    let theirs = httpdate::parse_http_date(parts.headers.get(DATE)?.to_str().ok()?).ok()?;
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let (theirs, ours) = (since(theirs)?, since(SystemTime::now())?);
    Some((i128::from(theirs.as_secs()) - i128::from(ours.as_secs())) * 1000)
}

fn with_advice(address: &Address, error: &str) -> String {
    match address {
        Address::Unix(path) if !path.exists() => {
            format!("{error}; is nginx running, with \"listen unix:{};\"?", path.display())
        }
        Address::Unix(path) if is_refused(error) => format!(
            "{error}; nobody listens at {}: is nginx running? A killed one leaves the file behind, and the next does not start until it is removed",
            path.display()
        ),
        Address::Unix(path) => format!("{error}; may this user write to {}?", Path::display(path)),
        Address::Tcp { .. } if is_refused(error) => {
            format!("{error}; is nginx running there, and does it listen on that port?")
        }
        Address::Tcp { .. } => error.to_owned(),
    }
}

fn is_refused(error: &str) -> bool {
    error.contains("refused")
}
