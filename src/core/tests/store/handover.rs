//! Handover: subscribers that move from one worker to another.

use push_stream_core::store::*;

use crate::zone::*;

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
fn each_message_belongs_to_exactly_one_of_the_two_workers() {
    let test = TestZone::new(256);
    let (mut old, mut new) = (test.worker(), test.worker());
    let joined = follow(&mut old, &["a", "b"], test.now);
    publish(&mut new, "a", "1", &limits(), test.now).unwrap();
    let adopted = new.adopt(&[b"a", b"b"], None, test.now).unwrap().unwrap();
    publish(&mut new, "b", "2", &limits(), test.now).unwrap();
    assert_eq!(drain(&mut new), ["2"]);
    let mut batch = Batch::default();
    old.drain(usize::MAX, &mut batch);
    let texts = |early: bool| -> Vec<_> {
        batch
            .iter()
            .filter(|(_, message)| (message.seq <= adopted.seq) == early)
            .map(|(_, message)| String::from_utf8_lossy(message.text).into_owned())
            .collect()
    };
    assert_eq!(
        (texts(true), texts(false)),
        (vec!["1".to_owned()], vec!["2".to_owned()])
    );
    old.leave_quietly(&joined.memberships);
    assert_eq!(new.channel(b"a").unwrap().subscribers, 1);
    assert_eq!(new.summary(test.now).subscribers, 1);
    publish(&mut old, "a", "3", &limits(), test.now).unwrap();
    assert_eq!((drain(&mut old), drain(&mut new)), (vec![], vec!["3".to_owned()]));
    test.assert_whole();
}

#[test]
fn a_channel_that_is_gone_is_not_made_again() {
    let test = TestZone::new(256);
    let (mut old, mut new) = (test.worker(), test.worker());
    follow(&mut old, &["a", "b"], test.now);
    new.delete(&[b"b"], b"gone", test.now).unwrap();
    assert!(new.adopt(&[b"a", b"b"], None, test.now).unwrap().is_none());
    assert!(new.channel(b"b").is_none());
    assert_eq!(new.channel(b"a").unwrap().subscribers, 1);
    test.assert_whole();
}

#[test]
fn limits_and_the_events_channel_know_nothing_of_it() {
    let test = TestZone::new(256);
    let strict = Limits {
        max_subscribers_per_channel: Some(1),
        max_channels: Some(3),
        ..telling()
    };
    let (mut old, mut new) = (test.worker_with(&strict), test.worker_with(&strict));
    follow(&mut old, &["events"], test.now);
    let joined = follow(&mut old, &["a"], test.now);
    assert_eq!(drain(&mut old), ["channel_created a", "client_subscribed a"]);
    let adopted = new.adopt(&[b"a"], None, test.now).unwrap().unwrap();
    old.leave_quietly(&joined.memberships);
    assert_eq!(drain(&mut old), [""; 0]);
    new.leave(&adopted.memberships, true);
    assert_eq!(drain(&mut old), ["client_unsubscribed a"]);
    test.assert_whole();
}

#[test]
fn a_share_of_an_address_goes_along() {
    let mut test = TestZone::new(256);
    let (mut old, mut new) = (test.worker(), test.worker());
    let channels = [JoinChannel { id: b"a", backtrack: 0 }];
    let limited = JoinRequest {
        address: Some(AddressLimit {
            key: b"192.0.2.1",
            max: 1,
        }),
        ..request(&channels, Position::default(), JoinMode::Stream)
    };
    let joined = old.join(&limited, test.now).unwrap();
    let key = old.address_key(joined.address.unwrap());
    assert_eq!(key, b"192.0.2.1");
    let adopted = new.adopt(&[b"a"], Some(&key), test.now).unwrap().unwrap();
    let seats = |memberships: &[Membership], address: Option<Membership>| -> Vec<Membership> {
        memberships.iter().copied().chain(address).collect()
    };
    old.leave_quietly(&seats(&joined.memberships, joined.address));
    assert_eq!(new.join(&limited, test.now).unwrap_err(), Refusal::TooManyFromAddress);
    new.leave(&seats(&adopted.memberships, adopted.address), true);
    assert!(new.join(&limited, test.now).is_ok());
    test.tick(&mut new, 1);
    test.assert_whole();
}

#[test]
fn only_living_workers_with_a_newer_configuration_accept() {
    let mut test = TestZone::with_slots(256, 4);
    test.zone.count_cycle();
    let (old, mut new) = (test.worker(), test.worker());
    let before = test.zone.cycle();
    old.set_accepting(Some(before));
    assert_eq!(old.accepting(before), 0, "its own configuration is not newer");
    test.zone.count_cycle();
    new.set_accepting(Some(test.zone.cycle()));
    assert_eq!((old.accepting(before), new.accepting(test.zone.cycle())), (1, 0));
    wait(fork(|| {
        test.worker().set_accepting(Some(test.zone.cycle()));
        // SAFETY: ends the child as a kill would.
        unsafe { libc::_exit(0) }
    }));
    test.tick(&mut new, 1);
    assert_eq!(old.accepting(before), 1, "a dead worker is reaped");
    new.release();
    let next = test.worker();
    assert_eq!(old.accepting(before), 0, "a slot's next owner has to accept itself");
    next.set_accepting(Some(test.zone.cycle()));
    assert_eq!(old.accepting(before), 1);
    next.set_accepting(None);
    assert_eq!(old.accepting(before), 0);
}

#[test]
fn the_descriptors_are_found_again() {
    let test = TestZone::new(256);
    assert_eq!(test.zone.handover_fds(), None);
    test.zone.set_handover_fds([7, 8]);
    assert_eq!(test.zone.handover_fds(), Some([7, 8]));
}

#[cfg(feature = "fault-points")]
#[test]
fn adopting_and_forgetting() {
    let quiet = std::rc::Rc::new(telling());
    crate::deaths::die_everywhere("handover", crate::deaths::followed, |test, worker| {
        worker.set_limits(quiet.clone(), test.now);
        let adopted = worker.adopt(&[b"a"], Some(b"192.0.2.1"), test.now).unwrap().unwrap();
        let seats: Vec<_> = adopted.memberships.iter().copied().chain(adopted.address).collect();
        publish(worker, "a", "x", &limits(), test.now).unwrap();
        worker.leave_quietly(&seats);
        worker.set_limits(std::rc::Rc::new(limits()), test.now);
    });
}
