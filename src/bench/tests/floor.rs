//! The bench against its own floor server, end to end: it must pass where all is well and fail where it is not.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_push-stream-bench");

/// A running floor server on a port of its own.
struct Floor {
    child: Child,
    address: String,
}

impl Floor {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(BENCH)
            .args(["floor", "--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the floor starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .expect("the floor prints its address");
        Self {
            child,
            address: address.trim().to_owned(),
        }
    }

    fn bench(&self, scenario: &str, arguments: &[&str]) -> Output {
        let address = &self.address;
        Command::new(BENCH)
            .args([scenario, "--json", "--patience", "5"])
            .args(["--pub-url", &format!("http://{address}/pub?id={{channel}}")])
            .args(["--sub-url", &format!("http://{address}/ev/{{channel}}")])
            .args(["--stats-url", &format!("http://{address}/stats")])
            .args(["--server-pid", &self.child.id().to_string()])
            .args(arguments)
            .output()
            .expect("the bench runs")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn value(report: &Value, key: &str) -> f64 {
    report["facts"][key]["value"]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key} in {report}"))
}

/// The bench passes, and finds `key` to be `wanted`.
#[track_caller]
fn passes(output: &Output, key: &str, wanted: f64) -> Value {
    let report = report(output);
    assert_eq!(
        (output.status.code(), &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{report}"
    );
    assert_eq!(value(&report, key), wanted, "{report}");
    report
}

#[test]
fn fanout_delivers_everything_and_knows_what_it_cost() {
    let floor = Floor::start(&[]);
    let output = floor.bench(
        "fanout",
        &["--subscribers", "50", "--messages", "40", "--publishers", "4"],
    );
    let report = passes(&output, "deliveries", 2000.0);
    assert!(value(&report, "cpu_us") > 0.0);
    assert!(value(&report, "latency_p50_ms") <= value(&report, "latency_max_ms"));
}

#[test]
fn an_open_loop_is_no_faster_than_its_rate() {
    let floor = Floor::start(&[]);
    let output = floor.bench("fanout", &["--subscribers", "5", "--messages", "50", "--rate", "100"]);
    let report = passes(&output, "deliveries", 250.0);
    // 50 messages at 100/s: the last one is due after 0.49 s.
    assert!(
        (80.0..105.0).contains(&value(&report, "publishes_per_second")),
        "{report}"
    );
}

#[test]
fn verify_passes_when_nothing_is_wrong() {
    let floor = Floor::start(&[]);
    let output = floor.bench(
        "verify",
        &["--subscribers", "100", "--channels", "10", "--messages", "500"],
    );
    passes(&output, "deliveries", 5000.0);
}

#[test]
fn verify_passes_over_several_processes_and_workers() {
    let floor = Floor::start(&["--workers", "3"]);
    let arguments = [
        "--subscribers",
        "90",
        "--channels",
        "9",
        "--messages",
        "450",
        "--processes",
        "3",
    ];
    passes(&floor.bench("verify", &arguments), "deliveries", 4500.0);
}

#[test]
fn large_messages_arrive_in_pieces_and_whole() {
    let floor = Floor::start(&[]);
    let output = floor.bench(
        "verify",
        &[
            "--subscribers",
            "5",
            "--channels",
            "1",
            "--messages",
            "20",
            "--bytes",
            "1000000",
        ],
    );
    passes(&output, "deliveries", 100.0);
}

#[test]
fn idle_publish_and_storm_report_their_figures() {
    let floor = Floor::start(&[]);
    passes(
        &floor.bench("idle", &["--subscribers", "40", "--rest", "0", "--messages", "3"]),
        "subscribers",
        40.0,
    );
    let publish = report(&floor.bench("publish", &["--seconds", "0.2"]));
    assert!(value(&publish, "publishes_per_second") > 100.0, "{publish}");
    passes(
        &floor.bench("storm", &["--subscribers", "100", "--rate", "1000"]),
        "subscribers",
        100.0,
    );
}

/// A floor that does one thing wrong now and then makes verify fail, and say what it was.
#[track_caller]
fn verify_finds(spoil: &str, wanted: &str) {
    let floor = Floor::start(&["--spoil", spoil]);
    let output = floor.bench(
        "verify",
        &["--subscribers", "4", "--channels", "1", "--messages", "120"],
    );
    let report = report(&output);
    assert_eq!(
        (output.status.code(), &report["ok"]),
        (Some(1), &Value::Bool(false)),
        "{report}"
    );
    let problems = report["problems"].as_array().unwrap();
    assert!(
        problems
            .iter()
            .any(|problem| problem.as_str().unwrap().contains(wanted)),
        "no \"{wanted}\" in {report}"
    );
}

#[test]
fn verify_finds_lost_messages() {
    verify_finds("lose", "2 messages lost");
}

#[test]
fn verify_finds_doubled_messages() {
    verify_finds("double", "2 messages doubled");
}

#[test]
fn verify_finds_messages_out_of_order() {
    verify_finds("reorder", "2 messages out of order");
}

#[test]
fn verify_finds_garbled_messages() {
    verify_finds("garble", "2 messages foreign");
}

#[test]
fn verify_finds_broken_framing() {
    verify_finds("unframe", "responses malformed");
}

#[test]
fn verify_finds_cut_streams() {
    verify_finds("cut", "streams ended by the server");
}

#[test]
fn a_client_that_reconnects_to_a_server_without_history_misses_something() {
    let floor = Floor::start(&["--spoil", "cut"]);
    let arguments = [
        "--subscribers",
        "4",
        "--channels",
        "1",
        "--messages",
        "2000",
        "--reconnect",
    ];
    let report = report(&floor.bench("verify", &arguments));
    assert!(
        value(&report, "reconnects") > 0.0 && value(&report, "lost") > 0.0,
        "{report}"
    );
    assert_eq!(report["ok"], false);
}

#[test]
fn a_server_that_is_not_there_is_an_error_of_its_own() {
    let output = Command::new(BENCH)
        .args(["fanout", "--subscribers", "1", "--patience", "0.3"])
        .args(["--sub-url", "http://127.0.0.1:1/{channel}"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot connect"),
        "{output:?}"
    );
}
