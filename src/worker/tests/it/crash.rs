use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use crate::support::*;

const COMMENTS: usize = 50_000;
const THREADS: usize = 400;
const KILLS: usize = 10;
const MAX_IN_FLIGHT: usize = 512;

/// Writes comments while the worker reads them; the file is rotated twice meanwhile.
fn write_comments(dir: &TempDir) {
    let mut file = File::create(dir.path("comments")).unwrap();
    for n in 0..COMMENTS {
        let line = format!(
            "{{\"n\":{n},\"thread\":{},\"author\":{{\"id\":{}}},\"message\":\"<b>comment</b> {n} &amp; more\"}}\n",
            n % THREADS,
            n % 97
        );
        // Some lines in two writes, so that the worker sees unfinished lines.
        let (start, end) = line.split_at(if n % 50 == 0 { 20 } else { 0 });
        file.write_all(start.as_bytes()).unwrap();
        file.write_all(end.as_bytes()).unwrap();
        if n % 500 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        if n == COMMENTS / 3 || n == COMMENTS * 2 / 3 {
            let age = if n < COMMENTS / 2 { "comments.2" } else { "comments.1" };
            std::fs::rename(dir.path("comments"), dir.path(age)).unwrap();
            file = File::create(dir.path("comments")).unwrap();
        }
    }
}

#[test]
fn kill_9_at_any_time_loses_nothing_repeats_little_and_keeps_the_order() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let source =
        format!("type = \"file\"\npath = \"comments\"\nmax_in_flight = {MAX_IN_FLIGHT}\nrotate_wait = \"20ms\"");
    let config = pipeline(&nginx.address, &source)
        .replace("[\"thread.{thread}\"]", "[\"thread.{thread}\", \"user.{author.id}\"]")
        .replace(
            "[stage]",
            "[stage]\nclean = { type = \"clean_html\", fields = [\"message\"] }",
        )
        .replace("[\"parse\", \"route\"]", "[\"parse\", \"clean\", \"route\"]")
        + "[engine]\nlanes = 2\n";

    let mut random = fastrand::Rng::with_seed(3);
    let mut kills = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| write_comments(&dir));
        for _ in 0..KILLS {
            let worker = Worker::start(&dir, &config);
            // A few hundred or thousand events later, wherever the worker is then.
            let share = COMMENTS / KILLS;
            nginx.wait_for(nginx.count() + random.usize(share / 20..share * 8 / 10));
            std::thread::sleep(Duration::from_micros(random.u64(0..3000)));
            worker.kill();
            kills.push(nginx.count());
        }
    });
    let worker = Worker::start(&dir, &config);
    let last = format!("\"n\":{},", COMMENTS - 1);
    nginx.wait_until(|publishes| {
        publishes
            .iter()
            .rev()
            .take(MAX_IN_FLIGHT)
            .any(|publish| publish.body.contains(&last))
    });
    assert!(worker.terminate().success());

    let publishes = nginx.publishes();
    let mut first_seen: HashMap<u64, String> = HashMap::new();
    let mut last_of_thread: HashMap<u64, u64> = HashMap::new();
    let mut repeats_after_kill = [0; KILLS + 1];
    for (index, publish) in publishes.iter().enumerate() {
        let comment = publish.json();
        let (n, thread) = (comment["n"].as_u64().unwrap(), comment["thread"].as_u64().unwrap());
        if let Some(id) = first_seen.get(&n) {
            assert_eq!(id, publish.id(), "a repeated event has the same id");
            // Publishes under way at the moment of a kill are counted a little later.
            repeats_after_kill[kills.partition_point(|&kill| kill <= index)] += 1;
            continue;
        }
        first_seen.insert(n, publish.id().to_owned());
        let before = last_of_thread.insert(thread, n);
        assert!(
            before.is_none_or(|before| before < n),
            "thread {thread}: {before:?} before {n}"
        );
    }
    assert_eq!(first_seen.len(), COMMENTS, "nothing is lost");
    assert_eq!(repeats_after_kill[0], 0, "nothing is repeated without a kill");
    for (kill, repeats) in repeats_after_kill.iter().enumerate() {
        assert!(*repeats <= MAX_IN_FLIGHT, "{repeats} repeats after kill {kill}");
    }
    assert!(parked(&dir).is_empty());
    println!("repeats after each kill: {:?}", &repeats_after_kill[1..]);
}
