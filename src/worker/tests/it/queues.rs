//! Guarantees of both Redis queues: no loss, order kept, one active worker, and suspects delivered alone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use redis::Commands;

use crate::brokers::*;
use crate::support::*;

const LEASE: Duration = Duration::from_millis(900);

/// Appends events to a stream; `n` from 1.
fn append(redis: &mut redis::Connection, numbers: std::ops::Range<usize>) {
    let mut pipe = redis::pipe();
    for n in numbers {
        pipe.cmd("XADD").arg("posts").arg("*").arg("body").arg(body(n)).ignore();
    }
    pipe.query::<()>(redis).unwrap();
}

fn body(n: usize) -> String {
    format!("{{\"n\":{n},\"thread\":{}}}", n % 7)
}

fn number(publish: &Publish) -> usize {
    usize::try_from(publish.json()["n"].as_u64().unwrap()).unwrap()
}

fn streams(redis: &Redis, more: &str) -> String {
    format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"\ngroup = \"push\"\nlease = \"900ms\"\n{more}",
        redis.url()
    )
}

fn thoonk(redis: &Redis, more: &str) -> String {
    format!(
        "type = \"thoonk\"\nurl = \"{}\"\nqueue = \"posts\"\nlease = \"900ms\"\n{more}",
        redis.url()
    )
}

fn dead_letters(redis: &Redis) -> u64 {
    redis::cmd("XLEN")
        .arg("posts.parked")
        .query(&mut redis.connect())
        .unwrap()
}

/// Asserts that all events came, first deliveries in order, and redeliveries only of earlier events.
fn assert_complete_and_ordered(publishes: &[Publish], count: usize) {
    let mut seen = HashSet::new();
    let mut newest = 0;
    for publish in publishes.iter().filter(|publish| publish.accepted) {
        let n = number(publish);
        if seen.insert(n) {
            assert!(n > newest, "{n} came after {newest}");
            newest = n;
        }
    }
    assert_eq!(seen.len(), count);
}

/// Asserts one id per event, also on redelivery.
fn assert_stable_ids(publishes: &[Publish]) {
    let mut ids: HashMap<usize, &str> = HashMap::new();
    for publish in publishes {
        let (id, n) = (publish.id(), number(publish));
        assert_eq!(*ids.entry(n).or_insert(id), id, "the id of event {n}");
    }
}

#[test]
fn nothing_of_a_stream_is_lost_or_out_of_order_over_kills() {
    const COUNT: usize = 3000;
    let mut redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let config = pipeline(&nginx.address, &streams(&redis, "max_in_flight = 300"));
    let mut commands = redis.connect();
    for round in 0..6 {
        append(&mut commands, round * 500 + 1..round * 500 + 501);
        let worker = Worker::start(&dir, &config);
        // In the middle of its work.
        let before = nginx.count();
        nginx.wait_for(before + 200);
        if round == 3 {
            redis.restart().unwrap();
            commands = redis.connect();
        }
        worker.kill();
    }
    let worker = Worker::start(&dir, &config);
    let all = |publishes: &[Publish]| publishes.iter().map(number).collect::<HashSet<_>>().len() == COUNT;
    nginx.wait_until(all);
    // A worker that was starved for longer than its lease claims and publishes once more.
    wait("everything to be acknowledged", || {
        let pending: Vec<redis::Value> = redis::cmd("XPENDING")
            .arg("posts")
            .arg("push")
            .query(&mut commands)
            .unwrap();
        pending[0] == redis::Value::Int(0)
    });
    assert!(worker.terminate().success());
    assert_complete_and_ordered(&nginx.publishes(), COUNT);
    assert_stable_ids(&nginx.publishes());
    assert!(nginx.batches() > 0);
}

