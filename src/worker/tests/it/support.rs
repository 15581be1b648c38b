//! A stand-in for nginx, a worker process, and a small HTTP client.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::spawn_local;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::{TlsAcceptor, rustls};

/// Far longer than any wait here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A directory that is removed after the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("psw-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn append(&self, name: &str, text: &str) {
        let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One received publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Path and query.
    pub uri: String,
    pub headers: HashMap<String, String>,
    pub body: String,
    pub at: Instant,
    /// Was it answered with 200?
    pub accepted: bool,
}

impl Publish {
    pub fn id(&self) -> &str {
        self.headers.get("event-id").map_or("", String::as_str)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// The stand-in's reaction to a publish.
#[derive(Clone, Debug)]
pub enum Behaviour {
    Accept,
    /// Answer with this status and explain text.
    Status(u16, &'static str),
    /// Answer with this status to the whole batch that begins with it; accept it alone.
    RefuseBatch(u16),
    /// Close the connection without an answer or a record of the publish.
    Abort,
    /// Record the publish, then close the connection without an answer.
    AcceptAndAbort,
    /// Do not answer for this long.
    Hang(Duration),
}

impl Behaviour {
    fn is_accepted(&self) -> bool {
        matches!(self, Self::Accept | Self::AcceptAndAbort | Self::RefuseBatch(_))
    }
}

/// A server that answers like a publisher location, and keeps a ledger.
pub struct StandIn {
    pub address: String,
    ledger: Arc<Ledger>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Ledger {
    publishes: Mutex<Vec<Publish>>,
    grown: Condvar,
    batches: AtomicU32,
    /// The newest ordered id of each channel, if kept.
    newest: Mutex<HashMap<String, Vec<u64>>>,
}

type Decide = Arc<dyn Fn(&Publish) -> Behaviour + Send + Sync>;

impl StandIn {
    pub fn accepting() -> Self {
        Self::start("127.0.0.1:0", |_| Behaviour::Accept)
    }

    /// Takes one event per POST. `address` is `host:port` or `unix:/path`.
    pub fn start(address: &str, decide: impl Fn(&Publish) -> Behaviour + Send + Sync + 'static) -> Self {
        Self::open(address, false, None, decide)
    }

    /// Also takes batches.
    pub fn with_batches(decide: impl Fn(&Publish) -> Behaviour + Send + Sync + 'static) -> Self {
        Self::open("127.0.0.1:0", true, None, decide)
    }

    /// Refuses an id that is not above its channel's newest, which it reports by GET.
    pub fn ordering(address: &str) -> Self {
        let ledger = Arc::<Ledger>::default();
        let into = Arc::clone(&ledger);
        Self::open_with(address, false, None, ledger, move |publish| {
            let (_, channels) = publish.uri.split_once("id=").unwrap();
            let id: Vec<u64> = publish.id().split('-').map(|number| number.parse().unwrap()).collect();
            let mut newest = into.newest.lock().unwrap();
            if channels
                .split('/')
                .any(|channel| newest.get(channel).is_some_and(|newest| *newest >= id))
            {
                return Behaviour::Status(409, "Event id is out of order.");
            }
            newest.extend(channels.split('/').map(|channel| (channel.to_owned(), id.clone())));
            Behaviour::Accept
        })
    }

    /// Speaks TLS, with this certificate and key.
    pub fn with_tls(certificate: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::open("127.0.0.1:0", false, Some(acceptor), |_| Behaviour::Accept)
    }

    fn open(
        address: &str,
        batches: bool,
        tls: Option<TlsAcceptor>,
        decide: impl Fn(&Publish) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        Self::open_with(address, batches, tls, Arc::default(), decide)
    }

    fn open_with(
        address: &str,
        batches: bool,
        tls: Option<TlsAcceptor>,
        ledger: Arc<Ledger>,
        decide: impl Fn(&Publish) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        // Not one of the kernel's: it would be somebody else's soon, whom workers of this test may still try to reach.
        let address = match address.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", free_port()),
            None => address.to_owned(),
        };
        let into = Arc::clone(&ledger);
        let decide: Decide = Arc::new(decide);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let serving = async {
                    if let Some(path) = address.strip_prefix("unix:") {
                        let listener = UnixListener::bind(path).unwrap();
                        ready.send(address.clone()).unwrap();
                        loop {
                            let (stream, _) = listener.accept().await.unwrap();
                            spawn_local(serve(
                                TokioIo::new(stream),
                                Arc::clone(&into),
                                Arc::clone(&decide),
                                batches,
                            ));
                        }
                    } else {
                        let listener = TcpListener::bind(&address).await.unwrap();
                        let scheme = if tls.is_some() { "https" } else { "http" };
                        ready
                            .send(format!("{scheme}://{}", listener.local_addr().unwrap()))
                            .unwrap();
                        loop {
                            let (stream, _) = listener.accept().await.unwrap();
                            stream.set_nodelay(true).unwrap();
                            if let Some(tls) = &tls {
                                if let Ok(stream) = tls.accept(stream).await {
                                    let (into, decide) = (Arc::clone(&into), Arc::clone(&decide));
                                    spawn_local(serve(TokioIo::new(stream), into, decide, batches));
                                }
                                continue;
                            }
                            spawn_local(serve(
                                TokioIo::new(stream),
                                Arc::clone(&into),
                                Arc::clone(&decide),
                                batches,
                            ));
                        }
                    }
                };
                tokio::select! { () = serving => {}, _ = stopped => {} }
            });
        });
        let address = started.recv().unwrap();
        Self {
            address,
            ledger,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Number of POSTs with several events.
    pub fn batches(&self) -> u32 {
        self.ledger.batches.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> usize {
        self.ledger.publishes.lock().unwrap().len()
    }

    /// All publishes, in order.
    pub fn publishes(&self) -> Vec<Publish> {
        self.ledger.publishes.lock().unwrap().clone()
    }

    pub fn accepted(&self) -> Vec<Publish> {
        self.publishes()
            .into_iter()
            .filter(|publish| publish.accepted)
            .collect()
    }

    /// Waits until this many have arrived.
    pub fn wait_for(&self, count: usize) {
        self.wait_until(|publishes| publishes.len() >= count);
    }

    /// Waits for as long as more come; on a busy machine thousands take their time.
    pub fn wait_until(&self, enough: impl Fn(&[Publish]) -> bool) {
        let deadline = Instant::now() + 5 * PATIENCE;
        let mut publishes = self.ledger.publishes.lock().unwrap();
        while !enough(&publishes) {
            let waited = self.ledger.grown.wait_timeout(publishes, PATIENCE);
            let (grown, timeout) = waited.unwrap();
            let is_over = timeout.timed_out() || Instant::now() > deadline;
            assert!(!is_over, "only {} publishes came", grown.len());
            publishes = grown;
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// Handles a batch line by line: a line that hangs or aborts affects the whole batch.
fn take_batch(batch: &Publish, ledger: &Ledger, decide: &Decide) -> Result<Response<Full<Bytes>>, &'static str> {
    assert_eq!(batch.headers["prefer"], "return=minimal");
    let mut verdicts = Vec::new();
    let lines: Vec<&str> = batch.body.lines().collect();
    ledger.batches.fetch_add(1, Ordering::Relaxed);
    for (number, line) in (1..).zip(&lines) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let channels: Vec<&str> = line["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap())
            .collect();
        let headers = [("event-id", "id"), ("event-type", "type")];
        let headers = headers
            .iter()
            .filter_map(|(header, key)| Some(((*header).to_owned(), line[key].as_str()?.to_owned())));
        let mut publish = Publish {
            uri: format!("{}?id={}", batch.uri, channels.join("/")),
            headers: headers.collect(),
            body: line["text"].as_str().unwrap().to_owned(),
            at: Instant::now(),
            accepted: false,
        };
        let behaviour = decide(&publish);
        if let (1, Behaviour::RefuseBatch(status)) = (number, &behaviour) {
            return Ok(Response::builder().status(*status).body(Full::default()).unwrap());
        }
        publish.accepted = behaviour.is_accepted();
        ledger.publishes.lock().unwrap().push(publish);
        ledger.grown.notify_all();
        match behaviour {
            Behaviour::Accept | Behaviour::RefuseBatch(_) => {}
            Behaviour::Status(status, explain) => {
                verdicts.push(serde_json::json!({"line": number, "status": status, "explain": explain}));
            }
            Behaviour::Abort | Behaviour::AcceptAndAbort | Behaviour::Hang(_) => return Err("abort"),
        }
    }
    let count = serde_json::json!({"lines": lines.len(), "ok": lines.len() - verdicts.len(), "failed": verdicts.len()});
    let body = std::iter::once(&count)
        .chain(&verdicts)
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    let answer = Response::builder().header("Preference-Applied", "return=minimal");
    Ok(answer
        .header("Content-Type", "application/x-ndjson")
        .body(Full::from(body))
        .unwrap())
}

async fn serve<S>(stream: TokioIo<S>, ledger: Arc<Ledger>, decide: Decide, batches: bool)
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    type Answer = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, &'static str>>>>;
    let service = service_fn(move |request: Request<Incoming>| -> Answer {
        let (ledger, decide) = (Arc::clone(&ledger), Arc::clone(&decide));
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let header = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
                (
                    name.as_str().to_owned(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            };
            let mut publish = Publish {
                uri: head.uri.to_string(),
                headers: head.headers.iter().map(header).collect(),
                body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
                at: Instant::now(),
                accepted: false,
            };
            if head.method == "OPTIONS" {
                let mut answer = Response::builder().header("Allow", "POST");
                if batches {
                    answer = answer.header("Accept-Post", "application/x-ndjson");
                }
                return Ok(answer.body(Full::default()).unwrap());
            }
            if head.method == "GET" {
                let uri = head.uri.to_string();
                let channel = uri.split_once("id=").map_or("", |(_, channel)| channel);
                if let Some(newest) = ledger.newest.lock().unwrap().get(channel) {
                    let id: Vec<String> = newest.iter().map(u64::to_string).collect();
                    let answer = Response::builder().header("X-Nginx-PushStream-Event-Id", id.join("-"));
                    return Ok(answer.body(Full::default()).unwrap());
                }
                return Ok(Response::builder().status(404).body(Full::default()).unwrap());
            }
            assert_eq!(head.method, "POST");
            if publish.headers["content-type"] == "application/x-ndjson" {
                assert!(batches, "not offered");
                return take_batch(&publish, &ledger, &decide);
            }
            let behaviour = decide(&publish);
            publish.accepted = behaviour.is_accepted();
            ledger.publishes.lock().unwrap().push(publish);
            ledger.grown.notify_all();
            let (status, explain) = match behaviour {
                Behaviour::Accept | Behaviour::RefuseBatch(_) => (200, ""),
                Behaviour::Status(status, explain) => (status, explain),
                Behaviour::Abort | Behaviour::AcceptAndAbort => return Err("abort"),
                Behaviour::Hang(time) => {
                    tokio::time::sleep(time).await;
                    return Err("hung up");
                }
            };
            let mut answer = Response::builder().status(status);
            if !explain.is_empty() {
                answer = answer.header("X-Nginx-PushStream-Explain", explain);
            }
            Ok(answer.body(Full::default()).unwrap())
        })
    });
    let _ = http1::Builder::new().serve_connection(stream, service).await;
}

/// A worker process with its own directory.
pub struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    pub fn command(dir: &TempDir) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_push-stream-worker"));
        command
            .current_dir(dir.path(""))
            .stdin(Stdio::null())
            .env_remove("PUSH_STREAM_LOG");
        command
    }

