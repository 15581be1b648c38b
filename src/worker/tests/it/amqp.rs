//! RabbitMQ, with a real server. It takes seconds to start, so one test covers all guarantees.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::brokers::*;
use crate::support::*;

/// A producer: publishes with confirms.
struct Producer {
    runtime: tokio::runtime::Runtime,
    _connection: Connection,
    channel: Channel,
}

impl Producer {
    fn connect(broker: &RabbitMq) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (connection, channel) = runtime.block_on(async {
            let connection = Connection::connect(&broker.url(), ConnectionProperties::default())
                .await
                .unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            (connection, channel)
        });
        Self {
            runtime,
            _connection: connection,
            channel,
        }
    }

    fn publish(&self, queue: &str, id: Option<&str>, body: &str) {
        let properties = BasicProperties::default().with_delivery_mode(2);
        let properties = id.map_or(properties.clone(), |id| properties.with_message_id(id.into()));
        self.runtime.block_on(async {
            let options = BasicPublishOptions::default();
            let confirm = self
                .channel
                .basic_publish("".into(), queue.into(), options, body.as_bytes(), properties)
                .await;
            confirm.unwrap().await.unwrap();
        });
    }

    fn declare(&self, queue: &str, kind: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        if kind == "quorum" {
            arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        }
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.runtime
            .block_on(self.channel.queue_declare(queue.into(), options, arguments))
            .unwrap();
    }

    fn waiting(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self
            .runtime
            .block_on(self.channel.queue_declare(queue.into(), options, FieldTable::default()));
        declared.unwrap().message_count()
    }

    fn get(&self, queue: &str) -> Option<(String, FieldTable)> {
        let got = self
            .runtime
            .block_on(self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }))
            .unwrap()?;
        let headers = got.delivery.properties.headers().clone().unwrap_or_default();
        Some((String::from_utf8(got.delivery.data).unwrap(), headers))
    }
}