#[test]
fn nothing_of_a_thoonk_queue_is_lost_or_out_of_order_over_kills_and_its_counters_agree() {
    const COUNT: usize = 3000;
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::with_batches(|_| Behaviour::Accept);
    let config = pipeline(&nginx.address, &thoonk(&redis, "max_in_flight = 300"));
    let mut queue = Thoonk::classic(&redis, "posts");
    for round in 0..5 {
        (round * 600 + 1..round * 600 + 601).for_each(|n| queue.put(&format!("job{n}"), &body(n)));
        let worker = Worker::start(&dir, &config);
        let before = nginx.count();
        nginx.wait_for(before + 150);
        worker.kill();
    }
    let worker = Worker::start(&dir, &config);
    nginx.wait_until(|publishes| publishes.iter().map(number).collect::<HashSet<_>>().len() == COUNT);
    // A worker that was starved for longer than its lease claims and publishes once more.
    wait("all to be finished", || {
        let sizes = queue.sizes();
        assert_eq!(sizes[4], 0, "{}", Worker::run(&dir, &["park", "list", "worker.toml"]));
        sizes == [0; 5]
    });
    assert!(worker.terminate().success());
    assert_complete_and_ordered(&nginx.publishes(), COUNT);
    assert_stable_ids(&nginx.publishes());
    assert_eq!(
        (queue.counter("publishes"), queue.counter("finishes")),
        (COUNT as u64, COUNT as u64)
    );
    let leftovers: Vec<String> = queue.redis.keys("glue.*").unwrap();
    let allowed = ["glue.seqno:posts", "glue.epoch:posts"];
    assert!(
        leftovers.iter().all(|key| allowed.contains(&key.as_str())),
        "{leftovers:?}"
    );
}

#[test]
fn a_standby_takes_over_from_a_worker_that_is_paused_and_that_one_is_fenced() {
    let redis = Redis::start();
    let (first_dir, second_dir) = (TempDir::new(), TempDir::new());
    // The first event of the second hundred hangs, so that claims are open when the worker is stopped.
    let nginx = StandIn::start("127.0.0.1:0", |publish| {
        if number(publish) == 101 {
            Behaviour::Hang(Duration::from_millis(400))
        } else {
            Behaviour::Accept
        }
    });
    let slow = pipeline(&nginx.address, &streams(&redis, ""));
    let mut commands = redis.connect();
    append(&mut commands, 1..101);
    let mut first = Worker::start(&first_dir, &slow);
    nginx.wait_for(100);
    let mut second = Worker::start(&second_dir, &slow.replace("nginx.wait", ""));
    second.wait_for_log("another worker is active; standing by");
    append(&mut commands, 101..301);
    nginx.wait_for(101);
    first.signal("-STOP");
    let stopped = Instant::now();
    // Later publishes are the second worker's; it starts with the first one's claims.
    let before = nginx.count();
    nginx.wait_for(before + 1);
    assert!(
        stopped.elapsed() < LEASE + Duration::from_secs(2),
        "{:?}",
        stopped.elapsed()
    );
    second.wait_for_log("reading stream posts as group push");
    let again = nginx.publishes()[before..].iter().map(number).next().unwrap();
    assert_eq!(again, 101);
    second.signal("-STOP");
    first.signal("-CONT");
    second.signal("-CONT");
    first.wait_for_log("another worker has taken over");
    drop((first, second));
}

#[test]
fn what_a_stream_has_forgotten_before_it_was_read_is_told() {
    let redis = Redis::start();
    let (dir, cursor_dir) = (TempDir::new(), TempDir::new());
    let (nginx, other_nginx) = (StandIn::accepting(), StandIn::accepting());
    let group = pipeline(&nginx.address, &streams(&redis, ""));
    let cursor = streams(&redis, "").replace("group = \"push\"\nlease = \"900ms\"\n", "");
    let cursor = pipeline(&other_nginx.address, &cursor);
    let mut commands = redis.connect();
    append(&mut commands, 1..11);
    let start = || (Worker::start(&dir, &group), Worker::start(&cursor_dir, &cursor));
    let (first, second) = start();
    for nginx in [&nginx, &other_nginx] {
        nginx.wait_for(10);
    }
    // A worker that has seen the end of the stream knows the number of entries.
    wait("the position", || {
        cursor_dir.read("state/in.position.json").contains("\"count\":10")
    });
    assert!(first.terminate().success() && second.terminate().success());
    append(&mut commands, 11..111);
    let mut trim = redis::cmd("XTRIM");
    trim.arg("posts")
        .arg("MAXLEN")
        .arg("=")
        .arg(20)
        .exec(&mut commands)
        .unwrap();
    let (mut first, mut second) = start();
    for (worker, nginx) in [(&mut first, &nginx), (&mut second, &other_nginx)] {
        worker.wait_for_log("80 events were trimmed away before they were read");
        nginx.wait_for(30);
    }
    assert!(first.terminate().success() && second.terminate().success());
    for dir in [&dir, &cursor_dir] {
        assert_eq!(dir.read("worker.log").matches("trimmed away").count(), 1, "told once");
    }
}

