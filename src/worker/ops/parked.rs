//! Dead letters at the admin address: `GET /parked`, `POST /parked/retry`.
//!
//! Both run this program's own `park` command: an event that kills whoever tries it does not kill the running worker.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// As many as an operator looks at.
const SHOWN: usize = 100;
/// Browsers cannot send it to other origins.
const HEADER: &str = "x-nginx-pushstream-console";

/// The dead letters of a configuration.
#[derive(Clone, Debug)]
pub struct Parked {
    config: PathBuf,
    may_retry: bool,
    is_busy: Arc<AtomicBool>,
}

/// A status, and JSON.
pub type Told = (StatusCode, Value);

impl Parked {
    pub fn new(config: &Path, may_retry: bool) -> Self {
        Self {
            config: config.to_owned(),
            may_retry,
            is_busy: Arc::default(),
        }
    }

    /// Answers a request for `/parked` or something below it.
    pub async fn answer<B>(self, request: Request<B>) -> Told {
        let refused = |status, explain: &str| (status, json!({"explain": explain}));
        match (request.uri().path(), request.method()) {
            ("/parked", &Method::GET) => self.run(vec!["list".into(), "--json".into()], listed).await,
            ("/parked", _) => refused(StatusCode::METHOD_NOT_ALLOWED, "use GET"),
            ("/parked/retry", &Method::POST) if !self.may_retry => refused(
                StatusCode::FORBIDDEN,
                "retry = true is not set under [admin] of the worker",
            ),
            ("/parked/retry", &Method::POST) if !request.headers().contains_key(HEADER) => refused(
                StatusCode::FORBIDDEN,
                "the request needs the header X-Nginx-PushStream-Console",
            ),
            ("/parked/retry", &Method::POST) => {
                let id = percent_encoding::percent_decode_str(request.uri().query().unwrap_or_default());
                let which = match id.decode_utf8() {
                    Ok(id) if id.is_empty() => vec!["retry".into(), "--all".into()],
                    Ok(id) => vec!["retry".into(), "--".into(), id.into_owned()],
                    Err(_) => return refused(StatusCode::BAD_REQUEST, "the id is no UTF-8"),
                };
                self.run(which, retried).await
            }
            ("/parked/retry", _) => refused(StatusCode::METHOD_NOT_ALLOWED, "use POST"),
            _ => refused(StatusCode::NOT_FOUND, "there is /parked and /parked/retry"),
        }
    }

    /// Runs the command, one at a time, in a thread of its own: nothing waits for it at a stop.
    async fn run(self, words: Vec<String>, tell: fn(Ran) -> Told) -> Told {
        let Some(busy) = Busy::new(&self.is_busy) else {
            return failed(
                StatusCode::SERVICE_UNAVAILABLE,
                "another of these requests is being answered",
            );
        };
        let (done, result) = oneshot::channel();
        let work = move || {
            let _busy = busy;
            // Whoever asked may be gone.
            let _ = done.send(run(&self.config, words));
        };
        let started = std::thread::Builder::new().name("parked".to_owned()).spawn(work);
        match (started, result.await) {
            (Ok(_), Ok(Ok(ran))) => tell(ran),
            (Err(error), _) | (_, Ok(Err(error))) => {
                failed(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot run park: {error}"))
            }
            (_, Err(_)) => failed(StatusCode::INTERNAL_SERVER_ERROR, "park has failed"),
        }
    }
}

/// Held while a command runs.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn new(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::Acquire)).then(|| Self(Arc::clone(flag)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct Ran {
    is_good: bool,
    out: String,
    /// The last line that it complained with.
    complaint: String,
}

fn run(config: &Path, words: Vec<String>) -> std::io::Result<Ran> {
    let (verb, rest) = words
        .split_first()
        .map_or(("list", &[][..]), |(verb, rest)| (verb, rest));
    // The program that is running, also if its file was replaced.
    let ran = Command::new("/proc/self/exe")
        .args(["park", verb])
        .arg(config)
        .args(rest)
        .stdin(Stdio::null())
        .output()?;
    let complaints = String::from_utf8_lossy(&ran.stderr);
    Ok(Ran {
        is_good: ran.status.success(),
        out: String::from_utf8_lossy(&ran.stdout).into_owned(),
        complaint: complaints.lines().last().unwrap_or_default().to_owned(),
    })
}

fn failed(status: StatusCode, explain: &str) -> Told {
    (status, json!({"explain": explain}))
}

fn listed(ran: Ran) -> Told {
    if !ran.is_good {
        return failed(StatusCode::BAD_GATEWAY, &ran.complaint);
    }
    let lines = || ran.out.lines().filter(|line| !line.is_empty());
    let events = lines()
        .take(SHOWN)
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let events: Vec<Value> = events.collect();
    (StatusCode::OK, json!({"total": lines().count(), "events": events}))
}

/// Some may be parked again: that is no failure of the request.
fn retried(ran: Ran) -> Told {
    let said = [ran.out.trim().replace('\n', "; "), ran.complaint];
    let said: Vec<&str> = said
        .iter()
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .collect();
    (StatusCode::OK, json!({"done": ran.is_good, "said": said.join("; ")}))
}
