//! Expiry, trash, and eviction in a full zone.

use push_stream_core::store::*;

use crate::zone::*;

#[test]
fn messages_expire_and_give_everything_back() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    let (before, _) = test.zone.free_blocks();
    for index in 0..50 {
        publish(&mut worker, "a", &"x".repeat(index * 10), &limits(), test.now).unwrap();
    }
    drain(&mut worker);
    test.tick(&mut worker, 61);
    let summary = worker.summary(test.now);
    assert_eq!(
        (summary.stored, summary.messages_in_trash, summary.published),
        (0, 50, 50)
    );
    test.assert_whole();
    test.tick(&mut worker, 11);
    assert_eq!(worker.summary(test.now).messages_in_trash, 0);
    assert_eq!(test.zone.free_blocks().0, before);
    test.assert_whole();
}

#[test]
fn different_ttls_do_not_wait_for_each_other() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    for ttl in [60, 5, 30, 1, 7, 8, 9, 10, 11, 12] {
        publish(
            &mut worker,
            "a",
            "x",
            &Limits {
                message_ttl_secs: ttl,
                ..limits()
            },
            test.now,
        )
        .unwrap();
    }
    test.tick(&mut worker, 2);
    assert_eq!(worker.channel(b"a").unwrap().stored, 9);
    test.tick(&mut worker, 4);
    assert_eq!(worker.channel(b"a").unwrap().stored, 8);
    test.tick(&mut worker, 25);
    assert_eq!(worker.channel(b"a").unwrap().stored, 1);
    test.assert_whole();
}

#[test]
fn idle_channels_go_unless_somebody_follows_them() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    worker.create_channels(&[b"idle", b"busy"], test.now).unwrap();
    let joined = follow(&mut worker, &["followed"], test.now);
    test.tick(&mut worker, 20);
    post(
        &mut worker,
        Post {
            ids: &[b"busy"],
            text: b"x",
            event_id: None,
            store: false,
        },
        &limits(),
        test.now,
    )
    .unwrap();
    test.tick(&mut worker, 12);
    assert_eq!(worker.channel(b"idle"), None);
    assert!(worker.channel(b"busy").is_some() && worker.channel(b"followed").is_some());
    test.tick(&mut worker, 20);
    assert_eq!(worker.channel(b"busy"), None);
    worker.leave(&joined.memberships, true);
    test.tick(&mut worker, 2);
    assert_eq!(worker.channel(b"followed"), None);
    test.tick(&mut worker, 11);
    let (free, all) = test.zone.free_blocks();
    assert_eq!(free, all);
    test.assert_whole();
}

#[test]
fn a_message_nobody_stores_still_reaches_a_slow_worker() {
    let mut test = TestZone::new(256);
    let mut fast = test.worker();
    let mut slow = test.worker();
    follow(&mut fast, &["a"], test.now);
    follow(&mut slow, &["a"], test.now);
    let one = Limits {
        max_stored_per_channel: Some(1),
        message_ttl_secs: 1,
        ..limits()
    };
    for index in 0..10 {
        publish(&mut fast, "a", &index.to_string(), &one, test.now).unwrap();
    }
    assert_eq!(drain(&mut fast).len(), 10);
    test.tick(&mut fast, 60);
    test.assert_whole();
    assert_eq!(
        drain(&mut slow),
        (0..10).map(|index| index.to_string()).collect::<Vec<_>>()
    );
    test.tick(&mut fast, 12);
    assert_eq!(fast.summary(test.now).messages_in_trash, 0);
    test.assert_whole();
}

#[test]
fn a_full_zone_refuses_and_takes_exactly_as_much_again_later() {
    let mut test = TestZone::new(128);
    let mut worker = test.worker();
    let mut rounds = Vec::new();
    for _ in 0..3 {
        let mut count = 0;
        while publish(&mut worker, "a", "x", &limits(), test.now).is_ok() {
            count += 1;
        }
        test.assert_whole();
        rounds.push(count);
        test.tick(&mut worker, 120);
    }
    assert!(rounds[0] > 700, "{rounds:?}");
    assert_eq!(rounds, [rounds[0]; 3]);
    assert_eq!(worker.summary(test.now).refused_full, 3);
}

#[test]
fn the_smallest_zone_has_room_for_192_channels_with_191_subscribers() {
    let test = TestZone::with_slots(128 - 8, 64);
    // Everything but the blocks and their bytes in the table of kinds.
    let fixed = (128 - 8) * 1024 - test.zone.free_blocks().1 * 129;
    // Of which 16 KiB are the slots: four cache lines each, so that none has two of them.
    assert!(fixed <= 27 * 1024, "{fixed} bytes are fixed");
    let mut worker = test.worker();
    for index in 0..192 {
        publish(&mut worker, &format!("ch{index}"), "x", &limits(), test.now).unwrap();
    }
    for index in 0..191 {
        follow(&mut worker, &[&format!("ch{index}")], test.now);
    }
    test.assert_whole();
}

