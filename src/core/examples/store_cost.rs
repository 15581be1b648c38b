//! Cost of the store's operations: `cargo run --release -p push-stream-core --example store_cost`.
//!
//! Prints nanoseconds of one thread per operation, publishing to 1,000 and to 1,000,000 channels, and with several
//! processes at once. Run it on a quiet machine; ratios mean more than times.

use std::rc::Rc;
use std::time::Instant;

use push_stream_core::store::*;

const ZONE: usize = 2 << 30;
const TEXT: &[u8] = &[b'x'; 100];

fn zone() -> Zone {
    // SAFETY: a fresh anonymous shared mapping is zeroed, page aligned, and never unmapped.
    unsafe {
        let (read_write, shared) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        let memory = libc::mmap(std::ptr::null_mut(), ZONE, read_write, shared, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        Zone::create(memory.cast(), ZONE, 64, Now::read()).expect("it is large enough")
    }
}

fn limits() -> Limits {
    Limits {
        message_ttl_secs: 3600,
        channel_inactivity_secs: 3600,
        max_stored_per_channel: Some(2),
        max_subscribers_per_channel: None,
        max_channels: None,
        max_wildcard_channels: None,
        wildcard_prefix: Vec::new(),
        on_full: OnFull::Evict,
        events: None,
        track_ids: false,
        auto_ids: false,
        idempotent_window: 1024,
    }
}

fn publish(worker: &mut Worker, id: &str, now: Now) {
    let mut draft = worker.draft(TEXT.len(), None, None, 1, now).expect("there is room");
    worker.write(&mut draft, TEXT);
    worker
        .publish(draft, &[id.as_bytes()], Terms::plain(true), now)
        .expect("there is room");
}

fn measure(what: &str, count: usize, mut operation: impl FnMut(usize)) {
    let start = Instant::now();
    for index in 0..count {
        operation(index);
    }
    println!(
        "{what:<50} {:>8.0} ns",
        start.elapsed().as_nanos() as f64 / count as f64
    );
}

fn main() {
    for channels in [1_000usize, 1_000_000] {
        let zone = zone();
        let mut worker = zone.claim(Rc::new(limits()), Now::read()).expect("a slot is free");
        let names: Vec<String> = (0..channels).map(|index| format!("channel-{index}")).collect();
        measure(&format!("create {channels} channels"), channels, |index| {
            worker
                .create_channels(&[names[index].as_bytes()], Now::read())
                .expect("there is room");
        });
        for name in &names {
            publish(&mut worker, name, Now::read());
            publish(&mut worker, name, Now::read());
        }
        let step = 611_953; // Coprime to both: visits them all, near no neighbour.
        measure(&format!("publish, random of {channels} channels"), 1_000_000, |index| {
            publish(&mut worker, &names[index * step % channels], Now::read());
        });
        measure(
            &format!("publish, always the same of {channels} channels"),
            1_000_000,
            |_| {
                publish(&mut worker, &names[7], Now::read());
            },
        );
        measure(&format!("channel info, random of {channels}"), 1_000_000, |index| {
            worker.channel(names[index * step % channels].as_bytes());
        });
        let join = [JoinChannel {
            id: b"channel-7",
            backtrack: 0,
        }];
        let request = JoinRequest {
            channels: &join,
            position: Position::default(),
            mode: JoinMode::Stream,
            ordered: false,
            gap_notices: false,
            authorized_channels_only: false,
            may_follow_events: true,
            address: None,
        };
        let first = worker.join(&request, Now::read()).expect("admitted");
        measure("join and leave a channel", 1_000_000, |_| {
            let joined = worker.join(&request, Now::read()).expect("admitted");
            worker.leave(&joined.memberships, true);
        });
        let mut batch = Batch::default();
        measure("publish and drain", 1_000_000, |_| {
            publish(&mut worker, "channel-7", Now::read());
            worker.drain(65536, &mut batch);
        });
        worker.leave(&first.memberships, true);
    }
    for processes in [1, 2, 4, 8] {
        let zone = zone();
        let start = Instant::now();
        let each = 400_000 / processes;
        let children: Vec<i32> = (0..processes)
            .map(|number| {
                // SAFETY: this process has one thread.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    let mut worker = zone.claim(Rc::new(limits()), Now::read()).expect("a slot is free");
                    for index in 0..each {
                        publish(&mut worker, &format!("{number}-{}", index % 1000), Now::read());
                    }
                    worker.release();
                    // SAFETY: ends the child without the parent's destructors.
                    unsafe { libc::_exit(0) };
                }
                pid
            })
            .collect();
        for pid in children {
            // SAFETY: waits for a child of this process.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
        let rate = 400_000.0 / start.elapsed().as_secs_f64();
        println!("{:<50} {rate:>8.0} /s", format!("publish from {processes} processes"));
    }
}
