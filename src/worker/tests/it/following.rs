use std::collections::HashSet;
use std::time::Duration;

use crate::support::*;

fn config(nginx: &StandIn) -> String {
    let source = "type = \"file\"\npath = \"log\"\nmax_in_flight = 64\nrotate_wait = \"30ms\"\npoll = \"2ms\"\nmax_line = \"200B\"";
    pipeline(&nginx.address, source)
}

fn line(n: u64) -> String {
    format!("{{\"thread\":{},\"n\":{n}}}\n", n % 7)
}

fn numbers(nginx: &StandIn) -> Vec<u64> {
    nginx
        .publishes()
        .iter()
        .map(|publish| publish.json()["n"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_file_that_comes_later_and_rotates_again_and_again_is_read_completely_and_once() {
    const PER_FILE: u64 = 150;
    const FILES: u64 = 8;
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let mut worker = Worker::start(&dir, &config(&nginx));
    worker.wait_for_log("following log");
    for file in 0..FILES {
        for n in file * PER_FILE..(file + 1) * PER_FILE {
            dir.append("log", &line(n));
            if n % 20 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        for old in (1..=file).rev() {
            std::fs::rename(dir.path(&format!("log.{old}")), dir.path(&format!("log.{}", old + 1))).unwrap();
        }
        std::fs::rename(dir.path("log"), dir.path("log.1")).unwrap();
    }
    // The last file keeps its name, so that the one before it has a successor.
    dir.append("log", &line(FILES * PER_FILE));
    let total = usize::try_from(FILES * PER_FILE).unwrap() + 1;
    nginx.wait_for(total);
    let seen = numbers(&nginx);
    assert_eq!(seen.len(), total, "nothing twice");
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), total);
    for key in 0..7 {
        let of_key: Vec<_> = seen.iter().filter(|n| *n % 7 == key).collect();
        assert!(of_key.is_sorted(), "key {key}");
    }
    assert_eq!(worker.terminate().code(), Some(0));
}

#[test]
fn truncation_is_noticed_and_reading_starts_over() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    let _worker = Worker::start(&dir, &config(&nginx));
    dir.append("log", &line(1));
    dir.append("log", &line(2));
    nginx.wait_for(2);
    std::fs::write(dir.path("log"), line(3)).unwrap();
    nginx.wait_for(3);
    // Copied, truncated and refilled at once: the unread rest is in the copy.
    dir.append("log", &line(4));
    nginx.wait_for(4);
    std::fs::copy(dir.path("log"), dir.path("copy")).unwrap();
    std::fs::write(dir.path("copy"), dir.read("log") + &line(5)).unwrap();
    std::fs::rename(dir.path("copy"), dir.path("log.1")).unwrap();
    std::fs::write(dir.path("log"), line(6)).unwrap();
    nginx.wait_for(6);
    assert_eq!(numbers(&nginx).into_iter().collect::<HashSet<_>>(), (1..=6).collect());
}

#[test]
fn rotation_while_the_worker_is_down_loses_nothing() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    dir.append("log", &line(1));
    let worker = Worker::start(&dir, &config(&nginx));
    nginx.wait_for(1);
    assert!(worker.terminate().success());
    dir.append("log", &line(2));
    std::fs::rename(dir.path("log"), dir.path("log.2")).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    dir.append("log.1", &line(3));
    dir.append("log", &line(4));
    let worker = Worker::start(&dir, &config(&nginx));
    nginx.wait_for(4);
    assert!(worker.terminate().success());
    assert_eq!(numbers(&nginx), [1, 2, 3, 4]);
    let ids: Vec<_> = nginx
        .publishes()
        .iter()
        .map(|publish| publish.id().to_owned())
        .collect();
    let epoch = ids[0].split_once('-').unwrap().0;
    assert_eq!(
        ids,
        [1, 2, 3, 4].map(|seq| format!("{epoch}-{seq}")),
        "ids go on over a restart"
    );
}

#[test]
fn the_start_can_be_the_end_and_a_line_too_long_is_parked() {
    let dir = TempDir::new();
    let nginx = StandIn::accepting();
    dir.append("log", &line(1));
    let config = config(&nginx).replace("path = \"log\"", "path = \"log\"\nstart = \"end\"");
    let mut worker = Worker::start(&dir, &config);
    worker.wait_for_log("following log");
    wait("the checkpoint at the end", || {
        dir.read("state/in.checkpoint.json").contains("\"offset\":")
    });
    dir.append("log", &line(2));
    dir.append("log", &format!("{{\"thread\":\"{}\"}}\n", "x".repeat(5000)));
    dir.append("log", &line(3));
    nginx.wait_for(2);
    assert_eq!(numbers(&nginx), [2, 3]);
    wait("parking", || !parked(&dir).is_empty());
    let parked = parked(&dir);
    assert_eq!(parked[0]["raw"].as_str().unwrap().len(), 200);
    assert!(
        parked[0]["reason"].as_str().unwrap().contains("longer than 200 bytes"),
        "{parked:?}"
    );
}

#[test]
fn a_damaged_checkpoint_is_an_error_and_not_a_silent_start() {
    let dir = TempDir::new();
    std::fs::create_dir_all(dir.path("state")).unwrap();
    dir.append("state/in.checkpoint.json", "{\"epoch\":");
    let worker = Worker::start(&dir, &config(&StandIn::accepting()));
    assert_eq!(worker.wait().code(), Some(1));
    assert!(
        dir.read("worker.log").contains("in.checkpoint.json is damaged"),
        "{}",
        dir.read("worker.log")
    );
}
