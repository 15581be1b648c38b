//! `million`: as many subscribers as the machine holds; all get a broadcast and then leave.
//!
//! They connect in steps. Before each step the bench estimates its memory from the earlier steps, and stops with a
//! message instead of driving the machine out of memory.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::{Cast, Clients, Run, Target};
use crate::message;
use crate::proc::{KernelMemory, Server, available_memory, open_files_limit, raise_open_files_limit};
use crate::report::{Report, Unit};

#[derive(Args, Debug)]
pub struct Million {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Subscribers, all on one channel
    #[arg(long, default_value_t = 1_500_000, value_name = "N")]
    subscribers: usize,
    /// Steps in which they come
    #[arg(long, default_value_t = 15, value_name = "N")]
    steps: usize,
    /// Seconds within which a broadcast must have reached them all
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    broadcast_limit: f64,
    /// Memory of the machine that must stay free
    #[arg(long, default_value_t = 1_024, value_name = "MIB")]
    reserve: u64,
    /// Memory that the server may keep for each subscriber that has left
    #[arg(long, default_value_t = 32.0, value_name = "BYTES")]
    max_kept: f64,
}

/// Allowance for open files of other programs on the machine.
const OTHER_FILES: u64 = 100_000;

/// Time for a server to return memory.
const TRIM_PATIENCE: Duration = Duration::from_secs(15);

/// A server whose memory stays constant for this long has started.
const SETTLING: Duration = Duration::from_secs(1);

/// Memory of the processes and the kernel at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    server: u64,
    clients: u64,
    kernel: u64,
}

impl Sample {
    fn of(server: &Server) -> anyhow::Result<Self> {
        let clients = Server::new(vec![std::process::id()])?;
        let kernel = KernelMemory::now();
        Ok(Self {
            server: server.memory(),
            clients: clients.memory(),
            kernel: kernel.slab + kernel.socket_buffers,
        })
    }
}

impl Million {
    pub fn run(&self) -> anyhow::Result<Report> {
        make_room_for_files(2 * self.subscribers as u64 + OTHER_FILES)?;
        let cast = Cast {
            subscribers: self.subscribers,
            messages: Some(1),
            message_bytes: message::MIN_BYTES,
            ..Cast::default()
        };
        // Before there are client processes: they set everything up for all their subscribers at their start.
        let empty = settled(&Server::new(self.target.server_pid.clone())?)?;
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        let server = run.server.clone();
        let start = Instant::now();
        self.connect(&mut run)?;
        let connecting = start.elapsed();
        std::thread::sleep(Duration::from_secs(2));
        let full = Sample::of(&server)?;

        run.publish(|_| Ok(()))?;
        let complete = run.drain()?;
        let left = run.leave()?;
        let findings = run.finish()?;
        let after = self.await_memory(&server, empty)?;

        let mut report = self.target.report("million");
        report.count("subscribers", "subscribers", self.subscribers as u64);
        report.seconds("connecting_s", "until all were there", connecting);
        for (key, label, part) in [
            (
                "pss",
                "server memory per subscriber",
                (|sample| sample.server) as fn(Sample) -> u64,
            ),
            ("kernel", "kernel memory per connection, both ends", |sample| {
                sample.kernel
            }),
            ("client", "the bench's own per connection", |sample| sample.clients),
        ] {
            let each = (part(full) as f64 - part(empty) as f64) / self.subscribers.max(1) as f64;
            report.fact(&format!("{key}_bytes"), label, each, Unit::Bytes);
        }
        report.count("deliveries", "deliveries", findings.messages);
        report.seconds("broadcast_s", "broadcast to last delivery", findings.delivering);
        report.latency("latency", "publish to delivery", &findings.latency);
        report.left(&left);
        let kept = (after.server as f64 - empty.server as f64) / self.subscribers.max(1) as f64;
        report.fact("kept_bytes", "kept per subscriber after they left", kept, Unit::Bytes);
        if !complete {
            report.problem("the broadcast did not reach all");
        }
        if findings.delivering.as_secs_f64() > self.broadcast_limit {
            report.problem(format!("the broadcast took longer than {} s", self.broadcast_limit));
        }
        if kept > self.max_kept {
            report.problem(format!("the server keeps {kept:.0} bytes of each subscriber that left"));
        }
        findings.judge(&mut report, false);
        Ok(report)
    }

    /// Connects all, step by step.
    fn connect(&self, run: &mut Run) -> anyhow::Result<()> {
        let reserve = self.reserve * 1024 * 1024;
        let steps = self.steps.clamp(1, self.subscribers.max(1));
        let at_first = available_memory().context("no /proc/meminfo")?;
        let mut there = 0;
        for step in 1..=steps {
            let next = self.subscribers * step / steps;
            let available = available_memory().context("no /proc/meminfo")?;
            // Nothing is known before the first step: memory taken meanwhile was for other purposes.
            let taken = at_first.saturating_sub(available);
            let each = taken.checked_div(there as u64).unwrap_or(0);
            if available < reserve + each * (next - there) as u64 {
                bail!(
                    "{there} subscribers are connected; each took {each} bytes of the machine, and the {} MiB left are \
                     too few for {} more",
                    available >> 20,
                    next - there
                );
            }
            run.connect(next)?;
            there = next;
            run.progress.note(|| {
                format!(
                    "{there} subscribers, {} MiB free",
                    available_memory().unwrap_or(0) >> 20
                )
            });
        }
        Ok(())
    }

    /// Waits for the server to return memory, and returns the last sample.
    fn await_memory(&self, server: &Server, empty: Sample) -> anyhow::Result<Sample> {
        let start = Instant::now();
        loop {
            let now = Sample::of(server)?;
            let kept = now.server.saturating_sub(empty.server) as f64;
            if kept <= self.max_kept * self.subscribers as f64 || start.elapsed() > TRIM_PATIENCE {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Memory of a newly started server once all its processes are ready.
fn settled(server: &Server) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let mut last = Sample::of(server)?;
    loop {
        std::thread::sleep(SETTLING);
        let now = Sample::of(server)?;
        if now.server.abs_diff(last.server) <= now.server / 1000 || start.elapsed() > TRIM_PATIENCE {
            return Ok(now);
        }
        last = now;
    }
}

/// Raises the limit of open files of the whole machine if needed.
fn make_room_for_files(wanted: u64) -> anyhow::Result<()> {
    let limit = open_files_limit().context("cannot read fs.file-max")?;
    if limit >= wanted {
        return Ok(());
    }
    raise_open_files_limit(wanted)
        .with_context(|| format!("fs.file-max is {limit}, {wanted} is needed: sysctl -w fs.file-max={wanted}"))
}
