//! Death, or a panic, at every point of every mutation.

use std::panic::{AssertUnwindSafe, catch_unwind};

use push_stream_core::store::*;

use crate::zone::*;

/// Runs `act` in children that die at the first, second, third ... point until one survives, and then in children that
/// panic at the first, second, third ... point and go on. After each, the zone must be whole, usable at once, and able
/// to free everything.
pub fn die_everywhere(name: &str, prepare: impl Fn(&mut TestZone, &mut Worker), act: impl Fn(&TestZone, &mut Worker)) {
    // The channel and membership that the survivor follows stay.
    die_everywhere_but(name, 2, prepare, act);
}

/// The same, except that `left` blocks may stay.
fn die_everywhere_but(
    name: &str,
    left: u32,
    prepare: impl Fn(&mut TestZone, &mut Worker),
    act: impl Fn(&TestZone, &mut Worker),
) {
    die_from((0, 0), name, left, prepare, act);
}

/// The same for the last points of a long mutation, whose beginning is like that of any other.
fn die_at_the_end(
    name: &str,
    points: u64,
    prepare: impl Fn(&mut TestZone, &mut Worker),
    act: impl Fn(&TestZone, &mut Worker),
) {
    const FAR: u64 = 1 << 40;
    let count = |arm: fn(u64)| {
        let mut test = TestZone::with_slots(128, 4);
        let mut survivor = test.worker();
        prepare(&mut test, &mut survivor);
        let mut worker = test.worker();
        arm(FAR);
        act(&test, &mut worker);
        let passed = FAR - fault_injection::left();
        fault_injection::disarm();
        passed.saturating_sub(points)
    };
    die_from(
        (count(fault_injection::arm), count(fault_injection::arm_panic)),
        name,
        2,
        &prepare,
        &act,
    );
}

/// The same, with the first death and the first panic at these points.
fn die_from(
    (death, panic): (u64, u64),
    name: &str,
    left: u32,
    prepare: impl Fn(&mut TestZone, &mut Worker),
    act: impl Fn(&TestZone, &mut Worker),
) {
    fail_everywhere(name, death, left, &prepare, |test, point| {
        let child = fork(|| {
            let mut worker = test.worker();
            fault_injection::arm(point);
            act(test, &mut worker);
            fault_injection::disarm();
            worker.release();
        });
        wait(child)
    });
    fail_everywhere(&format!("{name}, panicking"), panic, left, &prepare, |test, point| {
        let child = fork(|| {
            std::panic::set_hook(Box::new(|_| {}));
            let mut worker = test.worker();
            fault_injection::arm_panic(point);
            let outcome = catch_unwind(AssertUnwindSafe(|| act(test, &mut worker)));
            assert_eq!(
                outcome.is_err(),
                !fault_injection::disarm(),
                "{name}: a panic of its own at point {point}"
            );
            test.assert_whole();
            // The worker that panicked goes on.
            assert!(publish(&mut worker, "panicked", "and lives", &evicting(), test.now).is_ok());
            worker.release();
            if outcome.is_err() {
                // SAFETY: ends the child without running the parent's destructors in it.
                unsafe { libc::_exit(PANICKED) }
            }
        });
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        // A panic that finds the lock half released ends the process.
        let aborted = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
        let code = libc::WEXITSTATUS(status);
        assert!(
            aborted || code == 0 || code == PANICKED,
            "{name}, point {point}: status {status:x}"
        );
        aborted || code == PANICKED
    });
}

/// Exit status of a child that has panicked and was sound afterwards.
const PANICKED: i32 = 42;

