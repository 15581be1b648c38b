//! Counters outlive the worker that added to them.

use push_stream_core::store::*;

use crate::zone::*;

#[test]
fn counts_outlive_the_worker_and_are_of_all_workers() {
    let test = TestZone::new(128);
    let survivor = test.worker();
    let child = fork(|| {
        let worker = test.worker();
        worker.count(Counter::Delivered, 5);
        let mut fanout = Fanout::default();
        for took in [0, 1, 2, 40_000] {
            fanout.observe(took);
        }
        worker.count_fanout(&mut fanout);
        assert_eq!(fanout, Fanout::default(), "what was added is forgotten");
        // SAFETY: no memory is involved.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    assert!(wait(child));
    survivor.count(Counter::Delivered, 2);
    let counts = survivor.summary(test.now).counts;
    assert_eq!(counts.get(Counter::Delivered), 7);
    assert_eq!(counts.get(Counter::Duplicate), 0);
    let fanout = counts.fanout();
    assert_eq!(fanout.buckets[..2], [2, 1]);
    assert_eq!(fanout.buckets.last(), Some(&1));
    assert_eq!((fanout.buckets.iter().sum::<u64>(), fanout.sum_ms), (4, 40_003));
}

#[test]
fn only_the_dead_are_restarts() {
    let test = TestZone::with_slots(128, 4);
    let mut survivor = test.worker();
    for killed in [false, true, true] {
        let child = fork(|| {
            let worker = test.worker();
            if killed {
                // SAFETY: no memory is involved.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
            worker.release();
        });
        assert_eq!(wait(child), killed);
        survivor.tick(test.now);
    }
    assert_eq!(survivor.summary(test.now).restarts, 2);
}

#[test]
fn each_worker_says_what_waits_for_its_readers() {
    let test = TestZone::new(128);
    let worker = test.worker();
    worker.set_queued_bytes(1 << 40);
    worker.set_compress_groups(3);
    let info = &worker.summary(test.now).workers[0];
    assert_eq!((info.queued_bytes, info.started_unix), (1 << 40, test.now.unix_secs()));
    assert_eq!(info.compress_groups, 3);
    worker.release();
    let worker = test.worker();
    let info = &worker.summary(test.now).workers[0];
    assert_eq!(
        (info.queued_bytes, info.compress_groups),
        (0, 0),
        "a new one has no readers"
    );
}

#[test]
fn a_message_knows_its_millisecond() {
    let mut test = TestZone::new(128);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    let times = [0, 1, 999, 1000, 123_456].map(|ms| test.now.unix_ms + ms);
    for ms in times {
        test.now.unix_ms = ms;
        publish(&mut worker, "a", "x", &limits(), test.now).unwrap();
        publish(&mut worker, "a", "x", &limits(), test.now).unwrap();
    }
    let mut batch = Batch::default();
    worker.drain(1 << 20, &mut batch);
    let got: Vec<_> = batch
        .iter()
        .map(|(_, message)| (message.unix_ms, message.time))
        .collect();
    let expected: Vec<_> = times.iter().flat_map(|&ms| [(ms, ms / 1000); 2]).collect();
    assert_eq!(got, expected);
    let tags: Vec<_> = batch.iter().map(|(_, message)| message.tag).collect();
    assert_eq!(tags, [1, 2, 3, 4, 5, 6, 1, 2, 1, 2], "its tag is no other for that");
}

#[test]
fn who_is_woken_is_counted_and_who_is_overlooked_is_known() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    publish(&mut worker, "a", "x", &limits(), test.now).unwrap();
    assert!(worker.is_woken() && !worker.is_overlooked());
    drain(&mut worker);
    assert!(!worker.is_overlooked());
    assert_eq!(worker.summary(test.now).counts.get(Counter::WakeupOwn), 1);
    let mut series = worker.publishing();
    let post = Publication {
        ids: &[b"a"],
        event_id: None,
        event_type: None,
        text: b"x",
        terms: Terms::plain(true),
    };
    series.publish(&[post], test.now, &mut Vec::new());
    std::mem::forget(series);
    assert!(worker.is_overlooked(), "its publisher has died before it could tell");
}
