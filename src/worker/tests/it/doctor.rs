//! `doctor`: names faults and their remedies.

use crate::brokers::*;
use crate::support::*;

/// The output of `doctor`, and whether it found no error.
fn doctor(dir: &TempDir, config: &str) -> (String, bool) {
    std::fs::write(dir.path("worker.toml"), config).unwrap();
    let output = Worker::command(dir).args(["doctor", "worker.toml"]).output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

/// Asserts a line with this verdict that contains all of these texts.
#[track_caller]
fn assert_line(said: &str, verdict: &str, parts: &[&str]) {
    let is_it = |line: &str| line.starts_with(verdict) && parts.iter().all(|part| line.contains(part));
    assert!(said.lines().any(is_it), "no {verdict} with {parts:?} in:\n{said}");
}

fn stream(url: &str) -> String {
    format!("type = \"redis_streams\"\nurl = \"{url}\"\nstream = \"posts\"\ngroup = \"push\"")
}

#[test]
fn what_is_wrong_with_redis_is_told_with_advice() {
    let mut redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let config = pipeline(&nginx.address, &stream(&redis.url()));
    let (said, is_well) = doctor(&dir, &config);
    assert!(is_well, "{said}");
    assert_line(&said, "ok", &["source in: Redis at 127.0.0.1:", "answers"]);
    assert_line(&said, "ok", &["state_dir", "can be written to"]);
    assert_line(&said, "ok", &["source in: answers, 0 open"]);
    // No worker has been started yet.
    let mut add = redis::cmd("XADD");
    add.arg("posts").arg("*").arg("body").arg("{}");
    add.query::<()>(&mut redis.connect()).unwrap();
    assert_line(&doctor(&dir, &config).0, "ok", &["source in: answers, 1 open"]);

    let set = |redis: &Redis, key: &str, value: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg(key).arg(value);
        command.query::<()>(&mut redis.connect()).unwrap();
    };
    set(&redis, "maxmemory", "100mb");
    set(&redis, "maxmemory-policy", "volatile-ttl");
    let (said, is_well) = doctor(&dir, &config);
    assert!(is_well, "{said}");
    assert_line(
        &said,
        "warning",
        &["source in", "maxmemory-policy volatile-ttl", "noeviction"],
    );
    set(&redis, "maxmemory-policy", "allkeys-lru");
    set(&redis, "appendonly", "no");
    let (said, is_well) = doctor(&dir, &config);
    assert!(!is_well, "{said}");
    assert_line(
        &said,
        "ERROR",
        &["source in", "maxmemory-policy allkeys-lru", "noeviction"],
    );
    assert_line(&said, "warning", &["no append-only file", "appendonly yes"]);
    set(&redis, "maxmemory", "0");
    assert!(doctor(&dir, &config).1, "without a limit nothing is thrown away");

    let (said, _) = doctor(&dir, &config.replace("/0\"", "/99\""));
    assert_line(&said, "ERROR", &["source in", "the end of \"url\""]);
    set(&redis, "requirepass", "sesame");
    let (said, is_well) = doctor(&dir, &config);
    assert!(!is_well, "{said}");
    assert_line(&said, "ERROR", &["source in", "redis://:PASSWORD@"]);
    let with_password = |password: &str| config.replace("redis://", &format!("redis://:{password}@"));
    let (said, _) = doctor(&dir, &with_password("open"));
    assert_line(&said, "ERROR", &["source in", "check user and password"]);
    let (said, is_well) = doctor(&dir, &with_password("sesame"));
    assert!(is_well, "{said}");

    redis.kill();
    let (said, is_well) = doctor(&dir, &config);
    assert!(!is_well, "{said}");
    assert_line(&said, "ERROR", &["source in", "refused", "is it running there"]);
}

#[test]
fn what_is_wrong_with_a_node_is_told_with_advice() {
    let dir = TempDir::new();
    let posts = "type = \"file\"\npath = \"posts\"";
    let one_by_one = StandIn::accepting();
    let (said, is_well) = doctor(&dir, &pipeline(&one_by_one.address, posts));
    assert!(is_well, "{said}");
    assert_line(&said, "ok", &["sink nginx", &one_by_one.address, "answers at /pub"]);
    assert_line(
        &said,
        "warning",
        &["one event to a POST", "push_stream_batch_publish on"],
    );
    assert_line(&said, "warning", &["which memory it has"]);
    assert_line(
        &said,
        "warning",
        &["takes an id only once", "push_stream_idempotent_publish on"],
    );
    // The node has no statistics location.
    let with_statistics = pipeline(&one_by_one.address, posts).replace("timeout =", "statistics = \"/sub\"\ntimeout =");
    let (said, is_well) = doctor(&dir, &with_statistics);
    assert!(!is_well, "{said}");
    assert_line(
        &said,
        "ERROR",
        &["no figures at /sub", "push_stream_channels_statistics"],
    );

    let gone = one_by_one.address.clone();
    drop(one_by_one);
    let (said, is_well) = doctor(&dir, &pipeline(&gone, posts));
    assert!(!is_well, "{said}");
    assert_line(&said, "ERROR", &[&gone, "refused", "is nginx running there"]);

    let socket = dir.path("publish.sock");
    let unix = format!("unix:{}", socket.display());
    let (said, _) = doctor(&dir, &pipeline(&unix, posts));
    assert_line(&said, "ERROR", &[&unix, "is nginx running, with \"listen unix:"]);
    // The leftover of a killed server.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (said, _) = doctor(&dir, &pipeline(&unix, posts));
    assert_line(&said, "ERROR", &[&unix, "until it is removed"]);
}

#[test]
fn what_is_wrong_with_the_machine_is_told_with_advice() {
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    dir.append("plain-file", "");
    let config = pipeline(&nginx.address, "type = \"stdin\"");
    let (said, is_well) = doctor(&dir, &format!("state_dir = \"plain-file/state\"\n{config}"));
    assert!(!is_well, "{said}");
    assert_line(
        &said,
        "ERROR",
        &["state_dir plain-file/state", "must belong to the user"],
    );

    std::fs::write(dir.path("worker.toml"), config).unwrap();
    let worker = env!("CARGO_BIN_EXE_push-stream-worker");
    let limited = format!("ulimit -n 100 && exec {worker} doctor worker.toml");
    let output = std::process::Command::new("sh")
        .args(["-c", &limited])
        .current_dir(dir.path(""))
        .output()
        .unwrap();
    assert_line(
        &String::from_utf8(output.stdout).unwrap(),
        "warning",
        &["open files (ulimit -n) is 100", "LimitNOFILE"],
    );
}
