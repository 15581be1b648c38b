//! Ordered ids: which subscribers get them, where a client resumes, and which gaps it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;
use push_stream_core::store::*;
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::merge::merge;
use push_stream_core::wire::template::Fields;
use push_stream_core::wire::{eventsource, gap};

use crate::zone::*;

fn automatic() -> Limits {
    Limits {
        auto_ids: true,
        ..tracking()
    }
}

const AUTO: Terms = Terms {
    store: true,
    auto_id: true,
    idempotent: false,
    out_of_order: OutOfOrder::Refuse,
};
const STRICT: Terms = Terms { auto_id: false, ..AUTO };
const LENIENT: Terms = Terms {
    out_of_order: OutOfOrder::Store,
    ..STRICT
};
const ONCE: Terms = Terms {
    idempotent: true,
    ..LENIENT
};

fn paths<'a>(ids: &[&'a str]) -> Vec<JoinChannel<'a>> {
    let path = |id: &&'a str| JoinChannel {
        id: id.as_bytes(),
        backtrack: 0,
    };
    ids.iter().map(path).collect()
}

fn resume(worker: &mut Worker, ids: &[&str], position: &str, mode: JoinMode, now: Now) -> Joined {
    let channels = paths(ids);
    let position = Position {
        event_id: Some(position.as_bytes()).filter(|id| !id.is_empty()),
        ..Position::default()
    };
    let join = JoinRequest {
        ordered: true,
        gap_notices: true,
        ..request(&channels, position, mode)
    };
    worker.join(&join, now).expect("admitted")
}

/// The result of a join, in order: `text`, in brackets if it is not a position.
fn replayed(worker: &mut Worker, joined: &mut Joined) -> String {
    let mut texts = Vec::new();
    let mut batch = Batch::default();
    if let Some(replay) = &mut joined.replay {
        loop {
            let more = worker.replay(replay, &mut batch);
            texts.extend(batch.iter().map(|(_, message)| {
                let text = String::from_utf8_lossy(message.text).into_owned();
                if message.repeated_id { format!("[{text}]") } else { text }
            }));
            if !more {
                break;
            }
        }
    }
    texts.join(" ")
}

fn above(worker: &mut Worker, ids: &[&str], position: &str, now: Now) -> String {
    let mut joined = resume(worker, ids, position, JoinMode::Poll, now);
    replayed(worker, &mut joined)
}

#[test]
fn messages_without_an_id_get_one_each_copy_its_own() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&automatic());
    follow(&mut worker, &["a", "b"], test.now);
    let first = send(&mut worker, &["a", "b"], "one", None, AUTO, test.now).unwrap();
    let epoch = test.zone.epoch_ms();
    let newest: Vec<_> = first.iter().map(|published| published.newest_id.unwrap()).collect();
    assert!(newest[0] < newest[1] && newest.iter().all(|id| id.groups()[0] == epoch));
    send(&mut worker, &["a"], "two", Some("brought"), AUTO, test.now).unwrap();
    let mut batch = Batch::default();
    worker.drain(1000, &mut batch);
    let ids: Vec<_> = batch
        .iter()
        .map(|(_, message)| String::from_utf8_lossy(message.event_id.unwrap()).into_owned())
        .collect();
    assert_eq!(ids, [newest[0].to_string(), "brought".into(), newest[1].to_string()]);
    assert!(batch.iter().all(|(_, message)| !message.late));
    test.assert_whole();
}

#[test]
fn a_client_gets_what_is_above_its_position_whether_that_is_stored_or_not() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    for id in ["5", "7", "7-1", "10", "100"] {
        send(&mut worker, &["a"], id, Some(id), STRICT, test.now).unwrap();
    }
    for (position, expected) in [
        ("0", "5 7 7-1 10 100"),
        ("5", "7 7-1 10 100"),
        ("6", "7 7-1 10 100"),
        ("7-0", "7-1 10 100"),
        ("7-2", "10 100"),
        ("100", ""),
        ("no order", ""),
    ] {
        assert_eq!(above(&mut worker, &["a"], position, test.now), expected, "{position}");
    }
}

