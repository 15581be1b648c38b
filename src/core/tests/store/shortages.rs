//! A shortage of blocks at every point where one is taken; a flooded tiny zone; clocks that are set.

use push_stream_core::store::*;

use crate::zone::*;

/// Simulates a shortage at the first, second, third ... block, once and then from there on, until `act` needs no more.
/// Whatever the result of `act`, the zone is whole, a refused request has changed nothing, and the zone is usable.
fn short_everywhere(name: &str, act: impl Fn(&TestZone, &mut Worker) -> Result<(), Refusal>) {
    for for_good in [false, true] {
        let mut blocks = 0;
        loop {
            let test = TestZone::new(256);
            let mut worker = test.worker();
            follow(&mut worker, &["a"], test.now);
            for _ in 0..3 {
                publish(&mut worker, "a", "stored", &limits(), test.now).unwrap();
            }
            drain(&mut worker);
            let figures = |worker: &Worker| (worker.channel(b"a"), worker.channel(b"new"), test.zone.free_blocks());
            let before = figures(&worker);
            fault_injection::arm_shortage(blocks, for_good);
            let outcome = act(&test, &mut worker);
            let enough = fault_injection::disarm_shortage();
            test.assert_whole();
            match outcome {
                // Blocks were freed by an eviction.
                Ok(()) => assert!(enough || !for_good, "{name}: nothing was missing at block {blocks}"),
                Err(refusal) => {
                    assert!(
                        for_good,
                        "{name}, block {blocks}: {refusal} although one block was missing once"
                    );
                    assert_eq!(
                        figures(&worker),
                        before,
                        "{name}, block {blocks}: a refusal changes nothing"
                    );
                }
            }
            act(&test, &mut worker).unwrap_or_else(|refusal| panic!("{name}, block {blocks}: afterwards {refusal}"));
            test.assert_whole();
            if enough {
                break;
            }
            blocks += 1;
        }
        assert!(blocks > 0, "{name} takes no block");
    }
}

#[test]
fn a_publish_without_a_block() {
    short_everywhere("publish", |test, worker| {
        let ids: &[&[u8]] = &[b"a", b"new", b"a"];
        let text = [b'x'; 700];
        let post_it = Post {
            ids,
            text: &text,
            event_id: Some(b"7"),
            store: true,
        };
        post(worker, post_it, &limits(), test.now).map(drop)
    });
}

#[test]
fn a_subscription_without_a_block() {
    short_everywhere("join", |test, worker| {
        let long_id = [b'i'; 300];
        let channels = [b"a", &long_id[..], b"new"].map(|id| JoinChannel { id, backtrack: 1 });
        let join = JoinRequest {
            address: Some(AddressLimit {
                key: b"192.0.2.1",
                max: 100,
            }),
            ..request(&channels, Position::default(), JoinMode::Stream)
        };
        let joined = worker.join(&join, test.now)?;
        let seats: Vec<_> = joined.memberships.iter().copied().chain(joined.address).collect();
        worker.leave(&seats, true);
        worker.delete(&[&long_id[..], b"new"], b"", test.now)?;
        Ok(())
    });
}

#[test]
fn channels_made_sent_away_and_deleted_without_a_block() {
    short_everywhere("create", |test, worker| {
        let long_id = [b'c'; 300];
        worker.create_channels(&[&long_id], test.now)?;
        worker.delete(&[&long_id], b"", test.now).map(drop)
    });
    short_everywhere("dismiss", |test, worker| {
        worker.dismiss(&[b"nobody", b"a"], test.now)?;
        drain(worker);
        Ok(())
    });
    // Must be the last step, because it deletes the channels.
    short_everywhere("delete with a notice", |test, worker| {
        worker.delete(&[b"a"], &[b'n'; 700], test.now).map(drop)
    });
}

#[test]
fn a_publish_whose_id_is_remembered_without_a_block() {
    let once = Terms {
        store: true,
        auto_id: true,
        idempotent: true,
        out_of_order: OutOfOrder::Store,
    };
    let keeping = Limits {
        auto_ids: true,
        ..tracking()
    };
    short_everywhere("publish with an id", |test, worker| {
        worker.set_limits(std::rc::Rc::new(keeping.clone()), test.now);
        send(worker, &["a", "new"], &"x".repeat(300), Some("7"), once, test.now).map(drop)
    });
}

