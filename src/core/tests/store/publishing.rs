//! Series of messages: as if published alone, and one wake-up for all of them.

use std::rc::Rc;

use push_stream_core::store::*;

use crate::zone::*;

fn to<'a>(ids: &'a [&'a [u8]], text: &'a str) -> Publication<'a> {
    Publication {
        ids,
        event_id: None,
        event_type: None,
        text: text.as_bytes(),
        terms: Terms::plain(true),
    }
}

fn publish_all(
    worker: &mut Worker,
    posts: &[Publication],
    limits: &Limits,
    now: Now,
) -> (usize, Option<Refusal>, Vec<ChannelInfo>) {
    worker.set_limits(Rc::new(limits.clone()), now);
    let mut figures = Vec::new();
    let (count, refusal) = worker.publishing().publish(posts, now, &mut figures);
    let infos = figures.iter().map(|published| published.info).collect();
    (count, refusal, infos)
}

fn all(worker: &mut Worker, id: &str, now: Now) -> Vec<String> {
    old(worker, id, u32::MAX, Position::default(), now)
}

#[test]
fn a_series_is_published_in_order_with_all_its_parts() {
    let test = TestZone::new(512);
    let mut worker = test.worker();
    let ids: Vec<String> = (0..300).map(|index| format!("c{}", index % 7)).collect();
    let texts: Vec<String> = (0..300)
        .map(|index| format!("{index} {}", "x".repeat(index * 3)))
        .collect();
    let paths: Vec<[&[u8]; 1]> = ids.iter().map(|id| [id.as_bytes()]).collect();
    let posts: Vec<_> = paths.iter().zip(&texts).map(|(ids, text)| to(ids, text)).collect();
    let (count, refusal, figures) = publish_all(&mut worker, &posts, &limits(), test.now);
    assert_eq!((count, refusal, figures.len()), (300, None, 300));
    assert_eq!(figures[8].published, 2, "the second in c1");
    for channel in 0..7 {
        let expected: Vec<_> = texts.iter().skip(channel).step_by(7).cloned().collect();
        assert_eq!(all(&mut worker, &format!("c{channel}"), test.now), expected);
    }
    test.assert_whole();
}

#[test]
fn ids_types_and_several_channels_are_kept() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let joined = follow(&mut worker, &["a", "b"], test.now);
    let many: Vec<String> = (0..255).map(|index| format!("many-{index}")).collect();
    let many: Vec<&[u8]> = many.iter().map(String::as_bytes).collect();
    let posts = [
        Publication {
            event_id: Some(b"1"),
            event_type: Some(b"note"),
            ..to(&[b"a", b"b", b"a"], "first")
        },
        Publication {
            terms: Terms::plain(false),
            ..to(&[b"b"], "second")
        },
        to(&many, "third"),
        to(&[b"a"], ""),
    ];
    let (count, refusal, figures) = publish_all(&mut worker, &posts, &limits(), test.now);
    assert_eq!((count, refusal), (4, None));
    assert_eq!(figures.len(), 3 + 1 + 255 + 1);
    assert_eq!(
        (figures[0].published, figures[3].stored),
        (2, 1),
        "counted as published"
    );
    let mut batch = Batch::default();
    worker.drain(1 << 20, &mut batch);
    let got: Vec<_> = batch
        .iter()
        .map(|(source, message)| {
            let text = String::from_utf8_lossy(message.text).into_owned();
            (
                Membership(source),
                message.id,
                message.event_id.map(<[u8]>::to_vec),
                text,
            )
        })
        .collect();
    let [a, b] = joined.memberships[..] else { panic!("two") };
    let id = Some(b"1".to_vec());
    let first = |channel, number| (channel, number, id.clone(), "first".to_string());
    assert_eq!(
        got,
        [
            first(a, 1),
            first(a, 2),
            (a, 3, None, String::new()),
            first(b, 1),
            (b, 2, None, "second".to_string()),
        ]
    );
    test.assert_whole();
}

