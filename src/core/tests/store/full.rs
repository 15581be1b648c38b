//! Full zones that evict: every request succeeds as long as there is anything to evict.

use std::rc::Rc;

use push_stream_core::store::*;

use crate::zone::*;

/// Features that are switched on.
#[derive(Clone, Copy, Debug)]
struct Features {
    ids: bool,
    events: bool,
    limit: bool,
}

const ONCE: Terms = Terms {
    store: true,
    auto_id: false,
    idempotent: true,
    out_of_order: OutOfOrder::Store,
};

fn limits_with(features: Features, on_full: OnFull) -> Limits {
    Limits {
        on_full,
        events: features.events.then(|| telling("events")),
        track_ids: features.ids,
        max_stored_per_channel: features.limit.then_some(3),
        ..limits()
    }
}

/// Fills the zone to the last block, so that only evictable items are left.
fn fill(worker: &mut Worker, features: Features, now: Now) {
    worker.set_limits(Rc::new(limits_with(features, OnFull::Refuse)), now);
    let mut len = 100_000;
    let mut index = 0;
    while len > 0 {
        let name = format!("fill {index}");
        let text = "x".repeat(len);
        match send(worker, &[&name], &text, None, Terms::plain(true), now) {
            Ok(_) => index += 1,
            Err(Refusal::Full) => len /= 4,
            Err(refusal) => panic!("{refusal}"),
        }
    }
    worker.set_limits(Rc::new(limits_with(features, OnFull::Evict)), now);
}

/// The numbers of channels in one request.
fn counts() -> impl Iterator<Item = usize> {
    (1..=12).chain([16, 31, 47, 64, 90, 128, 180, 254, 255])
}

/// Each request, with each number of channels, in a zone that is full before each.
fn try_all(kib: usize, slots: u16, features: Features) {
    let mut test = TestZone::with_slots(kib, slots);
    let mut worker = test.worker();
    let mut others: Vec<Worker> = (1..slots).map(|_| test.worker()).collect();
    worker.set_limits(Rc::new(limits_with(features, OnFull::Refuse)), test.now);
    if features.events {
        for other in &mut others {
            other.set_limits(Rc::new(limits_with(features, OnFull::Refuse)), test.now);
            follow(other, &["events"], test.now);
        }
    }
    let mut id = 0;
    for count in counts() {
        let names: Vec<String> = (0..count).map(|index| format!("{count} of {index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let ids: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
        let text = "y".repeat(200);
        let what = format!("{kib} KiB, {slots} slots, {features:?}, {count} channels");
        // Messages that subscribers wait for must not be evicted.
        let mut ready = |test: &mut TestZone, worker: &mut Worker| {
            for other in &mut others {
                drain(other);
            }
            drain(worker);
            fill(worker, features, test.now);
        };
        ready(&mut test, &mut worker);
        id += 1;
        send(&mut worker, &names, &text, Some(&id.to_string()), ONCE, test.now)
            .unwrap_or_else(|refusal| panic!("{what}: publish to new channels: {refusal}"));
        ready(&mut test, &mut worker);
        id += 1;
        let post = Publication {
            ids: &ids,
            event_id: Some(&id.to_string().into_bytes()),
            event_type: None,
            text: text.as_bytes(),
            terms: ONCE,
        };
        let series = worker.publishing().publish(&[post], test.now, &mut Vec::new());
        assert_eq!(series, (1, None), "{what}: series");
        worker.delete(&ids, b"", test.now).unwrap();
        ready(&mut test, &mut worker);
        worker
            .create_channels(&ids, test.now)
            .unwrap_or_else(|refusal| panic!("{what}: create: {refusal}"));
        worker.delete(&ids, b"", test.now).unwrap();
        ready(&mut test, &mut worker);
        let channels: Vec<_> = ids.iter().map(|id| JoinChannel { id, backtrack: 1 }).collect();
        let join = JoinRequest {
            address: Some(AddressLimit {
                key: b"192.0.2.1",
                max: 100,
            }),
            ..request(&channels, Position::default(), JoinMode::Stream)
        };
        let joined = worker
            .join(&join, test.now)
            .unwrap_or_else(|refusal| panic!("{what}: subscribe: {refusal}"));
        ready(&mut test, &mut worker);
        worker
            .dismiss(&ids, test.now)
            .unwrap_or_else(|refusal| panic!("{what}: dismiss: {refusal}"));
        ready(&mut test, &mut worker);
        assert_eq!(worker.delete(&ids, b"gone", test.now), Ok(count), "{what}: delete");
        drain(&mut worker);
        let seats: Vec<_> = joined.memberships.iter().copied().chain(joined.address).collect();
        ready(&mut test, &mut worker);
        worker.leave(&seats, true);
    }
    test.assert_whole();
    assert_eq!(worker.summary(test.now).evicted.undelivered, 0);
}

fn try_sizes(kib: usize) {
    let features = |bits: u8| Features {
        ids: bits & 1 > 0,
        events: bits & 2 > 0,
        limit: bits & 4 > 0,
    };
    // All features and none with each number of slots, each feature by itself with two.
    let cases = [1, 2, 16, 64].map(|slots| [(slots, 0), (slots, 7)]).concat();
    for (slots, bits) in cases.into_iter().chain([(2, 1), (2, 2), (2, 4)]) {
        try_all(kib, slots, features(bits));
    }
}

#[test]
fn a_full_zone_of_1m_makes_room_for_everything() {
    try_sizes(1024);
}

#[test]
fn a_full_zone_of_2m_makes_room_for_everything() {
    try_sizes(2048);
}

#[test]
fn a_full_zone_of_8m_makes_room_for_everything() {
    try_sizes(8192);
}

#[test]
fn whoever_is_refused_is_counted() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&evicting());
    let names: Vec<String> = (0..4_000).map(|index| format!("channel {index}")).collect();
    let ids: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let channels: Vec<_> = ids.iter().map(|id| JoinChannel { id, backtrack: 0 }).collect();
    let join = request(&channels, Position::default(), JoinMode::Stream);
    let texts: [&[u8]; 2] = [b"x", &[b'x'; 500_000]];
    let mut refused = 0;
    let mut expect = |worker: &Worker, outcome: Result<(), Refusal>| {
        refused += 1;
        assert_eq!(outcome, Err(Refusal::NothingToEvict), "number {refused}");
        assert_eq!(worker.summary(test.now).refused_full, refused);
    };
    let outcome = worker.create_channels(&ids, test.now);
    expect(&worker, outcome);
    let outcome = worker.join(&join, test.now).map(drop);
    expect(&worker, outcome);
    let outcome = worker.draft(texts[1].len(), None, None, 1, test.now).map(drop);
    expect(&worker, outcome);
    let outcome = worker.draft(1, None, None, 70_000, test.now).map(drop);
    expect(&worker, outcome);
    for (ids, text) in [(&ids[..], texts[0]), (&ids[..1], texts[1])] {
        let post = Publication {
            ids,
            event_id: None,
            event_type: None,
            text,
            terms: Terms::plain(true),
        };
        let (done, refusal) = worker.publishing().publish(&[post], test.now, &mut Vec::new());
        assert_eq!(done, 0);
        expect(&worker, Err(refusal.expect("it does not fit")));
    }
    test.assert_whole();
}

