use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

struct Intake {
    dir: TempDir,
    port: u16,
    nginx: StandIn,
    config: String,
}

impl Intake {
    fn new(nginx: StandIn, options: &str) -> Self {
        let port = free_port();
        let source = format!("type = \"http_in\"\nlisten = \"127.0.0.1:{port}\"\npath = \"/in\"\n{options}");
        let config = pipeline(&nginx.address, &source);
        Self {
            dir: TempDir::new(),
            port,
            nginx,
            config,
        }
    }

    fn start(&self) -> Worker {
        let worker = Worker::start(&self.dir, &self.config);
        wait_for_port(self.port);
        worker
    }

    fn post(&self, body: &str) -> Answer {
        post(self.port, "/in", body)
    }
}

#[test]
fn two_hundred_means_published_and_the_server_sets_its_fields() {
    let intake = Intake::new(StandIn::accepting(), "stamp = { id = \"id\", time = \"created\" }");
    let _worker = intake.start();
    let answer = intake.post("{\n \"thread\": 1,\n \"id\": \"mine\"\n}");
    assert_eq!(answer.status, 200, "{answer:?}");
    let publish = &intake.nginx.publishes()[0];
    assert_eq!(answer.json()["id"], publish.id());
    assert_eq!(publish.json()["id"], publish.id());
    assert_eq!(publish.json()["created"], answer.json()["time"]);
    let answer = intake.post("{\"thread\":1}\n{\"thread\":2}\n");
    assert_eq!(answer.status, 200);
    // Two threads are two order keys: either may arrive first, but each has the id given in its line of the answer.
    for publish in &intake.nginx.publishes()[1..] {
        let line = publish.json()["thread"].as_u64().unwrap() as usize - 1;
        assert_eq!(answer.json()["ids"][line], publish.id());
    }
    assert_eq!(intake.nginx.publishes().len(), 3);
    assert_eq!(request(intake.port, "GET", "/health", &[], "").status, 200);
}

#[test]
fn bad_requests_are_refused_with_a_reason_and_publish_nothing() {
    let intake = Intake::new(StandIn::accepting(), "max_body = \"100B\"\nmax_in_flight = 3");
    let _worker = intake.start();
    for (body, status, text) in [
        ("", 400, "no JSON object"),
        ("hello", 400, "object 1 is not valid JSON"),
        (
            "{\"thread\":1}\n[1]",
            400,
            "object 2 is a list: send its objects one per line",
        ),
        (&"x".repeat(101), 413, "longer than 100 bytes"),
        ("{}{}{}{}", 413, "more events than fit"),
    ] {
        let answer = intake.post(body);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains(text), "{answer:?}");
    }
    assert_eq!(
        request(intake.port, "GET", "/in", &[], "").headers["allow"],
        "POST, OPTIONS"
    );
    assert_eq!(post(intake.port, "/other", "{}").status, 404);
    // A chunked body that turns out too long.
    let mut stream = TcpStream::connect(("127.0.0.1", intake.port)).unwrap();
    let object = "{\"thread\":1,\"pad\":\"xxxxxxxxxxxx\"}";
    let chunk = format!("{:x}\r\n{object}\r\n", object.len());
    let head = "POST /in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream
        .write_all(format!("{head}{}", chunk.repeat(4)).as_bytes())
        .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let answer = intake.post("{\"nothread\":1}\n{\"thread\":1}");
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.json()["results"][0]["outcome"], "parked");
    assert_eq!(answer.json()["results"][1]["outcome"], "accepted");
    assert_eq!(intake.nginx.count(), 1);
}

#[test]
fn pages_of_listed_origins_may_post_and_others_not() {
    let intake = Intake::new(StandIn::accepting(), "cors = [\"https://good.example\"]");
    let _worker = intake.start();
    let good = [("Origin", "https://good.example")];
    let preflight = request(intake.port, "OPTIONS", "/in", &good, "");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "https://good.example");
    assert_eq!(preflight.headers["access-control-allow-headers"], "Content-Type");
    let answer = request(intake.port, "POST", "/in", &good, "{\"thread\":1}");
    assert_eq!(
        (answer.status, answer.headers["access-control-allow-origin"].as_str()),
        (200, "https://good.example")
    );
    let answer = request(
        intake.port,
        "POST",
        "/in",
        &[("Origin", "https://evil.example")],
        "{\"thread\":1}",
    );
    assert_eq!(answer.status, 403);
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    assert_eq!(intake.post("{\"thread\":1}").status, 200, "no browser, no origin");
    assert_eq!(intake.nginx.count(), 2);
}