#[test]
fn what_is_refused_leaves_nothing_and_what_came_before_stays() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let few = Limits {
        max_channels: Some(2),
        ..limits()
    };
    let posts = [
        to(&[b"a"], "one"),
        to(&[b"b"], "two"),
        to(&[b"a", b"c"], "three"),
        to(&[b"a"], "four"),
    ];
    let (count, refusal, figures) = publish_all(&mut worker, &posts, &few, test.now);
    assert_eq!((count, refusal), (2, Some(Refusal::TooManyChannels)));
    assert_eq!(figures.len(), 2);
    assert_eq!(all(&mut worker, "a", test.now), ["one"]);
    assert_eq!(worker.channel(b"c"), None);
    let (count, refusal, _) = publish_all(&mut worker, &posts[3..], &few, test.now);
    assert_eq!((count, refusal), (1, None));
    assert_eq!(all(&mut worker, "a", test.now), ["one", "four"]);
    test.assert_whole();
}

#[test]
fn in_a_full_zone_as_many_fit_as_one_by_one() {
    let text = "x".repeat(700);
    let fill = |together: bool| {
        let test = TestZone::new(128);
        let mut worker = test.worker();
        let posts = vec![to(&[b"a"], &text); 40];
        let mut count = 0;
        loop {
            let (published, refusal, _) = if together {
                publish_all(&mut worker, &posts, &limits(), test.now)
            } else {
                publish_all(&mut worker, &posts[..1], &limits(), test.now)
            };
            count += published;
            if let Some(refusal) = refusal {
                assert_eq!(refusal, Refusal::Full);
                test.assert_whole();
                return (count, worker.summary(test.now).refused_full);
            }
        }
    };
    assert_eq!(fill(true), fill(false));
}

#[test]
fn a_full_zone_that_evicts_takes_all() {
    let test = TestZone::new(128);
    let mut worker = test.worker();
    let text = "x".repeat(300);
    let posts = vec![to(&[b"a"], &text); 1000];
    let (count, refusal, _) = publish_all(&mut worker, &posts, &evicting(), test.now);
    assert_eq!((count, refusal), (1000, None));
    assert_eq!(worker.summary(test.now).refused_full, 0);
    assert_eq!(worker.channel(b"a").unwrap().published, 1000);
    test.assert_whole();
}

#[test]
fn the_limit_of_stored_messages_holds() {
    let test = TestZone::new(256);
    let mut worker = test.worker();
    let few = |max| Limits {
        max_stored_per_channel: Some(max),
        ..limits()
    };
    let posts = vec![to(&[b"a"], "x"); 20];
    assert_eq!(publish_all(&mut worker, &posts, &few(15), test.now).2[19].stored, 15);
    let (_, _, figures) = publish_all(&mut worker, &posts[..2], &few(3), test.now);
    assert_eq!(figures[1].stored, 3, "also when it was lowered");
    test.assert_whole();
}

#[test]
fn others_are_woken_once_when_the_series_ends() {
    let test = TestZone::new(256);
    // SAFETY: no memory is passed.
    let fds = [0; 8].map(|_| unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
    test.zone.set_wake_fds(&fds);
    let mut publisher = test.worker();
    let mut reader = test.worker();
    let woken = |worker: &Worker| {
        let mut count = 0u64;
        // SAFETY: an eventfd gives eight bytes or fails.
        let read = unsafe { libc::read(fds[usize::from(worker.slot())], (&raw mut count).cast(), 8) };
        if read == 8 { count } else { 0 }
    };
    follow(&mut reader, &["a", "b"], test.now);
    let mut figures = Vec::new();
    let mut series = publisher.publishing();
    for _ in 0..3 {
        series.publish(&[to(&[b"a"], "x"), to(&[b"b"], "y")], test.now, &mut figures);
        assert_eq!(woken(&reader), 0, "not yet");
    }
    drop(series);
    assert_eq!(woken(&reader), 1);
    assert_eq!(drain(&mut reader).len(), 6, "everything is there at once");
    let posts = vec![to(&[b"a"], "x"); 1500];
    let mut series = publisher.publishing();
    series.publish(&posts, test.now, &mut figures);
    assert_eq!(woken(&reader), 1, "a long series does not keep others waiting");
    drop(series);
}
