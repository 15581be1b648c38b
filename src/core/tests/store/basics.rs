//! The store as seen by one worker.

use std::rc::Rc;

use push_stream_core::store::*;

use crate::zone::*;

#[test]
fn a_published_message_reaches_who_was_there_before_it() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["news"], test.now);
    let published = publish(&mut worker, "news", "hello", &limits(), test.now).unwrap();
    assert!(worker.is_woken());
    assert_eq!(
        published,
        [ChannelInfo {
            published: 1,
            stored: 1,
            subscribers: 1
        }]
    );
    let mut batch = Batch::default();
    assert!(!worker.drain(1000, &mut batch));
    let (source, message) = batch.iter().next().unwrap();
    assert_eq!(Membership(source), joined.memberships[0]);
    assert_eq!((message.id, message.tag, message.text), (1, 1, &b"hello"[..]));
    assert!(message.seq > joined.seq);
    assert_eq!(message.time, test.now.unix_secs());
    assert_eq!(drain(&mut worker), [""; 0]);
    test.assert_whole();
}

#[test]
fn messages_of_any_size_come_back_as_they_were() {
    let test = TestZone::new(1024);
    let mut worker = test.worker();
    follow(&mut worker, &["a", "b"], test.now);
    for len in (0..300).chain([4095, 4096, 4097, 100_000]) {
        let text: String = (0..len).map(|index| char::from(b'a' + (index % 26) as u8)).collect();
        for ids in [&[&b"a"[..]][..], &[b"a", b"b"]] {
            let event_id = Some(&b"an id"[..]);
            post(
                &mut worker,
                Post {
                    ids,
                    text: text.as_bytes(),
                    event_id,
                    store: false,
                },
                &evicting(),
                test.now,
            )
            .unwrap();
            assert_eq!(drain(&mut worker), vec![text.clone(); ids.len()]);
        }
    }
    test.assert_whole();
}

#[test]
fn event_id_and_type_travel_with_the_message() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    for (id, kind) in [
        (Some("1-2"), None),
        (None, Some("like")),
        (Some(""), Some("")),
        (None, None),
    ] {
        let as_bytes = |text: Option<&'static str>| text.map(str::as_bytes);
        let mut draft = worker.draft(4, as_bytes(id), as_bytes(kind), 1, test.now).unwrap();
        worker.write(&mut draft, b"te");
        worker.write(&mut draft, b"xt and more than was announced");
        worker.publish(draft, &[b"a"], Terms::plain(true), test.now).unwrap();
        let mut batch = Batch::default();
        worker.drain(1000, &mut batch);
        let (_, message) = batch.iter().next().unwrap();
        assert_eq!((message.event_id, message.event_type), (as_bytes(id), as_bytes(kind)));
        assert_eq!(message.text, b"text");
    }
    test.assert_whole();
}

#[test]
fn a_publish_to_several_channels_stores_its_text_once() {
    let test = TestZone::new(1024);
    let mut worker = test.worker();
    let names: Vec<String> = (0..20).map(|index| format!("c{index}")).collect();
    let ids: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    worker.create_channels(&ids, test.now).unwrap();
    let (before, _) = test.zone.free_blocks();
    let text = vec![b'x'; 12_400];
    post(
        &mut worker,
        Post {
            ids: &ids,
            text: &text,
            event_id: None,
            store: true,
        },
        &limits(),
        test.now,
    )
    .unwrap();
    let (after, _) = test.zone.free_blocks();
    assert!(before - after <= 1 + 5 + 100, "{} blocks", before - after);
    test.assert_whole();
    for (index, name) in names.iter().enumerate() {
        assert_eq!(worker.channel(name.as_bytes()).unwrap().stored, 1, "{index}");
        assert_eq!(
            old(&mut worker, name, 1, Position::default(), test.now),
            [String::from_utf8_lossy(&text)]
        );
    }
}

#[test]
fn the_same_channel_twice_in_a_path_counts_twice() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["a", "a"], test.now);
    assert_eq!(worker.channel(b"a").unwrap().subscribers, 2);
    let post_twice = Post {
        ids: &[b"a", b"a"],
        text: b"x",
        event_id: None,
        store: true,
    };
    let published = post(&mut worker, post_twice, &limits(), test.now).unwrap();
    assert_eq!(published.iter().map(|info| info.published).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(drain(&mut worker), ["x", "x"]);
    worker.leave(&joined.memberships, true);
    assert_eq!(worker.channel(b"a").unwrap().subscribers, 0);
    test.assert_whole();
}