#[test]
fn no_room_is_503_with_retry_after_and_a_late_answer_is_504() {
    let slow = StandIn::start("127.0.0.1:0", |_| Behaviour::Hang(Duration::from_secs(20)));
    let intake = Intake::new(slow, "max_in_flight = 1\ntimeout = \"400ms\"");
    let worker = intake.start();
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| intake.post("{\"thread\":1}"));
        intake.nginx.wait_for(1);
        let second = intake.post("{\"thread\":2}");
        (first.join().unwrap(), second)
    });
    assert_eq!((second.status, second.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(first.status, 504);
    drop(worker);
}

#[test]
fn nothing_waits_for_anything_between_post_and_nginx() {
    for ack in ["published", "spooled"] {
        let intake = Intake::new(StandIn::accepting(), &format!("ack = \"{ack}\""));
        let _worker = intake.start();
        let mut n = 0;
        // Other load delays single requests; a delay of the worker would be in the fastest, too.
        wait(&format!("a fast request, {ack}"), || {
            // The worker must be idle: no earlier event may still be under way.
            std::thread::sleep(Duration::from_millis(5));
            n += 1;
            let start = Instant::now();
            assert!(intake.post("{\"thread\":1}").status < 300);
            intake.nginx.wait_for(n);
            intake.nginx.publishes()[n - 1].at.duration_since(start) < Duration::from_millis(10)
        });
    }
}

#[test]
fn what_is_spooled_survives_kill_9_while_nginx_is_down() {
    let port = free_port();
    let placeholder = StandIn::accepting();
    let mut intake = Intake::new(
        placeholder,
        "ack = \"spooled\"\nmax_in_flight = 8\nstamp = { id = \"id\" }",
    );
    intake.config = intake
        .config
        .replace(&intake.nginx.address, &format!("http://127.0.0.1:{port}"));
    let mut ids = Vec::new();
    for round in 0..3 {
        let worker = intake.start();
        for n in 0..20 {
            let answer = intake.post(&format!("{{\"thread\":{},\"n\":{}}}", n % 2, round * 20 + n));
            assert_eq!(answer.status, 202, "{answer:?}");
            ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        }
        worker.kill();
    }
    let nginx = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    let worker = intake.start();
    nginx.wait_for(60);
    let publishes = nginx.publishes();
    assert_eq!(publishes.len(), 60);
    for publish in &publishes {
        let n = usize::try_from(publish.json()["n"].as_u64().unwrap()).unwrap();
        assert_eq!(publish.id(), ids[n], "the id that was promised");
        assert_eq!(publish.json()["id"], publish.id());
    }
    for key in 0..2 {
        let of_key = publishes
            .iter()
            .map(|publish| publish.json()["n"].as_u64().unwrap())
            .filter(|n| n % 2 == key);
        assert!(of_key.is_sorted());
    }
    assert!(worker.terminate().success());
    let worker = intake.start();
    assert_eq!(intake.post("{\"thread\":9,\"n\":0}").status, 202);
    nginx.wait_for(61);
    assert!(
        nginx.publishes()[60].uri.ends_with("thread.9"),
        "what is done does not come again"
    );
    assert!(worker.terminate().success());
}

#[test]
fn a_full_spool_is_503() {
    let mut intake = Intake::new(
        StandIn::accepting(),
        "ack = \"spooled\"\nspool_max = \"1KiB\"\nmax_body = \"100B\"",
    );
    intake.config = intake.config.replace(&intake.nginx.address, "http://127.0.0.1:1");
    let _worker = intake.start();
    let statuses: Vec<u16> = (0..100).map(|_| intake.post("{\"thread\":1}").status).collect();
    assert_eq!(statuses.first(), Some(&202));
    assert_eq!(statuses.last(), Some(&503));
}

/// Input of producers, its published form, and its channel.
const ODD: [(&str, &str, &str); 5] = [
    (r#"{"thread":1.00,"n":1E400}"#, r#"{"thread":1.00,"n":1E400}"#, "1.00"),
    (
        r#"{"thread":340282366920938463463374607431768211455}"#,
        r#"{"thread":340282366920938463463374607431768211455}"#,
        "340282366920938463463374607431768211455",
    ),
    (
        r#"{"thread":340282366920938463463374607431768211450}"#,
        r#"{"thread":340282366920938463463374607431768211450}"#,
        "340282366920938463463374607431768211450",
    ),
    (
        r#"{"message":"fun \ud83d","thread":-0}"#,
        "{\"message\":\"fun \u{fffd}\",\"thread\":-0}",
        "-0",
    ),
    ("\u{feff}{\"thread\":5}", r#"{"thread":5}"#, "5"),
];

#[test]
fn all_ways_in_take_the_same_and_change_nothing() {
    let spooled = Intake::new(StandIn::accepting(), "ack = \"spooled\"");
    let direct = Intake::new(StandIn::accepting(), "stamp = { id = \"id\" }");
    let (in_dir, file_node) = (TempDir::new(), StandIn::accepting());
    let config = pipeline(&file_node.address, "type = \"file\"\npath = \"posts\"");
    let (_spooling, _direct) = (spooled.start(), direct.start());
    let tests = (0..).zip(ODD).map(|(n, (text, body, thread))| {
        let (input, body) = (text.replace('\u{feff}', "\\uFEFF").replace(r"\ud83d", r"\\ud83d"), body);
        let input = match input.contains("\\u") {
            true => format!("\"{}\"", input.replace('"', "\\\"")),
            false => format!("'{input}'"),
        };
        format!("[test.t{n}]\npipeline = \"live\"\ninput = {input}\nexpect = {{ body = '{body}', channels = [\"thread.{thread}\"] }}\n")
    });
    let tests: String = tests.collect();
    let _following = Worker::start(&in_dir, &(config + &tests));
    for (text, ..) in ODD {
        assert_eq!(spooled.post(text).status, 202, "{text}");
        assert_eq!(direct.post(text).status, 200, "{text}");
        in_dir.append("posts", &format!("{text}\n"));
    }
    for node in [&spooled.nginx, &direct.nginx, &file_node] {
        node.wait_for(ODD.len());
        // Different threads may overtake each other.
        let mut publishes = node.publishes();
        for (_, body, thread) in ODD {
            let at = publishes
                .iter()
                .position(|one| one.uri.ends_with(&format!("id=thread.{thread}")));
            let publish = publishes.remove(at.unwrap_or_else(|| panic!("{thread}: {publishes:?}")));
            let stamped = body.replace('}', &format!(",\"id\":\"{}\"}}", publish.id()));
            assert!(publish.body == body || publish.body == stamped, "{}", publish.body);
        }
    }
    let told = Worker::run(&in_dir, &["test", "worker.toml"]);
    assert!(told.contains("5 passed, 0 failed"), "{told}");
}

#[test]
fn a_small_spool_takes_far_more_than_it_holds() {
    let options = "ack = \"spooled\"\nspool_max = \"64KiB\"\nmax_body = \"16KiB\"";
    let intake = Intake::new(StandIn::accepting(), options);
    let worker = intake.start();
    let body = format!("{{\"thread\":1,\"pad\":\"{}\"}}", "x".repeat(12_000));
    for _ in 0..100 {
        // A client retries after a 503; publishing frees space.
        wait("room in the spool", || match intake.post(&body).status {
            202 => true,
            503 => false,
            other => panic!("{other}"),
        });
    }
    intake.nginx.wait_for(100);
    assert!(worker.terminate().success());
    let on_disk: u64 = std::fs::read_dir(intake.dir.path("state/in.spool"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk < 64 << 10, "{on_disk}");
}

#[test]
fn a_stop_answers_who_is_waiting_and_takes_no_more() {
    let slow = StandIn::start("127.0.0.1:0", |_| {
        std::thread::sleep(Duration::from_millis(300));
        Behaviour::Accept
    });
    let intake = Intake::new(slow, "");
    let worker = intake.start();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| intake.post("{\"thread\":1}"));
        wait("the event", || intake.dir.read("state/in.epoch.json").len() > 1);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(worker.terminate().code(), Some(0));
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    assert!(TcpStream::connect(("127.0.0.1", intake.port)).is_err());
}

/// Complaints of Prometheus's own check about the metrics.
fn complaints_of_promtool(metrics: &str) -> String {
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[test]
fn requests_to_a_node_are_counted_and_not_the_events_in_them() {
    let (dir, admin) = (TempDir::new(), free_port());
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    for n in 0..500 {
        dir.append("log", &format!("{{\"thread\":1,\"n\":{n}}}\n"));
    }
    let config = pipeline(&nginx.address, "type = \"file\"\npath = \"log\"");
    let _worker = Worker::start(&dir, &(config + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n")));
    nginx.wait_for(500);
    wait_for_port(admin);
    let name = format!(
        "push_stream_worker_sink_requests_total{{component_id=\"nginx\",node=\"{}\",code=\"200\"}}",
        nginx.address
    );
    // An answer may still be under way.
    wait("the last request to be counted", || {
        let metrics = request(admin, "GET", "/metrics", &[], "").body;
        let counted = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&*name)?.trim().parse::<u32>().ok());
        assert!(
            counted <= Some(nginx.batches()),
            "{counted:?} requests, {} batches",
            nginx.batches()
        );
        counted == Some(nginx.batches())
    });
    assert!(nginx.batches() < 100, "several events to a batch");
}

#[test]
fn the_admin_address_tells_figures_readiness_and_health() {
    let admin = free_port();
    let mut intake = Intake::new(StandIn::accepting(), "");
    intake.config += &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    let mut worker = intake.start();
    wait_for_port(admin);
    intake.post("{\"thread\":1}");
    intake.post("{\"no\":1}");
    let metrics = request(admin, "GET", "/metrics", &[], "");
    let stage = "component_kind=\"stage\",component_type=\"route\",component_id=\"route\",pipeline=\"live\"";
    for line in [
        "push_stream_worker_component_received_events_total{component_kind=\"source\",component_type=\"http_in\",component_id=\"in\",pipeline=\"\"} 2".to_owned(),
        format!("push_stream_worker_component_received_events_total{{{stage}}} 2"),
        format!("push_stream_worker_component_sent_events_total{{{stage}}} 1"),
        format!("push_stream_worker_component_parked_events_total{{{stage}}} 1"),
        format!("push_stream_worker_component_in_flight{{{stage}}} 0"),
        format!("push_stream_worker_sink_requests_total{{component_id=\"nginx\",node=\"{}\",code=\"200\"}} 1", intake.nginx.address),
        "push_stream_worker_source_in_flight_events{component_id=\"in\"} 0".to_owned(),
        "push_stream_worker_event_age_seconds_count 1".to_owned(),
        "push_stream_worker_parked_events_total 1".to_owned(),
    ] {
        assert!(metrics.body.lines().any(|found| found == line), "{line}\n{}", metrics.body);
    }
    assert_eq!(complaints_of_promtool(&metrics.body), "");
    assert_eq!(request(admin, "GET", "/ready", &[], "").status, 200);
    assert_eq!(request(admin, "GET", "/health", &[], "").status, 200);
    let address = std::mem::take(&mut intake.nginx.address);
    drop(intake.nginx);
    let port = intake.port;
    // The client does not read the answer.
    let mut waiting = TcpStream::connect(("127.0.0.1", port)).unwrap();
    waiting
        .write_all(b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"thread\":1}")
        .unwrap();
    worker.wait_for_log("fails: ");
    let ready = request(admin, "GET", "/ready", &[], "");
    assert_eq!(
        (ready.status, ready.body),
        (503, format!("not answering: nginx {address}\n"))
    );
}