#[test]
fn evicting_takes_the_oldest_and_never_who_is_there() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    follow(&mut worker, &["live"], test.now);
    for index in 0..10_000 {
        publish(
            &mut worker,
            &format!("c{}", index % 50),
            &format!("{index:0100}"),
            &evicting(),
            test.now,
        )
        .unwrap();
    }
    publish(&mut worker, "live", "still here", &evicting(), test.now).unwrap();
    assert_eq!(drain(&mut worker), ["still here"]);
    let summary = worker.summary(test.now);
    assert!(summary.evicted.stored > 9000);
    assert_eq!(summary.evicted.undelivered, 0);
    assert_eq!(summary.evicted.trash, 0, "what is evicted is counted once");
    assert_eq!(summary.evicted.stored + summary.stored, 10_001);
    assert!(
        old(&mut worker, "c49", u32::MAX, Position::default(), test.now)
            .last()
            .unwrap()
            .ends_with("9999")
    );
    test.assert_whole();
}

#[test]
fn evicting_takes_idle_channels_when_no_message_is_left() {
    let test = TestZone::new(128);
    let mut worker = test.worker_with(&evicting());
    for index in 0..5_000 {
        worker
            .create_channels(&[format!("c{index}").as_bytes()], test.now)
            .unwrap();
    }
    let summary = worker.summary(test.now);
    assert!(summary.evicted.channels > 3000);
    test.assert_whole();
}

#[test]
fn only_in_the_last_resort_an_undelivered_message_is_lost() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    for index in 0..3_000 {
        let text = format!("{index:0100}");
        let unstored = Post {
            ids: &[b"a"],
            text: text.as_bytes(),
            event_id: None,
            store: false,
        };
        post(&mut worker, unstored, &evicting(), test.now).unwrap();
    }
    let lost = worker.summary(test.now).evicted.undelivered;
    assert!(lost > 1000);
    test.assert_whole();
    let got = drain(&mut worker);
    assert_eq!(got.len() as u64 + lost, 3_000);
    assert!(got.last().unwrap().ends_with("2999"));
}

#[test]
fn who_waits_for_what_was_taken_away_learns_of_it_in_front_of_what_is_next() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    let first = follow(&mut worker, &["a", "b", "quiet"], test.now);
    let send = |worker: &mut Worker, name: &str, index: u64, store| {
        let text = format!("{index:0100}");
        let ids = [name.as_bytes()];
        let one = Post {
            ids: &ids,
            text: text.as_bytes(),
            event_id: None,
            store,
        };
        post(worker, one, &evicting(), test.now).unwrap();
    };
    let mut batch = Batch::default();
    send(&mut worker, "quiet", 0, true);
    worker.drain(usize::MAX, &mut batch);
    assert_eq!((batch.len(), batch.lost()), (1, &[][..]));
    for index in 0..600 {
        // Stored and unstored ones mixed.
        send(
            &mut worker,
            if index % 2 == 0 { "a" } else { "b" },
            index,
            index % 3 == 0,
        );
    }
    let late = follow(&mut worker, &["a"], test.now);
    test.assert_whole();
    let evicted = worker.summary(test.now).evicted;
    assert!(evicted.undelivered > 50, "{evicted:?}");
    let (mut first_seqs, mut lost) = (std::collections::BTreeMap::new(), Vec::new());
    loop {
        let more = worker.drain(2000, &mut batch);
        for told in batch.lost() {
            assert!(!first_seqs.contains_key(&told.membership.0), "in front of what is next");
            lost.push(*told);
        }
        for (source, message) in batch.iter() {
            let before = first_seqs.insert(source, message.seq);
            // Only the oldest are lost: the rest has no holes (every other message is in the other channel).
            assert!(before.is_none_or(|before| message.seq == before + 2));
        }
        if !more {
            break;
        }
    }
    lost.sort_unstable_by_key(|lost| lost.membership);
    let mut expected = first.memberships[..2].to_vec();
    expected.sort_unstable();
    assert_eq!(lost.iter().map(|lost| lost.membership).collect::<Vec<_>>(), expected);
    assert!(lost.iter().all(|lost| first.seq < lost.seq && lost.seq < late.seq));
    send(&mut worker, "a", 600, false);
    worker.drain(usize::MAX, &mut batch);
    assert_eq!((batch.len(), batch.lost()), (1, &[][..]), "told once");
    test.assert_whole();
}

