//! A zone in memory shared with forked children, and helpers to use it.

use std::rc::Rc;

use push_stream_core::store::*;

/// Zone memory that lives as long as the test process.
pub struct TestZone {
    pub zone: Zone,
    pub now: Now,
}

impl TestZone {
    pub fn new(kib: usize) -> TestZone {
        TestZone::with_slots(kib, 8)
    }

    pub fn with_slots(kib: usize, slots: u16) -> TestZone {
        let len = kib * 1024;
        let now = Now {
            monotonic_ms: 1_000_000,
            unix_ms: 1_700_000_000_000,
        };
        // SAFETY: a fresh anonymous shared mapping is zeroed, page aligned, and never unmapped.
        let zone = unsafe {
            let (read_write, shared) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            );
            let memory = libc::mmap(std::ptr::null_mut(), len, read_write, shared, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            Zone::create(memory.cast(), len, slots, now).expect("the zone is large enough")
        };
        TestZone { zone, now }
    }

    pub fn worker(&self) -> Worker {
        self.worker_with(&limits())
    }

    pub fn worker_with(&self, limits: &Limits) -> Worker {
        self.zone
            .claim(Rc::new(limits.clone()), self.now)
            .expect("a slot is free")
    }

    /// Advances both clocks.
    pub fn pass(&mut self, secs: u64) {
        self.now.monotonic_ms += secs * 1000;
        self.now.unix_ms += secs * 1000;
    }

    /// Lets time pass as it does in nginx, with a tick each second.
    pub fn tick(&mut self, worker: &mut Worker, secs: u64) {
        for _ in 0..secs {
            self.pass(1);
            while worker.tick(self.now) == Tick::More {}
        }
    }

    #[track_caller]
    pub fn assert_whole(&self) {
        assert_eq!(self.zone.check(), Vec::<String>::new());
    }
}

pub fn limits() -> Limits {
    Limits {
        message_ttl_secs: 60,
        channel_inactivity_secs: 30,
        max_stored_per_channel: None,
        max_subscribers_per_channel: None,
        max_channels: None,
        max_wildcard_channels: None,
        wildcard_prefix: Vec::new(),
        on_full: OnFull::Refuse,
        events: None,
        track_ids: false,
        auto_ids: false,
        idempotent_window: 1024,
    }
}

pub fn evicting() -> Limits {
    Limits {
        on_full: OnFull::Evict,
        ..limits()
    }
}

/// The setting of an events channel with this name.
pub fn telling(channel: &str) -> Events {
    Events {
        channel: channel.as_bytes().to_vec(),
        text: |event, id| format!("{} {}", event.name(), String::from_utf8_lossy(id)).into_bytes(),
    }
}

/// Limits that make the zone track ids.
pub fn tracking() -> Limits {
    Limits {
        track_ids: true,
        ..limits()
    }
}

/// A publish with all its parts.
#[derive(Clone, Copy)]
pub struct Post<'a> {
    pub ids: &'a [&'a [u8]],
    pub text: &'a [u8],
    pub event_id: Option<&'a [u8]>,
    pub store: bool,
}

pub fn post(worker: &mut Worker, post: Post, limits: &Limits, now: Now) -> Result<Vec<ChannelInfo>, Refusal> {
    worker.set_limits(Rc::new(limits.clone()), now);
    let mut draft = worker.draft(post.text.len(), post.event_id, None, post.ids.len(), now)?;
    worker.write(&mut draft, post.text);
    let published = worker.publish(draft, post.ids, Terms::plain(post.store), now)?;
    Ok(published.into_iter().map(|published| published.info).collect())
}

/// Publishes and stores a text in one channel.
pub fn publish(
    worker: &mut Worker,
    id: &str,
    text: &str,
    limits: &Limits,
    now: Now,
) -> Result<Vec<ChannelInfo>, Refusal> {
    post(
        worker,
        Post {
            ids: &[id.as_bytes()],
            text: text.as_bytes(),
            event_id: None,
            store: true,
        },
        limits,
        now,
    )
}

/// Publishes a text with or without an event id, on the given terms.
pub fn send(
    worker: &mut Worker,
    ids: &[&str],
    text: &str,
    event_id: Option<&str>,
    how: Terms,
    now: Now,
) -> Result<Vec<Published>, Refusal> {
    let ids: Vec<_> = ids.iter().map(|id| id.as_bytes()).collect();
    let mut draft = worker.draft(text.len(), event_id.map(str::as_bytes), None, ids.len(), now)?;
    worker.write(&mut draft, text.as_bytes());
    worker.publish(draft, &ids, how, now)
}

pub fn request<'a>(channels: &'a [JoinChannel<'a>], position: Position<'a>, mode: JoinMode) -> JoinRequest<'a> {
    JoinRequest {
        channels,
        position,
        mode,
        ordered: false,
        gap_notices: false,
        authorized_channels_only: false,
        may_follow_events: true,
        address: None,
    }
}

/// Subscribes to channels without old messages.
pub fn follow(worker: &mut Worker, ids: &[&str], now: Now) -> Joined {
    let channels: Vec<_> = ids
        .iter()
        .map(|id| JoinChannel {
            id: id.as_bytes(),
            backtrack: 0,
        })
        .collect();
    worker
        .join(&request(&channels, Position::default(), JoinMode::Stream), now)
        .expect("admitted")
}

/// Texts of all messages to take.
pub fn drain(worker: &mut Worker) -> Vec<String> {
    let mut batch = Batch::default();
    let mut texts = Vec::new();
    loop {
        let more = worker.drain(1000, &mut batch);
        texts.extend(
            batch
                .iter()
                .map(|(_, message)| String::from_utf8_lossy(message.text).into_owned()),
        );
        if !more {
            return texts;
        }
    }
}

/// Texts of the old messages that a subscriber of `id` gets.
pub fn old(worker: &mut Worker, id: &str, backtrack: u32, position: Position, now: Now) -> Vec<String> {
    let channels = [JoinChannel {
        id: id.as_bytes(),
        backtrack,
    }];
    let joined = worker
        .join(&request(&channels, position, JoinMode::Poll), now)
        .expect("admitted");
    let mut texts = Vec::new();
    let Some(mut replay) = joined.replay else { return texts };
    let mut batch = Batch::default();
    loop {
        let more = worker.replay(&mut replay, &mut batch);
        texts.extend(
            batch
                .iter()
                .map(|(_, message)| String::from_utf8_lossy(message.text).into_owned()),
        );
        if !more {
            return texts;
        }
    }
}

/// Runs `child` in a forked process, which ends when `child` dies or returns. Returns its pid.
pub fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the test binary is run with one thread per process by nextest, or the child touches nothing that another
    // thread may have locked: the zone and its own stack.
    match unsafe { libc::fork() } {
        0 => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // The test harness would swallow the child's panic message.
            let status = match done {
                Ok(()) => 0,
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .map_or("a child panicked", String::as_str);
                    let line = format!("child: {text}\n");
                    // SAFETY: the buffer is as long as given.
                    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
                    1
                }
            };
            // SAFETY: ends the child without running the parent's destructors in it.
            unsafe { libc::_exit(status) }
        }
        pid => pid,
    }
}

/// Waits for a child; true if it was killed.
pub fn wait(pid: i32) -> bool {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    libc::WIFSIGNALED(status)
}
