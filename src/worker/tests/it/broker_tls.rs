//! Brokers with TLS that require a client certificate.

use std::path::PathBuf;

use async_nats::jetstream;
use push_stream_worker::test_servers;

use crate::support::*;

/// A certificate authority, and certificates for a server and for the worker.
pub fn certificates() -> TempDir {
    let dir = TempDir::new();
    let openssl = |arguments: &str| {
        let output = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(dir.path(""))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=ca"
    ));
    std::fs::write(dir.path("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    for name in ["server", "worker"] {
        openssl(&format!(
            "req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile ext"
        ));
    }
    dir
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path(name).display().to_string()
}

/// Asserts that an event gets through with the certificate, and not without it.
fn assert_only_with_certificate(certificates: &TempDir, source: &str) {
    let nginx = StandIn::accepting();
    let ca = format!("ca_file = \"{}\"\n", path(certificates, "ca.pem"));
    let own = format!(
        "cert_file = \"{}\"\nkey_file = \"{}\"\n",
        path(certificates, "worker.pem"),
        path(certificates, "worker.key")
    );
    for lacking in [ca.clone(), own.clone()] {
        let dir = TempDir::new();
        let mut worker = Worker::start(&dir, &pipeline(&nginx.address, &format!("{source}\n{lacking}")));
        worker.wait_for_log("connecting again");
        worker.kill();
        assert_eq!(nginx.count(), 0);
    }
    let dir = TempDir::new();
    let worker = Worker::start(&dir, &pipeline(&nginx.address, &format!("{source}\n{ca}{own}")));
    nginx.wait_for(1);
    assert!(worker.terminate().success());
    assert_eq!(nginx.publishes()[0].json()["n"], 1);
}

const EVENT: &str = "{\"n\":1,\"thread\":1}";

#[test]
fn redis_is_spoken_to_over_tls() {
    let files = certificates();
    let port = free_port().to_string();
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| path(&files, name));
    let options = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ];
    let redis = test_servers::Redis::start("no", &options).unwrap();
    let mut commands = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let mut append = redis::cmd("XADD");
    append.arg("posts").arg("*").arg("body").arg(EVENT);
    append.exec(&mut commands).unwrap();
    let source =
        format!("type = \"redis_streams\"\nurl = \"rediss://localhost:{port}/0\"\nstream = \"posts\"\ngroup = \"g\"");
    assert_only_with_certificate(&files, &source);
}

#[test]
fn rabbitmq_is_spoken_to_over_tls() {
    let files = certificates();
    let port = free_port();
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| path(&files, name));
    let options = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {ca}\nssl_options.certfile = {certificate}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
    );
    let broker = test_servers::RabbitMq::start(&options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let connection = lapin::Connection::connect(&broker.url(), Default::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        let durable = lapin::options::QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        channel
            .queue_declare("posts".into(), durable, Default::default())
            .await
            .unwrap();
        let properties = lapin::BasicProperties::default().with_message_id("1".into());
        let options = lapin::options::BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), "posts".into(), options, EVENT.as_bytes(), properties);
        sent.await.unwrap().await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    });
    let url = format!("amqps://guest:guest@localhost:{port}/%2f");
    let source = format!("type = \"amqp\"\nurl = \"{url}\"\nqueue = \"posts\"\nkind = \"classic\"\ndeclare = false");
    assert_only_with_certificate(&files, &source);
}

#[test]
fn nats_is_spoken_to_over_tls() {
    let files = certificates();
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| path(&files, name));
    let options = [
        "--tls",
        "--tlscert",
        &certificate,
        "--tlskey",
        &key,
        "--tlscacert",
        &ca,
        "--tlsverify",
    ];
    let server = test_servers::Nats::start(&options).unwrap();
    let url = format!("tls://localhost:{}", server.port);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let file = |name: &str| PathBuf::from(path(&files, name));
        let options = async_nats::ConnectOptions::new()
            .add_root_certificates(file("ca.pem"))
            .add_client_certificate(file("worker.pem"), file("worker.key"));
        let context = jetstream::new(options.connect(&url).await.unwrap());
        let config = jetstream::stream::Config {
            name: "POSTS".into(),
            subjects: vec!["posts.>".into()],
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        context.publish("posts.new", EVENT.into()).await.unwrap().await.unwrap();
    });
    assert_only_with_certificate(&files, &format!("type = \"nats\"\nurl = \"{url}\"\nstream = \"POSTS\""));
}

#[test]
fn certificates_that_do_not_serve_are_named() {
    let dir = TempDir::new();
    std::fs::write(dir.path("empty"), "").unwrap();
    let refusal = |source: &str| {
        std::fs::write(dir.path("worker.toml"), pipeline("http://127.0.0.1:1", source)).unwrap();
        let output = Worker::command(&dir)
            .args(["validate", "worker.toml"])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let stream = "type = \"redis_streams\"\nstream = \"s\"\ngroup = \"g\"\n";
    let plain = refusal(&format!("{stream}url = \"redis://127.0.0.1\"\nca_file = \"empty\""));
    assert!(
        plain.contains("source.in.ca_file: belongs to a URL that begins with \"rediss://\""),
        "{plain}"
    );
    let empty = refusal(&format!("{stream}url = \"rediss://127.0.0.1\"\nca_file = \"empty\""));
    assert!(
        empty.contains("source.in.ca_file: empty holds no certificate in PEM"),
        "{empty}"
    );
    let gone = refusal("type = \"nats\"\nurl = \"tls://127.0.0.1\"\nstream = \"S\"\nca_file = \"gone\"");
    assert!(gone.contains("cannot read gone"), "{gone}");
    let half = refusal("type = \"amqp\"\nurl = \"amqps://127.0.0.1\"\nqueue = \"q\"\ncert_file = \"empty\"");
    assert!(half.contains("source.in.cert_file: needs key_file"), "{half}");
}
