//! Everything at once, without deaths: accesses outside of the lock. Each thread is a worker with a slot of its own;
//! they share nothing but the zone. Under ThreadSanitizer (`scripts/sanitize --threads`) this also detects every
//! unordered access.
//!
//! `TEST_STRESS_SECONDS`: duration; default 1.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use push_stream_core::store::*;

use crate::zone::*;

const SLOTS: u16 = 10;
const PUBLISHERS: u64 = 2;
const FOLLOWERS: u64 = 2;
const CHANNELS: [&str; 3] = ["a", "b", "c"];
/// Maximum lead of a publisher over the slowest follower: more would be evicted.
const AHEAD: u64 = 300;
/// Two values; a torn mixture equals neither.
const PATTERNS: [u64; 2] = [0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa];

/// The zone, as every thread sees it. The counters here are unordered with respect to anything else.
struct Shared {
    zone: Zone,
    now: Now,
    fds: Vec<i32>,
    held: Vec<AtomicBool>,
    published: AtomicU64,
    taken: Vec<AtomicU64>,
    counted: AtomicU64,
    published_all: AtomicBool,
    over: AtomicBool,
}

// SAFETY: the zone is made for this: each thread claims a worker of its own.
unsafe impl Sync for Shared {}

impl Shared {
    /// A worker in a slot of its own.
    fn claim(&self) -> Worker {
        let limits = Limits {
            max_stored_per_channel: Some(5),
            ..evicting()
        };
        let worker = self.zone.claim(Rc::new(limits), self.now).expect("a slot is free");
        let held = &self.held[worker.slot() as usize];
        assert!(!held.swap(true, Ordering::Relaxed), "a slot has two owners");
        worker
    }

    fn release(&self, worker: Worker) {
        self.held[worker.slot() as usize].store(false, Ordering::Relaxed);
        worker.release();
    }

    fn slowest(&self) -> u64 {
        let counts = self.taken.iter().map(|taken| taken.load(Ordering::Relaxed));
        counts.min().unwrap_or(0)
    }
}

/// Ends the others when a thread panics: the scope waits for all.
struct EndsAll<'s>(&'s Shared);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.over.store(true, Ordering::Relaxed);
        }
    }
}

/// Texts that name their publisher and length, made of letters that repeat this.
fn text_of(publisher: u64, count: u64) -> String {
    let letter = char::from(b'a' + (publisher * 7 + count) as u8 % 26).to_string();
    format!("{publisher}:{count}:{}", letter.repeat((count * 37 % 700) as usize))
}

/// Publisher and number of a text; panics if it is anything else.
fn read(text: &[u8]) -> (u64, u64) {
    let text = str::from_utf8(text).expect("texts are letters");
    let mut parts = text.split(':');
    let mut number = || parts.next().expect("two numbers").parse().expect("a number");
    let (publisher, count) = (number(), number());
    assert!(text == text_of(publisher, count), "foreign bytes in {text}");
    (publisher, count)
}

fn publish_all(shared: &Shared, publisher: u64, end: Instant) {
    let _ends_all = EndsAll(shared);
    let mut worker = shared.claim();
    let mut count = 0;
    while Instant::now() < end && !shared.over.load(Ordering::Relaxed) {
        if shared.published.load(Ordering::Relaxed) > shared.slowest() + AHEAD {
            std::thread::yield_now();
            continue;
        }
        count += 1;
        let text = text_of(publisher, count);
        let both = count.is_multiple_of(5);
        let channel = CHANNELS[(count % 3) as usize].as_bytes();
        let ids: &[&[u8]] = if both { &[channel, b"others"] } else { &[channel] };
        let mut draft = worker
            .draft(text.len(), None, None, ids.len(), shared.now)
            .expect("room is made");
        for piece in text.as_bytes().chunks(100) {
            worker.write(&mut draft, piece);
        }
        worker
            .publish(draft, ids, Terms::plain(true), shared.now)
            .expect("admitted");
        shared.published.fetch_add(1, Ordering::Relaxed);
        worker.set_queued_bytes(PATTERNS[(count % 2) as usize]);
        worker.note_stretch(Duration::from_micros(count));
    }
    shared.release(worker);
}

/// Takes messages only after a signal.
fn take_all(shared: &Shared, follower: usize) {
    let _ends_all = EndsAll(shared);
    let mut worker = shared.claim();
    let fd = shared.fds[worker.slot() as usize];
    follow(&mut worker, &CHANNELS, shared.now);
    shared.taken[follower].store(0, Ordering::Relaxed);
    let mut newest = HashMap::new();
    let mut batch = Batch::default();
    let mut taken = 0;
    let mut deaf = 0;
    while !shared.over.load(Ordering::Relaxed) {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one descriptor, and a buffer of eight bytes.
        let told = unsafe {
            let told = libc::poll(&mut poll, 1, 100) == 1;
            told && libc::read(fd, [0u8; 8].as_mut_ptr().cast(), 8) == 8
        };
        if !told {
            let finished = shared.published_all.load(Ordering::Acquire);
            if finished && taken == shared.published.load(Ordering::Relaxed) {
                break;
            }
            deaf += u32::from(taken < shared.published.load(Ordering::Relaxed));
            assert!(deaf < 100, "nobody tells that there is something");
            continue;
        }
        deaf = 0;
        loop {
            let more = worker.drain(1000, &mut batch);
            for (source, message) in batch.iter() {
                let (publisher, count) = read(message.text);
                let before = newest.insert((source, publisher), count);
                assert!(before < Some(count), "{publisher} sent {count} after {before:?}");
                taken += 1;
            }
            worker.count(Counter::Delivered, batch.iter().count() as u64);
            shared.taken[follower].store(taken, Ordering::Relaxed);
            if !more {
                break;
            }
        }
    }
    shared.release(worker);
}