#[test]
fn backtrack_gives_the_newest_messages_oldest_first() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for index in 0..10 {
        publish(&mut worker, "a", &index.to_string(), &limits(), test.now).unwrap();
    }
    let none = Position::default();
    assert_eq!(old(&mut worker, "a", 3, none, test.now), ["7", "8", "9"]);
    assert_eq!(old(&mut worker, "a", 8, none, test.now).len(), 8);
    assert_eq!(old(&mut worker, "a", u32::MAX, none, test.now).len(), 10);
    assert_eq!(old(&mut worker, "a", 0, none, test.now).len(), 0);
    assert_eq!(old(&mut worker, "b", 5, none, test.now).len(), 0);
}

#[test]
fn resuming_by_time_and_tag_gives_what_is_newer() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    let start = test.now.unix_secs();
    for second in 0..3 {
        for index in 0..2 {
            publish(&mut worker, "a", &format!("{second}.{index}"), &limits(), test.now).unwrap();
        }
        test.pass(1);
    }
    let mut at = |time, tag| {
        old(
            &mut worker,
            "a",
            0,
            Position {
                time: Some(time),
                tag,
                event_id: None,
            },
            test.now,
        )
    };
    assert_eq!(at(0, None).len(), 6);
    assert_eq!(at(start, None), ["1.0", "1.1", "2.0", "2.1"]);
    assert_eq!(at(start, Some(0)).len(), 6);
    assert_eq!(at(start, Some(1)), ["0.1", "1.0", "1.1", "2.0", "2.1"]);
    assert_eq!(at(start + 2, Some(2)), [""; 0]);
    assert_eq!(at(start + 100, Some(2)), [""; 0]);
}

#[test]
fn resuming_by_event_id_starts_behind_it() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for id in ["a", "b", "c", "d"] {
        let event_id = Some(id.as_bytes());
        post(
            &mut worker,
            Post {
                ids: &[b"x"],
                text: id.as_bytes(),
                event_id,
                store: true,
            },
            &limits(),
            test.now,
        )
        .unwrap();
    }
    let mut after = |id: &str| {
        old(
            &mut worker,
            "x",
            0,
            Position {
                event_id: Some(id.as_bytes()),
                ..Position::default()
            },
            test.now,
        )
    };
    assert_eq!(after("b"), ["c", "d"]);
    assert_eq!(after("d"), [""; 0]);
    assert_eq!(after("unknown"), [""; 0]);
    assert_eq!(after(""), [""; 0]);
}

#[test]
fn old_and_live_messages_meet_without_a_gap() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for index in 0..250 {
        publish(&mut worker, "a", &index.to_string(), &limits(), test.now).unwrap();
    }
    let channels = [JoinChannel {
        id: b"a",
        backtrack: u32::MAX,
    }];
    let joined = worker
        .join(&request(&channels, Position::default(), JoinMode::Stream), test.now)
        .unwrap();
    let mut replay = joined.replay.unwrap();
    let mut batch = Batch::default();
    let mut texts: Vec<String> = Vec::new();
    let mut slices = 0;
    loop {
        let more = worker.replay(&mut replay, &mut batch);
        texts.extend(
            batch
                .iter()
                .map(|(_, message)| String::from_utf8_lossy(message.text).into_owned()),
        );
        assert!(batch.iter().all(|(_, message)| message.seq <= joined.seq));
        slices += 1;
        test.assert_whole();
        publish(&mut worker, "a", &(250 + slices - 1).to_string(), &limits(), test.now).unwrap();
        if !more {
            break;
        }
    }
    assert_eq!(slices, 3);
    texts.extend(drain(&mut worker));
    assert_eq!(texts, (0..253).map(|index: i32| index.to_string()).collect::<Vec<_>>());
    assert!(!replay.lost);
}

#[test]
fn what_is_evicted_during_a_replay_is_a_loss_that_is_told() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for index in 0..150 {
        publish(&mut worker, "a", &index.to_string(), &limits(), test.now).unwrap();
    }
    let channels = [JoinChannel {
        id: b"a",
        backtrack: u32::MAX,
    }];
    let joined = worker
        .join(&request(&channels, Position::default(), JoinMode::Stream), test.now)
        .unwrap();
    let mut replay = joined.replay.unwrap();
    let mut batch = Batch::default();
    assert!(worker.replay(&mut replay, &mut batch));
    let few = Limits {
        max_stored_per_channel: Some(10),
        ..limits()
    };
    for index in 0..200 {
        publish(&mut worker, "a", &format!("new {index}"), &few, test.now).unwrap();
    }
    assert!(!worker.replay(&mut replay, &mut batch));
    assert!(batch.is_empty());
    test.assert_whole();
}

