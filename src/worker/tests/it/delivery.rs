use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::*;

fn run_lines(dir: &TempDir, config: &str, lines: impl Iterator<Item = String>) -> std::process::ExitStatus {
    let mut worker = Worker::start_with(dir, config, Stdio::piped());
    let mut stdin = worker.stdin();
    lines.for_each(|line| writeln!(stdin, "{line}").unwrap());
    drop(stdin);
    worker.wait()
}

#[test]
fn order_per_key_survives_errors_aborts_and_time_outs() {
    faults_do_not_change_the_order("ordered = false");
}

#[test]
fn the_order_of_the_source_survives_them_too() {
    let publishes = faults_do_not_change_the_order("ordered = true");
    let mut last = 0;
    for publish in publishes {
        let n = publish.json()["n"].as_u64().unwrap();
        assert!(n >= last, "{n} came after {last}");
        last = n;
    }
}

#[test]
fn batches_keep_the_order_too_and_a_line_that_fails_holds_up_only_what_follows() {
    let dir = TempDir::new();
    let random = Mutex::new(fastrand::Rng::with_seed(9));
    let nginx = StandIn::with_batches(move |publish| match random.lock().unwrap().u32(0..1000) {
        _ if publish.json()["n"] == 500 => Behaviour::Status(400, "Bad."),
        0..20 => Behaviour::Status(503, ""),
        20..22 => Behaviour::Abort,
        22..25 => Behaviour::AcceptAndAbort,
        _ => Behaviour::Accept,
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"\nmax_in_flight = 200") + "[engine]\nlanes = 3\n";
    let line = |n| format!("{{\"thread\":{},\"n\":{n}}}", n % 7);
    assert!(run_lines(&dir, &config, (0..2000).map(line)).success());
    let mut seen = std::collections::HashSet::new();
    for publish in nginx.accepted() {
        seen.insert(publish.json()["n"].as_u64().unwrap());
    }
    assert_eq!(seen.len(), 1999);
    assert_eq!(parked(&dir).len(), 1);
    assert!(parked(&dir)[0]["reason"].as_str().unwrap().contains("400 Bad."));
    assert!(nginx.batches() > 5 && nginx.batches() < 1500, "{}", nginx.batches());
}

/// Runs a test in both modes.
fn with_order_and_without(test: impl Fn(&str)) {
    ["ordered = true", "ordered = false"].into_iter().for_each(test);
}

/// Sorted numbers of the accepted events.
fn accepted_once(nginx: &StandIn) -> Vec<u64> {
    let mut numbers: Vec<u64> = nginx
        .accepted()
        .iter()
        .map(|publish| publish.json()["n"].as_u64().unwrap())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_batch_that_is_refused_as_a_whole_is_not_lost() {
    const EVENTS: u64 = 60;
    with_order_and_without(|mode| {
        for status in [400, 403, 404, 405, 413, 415, 429, 500, 503] {
            let dir = TempDir::new();
            let left = AtomicU32::new(3);
            let nginx = StandIn::with_batches(move |_| {
                let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                taken.map_or(Behaviour::Accept, |_| Behaviour::RefuseBatch(status))
            });
            let config = pipeline(&nginx.address, "type = \"file\"\npath = \"posts\"");
            let config = config.replace("timeout =", &format!("{mode}\ntimeout ="));
            let posts: String = (0..EVENTS).map(|n| format!("{{\"thread\":{n},\"n\":{n}}}\n")).collect();
            dir.append("posts", &posts);
            let worker = Worker::start(&dir, &config);
            nginx.wait_until(|publishes| publishes.len() as u64 >= EVENTS);
            assert!(worker.terminate().success());
            assert_eq!(
                accepted_once(&nginx),
                (0..EVENTS).collect::<Vec<_>>(),
                "{mode}, {status}"
            );
            assert!(parked(&dir).is_empty(), "{mode}, {status}");
        }
    });
}

#[test]
fn lines_of_a_batch_have_fates_of_their_own_also_without_order() {
    let dir = TempDir::new();
    let tries = Mutex::new(HashMap::new());
    let nginx = StandIn::with_batches(move |publish| {
        let n = publish.json()["n"].as_u64().unwrap();
        let mut tries = tries.lock().unwrap();
        let tries = tries.entry(n).or_insert(0);
        *tries += 1;
        match (n % 10, *tries) {
            (3, _) => Behaviour::Status(400, "Bad."),
            (5, 1..3) => Behaviour::Status(503, ""),
            (7, 1) => Behaviour::Status(424, ""),
            _ => Behaviour::Accept,
        }
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"").replace("timeout =", "ordered = false\ntimeout =");
    let line = |n| format!("{{\"thread\":{n},\"n\":{n}}}");
    assert!(run_lines(&dir, &config, (0..200).map(line)).success());
    let good: Vec<u64> = (0..200).filter(|n| n % 10 != 3).collect();
    assert_eq!(accepted_once(&nginx), good);
    assert_eq!(parked(&dir).len(), 20);
    assert!(parked(&dir)[0]["reason"].as_str().unwrap().contains("400 Bad."));
    assert!(nginx.batches() > 0);
}

fn faults_do_not_change_the_order(mode: &str) -> Vec<Publish> {
    const EVENTS: usize = 1500;
    const KEYS: usize = 25;
    let dir = TempDir::new();
    let random = Mutex::new(fastrand::Rng::with_seed(7));
    let nginx = StandIn::start("127.0.0.1:0", move |_| match random.lock().unwrap().u32(0..1000) {
        0..60 => Behaviour::Status(500, ""),
        60..90 => Behaviour::Status(503, "no memory"),
        90..130 => Behaviour::Abort,
        130..170 => Behaviour::AcceptAndAbort,
        170..173 => Behaviour::Hang(Duration::from_secs(2)),
        _ => Behaviour::Accept,
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"\nmax_in_flight = 200") + "[engine]\nlanes = 3\n";
    let config = config.replace("timeout = \"60s\"", &format!("timeout = \"300ms\"\n{mode}"));
    let line = |n| format!("{{\"thread\":{},\"n\":{n}}}", n % KEYS);
    assert!(run_lines(&dir, &config, (0..EVENTS).map(line)).success());

    let publishes = nginx.publishes();
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut ids: HashMap<u64, String> = HashMap::new();
    let mut accepted = std::collections::HashSet::new();
    for publish in &publishes {
        let n = publish.json()["n"].as_u64().unwrap();
        let before = last.insert(publish.uri.clone(), n);
        assert!(
            before.is_none_or(|before| before <= n),
            "{n} was overtaken by {before:?} in {}",
            publish.uri
        );
        if let Some(before) = before.filter(|before| *before != n) {
            assert!(
                accepted.contains(&before),
                "{n} came although {before} was not accepted"
            );
        }
        assert_eq!(
            ids.entry(n).or_insert_with(|| publish.id().to_owned()),
            publish.id(),
            "one id in all attempts"
        );
        if publish.accepted {
            accepted.insert(n);
        }
    }
    assert_eq!(accepted.len(), EVENTS);
    assert!(publishes.len() > EVENTS + EVENTS / 10, "there were faults");
    assert!(parked(&dir).is_empty());
    publishes
}

#[test]
fn a_failing_key_does_not_hold_up_the_others() {
    let dir = TempDir::new();
    let nginx = StandIn::start("127.0.0.1:0", |publish| match publish.uri.ends_with("thread.bad") {
        true => Behaviour::Status(500, ""),
        false => Behaviour::Accept,
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"").replace("[sink.nginx]", "[sink.nginx]\nordered = false");
    let mut worker = Worker::start_with(&dir, &config, Stdio::piped());
    let mut stdin = worker.stdin();
    writeln!(stdin, "{{\"thread\":\"bad\"}}").unwrap();
    (0..100).for_each(|n| writeln!(stdin, "{{\"thread\":\"t{n}\"}}").unwrap());
    nginx.wait_until(|all| all.iter().filter(|publish| publish.accepted).count() == 100);
    // Successes of other events neither cause an immediate retry nor indicate a recovery of the node.
    let retries = nginx
        .publishes()
        .iter()
        .filter(|publish| publish.uri.ends_with("thread.bad"))
        .count();
    assert!(retries < 50, "{retries}");
    assert!(worker.log().matches("answers again").count() <= 1, "{}", worker.log());
}

#[test]
fn what_cannot_be_accepted_is_parked_with_its_reason_and_the_rest_goes_on() {
    let dir = TempDir::new();
    let room = Mutex::new(0);
    let nginx = StandIn::start("127.0.0.1:0", move |publish| {
        match publish.json()["case"].as_str().unwrap() {
            "bad" => Behaviour::Status(400, "Empty post requests are not allowed."),
            "stale" => Behaviour::Status(409, "Event id is out of order."),
            "forbidden" => Behaviour::Status(403, "Only internal routines can change events channel."),
            "down" => Behaviour::Status(503, ""),
            "limit" => {
                let mut room = room.lock().unwrap();
                *room += 1;
                if *room < 3 {
                    Behaviour::Status(403, "Number of channels were exceeded.")
                } else {
                    Behaviour::Accept
                }
            }
            "wrong" => {
                let mut room = room.lock().unwrap();
                *room += 10;
                if *room < 30 {
                    Behaviour::Status(404, "")
                } else {
                    Behaviour::Accept
                }
            }
            _ => Behaviour::Accept,
        }
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"").replace("max_age = \"60s\"", "max_age = \"700ms\"");
    let cases = ["bad", "stale", "forbidden", "down", "limit", "wrong", "good"];
    let lines = cases
        .iter()
        .map(|case| format!("{{\"thread\":\"{case}\",\"case\":\"{case}\"}}"));
    let lines = lines.chain(["not json".to_owned(), "{\"case\":\"no thread\"}".to_owned()]);
    assert!(run_lines(&dir, &config, lines).success());

    let accepted: Vec<_> = nginx
        .accepted()
        .iter()
        .map(|publish| publish.json()["case"].clone())
        .collect();
    assert_eq!(accepted.len(), 3, "{accepted:?}");
    let parked = parked(&dir);
    let find = |text: &str| {
        let found = parked.iter().find(|line| line["raw"].as_str().unwrap().contains(text));
        found.unwrap_or_else(|| panic!("{text} is not parked: {parked:?}"))
    };
    for (case, reason) in [
        ("\"bad\"", "400 Empty post requests are not allowed."),
        ("\"stale\"", "stale: 409 Event id is out of order."),
        ("\"forbidden\"", "403 Only internal routines"),
        ("\"down\"", "gave up at the age of 700ms: 503"),
        ("not json", "not valid JSON"),
        ("no thread", "no channel"),
    ] {
        assert!(
            find(case)["reason"].as_str().unwrap().contains(reason),
            "{}",
            find(case)
        );
    }
    assert!(find("\"down\"")["attempts"].as_u64().unwrap() > 3);
    assert_eq!(find("\"bad\"")["channels"], serde_json::json!(["thread.bad"]));
    assert_eq!(parked.len(), 6);
}

#[test]
fn one_post_goes_to_all_channels_percent_encoded_over_a_unix_socket() {
    let dir = TempDir::new();
    let nginx = StandIn::start(&format!("unix:{}", dir.path("pub.sock").display()), |_| {
        Behaviour::Accept
    });
    let config = pipeline(&nginx.address, "type = \"stdin\"").replace(
        r#"["thread.{thread}"]"#,
        r#"["forum.{forum}", "thread.{thread}", "user.{author.id}"], event_type = "{kind}""#,
    );
    let line = r#"{"forum":"a b/ü","thread":"x.b5","author":{"id":7},"kind":"post"}"#.to_owned();
    assert!(run_lines(&dir, &config, [line.clone()].into_iter()).success());
    let publish = &nginx.publishes()[0];
    assert_eq!(publish.uri, "/pub?id=forum.a%20b_%C3%BC/thread.x.b5_/user.7");
    assert_eq!(publish.headers["event-type"], "post");
    assert_eq!(publish.headers["host"], "localhost");
    assert_eq!(publish.headers["content-length"], line.len().to_string());
    assert_eq!(publish.body, line);
    let (epoch, seq) = publish.id().split_once('-').unwrap();
    assert!(
        epoch.parse::<u64>().unwrap() > 1_600_000_000_000 && seq == "1",
        "{}",
        publish.id()
    );
}

#[test]
fn every_node_must_accept_and_one_that_did_is_not_asked_again() {
    let dir = TempDir::new();
    let up = StandIn::accepting();
    let port = free_port();
    let config = pipeline(
        &format!("{}\", \"http://127.0.0.1:{port}", up.address),
        "type = \"stdin\"",
    );
    let config = config.replace("[sink.nginx]", "[sink.nginx]\nordered = false");
    let mut worker = Worker::start_with(&dir, &config, Stdio::piped());
    let mut stdin = worker.stdin();
    writeln!(stdin, "{{\"thread\":1,\"n\":1}}\n{{\"thread\":1,\"n\":2}}").unwrap();
    drop(stdin);
    up.wait_for(1);
    worker.wait_for_log("fails: cannot connect");
    assert_eq!(up.count(), 1, "the second waits for the first to be everywhere");
    let late = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    late.wait_for(2);
    worker.wait_for_log("answers again");
    assert!(worker.wait().success());
    assert_eq!((up.count(), late.count()), (2, 2));
}

#[test]
fn with_fewer_nodes_required_a_node_that_is_down_holds_nothing_up_and_catches_up() {
    let dir = TempDir::new();
    let up = StandIn::with_batches(|_| Behaviour::Accept);
    let port = free_port();
    let nodes = format!("{}\", \"http://127.0.0.1:{port}", up.address);
    let config = pipeline(&nodes, "type = \"stdin\"\nmax_in_flight = 50");
    let config = config.replace("[sink.nginx]", "[sink.nginx]\nrequired = \"any\"");
    let mut worker = Worker::start_with(&dir, &config, Stdio::piped());
    let mut stdin = worker.stdin();
    // More than may be in flight: the source gets its acknowledgements although a node is down.
    (0..500).for_each(|n| writeln!(stdin, "{{\"thread\":{n},\"n\":{n}}}").unwrap());
    up.wait_for(500);
    worker.wait_for_log("fails: cannot connect");
    let late = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    late.wait_for(500);
    let order = |publishes: Vec<Publish>| publishes.iter().map(|one| one.json()["n"].clone()).collect::<Vec<_>>();
    assert_eq!(order(up.publishes()), order(late.publishes()));
    drop(stdin);
    assert!(worker.wait().success());
}

#[test]
fn tls_is_spoken_with_who_is_trusted_and_with_nobody_else() {
    let dir = TempDir::new();
    let openssl = |arguments: &str| {
        let status = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir.path(""))
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout node.key -out node.csr -subj /CN=localhost",
    );
    std::fs::write(dir.path("ext"), "subjectAltName=DNS:localhost").unwrap();
    openssl("x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2 -extfile ext");
    let nginx = StandIn::with_tls(&dir.path("node.pem"), &dir.path("node.key"));
    let node = nginx.address.replace("127.0.0.1", "localhost");
    let config = pipeline(&node, "type = \"stdin\"").replace("max_age = \"60s\"", "max_age = \"100ms\"");
    let trusting = config.replace("[sink.nginx]", "[sink.nginx]\nca_file = \"ca.pem\"");
    assert!(run_lines(&dir, &trusting, std::iter::once("{\"thread\":1}".to_owned())).success());
    let trusted = parked(&dir);
    assert!(run_lines(&dir, &config, std::iter::once("{\"thread\":2}".to_owned())).success());
    assert!(trusted.is_empty(), "{trusted:?}");
    assert_eq!(nginx.count(), 1);
    assert!(
        parked(&dir)[0]["reason"]
            .as_str()
            .unwrap()
            .contains("invalid peer certificate"),
        "{:?}",
        parked(&dir)
    );
}

#[test]
fn a_source_feeds_several_pipelines_and_waits_for_all_required_sinks() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, "type = \"stdin\"")
        + r#"
[sink.archive]
type = "file"
path = "archive/all.ndjson"
fsync = true
[sink.extra]
type = "file"
path = "archive/extra.ndjson"
required = false
[stage.anon]
type = "anonymise"
mask = ["name"]
[pipeline.file]
from = "in"
stages = ["parse", "anon"]
to = ["archive", "extra"]
"#;
    let lines = (0..20).map(|n| format!("{{\"thread\":{},\"n\":{n},\"name\":\"Ann\"}}", n % 3));
    assert!(run_lines(&dir, &config, lines).success());
    assert_eq!(nginx.accepted().len(), 20);
    let archived = dir.read("archive/all.ndjson");
    let expected: String = (0..20)
        .map(|n| format!("{{\"thread\":{},\"n\":{n},\"name\":\"***\"}}\n", n % 3))
        .collect();
    assert_eq!(
        archived, expected,
        "a pipeline without route keeps the order of the source"
    );
    assert_eq!(dir.read("archive/extra.ndjson"), expected);
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_ends_with_0() {
    let dir = TempDir::new();
    let nginx = StandIn::start("127.0.0.1:0", |_| {
        std::thread::sleep(Duration::from_millis(5));
        Behaviour::Accept
    });
    let config = pipeline(&nginx.address, "type = \"file\"\npath = \"log\"\nmax_in_flight = 50");
    for n in 0..2000 {
        dir.append("log", &format!("{{\"thread\":{n},\"n\":{n}}}\n"));
    }
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(20);
    assert_eq!(worker.terminate().code(), Some(0));
    let first = nginx.count();
    assert!((20..2000).contains(&first), "{first}");
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(first + 30);
    assert_eq!(worker.terminate().code(), Some(0));
    let mut seen: Vec<u64> = nginx
        .publishes()
        .iter()
        .map(|publish| publish.json()["n"].as_u64().unwrap())
        .collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count, "an orderly stop repeats nothing");
}

#[test]
fn a_drain_that_runs_out_of_time_ends_and_the_events_come_again() {
    let dir = TempDir::new();
    let port = free_port();
    let config = pipeline(&format!("http://127.0.0.1:{port}"), "type = \"file\"\npath = \"log\"");
    let config = format!("[engine]\ndrain = \"300ms\"\n{config}");
    dir.append("log", "{\"thread\":1,\"n\":1}\n");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("fails: cannot connect");
    let start = Instant::now();
    assert_eq!(worker.terminate().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5));
    let nginx = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    let _worker = Worker::start(&dir, &config);
    nginx.wait_for(1);
}

/// nginx waits at its end for the first request of a connection, up to `client_header_timeout`: none may come without.
#[test]
fn a_node_that_closes_each_connection_gets_none_without_a_request() {
    let dir = TempDir::new();
    let node = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", node.local_addr().unwrap());
    dir.append("log", "{\"thread\":1}\n");
    let config = pipeline(&address, "type = \"file\"\npath = \"log\"\nstart = \"beginning\"");
    let worker = Worker::start(
        &dir,
        &config.replace("timeout = \"60s\"", "timeout = \"60s\"\nordered = true"),
    );
    let mut methods = Vec::new();
    // With the event, and then idle: it looks after the node from time to time.
    while methods.iter().filter(|method| *method == "POST").count() == 0 || methods.last().unwrap() == "POST" {
        methods.push(answer_and_close(&node));
    }
    for _ in 0..4 {
        methods.push(answer_and_close(&node));
    }
    assert!(methods.iter().all(|method| !method.is_empty()), "{methods:?}");
    assert_eq!(
        methods.iter().filter(|method| *method == "POST").count(),
        1,
        "{methods:?}"
    );
    worker.terminate();
}

/// The method of the next connection's request; empty if there is none for a long time.
fn answer_and_close(node: &TcpListener) -> String {
    let (stream, _) = node.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return String::new();
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    let method = head.split(' ').next().unwrap_or_default().to_owned();
    let status = if method == "POST" { "200 OK" } else { "405 Not Allowed" };
    let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    reader.get_mut().write_all(answer.as_bytes()).unwrap();
    method
}