/// Readers of stored messages, and channels and workers that come and go.
fn come_and_go(shared: &Shared) {
    let _ends_all = EndsAll(shared);
    let mut rounds = 0u64;
    while !shared.over.load(Ordering::Relaxed) {
        let mut worker = shared.claim();
        for _ in 0..20 {
            rounds += 1;
            for text in old(
                &mut worker,
                CHANNELS[(rounds % 3) as usize],
                4,
                Position::default(),
                shared.now,
            ) {
                read(text.as_bytes());
            }
            let name = format!("fleeting {}", rounds % 4);
            let joined = follow(&mut worker, &[&name], shared.now);
            worker.count_in(Connection::Detached(Mode::EventSource));
            worker.leave(&joined.memberships, true);
            worker.count_out(Connection::Detached(Mode::EventSource));
            worker
                .delete(&[name.as_bytes()], b"gone", shared.now)
                .expect("room is made");
            worker.count(Counter::GapNotice, 3);
            shared.counted.fetch_add(3, Ordering::Relaxed);
            worker.tick(shared.now);
        }
        shared.release(worker);
    }
}

/// Reads the figures while all workers write theirs.
fn watch(shared: &Shared) {
    let _ends_all = EndsAll(shared);
    let worker = shared.claim();
    let mut before = 0;
    while !shared.over.load(Ordering::Relaxed) {
        let summary = worker.summary(shared.now);
        for info in &summary.workers {
            let queued = info.queued_bytes;
            assert!(queued == 0 || PATTERNS.contains(&queued), "torn: {queued:x}");
            assert!(info.connections.detached(Mode::EventSource) <= 1);
            assert!(info.subscribers <= CHANNELS.len() as u64);
        }
        let counted = summary.counts.get(Counter::GapNotice);
        assert!(counted >= before, "a count fell");
        before = counted;
    }
    shared.release(worker);
}

#[test]
fn workers_that_live_disturb_nobody() {
    let seconds = std::env::var("TEST_STRESS_SECONDS").map_or(1.0, |text| text.parse().expect("seconds"));
    let test = TestZone::with_slots(2048, SLOTS);
    let fds: Vec<i32> = (0..SLOTS)
        // SAFETY: takes no memory.
        .map(|_| unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })
        .collect();
    test.zone.set_wake_fds(&fds);
    let shared = Shared {
        zone: test.zone,
        now: test.now,
        fds,
        held: (0..SLOTS).map(|_| AtomicBool::new(false)).collect(),
        published: AtomicU64::new(0),
        // Publishing waits for the followers.
        taken: (0..FOLLOWERS).map(|_| AtomicU64::new(u64::MAX - AHEAD)).collect(),
        counted: AtomicU64::new(0),
        published_all: AtomicBool::new(false),
        over: AtomicBool::new(false),
    };
    let shared = &shared;
    std::thread::scope(|scope| {
        let followers: Vec<_> = (0..FOLLOWERS as usize)
            .map(|follower| scope.spawn(move || take_all(shared, follower)))
            .collect();
        let others = [
            scope.spawn(move || come_and_go(shared)),
            scope.spawn(move || come_and_go(shared)),
            scope.spawn(move || watch(shared)),
        ];
        while shared.slowest() > 0 || shared.taken.iter().any(|taken| taken.load(Ordering::Relaxed) > 0) {
            assert!(!followers.iter().any(|follower| follower.is_finished()));
            std::thread::yield_now();
        }
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| scope.spawn(move || publish_all(shared, publisher, end)))
            .collect();
        for publisher in publishers {
            publisher.join().expect("a publisher");
        }
        shared.published_all.store(true, Ordering::Release);
        for follower in followers {
            follower.join().expect("a follower");
        }
        shared.over.store(true, Ordering::Relaxed);
        for other in others {
            other.join().expect("one of the others");
        }
    });
    test.assert_whole();
    let published = shared.published.load(Ordering::Relaxed);
    assert!(published > 100);
    let summary = test.zone.summary(test.now);
    assert_eq!(summary.workers.len(), 0);
    assert_eq!(summary.evicted.undelivered, 0);
    assert_eq!(summary.counts.get(Counter::Delivered), published * FOLLOWERS);
    assert_eq!(
        summary.counts.get(Counter::GapNotice),
        shared.counted.load(Ordering::Relaxed)
    );
    eprintln!("{published} messages to {FOLLOWERS} workers");
}