#[test]
fn a_long_poll_waits_only_if_there_is_nothing() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    publish(&mut worker, "a", "old", &limits(), test.now).unwrap();
    let channels = [JoinChannel { id: b"a", backtrack: 0 }];
    let everything = Position {
        time: Some(0),
        ..Position::default()
    };
    let answered = worker
        .join(&request(&channels, everything, JoinMode::LongPoll), test.now)
        .unwrap();
    assert!(answered.memberships.is_empty());
    assert_eq!(answered.bound, Some((test.now.unix_secs(), 1)));
    assert_eq!(worker.summary(test.now).subscribers, 0);
    let current = Position {
        time: Some(test.now.unix_secs()),
        tag: Some(1),
        event_id: None,
    };
    let waiting = worker
        .join(&request(&channels, current, JoinMode::LongPoll), test.now)
        .unwrap();
    assert_eq!(waiting.memberships.len(), 1);
    assert!(waiting.replay.is_none() && waiting.bound.is_none());
    assert_eq!(worker.summary(test.now).subscribers, 1);
}

#[test]
fn time_and_tag_grow_even_if_the_clock_goes_back() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    follow(&mut worker, &["a"], test.now);
    let mut batch = Batch::default();
    let mut last = (0, 0);
    for step in [0i64, 0, 1, -3600, 0, 3601, 7200, -7200, 1] {
        test.now.unix_ms = test.now.unix_ms.wrapping_add_signed(step * 1000);
        publish(&mut worker, "a", "x", &limits(), test.now).unwrap();
        worker.drain(1000, &mut batch);
        let (_, message) = batch.iter().next().unwrap();
        assert!(
            (message.time, message.tag) > last,
            "{:?} after {last:?}",
            (message.time, message.tag)
        );
        last = (message.time, message.tag);
    }
}

#[test]
fn deletion_tells_every_follower_and_frees_the_id_at_once() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["a", "b"], test.now);
    publish(&mut worker, "a", "last words", &limits(), test.now).unwrap();
    assert_eq!(worker.delete(&[b"a", b"unknown"], b"gone", test.now), Ok(1));
    assert!(worker.is_woken());
    assert_eq!(worker.channel(b"a"), None);
    let summary = worker.summary(test.now);
    assert_eq!(
        (summary.channels, summary.channels_in_delete, summary.channels_in_trash),
        (1, 1, 0)
    );
    let mut batch = Batch::default();
    worker.drain(1000, &mut batch);
    let got: Vec<_> = batch.iter().map(|(_, message)| (message.kind, message.text)).collect();
    assert_eq!(
        got,
        [
            (MessageKind::Ordinary, &b"last words"[..]),
            (MessageKind::Deleted, b"gone")
        ]
    );
    worker.leave(&joined.memberships[..1], false);
    assert_eq!(worker.summary(test.now).subscribers, 1);
    assert_eq!(
        publish(&mut worker, "a", "again", &limits(), test.now).unwrap()[0].published,
        1
    );
    test.assert_whole();
    test.tick(&mut worker, 5);
    let summary = worker.summary(test.now);
    assert_eq!((summary.channels_in_delete, summary.channels_in_trash), (0, 1));
    test.tick(&mut worker, 11);
    assert_eq!(worker.summary(test.now).channels_in_trash, 0);
    test.assert_whole();
}

#[test]
fn limits_refuse_and_change_nothing() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let few = Limits {
        max_channels: Some(2),
        max_wildcard_channels: Some(1),
        wildcard_prefix: b"w_".to_vec(),
        max_subscribers_per_channel: Some(1),
        ..limits()
    };
    let three = Post {
        ids: &[b"a", b"b", b"c"],
        text: b"x",
        event_id: None,
        store: true,
    };
    assert_eq!(
        post(&mut worker, three, &few, test.now).unwrap_err(),
        Refusal::TooManyChannels
    );
    assert_eq!(worker.summary(test.now).channels, 0);
    assert_eq!(
        worker.check_channels(&[b"a", b"b", b"c"]),
        Err(Refusal::TooManyChannels)
    );
    assert_eq!(worker.check_channels(&[b"a", b"b", b"w_1"]), Ok(()));
    assert_eq!(worker.check_channels(&[b"w_2", b"w_1"]), Err(Refusal::TooManyChannels));
    worker.set_limits(Rc::new(few.clone()), test.now);
    let channels = [JoinChannel { id: b"a", backtrack: 0 }];
    let stream = request(&channels, Position::default(), JoinMode::Stream);
    let authorized = JoinRequest {
        authorized_channels_only: true,
        ..stream
    };
    assert_eq!(worker.join(&authorized, test.now).unwrap_err(), Refusal::MayNotCreate);
    worker.join(&stream, test.now).unwrap();
    assert_eq!(worker.join(&stream, test.now).unwrap_err(), Refusal::TooManySubscribers);
    test.assert_whole();
}