/// Waits until the worker waits for the stream, and returns the id of that connection.
fn waiting_reader(redis: &Redis) -> String {
    let mut commands = redis.connect();
    let mut reader = None;
    wait("a worker that waits", || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut commands).unwrap();
        let waits = |line: &&str| line.contains("cmd=xreadgroup") && line.contains("flags=b");
        let line = list.lines().find(waits).map(str::to_owned);
        reader = line.and_then(|line| Some(line.split_once("id=")?.1.split(' ').next()?.to_owned()));
        reader.is_some()
    });
    reader.unwrap()
}

fn distinct(publishes: &[Publish]) -> usize {
    publishes.iter().map(number).collect::<HashSet<_>>().len()
}

fn pending(commands: &mut redis::Connection) -> redis::Value {
    let mut summary: Vec<redis::Value> = redis::cmd("XPENDING").arg("posts").arg("push").query(commands).unwrap();
    summary.swap_remove(0)
}

#[test]
fn a_worker_that_is_paused_while_it_waits_cannot_claim_what_comes_after_its_lease() {
    let redis = Redis::start();
    let (first_dir, second_dir) = (TempDir::new(), TempDir::new());
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, &streams(&redis, ""));
    let mut commands = redis.connect();
    append(&mut commands, 1..11);
    let mut first = Worker::start(&first_dir, &config);
    nginx.wait_for(10);
    wait("all to be acknowledged", || {
        pending(&mut commands) == redis::Value::Int(0)
    });
    let reader = waiting_reader(&redis);
    first.signal("-STOP");
    let second = Worker::start(&second_dir, &config);
    wait("the second one to wait", || waiting_reader(&redis) != reader);
    append(&mut commands, 11..31);
    nginx.wait_until(|publishes| distinct(publishes) == 30);
    assert_complete_and_ordered(&nginx.publishes(), 30);
    wait("all to be acknowledged", || {
        pending(&mut commands) == redis::Value::Int(0)
    });
    first.signal("-CONT");
    first.wait_for_log("standing by");
    assert!(second.terminate().success());
    append(&mut commands, 31..41);
    nginx.wait_until(|publishes| distinct(publishes) == 40);
    assert!(first.terminate().success());
    assert_complete_and_ordered(&nginx.publishes(), 40);
}

#[test]
fn a_connection_that_is_lost_while_it_waits_loses_nothing() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let worker = Worker::start(&dir, &pipeline(&nginx.address, &streams(&redis, "")));
    let mut commands = redis.connect();
    for round in 0..5 {
        let reader = waiting_reader(&redis);
        let mut pipe = redis::pipe();
        // In one go: the first of these is claimed through a connection that is closed before it can return it.
        for n in round * 10 + 1..round * 10 + 11 {
            pipe.cmd("XADD").arg("posts").arg("*").arg("body").arg(body(n)).ignore();
        }
        pipe.cmd("CLIENT").arg("KILL").arg("ID").arg(reader).ignore();
        pipe.query::<()>(&mut commands).unwrap();
        nginx.wait_until(|publishes| distinct(publishes) == (round + 1) * 10);
        wait("all to be acknowledged", || {
            pending(&mut commands) == redis::Value::Int(0)
        });
    }
    assert!(worker.terminate().success());
    assert_complete_and_ordered(&nginx.publishes(), 50);
}

