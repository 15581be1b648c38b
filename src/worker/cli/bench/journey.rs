//! The whole way: queue, worker, nginx, and for latencies the browser.

use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::queue::{self, Queue, SourceKind};
use super::reader::{self, Reader};
use super::{Bench, Figures, post, process};
use crate::config::value;
use crate::test_servers::{self, Directory, Nginx};

const NGINX: &str = include_str!("nginx.conf");
const WORKER: &str = include_str!("worker.toml");
const MODULE: &str = "libngx_http_push_stream_module.so";
const INSTALLED_MODULE: &str = "/usr/lib/nginx/modules/ngx_http_push_stream_module.so";

/// Posts per insertion at the broker.
const CHUNK: u64 = 10_000;
/// Polling interval for completion: a small part of the measured time, and little work for the broker.
const LOOK: Duration = Duration::from_millis(20);
/// No progress for this long is a failure.
const STANDSTILL: Duration = Duration::from_secs(60);
/// Publishes per post: the channels of the pipeline.
const CHANNELS: u64 = 3;
/// Up to this rate (posts per second) each post is inserted at its exact time; the thread stays awake this long before.
const LOW_RATE: u32 = 200;
const AWAKE: Duration = Duration::from_micros(500);
/// Pause before a measurement.
const SETTLING: Duration = Duration::from_secs(1);

/// The worker's configuration.
pub fn configuration(source: &str, publish: &str, directory: &str) -> Result<String, String> {
    value::substitute(WORKER, |name| match name {
        "SOURCE" => Some(source.to_owned()),
        "PUBLISH" => Some(publish.to_owned()),
        "DIR" => Some(directory.to_owned()),
        _ => None,
    })
}

pub fn measure(bench: &Bench, kind: SourceKind) -> Result<Figures, String> {
    let mut scene = Scene::start(bench, kind)?;
    match bench.rate {
        None => throughput(&mut scene, bench),
        Some(rate) => lateness(&mut scene, bench, rate),
    }
}

/// All servers but the worker.
struct Scene {
    queue: Box<dyn Queue>,
    nginx: Nginx,
    directory: Directory,
    figures: Figures,
}

impl Scene {
    fn start(bench: &Bench, kind: SourceKind) -> Result<Self, String> {
        let describe_error = |error: std::io::Error| error.to_string();
        let module = match &bench.module {
            Some(module) => std::path::absolute(module).map_err(describe_error)?,
            None => module()?,
        };
        let mut figures = Figures::default();
        let source = clap::ValueEnum::to_possible_value(&kind).map_or(String::new(), |name| name.get_name().to_owned());
        figures.text("source", source);
        Ok(Self {
            nginx: Nginx::start(&bench.nginx, &module, NGINX).map_err(describe_error)?,
            queue: queue::start(kind, &bench.fsync)?,
            directory: Directory::new().map_err(describe_error)?,
            figures,
        })
    }

    fn start_worker(&self) -> Result<Worker, String> {
        let describe_error = |error: std::io::Error| format!("cannot start the worker: {error}");
        let directory = self.directory.path("");
        let text = configuration(
            &self.queue.source(),
            &self.nginx.publish_address(),
            &directory.display().to_string(),
        )?;
        let path = self.directory.path("worker.toml");
        std::fs::write(&path, text).map_err(describe_error)?;
        let mut command = test_servers::mortal("KILL", std::env::current_exe().map_err(describe_error)?);
        command
            .arg("run")
            .arg(path)
            .args(["--log", "warn"])
            .stderr(Stdio::inherit());
        command.spawn().map(Worker).map_err(describe_error)
    }

    /// Processor time of worker, nginx and broker.
    fn cpu(&self, worker: Option<&Worker>) -> [Duration; 3] {
        let nginx = process::children(self.nginx.pid());
        [
            worker.map_or(Duration::ZERO, |worker| process::cpu(worker.pid())),
            nginx.into_iter().map(process::cpu).sum(),
            process::cpu(self.queue.pid()),
        ]
    }
}