#[test]
fn channels_are_merged_and_only_the_last_copy_is_a_position() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    send(&mut worker, &["a"], "a1", Some("1"), STRICT, test.now).unwrap();
    send(&mut worker, &["b", "c", "a"], "2", Some("2"), STRICT, test.now).unwrap();
    send(&mut worker, &["c"], "c3", Some("3"), STRICT, test.now).unwrap();
    send(&mut worker, &["a"], "a4", Some("4"), STRICT, test.now).unwrap();
    send(&mut worker, &["b"], "b5", Some("5"), STRICT, test.now).unwrap();
    let all = ["a", "b", "c"];
    assert_eq!(above(&mut worker, &all, "0", test.now), "a1 [2] [2] 2 c3 a4 b5");
    assert_eq!(above(&mut worker, &all, "1", test.now), "[2] [2] 2 c3 a4 b5");
    assert_eq!(above(&mut worker, &all, "2", test.now), "c3 a4 b5");
    assert_eq!(above(&mut worker, &["b", "c"], "1", test.now), "[2] 2 c3 b5");
    test.assert_whole();
}

#[test]
fn long_queues_come_in_slices_and_in_order() {
    let mut test = TestZone::new(16 * 1024);
    let mut worker = test.worker_with(&tracking());
    let names = ["a", "b", "c"];
    let mut expected = Vec::new();
    for index in 1..=6000u64 {
        let id = index.to_string();
        // Runs of different lengths.
        let name = names[(index / (1 + index % 7) % 3) as usize];
        send(&mut worker, &[name], &id, Some(&id), STRICT, test.now).unwrap();
        expected.push(id);
    }
    for position in [0, 1, 2000, 5999, 6000] {
        let found = above(&mut worker, &names, &position.to_string(), test.now);
        assert_eq!(found, expected[position..].join(" "), "{position}");
    }
    test.tick(&mut worker, 1);
}

#[test]
fn what_is_lost_while_it_is_read_is_told() {
    let mut test = TestZone::new(4 * 1024);
    let mut worker = test.worker_with(&tracking());
    for index in 1..=150u64 {
        let id = index.to_string();
        let name = if index <= 120 { "a" } else { "b" };
        send(&mut worker, &[name], &id, Some(&id), STRICT, test.now).unwrap();
    }
    test.pass(50);
    let mut joined = resume(&mut worker, &["a", "b"], "0", JoinMode::Stream, test.now);
    let replay = joined.replay.as_mut().unwrap();
    let mut batch = Batch::default();
    assert!(worker.replay(replay, &mut batch));
    assert_eq!((batch.len(), replay.take_gaps()), (100, vec![]));
    // Newer ones in the same channels are live, whatever happens to the old ones.
    send(&mut worker, &["a"], "x", Some("200"), STRICT, test.now).unwrap();
    test.tick(&mut worker, 15);
    assert!(!worker.replay(replay, &mut batch));
    assert_eq!(batch.len(), 0);
    let mut gaps = replay.take_gaps();
    gaps.sort_unstable();
    assert_eq!(gaps, [0, 1]);
    assert!(replay.take_gaps().is_empty());
    // A client that has read everything has no gap.
    let mut joined = resume(&mut worker, &["a"], "150", JoinMode::Stream, test.now);
    let replay = joined.replay.as_mut().unwrap();
    assert!(!worker.replay(replay, &mut batch));
    assert_eq!((batch.len(), replay.take_gaps()), (1, vec![]));
    test.assert_whole();
}

#[test]
fn an_unknown_id_is_searched_for_without_holding_the_lock_all_the_while() {
    let test = TestZone::new(16 * 1024);
    let mut worker = test.worker_with(&limits());
    for index in 0..20_000 {
        let id = format!("id {index}");
        send(&mut worker, &["a"], &id, Some(&id), LENIENT, test.now).unwrap();
    }
    let find = |worker: &mut Worker, id: &str| {
        let position = Position {
            event_id: Some(id.as_bytes()),
            ..Position::default()
        };
        let texts = old(worker, "a", 0, position, test.now);
        (texts.len(), texts.first().cloned())
    };
    assert_eq!(find(&mut worker, "unknown"), (0, None));
    assert_eq!(find(&mut worker, "id 0"), (19_999, Some("id 1".into())));
    assert_eq!(find(&mut worker, "id 15000"), (4999, Some("id 15001".into())));
    assert_eq!(find(&mut worker, "id 19999"), (0, None));
    let everything = Position {
        time: Some(0),
        ..Position::default()
    };
    assert_eq!(old(&mut worker, "a", 0, everything, test.now).len(), 20_000);
}