#[test]
fn each_thing_that_is_wrong_with_a_broker_is_told_and_when_it_is_mended_the_events_come() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let mut commands = redis.connect();
    append(&mut commands, 1..4);
    let source = streams(&redis, "").replace("redis://", "redis://worker:secret@");
    let mut worker = Worker::start(&dir, &pipeline(&nginx.address, &source));
    worker.wait_for_log("Password authentication failed");
    let mut set_user = |rights: &[&str]| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER")
            .arg("worker")
            .arg(rights)
            .exec(&mut commands)
            .unwrap();
    };
    set_user(&["on", ">secret", "+@connection", "+info"]);
    worker.wait_for_log("no permissions to run");
    set_user(&["~*", "&*", "+@all"]);
    nginx.wait_for(3);
    assert!(worker.terminate().success());
    assert_eq!(
        dir.read("worker.log").matches("Password authentication failed").count(),
        1,
        "told once"
    );
}

#[test]
fn without_the_right_to_close_connections_a_stream_is_watched() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let mut commands = redis.connect();
    let rights = ["on", ">secret", "~*", "&*", "+@all", "-client|kill"];
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("worker")
        .arg(&rights)
        .exec(&mut commands)
        .unwrap();
    let source = streams(&redis, "").replace("redis://", "redis://worker:secret@");
    let mut worker = Worker::start(&dir, &pipeline(&nginx.address, &source));
    worker.wait_for_log("watching the stream");
    for n in 1..6 {
        append(&mut commands, n..n + 1);
        nginx.wait_for(n);
    }
    assert!(worker.terminate().success());
    assert_complete_and_ordered(&nginx.publishes(), 5);
}

#[test]
fn what_was_let_go_of_in_a_pause_comes_before_what_is_newer_also_if_nobody_else_took_the_lease() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let nginx = StandIn::start("127.0.0.1:0", move |_| {
        if is_first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            Behaviour::Hang(LEASE)
        } else {
            Behaviour::Accept
        }
    });
    let mut commands = redis.connect();
    append(&mut commands, 1..21);
    let worker = Worker::start(&dir, &pipeline(&nginx.address, &streams(&redis, "")));
    nginx.wait_for(1);
    let lease = "glue.lease:posts:push";
    let token: String = commands.get(lease).unwrap();
    worker.signal("-STOP");
    // The lease lasts, but the worker cannot have been certain of it all the time.
    let _: () = commands.set_ex(lease, token, 600).unwrap();
    std::thread::sleep(LEASE * 2);
    append(&mut commands, 21..41);
    worker.signal("-CONT");
    nginx.wait_until(|publishes| {
        let accepted = publishes.iter().filter(|publish| publish.accepted);
        accepted.map(number).collect::<HashSet<_>>().len() == 40
    });
    assert_complete_and_ordered(&nginx.publishes(), 40);
    assert!(worker.terminate().success());
}

#[test]
fn what_kills_the_worker_again_and_again_is_parked_and_the_innocent_are_not() {
    let redis = Redis::start();
    let dir = TempDir::new();
    // A worker killed while it waits for this answer has been "killed by the event".
    let nginx = StandIn::start("127.0.0.1:0", |publish| {
        if number(publish) == 5 {
            Behaviour::Hang(PATIENCE)
        } else {
            Behaviour::Accept
        }
    });
    let config = pipeline(&nginx.address, &streams(&redis, "max_deaths = 2"));
    append(&mut redis.connect(), 1..11);
    let attempts = |publishes: &[Publish]| publishes.iter().filter(|publish| number(publish) == 5).count();
    let mut deaths = 0;
    let mut worker = Worker::start(&dir, &config);
    while dead_letters(&redis) == 0 {
        let before = attempts(&nginx.publishes());
        wait("an attempt or a dead letter", || {
            attempts(&nginx.publishes()) > before || deaths > 0 && dead_letters(&redis) > 0
        });
        if dead_letters(&redis) > 0 {
            break;
        }
        worker.kill();
        deaths += 1;
        assert!(deaths < 10);
        worker = Worker::start(&dir, &config);
    }
    nginx.wait_until(|publishes| {
        publishes
            .iter()
            .filter(|publish| publish.accepted)
            .map(number)
            .collect::<HashSet<_>>()
            .len()
            == 9
    });
    assert!(worker.terminate().success());
    let parked: Vec<(String, HashMap<String, String>)> = redis::cmd("XRANGE")
        .arg("posts.parked")
        .arg("-")
        .arg("+")
        .query(&mut redis.connect())
        .unwrap();
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].1["body"], body(5));
    assert!(
        parked[0].1["parked.reason"].contains("the worker died 2 times while this event alone was in flight"),
        "{parked:?}"
    );
}