fn source(broker: &RabbitMq, queue: &str, more: &str) -> String {
    format!(
        "type = \"amqp\"\nurl = \"{}\"\nqueue = \"{queue}\"\n{more}",
        broker.url()
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

#[test]
fn rabbitmq_queues_and_streams_lose_nothing_over_kills_and_restarts() {
    let mut broker = RabbitMq::start();
    quorum_queue(&mut broker);
    dead_letters(&broker);
    standby(&broker);
    stream(&broker);
}

fn quorum_queue(broker: &mut RabbitMq) {
    const COUNT: usize = 600;
    const BURST: usize = 200;
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let config = pipeline(&nginx.address, &source(broker, "posts", "max_in_flight = 50"));
    let producer = Producer::connect(broker);
    producer.declare("posts", "quorum");
    (1..=COUNT).for_each(|n| producer.publish("posts", Some(&format!("m{n}")), &body(n)));
    drop(producer);
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(100);
    worker.kill();
    let mut worker = Worker::start(&dir, &config);
    nginx.wait_until(|publishes| distinct(publishes) > 250);
    broker.stop_and_restart();
    worker.wait_for_log("connecting again");
    nginx.wait_until(|publishes| distinct(publishes) == COUNT);
    // kill -9, in the middle of its work.
    let mut count = COUNT;
    let kills = std::env::var("WORKER_KILLS").map_or(1, |kills| kills.parse::<usize>().unwrap());
    for _ in 0..kills {
        let producer = Producer::connect(broker);
        (count + 1..=count + BURST).for_each(|n| producer.publish("posts", Some(&format!("m{n}")), &body(n)));
        drop(producer);
        count += BURST;
        let some = count - fastrand::usize(1..BURST);
        nginx.wait_until(|publishes| distinct(publishes) >= some);
        broker.restart().unwrap();
    }
    nginx.wait_until(|publishes| distinct(publishes) == count);
    let producer = Producer::connect(broker);
    wait("all acknowledged", || producer.waiting("posts") == 0);
    assert!(worker.terminate().success());
    let publishes = nginx.publishes();
    let mut newest = 0;
    let mut seen = HashSet::new();
    for (n, publish) in numbers(&publishes).into_iter().zip(&publishes) {
        assert_eq!(publish.id(), format!("m{n}"));
        if seen.insert(n) {
            assert!(n > newest, "{n} came after {newest}");
            newest = n;
        }
    }
}

fn dead_letters(broker: &RabbitMq) {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let producer = Producer::connect(broker);
    producer.declare("odd", "quorum");
    producer.publish("odd", Some("bad"), "{no json");
    producer.publish("odd", None, &body(1));
    producer.publish("odd", Some("good"), &body(2));
    let config = pipeline(&nginx.address, &source(broker, "odd", ""));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(1);
    wait("dead letters", || producer.waiting("odd.parked") == 2);
    let list = Worker::run(&dir, &["park", "list", "worker.toml"]);
    assert!(
        list.contains("not valid JSON") && list.contains("has no message_id"),
        "{list}"
    );
    assert_eq!(
        Worker::run(&dir, &["park", "retry", "worker.toml", "bad"]),
        "1 queued again\n"
    );
    wait("it to be parked again", || producer.waiting("odd.parked") == 2);
    assert!(worker.terminate().success());
    let (text, headers) = producer.get("odd.parked").unwrap();
    assert_eq!(text, body(1));
    let Some(AMQPValue::LongString(reason)) = headers.inner().get("x-parked") else {
        panic!("{headers:?}")
    };
    assert!(reason.to_string().contains("has no message_id"), "{reason}");

    // `doctor` with a broker that refuses, and with a queue that does not exist yet.
    let doctor = |config: String| {
        std::fs::write(dir.path("ill.toml"), config).unwrap();
        let output = Worker::command(&dir).args(["doctor", "ill.toml"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let good = pipeline(&nginx.address, &source(broker, "odd", ""));
    assert!(doctor(good.clone()).contains("source in: answers, 0 open"));
    let told = doctor(good.replace("amqp://", "amqp://nobody:x@"));
    assert!(
        told.contains("ERROR    source in:") && told.contains("check user and password"),
        "{told}"
    );
    let told = doctor(good.replace("queue = \"odd\"", "queue = \"new\""));
    assert!(
        told.contains("warning  source in: there is no such queue yet"),
        "{told}"
    );
    let told = doctor(good.replace(&broker.port.to_string(), &free_port().to_string()));
    assert!(
        told.contains("refused") && told.contains("is it running there"),
        "{told}"
    );

    // Without ids there is no order guarantee, and `validate` says so.
    let config = pipeline(&nginx.address, &source(broker, "odd", "ids = \"none\""));
    std::fs::write(dir.path("none.toml"), &config).unwrap();
    assert!(Worker::run(&dir, &["validate", "none.toml"]).contains("duplicates possible"));
    std::fs::write(
        dir.path("none.toml"),
        config.replace("[sink.nginx]", "[sink.nginx]\nordered = true"),
    )
    .unwrap();
    let refused = Worker::command(&dir).args(["validate", "none.toml"]).output().unwrap();
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("source \"in\" gives no ids: duplicates are possible")
    );
}

fn standby(broker: &RabbitMq) {
    let (first_dir, second_dir) = (TempDir::new(), TempDir::new());
    let nginx = StandIn::accepting();
    let producer = Producer::connect(broker);
    producer.declare("pair", "quorum");
    let config = pipeline(&nginx.address, &source(broker, "pair", ""));
    let mut first = Worker::start(&first_dir, &config);
    first.wait_for_log("consuming quorum queue pair");
    producer.publish("pair", Some("1"), &body(1));
    nginx.wait_for(1);
    let admin = free_port();
    let mut second = Worker::start(
        &second_dir,
        &format!("{config}[admin]\nlisten = \"127.0.0.1:{admin}\"\n"),
    );
    second.wait_for_log("consuming quorum queue pair");
    second.wait_for_log("standing by until the broker gives a message to this worker");
    let says = |text: &str| {
        wait(text, || request(admin, "GET", "/ready", &[], "").body == text);
        request(admin, "GET", "/metrics", &[], "").body
    };
    let metrics = says("ready; standing by: in\n");
    assert!(
        metrics.contains("\npush_stream_worker_source_active{component_id=\"in\"} 0\n"),
        "{metrics}"
    );
    first.kill();
    (2..50).for_each(|n| producer.publish("pair", Some(&n.to_string()), &body(n)));
    nginx.wait_for(49);
    assert_eq!(numbers(&nginx.publishes()), (1..50).collect::<Vec<_>>());
    let metrics = says("ready\n");
    assert!(
        metrics.contains("\npush_stream_worker_source_active{component_id=\"in\"} 1\n"),
        "{metrics}"
    );
    second.wait_for_log("source in: active from now on");

    // A worker that vanishes silently.
    let third = Worker::start(&first_dir, &config);
    // The first worker has logged to the same file.
    let waiting = "standing by until the broker gives a message";
    wait("the third", || third.log().matches(waiting).count() == 2);
    second.signal("-STOP");
    let start = Instant::now();
    producer.publish("pair", Some("50"), &body(50));
    nginx.wait_for(50);
    let silence = start.elapsed();
    println!("taken over after {silence:?}");
    // Three heartbeats, and a margin for a busy machine.
    assert!(silence < Duration::from_secs(14), "{silence:?}");
    second.signal("-CONT");
    second.wait_for_log("connecting again");
    let bare = |log: &str| {
        log.lines()
            .filter(|line| line.contains("ERROR") && !line.contains("source in"))
            .count()
    };
    assert_eq!(
        (bare(&second.log()), bare(&third.log())),
        (0, 0),
        "errors name their source"
    );
    assert!(second.terminate().success());
    assert!(third.terminate().success());
}

fn stream(broker: &RabbitMq) {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let producer = Producer::connect(broker);
    producer.declare("log", "stream");
    let config = pipeline(&nginx.address, &source(broker, "log", "kind = \"stream\"\nepoch = 3"));
    (0..50).for_each(|n| producer.publish("log", None, &body(n)));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(50);
    assert!(worker.terminate().success());
    (50..100).for_each(|n| producer.publish("log", None, &body(n)));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(100);
    assert!(worker.terminate().success());
    assert_eq!(
        numbers(&nginx.publishes()),
        (0..100).collect::<Vec<_>>(),
        "each once, in order"
    );
    assert_eq!(nginx.publishes()[99].id(), "3-99");
}
