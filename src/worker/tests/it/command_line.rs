use crate::support::*;

fn validate(dir: &TempDir, config: &str) -> (bool, String, String) {
    std::fs::write(dir.path("c.toml"), config).unwrap();
    let output = Worker::command(dir).args(["validate", "c.toml"]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn validate_names_file_line_and_key_of_every_error() {
    let dir = TempDir::new();
    let config = r#"[source.posts]
type = "file"
path = "a"
max_bytes = "32 parsecs"
strat = "end"

[stage.anon]
type = "anonymise"
hash = ["author.email"]
key = { file = "gone.key" }

[stage.fmt]
type = "format"
template = "{{ oops"

[sink.nginx]
type = "http_push"
nodes = ["http://127.0.0.1:${UNSET_PORT}", "ftp://x"]
retry = { initial = "fast" }

[pipeline.p]
from = "post"
stages = ["anon"]
to = ["nginx"]
"#;
    let (ok, _, stderr) = validate(&dir, config);
    assert!(!ok);
    let lines: Vec<&str> = stderr.lines().collect();
    let expected = [
        "c.toml:4: source.posts.max_bytes: \"32 parsecs\" is not a size",
        "c.toml:5: source.posts.strat: unknown key, did you mean \"start\"?",
        "c.toml:10: stage.anon.key.file: cannot read gone.key",
        "c.toml:14: stage.fmt.template: template line 1: syntax error",
        "c.toml:18: sink.nginx.nodes[0]: environment variable UNSET_PORT is not set",
        "c.toml:18: sink.nginx.nodes[1]: \"ftp://x\" is not a server",
        "c.toml:19: sink.nginx.retry.initial: \"fast\" is not a duration",
        "c.toml:22: pipeline.p.from: there is no source \"post\"; there is: posts",
        "c.toml: 8 errors",
    ];
    assert_eq!(lines.len(), expected.len(), "{stderr}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(expected), "{line}\nshould start with\n{expected}");
    }
}

#[test]
fn validate_accepts_the_example_and_the_demo() {
    let dir = TempDir::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    for file in ["src/worker/example.toml", "nginx-conf/worker-demo.toml"] {
        let text = std::fs::read_to_string(format!("{root}/{file}")).unwrap();
        let (ok, stdout, stderr) = validate(&dir, &text);
        assert!(ok, "{file}: {stderr}");
        assert!(
            stdout.starts_with("c.toml: ok\n") && stderr.is_empty(),
            "{stdout}{stderr}"
        );
    }
}

#[test]
fn run_refuses_what_validate_refuses() {
    let dir = TempDir::new();
    let worker = Worker::start(&dir, "nonsense");
    assert_eq!(worker.wait().code(), Some(1));
    assert!(
        dir.read("worker.log").starts_with("worker.toml:1: "),
        "{}",
        dir.read("worker.log")
    );
    let missing = Worker::command(&dir).args(["run", "gone.toml"]).output().unwrap();
    assert!(
        String::from_utf8(missing.stderr)
            .unwrap()
            .contains("cannot read gone.toml")
    );
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn version_and_help_say_what_it_is() {
    let dir = TempDir::new();
    let output = |argument| String::from_utf8(Worker::command(&dir).arg(argument).output().unwrap().stdout).unwrap();
    assert_eq!(
        output("--version"),
        format!("push-stream-worker {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = output("--help");
    assert!(help.contains("validate") && help.contains("Example:"), "{help}");
}

#[test]
fn a_second_worker_on_the_same_state_is_refused() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, "type = \"file\"\npath = \"log\"");
    let mut first = Worker::start(&dir, &config);
    first.wait_for_log("following log");
    let second = Worker::start(&dir, &config);
    assert_eq!(second.wait().code(), Some(1));
    first.wait_for_log("state is in use by another worker");
}

#[test]
fn an_address_in_use_is_an_error_with_its_name() {
    let dir = TempDir::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = pipeline(
        "http://127.0.0.1:1",
        &format!("type = \"http_in\"\nlisten = \"{address}\""),
    );
    let worker = Worker::start(&dir, &config);
    assert_eq!(worker.wait().code(), Some(1));
    let log = dir.read("worker.log");
    assert!(log.contains(&format!("source in: cannot listen on {address}")), "{log}");
}