#[test]
fn a_dead_letter_of_a_stream_keeps_its_reason_and_can_be_tried_again() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, &streams(&redis, ""));
    let mut commands = redis.connect();
    for (field, value) in [("body", "{no json"), ("text", "no body")] {
        redis::cmd("XADD")
            .arg("posts")
            .arg("*")
            .arg(field)
            .arg(value)
            .exec(&mut commands)
            .unwrap();
    }
    append(&mut commands, 1..2);
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(1);
    wait("dead letters", || dead_letters(&redis) == 2);
    let list = Worker::run(&dir, &["park", "list", "worker.toml"]);
    assert!(
        list.contains("not valid JSON") && list.contains("source: the entry has no field \"body\""),
        "{list}"
    );
    let id = list
        .lines()
        .find(|line| line.contains("not valid JSON"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    assert!(Worker::run(&dir, &["park", "show", "worker.toml", &id]).contains("{no json"));
    assert_eq!(
        Worker::run(&dir, &["park", "retry", "worker.toml", &id]),
        "1 queued again\n"
    );
    // It is parked again with the same reason, as a new entry.
    wait("it to be parked again", || dead_letters(&redis) == 2);
    assert_eq!(
        Worker::run(&dir, &["park", "drop", "worker.toml", "--all"]),
        "2 dropped\n"
    );
    assert_eq!(dead_letters(&redis), 0);
    assert!(worker.terminate().success());
}

#[test]
fn a_dead_letter_of_a_thoonk_queue_is_a_stalled_job() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, &thoonk(&redis, ""));
    let mut queue = Thoonk::classic(&redis, "posts");
    queue.put("bad", "{no json");
    queue.put("good", &body(1));
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(1);
    wait("a stalled job", || queue.sizes() == [0, 1, 0, 0, 1]);
    let list = Worker::run(&dir, &["park", "list", "worker.toml"]);
    assert!(list.contains("bad") && list.contains("not valid JSON"), "{list}");
    // An operator repairs the body, and retries the job.
    let _: () = queue.redis.hset(queue.key("items"), "bad", body(2)).unwrap();
    assert_eq!(
        Worker::run(&dir, &["park", "retry", "worker.toml", "bad"]),
        "1 queued again\n"
    );
    nginx.wait_for(2);
    wait("the job to be finished", || queue.sizes() == [0; 5]);
    assert_eq!(queue.counter("finishes"), 2);
    assert!(worker.terminate().success());
}

#[test]
fn jobs_that_others_let_lie_or_lose_are_worked_on() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(
        &nginx.address,
        &thoonk(&redis, "foreign_lease = \"300ms\"\norphan_interval = \"300ms\""),
    );
    let mut queue = Thoonk::classic(&redis, "posts");
    // Claimed by a Python worker that has died; and by one that died between the two commands of its `get`.
    queue.put("claimed", &body(1));
    assert_eq!(queue.get(), "claimed");
    queue.put("orphan", &body(2));
    let _: String = queue.redis.rpop(queue.key("ids"), None).unwrap();
    // A retracted job leaves an id without body; a failed retry leaves a duplicate id.
    let _: () = queue.redis.lpush(queue.key("ids"), "retracted").unwrap();
    queue.put("double", &body(3));
    let _: () = queue.redis.lpush(queue.key("ids"), "double").unwrap();
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(3);
    wait("the queue to be empty", || queue.sizes() == [0; 5]);
    assert_eq!(
        nginx.publishes().iter().map(number).collect::<HashSet<_>>(),
        HashSet::from([1, 2, 3])
    );
    assert_eq!(nginx.count(), 3, "none came twice");
    assert!(worker.terminate().success());
}

