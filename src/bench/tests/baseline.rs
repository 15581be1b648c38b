//! The bench against its own baseline server, end to end: it must pass on correct behaviour and fail on errors.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_push-stream-bench");

/// A running baseline server on its own port.
struct Baseline {
    child: Child,
    address: String,
    scheme: &'static str,
    /// The bench's patience in seconds: long where all goes well, even on a busy machine; short for messages that never
    /// come.
    patience: &'static str,
}

impl Baseline {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(BENCH)
            .args(["baseline", "--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the baseline starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut address)
            .expect("the baseline prints its address");
        Self {
            child,
            address: address.trim().to_owned(),
            scheme: if arguments.contains(&"--tls") { "https" } else { "http" },
            patience: if arguments.contains(&"--spoil") { "2" } else { "20" },
        }
    }

    fn bench(&self, scenario: &str, arguments: &[&str]) -> Output {
        self.bench_over("eventsource", scenario, arguments)
    }

    fn bench_over(&self, transport: &str, scenario: &str, arguments: &[&str]) -> Output {
        let (address, scheme) = (&self.address, self.scheme);
        let path = match transport {
            "websocket" => "ws",
            "streaming" => "stream",
            _ => "ev",
        };
        Command::new(BENCH)
            .args([scenario, "--json", "--patience", self.patience])
            .args(["--pub-url", &format!("{scheme}://{address}/pub?id={{channel}}")])
            .args(["--sub-url", &format!("{scheme}://{address}/{path}/{{channel}}")])
            .args(["--transport", transport])
            .args(["--stats-url", &format!("{scheme}://{address}/stats")])
            .args(["--server-pid", &self.child.id().to_string()])
            .args(arguments)
            .output()
            .expect("the bench runs")
    }
}

impl Drop for Baseline {
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

/// Runs the bench; it must pass, with `wanted` as the value of `key`.
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
    let baseline = Baseline::start(&[]);
    let output = baseline.bench(
        "fanout",
        &["--subscribers", "50", "--messages", "40", "--publishers", "4"],
    );
    let report = passes(&output, "deliveries", 2000.0);
    assert!(value(&report, "cpu_us") > 0.0);
    assert!(value(&report, "latency_p50_ms") <= value(&report, "latency_max_ms"));
}

#[test]
fn an_open_loop_is_no_faster_than_its_rate() {
    let baseline = Baseline::start(&[]);
    let output = baseline.bench("fanout", &["--subscribers", "5", "--messages", "50", "--rate", "100"]);
    let report = passes(&output, "deliveries", 250.0);
    // 50 messages at 100/s: the last one is due after 0.49 s.
    assert!(
        (80.0..105.0).contains(&value(&report, "publishes_per_second")),
        "{report}"
    );
}

#[test]
fn verify_passes_when_nothing_is_wrong() {
    let baseline = Baseline::start(&[]);
    let output = baseline.bench(
        "verify",
        &["--subscribers", "100", "--channels", "10", "--messages", "500"],
    );
    passes(&output, "deliveries", 5000.0);
}

#[test]
fn verify_passes_over_several_processes_and_workers() {
    let baseline = Baseline::start(&["--workers", "3"]);
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
    passes(&baseline.bench("verify", &arguments), "deliveries", 4500.0);
}

#[test]
fn verify_passes_over_tls() {
    let baseline = Baseline::start(&["--tls", "--workers", "2"]);
    let arguments = ["--subscribers", "40", "--channels", "4", "--messages", "200"];
    for transport in ["eventsource", "streaming", "websocket"] {
        passes(
            &baseline.bench_over(transport, "verify", &arguments),
            "deliveries",
            2000.0,
        );
    }
}

/// The unencrypted URL of a server, together with the option to encrypt.
#[test]
fn an_option_encrypts() {
    let mut baseline = Baseline::start(&["--tls"]);
    baseline.scheme = "http";
    let stats = format!("https://{}/stats", baseline.address);
    let arguments = [
        "--tls",
        "--stats-url",
        &stats,
        "--subscribers",
        "20",
        "--messages",
        "50",
    ];
    passes(&baseline.bench("fanout", &arguments), "deliveries", 1000.0);
    let plain = baseline.bench(
        "fanout",
        &["--stats-url", &stats, "--subscribers", "1", "--patience", "0.5"],
    );
    assert_eq!(plain.status.code(), Some(2), "{plain:?}");
}

/// Records are cut anywhere and span many reads.
#[test]
fn large_messages_arrive_whole_over_tls() {
    let baseline = Baseline::start(&["--tls"]);
    let arguments = [
        "--subscribers",
        "5",
        "--channels",
        "1",
        "--messages",
        "20",
        "--bytes",
        "1000000",
    ];
    passes(&baseline.bench("verify", &arguments), "deliveries", 100.0);
}

#[test]
fn everything_that_measures_works_over_tls() {
    let baseline = Baseline::start(&["--tls"]);
    let idle = report(&baseline.bench("idle", &["--subscribers", "200", "--rest", "0", "--messages", "3"]));
    assert_eq!(idle["ok"], true, "{idle}");
    // OpenSSL's memory per connection.
    assert!(value(&idle, "pss_bytes") > 4_000.0, "{idle}");
    let publish = report(&baseline.bench("publish", &["--seconds", "0.2"]));
    assert!(value(&publish, "publishes_per_second") > 100.0, "{publish}");
    passes(
        &baseline.bench("storm", &["--subscribers", "100", "--rate", "500"]),
        "subscribers",
        100.0,
    );
    let churn = report(&baseline.bench(
        "churn",
        &[
            "--subscribers",
            "50",
            "--arrivals",
            "100",
            "--seconds",
            "1",
            "--rest",
            "0.2",
            "--max-growth",
            "4000",
        ],
    ));
    assert_eq!(churn["ok"], true, "{churn}");
}

/// A client must be small after its handshake: hundreds of thousands run beside the server on one machine.
#[test]
fn an_idle_client_over_tls_is_small() {
    let baseline = Baseline::start(&["--tls"]);
    let bytes = |subscribers: f64| {
        let (count, window) = (subscribers.to_string(), ["--connect-window", "16", "--rest", "0.3"]);
        let idle = report(&baseline.bench("idle", &[&["--subscribers", &count], &window[..]].concat()));
        value(&idle, "client_bytes") * subscribers
    };
    // The process's fixed cost is in both values.
    let each = (bytes(900.0) - bytes(300.0)) / 600.0;
    assert!((100.0..1_000.0).contains(&each), "{each}");
}

#[test]
fn verify_notices_what_goes_wrong_over_tls() {
    for (spoil, wanted) in [
        ("lose", "2 messages lost"),
        ("double", "2 messages doubled"),
        ("cut", "streams ended"),
    ] {
        let baseline = Baseline::start(&["--tls", "--spoil", spoil]);
        let report = report(&baseline.bench(
            "verify",
            &["--subscribers", "4", "--channels", "1", "--messages", "120"],
        ));
        assert!(report["problems"].to_string().contains(wanted), "{report}");
    }
}

#[test]
fn large_messages_arrive_in_pieces_and_whole() {
    let baseline = Baseline::start(&[]);
    let output = baseline.bench(
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
    let baseline = Baseline::start(&[]);
    passes(
        &baseline.bench("idle", &["--subscribers", "40", "--rest", "0", "--messages", "3"]),
        "subscribers",
        40.0,
    );
    let publish = report(&baseline.bench("publish", &["--seconds", "0.2"]));
    assert!(value(&publish, "publishes_per_second") > 100.0, "{publish}");
    passes(
        &baseline.bench("storm", &["--subscribers", "100", "--rate", "1000"]),
        "subscribers",
        100.0,
    );
}

#[test]
fn many_reaches_the_subscribers_of_every_channel() {
    let baseline = Baseline::start(&["--workers", "2"]);
    let arguments = ["--subscribers", "200", "--channels", "50", "--messages", "100"];
    passes(&baseline.bench("many", &arguments), "deliveries", 400.0);
}

#[test]
fn verify_passes_over_every_transport() {
    let baseline = Baseline::start(&["--workers", "2"]);
    let arguments = ["--subscribers", "40", "--channels", "4", "--messages", "200"];
    for transport in ["streaming", "websocket"] {
        passes(
            &baseline.bench_over(transport, "verify", &arguments),
            "deliveries",
            2000.0,
        );
    }
}

/// Arrivals and departures while messages flow: each subscriber sees everything from its arrival to its departure.
#[test]
fn visitors_miss_nothing_while_they_are_there() {
    let baseline = Baseline::start(&["--workers", "2"]);
    let arguments = [
        "--subscribers",
        "100",
        "--channels",
        "10",
        "--arrivals",
        "200",
        "--messages",
        "200",
    ];
    // Long enough that a moment without a processor does not affect the rates.
    let arguments = [&arguments[..], &["--seconds", "3", "--rest", "0"]].concat();
    for transport in ["eventsource", "streaming", "websocket"] {
        let report = report(&baseline.bench_over(transport, "disqus", &arguments));
        assert_eq!(report["ok"], true, "{report}");
        assert!(
            (190.0..=205.0).contains(&value(&report, "arrivals_per_second")),
            "{report}"
        );
        assert!(value(&report, "deliveries_per_second") > 1_000.0, "{report}");
        assert!(value(&report, "opening_p50_ms") > 0.0, "{report}");
    }
}

#[test]
fn visitors_notice_what_they_lose() {
    let baseline = Baseline::start(&["--spoil", "lose"]);
    let arguments = [
        "--subscribers",
        "20",
        "--channels",
        "1",
        "--arrivals",
        "50",
        "--messages",
        "200",
        "--seconds",
        "1",
        "--rest",
        "0",
    ];
    let report = report(&baseline.bench("disqus", &arguments));
    // One of fifty, and the last of the 200 is due at the very end.
    assert_eq!(report["ok"], false, "{report}");
    assert!((3.0..=4.0).contains(&value(&report, "lost")), "{report}");
}

#[test]
fn churn_and_soak_see_what_the_server_gives_back() {
    let baseline = Baseline::start(&[]);
    let arguments = [
        "--subscribers",
        "50",
        "--arrivals",
        "300",
        "--seconds",
        "1",
        "--rest",
        "0.2",
    ];
    let churn = report(&baseline.bench("churn", &arguments));
    assert_eq!(churn["ok"], true, "{churn}");
    assert!((280.0..=310.0).contains(&value(&churn, "visits")), "{churn}");
    assert!(
        (280.0..=310.0).contains(&value(&churn, "arrivals_per_second")),
        "{churn}"
    );
    assert_eq!(
        value(&churn, "after_descriptors"),
        value(&churn, "empty_descriptors"),
        "{churn}"
    );
    assert_eq!(
        value(&churn, "full_descriptors"),
        value(&churn, "empty_descriptors") + 66.0,
        "{churn}"
    );
    let soak = report(&baseline.bench("soak", &arguments));
    assert_eq!(soak["ok"], true, "{soak}");
    assert!(value(&soak, "growth_percent") < 5.0, "{soak}");
}

#[test]
fn a_broadcast_reaches_all_of_a_million_in_small() {
    let baseline = Baseline::start(&["--workers", "3"]);
    let arguments = [
        "--subscribers",
        "600",
        "--steps",
        "3",
        "--processes",
        "12",
        "--max-kept",
        "100000",
    ];
    let report = passes(&baseline.bench("million", &arguments), "deliveries", 600.0);
    assert!(value(&report, "client_bytes") > 0.0, "{report}");
}

#[test]
fn a_machine_without_memory_is_not_driven_to_its_end() {
    let baseline = Baseline::start(&[]);
    let arguments = ["--subscribers", "100", "--reserve", "1000000000"];
    let output = baseline.bench("million", &arguments);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("0 subscribers are connected"),
        "{output:?}"
    );
}

#[test]
fn a_broadcast_that_does_not_reach_all_is_noticed() {
    let baseline = Baseline::start(&["--spoil", "haunt"]);
    let arguments = [
        "--subscribers",
        "60",
        "--broadcast-limit",
        "0",
        "--leave-limit",
        "0.3",
        "--max-kept",
        "100000",
    ];
    let report = report(&baseline.bench("million", &arguments));
    let problems = report["problems"].to_string();
    assert!(
        problems.contains("took longer than 0 s") && problems.contains("still show 1"),
        "{report}"
    );
}

/// A leaking baseline is detected.
#[test]
fn churn_finds_leaks() {
    let baseline = Baseline::start(&["--spoil", "leak"]);
    let arguments = [
        "--subscribers",
        "50",
        "--arrivals",
        "2000",
        "--seconds",
        "4",
        "--max-growth",
        "64",
    ];
    let churn = report(&baseline.bench("churn", &arguments));
    let problems = churn["problems"].to_string();
    assert!(problems.contains("of each subscriber that left"), "{churn}");
    assert!(problems.contains("files open"), "{churn}");
}

#[test]
fn who_stays_in_the_statistics_is_noticed() {
    let baseline = Baseline::start(&["--spoil", "haunt"]);
    let arguments = ["--subscribers", "10", "--rate", "1000", "--leave-limit", "0.3"];
    let storm = report(&baseline.bench("storm", &arguments));
    assert!(storm["problems"].to_string().contains("still show 1"), "{storm}");
}

/// A baseline with one occasional fault makes verify fail and name it, over every transport.
#[track_caller]
fn verify_finds(spoil: &str, wanted: &str) {
    for transport in ["eventsource", "streaming", "websocket"] {
        let baseline = Baseline::start(&["--spoil", spoil]);
        let arguments = ["--subscribers", "4", "--channels", "1", "--messages", "120"];
        let output = baseline.bench_over(transport, "verify", &arguments);
        let report = report(&output);
        assert_eq!(
            (output.status.code(), &report["ok"]),
            (Some(1), &Value::Bool(false)),
            "{transport}: {report}"
        );
        let problems = report["problems"].as_array().unwrap();
        assert!(
            problems
                .iter()
                .any(|problem| problem.as_str().unwrap().contains(wanted)),
            "no \"{wanted}\" over {transport} in {report}"
        );
    }
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
    verify_finds("unframe", "messages lost");
}

#[test]
fn verify_finds_cut_streams() {
    verify_finds("cut", "streams ended by the server");
}

#[test]
fn a_client_that_reconnects_to_a_server_without_history_misses_something() {
    let baseline = Baseline::start(&["--spoil", "cut"]);
    let arguments = [
        "--subscribers",
        "4",
        "--channels",
        "1",
        "--messages",
        "2000",
        "--reconnect",
    ];
    let report = report(&baseline.bench("verify", &arguments));
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
