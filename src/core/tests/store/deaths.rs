//! Death at every point of every mutation.

use push_stream_core::store::*;

use crate::zone::*;

/// Runs `act` in children that die at the first, second, third ... point until one survives. After each death the zone must be
/// whole, usable, and give everything back.
fn die_everywhere(name: &str, prepare: impl Fn(&mut TestZone, &mut Worker), act: impl Fn(&TestZone, &mut Worker)) {
    let mut point = 0;
    loop {
        let mut test = TestZone::with_slots(128, 4);
        let mut survivor = test.worker();
        prepare(&mut test, &mut survivor);
        test.assert_whole();
        let child = fork(|| {
            let mut worker = test.worker();
            kill::arm(point);
            act(&test, &mut worker);
            kill::disarm();
            worker.release();
        });
        let died = wait(child);
        survivor.tick(test.now);
        assert_eq!(test.zone.check(), Vec::<String>::new(), "{name}, point {point}");
        assert_eq!(survivor.summary(test.now).workers.len(), 1, "{name}, point {point}");
        assert!(publish(&mut survivor, "after", "life goes on", &evicting(), test.now).is_ok());
        drain(&mut survivor);
        test.tick(&mut survivor, 130);
        let (free, all) = test.zone.free_blocks();
        // What the survivor follows stays: its channel and membership.
        assert!(
            all - free <= 2,
            "{name}, point {point}: {} blocks are not given back",
            all - free
        );
        test.assert_whole();
        if !died {
            break;
        }
        point += 1;
    }
    assert!(point > 3, "{name} has only {point} points");
    eprintln!("{name}: {point} points");
}

fn fill(_: &mut TestZone, _: &mut Worker) {}

fn followed(test: &mut TestZone, worker: &mut Worker) {
    follow(worker, &["a"], test.now);
    for index in 0..6 {
        publish(worker, "a", &"x".repeat(index * 70), &limits(), test.now).unwrap();
    }
}

#[test]
fn publishing_to_a_new_channel() {
    die_everywhere("publish", fill, |test, worker| {
        publish(
            worker,
            "a channel with an id that does not fit into one block of the zone",
            &"x".repeat(300),
            &limits(),
            test.now,
        )
        .unwrap();
    });
}

#[test]
fn publishing_to_several_channels() {
    die_everywhere("multi-channel publish", followed, |test, worker| {
        let ids: &[&[u8]] = &[b"a", b"b", b"c", b"a", b"d", b"e"];
        let few = Limits {
            max_stored_per_channel: Some(2),
            ..limits()
        };
        post(
            worker,
            Post {
                ids,
                text: &[b'x'; 200],
                event_id: Some(b"1"),
                store: true,
            },
            &few,
            test.now,
        )
        .unwrap();
    });
}

#[test]
fn publishing_a_series() {
    die_everywhere("series", followed, |test, worker| {
        let post = |ids, text| Publication {
            ids,
            event_id: Some(b"1"),
            event_type: None,
            text,
            store: true,
        };
        let posts: [Publication; 4] = [
            post(&[b"a"], b"one"),
            post(&[b"a", b"new"], &[b'x'; 300]),
            post(
                &[b"a channel with an id that does not fit into one block of the zone"],
                b"three",
            ),
            post(&[b"a", b"b", b"c", b"d", b"e", b"f"], &[b'y'; 100]),
        ];
        let (count, _) = worker.publishing().publish(&posts, test.now, &mut Vec::new());
        assert_eq!(count, posts.len());
    });
}

#[test]
fn publishing_what_is_not_stored() {
    die_everywhere("unstored publish", followed, |test, worker| {
        let ids: &[&[u8]] = &[b"a", b"nobody"];
        post(
            worker,
            Post {
                ids,
                text: b"x",
                event_id: None,
                store: false,
            },
            &limits(),
            test.now,
        )
        .unwrap();
    });
}

#[test]
fn joining_replaying_draining_and_leaving() {
    die_everywhere("a subscriber's life", followed, |test, worker| {
        let channels = [
            JoinChannel { id: b"a", backtrack: 4 },
            JoinChannel {
                id: b"new",
                backtrack: 0,
            },
        ];
        let join = request(&channels, Position::default(), JoinMode::Stream);
        let joined = worker.join(&join, test.now).unwrap();
        let mut replay = joined.replay.unwrap();
        let mut batch = Batch::default();
        while worker.replay(&mut replay, &mut batch) {}
        for text in ["one", "two"] {
            publish(worker, "a", text, &limits(), test.now).unwrap();
        }
        drain(worker);
        publish(worker, "new", "three", &limits(), test.now).unwrap();
        worker.leave(&joined.memberships, true);
    });
}

#[test]
fn deleting_a_followed_channel() {
    die_everywhere("delete", followed, |test, worker| {
        follow(worker, &["a"], test.now);
        worker.delete(&[b"a"], b"gone", test.now).unwrap();
        drain(worker);
    });
}

#[test]
fn housekeeping() {
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        followed(test, worker);
        worker.create_channels(&[b"idle", b"deleted"], test.now).unwrap();
        worker.delete(&[b"deleted"], b"", test.now).unwrap();
        drain(worker);
        test.pass(90);
    };
    die_everywhere("tick", prepare, |test, worker| {
        let mut now = test.now;
        for _ in 0..3 {
            worker.tick(now);
            now.monotonic_ms += 12_000;
        }
    });
}

#[test]
fn evicting_for_a_publish() {
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        let mut index = 0;
        while publish(worker, &format!("c{index}"), &"x".repeat(2000), &limits(), test.now).is_ok() {
            index += 1;
        }
    };
    die_everywhere("evict", prepare, |test, worker| {
        publish(worker, "x", &"y".repeat(5000), &evicting(), test.now).unwrap();
    });
}

#[test]
fn reaping_the_dead() {
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        followed(test, worker);
        let child = fork(|| {
            let mut dead = test.worker();
            follow(&mut dead, &["a", "b"], test.now);
            publish(&mut dead, "b", "unread", &limits(), test.now).unwrap();
            let _lost = dead.draft(2000, None, None, 3, test.now);
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert!(wait(child));
    };
    die_everywhere("reap", prepare, |test, worker| {
        worker.tick(test.now);
    });
}

#[test]
fn telling_events() {
    let text =
        |event: ChannelEvent, id: &[u8]| format!("{} {}", event.name(), String::from_utf8_lossy(id)).into_bytes();
    let telling = Limits {
        events: Some(Events {
            channel: b"events".to_vec(),
            text,
        }),
        ..limits()
    };
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        followed(test, worker);
        worker.set_limits(std::rc::Rc::new(telling.clone()), test.now);
        worker.set_limits(std::rc::Rc::new(limits()), test.now);
    };
    die_everywhere("events", prepare, |test, worker| {
        worker.set_limits(std::rc::Rc::new(telling.clone()), test.now);
        let joined = follow(worker, &["a", "new"], test.now);
        worker.leave(&joined.memberships, true);
        worker.delete(&[b"new"], b"", test.now).unwrap();
        worker.set_limits(std::rc::Rc::new(limits()), test.now);
    });
}