#[test]
fn long_ids_and_odd_bytes_are_ids_like_any_other() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let long: Vec<u8> = (0..2000u32).map(|index| index as u8).collect();
    for id in [&long[..], &long[..1999], b"", b"\0", b"a b", "ü".as_bytes()] {
        let published = post(
            &mut worker,
            Post {
                ids: &[id],
                text: b"x",
                event_id: None,
                store: true,
            },
            &limits(),
            test.now,
        );
        assert_eq!(published.unwrap()[0].published, 1);
        assert!(worker.channel(id).is_some());
    }
    let mut count = 0;
    worker.list(&mut Listing::default(), |_, _| true, &mut |listed| {
        count += usize::from(listed.id.len() >= 1999 && long.starts_with(listed.id));
    });
    assert_eq!(count, 2);
    test.assert_whole();
}

fn telling() -> Limits {
    let text =
        |event: ChannelEvent, id: &[u8]| format!("{} {}", event.name(), String::from_utf8_lossy(id)).into_bytes();
    Limits {
        events: Some(Events {
            channel: b"events".to_vec(),
            text,
        }),
        ..limits()
    }
}

#[test]
fn the_events_channel_tells_what_happens_to_the_others() {
    let mut test = TestZone::new(256);
    let mut worker = test.worker_with(&telling());
    follow(&mut worker, &["events"], test.now);
    publish(&mut worker, "a", "x", &telling(), test.now).unwrap();
    let joined = follow(&mut worker, &["a"], test.now);
    worker.leave(&joined.memberships, true);
    worker.delete(&[b"a"], b"gone", test.now).unwrap();
    assert!(worker.is_woken());
    test.tick(&mut worker, 4);
    let told = [
        "channel_created a",
        "client_subscribed a",
        "client_unsubscribed a",
        "channel_destroyed a",
    ];
    assert_eq!(drain(&mut worker), told);
    let summary = worker.summary(test.now);
    assert_eq!((summary.published, summary.stored, summary.channels), (1, 0, 1));
    assert_eq!(
        worker.channel(b"events").unwrap(),
        ChannelInfo {
            published: 4,
            stored: 4,
            subscribers: 1
        }
    );
    test.assert_whole();
    test.tick(&mut worker, 300);
    assert!(worker.channel(b"events").is_some(), "it is never idle");
    test.assert_whole();
}

#[test]
fn who_follows_events_and_another_channel_sees_itself_come() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&telling());
    let joined = follow(&mut worker, &["events", "other"], test.now);
    let mut batch = Batch::default();
    worker.drain(1000, &mut batch);
    let live: Vec<_> = batch
        .iter()
        .filter(|(_, message)| message.seq > joined.seq)
        .map(|(_, message)| message.text)
        .collect();
    assert_eq!(live, [&b"client_subscribed other"[..]]);
}

#[test]
fn events_can_be_turned_off_and_on_again() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&telling());
    publish(&mut worker, "a", "x", &telling(), test.now).unwrap();
    publish(&mut worker, "b", "x", &limits(), test.now).unwrap();
    assert_eq!(worker.channel(b"events").unwrap().published, 1);
    assert_eq!(worker.summary(test.now).stored, 3, "it is a channel like any other now");
    test.assert_whole();
    publish(&mut worker, "c", "x", &telling(), test.now).unwrap();
    assert_eq!(worker.channel(b"events").unwrap().published, 2);
    assert_eq!(worker.summary(test.now).stored, 3);
    test.assert_whole();
}