/// Next to this program in a build tree, else where it is installed.
fn module() -> Result<PathBuf, String> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.join(MODULE)));
    let mut places = beside.into_iter().chain([PathBuf::from(INSTALLED_MODULE)]);
    let missing =
        || format!("there is no {MODULE} beside this program, nor {INSTALLED_MODULE}; say where with --module");
    places.find(|place| place.exists()).ok_or_else(missing)
}

struct Worker(Child);

impl Worker {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// SIGTERM: the worker finishes its events in flight.
    fn stop(mut self) -> Result<(), String> {
        let asked = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        let ended = asked.and_then(|_| self.0.wait()).map_err(|error| error.to_string())?;
        if ended.success() {
            Ok(())
        } else {
            Err(format!("the worker: {ended}"))
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures how long it takes to empty a full queue.
fn throughput(scene: &mut Scene, bench: &Bench) -> Result<Figures, String> {
    let count = bench.messages.max(1);
    let mut first = 0;
    while first < count {
        let posts: Vec<String> = (first..count.min(first + CHUNK)).map(|n| post::make(n, "0")).collect();
        scene.queue.put(first, &posts)?;
        first += posts.len() as u64;
        tell(&format!("in the queue: {first} of {count}"));
    }
    let bare = scene.queue.drain_bare(count)?;
    let idle = scene.cpu(None);
    let start = Instant::now();
    let worker = scene.start_worker()?;
    let (mut open, mut moved) = (u64::MAX, Instant::now());
    let mut busy = idle;
    // A broker does not count prefetched messages as open, although they are not published yet.
    while open > 0 || published(scene.nginx.port)? < count * CHANNELS {
        std::thread::sleep(LOOK);
        let now = scene.queue.open()?;
        if now != open {
            (open, moved) = (now, Instant::now());
            tell(&format!("open: {open} of {count}"));
        }
        if moved.elapsed() > STANDSTILL {
            return Err(format!("nothing was done for {STANDSTILL:?}; {open} are open"));
        }
        busy = scene.cpu(Some(&worker));
    }
    let emptied = start.elapsed();
    let (_, memory) = process::memory(worker.pid());
    worker.stop()?;
    // Messages that a broker does not count as open are done when the worker has ended.
    let elapsed = if bare.is_some() { start.elapsed() } else { emptied };
    tell("");
    let published = published(scene.nginx.port)?;
    if published != count * CHANNELS {
        return Err(format!(
            "nginx counts {published} messages and not {}",
            count * CHANNELS
        ));
    }
    let left = scene.queue.open()?;
    if left > 0 {
        return Err(format!("{left} messages are back in the queue"));
    }
    let mut figures = std::mem::take(&mut scene.figures);
    let rate = count as f64 / elapsed.as_secs_f64();
    figures.count("messages", count);
    figures.number("seconds", elapsed.as_secs_f64(), 2);
    figures.number("messages/s", rate, 0);
    if let Some(bare) = bare {
        figures.number("bare consumer, messages/s", bare.in_groups, 0);
        figures.number("share of the bare consumer", rate / bare.in_groups, 2);
        figures.number("one by one consumer, messages/s", bare.one_by_one, 0);
        figures.number("share of a one by one consumer", rate / bare.one_by_one, 2);
    }
    let names = ["worker CPU us/message", "nginx CPU us/message", "broker CPU us/message"];
    for ((name, after), before) in names.into_iter().zip(busy).zip(idle) {
        figures.number(name, after.saturating_sub(before).as_secs_f64() * 1e6 / count as f64, 2);
    }
    figures.number("worker memory at most, MiB", memory, 1);
    Ok(figures)
}

/// Measures the latency of posts inserted at a constant rate.
fn lateness(scene: &mut Scene, bench: &Bench, rate: u32) -> Result<Figures, String> {
    let rate = rate.max(1);
    // A stream has a group only once the worker has started.
    let worker = scene.start_worker()?;
    let start = Instant::now();
    let reader = Reader::start(scene.nginx.port, start)?;
    let warm_up = post::make(0, &micros(start).to_string());
    scene.queue.put(u64::MAX >> 1, &[warm_up])?;
    await_count(&reader, 1)?;
    std::thread::sleep(SETTLING);
    let (memory_idle, _) = process::memory(worker.pid());
    let before = scene.cpu(Some(&worker));
    let (begin, total) = (Instant::now(), u64::from(rate) * bench.seconds.max(1));
    let due = |n: u64| begin + Duration::from_secs_f64(n as f64 / f64::from(rate));
    let mut sent = 0;
    while sent < total {
        wait_until(due(sent), rate);
        let now = Instant::now();
        // Each carries the time at which it was due, so waiting here counts as latency.
        let mut posts = Vec::new();
        while sent + (posts.len() as u64) < total && due(sent + posts.len() as u64) <= now {
            let n = sent + posts.len() as u64;
            let stamp = u64::try_from((due(n) - start).as_micros()).unwrap_or(u64::MAX);
            posts.push(post::make(n, &stamp.to_string()));
        }
        scene.queue.put(sent, &posts)?;
        sent += posts.len() as u64;
        if sent % u64::from(rate) < posts.len() as u64 {
            tell(&format!("sent: {sent} of {total}"));
        }
    }
    await_count(&reader, 1 + total)?;
    let elapsed = begin.elapsed();
    let after = scene.cpu(Some(&worker));
    let (_, memory) = process::memory(worker.pid());
    tell("");
    worker.stop()?;
    let mut late = reader.finish();
    if late.len() as u64 != 1 + total {
        return Err(format!("the reader has {} events of {}", late.len(), 1 + total));
    }
    // Remove the warm-up post.
    late.remove(0);
    late.sort_unstable();
    let mut figures = std::mem::take(&mut scene.figures);
    figures.count("messages", total);
    figures.count("messages/s", rate.into());
    for (name, per_mille) in [
        ("p50 ms", 500),
        ("p90 ms", 900),
        ("p99 ms", 990),
        ("p99.9 ms", 999),
        ("max ms", 1000),
    ] {
        figures.number(name, f64::from(reader::quantile(&late, per_mille)) / 1000.0, 3);
    }
    let names = [
        "worker CPU, % of a core",
        "nginx CPU, % of a core",
        "broker CPU, % of a core",
    ];
    for ((name, after), before) in names.into_iter().zip(after).zip(before) {
        figures.number(
            name,
            100.0 * after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64(),
            1,
        );
    }
    figures.number("worker memory idle, MiB", memory_idle, 1);
    figures.number("worker memory at most, MiB", memory, 1);
    Ok(figures)
}

/// Waits until a post is due. At a low rate the last part is spent awake: the timer's wake-up delay is not part of the
/// latency. At a high rate there is no time for that, and a few posts at once are what a busy publisher sends.
fn wait_until(due: Instant, rate: u32) {
    let awake = if rate <= LOW_RATE { AWAKE } else { Duration::ZERO };
    std::thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(awake));
    while rate <= LOW_RATE && Instant::now() < due {
        std::hint::spin_loop();
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn await_count(reader: &Reader, count: u64) -> Result<(), String> {
    let (mut seen, mut moved) = (0, Instant::now());
    while seen < count {
        std::thread::sleep(Duration::from_millis(1));
        if reader.count() > seen {
            (seen, moved) = (reader.count(), Instant::now());
        }
        if moved.elapsed() > STANDSTILL {
            return Err(format!("the reader has only {seen} events of {count}"));
        }
    }
    Ok(())
}

/// Number of messages that nginx counts over all channels.
fn published(port: u16) -> Result<u64, String> {
    let answer = crate::cli::block_on(async move {
        let address = crate::client::Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
            tls: false,
        };
        let mut sender = crate::client::connect(&address, None)
            .await
            .map_err(|error| error.to_string())?;
        let request = hyper::Request::get("/status").header("Host", "bench");
        let request = request
            .body(http_body_util::Full::default())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        crate::client::read_body(answer, 1 << 20)
            .await
            .map_err(|error| error.to_string())
    });
    let value: serde_json::Value = serde_json::from_slice(&answer?.1).map_err(|error| error.to_string())?;
    value["published_messages"]
        .as_u64()
        .ok_or_else(|| "nginx does not tell its figures".to_owned())
}

/// Reports progress on the terminal.
fn tell(text: &str) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K{text}");
        let _ = terminal.flush();
    }
}
