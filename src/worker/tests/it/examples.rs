//! The configurations in docs/examples work as described.

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::brokers::*;
use crate::support::*;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples");
const POST: &str = r#"{"id":"1","forum":"cnn","thread":"9","author":{"id":"3","ip":"192.0.2.7","email":"ann@example.com"},"message":"<script>x</script>hi"}"#;

/// A worker with an example as its configuration.
fn start(dir: &TempDir, example: &str, redis: &Redis, nginx: &StandIn) -> Worker {
    let text = std::fs::read_to_string(format!("{EXAMPLES}/{example}")).unwrap();
    std::fs::create_dir_all(dir.path("keys")).unwrap();
    std::fs::write(dir.path("keys/firehose.key"), [7; 32]).unwrap();
    let text = text.replace("${REDIS:-redis://127.0.0.1:6379/0}", &redis.url());
    Worker::start(
        dir,
        &text.replace("${PUBLISH:-unix:/run/nginx-publish.sock}", &nginx.address),
    )
}

fn enqueue(redis: &Redis, body: &str) {
    let status = Command::new(format!("{EXAMPLES}/enqueue.sh"))
        .arg(body)
        .env("REDIS", redis.url())
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn the_shell_example_enqueues_and_the_three_pipelines_make_of_it_what_they_should() {
    let redis = Redis::start();
    let nginx = StandIn::accepting();
    let dirs = [TempDir::new(), TempDir::new(), TempDir::new()];
    let examples = ["json-anon-http.toml", "json-secure-http.toml", "json-anon-file.toml"];
    enqueue(&redis, POST);
    let workers: Vec<Worker> = dirs
        .iter()
        .zip(examples)
        .map(|(dir, example)| start(dir, example, &redis, &nginx))
        .collect();
    nginx.wait_for(2);
    let publishes = nginx.publishes();
    let find = |part: &str| publishes.iter().find(|publish| publish.uri.contains(part)).unwrap();
    let public = find("thread.9");
    assert_eq!(public.uri, "/pub?id=forum.cnn/thread.9/post.1");
    assert_eq!(
        public.json(),
        serde_json::json!({"id": "1", "author": {"id": "3", "email": "***"}, "message": "hi"})
    );
    let sealed = find("secure.");
    assert_eq!(
        (sealed.uri.as_str(), sealed.json()["kid"].as_str()),
        ("/pub?id=secure.forum.cnn", Some("k7"))
    );
    assert!(!sealed.body.contains("192.0.2.7"));
    let archive = || {
        let entries = std::fs::read_dir(dirs[2].path("archive")).into_iter().flatten();
        entries
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect::<String>()
    };
    wait("the archive", || archive().contains("\"message\""));
    assert!(!archive().contains("192.0.2.7"));
    for (worker, (dir, _)) in workers.into_iter().zip(dirs.iter().zip(examples)) {
        assert!(worker.terminate().success());
        assert!(Worker::run(dir, &["test", "worker.toml"]).contains(" 0 failed"));
    }
}

#[test]
fn sealed_events_of_several_workers_and_runs_never_share_salt_and_nonce() {
    let redis = Redis::start();
    let nginx = StandIn::accepting();
    let (one, two) = (TempDir::new(), TempDir::new());
    // Two processes with two lanes each, the second with its own group; then both again.
    for round in 0..2 {
        (0..40).for_each(|n| enqueue(&redis, &POST.replace("\"9\"", &n.to_string())));
        let text =
            std::fs::read_to_string(format!("{EXAMPLES}/json-secure-http.toml")).unwrap() + "\n[engine]\nlanes = 2\n";
        let text = text
            .replace("${REDIS:-redis://127.0.0.1:6379/0}", &redis.url())
            .replace("${PUBLISH:-unix:/run/nginx-publish.sock}", &nginx.address);
        for dir in [&one, &two] {
            std::fs::create_dir_all(dir.path("keys")).unwrap();
            std::fs::write(dir.path("keys/firehose.key"), [7; 32]).unwrap();
        }
        let workers = [
            Worker::start(&one, &text),
            Worker::start(
                &two,
                &text.replace("group = \"json_secure_http\"", "group = \"second\""),
            ),
        ];
        nginx.wait_for(80 * (round + 1));
        workers
            .into_iter()
            .for_each(|worker| assert!(worker.terminate().success()));
    }
    let envelopes: Vec<serde_json::Value> = nginx.publishes().iter().map(Publish::json).collect();
    let distinct: HashSet<String> = envelopes
        .iter()
        .map(|one| format!("{} {}", one["salt"], one["nonce"]))
        .collect();
    assert_eq!(distinct.len(), 160);
    let salts: HashSet<String> = envelopes.iter().map(|one| one["salt"].to_string()).collect();
    assert_eq!(salts.len(), 4, "one for each run");
}

#[test]
fn the_python_example_opens_what_is_sealed_and_nothing_else() {
    let dir = TempDir::new();
    std::fs::write(dir.path("key"), [7; 32]).unwrap();
    let payloads = ["{\"n\":1,\"text\":\"Zoë\"}", "{\"n\":2}"];
    for algorithm in ["aes-256-gcm", "chacha20-poly1305"] {
        let config = format!(
            r#"
[source]
in = {{ type = "stdin" }}
[stage]
seal = {{ type = "encrypt", algorithm = "{algorithm}", key = {{ file = "key", id = "k7" }} }}
[sink]
out = {{ type = "file", path = "{algorithm}" }}
[pipeline]
p = {{ from = "in", stages = ["seal"], to = ["out"] }}
"#
        );
        let mut worker = Worker::start_with(&dir, &config, Stdio::piped());
        worker
            .stdin()
            .write_all(format!("{}\n{}\n", payloads[0], payloads[1]).as_bytes())
            .unwrap();
        assert!(worker.wait().success());
        assert!(!dir.read(algorithm).contains("Zoë"));
        let opened = python(
            &dir,
            &format!(
                r#"
import json, sys
from cryptography.exceptions import InvalidTag
from decrypt import open_envelope
sys.stdout.reconfigure(encoding="utf-8")
lines = open("{algorithm}").read().splitlines()
for line in lines:
    print(open_envelope(line, {{"k7": bytes([7] * 32)}}).decode())
first, second = map(json.loads, lines)
for wrong in (dict(first, id=second["id"]), dict(first, data=second["data"]), dict(first, nonce=second["nonce"])):
    try:
        open_envelope(json.dumps(wrong), {{"k7": bytes([7] * 32)}})
        print("opened")
    except InvalidTag:
        print("refused")
"#
            ),
        );
        assert_eq!(
            opened,
            format!("{}\n{}\n{}", payloads[0], payloads[1], "refused\n".repeat(3))
        );
    }
}

fn python(dir: &TempDir, script: &str) -> String {
    std::fs::write(dir.path("script.py"), script).unwrap();
    let output = Command::new("/usr/bin/python3")
        .arg("script.py")
        .current_dir(dir.path(""))
        .env("PYTHONPATH", EXAMPLES)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8(output.stderr).unwrap());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_django_example_enqueues_what_is_committed_and_nothing_else() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    python(
        &dir,
        &format!(
            r#"
import django
from django.conf import settings
settings.configure(DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "app.sqlite"}}}})
django.setup()
from django.db import connection, models, transaction
import redis
import django_signals