/// Makes `attempt` fail at each point from the first on, until it reports that it did not fail.
fn fail_everywhere(
    name: &str,
    first: u64,
    left: u32,
    prepare: impl Fn(&mut TestZone, &mut Worker),
    attempt: impl Fn(&TestZone, u64) -> bool,
) {
    let mut point = first;
    loop {
        let mut test = TestZone::with_slots(128, 4);
        let mut survivor = test.worker();
        prepare(&mut test, &mut survivor);
        test.assert_whole();
        let failed = attempt(&test, point);
        survivor.tick(test.now);
        assert_eq!(test.zone.check(), Vec::<String>::new(), "{name}, point {point}");
        assert_eq!(survivor.summary(test.now).workers.len(), 1, "{name}, point {point}");
        assert!(publish(&mut survivor, "after", "life goes on", &evicting(), test.now).is_ok());
        drain(&mut survivor);
        let newcomer = follow(&mut survivor, &["after"], test.now);
        assert!(publish(&mut survivor, "after", "and is told", &evicting(), test.now).is_ok());
        assert_eq!(drain(&mut survivor), ["and is told"], "{name}, point {point}");
        assert_eq!(survivor.channel(b"after").unwrap().subscribers, 1);
        survivor.leave(&newcomer.memberships, true);
        test.tick(&mut survivor, 130);
        let (free, all) = test.zone.free_blocks();
        assert!(
            all - free <= left,
            "{name}, point {point}: {} blocks are not given back",
            all - free
        );
        test.assert_whole();
        if !failed {
            break;
        }
        point += 1;
    }
    assert!(point > first + 3, "{name} has only {point} points");
    eprintln!("{name}: {point} points");
}

const ONCE: Terms = Terms {
    store: true,
    auto_id: true,
    idempotent: true,
    out_of_order: OutOfOrder::Store,
};

/// Ids in several forms, a small window, a limit of stored messages, and an existing channel.
fn with_ids(test: &mut TestZone, worker: &mut Worker) {
    worker.set_limits(std::rc::Rc::new(few_ids()), test.now);
    follow(worker, &["a"], test.now);
    for id in ["1", "2", "any form", "3", "4"] {
        send(worker, &["a"], id, Some(id), ONCE, test.now).unwrap();
    }
}

/// Blocks that stay then: channel, membership, id record, and a window of four that begins in the middle of a block.
const WITH_IDS: u32 = 5;

fn few_ids() -> Limits {
    Limits {
        idempotent_window: 4,
        max_stored_per_channel: Some(3),
        auto_ids: true,
        ..tracking()
    }
}

fn fill(_: &mut TestZone, _: &mut Worker) {}