#[test]
fn the_jobs_dialect_tells_of_each_job_that_is_finished() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let config = pipeline(&nginx.address, &thoonk(&redis, "dialect = \"jobs\""));
    let mut queue = Thoonk::jobs(&redis, "posts");
    let mut listener = redis.connect();
    let mut finished = listener.as_pubsub();
    finished.subscribe("event.job.finish:posts").unwrap();
    queue.put("one", &body(1));
    let worker = Worker::start(&dir, &config);
    let message: String = finished.get_message().unwrap().get_payload().unwrap();
    assert_eq!(message, "one");
    wait("the queue to be empty", || queue.sizes() == [0; 5]);
    assert_eq!(queue.counter("finishes"), 1);
    assert!(worker.terminate().success());
}

#[test]
fn many_consumers_share_a_stream_and_take_over_what_one_leaves_behind() {
    let redis = Redis::start();
    let (one_dir, two_dir) = (TempDir::new(), TempDir::new());
    let nginx = StandIn::accepting();
    let config = pipeline(
        &nginx.address,
        &streams(&redis, "consumers = \"many\"\nbatch = 10\nmax_in_flight = 10"),
    );
    let (one, two) = (Worker::start(&one_dir, &config), Worker::start(&two_dir, &config));
    append(&mut redis.connect(), 1..501);
    nginx.wait_for(50);
    one.kill();
    nginx.wait_until(|publishes| publishes.iter().map(number).collect::<HashSet<_>>().len() == 500);
    assert!(two.terminate().success());
    assert_stable_ids(&nginx.publishes());
}

#[test]
fn neither_the_first_event_after_a_start_waits_nor_the_end_of_a_worker_that_has_nothing_to_do() {
    let redis = Redis::start();
    let admin = free_port();
    let mut jobs = Thoonk::classic(&redis, "posts");
    // In milliseconds, the best of several: other load on the machine causes outliers.
    let best = |source: &str, put: &mut dyn FnMut(usize)| {
        let times = (0..4).map(|n| {
            let dir = TempDir::new();
            let nginx = StandIn::accepting();
            let config = pipeline(&nginx.address, source) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
            let worker = Worker::start(&dir, &config);
            wait_for_port(admin);
            wait("it to be ready", || {
                request(admin, "GET", "/ready", &[], "").status == 200
            });
            let begin = Instant::now();
            put(n);
            nginx.wait_for(1);
            let first = begin.elapsed().as_millis();
            // It finishes the event and waits for the next one.
            std::thread::sleep(Duration::from_millis(100));
            let begin = Instant::now();
            assert!(worker.terminate().success());
            (first, begin.elapsed().as_millis())
        });
        let (firsts, ends): (Vec<_>, Vec<_>) = times.unzip();
        (*firsts.iter().min().unwrap(), *ends.iter().min().unwrap())
    };
    let mut commands = redis.connect();
    let stream = best(&streams(&redis, ""), &mut |n| append(&mut commands, n..n + 1));
    let cursor = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"",
        redis.url()
    );
    let cursor = best(&cursor, &mut |n| append(&mut commands, n..n + 1));
    let thoonk = best(&thoonk(&redis, ""), &mut |n| jobs.put(&format!("job{n}"), &body(n)));
    for (first, end) in [stream, cursor, thoonk] {
        assert!(
            first < 150 && end < 500,
            "first event after {first} ms, end after {end} ms"
        );
    }
}