class Post(models.Model):
    thread = models.IntegerField()
    message = models.TextField()
    class Meta:
        app_label = "app"

with connection.schema_editor() as editor:
    editor.create_model(Post)
django_signals.connect(Post, queue="posts", redis=redis.Redis(port={}))
post = Post.objects.create(thread=9, message="hi")
post.message = "changed"
post.save()
try:
    with transaction.atomic():
        Post.objects.create(thread=9, message="never")
        raise ValueError
except ValueError:
    pass
post.delete()
"#,
            redis.port
        ),
    );
    let source = format!("type = \"thoonk\"\nurl = \"{}\"\nqueue = \"posts\"", redis.url());
    let worker = Worker::start(&dir, &pipeline(&nginx.address, &source));
    nginx.wait_for(3);
    let mut queue = Thoonk::classic(&redis, "posts");
    wait("the queue to be empty", || queue.sizes() == [0; 5]);
    assert!(worker.terminate().success());
    let told: Vec<String> = nginx
        .publishes()
        .iter()
        .map(|one| format!("{} {}", one.json()["event"], one.json()["message"]))
        .collect();
    assert_eq!(
        told,
        [
            "\"created\" \"hi\"",
            "\"changed\" \"changed\"",
            "\"deleted\" \"changed\""
        ]
    );
    assert_eq!((queue.counter("publishes"), queue.counter("finishes")), (3, 3));
}

#[test]
fn the_outbox_example_sends_what_was_committed_also_when_the_worker_comes_later() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let port = free_port();
    python(
        &dir,
        r#"
import sqlite3
database = sqlite3.connect("app.sqlite")
database.execute("CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL)")
for n in range(250):
    with database:
        database.execute("INSERT INTO outbox (body) VALUES (?)", ('{"thread": 1, "n": %d}' % n,))
try:
    with database:
        database.execute("INSERT INTO outbox (body) VALUES ('{\"n\": \"never\"}')")
        raise ValueError
except ValueError:
    pass
"#,
    );
    let mut outbox = Command::new("/usr/bin/python3")
        .args([
            &format!("{EXAMPLES}/outbox.py"),
            "app.sqlite",
            &format!("http://127.0.0.1:{port}/events"),
            "--once",
        ])
        .current_dir(dir.path(""))
        .spawn()
        .unwrap();
    let source = format!("type = \"http_in\"\nlisten = \"127.0.0.1:{port}\"\npath = \"/events\"\nack = \"spooled\"");
    let worker = Worker::start(&dir, &pipeline(&nginx.address, &source));
    assert!(outbox.wait().unwrap().success());
    nginx.wait_for(250);
    let numbers: Vec<u64> = nginx
        .publishes()
        .iter()
        .map(|one| one.json()["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..250).collect::<Vec<_>>());
    assert_eq!(nginx.publishes()[0].json()["outbox_id"], 1);
    assert!(worker.terminate().success());
}

#[test]
fn the_unit_file_is_one_that_systemd_understands_and_confines_the_worker() {
    let unit = std::fs::read_to_string(format!("{EXAMPLES}/push-stream-worker.service")).unwrap();
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "WatchdogSec=30",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // The supervisor's side of Type=notify: a datagram socket.
    let dir = TempDir::new();
    let socket = std::os::unix::net::UnixDatagram::bind(dir.path("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::fs::write(
        dir.path("worker.toml"),
        pipeline("http://127.0.0.1:1", "type = \"file\"\npath = \"log\""),
    )
    .unwrap();
    let mut worker = Worker::command(&dir)
        .args(["run", "worker.toml"])
        .env("NOTIFY_SOCKET", dir.path("notify"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut buffer = [0; 64];
    for expected in ["READY=1", "WATCHDOG=1"] {
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(std::str::from_utf8(&buffer[..length]).unwrap(), expected);
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
}
