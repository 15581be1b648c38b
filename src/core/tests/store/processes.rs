//! Several processes, some of which are killed.

use std::rc::Rc;
use std::time::{Duration, Instant};

use push_stream_core::store::*;

use crate::zone::*;

#[test]
fn a_dead_workers_subscribers_are_gone_within_a_tick() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let child = fork(|| {
        let mut worker = test.worker();
        follow(&mut worker, &["a", "b"], test.now);
        follow(&mut worker, &["a"], test.now);
        let _lost = worker.draft(1000, None, None, 1, test.now);
        // SAFETY: it ends this process, a child that shares nothing but the zone.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    // The child is a zombie until `wait`: it must count as dead all the same.
    let deadline = Instant::now() + Duration::from_secs(5);
    while worker.summary(test.now).subscribers < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    publish(&mut worker, "a", "x", &limits(), test.now).unwrap();
    worker.tick(test.now);
    assert_eq!(worker.channel(b"a").unwrap().subscribers, 0);
    assert_eq!(worker.summary(test.now).workers.len(), 1);
    test.assert_whole();
    assert!(wait(child));
    let (free, all) = test.zone.free_blocks();
    assert_eq!(all - free, 3, "two channels and a message");
}

#[test]
fn a_dead_workers_slot_is_taken_over() {
    let test = TestZone::with_slots(256, 2);
    let _worker = test.worker();
    for _ in 0..5 {
        let child = fork(|| {
            let mut worker = test.worker();
            follow(&mut worker, &["a"], test.now);
            // SAFETY: it ends this process, a child that shares nothing but the zone.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert!(wait(child));
    }
    let mut last = test.worker();
    assert!(test.zone.claim(Rc::new(limits()), test.now).is_none());
    assert_eq!(last.channel(b"a").unwrap().subscribers, 0);
    assert_eq!(drain(&mut last), [""; 0]);
    test.assert_whole();
}

#[test]
fn a_publish_wakes_the_workers_that_follow_and_no_other() {
    let test = TestZone::with_slots(256, 4);
    let fds: Vec<i32> = (0..4)
        // SAFETY: it makes a new descriptor.
        .map(|_| unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })
        .collect();
    test.zone.set_wake_fds(&fds);
    assert_eq!(test.zone.wake_fds(), fds);
    let mut publisher = test.worker();
    let mut follower = test.worker();
    let stranger = test.worker();
    follow(&mut follower, &["a"], test.now);
    let woken = |worker: &Worker| {
        let mut count = [0u8; 8];
        // SAFETY: it writes at most the eight bytes that `count` has.
        unsafe { libc::read(fds[worker.slot() as usize], count.as_mut_ptr().cast(), 8) == 8 }
    };
    for _ in 0..3 {
        publish(&mut publisher, "a", "x", &limits(), test.now).unwrap();
        assert!(!publisher.is_woken());
    }
    assert!(woken(&follower) && !woken(&follower) && !woken(&stranger) && !woken(&publisher));
    assert_eq!(drain(&mut follower).len(), 3);
    publish(&mut publisher, "a", "x", &limits(), test.now).unwrap();
    assert!(woken(&follower));
}

/// Four publishers and three followers, one of which is killed again and again: every accepted message reaches the
/// surviving followers, once and in order.
#[test]
fn nothing_is_lost_or_doubled_while_processes_die() {
    let test = TestZone::with_slots(4096, 16);
    let seconds = 2;
    let limits = Limits {
        max_stored_per_channel: Some(5),
        ..evicting()
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let publisher = |name: u32| {
        fork(|| {
            let mut worker = test.worker_with(&limits);
            let mut count = 0u32;
            while Instant::now() < end {
                count += 1;
                let text = format!("{name}:{count}:{}", "x".repeat(count as usize % 500));
                let ids: &[&[u8]] = if count.is_multiple_of(3) {
                    &[b"all", b"other"]
                } else {
                    &[b"all"]
                };
                post(
                    &mut worker,
                    Post {
                        ids,
                        text: text.as_bytes(),
                        event_id: None,
                        store: true,
                    },
                    &limits,
                    test.now,
                )
                .unwrap();
                // The follower must keep up: messages that it leaves behind would be evicted.
                if count.is_multiple_of(16) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            // SAFETY: it ends this process, a child.
            unsafe { libc::_exit(0) };
        })
    };
    let mut worker = test.worker_with(&limits);
    follow(&mut worker, &["all"], test.now);
    let publishers: Vec<i32> = (0..4).map(publisher).collect();
    let mut victims = Vec::new();
    let spawn_victim = || {
        fork(|| {
            let mut worker = test.worker_with(&limits);
            let mut counter = 0u32;
            loop {
                let joined = follow(&mut worker, &["all", "other"], test.now);
                counter += 1;
                let text = "v".repeat(counter as usize % 1000);
                let ids: &[&[u8]] = &[b"other", b"victims"];
                let _ = post(
                    &mut worker,
                    Post {
                        ids,
                        text: text.as_bytes(),
                        event_id: None,
                        store: true,
                    },
                    &limits,
                    test.now,
                );
                drain(&mut worker);
                old(&mut worker, "all", 3, Position::default(), test.now);
                worker.tick(test.now);
                worker.leave(&joined.memberships, true);
            }
        })
    };
    let mut next = [1u32; 4];
    let mut received = 0u64;
    let mut take = |worker: &mut Worker, next: &mut [u32; 4]| {
        for text in drain(worker) {
            let mut parts = text.split(':');
            let mut number = || parts.next().unwrap().parse::<u32>().unwrap();
            let (name, count) = (number() as usize, number());
            assert_eq!(count, next[name], "publisher {name}");
            assert_eq!(parts.next().unwrap().len(), count as usize % 500);
            next[name] += 1;
            received += 1;
        }
    };
    while Instant::now() < end {
        let victim = spawn_victim();
        let until = Instant::now() + Duration::from_micros(2000 + 137 * (victims.len() as u64 % 30));
        while Instant::now() < until {
            take(&mut worker, &mut next);
        }
        // SAFETY: a child of this process that has not been waited for yet, so the number is still its own.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        assert!(wait(victim));
        victims.push(victim);
        worker.tick(test.now);
    }
    for pid in publishers {
        assert!(!wait(pid), "a publisher was killed");
    }
    take(&mut worker, &mut next);
    worker.tick(test.now);
    test.assert_whole();
    let summary = worker.summary(test.now);
    assert_eq!(summary.evicted.undelivered, 0);
    assert_eq!(worker.channel(b"all").unwrap().published, received);
    assert_eq!(worker.channel(b"all").unwrap().subscribers, 1);
    assert!(
        victims.len() > 10 && received > 1000,
        "{} kills, {received} messages",
        victims.len()
    );
    eprintln!(
        "{} kills ({} inside the lock), {received} messages",
        victims.len(),
        test.zone.repairs()
    );
}