#[test]
fn an_id_out_of_order_is_refused_in_all_channels_or_stored_in_its_place() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    follow(&mut worker, &["a"], test.now);
    for id in ["3", "5"] {
        send(&mut worker, &["a"], id, Some(id), STRICT, test.now).unwrap();
    }
    for id in ["4", "5"] {
        let refused = send(&mut worker, &["b", "a"], id, Some(id), STRICT, test.now);
        assert_eq!(refused.unwrap_err(), Refusal::OutOfOrder);
    }
    assert_eq!(worker.channel(b"b"), None);
    send(&mut worker, &["b", "a"], "4", Some("4"), LENIENT, test.now).unwrap();
    send(&mut worker, &["a"], "6", Some("6"), STRICT, test.now).unwrap();
    let mut batch = Batch::default();
    worker.drain(10_000, &mut batch);
    let late: Vec<_> = batch.iter().map(|(_, message)| message.late).collect();
    assert_eq!(late, [false, false, true, false]);
    assert_eq!(above(&mut worker, &["a"], "0", test.now), "3 4 5 6");
    assert_eq!(above(&mut worker, &["a"], "3", test.now), "4 5 6");
    assert_eq!(above(&mut worker, &["a"], "4", test.now), "5 6");
    assert_eq!(above(&mut worker, &["a", "b"], "3", test.now), "[4] 4 5 6");
    test.assert_whole();
}

#[test]
fn twice_in_one_publish_is_not_out_of_order() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&tracking());
    send(&mut worker, &["a", "a"], "1", Some("1"), STRICT, test.now).unwrap();
    assert_eq!(above(&mut worker, &["a"], "0", test.now), "[1] 1");
    test.assert_whole();
}

#[test]
fn ids_from_before_their_order_was_kept_track_of_are_put_in_order() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    for id in ["4", "2", "9", "1"] {
        send(&mut worker, &["a"], id, Some(id), LENIENT, test.now).unwrap();
    }
    assert_eq!(above(&mut worker, &["a"], "1", test.now), "2 4 9");
    worker.set_limits(Rc::new(tracking()), test.now);
    for id in ["3", "5"] {
        send(&mut worker, &["a"], id, Some(id), LENIENT, test.now).unwrap();
    }
    assert_eq!(above(&mut worker, &["a"], "1", test.now), "2 3 4 5 9");
    test.assert_whole();
}

#[test]
fn who_has_missed_something_is_told_and_gets_all_there_is() {
    let mut test = TestZone::new(512);
    let few = Limits {
        max_stored_per_channel: Some(2),
        channel_inactivity_secs: 1000,
        ..tracking()
    };
    let mut worker = test.worker_with(&few);
    for id in ["1", "2", "3", "4"] {
        send(&mut worker, &["a"], id, Some(id), STRICT, test.now).unwrap();
    }
    send(&mut worker, &["quiet"], "5", Some("5"), STRICT, test.now).unwrap();
    let gaps = |worker: &mut Worker, ids: &[&str], position: &str, now| {
        let joined = resume(worker, ids, position, JoinMode::Poll, now);
        joined
            .gaps
            .iter()
            .map(|gap| {
                (
                    ids[gap.path_index as usize].to_string(),
                    gap.first.map(|id| id.to_string()),
                )
            })
            .collect::<Vec<_>>()
    };
    let lost = |id: &str, first: Option<&str>| vec![(id.to_string(), first.map(str::to_string))];
    // 1 and 2 are lost.
    let both = ["quiet", "a"];
    assert_eq!(gaps(&mut worker, &both, "1", test.now), lost("a", Some("3")));
    assert_eq!(above(&mut worker, &both, "1", test.now), "3 4 5");
    assert_eq!(gaps(&mut worker, &both, "2", test.now), []);
    assert_eq!(gaps(&mut worker, &both, "5", test.now), []);
    assert_eq!(gaps(&mut worker, &["a"], "", test.now), [], "no position, no gap");
    assert_eq!(gaps(&mut worker, &["a"], "no order", test.now), []);
    // An id from an earlier life of the zone: everything is new.
    assert_eq!(gaps(&mut worker, &["a"], "6", test.now), lost("a", Some("3")));
    assert_eq!(above(&mut worker, &["a"], "6", test.now), "3 4");
    // Unstored messages are not lost.
    send(
        &mut worker,
        &["a"],
        "7",
        Some("7"),
        Terms { store: false, ..STRICT },
        test.now,
    )
    .unwrap();
    assert_eq!(gaps(&mut worker, &["a"], "4", test.now), []);
    // Expired.
    test.tick(&mut worker, 61);
    assert_eq!(gaps(&mut worker, &["a"], "3", test.now), lost("a", None));
    assert_eq!(gaps(&mut worker, &["a"], "4", test.now), []);
    test.assert_whole();
}

