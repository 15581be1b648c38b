//! Operation of a worker: reloads, metrics, alerts, health.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::brokers::*;
use crate::support::*;

fn http_in(port: u16) -> String {
    format!("type = \"http_in\"\nlisten = \"127.0.0.1:{port}\"")
}

fn event(n: usize) -> String {
    format!("{{\"n\":{n},\"thread\":1,\"forum\":\"f{n}\"}}")
}

fn get(port: u16, path: &str) -> Answer {
    request(port, "GET", path, &[], "")
}

#[test]
fn a_reload_takes_a_good_file_and_a_bad_one_changes_nothing() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let port = free_port();
    let config = pipeline(&nginx.address, &http_in(port));
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    assert_eq!(post(port, "/", &event(1)).status, 200);

    std::fs::write(dir.path("worker.toml"), config.replace("to = [", "too = [")).unwrap();
    worker.signal("-HUP");
    worker.wait_for_log("pipeline.live.too: unknown key");
    worker.wait_for_log("not reloaded, going on as before");
    assert_eq!(post(port, "/", &event(2)).status, 200);

    std::fs::write(
        dir.path("worker.toml"),
        config.replace("thread.{thread}", "new.{thread}"),
    )
    .unwrap();
    worker.signal("-HUP");
    // No request is refused, even while one topology ends and the next begins.
    while !worker.log().contains("reloaded worker.toml") {
        drop(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
    }
    assert_eq!(post(port, "/", &event(3)).status, 200);
    let uris: Vec<String> = nginx.publishes().iter().map(|publish| publish.uri.clone()).collect();
    assert_eq!(uris, ["/pub?id=thread.1", "/pub?id=thread.1", "/pub?id=new.1"]);
    assert!(worker.terminate().success());
}

#[test]
fn a_configuration_that_does_not_start_is_given_up_for_the_old_one() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, "type = \"file\"\npath = \"log\"");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("following log");
    // The directory is locked by another worker.
    let other_dir = TempDir::new();
    let mut other = Worker::start(&other_dir, &config);
    other.wait_for_log("following log");
    let taken = format!("state_dir = \"{}\"\n{config}", other_dir.path("state").display());
    std::fs::write(dir.path("worker.toml"), taken).unwrap();
    worker.signal("-HUP");
    worker.wait_for_log("the new configuration does not start");
    // An occupied address does not end the worker either, and the new addresses bound before it are released.
    let (taken, free) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_port());
    let more = format!(
        "{config}[source.more]\n{}\n[pipeline.more]\nfrom = \"more\"\nstages = [\"parse\", \"route\"]\nto = [\"nginx\"]\n[admin]\nlisten = \"{}\"\n",
        http_in(free),
        taken.local_addr().unwrap()
    );
    std::fs::write(dir.path("worker.toml"), more).unwrap();
    worker.signal("-HUP");
    worker.wait_for_log("cannot listen on");
    wait("the address to be given up", || {
        TcpStream::connect(("127.0.0.1", free)).is_err()
    });
    dir.append("log", &format!("{}\n", event(1)));
    nginx.wait_for(1);
    assert!(worker.terminate().success());
}