    /// Starts a worker with this configuration; relative paths are in the directory.
    pub fn start(dir: &TempDir, config: &str) -> Self {
        Self::start_with(dir, config, Stdio::null())
    }

    pub fn start_with(dir: &TempDir, config: &str, stdin: Stdio) -> Self {
        std::fs::write(dir.path("worker.toml"), config).unwrap();
        let log = dir.path("worker.log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let child = Self::command(dir)
            .args(["run", "worker.toml"])
            .stdin(stdin)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Runs a command to its end and returns its output.
    pub fn run(dir: &TempDir, arguments: &[&str]) -> String {
        let output = Self::command(dir).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(output.stderr));
        text(output.stdout)
    }

    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for a line on standard error that contains this text.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let mut found = None;
        wait(text, || {
            found = self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
            assert!(
                found.is_some() || self.child.try_wait().unwrap().is_none(),
                "ended:\n{}",
                self.log()
            );
            found.is_some()
        });
        found.unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// SIGTERM, then the exit status.
    pub fn terminate(self) -> ExitStatus {
        self.signal("-TERM");
        self.wait()
    }

    pub fn wait(mut self) -> ExitStatus {
        let mut status = None;
        wait("the worker to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- worker log\n{}", self.log());
        }
    }
}

/// Polls a condition that sends no notification.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    push_stream_worker::test_servers::free_port().unwrap()
}

/// Waits for a listener on this port.
pub fn wait_for_port(port: u16) {
    wait("a listener", || TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Sends one request on its own connection.
pub fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    text += body;
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{read:?}: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Answer {
        status,
        headers: lines.map(header).collect(),
        body: body.to_owned(),
    }
}

pub fn post(port: u16, path: &str, body: &str) -> Answer {
    request(port, "POST", path, &[], body)
}

/// The usual middle of a configuration: parse, route by thread, publish.
pub fn pipeline(node: &str, source: &str) -> String {
    format!(
        r#"
[source.in]
{source}
[stage]
parse = {{ type = "parse_json" }}
route = {{ type = "route", channels = ["thread.{{thread}}"], order_by = "thread" }}
[sink.nginx]
type = "http_push"
nodes = ["{node}"]
timeout = "60s"
retry = {{ initial = "5ms", max = "40ms", max_age = "60s" }}
[pipeline.live]
from = "in"
stages = ["parse", "route"]
to = ["nginx"]
"#
    )
}

/// The dead letters in the file at its default path.
pub fn parked(dir: &TempDir) -> Vec<serde_json::Value> {
    dir.read("state/parked.ndjson")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