#[test]
fn the_smallest_zone_under_a_flood_of_everything() {
    let mut test = TestZone::with_slots(128, 4);
    let mut reader = test.worker();
    follow(&mut reader, &["kept"], test.now);
    let mut worker = test.worker();
    let mut read = 0;
    for number in 0..4_000usize {
        let id = format!("flood {number} {}", "i".repeat(number * 31 % 400));
        let text = "t".repeat(number * 7919 % 9_000);
        let event_id = "e".repeat(number % 500);
        let flood = Post {
            ids: &[id.as_bytes()],
            text: text.as_bytes(),
            event_id: Some(event_id.as_bytes()),
            store: true,
        };
        post(&mut worker, flood, &evicting(), test.now).unwrap_or_else(|refusal| panic!("flood {number}: {refusal}"));
        if number % 20 == 0 {
            publish(&mut worker, "kept", "for the reader", &evicting(), test.now).unwrap();
            read += drain(&mut reader).len();
        }
    }
    test.assert_whole();
    assert_eq!(read, 200, "a connected subscriber misses nothing");
    assert_eq!(worker.channel(b"kept").unwrap().subscribers, 1, "and stays");
    let summary = worker.summary(test.now);
    assert_eq!(summary.evicted.undelivered, 0);
    assert!(
        summary.evicted.stored > 1_000 && summary.evicted.channels > 1_000,
        "{summary:?}"
    );
    test.tick(&mut worker, 130);
    drain(&mut reader);
    let (free, all) = test.zone.free_blocks();
    assert_eq!(
        all - free,
        2,
        "in the end only the followed channel and its membership are left"
    );
    assert!(
        publish(&mut worker, "x", &"x".repeat(200_000), &evicting(), test.now).is_err(),
        "what cannot fit is refused"
    );
    assert_eq!(worker.summary(test.now).refused_full, 1, "and counted");
}

#[test]
fn a_wall_clock_that_is_set_disorders_nothing() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["a"], test.now);
    let hour = 3_600_000;
    let mut ids = Vec::new();
    for step in 0..20u64 {
        // An hour back, an hour ahead, and correct in between.
        test.now.unix_ms = match step % 4 {
            1 => test.now.unix_ms - hour,
            3 => test.now.unix_ms + hour,
            _ => test.now.unix_ms + 1,
        };
        test.now.monotonic_ms += 100;
        worker.tick(test.now);
        publish(&mut worker, "a", &step.to_string(), &limits(), test.now).unwrap();
        let mut batch = Batch::default();
        worker.drain(10_000, &mut batch);
        ids.extend(
            batch
                .iter()
                .map(|(_, message)| (message.seq, message.id, message.text.to_vec())),
        );
    }
    assert!(ids.is_sorted_by(|left, right| left.0 < right.0 && left.1 < right.1));
    let texts: Vec<String> = (0..20).map(|step| step.to_string()).collect();
    assert_eq!(
        ids.iter()
            .map(|id| String::from_utf8_lossy(&id.2).into_owned())
            .collect::<Vec<_>>(),
        texts
    );
    assert_eq!(
        worker.channel(b"a").unwrap().stored,
        20,
        "two seconds have passed: no ttl has"
    );
    assert_eq!(
        old(&mut worker, "a", 100, Position::default(), test.now),
        texts,
        "and the order is that of publishing"
    );

    // A clock set back for good delays nothing, one set ahead ends nothing early.
    test.now.unix_ms -= 24 * hour;
    test.tick(&mut worker, 50);
    assert_eq!(worker.channel(b"a").unwrap().stored, 20);
    test.now.unix_ms += 48 * hour;
    test.tick(&mut worker, 5);
    assert_eq!(worker.channel(b"a").unwrap().stored, 20);
    test.tick(&mut worker, 10);
    assert_eq!(worker.channel(b"a").unwrap().stored, 0, "a minute of ttl is a minute");
    worker.leave(&joined.memberships, true);
    test.tick(&mut worker, 70);
    let (free, all) = test.zone.free_blocks();
    assert_eq!(
        (free, worker.summary(test.now).channels),
        (all, 0),
        "and everything is given back"
    );
}