#[test]
fn a_channel_that_comes_back_knows_that_it_was_away() {
    let mut test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    for id in ["1", "2"] {
        send(&mut worker, &["a"], id, Some(id), STRICT, test.now).unwrap();
    }
    worker.create_channels(&[b"old"], test.now).unwrap();
    worker.delete(&[b"a"], b"", test.now).unwrap();
    send(&mut worker, &["a"], "3", Some("3"), STRICT, test.now).unwrap();
    let gaps = |worker: &mut Worker, id: &str, position: &str| {
        let joined = resume(worker, &[id], position, JoinMode::Poll, test.now);
        joined.gaps.len()
    };
    assert_eq!(gaps(&mut worker, "a", "1"), 1);
    assert_eq!(gaps(&mut worker, "a", "2"), 0);
    assert_eq!(gaps(&mut worker, "old", "1"), 0, "it was there all the time");
    assert_eq!(gaps(&mut worker, "new", "1"), 1, "it may be one that was there before");
    test.tick(&mut worker, 200);
    test.assert_whole();
    let (free, all) = test.zone.free_blocks();
    assert_eq!(free, all, "everything is given back");
}

#[test]
fn whoever_was_told_of_a_gap_has_a_position_without_one() {
    let mut test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    let settled = |worker: &mut Worker, ids: &[&str], position: &str, mode, now| {
        let told = resume(worker, ids, position, mode, now);
        worker.leave(&told.memberships, !told.memberships.is_empty());
        assert!(!told.gaps.is_empty(), "{position}");
        let position = told.position.expect("a position").to_string();
        let again = resume(worker, ids, &position, mode, now);
        worker.leave(&again.memberships, !again.memberships.is_empty());
        assert!(again.gaps.is_empty(), "{position}");
        assert!(again.replay.is_none(), "nothing comes twice");
        position
    };
    for mode in [JoinMode::Stream, JoinMode::LongPoll, JoinMode::Poll] {
        assert_eq!(
            settled(&mut worker, &["a", "b"], "100-0", mode, test.now),
            "0",
            "an empty zone"
        );
    }
    for id in ["5", "6"] {
        send(&mut worker, &["a"], id, Some(id), STRICT, test.now).unwrap();
    }
    for mode in [JoinMode::Stream, JoinMode::LongPoll, JoinMode::Poll] {
        assert_eq!(settled(&mut worker, &["a", "b"], "100-0", mode, test.now), "6");
    }
    test.tick(&mut worker, 61);
    assert!(worker.channel(b"a").is_none_or(|info| info.stored == 0));
    for mode in [JoinMode::Stream, JoinMode::LongPoll, JoinMode::Poll] {
        assert_eq!(settled(&mut worker, &["a"], "5", mode, test.now), "6", "all is lost");
    }
}

#[test]
fn a_notice_has_the_position_unless_a_message_brings_it() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    let told = |worker: &mut Worker, ids: &[&str]| {
        let joined = resume(worker, ids, "100-0", JoinMode::Poll, test.now);
        assert_eq!(joined.gaps.len(), ids.len());
        joined.position_of_notice().map(|id| id.to_string())
    };
    assert_eq!(told(&mut worker, &["a"]).as_deref(), Some("0"), "nothing follows");
    send(&mut worker, &["a"], "without an id", None, STRICT, test.now).unwrap();
    assert_eq!(
        told(&mut worker, &["a"]).as_deref(),
        Some("0"),
        "nothing with an id follows"
    );
    send(&mut worker, &["b"], "5", Some("5"), STRICT, test.now).unwrap();
    assert_eq!(told(&mut worker, &["a"]).as_deref(), Some("5"));
    assert_eq!(told(&mut worker, &["a", "b"]), None);
}

#[test]
fn a_position_that_the_zone_never_had_stays_the_highest_where_gaps_are_not_told() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    send(&mut worker, &["a"], "x", Some("4"), STRICT, test.now).unwrap();
    let channels = paths(&["a"]);
    let position = |worker: &mut Worker, event_id: &str, ordered| {
        let position = Position {
            event_id: Some(event_id.as_bytes()),
            ..Position::default()
        };
        let join = JoinRequest {
            ordered,
            ..request(&channels, position, JoinMode::Poll)
        };
        let joined = worker.join(&join, test.now).unwrap();
        assert!(joined.gaps.is_empty());
        joined.position.map(|id| id.to_string())
    };
    assert_eq!(position(&mut worker, "100-0", true).as_deref(), Some("100-0"));
    assert_eq!(position(&mut worker, "3", true).as_deref(), Some("4"));
    assert_eq!(position(&mut worker, "unordered", true).as_deref(), Some("4"));
}