/// Members of the events channel in every slot, and everything that each may do to it.
#[test]
fn as_many_workers_as_there_are_slots_follow_the_events_channel() {
    for slots in [64, 256] {
        let mut test = TestZone::with_slots(1024, slots);
        let evicting = Limits {
            events: Some(telling("events")),
            ..evicting()
        };
        let mut workers: Vec<Worker> = (0..slots).map(|_| test.worker_with(&evicting)).collect();
        for worker in &mut workers {
            follow(worker, &["events"], test.now);
        }
        let drain_all = |workers: &mut [Worker]| {
            let texts: Vec<_> = workers.iter_mut().map(drain).collect();
            assert!(texts.iter().all(|of_one| *of_one == texts[0]));
            texts[0].clone()
        };
        let joined = follow(&mut workers[0], &["a", "b"], test.now);
        assert_eq!(
            drain_all(&mut workers),
            [
                "channel_created a",
                "channel_created b",
                "client_subscribed a",
                "client_subscribed b"
            ]
        );
        workers[0].leave(&joined.memberships[..1], false);
        assert_eq!(drain_all(&mut workers), ["client_unsubscribed a"]);
        test.pass(40);
        while workers[1].tick(test.now) == Tick::More {}
        assert_eq!(drain_all(&mut workers), ["channel_destroyed a"]);
        workers[2].create_channels(&[b"c"], test.now).unwrap();
        workers[2].delete(&[b"b"], b"gone", test.now).unwrap();
        assert_eq!(drain_all(&mut workers[1..]), ["channel_created c"]);
        drain(&mut workers[0]);
        workers[0].leave(&joined.memberships[1..], true);
        assert_eq!(drain_all(&mut workers), ["client_unsubscribed b"]);
        test.pass(5);
        while workers[1].tick(test.now) == Tick::More {}
        assert_eq!(drain_all(&mut workers), ["channel_destroyed b"]);
        // All stored messages are evicted, and then an idle channel.
        fill(
            &mut workers[3],
            Features {
                ids: false,
                events: true,
                limit: false,
            },
            test.now,
        );
        drain_all(&mut workers);
        let many: Vec<String> = (0..2_000).map(|index| format!("many {index}")).collect();
        for names in many.chunks(10) {
            let ids: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
            workers[3].create_channels(&ids, test.now).unwrap();
            drain_all(&mut workers);
        }
        // Workers with readers die: one is reaped by a tick, one by the worker that takes its slot over.
        let free: Vec<Worker> = workers.drain(60..62).collect();
        free.into_iter().for_each(Worker::release);
        let child = fork(|| {
            let mut dead = [test.worker_with(&evicting), test.worker_with(&evicting)];
            for dead in &mut dead {
                follow(dead, &["events", "a", "b", "c"], test.now);
            }
            // SAFETY: takes no pointers.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        });
        assert!(wait(child));
        let mut successor = test.worker_with(&evicting);
        follow(&mut successor, &["events"], test.now);
        workers[0].tick(test.now);
        assert_eq!(workers[0].channel(b"events").unwrap().subscribers, u64::from(slots) - 1);
        let told = drain_all(&mut workers);
        let left = told.iter().filter(|text| text.starts_with("client_unsubscribed"));
        assert_eq!(left.count(), 6, "{told:?}");
        drain(&mut successor);
        test.assert_whole();
        workers.into_iter().for_each(Worker::release);
        successor.release();
        test.assert_whole();
        assert_eq!(test.zone.summary(test.now).evicted.undelivered, 0);
    }
}

#[test]
fn what_no_reader_could_be_sent_is_too_large_not_too_much() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&evicting());
    let outcome = worker.draft((256 << 20) + 1, None, None, 1, test.now);
    assert_eq!(outcome.map(drop), Err(Refusal::TooLarge));
    assert_eq!(worker.summary(test.now).refused_full, 0);
    let outcome = worker.draft(256 << 20, None, None, 1, test.now);
    assert_eq!(outcome.map(drop), Err(Refusal::NothingToEvict));
    test.assert_whole();
}