pub fn followed(test: &mut TestZone, worker: &mut Worker) {
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
            terms: Terms::plain(true),
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
fn draining_more_than_is_copied_at_once() {
    die_everywhere("drain much", followed, |test, worker| {
        let joined = follow(worker, &["a", "b"], test.now);
        for (id, size) in [("a", 500), ("a", 600), ("b", 1), ("b", 1)] {
            publish(worker, id, &"x".repeat(size), &limits(), test.now).unwrap();
        }
        assert_eq!(drain(worker).len(), 4);
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
fn deleting_several_channels() {
    die_everywhere("delete several", followed, |test, worker| {
        follow(worker, &["b", "c"], test.now);
        worker.create_channels(&[b"idle"], test.now).unwrap();
        worker
            .delete(&[b"idle", b"a", b"b", b"nobody", b"c", b"a"], b"gone", test.now)
            .unwrap();
        drain(worker);
    });
}

#[test]
fn sending_subscribers_away() {
    die_everywhere("dismiss", followed, |test, worker| {
        follow(worker, &["a", "b"], test.now);
        worker.create_channels(&[b"idle"], test.now).unwrap();
        let had = worker
            .dismiss(&[b"idle", b"a", b"nobody", b"b", b"a"], test.now)
            .unwrap();
        assert_eq!(had.len(), 4);
        drain(worker);
    });
}

#[test]
fn serving_some_before_others() {
    die_everywhere("drain but some", followed, |test, worker| {
        let joined = follow(worker, &["a", "b", "c"], test.now);
        for text in ["one", "two"] {
            for id in ["a", "b", "c"] {
                publish(worker, id, text, &limits(), test.now).unwrap();
            }
        }
        let mut batch = Batch::default();
        assert!(worker.drain_except(1, &mut batch, |membership| membership == joined.memberships[0]));
        assert!(worker.drain_except(1000, &mut batch, |_| true));
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

/// Leaves two slots of a dead process, with everything that a worker can have: the process that claims one takes it
/// over, and the next tick of any worker finds the other.
fn leave_two_dead_slots(test: &mut TestZone, worker: &mut Worker) {
    followed(test, worker);
    let child = fork(|| {
        let mut dead = [test.worker(), test.worker()];
        for dead in &mut dead {
            follow(dead, &["a", "b"], test.now);
        }
        publish(&mut dead[0], "b", "unread", &limits(), test.now).unwrap();
        let _lost = dead.each_mut().map(|dead| dead.draft(2000, None, None, 3, test.now));
        // SAFETY: takes no pointers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    assert!(wait(child));
}

#[test]
fn reaping_the_dead() {
    die_everywhere("reap", leave_two_dead_slots, |test, worker| {
        worker.tick(test.now);
        assert_eq!(worker.channel(b"b").unwrap().subscribers, 0);
    });
}

#[test]
fn taking_over_a_dead_slot() {
    die_everywhere("claim", leave_two_dead_slots, |test, _| {
        test.worker().release();
    });
}

/// More channels than the undo log's fixed part has room for: it borrows previously used blocks, and new ones.
#[test]
fn borrowing_room_for_the_undo_log() {
    const LAST: u64 = 250;
    let create = |test: &TestZone, worker: &mut Worker| {
        let names: Vec<String> = (0..66).map(|index| format!("{index:0200}")).collect();
        let ids: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
        let before = fault_injection::borrowed();
        worker.create_channels(&ids, test.now).unwrap();
        assert!(fault_injection::borrowed() > before, "it has room enough");
    };
    die_at_the_end("borrow new blocks", LAST, fill, create);
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        publish(worker, "large", &"x".repeat(70_000), &limits(), test.now).unwrap();
        test.tick(worker, 130);
    };
    die_at_the_end("borrow free blocks", LAST, prepare, create);
    // The last of them, which needs an eviction.
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        worker.set_limits(std::rc::Rc::new(evicting()), test.now);
        let mut len = 40_000;
        while len > 0 {
            if publish(worker, "full", &"x".repeat(len), &limits(), test.now).is_err() {
                len /= 4;
            }
        }
    };
    die_at_the_end("borrow in a full zone", 100, prepare, |test, worker| {
        worker.set_limits(std::rc::Rc::new(evicting()), test.now);
        create(test, worker);
    });
}

/// Kills a worker at every point of `act` among members of the events channel in 64 slots, each of which gets an event.
fn die_in_a_crowd(name: &str, prepare: impl Fn(&TestZone, &mut [Worker]), act: impl Fn(&mut Worker, Membership, Now)) {
    let telling = Limits {
        events: Some(telling("events")),
        ..limits()
    };
    let drain_all = |crowd: &mut [Worker]| crowd.iter_mut().map(drain).collect::<Vec<_>>();
    for panics in [false, true] {
        let mut point = 0;
        loop {
            let test = TestZone::with_slots(256, 66);
            let mut crowd: Vec<Worker> = (0..62).map(|_| test.worker_with(&telling)).collect();
            for worker in &mut crowd {
                follow(worker, &["events"], test.now);
            }
            crowd[0].create_channels(&[b"idle"], test.now).unwrap();
            prepare(&test, &mut crowd);
            drain_all(&mut crowd);
            let child = fork(|| {
                if panics {
                    std::panic::set_hook(Box::new(|_| {}));
                }
                let mut worker = test.worker_with(&evicting());
                let joined = follow(&mut worker, &["a"], test.now);
                worker.set_limits(std::rc::Rc::new(telling.clone()), test.now);
                let arm = if panics {
                    fault_injection::arm_panic
                } else {
                    fault_injection::arm
                };
                arm(point);
                let outcome = catch_unwind(AssertUnwindSafe(|| act(&mut worker, joined.memberships[0], test.now)));
                assert_eq!(
                    outcome.is_err(),
                    !fault_injection::disarm(),
                    "{name}, point {point}: a panic of its own"
                );
                worker.release();
                // SAFETY: ends the child without running the parent's destructors in it.
                unsafe { libc::_exit(if outcome.is_err() { PANICKED } else { 0 }) }
            });
            let mut status = 0;
            // SAFETY: `status` is valid for the call.
            unsafe { libc::waitpid(child, &mut status, 0) };
            let failed = libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) == PANICKED;
            assert!(failed || status == 0, "{name}, point {point}: status {status:x}");
            crowd[0].tick(test.now);
            assert_eq!(test.zone.check(), Vec::<String>::new(), "{name}, point {point}");
            let summary = crowd[0].summary(test.now);
            assert_eq!(
                (summary.workers.len(), summary.subscribers),
                (62, 62),
                "{name}, point {point}"
            );
            let told = drain_all(&mut crowd);
            assert!(told.iter().all(|of_one| *of_one == told[0]), "{name}, point {point}");
            if !failed {
                break;
            }
            point += 1;
        }
        assert!(point > 100, "{name} has only {point} points");
        eprintln!("{name}: {point} points");
    }
}

#[test]
fn leaving_in_a_crowd() {
    die_in_a_crowd(
        "leave",
        |_, _| {},
        |worker, membership, _| worker.leave(&[membership], true),
    );
}

#[test]
fn removing_an_idle_channel_in_a_crowd() {
    let tick = |worker: &mut Worker, _, mut now: Now| {
        now.monotonic_ms += 40_000;
        worker.tick(now);
    };
    die_in_a_crowd("tick", |_, _| {}, tick);
}

#[test]
fn reaping_in_a_crowd() {
    let prepare = |test: &TestZone, _: &mut [Worker]| {
        let dead = fork(|| {
            // The slot of the first is taken over before.
            let _first = test.worker();
            let mut dead = test.worker_with(&limits());
            follow(&mut dead, &["a", "b"], test.now);
            // SAFETY: takes no pointers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert!(wait(dead));
    };
    die_in_a_crowd("reap", prepare, |worker, _, now| {
        worker.tick(now);
    });
}

#[test]
fn evicting_in_a_crowd() {
    let prepare = |test: &TestZone, crowd: &mut [Worker]| {
        crowd[0].set_limits(std::rc::Rc::new(limits()), test.now);
        while crowd[0]
            .create_channels(&[format!("{:?}", test.zone.free_blocks()).as_bytes()], test.now)
            .is_ok()
        {}
    };
    die_in_a_crowd("evict", prepare, |worker, _, now| {
        let evicting = Limits {
            events: Some(telling("events")),
            ..evicting()
        };
        worker.set_limits(std::rc::Rc::new(evicting), now);
        let ids: [&[u8]; 3] = [b"one", b"two", b"three"];
        worker.create_channels(&ids, now).unwrap();
    });
}

#[test]
fn deleting_in_a_crowd() {
    die_in_a_crowd(
        "delete",
        |_, _| {},
        |worker, _, mut now| {
            worker.delete(&[b"idle", b"a"], b"gone", now).unwrap();
            drain(worker);
            now.monotonic_ms += 5_000;
            worker.tick(now);
        },
    );
}

#[test]
fn telling_events() {
    let telling = Limits {
        events: Some(telling("events")),
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

#[test]
fn evicting_what_somebody_still_waits_for() {
    let unstored = Post {
        ids: &[b"a"],
        text: &[b'x'; 6000],
        event_id: None,
        store: false,
    };
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        worker.create_channels(&[b"idle"], test.now).unwrap();
        follow(worker, &["a"], test.now);
        while post(worker, unstored, &limits(), test.now).is_ok() {}
    };
    die_everywhere("evict undelivered", prepare, |test, worker| {
        publish(worker, "x", &"y".repeat(12_000), &evicting(), test.now).unwrap();
        assert!(worker.summary(test.now).evicted.undelivered > 0);
    });
}

#[test]
fn publishing_with_ids() {
    die_everywhere_but("publish with ids", WITH_IDS, with_ids, |test, worker| {
        worker.set_limits(std::rc::Rc::new(few_ids()), test.now);
        // One channel knows the id, one has a higher one, one is new.
        send(worker, &["a", "b", "new"], "x", Some("2"), ONCE, test.now).unwrap();
        send(worker, &["a", "b"], "x", None, ONCE, test.now).unwrap();
    });
}

#[test]
fn joining_from_a_limited_address() {
    die_everywhere("address", followed, |test, worker| {
        let channels = [
            JoinChannel { id: b"a", backtrack: 0 },
            JoinChannel {
                id: b"new",
                backtrack: 0,
            },
        ];
        let join = JoinRequest {
            address: Some(AddressLimit {
                key: b"192.0.2.1",
                max: 1,
            }),
            ..request(&channels, Position::default(), JoinMode::LongPoll)
        };
        let joined = worker.join(&join, test.now).unwrap();
        assert_eq!(worker.join(&join, test.now).unwrap_err(), Refusal::TooManyFromAddress);
        let seats: Vec<_> = joined.memberships.iter().copied().chain(joined.address).collect();
        worker.leave(&seats, true);
        assert!(worker.join(&join, test.now).is_ok());
    });
}

#[test]
fn resuming_in_order_and_leaving() {
    die_everywhere_but("an ordered subscriber's life", WITH_IDS, with_ids, |test, worker| {
        worker.set_limits(std::rc::Rc::new(few_ids()), test.now);
        let channels = ["a", "new"].map(|id| JoinChannel {
            id: id.as_bytes(),
            backtrack: 0,
        });
        let position = Position {
            event_id: Some(b"0"),
            ..Position::default()
        };
        let join = JoinRequest {
            ordered: true,
            gap_notices: true,
            ..request(&channels, position, JoinMode::Stream)
        };
        let joined = worker.join(&join, test.now).unwrap();
        let mut replay = joined.replay.unwrap();
        let mut batch = Batch::default();
        while worker.replay(&mut replay, &mut batch) {}
        send(worker, &["a", "new"], "x", Some("9"), ONCE, test.now).unwrap();
        while worker.drain_whole(1, &mut batch) == Drained::Part {}
        worker.leave(&joined.memberships, true);
    });
}

#[test]
fn creating_listing_discarding_and_lowering_a_limit() {
    die_everywhere("the rest", followed, |test, worker| {
        let long_id = [b'l'; 300];
        worker.create_channels(&[b"b", &long_id], test.now).unwrap();
        let mut listed = 0;
        worker.list(&mut Listing::default(), |_, _| true, &mut |_| listed += 1);
        assert_eq!(listed, 3);
        let draft = worker.draft(1000, Some(b"id"), Some(b"type"), 5, test.now).unwrap();
        worker.discard(draft);
        let few = Limits {
            max_stored_per_channel: Some(1),
            ..limits()
        };
        publish(worker, "a", "the only one", &few, test.now).unwrap();
    });
}

#[test]
fn removing_a_channel_with_a_window() {
    let prepare = |test: &mut TestZone, worker: &mut Worker| {
        worker.set_limits(std::rc::Rc::new(few_ids()), test.now);
        for id in ["1", "2", "3", "4", "5", "6"] {
            send(worker, &["a"], id, Some(id), ONCE, test.now).unwrap();
        }
        worker.set_limits(std::rc::Rc::new(limits()), test.now);
    };
    die_everywhere("removal", prepare, |test, worker| {
        worker.delete(&[b"a"], b"", test.now).unwrap();
        let mut now = test.now;
        for _ in 0..4 {
            now.monotonic_ms += 7_000;
            worker.tick(now);
        }
    });
}

/// A publisher dies at the first, second, third ... point; then another worker publishes the same again.
#[test]
fn an_id_is_known_exactly_if_its_message_was_accepted() {
    let mut point = 0;
    loop {
        let test = TestZone::with_slots(128, 4);
        let mut survivor = test.worker_with(&few_ids());
        let names = ["a", "b", "c"];
        send(&mut survivor, &["b"], "x", Some("7"), ONCE, test.now).unwrap();
        let child = fork(|| {
            let mut worker = test.worker_with(&few_ids());
            fault_injection::arm(point);
            send(&mut worker, &names, "x", Some("7"), ONCE, test.now).unwrap();
            fault_injection::disarm();
            worker.release();
        });
        let died = wait(child);
        let count = |worker: &Worker, name: &str| worker.channel(name.as_bytes()).map_or(0, |info| info.published);
        let accepted = names.map(|name| count(&survivor, name) == 1);
        assert!(accepted[0] == accepted[2] && accepted[1], "point {point}: all or none");
        let again = send(&mut survivor, &names, "x", Some("7"), ONCE, test.now).unwrap();
        let duplicates: Vec<_> = again.iter().map(|published| published.duplicate).collect();
        assert_eq!(duplicates, accepted, "point {point}");
        assert_eq!(
            names.map(|name| count(&survivor, name)),
            [1, 1, 1],
            "point {point}: exactly once"
        );
        test.assert_whole();
        if !died {
            break;
        }
        point += 1;
    }
    assert!(point > 50, "only {point} points");
}

/// Commands in every state, to the dead process and from it.
fn converse(test: &TestZone, worker: &mut Worker) {
    let text = [b'x'; 300];
    let mut friend = test.worker();
    let other = friend.process();
    let own = worker.process();
    for request in 1..=4 {
        worker.command(other, 1, request, &text, test.now).unwrap();
        friend.command(own, 1, request, &text, test.now).unwrap();
        worker.command(own, 1, 10 + request, b"short", test.now).unwrap();
    }
    let command = friend.take_command().unwrap();
    friend.answer(command, &text, test.now).unwrap();
    let command = friend.take_command().unwrap();
    let taken = worker.take_command().unwrap();
    worker.answer(taken, &text, test.now).unwrap();
    worker.take_command().unwrap();
    worker.withdraw(3);
    worker.take_answer().unwrap();
    friend.answer(command, b"short", test.now).unwrap();
    friend.release();
}

#[test]
fn commanding() {
    die_everywhere("commands", followed, converse);
}

/// Two processes that had asked themselves and each other die, and one whose slot is taken over before.
fn leave_commands(test: &mut TestZone, worker: &mut Worker) {
    followed(test, worker);
    let child = fork(|| {
        let _first = test.worker();
        let (mut one, mut other) = (test.worker(), test.worker());
        let text = [b'y'; 300];
        for request in 1..=4 {
            let (first, second) = (one.process(), other.process());
            one.command(second, 1, request, &text, test.now).unwrap();
            other.command(first, 1, request, &text, test.now).unwrap();
            one.command(first, 1, 10 + request, b"short", test.now).unwrap();
        }
        for dead in [&mut one, &mut other] {
            let command = dead.take_command().unwrap();
            dead.answer(command, &text, test.now).unwrap();
            dead.take_command().unwrap();
            dead.take_command().unwrap();
        }
        // SAFETY: takes no pointers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
    assert!(wait(child));
}

#[test]
fn reaping_commands() {
    die_everywhere("reap commands", leave_commands, |test, worker| {
        worker.tick(test.now);
    });
}