#[test]
fn what_is_done_makes_room_for_more_at_once() {
    const COUNT: usize = 40;
    let redis = Redis::start();
    append(&mut redis.connect(), 1..COUNT + 1);
    let mut jobs = Thoonk::classic(&redis, "posts");
    (1..=COUNT).for_each(|n| jobs.put(&format!("job{n}"), &body(n)));
    let cursor = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"\nmax_in_flight = 2",
        redis.url()
    );
    let queues = [
        streams(&redis, "max_in_flight = 2"),
        thoonk(&redis, "max_in_flight = 2"),
    ];
    // Exclude lease renewals, too.
    let queues = queues.map(|source| source.replace("900ms", "30s"));
    for source in queues.into_iter().chain([cursor]) {
        let dir = TempDir::new();
        let nginx = StandIn::accepting();
        let worker = Worker::start(&dir, &pipeline(&nginx.address, &source));
        nginx.wait_for(COUNT);
        let times: Vec<Instant> = nginx.publishes().iter().map(|publish| publish.at).collect();
        let mut pairs: Vec<Duration> = times.windows(3).map(|three| three[2] - three[0]).collect();
        pairs.sort_unstable();
        // If room were made by what happens once a second, every pair would wait for that.
        let usual = pairs[pairs.len() / 2];
        assert!(usual < Duration::from_millis(700), "{usual:?}: {source}");
        assert!(worker.terminate().success());
    }
}

#[test]
fn a_node_that_was_away_has_its_memory_filled_before_the_worker_is_ready_again() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let (port, admin) = (free_port(), free_port());
    let ready = || request(admin, "GET", "/ready", &[], "").status;
    let source = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"\nhistory = \"10m\"\nmax_in_flight = 16",
        redis.url()
    );
    let config =
        pipeline(&format!("http://127.0.0.1:{port}"), &source) + &format!("[admin]\nlisten = \"127.0.0.1:{admin}\"\n");
    append(&mut redis.connect(), 1..301);
    let node = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    let worker = Worker::start(&dir, &config);
    wait_for_port(admin);
    wait("it to be ready", || ready() == 200);
    assert_eq!(node.count(), 300);
    drop(node);
    // More than may be in flight at once.
    append(&mut redis.connect(), 301..341);
    wait("it to notice", || ready() == 503);
    let node = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    wait("it to be ready again", || ready() == 200);
    let numbers: Vec<usize> = node.publishes().iter().map(number).collect();
    // A channel with a newer id would refuse an older one.
    assert_eq!(numbers, (1..341).collect::<Vec<_>>(), "all of it, the oldest first");
    drop(node);
    wait("it to notice, though there is nothing to send", || ready() == 503);
    // A node that fails again before it has got everything.
    let node = StandIn::start(&format!("127.0.0.1:{port}"), {
        let count = std::sync::atomic::AtomicUsize::new(0);
        move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0..50 => Behaviour::Accept,
            _ => Behaviour::Hang(PATIENCE),
        }
    });
    node.wait_for(51);
    drop(node);
    wait("it to notice that, too", || {
        request(admin, "GET", "/ready", &[], "").body.contains("not answering")
    });
    let node = StandIn::start(&format!("127.0.0.1:{port}"), |_| Behaviour::Accept);
    wait("it to be ready once more", || ready() == 200);
    let numbers: Vec<usize> = node.publishes().iter().map(number).collect();
    assert_eq!(numbers, (1..341).collect::<Vec<_>>(), "and again all of it");
    assert!(worker.terminate().success());
}

#[test]
fn a_cursor_reads_everything_from_where_it_was() {
    let redis = Redis::start();
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let source = format!(
        "type = \"redis_streams\"\nurl = \"{}\"\nstream = \"posts\"",
        redis.url()
    );
    let config = pipeline(&nginx.address, &source);
    let mut commands = redis.connect();
    append(&mut commands, 1..101);
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(100);
    assert!(worker.terminate().success());
    append(&mut commands, 101..201);
    let worker = Worker::start(&dir, &config);
    nginx.wait_for(200);
    append(&mut commands, 201..202);
    nginx.wait_for(201);
    assert!(worker.terminate().success());
    let numbers: Vec<usize> = nginx.publishes().iter().map(number).collect();
    assert_eq!(numbers, (1..202).collect::<Vec<_>>(), "each once, in order");
}
