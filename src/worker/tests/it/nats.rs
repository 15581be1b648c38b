//! NATS JetStream, with a real server.

use std::collections::HashSet;

use async_nats::jetstream;

use crate::brokers::*;
use crate::support::*;

/// A producer: publishes, and waits until the message is stored.
struct Producer {
    runtime: tokio::runtime::Runtime,
    context: jetstream::Context,
}

impl Producer {
    fn connect(server: &Nats) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let context = runtime.block_on(async {
            let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
            let config = jetstream::stream::Config {
                name: "POSTS".into(),
                subjects: vec!["posts.>".into()],
                ..Default::default()
            };
            context.get_or_create_stream(config).await.unwrap();
            context
        });
        Self { runtime, context }
    }

    fn publish(&self, body: &str) {
        self.runtime.block_on(async {
            self.context
                .publish("posts.new", body.to_owned().into())
                .await
                .unwrap()
                .await
                .unwrap();
        });
    }
}

fn source(server: &Nats, more: &str) -> String {
    format!(
        "type = \"nats\"\nurl = \"{}\"\nstream = \"POSTS\"\nlease = \"1s\"\n{more}",
        server.url()
    )
}

fn body(n: usize) -> String {
    format!("{{\"n\":{n},\"thread\":{}}}", n % 5)
}

fn numbers(publishes: &[Publish]) -> Vec<u64> {
    publishes
        .iter()
        .map(|publish| publish.json()["n"].as_u64().unwrap())
        .collect()
}

fn distinct(publishes: &[Publish]) -> usize {
    numbers(publishes).into_iter().collect::<HashSet<_>>().len()
}

/// Asserts that first deliveries came in order, each event with one id.
fn assert_ordered(publishes: &[Publish]) {
    let (mut newest, mut seen, mut ids) = (0, HashSet::new(), HashSet::new());
    for (n, publish) in numbers(publishes).into_iter().zip(publishes) {
        ids.insert(publish.id().to_owned());
        if seen.insert(n) {
            assert!(n > newest, "{n} came after {newest}");
            newest = n;
        }
    }
    assert_eq!(ids.len(), seen.len());
}

#[test]
fn nothing_of_a_jetstream_is_lost_or_out_of_order_over_kills_and_restarts() {
    let mut server = Nats::start();
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let config = pipeline(&nginx.address, &source(&server, "max_in_flight = 50"));
    let producer = Producer::connect(&server);
    (1..=300).for_each(|n| producer.publish(&body(n)));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(100);
    worker.kill();
    let worker = Worker::start(&dir, &config);
    nginx.wait_until(|publishes| distinct(publishes) == 300);
    assert!(worker.terminate().success());
    assert_ordered(&nginx.publishes());

    // Finished messages do not come again.
    let before = nginx.count();
    (301..=600).for_each(|n| producer.publish(&body(n)));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(before + 1);
    assert_eq!(numbers(&nginx.publishes())[before], 301);
    server.stop_and_restart();
    nginx.wait_until(|publishes| distinct(publishes) == 600);
    assert!(worker.terminate().success());
    assert_ordered(&nginx.publishes());
}

#[test]
fn a_standby_at_a_jetstream_takes_over_and_dead_letters_have_a_stream_of_their_own() {
    let server = Nats::start();
    let (first_dir, second_dir) = (TempDir::new(), TempDir::new());
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, &source(&server, ""));
    let producer = Producer::connect(&server);
    let mut first = Worker::start(&first_dir, &config);
    producer.publish(&body(1));
    nginx.wait_for(1);
    first.wait_for_log("consuming stream POSTS");
    let mut second = Worker::start(&second_dir, &config);
    second.wait_for_log("another worker is active; standing by");
    first.kill();
    producer.publish("{no json");
    (2..30).for_each(|n| producer.publish(&body(n)));
    nginx.wait_for(29);
    assert_eq!(distinct(&nginx.publishes()), 29);
    assert_ordered(&nginx.publishes());
    let mut list = String::new();
    wait("a dead letter", || {
        list = Worker::run(&second_dir, &["park", "list", "worker.toml"]);
        list.contains("not valid JSON")
    });
    assert_eq!(
        Worker::run(&second_dir, &["park", "retry", "worker.toml", "1"]),
        "1 queued again\n"
    );
    wait("it to be parked again", || {
        Worker::run(&second_dir, &["park", "list", "worker.toml"]).starts_with("in 2 ")
    });
    assert_eq!(
        Worker::run(&second_dir, &["park", "drop", "worker.toml", "--all"]),
        "1 dropped\n"
    );
    assert!(second.terminate().success());
}
