//! `jwks`, against a real server with TLS and an authority of its own.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

use crate::support::*;

const ED25519: &str =
    r#"{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"one","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const OTHER: &str =
    r#"{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"two","x":"Hvwz4VDkHYMzVq0VzZDDVpuxfzKPCWZqRtvBV6Z0uMg"}"#;
const ENCRYPTION: &str =
    r#"{"kty":"OKP","crv":"X25519","use":"enc","kid":"enc","x":"3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"}"#;

fn set(keys: &[&str]) -> String {
    format!("{{\"keys\":[{}]}}", keys.join(","))
}

/// An answer as it is written.
fn answer(status: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn ok(headers: &[&str], body: &str) -> String {
    answer("200 OK", headers, body)
}

/// A server with TLS that answers each connection's first request with the next text; the last one is repeated.
/// None: it says nothing.
struct TlsServer {
    port: u16,
    answers: Arc<Mutex<VecDeque<Option<String>>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TlsServer {
    fn start(files: &TempDir, answers: &[Option<String>]) -> Self {
        let chain = CertificateDer::pem_file_iter(files.path("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(files.path("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), key)
            .unwrap();
        let config = Arc::new(config);
        let port = free_port();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let server = Self {
            port,
            answers: Arc::new(Mutex::new(answers.iter().cloned().collect())),
            requests: Arc::default(),
        };
        let (answers, requests) = (Arc::clone(&server.answers), Arc::clone(&server.requests));
        std::thread::spawn(move || {
            // Ends with the test's process.
            for stream in listener.incoming() {
                let (config, answers, requests) = (Arc::clone(&config), Arc::clone(&answers), Arc::clone(&requests));
                std::thread::spawn(move || {
                    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream.unwrap());
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while !request.ends_with(b"\r\n\r\n") {
                        match stream.read(&mut byte) {
                            Ok(1) => request.push(byte[0]),
                            // It did not trust this server.
                            _ => return,
                        }
                    }
                    let mut answers = answers.lock().unwrap();
                    let answer = match answers.len() {
                        1 => answers[0].clone(),
                        _ => answers.pop_front().unwrap(),
                    };
                    requests.lock().unwrap().push(String::from_utf8(request).unwrap());
                    drop(answers);
                    match answer {
                        Some(answer) => {
                            let _ = stream.write_all(answer.as_bytes());
                            stream.conn.send_close_notify();
                            let _ = stream.flush();
                        }
                        // Until the client goes.
                        None => drop(stream.read(&mut byte)),
                    }
                });
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// The first lines of all requests.
    fn lines(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .map(|text| text.lines().next().unwrap().to_owned())
            .collect()
    }

    fn answer_from_now_on(&self, answer: String) {
        *self.answers.lock().unwrap() = [Some(answer)].into();
    }
}

struct Bed {
    files: TempDir,
    dir: TempDir,
}

impl Bed {
    fn new() -> Self {
        Self {
            files: crate::broker_tls::certificates(),
            dir: TempDir::new(),
        }
    }

    fn command(&self, server: &TlsServer, more: &[&str]) -> Command {
        let mut command = Worker::command(&self.dir);
        command.args(["jwks", "--out", "keys.json", "--url", &server.url("/keys"), "--ca"]);
        command.arg(self.files.path("ca.pem")).args(more);
        command
    }

    fn once(&self, answers: &[String]) -> (TlsServer, Output) {
        let answers: Vec<_> = answers.iter().cloned().map(Some).collect();
        let server = TlsServer::start(&self.files, &answers);
        let output = self.command(&server, &["--once"]).output().unwrap();
        (server, output)
    }

    /// A process that goes on, with its log.
    fn follow(&self, server: &TlsServer, more: &[&str]) -> Following {
        let log = self.dir.path("jwks.log");
        let stderr = fs::File::create(&log).unwrap();
        let child = self.command(server, more).stderr(stderr).stdout(Stdio::null()).spawn();
        Following {
            child: child.unwrap(),
            log,
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path("")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

struct Following {
    child: Child,
    log: PathBuf,
}

impl Following {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn ends_by(mut self, signal: &str) {
        self.signal(signal);
        let mut status = None;
        wait("the end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{}", self.log());
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_set_becomes_the_file() {
    let bed = Bed::new();
    let keys = set(&[ED25519, ENCRYPTION]);
    let (server, output) = bed.once(&[ok(&["ETag: \"a\""], &keys)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(bed.dir.read("keys.json"), keys);
    assert_eq!(bed.names(), ["keys.json"]);
    let log = text(&output.stderr);
    assert!(
        log.contains("keys.json: 1 key [\"one\"] from https://localhost:"),
        "{log}"
    );
    let request = server.requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(request.starts_with("get /keys http/1.1\r\n"), "{request}");
    assert!(
        request.contains(&format!("\r\nhost: localhost:{}\r\n", server.port)),
        "{request}"
    );
    assert!(!request.contains("if-none-match"), "{request}");
    let mode = fs::metadata(bed.dir.path("keys.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644, "nginx's workers can read it");
}

#[test]
fn the_file_keeps_its_mode_and_is_never_half_there() {
    let bed = Bed::new();
    let path = bed.dir.path("keys.json");
    fs::create_dir(bed.dir.path("real")).unwrap();
    let real = bed.dir.path("real/keys");
    fs::write(&real, set(&[ED25519])).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real/keys", &path).unwrap();
    // What a process that was killed has left.
    fs::write(bed.dir.path("real/.keys.push-stream-jwks-1"), "half").unwrap();
    let before = fs::metadata(&real).unwrap();
    let mut open = fs::File::open(&real).unwrap();
    let (_, output) = bed.once(&[ok(&[], &set(&[OTHER]))]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&real).unwrap(), set(&[OTHER]));
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "a link stays one");
    let after = fs::metadata(&real).unwrap();
    assert_eq!(after.mode() & 0o7777, 0o640);
    assert_ne!(after.ino(), before.ino(), "another file was renamed");
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, set(&[ED25519]), "who reads the old one reads all of it");
    assert_eq!(fs::read_dir(bed.dir.path("real")).unwrap().count(), 1);

    let unchanged = fs::metadata(&real).unwrap();
    let (_, output) = bed.once(&[ok(&[], &set(&[OTHER]))]);
    assert!(output.status.success());
    let same = fs::metadata(&real).unwrap();
    assert_eq!(
        (same.ino(), same.mtime_nsec()),
        (unchanged.ino(), unchanged.mtime_nsec()),
        "nothing new, nothing done"
    );
}

#[test]
fn what_is_no_good_set_never_replaces_the_file() {
    let bed = Bed::new();
    let good = set(&[ED25519]);
    fs::write(bed.dir.path("keys.json"), &good).unwrap();
    let weak = r#"{"kty":"RSA","n":"sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri23bOdgWp4Dy1WlUzewbgBHod5pcM9H95GQRV3JDXboIRROSBigeC5yjU1hGzHHyXss8UDprecbAYxknTcQkhslANGRUZmdTOQ5qTRsLAt6BTYuyvVRdhS8exSZEy_c4","e":"AQAB"}"#;
    let secret =
        r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
    let private = ED25519.replace("\"x\"", "\"d\":\"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A\",\"x\"");
    let long = format!("{}{}", good, " ".repeat(1 << 20));
    let cut = ok(&[], &good).replace("Content-Length: ", "Content-Length: 1");
    for (reply, problem) in [
        (ok(&[], ""), "is no JSON"),
        (ok(&[], &good[..40]), "is no JSON"),
        (ok(&[], "<html>maintenance</html>"), "is no JSON"),
        (ok(&[], ED25519), "has no array keys"),
        (ok(&[], &set(&[])), "has no key that verifies signatures"),
        (ok(&[], &set(&[ENCRYPTION])), "has no key that verifies signatures"),
        (ok(&[], &set(&[ED25519, weak])), "key 2: RSA with 1024 bits"),
        (ok(&[], &set(&[ED25519, secret])), "has a secret in key 2"),
        (ok(&[], &set(&[&private])), "has a secret in key 1"),
        (ok(&[], "{\"keys\":[],\"keys\":[]}"), "has a duplicate member"),
        (ok(&[], &long), "longer than 1048576 bytes"),
        (ok(&["Content-Encoding: gzip"], &good), "coded as gzip"),
        (cut, "connection"),
        (answer("404 Not Found", &[], &good), "answers 404"),
        (answer("500 Internal Server Error", &[], &good), "answers 500"),
        (answer("304 Not Modified", &[], ""), "answers 304"),
        ("SSH-2.0-x\r\n\r\n".to_owned(), "HTTP version"),
    ] {
        let (_, output) = bed.once(&[reply]);
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{problem}: {log}");
        assert!(log.contains(problem), "{problem}: {log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert_eq!(bed.dir.read("keys.json"), good, "{problem}");
    }
    assert_eq!(bed.names(), ["keys.json"], "nothing is left behind");
}

#[test]
fn redirects_are_followed_within_the_server_only() {
    let bed = Bed::new();
    let found = |target: &str| answer("302 Found", &[&format!("Location: {target}")], "");
    let (server, output) = bed.once(&[found("/b"), found("c?d=e#f"), ok(&[], &set(&[ED25519]))]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        server.lines(),
        ["GET /keys HTTP/1.1", "GET /b HTTP/1.1", "GET /c?d=e HTTP/1.1"]
    );

    let elsewhere = TlsServer::start(&bed.files, &[Some(ok(&[], &set(&[OTHER])))]);
    for target in [elsewhere.url("/keys"), format!("//127.0.0.1:{}/keys", elsewhere.port)] {
        let (_, output) = bed.once(&[found(&target)]);
        assert_eq!(output.status.code(), Some(1));
        let log = text(&output.stderr);
        assert!(log.contains("another server is not followed"), "{log}");
    }
    assert_eq!(elsewhere.lines().len(), 0);

    let (server, output) = bed.once(&[found("/round")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("more than 5 redirects"));
    assert_eq!(server.lines().len(), 6);
    assert_eq!(bed.dir.read("keys.json"), set(&[ED25519]));
}

#[test]
fn only_a_server_that_is_trusted_is_believed() {
    let bed = Bed::new();
    let other = crate::broker_tls::certificates();
    let server = TlsServer::start(&other, &[Some(ok(&[], &set(&[ED25519])))]);
    let output = bed.command(&server, &["--once"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("certificate"), "{}", text(&output.stderr));
    assert_eq!(bed.names(), [""; 0]);
}

#[test]
fn an_attempt_has_an_end() {
    let bed = Bed::new();
    let server = TlsServer::start(&bed.files, &[None]);
    let output = bed
        .command(&server, &["--once", "--timeout", "300ms"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("no whole answer within 300ms"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_set_is_followed_by_its_tag_and_failures_change_nothing() {
    let bed = Bed::new();
    let first = set(&[ED25519]);
    let server = TlsServer::start(&bed.files, &[Some(ok(&["ETag: \"a\""], &first))]);
    let following = bed.follow(
        &server,
        &[
            "--interval",
            "20ms",
            "--min-interval",
            "20ms",
            "--max-interval",
            "40ms",
            "--log",
            "debug",
        ],
    );
    wait("the file", || bed.dir.read("keys.json") == first);
    // The server compares.
    server.answer_from_now_on(answer("304 Not Modified", &["ETag: \"a\""], ""));
    let asked_with = |tag: &str| {
        let requests = server.requests.lock().unwrap();
        let line = format!("if-none-match: \"{tag}\"\r\n");
        requests
            .iter()
            .filter(|request| request.to_ascii_lowercase().contains(&line))
            .count()
    };
    wait("its tag", || asked_with("a") >= 3);
    wait("its word", || following.log().contains(": unchanged"));

    let second = set(&[ED25519, OTHER]);
    server.answer_from_now_on(ok(&["ETag: \"b\""], &second));
    wait("the second set", || bed.dir.read("keys.json") == second);

    // However often it fails in the same way, that is one line; the end of it is another.
    server.answer_from_now_on(answer("503 Service Unavailable", &["Retry-After: 0"], ""));
    let before = server.lines().len();
    wait("several attempts", || server.lines().len() > before + 4);
    server.answer_from_now_on(ok(&[], "{}"));
    wait("the other trouble", || following.log().contains("is no JWK Set"));
    assert_eq!(bed.dir.read("keys.json"), second);
    server.answer_from_now_on(answer("304 Not Modified", &[], ""));
    wait("the end of it", || following.log().contains("is answered again"));
    let told = following.log().matches("answers 503").count();
    assert_eq!(told, 1, "{}", following.log());
    assert!(
        following.log().contains("keys.json stays as it is"),
        "{}",
        following.log()
    );

    // A file that somebody else has changed is fetched whole.
    server.answer_from_now_on(ok(&["ETag: \"b\""], &second));
    fs::write(bed.dir.path("keys.json"), "{}").unwrap();
    wait("it to be mended", || bed.dir.read("keys.json") == second);
    following.ends_by("-TERM");
}

#[test]
fn signals_ask_at_once_and_end_it() {
    let bed = Bed::new();
    let server = TlsServer::start(
        &bed.files,
        &[Some(ok(&["Cache-Control: max-age=600"], &set(&[ED25519])))],
    );
    let following = bed.follow(&server, &["--interval", "1ms", "--min-interval", "1ms"]);
    wait("the file", || bed.dir.read("keys.json") == set(&[ED25519]));
    server.answer_from_now_on(ok(&["Cache-Control: max-age=600"], &set(&[OTHER])));
    // For ten minutes it would not ask by itself, in spite of its own interval.
    assert_eq!(server.lines().len(), 1);
    wait("the other set", || {
        following.signal("-HUP");
        bed.dir.read("keys.json") == set(&[OTHER])
    });
    following.ends_by("-INT");
}

#[test]
fn arguments_that_cannot_be_are_refused() {
    let dir = TempDir::new();
    for (arguments, problem) in [
        (&["--url", "http://a/keys", "--out", "k"][..], "is not https"),
        (&["--url", "https://a:0/keys", "--out", "k"], "--url"),
        (&["--url", "https://a/keys", "--out", "none/k"], "--out"),
        (&["--url", "https://a/keys", "--out", "."], "--out"),
        (&["--url", "https://a/keys", "--out", "k", "--ca", "none"], "--ca none"),
        (
            &["--url", "https://a/keys", "--out", "k", "--min-interval", "2h"],
            "--max-interval must not be shorter",
        ),
    ] {
        let output = Worker::command(&dir)
            .args(["jwks", "--once"])
            .args(arguments)
            .output()
            .unwrap();
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(problem), "{problem}: {log}");
    }
}