#[test]
fn what_was_all_taken_away_is_told_without_a_message() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["a"], test.now);
    publish(&mut worker, "a", &"x".repeat(1000), &evicting(), test.now).unwrap();
    for len in (8_000..).step_by(100) {
        if worker.summary(test.now).evicted.undelivered > 0 {
            break;
        }
        publish(&mut worker, "other", &"y".repeat(len), &evicting(), test.now).unwrap();
    }
    let mut batch = Batch::default();
    assert!(!worker.drain(usize::MAX, &mut batch));
    assert!(batch.is_empty());
    assert_eq!(batch.lost().len(), 1);
    assert_eq!(batch.lost()[0].membership, joined.memberships[0]);
    test.assert_whole();
}

#[test]
fn a_full_zone_that_refuses_lets_readers_into_channels_that_exist() {
    let refusing = Limits {
        events: Some(telling("events")),
        ..limits()
    };
    for kib in [128, 1024] {
        let mut test = TestZone::new(kib);
        let mut publisher = test.worker_with(&refusing);
        let mut reader = test.worker_with(&refusing);
        let names = ["a", "b", "c", "d"];
        publisher.create_channels(&names.map(str::as_bytes), test.now).unwrap();
        let followed = follow(&mut reader, &["a"], test.now);
        let mut len = 50_000;
        while len > 0 {
            if publish(&mut publisher, "a", &"x".repeat(len), &refusing, test.now).is_err() {
                len /= 2;
            }
        }
        for _ in 0..200 {
            for worker in [&mut publisher, &mut reader] {
                for name in &names {
                    follow(worker, &[name], test.now);
                }
                follow(worker, &names, test.now);
            }
        }
        assert_eq!(reader.channel(b"a").unwrap().subscribers, 801);
        let refused = publisher.create_channels(&[b"new"], test.now);
        assert_eq!(refused, Err(Refusal::Full), "what is kept is not for others");
        assert_eq!(
            publish(&mut publisher, "a", "x", &refusing, test.now),
            Err(Refusal::Full)
        );
        test.assert_whole();
        reader.leave(&followed.memberships, true);
        drain(&mut publisher);
        drain(&mut reader);
        test.tick(&mut publisher, 80);
        assert!(publish(&mut publisher, "a", "as before", &refusing, test.now).is_ok());
        assert_eq!(drain(&mut reader), ["as before"]);
        test.assert_whole();
    }
}

#[test]
fn an_events_channel_for_which_there_was_no_room_comes_when_there_is() {
    let mut test = TestZone::new(128);
    let mut worker = test.worker();
    while worker
        .create_channels(&[format!("{:?}", test.zone.free_blocks()).as_bytes()], test.now)
        .is_ok()
    {}
    let refusing = Limits {
        events: Some(telling("events")),
        ..limits()
    };
    let mut other = test.worker_with(&refusing);
    assert_eq!(other.channel(b"events"), None);
    test.tick(&mut other, 50);
    assert!(other.channel(b"events").is_some());
    other.create_channels(&[b"new"], test.now).unwrap();
    assert_eq!(other.channel(b"events").unwrap().published, 1);
    test.assert_whole();
}

#[test]
fn events_in_a_full_zone_that_makes_room_are_told_all() {
    let mut test = TestZone::new(256);
    let evicting = Limits {
        events: Some(telling("events")),
        ..evicting()
    };
    let mut worker = test.worker_with(&evicting);
    let mut listener = test.worker_with(&evicting);
    follow(&mut listener, &["events"], test.now);
    let mut expected = Vec::new();
    let mut told = Vec::new();
    for round in 0..500 {
        let id = format!("channel {round}");
        let joined = follow(&mut worker, &[&id], test.now);
        told.extend(drain(&mut listener));
        while test.zone.free_blocks().0 > 0 {
            let text = "x".repeat(if test.zone.free_blocks().0 > 20 { 1000 } else { 1 });
            publish(&mut worker, "full", &text, &evicting, test.now).unwrap();
            drain(&mut listener).iter().for_each(|text| told.push(text.clone()));
        }
        worker.leave(&joined.memberships, true);
        told.extend(drain(&mut listener));
        expected.extend(
            ["channel_created", "client_subscribed", "client_unsubscribed"].map(|event| format!("{event} {id}")),
        );
    }
    told.retain(|text| !text.ends_with(" full"));
    assert_eq!(told, expected);
    // Now the removals for inactivity.
    for _ in 0..80 {
        test.pass(1);
        while worker.tick(test.now) == Tick::More {}
        while test.zone.free_blocks().0 > 0 {
            publish(&mut worker, "full", "x", &evicting, test.now).unwrap();
        }
        told.extend(drain(&mut listener));
    }
    let gone = told.iter().filter(|text| text.starts_with("channel_destroyed channel"));
    assert_eq!(gone.count(), 500);
    test.assert_whole();
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    publish(&mut worker, "a", "x", &evicting(), test.now).unwrap();
    let huge = "x".repeat(200_000);
    assert_eq!(
        publish(&mut worker, "a", &huge, &evicting(), test.now).unwrap_err(),
        Refusal::NothingToEvict
    );
    assert_eq!(
        publish(&mut worker, "a", &huge, &limits(), test.now).unwrap_err(),
        Refusal::Full
    );
    assert_eq!(worker.channel(b"a").unwrap().stored, 1, "nothing was evicted for it");
    test.assert_whole();
}

