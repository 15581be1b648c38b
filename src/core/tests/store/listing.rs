//! Walks over all channels, while channels are created and removed.

use push_stream_core::store::*;

use crate::zone::*;

fn create(worker: &mut Worker, ids: impl IntoIterator<Item = String>, now: Now) {
    for id in ids {
        worker.create_channels(&[id.as_bytes()], now).unwrap();
    }
}

/// The ids of one slice; true with them if there are more.
fn slice(worker: &Worker, listing: &mut Listing) -> (Vec<String>, bool) {
    let mut ids = Vec::new();
    let more = worker.list(listing, |_, _| true, &mut |listed| {
        ids.push(String::from_utf8_lossy(listed.id).into_owned());
    });
    (ids, more)
}

fn rest(worker: &Worker, listing: &mut Listing) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let (ids, more) = slice(worker, listing);
        all.extend(ids);
        if !more {
            return all;
        }
    }
}

fn names(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("c{number}")).collect()
}

#[test]
fn an_empty_zone_has_an_empty_list() {
    let test = TestZone::new(128);
    let worker = test.worker();
    assert_eq!(slice(&worker, &mut Listing::default()), (vec![], false));
}

#[test]
fn channels_come_in_creation_order_with_their_figures() {
    let test = TestZone::new(1024);
    let mut worker = test.worker();
    create(&mut worker, names(0..1000), test.now);
    publish(&mut worker, "c7", "x", &limits(), test.now).unwrap();
    assert_eq!(rest(&worker, &mut Listing::default()), names(0..1000));
    let mut stored = Vec::new();
    let mut listing = Listing::default();
    while worker.list(&mut listing, |info, _| info.stored > 0, &mut |listed| {
        stored.push((listed.id.to_vec(), listed.info.stored));
    }) {}
    assert_eq!(stored, [(b"c7".to_vec(), 1)]);
}

#[test]
fn a_channel_knows_the_memory_of_its_stored_messages() {
    let mut test = TestZone::new(1024);
    let mut worker = test.worker();
    let extents = |worker: &Worker| {
        let (mut extents, mut listing) = (Vec::new(), Listing::default());
        while worker.list(&mut listing, |_, _| true, &mut |listed| {
            extents.push((listed.extent.stored_bytes, listed.extent.newest_unix));
        }) {}
        extents
    };
    create(&mut worker, names(0..2), test.now);
    assert_eq!(extents(&worker), [(0, 0), (0, 0)]);
    let mut quiet = Listing::default();
    assert!(!worker.list(&mut quiet, |_, _| false, &mut |_| {}));
    assert_eq!(
        quiet.visited(),
        worker.landmark(b"c1").unwrap().born,
        "also those that were not wanted"
    );
    let now = test.now.unix_secs();
    publish(&mut worker, "c0", "x", &limits(), test.now).unwrap();
    assert_eq!(extents(&worker), [(128, now), (0, 0)], "a block");
    publish(&mut worker, "c0", &"x".repeat(10_000), &limits(), test.now).unwrap();
    let (large, _) = extents(&worker)[0];
    assert!((10_000..11_000).contains(&large), "{large}");
    for _ in 0..limits().max_stored_per_channel.unwrap_or(0) {
        publish(&mut worker, "c0", "x", &limits(), test.now).unwrap();
    }
    test.assert_whole();
    worker.delete(&[b"c1"], b"", test.now).unwrap();
    test.tick(&mut worker, 100);
    assert!(extents(&worker).iter().all(|&(bytes, _)| bytes == 0), "all has expired");
    test.assert_whole();
}

#[test]
fn what_is_deleted_between_slices_is_not_met_and_nothing_else_is_missed() {
    let test = TestZone::new(1024);
    let mut worker = test.worker();
    create(&mut worker, names(0..1000), test.now);
    let mut listing = Listing::default();
    let (first, _) = slice(&worker, &mut listing);
    assert_eq!(first, names(0..256));
    // The next one, all the passed ones, and some far behind.
    for id in names((0..257).chain(600..610)) {
        worker.delete(&[id.as_bytes()], b"", test.now).unwrap();
    }
    // A deleted and recreated id is another channel, behind all others.
    create(&mut worker, names([3, 1000]), test.now);
    assert_eq!(
        rest(&worker, &mut listing),
        names((257..600).chain(610..1000).chain([3, 1000]))
    );
    test.assert_whole();
}

#[test]
fn whoever_deletes_what_it_meets_meets_everything() {
    let test = TestZone::new(1024);
    let mut worker = test.worker();
    create(&mut worker, names(0..1000), test.now);
    let mut listing = Listing::default();
    let mut met = Vec::new();
    loop {
        let (ids, more) = slice(&worker, &mut listing);
        for id in &ids {
            worker.delete(&[id.as_bytes()], b"", test.now).unwrap();
        }
        met.extend(ids);
        if !more {
            break;
        }
    }
    assert_eq!(met, names(0..1000));
    assert_eq!(worker.summary(test.now).channels, 0);
    test.assert_whole();
}

#[test]
fn a_walk_goes_on_where_another_has_stopped() {
    let mut test = TestZone::new(1024);
    let mut worker = test.worker();
    create(&mut worker, names(0..600), test.now);
    let mut marks = Vec::new();
    worker.list(&mut Listing::default(), |_, _| true, &mut |listed| {
        marks.push(listed.landmark)
    });
    assert_eq!(worker.landmark(b"c9"), Some(marks[9]));
    assert_eq!(worker.landmark(b"nobody"), None);
    assert_eq!(rest(&worker, &mut Listing::after(marks[9])), names(10..600));
    // Also if the channel there is gone, and another one has its memory.
    worker.delete(&[b"c9"], b"", test.now).unwrap();
    assert_eq!(rest(&worker, &mut Listing::after(marks[9])), names(10..600));
    test.tick(&mut worker, 20);
    create(&mut worker, names([600]), test.now);
    assert_eq!(rest(&worker, &mut Listing::after(marks[9])), names(10..601));
    // Clients may forge one.
    for block in [0, 1, u32::MAX] {
        let made_up = Landmark {
            born: marks[9].born,
            block,
        };
        assert_eq!(rest(&worker, &mut Listing::after(made_up)), names(10..601));
    }
}