#[test]
fn the_zones_beginning_is_a_position_where_ids_are_automatic() {
    let test = TestZone::new(256);
    let mut worker = test.worker_with(&automatic());
    let joined = resume(&mut worker, &["a"], "", JoinMode::Stream, test.now);
    let beginning = OrderedId::pair(test.zone.epoch_ms(), 0);
    assert_eq!(joined.position, Some(beginning));
    send(&mut worker, &["a"], "first", None, AUTO, test.now).unwrap();
    assert_eq!(above(&mut worker, &["a"], &beginning.to_string(), test.now), "first");
    let earlier = OrderedId::pair(test.zone.epoch_ms() - 1, 1000).to_string();
    let joined = resume(&mut worker, &["a"], &earlier, JoinMode::Poll, test.now);
    assert_eq!(joined.gaps.len(), 1, "a position of an earlier zone");
    worker.leave(&joined.memberships, false);
}

#[test]
fn an_id_is_accepted_once_in_each_channel() {
    let test = TestZone::new(512);
    let mut worker = test.worker_with(&tracking());
    let duplicates = |worker: &mut Worker, ids: &[&str], id: &str| {
        let published = send(worker, ids, "x", Some(id), ONCE, test.now).unwrap();
        published
            .iter()
            .map(|published| published.duplicate)
            .collect::<Vec<_>>()
    };
    assert_eq!(duplicates(&mut worker, &["a", "b"], "any form"), [false, false]);
    assert_eq!(
        duplicates(&mut worker, &["a", "c", "b"], "any form"),
        [true, false, true]
    );
    assert_eq!(duplicates(&mut worker, &["a"], "any form"), [true]);
    assert_eq!(duplicates(&mut worker, &["a", "a"], "2"), [false, true]);
    // The order matters only for ids that are not known yet.
    let strict = Terms {
        out_of_order: OutOfOrder::Refuse,
        ..ONCE
    };
    assert_eq!(duplicates(&mut worker, &["a"], "3"), [false]);
    assert!(send(&mut worker, &["a"], "x", Some("2"), strict, test.now).unwrap()[0].duplicate);
    assert_eq!(
        send(&mut worker, &["a"], "x", Some("1"), strict, test.now).unwrap_err(),
        Refusal::OutOfOrder
    );
    assert_eq!(
        duplicates(&mut worker, &["a"], "1"),
        [false],
        "what was refused was not accepted"
    );
    assert_eq!(worker.channel(b"a").unwrap().published, 4);
    assert_eq!(worker.channel(b"b").unwrap().published, 1);
    test.assert_whole();
}

#[test]
fn a_window_holds_so_many_ids_and_no_more_memory() {
    let mut test = TestZone::new(512);
    let small = Limits {
        idempotent_window: 10,
        ..tracking()
    };
    let mut worker = test.worker_with(&small);
    let accepted = |worker: &mut Worker, id: usize, now| {
        let how = Terms { store: false, ..ONCE };
        !send(worker, &["a"], "x", Some(&format!("id {id}")), how, now).unwrap()[0].duplicate
    };
    for id in 0..100 {
        assert!(accepted(&mut worker, id, test.now));
    }
    test.assert_whole();
    assert!(!accepted(&mut worker, 90, test.now), "the tenth from the end is known");
    assert!(!accepted(&mut worker, 99, test.now));
    assert!(accepted(&mut worker, 89, test.now), "the one before is not");
    // Empties the trash.
    test.tick(&mut worker, 12);
    let (free, all) = test.zone.free_blocks();
    assert!(all - free <= 2 + 4, "{} blocks", all - free);
    // A smaller window after a reload.
    worker.set_limits(
        Rc::new(Limits {
            idempotent_window: 2,
            ..tracking()
        }),
        test.now,
    );
    for id in 100..120 {
        assert!(accepted(&mut worker, id, test.now));
    }
    assert!(accepted(&mut worker, 117, test.now));
    test.assert_whole();
    test.tick(&mut worker, 100);
    assert_eq!(test.zone.free_blocks().0, all, "everything is given back");
}

#[test]
fn what_is_in_the_window_does_not_depend_on_what_is_stored() {
    let mut test = TestZone::new(512);
    let few = Limits {
        max_stored_per_channel: Some(1),
        channel_inactivity_secs: 1000,
        ..tracking()
    };
    let mut worker = test.worker_with(&few);
    for id in ["1", "2", "3"] {
        send(&mut worker, &["a"], id, Some(id), ONCE, test.now).unwrap();
    }
    test.tick(&mut worker, 100);
    for id in ["1", "2", "3"] {
        assert!(send(&mut worker, &["a"], id, Some(id), ONCE, test.now).unwrap()[0].duplicate);
    }
}

