//! The dead-letter file: letters stay listed until they are done.

use std::io::Write;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::*;

fn event(n: usize) -> String {
    format!("{{\"thread\":1,\"n\":{n}}}")
}

/// Parks `count` events in the file by a refusing node. Returns the node's port.
fn park(dir: &TempDir, count: usize) -> String {
    let refusing = StandIn::start("127.0.0.1:0", |_| Behaviour::Status(400, "Not today."));
    let mut worker = Worker::start_with(dir, &pipeline(&refusing.address, "type = \"stdin\""), Stdio::piped());
    let mut input = worker.stdin();
    for n in 0..count {
        writeln!(input, "{}", event(n)).unwrap();
    }
    drop(input);
    assert!(worker.wait().success());
    assert_eq!(parked(dir).len(), count);
    refusing.address.strip_prefix("http://").unwrap().to_owned()
}

fn run(dir: &TempDir, arguments: &[&str]) -> Output {
    Worker::command(dir).args(arguments).output().unwrap()
}

fn numbers(dir: &TempDir) -> Vec<u64> {
    let raw = parked(dir)
        .into_iter()
        .map(|line| line["raw"].as_str().unwrap().to_owned());
    raw.map(|raw| {
        serde_json::from_str::<serde_json::Value>(&raw).unwrap()["n"]
            .as_u64()
            .unwrap()
    })
    .collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_retry_that_is_stopped_while_the_node_is_away_leaves_everything_parked() {
    let dir = TempDir::new();
    let address = park(&dir, 3);
    let before = dir.read("state/parked.ndjson");
    for signal in ["-INT", "-HUP", "-KILL"] {
        let log = std::fs::File::create(dir.path("retry.log")).unwrap();
        let mut retry = Worker::command(&dir)
            .args(["park", "retry", "worker.toml", "--all"])
            .stderr(log)
            .spawn()
            .unwrap();
        wait("the node to be missed", || dir.read("retry.log").contains("sink nginx"));
        let pid = retry.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(!retry.wait().unwrap().success(), "{signal}");
        assert_eq!(dir.read("state/parked.ndjson"), before, "{signal}");
    }
    let nginx = StandIn::start(&address, |_| Behaviour::Accept);
    let output = run(&dir, &["park", "retry", "worker.toml", "--all"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(nginx.count(), 3);
    assert!(parked(&dir).is_empty());
    let mut left: Vec<String> = std::fs::read_dir(dir.path("state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["in.epoch.json", "lock", "parked.ndjson"]);
}

#[test]
fn a_line_leaves_the_file_when_it_is_done_and_not_before() {
    let dir = TempDir::new();
    let address = park(&dir, 4);
    let nginx = StandIn::start(&address, |publish| match publish.json()["n"].as_u64() {
        Some(2) => Behaviour::Hang(Duration::from_secs(60)),
        _ => Behaviour::Accept,
    });
    let mut retry = Worker::command(&dir)
        .args(["park", "retry", "worker.toml", "--all"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the first to leave", || numbers(&dir) == [2, 3]);
    let second = run(&dir, &["park", "retry", "worker.toml", "--all"]);
    assert!(!second.status.success());
    assert!(
        stderr(&second).contains("another park retry or park drop is at work"),
        "{second:?}"
    );
    retry.kill().unwrap();
    retry.wait().unwrap();
    assert_eq!(numbers(&dir), [2, 3]);
    drop(nginx);

    let nginx = StandIn::start(&address, |publish| match publish.json()["n"].as_u64() {
        Some(2) => Behaviour::Status(400, "Never."),
        _ => Behaviour::Accept,
    });
    let third = run(&dir, &["park", "retry", "worker.toml", "--all"]);
    assert_eq!(third.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&third.stdout), "1 of 2 done\n");
    assert!(stderr(&third).contains("1 still parked"), "{third:?}");
    assert_eq!(nginx.accepted().len(), 1);
    let left = parked(&dir);
    assert_eq!(left.len(), 1);
    assert!(left[0]["reason"].as_str().unwrap().contains("Never."), "{left:?}");
    assert!(left[0]["attempts"].as_u64().unwrap() >= 2);
}

#[test]
fn what_is_sent_again_into_a_channel_that_went_on_is_put_behind_its_newest() {
    let dir = TempDir::new();
    let address = park(&dir, 3);
    let nginx = StandIn::ordering(&address);
    let port = free_port();
    let live = pipeline(
        &nginx.address,
        &format!("type = \"http_in\"\nlisten = \"127.0.0.1:{port}\""),
    );
    let live_dir = TempDir::new();
    let worker = Worker::start(&live_dir, &live);
    wait_for_port(port);
    assert_eq!(post(port, "/", &event(100)).status, 200);
    let output = run(&dir, &["park", "retry", "worker.toml", "--all"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3 of 3 done\n");
    assert!(parked(&dir).is_empty());
    assert_eq!(
        post(port, "/", &event(101)).status,
        200,
        "and does not stand in its way"
    );

    dir.append("recorded", &(0..100).map(|n| event(n) + "\n").collect::<String>());
    let before = nginx.count();
    let output = std::thread::scope(|scope| {
        let replay = scope.spawn(|| run(&dir, &["replay", "worker.toml", "recorded"]));
        let mut n = 102;
        while !replay.is_finished() {
            assert_eq!(post(port, "/", &event(n)).status, 200);
            n += 1;
            // Not a wait for a condition: the pace of live events.
            std::thread::sleep(Duration::from_millis(5));
        }
        replay.join().unwrap()
    });
    assert!(output.status.success(), "{output:?}");
    let numbers = |publishes: &[Publish]| -> Vec<u64> {
        let numbers = publishes.iter().filter(|publish| publish.accepted);
        numbers.map(|publish| publish.json()["n"].as_u64().unwrap()).collect()
    };
    let publishes = nginx.publishes();
    assert_eq!(numbers(&publishes[..before]), [100, 0, 1, 2, 101]);
    let mut replayed = numbers(&publishes[before..]);
    replayed.retain(|&n| n < 100);
    assert_eq!(replayed, (0..100).collect::<Vec<_>>(), "in their order");
    assert!(worker.terminate().success());
}

#[test]
fn a_replay_says_what_was_parked_and_what_not_sent() {
    let dir = TempDir::new();
    let address = park(&dir, 0);
    let nginx = StandIn::start(&address, |publish| match publish.json()["n"].as_u64() {
        Some(1) => Behaviour::Status(400, "Not this one."),
        _ => Behaviour::Accept,
    });
    dir.append("recorded", &(0..3).map(|n| event(n) + "\n").collect::<String>());
    let output = run(&dir, &["replay", "worker.toml", "recorded"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("2 of 3 events are done, 1 parked in state/parked.ndjson"),
        "{output:?}"
    );
    assert_eq!(numbers(&dir), [1]);
    drop(nginx);
    let away = Worker::command(&dir)
        .args(["replay", "worker.toml", "recorded"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &away.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let output = away.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("0 of 3 events are done, 3 not sent or not known to be there"),
        "{output:?}"
    );
}

#[test]
fn what_is_dropped_is_nowhere_on_the_disk() {
    let dir = TempDir::new();
    park(&dir, 3);
    let id = parked(&dir)[1]["id"].as_str().unwrap().to_owned();
    let on_disk = || {
        let files = std::fs::read_dir(dir.path("state")).unwrap();
        let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        texts.collect::<String>()
    };
    assert!(on_disk().contains("n\\\":1"));
    assert!(
        Worker::run(&dir, &["park", "list", "worker.toml"])
            .starts_with(&format!("in {}", parked(&dir)[0]["id"].as_str().unwrap()))
    );
    assert_eq!(Worker::run(&dir, &["park", "drop", "worker.toml", &id]), "1 dropped\n");
    assert!(!on_disk().contains("n\\\":1"), "{}", on_disk());
    assert_eq!(numbers(&dir), [0, 2]);
    assert!(
        !run(&dir, &["park", "drop", "worker.toml", &id]).status.success(),
        "it is not there"
    );
    assert_eq!(
        Worker::run(&dir, &["park", "drop", "worker.toml", "--all"]),
        "2 dropped\n"
    );
    assert!(!on_disk().contains("n\\\":"), "{}", on_disk());
}

#[test]
fn a_line_whose_pipeline_is_gone_stays() {
    let dir = TempDir::new();
    let address = park(&dir, 2);
    let _nginx = StandIn::start(&address, |_| Behaviour::Accept);
    let config = dir.read("worker.toml").replace("[pipeline.live]", "[pipeline.other]");
    std::fs::write(dir.path("worker.toml"), config).unwrap();
    let output = run(&dir, &["park", "retry", "worker.toml", "--all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("there is no pipeline \"live\" any more"),
        "{output:?}"
    );
    assert_eq!(parked(&dir).len(), 2);
}

#[test]
fn dead_letters_are_listed_and_retried_at_the_admin_address_of_the_running_worker() {
    let dir = TempDir::new();
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let nginx = StandIn::start("127.0.0.1:0", move |_| {
        if is_mended.load(Ordering::Relaxed) {
            Behaviour::Accept
        } else {
            Behaviour::Status(400, "Not today.")
        }
    });
    let (port, admin) = (free_port(), free_port());
    let source = format!("type = \"http_in\"\nlisten = \"127.0.0.1:{port}\"");
    let config = |retry: &str| {
        pipeline(&nginx.address, &source) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n{retry}\n")
    };
    let console = [("X-Nginx-PushStream-Console", "1")];

    let worker = Worker::start(&dir, &config(""));
    wait_for_port(port);
    wait_for_port(admin);
    let empty = request(admin, "GET", "/parked", &[], "");
    assert_eq!((empty.status, empty.json()["total"].as_u64()), (200, Some(0)));
    for n in 0..3 {
        post(port, "/", &event(n));
    }
    wait("all to be parked", || {
        request(admin, "GET", "/parked", &[], "").json()["total"] == 3
    });
    let listed = request(admin, "GET", "/parked", &[], "").json();
    let id = listed["events"][1]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed["events"][1]["source"], "in");
    assert!(
        listed["events"][1]["reason"].as_str().unwrap().contains("Not today."),
        "{listed}"
    );
    assert_eq!(listed["events"][1]["event"], event(1));

    // Without leave nothing is retried, and other verbs and paths are told which there are.
    let refused = request(admin, "POST", "/parked/retry", &console, "");
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(
        refused.json()["explain"].as_str().unwrap().contains("retry = true"),
        "{refused:?}"
    );
    assert_eq!(request(admin, "POST", "/parked", &console, "").status, 405);
    assert_eq!(request(admin, "GET", "/parked/other", &[], "").status, 404);
    assert!(worker.terminate().success());

    let _worker = Worker::start(&dir, &config("retry = true"));
    wait_for_port(admin);
    mended.store(true, Ordering::Relaxed);
    let foreign = request(admin, "POST", "/parked/retry", &[], "");
    assert_eq!(
        foreign.status, 403,
        "a page of another origin cannot send the header: {foreign:?}"
    );
    assert_eq!(parked(&dir).len(), 3);
    let one = request(admin, "POST", &format!("/parked/retry?{id}"), &console, "");
    assert_eq!(one.status, 200, "{one:?}");
    assert_eq!(one.json(), serde_json::json!({"done": true, "said": "1 of 1 done"}));
    assert_eq!(numbers(&dir), [0, 2]);
    let unknown = request(admin, "POST", "/parked/retry?nobody", &console, "");
    assert_eq!(unknown.json()["done"], false, "{unknown:?}");
    let all = request(admin, "POST", "/parked/retry", &console, "");
    assert_eq!(all.json(), serde_json::json!({"done": true, "said": "2 of 2 done"}));
    assert_eq!(request(admin, "GET", "/parked", &[], "").json()["total"], 0);
    let mut published: Vec<u64> = nginx
        .accepted()
        .iter()
        .map(|publish| publish.json()["n"].as_u64().unwrap())
        .collect();
    published.sort_unstable();
    assert_eq!(published, [0, 1, 2]);
}