#[test]
fn many_channels_in_one_request_are_one_mutation() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let names: Vec<String> = (0..150).map(|index| format!("c{index}")).collect();
    let ids: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    post(
        &mut worker,
        Post {
            ids: &ids,
            text: b"x",
            event_id: None,
            store: true,
        },
        &limits(),
        test.now,
    )
    .unwrap();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let joined = follow(&mut worker, &names, test.now);
    test.assert_whole();
    post(
        &mut worker,
        Post {
            ids: &ids,
            text: b"y",
            event_id: None,
            store: true,
        },
        &limits(),
        test.now,
    )
    .unwrap();
    assert_eq!(drain(&mut worker).len(), 150);
    worker.leave(&joined.memberships, true);
    test.assert_whole();
}

#[test]
fn a_lowered_limit_holds_from_the_next_publish() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for index in 0..100 {
        publish(&mut worker, "a", &index.to_string(), &limits(), test.now).unwrap();
    }
    let three = Limits {
        max_stored_per_channel: Some(3),
        ..limits()
    };
    let info = publish(&mut worker, "a", "100", &three, test.now).unwrap()[0];
    assert_eq!((info.published, info.stored), (101, 3));
    assert_eq!(
        old(&mut worker, "a", 9, Position::default(), test.now),
        ["98", "99", "100"]
    );
    test.assert_whole();
}

#[test]
fn channels_are_deleted_all_or_none() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    worker.create_channels(&[b"idle"], test.now).unwrap();
    let joined = follow(&mut worker, &["a", "b"], test.now);
    let mut len = 50_000;
    while len > 100 {
        // Until there is no room for a notice.
        if publish(&mut worker, "full", &"x".repeat(len), &limits(), test.now).is_err() {
            len /= 2;
        }
    }
    while publish(&mut worker, "full", "x", &limits(), test.now).is_ok() {}
    let all: [&[u8]; 5] = [b"idle", b"a", b"nobody", b"b", b"a"];
    let refused = worker.delete(&all, b"gone", test.now);
    assert_eq!(refused.unwrap_err(), Refusal::Full);
    assert!(
        all.iter().filter(|id| worker.channel(id).is_some()).count() == 4,
        "nothing is gone"
    );
    assert!(drain(&mut worker).is_empty(), "and nobody was told");
    test.assert_whole();
    assert_eq!(worker.dismiss(&all, test.now).unwrap_err(), Refusal::Full);
    assert!(drain(&mut worker).is_empty(), "nobody is sent away either");
    worker.set_limits(std::rc::Rc::new(evicting()), test.now);
    let had = worker.dismiss(&all, test.now).unwrap();
    assert_eq!(
        had.iter().map(|info| info.subscribers).collect::<Vec<_>>(),
        [0, 1, 1, 1]
    );
    assert_eq!(drain(&mut worker), ["", ""]);
    assert_eq!(worker.delete(&all, b"gone", test.now), Ok(3));
    assert!(all.iter().all(|id| worker.channel(id).is_none()));
    assert_eq!(drain(&mut worker), ["gone", "gone"]);
    test.assert_whole();
    worker.leave(&joined.memberships, true);
    test.assert_whole();
}

#[test]
fn deleted_channels_make_room_before_their_time() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&evicting());
    let mut follower = test.worker_with(&evicting());
    for round in 0..10_000 {
        let id = format!("channel {round}");
        publish(&mut worker, &id, "x", &evicting(), test.now).unwrap();
        if round % 3 == 0 {
            let joined = follow(&mut follower, &[&id], test.now);
            worker.delete(&[id.as_bytes()], b"gone", test.now).unwrap();
            assert_eq!(drain(&mut follower), ["gone"], "whoever is there is told");
            follower.leave(&joined.memberships, true);
        } else {
            worker.delete(&[id.as_bytes()], b"gone", test.now).unwrap();
        }
    }
    test.assert_whole();
}