#[test]
fn a_full_zone_makes_room_for_ids_or_refuses_all() {
    let test = TestZone::with_slots(128, 4);
    let mut worker = test.worker_with(&tracking());
    let mut count = 0;
    while send(
        &mut worker,
        &[&format!("c{count}")],
        &"x".repeat(300),
        Some(&count.to_string()),
        ONCE,
        test.now,
    )
    .is_ok()
    {
        count += 1;
    }
    test.assert_whole();
    worker.set_limits(
        Rc::new(Limits {
            on_full: OnFull::Evict,
            ..tracking()
        }),
        test.now,
    );
    for id in count..count + 200 {
        let name = format!("c{id}");
        let id = id.to_string();
        let published = send(&mut worker, &[&name, "b"], "x", Some(&id), ONCE, test.now).unwrap();
        assert!(
            published.iter().all(|published| published.info.stored >= 1),
            "never its own copies"
        );
    }
    test.assert_whole();
}

#[test]
fn a_whole_drain_is_a_prefix_of_everything() {
    let test = TestZone::new(4 * 1024);
    let mut worker = test.worker_with(&tracking());
    let names: Vec<String> = (0..40).map(|index| format!("c{index}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    follow(&mut worker, &all, test.now);
    let mut published = 0;
    for index in 0..700usize {
        let ids = [all[index * 7 % 40], all[index * 11 % 40]];
        published += send(
            &mut worker,
            &ids,
            "x",
            Some(&(index + 1).to_string()),
            LENIENT,
            test.now,
        )
        .unwrap()
        .len();
    }
    let (mut batch, mut taken, mut newest) = (Batch::default(), 0, 0);
    loop {
        let mut session = BTreeSet::new();
        let more = loop {
            let drained = worker.drain_whole(300, &mut batch);
            session.extend(batch.iter().map(|(_, message)| message.seq));
            if let Drained::Whole { more, .. } = drained {
                break more;
            }
        };
        if let (Some(&first), Some(&last)) = (session.first(), session.last()) {
            assert!(first > newest, "nothing is left behind");
            assert_eq!((last - first + 1) as usize, session.len(), "nothing is left out");
            assert_eq!(session.len() % 2, 0, "copies stay together");
            newest = last;
        }
        taken += session.len();
        if !more {
            break;
        }
    }
    assert_eq!(taken, published);
    test.assert_whole();
}

const CLIENTS: usize = 3;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Action {
    Publish {
        channels: Vec<usize>,
        store: bool,
    },
    Connect {
        client: usize,
        channels: Vec<usize>,
    },
    /// A disconnect after this many bytes in transit.
    Cut {
        client: usize,
        after: prop::sample::Index,
    },
    Deliver,
    Delete {
        channel: usize,
    },
    Tick {
        secs: u64,
    },
}

fn actions() -> impl Strategy<Value = Action> {
    let channels = || prop::sample::subsequence((0..NAMES.len()).collect::<Vec<_>>(), 1..=3);
    prop_oneof![
        8 => (channels(), prop::bool::weighted(0.9)).prop_map(|(channels, store)| Action::Publish { channels, store }),
        3 => (0..CLIENTS, channels()).prop_map(|(client, channels)| Action::Connect { client, channels }),
        2 => (0..CLIENTS, any::<prop::sample::Index>()).prop_map(|(client, after)| Action::Cut { client, after }),
        4 => Just(Action::Deliver),
        1 => (0..NAMES.len()).prop_map(|channel| Action::Delete { channel }),
        1 => (0..40u64).prop_map(|secs| Action::Tick { secs }),
    ]
}

/// A browser's EventSource: it resumes at its position with the channels that it chose first.
#[derive(Default)]
struct Client {
    channels: Vec<usize>,
    connection: Option<Joined>,
    /// Bytes in transit to it.
    wire: Vec<u8>,
    /// Number of messages published when each of the notices in transit was written.
    notices_on_wire: VecDeque<usize>,
    last: Option<OrderedId>,
    position: Option<OrderedId>,
    /// The messages that it has seen, as channel and number of the message.
    log: Vec<(usize, usize)>,
    /// Gap notices: point in the history, and channel.
    notices: Vec<(usize, usize)>,
    /// Number of messages when it first connected.
    since: usize,
}

/// A published message: its channels, and whether it is stored.
struct Sent {
    channels: Vec<usize>,
    store: bool,
}

/// Receives the first `count` bytes in transit to the client, by WHATWG HTML §9.2.6: an event counts once its empty
/// line has arrived, and so does its id.
fn receive(client: &mut Client, count: usize) {
    let wire = std::mem::take(&mut client.wire);
    let text = std::str::from_utf8(&wire[..count]).unwrap();
    let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
    for event in whole.split("\n\n").filter(|event| !event.is_empty()) {
        let field = |name: &str| {
            event
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        if let Some(id) = field("id") {
            let id = OrderedId::parse(id.as_bytes());
            let repeats = field("data").is_none() && client.position == id;
            assert!(
                id.is_some() && client.position < id || repeats,
                "no id comes after a higher one"
            );
            client.position = id;
        }
        let Some(data) = field("data") else { continue };
        if field("event") == Some("gap") {
            assert!(field("id").is_none());
            let name = data
                .strip_prefix("{\"channel\":\"")
                .and_then(|rest| rest.split('"').next());
            let channel = NAMES.iter().position(|&known| Some(known) == name).unwrap();
            client
                .notices
                .push((channel, client.notices_on_wire.pop_front().unwrap()));
        } else {
            let (name, number) = data.split_once(' ').unwrap();
            let channel = NAMES.iter().position(|&known| known == name).unwrap();
            client.log.push((channel, number.parse().unwrap()));
        }
    }
    client.notices_on_wire.clear();
}

/// Writes a message as the module does.
fn write(client: &mut Client, channel: usize, text: &[u8], id: Option<OrderedId>) {
    let id = id.map(|id| id.to_text());
    let fields = Fields {
        id: 1,
        channel: NAMES[channel].as_bytes(),
        text,
        time: 0,
        tag: 0,
        event_id: id.as_deref(),
        event_type: None,
    };
    eventsource::render(
        &eventsource::message_template(b"~channel~ ~text~"),
        &fields,
        &mut client.wire,
    );
}

fn number(text: &[u8]) -> usize {
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

fn connect(worker: &mut Worker, client: &mut Client, history: usize, now: Now) {
    let names: Vec<_> = client.channels.iter().map(|&channel| NAMES[channel]).collect();
    if client.position.is_none() {
        // Before the first id there is no position.
        client.since = history;
    }
    let position = client.position.map(|id| id.to_string()).unwrap_or_default();
    let mut joined = resume(worker, &names, &position, JoinMode::Stream, now);
    for gap in &joined.gaps {
        let channel = client.channels[gap.path_index as usize];
        gap::push_event(NAMES[channel].as_bytes(), client.position, gap.first, &mut client.wire);
        client.notices_on_wire.push_back(history);
    }
    client.last = joined.position;
    let mut batch = Batch::default();
    let mut any = false;
    while let Some(replay) = &mut joined.replay {
        let more = worker.replay(replay, &mut batch);
        for (index, message) in batch.iter() {
            let id = message
                .event_id
                .filter(|_| !message.repeated_id)
                .and_then(OrderedId::parse);
            any |= id.is_some();
            write(client, client.channels[index as usize], message.text, id);
        }
        if !more {
            break;
        }
    }
    if !any && let Some(position) = joined.position {
        client.wire.extend(eventsource::position(position));
    }
    client.connection = Some(joined);
}

fn deliver(worker: &mut Worker, clients: &mut [Client]) {
    loop {
        let mut runs: BTreeMap<u32, Vec<(u64, usize, Option<OrderedId>)>> = BTreeMap::new();
        let mut batch = Batch::default();
        let more = loop {
            let drained = worker.drain_whole(100, &mut batch);
            for (source, message) in batch.iter() {
                let ordinary = message.kind == MessageKind::Ordinary;
                let number = if ordinary { number(message.text) } else { usize::MAX };
                let id = message.event_id.and_then(OrderedId::parse).filter(|_| !message.late);
                runs.entry(source).or_default().push((message.seq, number, id));
            }
            if let Drained::Whole { more, .. } = drained {
                break more;
            }
        };
        for client in clients.iter_mut() {
            let Some(joined) = &client.connection else { continue };
            let mut lists = Vec::new();
            for (index, membership) in joined.memberships.iter().enumerate() {
                let run = runs.get(&membership.0).map(Vec::as_slice).unwrap_or_default();
                let new = run
                    .iter()
                    .filter(|(seq, number, _)| *seq > joined.seq && *number != usize::MAX);
                lists.push((client.channels[index], new.copied().collect::<Vec<_>>()));
            }
            let ids: Vec<Vec<_>> = lists
                .iter()
                .map(|(_, run)| run.iter().map(|(_, _, id)| *id).collect())
                .collect();
            let slices: Vec<_> = ids.iter().map(Vec::as_slice).collect();
            for turn in merge(&slices, &mut client.last) {
                let (channel, run) = &lists[turn.list];
                let (_, number, id) = run[turn.index];
                let (channel, id) = (*channel, id.filter(|_| turn.is_position));
                write(client, channel, number.to_string().as_bytes(), id);
            }
        }
        if !more {
            break;
        }
    }
}

fn run(history: Vec<Action>, cuts: [prop::sample::Index; CLIENTS], auto: bool, most_stored: u32, ttl: u32) {
    let mut test = TestZone::new(2048);
    let limits = Limits {
        max_stored_per_channel: Some(most_stored),
        message_ttl_secs: ttl,
        channel_inactivity_secs: 30,
        auto_ids: auto,
        ..tracking()
    };
    let mut publisher = test.worker_with(&limits);
    let mut worker = test.worker_with(&limits);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::default()).collect();
    let mut sent: Vec<Sent> = Vec::new();
    let mut actions = history;
    // In the end all clients reconnect and read everything.
    actions.push(Action::Deliver);
    actions.extend(
        cuts.into_iter()
            .enumerate()
            .map(|(client, after)| Action::Cut { client, after }),
    );
    actions.extend((0..CLIENTS).map(|client| Action::Connect {
        client,
        channels: vec![0],
    }));
    actions.push(Action::Deliver);
    for action in actions {
        match action {
            Action::Publish { channels, store } => {
                let names: Vec<_> = channels.iter().map(|&channel| NAMES[channel]).collect();
                let number = sent.len();
                let id = (number + 1).to_string();
                let id = Some(&*id).filter(|_| !auto);
                let how = Terms { store, ..AUTO };
                send(&mut publisher, &names, &number.to_string(), id, how, test.now).unwrap();
                sent.push(Sent { channels, store });
            }
            Action::Connect { client, channels } => {
                let client = &mut clients[client];
                if client.connection.is_none() {
                    if client.channels.is_empty() {
                        client.channels = channels;
                    }
                    connect(&mut worker, client, sent.len(), test.now);
                }
            }
            Action::Cut { client, after } => {
                let client = &mut clients[client];
                if let Some(joined) = client.connection.take() {
                    receive(client, after.index(client.wire.len() + 1));
                    worker.leave(&joined.memberships, true);
                }
            }
            Action::Deliver => deliver(&mut worker, &mut clients),
            Action::Delete { channel } => {
                // Its followers would be disconnected; then it is like any other disconnect.
                let followed = clients
                    .iter()
                    .any(|client| client.connection.is_some() && client.channels.contains(&channel));
                if !followed {
                    publisher.delete(&[NAMES[channel].as_bytes()], b"", test.now).unwrap();
                }
            }
            Action::Tick { secs } => test.tick(&mut publisher, secs),
        }
        test.assert_whole();
    }
    for (index, client) in clients.iter_mut().enumerate() {
        receive(client, client.wire.len());
        let seen: BTreeSet<_> = client.log.iter().copied().collect();
        for (number, message) in sent.iter().enumerate().skip(client.since) {
            for &channel in message
                .channels
                .iter()
                .filter(|channel| client.channels.contains(channel))
            {
                let told = client.notices.iter().any(|&(of, when)| of == channel && when > number);
                assert!(
                    seen.contains(&(channel, number)) || told || !message.store,
                    "client {index} knows nothing of message {number} in {}",
                    NAMES[channel]
                );
            }
        }
        // Twice only after a disconnect between two copies, or after a notice that everything is sent again.
        let mut times: BTreeMap<_, usize> = BTreeMap::new();
        for entry in &client.log {
            *times.entry(*entry).or_default() += 1;
        }
        for (&(_, number), &count) in times.iter().filter(|_| client.notices.is_empty()) {
            let copies = sent[number].channels.iter();
            let copies = copies.filter(|channel| client.channels.contains(channel)).count();
            assert!(
                count == 1 || !auto && copies > 1,
                "client {index} got message {number} {count} times"
            );
        }
    }
}

proptest! {
    #[test]
    fn what_a_client_did_not_get_it_was_told_of(
        history in prop::collection::vec(actions(), 1..80),
        cuts: [prop::sample::Index; CLIENTS],
        auto: bool,
        most_stored in 1..7u32,
        ttl in 5..90u32,
    ) {
        run(history, cuts, auto, most_stored, ttl);
    }
}