#[test]
fn an_address_has_only_so_many_subscribers() {
    let test = TestZone::new(256);
    let (mut here, mut there) = (test.worker(), test.worker());
    let channels = [JoinChannel { id: b"a", backtrack: 0 }];
    let address = AddressLimit { key: b"a", max: 2 };
    let stream = request(&channels, Position::default(), JoinMode::Stream);
    let limited = JoinRequest {
        address: Some(address),
        ..stream
    };
    let first = here.join(&limited, test.now).unwrap();
    there.join(&limited, test.now).unwrap();
    assert_eq!(here.join(&limited, test.now).unwrap_err(), Refusal::TooManyFromAddress);
    assert_eq!(
        here.channel(b"a").unwrap().subscribers,
        2,
        "nothing is left of a refused one"
    );
    assert!(
        here.join(
            &JoinRequest {
                mode: JoinMode::Poll,
                ..limited
            },
            test.now
        )
        .is_ok(),
        "polls do not stay"
    );
    let other = JoinRequest {
        address: Some(AddressLimit {
            key: &[b'x'; 300],
            max: 1,
        }),
        ..stream
    };
    let second = here.join(&other, test.now).unwrap();
    assert_eq!(here.summary(test.now).channels, 1, "an address is no channel");
    test.assert_whole();
    for joined in [first, second] {
        let all: Vec<_> = joined.memberships.iter().copied().chain(joined.address).collect();
        here.leave(&all, true);
    }
    test.assert_whole();
    here.join(&limited, test.now).unwrap();
    there.release();
    assert!(
        here.join(&limited, test.now).is_ok(),
        "who died with its worker does not count"
    );
    test.assert_whole();
}

#[test]
fn a_worker_counts_how_its_subscribers_are_connected() {
    let test = TestZone::new(256);
    let [first, second] = [test.worker(), test.worker()];
    let connections = |worker: &Worker| {
        let workers = worker.summary(test.now).workers;
        workers
            .iter()
            .find(|info| info.slot == worker.slot())
            .unwrap()
            .connections
    };
    let held = Connection::Attached(Mode::EventSource, Some(AttachReason::Unsent));
    first.count_in(held);
    first.count_in(Connection::Attached(Mode::LongPolling, None));
    first.count_in(Connection::Detached(Mode::WebSocket));
    assert_eq!(connections(&first).attached(Mode::EventSource), 1);
    assert_eq!(connections(&first).attached(Mode::LongPolling), 1);
    assert_eq!(connections(&first).attached_for(AttachReason::Unsent), 1);
    assert_eq!(connections(&first).detached(Mode::WebSocket), 1);
    assert_eq!(connections(&second), Connections::default());

    first.count_out(held);
    first.count_in(Connection::Detached(Mode::EventSource));
    assert_eq!(connections(&first).attached(Mode::EventSource), 0);
    assert_eq!(connections(&first).attached_for(AttachReason::Unsent), 0);
    assert_eq!(connections(&first).detached(Mode::EventSource), 1);
    first.release();
    let successor = test.worker();
    assert_eq!(connections(&successor), Connections::default());
}

#[test]
fn what_a_drain_skips_stays_and_does_not_hold_up_the_rest() {
    let test = TestZone::new(512);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["busy", "other", "third"], test.now);
    let busy = joined.memberships[0];
    let send = |worker: &mut Worker, id| publish(worker, id, id, &limits(), test.now).unwrap();
    send(&mut worker, "busy");
    send(&mut worker, "other");
    send(&mut worker, "busy");
    send(&mut worker, "third");

    let mut batch = Batch::default();
    let texts = |batch: &Batch| -> Vec<_> {
        let text = |(_, message): (u32, Message<'_>)| String::from_utf8(message.text.to_vec()).unwrap();
        batch.iter().map(text).collect()
    };
    assert!(worker.drain_except(1000, &mut batch, |membership| membership == busy));
    assert_eq!(texts(&batch), ["other", "third"]);
    assert!(worker.drain_except(1000, &mut batch, |_| true));
    assert!(batch.is_empty());
    test.assert_whole();
    assert!(!worker.drain(1000, &mut batch));
    assert_eq!(texts(&batch), ["busy", "busy"]);
    test.assert_whole();
}

#[test]
fn a_drain_takes_what_it_copies_at_once_and_what_it_does_not() {
    let test = TestZone::new(512);
    let mut worker = test.worker();
    follow(&mut worker, &["a", "b"], test.now);
    // Up to 1024 bytes, with one for each message, are copied at once: those before, up to, across and behind that.
    for sizes in [
        &[1023][..],
        &[1024],
        &[400, 0, 622],
        &[400, 0, 623, 1],
        &[2000, 1, 1],
        &[1, 1500, 0, 300],
    ] {
        let texts: Vec<_> = sizes.iter().map(|&size| "x".repeat(size)).collect();
        for (index, text) in texts.iter().enumerate() {
            let id = if index < 2 { "a" } else { "b" };
            publish(&mut worker, id, text, &limits(), test.now).unwrap();
        }
        let mut batch = Batch::default();
        assert!(!worker.drain(1 << 20, &mut batch));
        let drained: Vec<_> = batch.iter().map(|(_, message)| message.text.len()).collect();
        assert_eq!(drained, sizes);
        test.assert_whole();
        assert!(!worker.drain(1 << 20, &mut batch));
        assert!(batch.is_empty());
    }
}