#[test]
fn a_reload_while_a_node_is_down_ends_and_loses_nothing() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let port = free_port();
    let source = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"\ngroup = \"g\"\nlease = \"900ms\"",
        redis.url()
    );
    let config = pipeline(&format!("http://127.0.0.1:{port}"), &source) + "[engine]\ndrain = \"300ms\"\n";
    let mut commands = redis.connect();
    for n in 1..=20 {
        redis::cmd("XADD")
            .arg("posts")
            .arg("*")
            .arg("body")
            .arg(event(n))
            .exec(&mut commands)
            .unwrap();
    }
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("fails: cannot connect");
    worker.signal("-HUP");
    worker.wait_for_log("reloaded worker.toml");
    let nginx = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    nginx.wait_for(20);
    let numbers: Vec<u64> = nginx
        .publishes()
        .iter()
        .map(|one| one.json()["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>());
    assert!(worker.terminate().success());
}

/// A connection that stays open, and its answers.
struct KeptAlive(BufReader<TcpStream>);

impl KeptAlive {
    fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn post(&mut self, body: &str) -> Result<u16, std::io::Error> {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Result<u16, std::io::Error> {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            head.push(line);
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(head[0].split(' ').nth(1).unwrap().parse().unwrap())
    }
}

#[test]
fn reloads_lose_no_request() {
    const CLIENTS: usize = 8;
    const POSTS: usize = 1000;
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let (port, admin) = (free_port(), free_port());
    let config = pipeline(&nginx.address, &http_in(port)) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    let done = std::sync::atomic::AtomicUsize::new(0);
    let failures = std::thread::scope(|scope| {
        let done = &done;
        let client = |client: usize| {
            move || {
                let mut failures = Vec::new();
                let mut connection = KeptAlive::open(port);
                for n in 0..POSTS {
                    // Half of them open a new connection per request.
                    let is_fresh = client.is_multiple_of(2);
                    if is_fresh {
                        connection = KeptAlive::open(port);
                    }
                    let answer = connection.post(&event(client * POSTS + n));
                    if !matches!(answer, Ok(200)) {
                        failures.push(format!("{answer:?}"));
                        connection = KeptAlive::open(port);
                    }
                    done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                failures
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(client(number))).collect();
        let mut figures = KeptAlive::open(admin);
        for reload in 1..=5 {
            while done.load(std::sync::atomic::Ordering::Relaxed) < reload * CLIENTS * POSTS / 7 {
                // A connection without requests would be closed.
                figures.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
                assert_eq!(figures.answer().unwrap(), 200);
                std::thread::sleep(Duration::from_millis(100));
            }
            worker.signal("-HUP");
            wait("the reload", || {
                worker.log().matches("reloaded worker.toml").count() == reload
            });
            figures.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(
                figures.answer().unwrap(),
                200,
                "the connection to the admin address stays, too"
            );
        }
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(failures, Vec::<String>::new());
    let mut numbers: Vec<u64> = nginx
        .publishes()
        .iter()
        .map(|one| one.json()["n"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..(CLIENTS * POSTS) as u64).collect::<Vec<_>>(), "each once");
    assert!(worker.terminate().success());
}

/// Writes a line every 5 ms, until dropped.
struct Lines(
    std::sync::Arc<std::sync::atomic::AtomicBool>,
    Option<std::thread::JoinHandle<()>>,
);

impl Lines {
    fn write(path: std::path::PathBuf) -> Self {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
            let mut n = 0;
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                writeln!(file, "{{\"n\":{n},\"thread\":1}}").unwrap();
                n += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        let _ = self.1.take().unwrap().join();
    }
}

/// The longest time without a publish to these channels.
fn longest_silence(nginx: &StandIn, channel: &str) -> Duration {
    let publishes = nginx.publishes();
    let times: Vec<_> = publishes
        .iter()
        .filter(|publish| publish.uri.ends_with(channel))
        .map(|publish| publish.at)
        .collect();
    let silence = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!("longest silence: {silence:?}");
    silence
}

/// A file whose lines go to `lines.1`, beside an `http_in`.
fn lines_beside(nginx: &StandIn, port: u16, nodes: &str) -> String {
    pipeline(&nginx.address, &http_in(port)).replace(&format!("nodes = [\"{}\"]", nginx.address), nodes)
        + &format!(
            r#"
[source.lines]
type = "file"
path = "lines"
[stage.lines]
type = "route"
channels = ["lines.{{thread}}"]
[sink.lines]
type = "http_push"
nodes = ["{}"]
[pipeline.lines]
from = "lines"
stages = ["parse", "lines"]
to = ["lines"]
"#,
            nginx.address
        )
}

#[test]
fn requests_that_never_come_to_their_end_hold_up_neither_a_reload_nor_a_stop() {
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let port = free_port();
    let config = lines_beside(&nginx, port, &format!("nodes = [\"{}\"]", nginx.address));
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    let lines = Lines::write(dir.path("lines"));
    nginx.wait_for(20);
    let (mut head, mut body) = (KeptAlive::open(port), KeptAlive::open(port));
    head.send("POST / HTTP/1.1\r\nHost");
    body.send(&format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{{",
        event(1).len()
    ));
    assert_eq!(post(port, "/", &event(0)).status, 200);
    worker.signal("-HUP");
    worker.wait_for_log("reloaded worker.toml");
    let seen = nginx.count();
    nginx.wait_for(seen + 20);
    assert!(longest_silence(&nginx, "lines.1") < Duration::from_secs(1));
    // They are served by the current topology.
    head.send(&format!(
        ": x\r\nContent-Length: {}\r\n\r\n{}",
        event(2).len(),
        event(2)
    ));
    assert_eq!(head.answer().unwrap(), 200);
    body.send(&event(1)[1..]);
    assert_eq!(body.answer().unwrap(), 200);

    head.send("POST / HTTP/1.1\r\nHost");
    body.send(&format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{{",
        event(1).len()
    ));
    assert_eq!(post(port, "/", &event(3)).status, 200);
    let start = Instant::now();
    assert!(worker.terminate().success());
    println!("stopped after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(body.answer().unwrap(), 503);
    assert!(head.answer().is_err(), "cut off");
    drop(lines);
}

#[test]
fn a_node_that_is_away_holds_up_neither_a_reload_nor_a_stop() {
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let (port, gone) = (free_port(), free_port());
    let nodes = |nodes: &str| lines_beside(&nginx, port, nodes);
    let both = format!("nodes = [\"{}\", \"http://127.0.0.1:{gone}\"]", nginx.address);
    let config = nodes(&both);
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    let lines = Lines::write(dir.path("lines"));
    let mut waiting: Vec<KeptAlive> = (0..3).map(|_| KeptAlive::open(port)).collect();
    for (n, client) in waiting.iter_mut().enumerate() {
        let body = event(n);
        client.send(&format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        nginx.wait_until(|publishes| publishes.iter().filter(|one| one.uri.ends_with("thread.1")).count() == n + 1);
    }
    nginx.wait_for(20);
    // Once more, and then without the node that is down: only now can these be published.
    worker.signal("-HUP");
    worker.wait_for_log("reloaded worker.toml");
    let one = nodes(&format!("nodes = [\"{}\"]", nginx.address));
    std::fs::write(dir.path("worker.toml"), &one).unwrap();
    worker.signal("-HUP");
    for client in &mut waiting {
        assert_eq!(client.answer().unwrap(), 200);
    }
    let seen = nginx.count();
    nginx.wait_for(seen + 20);
    assert!(longest_silence(&nginx, "lines.1") < Duration::from_secs(1));
    let publishes = nginx.publishes();
    let ids = |n: usize| -> std::collections::BTreeSet<&str> {
        let of = |one: &&Publish| one.uri.ends_with("thread.1") && one.json()["n"] == n;
        publishes.iter().filter(of).map(Publish::id).collect()
    };
    assert!((0..3).all(|n| ids(n).len() == 1), "with the ids that they had");

    std::fs::write(dir.path("worker.toml"), &config).unwrap();
    let reloads = worker.log().matches("reloaded worker.toml").count();
    worker.signal("-HUP");
    wait("the reload", || {
        worker.log().matches("reloaded worker.toml").count() > reloads
    });
    waiting[0].send(&format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}",
        event(9).len(),
        event(9)
    ));
    worker.wait_for_log("fails: cannot connect");
    nginx.wait_until(|publishes| {
        publishes
            .iter()
            .any(|one| one.uri.ends_with("thread.1") && one.json()["n"] == 9)
    });
    let start = Instant::now();
    assert!(worker.terminate().success());
    println!("stopped after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(waiting[0].answer().unwrap(), 503);
    drop(lines);
}

#[test]
fn top_and_tap_look_at_a_running_worker() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let (port, admin) = (free_port(), free_port());
    let config = pipeline(&nginx.address, &http_in(port)) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    wait_for_port(admin);
    let tap = |arguments: &[&str]| {
        let command = ["tap", "worker.toml", "parse", "--count", "1"]
            .iter()
            .chain(arguments)
            .copied()
            .collect::<Vec<_>>();
        let child = Worker::command(&dir)
            .args(command)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is there when the next event is seen.
        let seen = child.id();
        (child, seen)
    };
    let (shape, _) = tap(&[]);
    let (values, _) = tap(&["--raw"]);
    let outputs: Vec<_> = [shape, values]
        .into_iter()
        .map(|child| std::thread::spawn(move || child.wait_with_output().unwrap()))
        .collect();
    wait("both taps to have seen one", || {
        assert_eq!(post(port, "/", &event(1)).status, 200);
        outputs.iter().all(std::thread::JoinHandle::is_finished)
    });
    let outputs: Vec<String> = outputs
        .into_iter()
        .map(|one| String::from_utf8(one.join().unwrap().stdout).unwrap())
        .collect();
    assert!(
        outputs[0].contains("text of 2 characters") && !outputs[0].contains("\"f1\""),
        "{outputs:?}"
    );
    assert!(outputs[1].contains("\"f1\""), "{outputs:?}");
    let picture = Worker::run(&dir, &["top", "worker.toml", "--once"]);
    let node = picture.lines().find(|line| line.contains(&nginx.address)).unwrap();
    assert!(node.contains("closed"), "{picture}");
    let unknown = Worker::command(&dir)
        .args(["tap", "worker.toml", "gone"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8(unknown.stderr)
            .unwrap()
            .contains("there is: parse, route, in, nginx")
            || !unknown.status.success()
    );
    assert!(worker.terminate().success());
}

#[test]
fn a_switch_opens_a_dark_pipeline_that_holds_nobody_up() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::start("127.0.0.1:0", |publish| match publish.uri.contains("dark.") {
        true => Behaviour::Status(500, ""),
        false => Behaviour::Accept,
    });
    let port = free_port();
    let config = pipeline(&nginx.address, &http_in(port))
        + &format!(
            r#"
[switches]
url = "{}"
[switch.next]
status = "off"
by = "forum"
[sink.dark]
type = "http_push"
nodes = ["{}"]
[pipeline.next]
from = "in"
stages = ["parse", "route"]
to = ["dark"]
mode = "dark"
prefix = "dark."
gate = "next"
"#,
            redis.url(),
            nginx.address
        );
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    assert_eq!(post(port, "/", &event(1)).status, 200);
    assert_eq!(nginx.count(), 1);
    assert_eq!(
        Worker::run(&dir, &["switch", "set", "worker.toml", "next", "on"]),
        "next: on (live)\n"
    );
    worker.wait_for_log("switch next: now on (live)");
    // Without its pub/sub half the connection is lost: otherwise the hash would be reread in a loop.
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("pubsub")
        .exec(&mut redis.connect())
        .unwrap();
    worker.wait_for_log("switches: the connection to Redis is lost; they stay as they are");
    // The dark node fails for ever, without delaying the source.
    (2..20).for_each(|n| assert_eq!(post(port, "/", &event(n)).status, 200));
    nginx.wait_until(|publishes| publishes.iter().any(|publish| publish.uri == "/pub?id=dark.thread.1"));
    assert_eq!(
        Worker::run(&dir, &["switch", "list", "worker.toml"]),
        "next: on (live)\n"
    );
    assert!(Worker::run(&dir, &["switch", "set", "worker.toml", "next", "inherit"]).contains("off (file)"));
    worker.wait_for_log("switch next: now off (file)");
    assert!(worker.terminate().success());
    assert!(
        !dir.read("worker.log").contains("does not end"),
        "a dark node that fails holds up no stop either"
    );
}

#[test]
fn figures_go_out_by_udp_and_alerts_to_who_should_know() {
    let dir = TempDir::new();
    let hooks = StandIn::accepting();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let (port, node) = (free_port(), free_port());
    let sentry = hooks.address.replace("http://", "http://abc@") + "/7";
    let config = pipeline(&format!("http://127.0.0.1:{node}"), &http_in(port))
        + &format!(
            r#"
[statsd]
address = "{}"
prefix = "test."
interval = "50ms"
[alert.nodes]
when = "nodes_down > 0"
do = ["log", "webhook", "sentry"]
webhook = "{}/hook"
sentry = "{sentry}"
"#,
            udp.local_addr().unwrap(),
            hooks.address
        );
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    let client = std::thread::spawn(move || post(port, "/", &event(1)).status);
    let mut lines = String::new();
    wait("the count of one event", || {
        let mut buffer = [0; 2000];
        let length = udp.recv(&mut buffer).unwrap();
        lines += std::str::from_utf8(&buffer[..length]).unwrap();
        lines.contains("test.push_stream_worker.component_received_events_total.source.http_in.in:1|c")
    });
    hooks.wait_for(2);
    let publishes = hooks.publishes();
    let hook = publishes.iter().find(|publish| publish.uri == "/hook").unwrap();
    assert_eq!(
        (hook.json()["alert"].clone(), hook.json()["state"].clone()),
        ("nodes".into(), "firing".into())
    );
    let issue = publishes
        .iter()
        .find(|publish| publish.uri == "/api/7/envelope/")
        .unwrap();
    assert!(issue.headers["x-sentry-auth"].contains("sentry_key=abc"));
    assert!(
        issue
            .body
            .lines()
            .nth(2)
            .unwrap()
            .contains("alert nodes: firing: nodes_down is 1")
    );
    worker.wait_for_log("alert nodes: firing");
    let _nginx = StandIn::start(&format!("127.0.0.1:{node}"), |_| Behaviour::Accept);
    assert_eq!(client.join().unwrap(), 200);
    hooks.wait_until(|publishes| {
        publishes
            .iter()
            .any(|publish| publish.uri == "/hook" && publish.json()["state"] == "resolved")
    });
    assert!(worker.terminate().success());
}

#[test]
fn recorded_events_and_dead_letters_of_the_file_can_be_run_again() {
    let dir = TempDir::new();
    let refusing = StandIn::start("127.0.0.1:0", |_| Behaviour::Status(400, "Not today."));
    let port = refusing.address.rsplit(':').next().unwrap().to_owned();
    let config = pipeline(&refusing.address, "type = \"stdin\"");
    let mut worker = Worker::start_with(&dir, &config, Stdio::piped());
    writeln!(worker.stdin(), "{}\n{}", event(1), event(2)).unwrap();
    assert!(worker.wait().success());
    assert_eq!(parked(&dir).len(), 2);
    let ids: Vec<String> = parked(&dir)
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    drop(refusing);

    let nginx = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    assert!(Worker::run(&dir, &["park", "list", "worker.toml"]).contains("400 Not today."));
    assert_eq!(
        Worker::run(&dir, &["park", "retry", "worker.toml", &ids[1]]),
        "1 of 1 done\n"
    );
    assert_eq!(
        nginx.publishes()[0].id(),
        ids[1],
        "nothing newer is there: the id it had"
    );
    assert_eq!(
        Worker::run(&dir, &["park", "drop", "worker.toml", "--all"]),
        "1 dropped\n"
    );
    assert!(parked(&dir).is_empty());

    std::fs::write(
        dir.path("recorded"),
        (0..30).map(|n| event(n) + "\n").collect::<String>(),
    )
    .unwrap();
    Worker::run(
        &dir,
        &[
            "replay",
            "worker.toml",
            "recorded",
            "--pipeline",
            "live",
            "--rate",
            "1000",
        ],
    );
    let numbers: Vec<u64> = nginx.publishes()[1..]
        .iter()
        .map(|one| one.json()["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..30).collect::<Vec<_>>());
}

#[test]
fn a_queue_can_be_asked_whether_all_is_published() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let source = format!("type = \"thoonk\"\nurl = \"{}\"\nqueue = \"posts\"", redis.url());
    std::fs::write(dir.path("worker.toml"), pipeline(&nginx.address, &source)).unwrap();
    let mut queue = Thoonk::classic(&redis, "posts");
    queue.put("a", &event(1));
    assert!(Worker::run(&dir, &["ack", "status", "worker.toml"]).starts_with("in: 1 open, the oldest since 20"));
    let wait = Worker::command(&dir)
        .args(["ack", "wait", "worker.toml", "--timeout", "200ms"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8(wait.stderr)
            .unwrap()
            .contains("1 still open after 200ms")
    );
    let healthy = Worker::command(&dir).args(["doctor", "worker.toml"]).output().unwrap();
    let healthy = String::from_utf8(healthy.stdout).unwrap();
    assert!(
        healthy.contains("source in: answers, 1 open") && healthy.contains(&format!("{} answers", nginx.address)),
        "{healthy}"
    );

    let config = std::fs::read_to_string(dir.path("worker.toml")).unwrap();
    let worker = Worker::start(&dir, &config);
    Worker::run(&dir, &["ack", "wait", "worker.toml"]);
    assert_eq!(nginx.count(), 1);
    assert_eq!(
        Worker::run(&dir, &["ack", "status", "worker.toml"]),
        "in: all published\n"
    );
    assert!(worker.terminate().success());
    drop(nginx);
    let ill = Worker::command(&dir).args(["doctor", "worker.toml"]).output().unwrap();
    assert!(!ill.status.success());
    assert!(
        String::from_utf8(ill.stdout)
            .unwrap()
            .contains("ERROR    sink nginx: http://127.0.0.1")
    );
}

#[test]
fn publish_sends_a_message_or_a_line_each() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let url = format!("{}/pub?id=news", nginx.address);
    Worker::run(&dir, &["publish", &url, "{\"n\":1}", "--id", "7-1", "--type", "post"]);
    let mut lines = Worker::command(&dir)
        .args(["publish", &url])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    lines
        .stdin
        .take()
        .unwrap()
        .write_all(b"{\"n\":2}\n\n{\"n\":3}\n")
        .unwrap();
    assert!(lines.wait().unwrap().success());
    let publishes = nginx.publishes();
    assert_eq!(
        publishes.iter().map(|one| one.body.as_str()).collect::<Vec<_>>(),
        ["{\"n\":1}", "{\"n\":2}", "{\"n\":3}"]
    );
    assert_eq!(
        (publishes[0].id(), publishes[0].headers["event-type"].as_str()),
        ("7-1", "post")
    );
    assert_eq!(publishes[0].uri, "/pub?id=news");
    let refusing = StandIn::start("127.0.0.1:0", |_| Behaviour::Status(403, ""));
    let refused = Worker::command(&dir)
        .args(["publish", &format!("{}/pub?id=a", refusing.address), "x"])
        .output()
        .unwrap();
    assert!(!refused.status.success() && String::from_utf8(refused.stderr).unwrap().contains("403"));
}

#[test]
fn tests_in_a_configuration_pass_or_say_what_differs() {
    let dir = TempDir::new();
    let base = pipeline("http://127.0.0.1:1", "type = \"stdin\"");
    let test = |channel: &str| {
        format!(
            "{base}\n[test.t]\npipeline = \"live\"\ninput = '{{\"thread\":9}}'\nexpect = {{ channels = [\"{channel}\"] }}\n"
        )
    };
    std::fs::write(dir.path("good.toml"), test("thread.9")).unwrap();
    std::fs::write(dir.path("bad.toml"), test("thread.8")).unwrap();
    assert_eq!(
        Worker::run(&dir, &["test", "good.toml"]),
        "ok      t\n1 passed, 0 failed\n"
    );
    let bad = Worker::command(&dir).args(["test", "bad.toml"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(1));
    let expected = "FAILED  t\n    channels\n      expected: thread.8\n      found:    thread.9\n0 passed, 1 failed\n";
    assert_eq!(String::from_utf8(bad.stdout).unwrap(), expected);
    let graph = Worker::run(&dir, &["graph", "good.toml"]);
    assert!(
        graph.contains("\"source in\" -> \"live parse\"") && graph.contains("\"live route\" -> \"sink nginx\""),
        "{graph}"
    );
    let figures = Worker::run(&dir, &["bench", "good.toml", "--seconds", "1"]);
    assert!(figures.contains("events/s on one core"), "{figures}");
}

#[test]
fn logs_can_be_json() {
    let dir = TempDir::new();
    let config = pipeline("http://127.0.0.1:1", "type = \"stdin\"");
    std::fs::write(dir.path("worker.toml"), config).unwrap();
    let output = Worker::command(&dir)
        .args(["run", "worker.toml", "--log-format", "json"])
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.is_empty());
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn redis_channels_are_heard_as_well_as_can_be() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let source = format!(
        "type = \"redis_pubsub\"\nurl = \"{}\"\nchannels = [\"posts\"]\npatterns = [\"forum.*\"]",
        redis.url()
    );
    let config = pipeline(&nginx.address, &source);
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("listening to 1 channels and 1 patterns");
    let mut commands = redis.connect();
    for (channel, n) in [("posts", 1), ("forum.cnn", 2), ("other", 3), ("posts", 4)] {
        redis::cmd("PUBLISH")
            .arg(channel)
            .arg(event(n))
            .exec(&mut commands)
            .unwrap();
    }
    nginx.wait_for(3);
    let numbers: Vec<u64> = nginx
        .publishes()
        .iter()
        .map(|one| one.json()["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 4]);
    assert!(Worker::run(&dir, &["validate", "worker.toml"]).contains("best effort"));
    assert!(worker.terminate().success());
}

#[test]
fn a_worker_that_is_ready_says_so_and_one_that_lost_its_broker_does_not() {
    let mut redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let admin = free_port();
    let source = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"\ngroup = \"g\"",
        redis.url()
    );
    let config = pipeline(&nginx.address, &source) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let worker = Worker::start(&dir, &config);
    wait_for_port(admin);
    wait("it to be ready", || get(admin, "/ready").status == 200);
    redis.kill();
    wait("it to notice", || get(admin, "/ready").status == 503);
    assert!(get(admin, "/ready").body.contains("source in is not connected"));
    assert_eq!(get(admin, "/health").status, 200, "it lives");
    redis.restart().unwrap();
    wait("it to be ready again", || get(admin, "/ready").status == 200);
    assert!(worker.terminate().success());
}

#[test]
fn a_worker_that_was_stopped_as_a_whole_goes_on_without_an_error() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let (port, admin) = (free_port(), free_port());
    let config = pipeline(&nginx.address, &http_in(port));
    let config = format!("{config}[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("taking POST");
    worker.signal("-STOP");
    // Longer than a thread may be silent.
    std::thread::sleep(Duration::from_secs(7));
    worker.signal("-CONT");
    assert_eq!(get(admin, "/health").status, 200);
    worker.wait_for_log("WARN the process was held up for ");
    assert_eq!(post(port, "/", &event(1)).status, 200);
    assert!(worker.terminate().success());
    assert!(!dir.read("worker.log").contains("ERROR"), "{}", dir.read("worker.log"));
}
