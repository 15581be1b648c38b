//! The processes of a bench run, and their shared memory.
//!
//! A process has a limit of descriptors, so the work is forked over child processes: each is one thread with one epoll
//! loop. They share a [`Board`] on which the first process writes the phase and the children write their counters, and
//! each sends one JSON report through a pipe when it is done. No process waits for another in between.

use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Types that may live in fresh shared memory.
///
/// # Safety
///
/// All zeroes must be a valid value, and the type must be made of atomics only: other processes write to it.
pub unsafe trait Shareable: Sync {}

// SAFETY: an atomic, and zero is a valid value.
unsafe impl Shareable for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shareable for AtomicU64 {}

/// A slice of memory that stays shared over forks. Never unmapped: a run needs it until its end.
#[derive(Debug)]
pub struct Shared<T> {
    start: *const T,
    count: usize,
    elements: PhantomData<T>,
}

impl<T: Shareable> Shared<T> {
    pub fn new(count: usize) -> io::Result<Self> {
        let bytes = (size_of::<T>() * count).max(1);
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: asks for a new mapping anywhere.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            count,
            elements: PhantomData,
        })
    }
}

// SAFETY: it is a reference to elements that other processes change as well, so threads may do so too; `Shareable` is `Sync`.
unsafe impl<T: Shareable> Send for Shared<T> {}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

impl<T: Shareable> Deref for Shared<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `count` zeroed elements, for which all zeroes is valid, is page-aligned and lives
        // until the process ends; elements are only changed through atomics.
        unsafe { std::slice::from_raw_parts(self.start, self.count) }
    }
}

/// The current phase of all processes. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    /// Subscribers connect; nothing is published.
    Connect,
    /// One message on every flow, so that every subscriber has a position.
    Prime,
    /// Messages flow.
    Publish,
    /// Nothing is published any more; subscribers wait for what is under way.
    Drain,
    /// Subscribers close their connections.
    Leave,
    /// Report and exit.
    Finish,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Connect,
        Self::Prime,
        Self::Publish,
        Self::Drain,
        Self::Leave,
        Self::Finish,
    ];
}

/// Live counters of one child.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Counters {
    /// For subscribers: those with a response head (current); for publishers: connections.
    pub open: AtomicU64,
    /// Response heads over all connections.
    pub opened: AtomicU64,
    /// Messages received, or publishes answered with 2xx.
    pub done: AtomicU64,
    /// Bytes of unfinished messages: shows progress while large ones arrive.
    pub partial_bytes: AtomicU64,
    /// Subscribers that have not reached the end of their flows; only kept in the Drain phase.
    pub behind: AtomicU64,
    /// The phase for which `behind`, or a publisher's work, is settled, plus one.
    pub settled: AtomicU32,
    pub reconnects: AtomicU64,
    /// All problems, for the progress line.
    pub trouble: AtomicU64,
}

// SAFETY: made of atomics, for all of which zero is valid.
unsafe impl Shareable for Counters {}

/// The phase and the counters of all children.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    phase: Shared<AtomicU32>,
    /// Number of subscribers of the whole run that may connect by now.
    invited: Shared<AtomicU64>,
    counters: Shared<Counters>,
}

impl Board {
    fn new(children: usize) -> io::Result<Self> {
        Ok(Self {
            phase: Shared::new(1)?,
            invited: Shared::new(1)?,
            counters: Shared::new(children)?,
        })
    }

    /// Pairs with [`Processes::enter`]: an observer of a phase sees everything done before it.
    pub fn phase(&self) -> Phase {
        Phase::ALL[self.phase[0].load(Acquire) as usize]
    }

    pub fn invited(&self) -> usize {
        self.invited[0].load(Relaxed) as usize
    }

    pub fn counters(&self, child: usize) -> &Counters {
        &self.counters[child]
    }

    /// The child has finished `phase`, and its counters are final. Pairs with [`Self::settled`].
    pub fn settle(&self, child: usize, phase: Phase) {
        self.counters[child].settled.store(phase as u32 + 1, Release);
    }

    fn settled(&self, child: usize, phase: Phase) -> bool {
        self.counters[child].settled.load(Acquire) > phase as u32
    }
}

/// A forked child.
#[derive(Debug)]
struct Child {
    pid: libc::pid_t,
    report: io::PipeReader,
}

/// The work of one child: takes the board and its index there, returns its report.
pub type Work = Box<dyn FnOnce(Board, usize) -> anyhow::Result<Value>>;

/// All children of a run: first the subscribing ones, then the publishing ones.
#[derive(Debug)]
pub struct Processes {
    board: Board,
    children: Vec<Child>,
    subscribing: usize,
}

impl Processes {
    /// Forks one process for each piece of work. Must be called while this process has a single thread.
    pub fn muster(subscribing: Vec<Work>, publishing: Vec<Work>) -> anyhow::Result<Self> {
        let subscribers = subscribing.len();
        let board = Board::new(subscribers + publishing.len()).context("no shared memory")?;
        let mut processes = Self {
            board,
            children: Vec::new(),
            subscribing: subscribers,
        };
        for (index, work) in subscribing.into_iter().chain(publishing).enumerate() {
            processes.children.push(fork_child(board, index, work)?);
        }
        Ok(processes)
    }

    pub fn enter(&self, phase: Phase) {
        self.board.phase[0].store(phase as u32, Release);
    }

    /// Lets the first `subscribers` of the run connect.
    pub fn invite(&self, subscribers: usize) {
        self.board.invited[0].store(subscribers as u64, Relaxed);
    }

    pub fn board(&self) -> Board {
        self.board
    }

    /// Number of subscribing processes; they are the first ones on the board.
    pub fn subscribing(&self) -> usize {
        self.subscribing
    }

    fn sum(&self, children: std::ops::Range<usize>, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        children
            .map(|child| counter(self.board.counters(child)).load(Relaxed))
            .sum()
    }

    /// Currently connected subscribers.
    pub fn open(&self) -> u64 {
        self.sum(0..self.subscribing, |counters| &counters.open)
    }

    /// Connections of subscribers so far, reconnections included.
    pub fn opened(&self) -> u64 {
        self.sum(0..self.subscribing, |counters| &counters.opened)
    }

    pub fn received(&self) -> u64 {
        self.sum(0..self.subscribing, |counters| &counters.done)
    }

    /// Changes with any progress of the run.
    pub fn sign_of_life(&self) -> u64 {
        let everybody = 0..self.children.len();
        self.sum(everybody.clone(), |counters| &counters.partial_bytes)
            + self.sum(everybody.clone(), |counters| &counters.done)
            + self.sum(everybody, |counters| &counters.reconnects)
            + self.opened()
            + self.open()
    }

    pub fn published(&self) -> u64 {
        self.sum(self.subscribing..self.children.len(), |counters| &counters.done)
    }

    pub fn behind(&self) -> u64 {
        self.sum(0..self.subscribing, |counters| &counters.behind)
    }

    pub fn reconnects(&self) -> u64 {
        self.sum(0..self.subscribing, |counters| &counters.reconnects)
    }

    pub fn trouble(&self) -> u64 {
        self.sum(0..self.children.len(), |counters| &counters.trouble)
    }

    /// Whether all publishers have done their part of `phase`.
    pub fn publishers_settled(&self, phase: Phase) -> bool {
        (self.subscribing..self.children.len()).all(|child| self.board.settled(child, phase))
    }

    /// Whether all subscribers' `behind` counters belong to `phase`.
    pub fn subscribers_settled(&self, phase: Phase) -> bool {
        (0..self.subscribing).all(|child| self.board.settled(child, phase))
    }

    /// Waits until `done`; returns false after `patience` without any progress. Calls `meanwhile` every 10 ms, fails
    /// when a child has died.
    pub fn wait(
        &mut self,
        patience: Duration,
        done: impl Fn(&Self) -> bool,
        mut meanwhile: impl FnMut(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut last = (self.sign_of_life(), Instant::now());
        loop {
            if done(self) {
                return Ok(true);
            }
            let sign = self.sign_of_life();
            if sign != last.0 {
                last = (sign, Instant::now());
            } else if last.1.elapsed() > patience {
                return Ok(false);
            }
            meanwhile(self)?;
            self.check_alive()?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A child that ends early has failed; its report says why.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        for index in 0..self.children.len() {
            let mut status = 0;
            // SAFETY: `status` is valid to write to; the pid is a child that was not waited for.
            if unsafe { libc::waitpid(self.children[index].pid, &mut status, libc::WNOHANG) } > 0 {
                let child = self.children.remove(index);
                read_report(child.report)?;
                bail!("a client process ended too early (wait status {status:#x})");
            }
        }
        Ok(())
    }

    /// Ends the run and collects the reports: of the subscribers, of the publishers.
    pub fn collect(&mut self) -> anyhow::Result<(Vec<Value>, Vec<Value>)> {
        self.enter(Phase::Finish);
        let mut reports = Vec::new();
        for child in self.children.drain(..) {
            reports.push(read_report(child.report)?);
            // SAFETY: the status is not asked for; the pid is a child that was not waited for.
            unsafe { libc::waitpid(child.pid, std::ptr::null_mut(), 0) };
        }
        let publishers = reports.split_off(self.subscribing);
        Ok((reports, publishers))
    }
}

impl Drop for Processes {
    /// Remaining children belong to a failed run.
    fn drop(&mut self) {
        for child in &self.children {
            // SAFETY: takes no pointers; the pid is a child that was not waited for, so it cannot be another process.
            unsafe {
                libc::kill(child.pid, libc::SIGKILL);
                libc::waitpid(child.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

fn fork_child(board: Board, index: usize, work: Work) -> anyhow::Result<Child> {
    let (report, mut writer) = io::pipe().context("no pipe")?;
    // SAFETY: this process has one thread, so the child's copy of every lock is free.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot fork"),
        0 => {
            drop(report);
            die_with_parent();
            // A panic must not unwind into the parent's code; its text is on stderr already.
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(board, index)));
            let result = worked.unwrap_or_else(|_| Err(anyhow::anyhow!("a client process panicked")));
            let value = result.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
            let written = writer.write_all(value.to_string().as_bytes());
            // SAFETY: ends the process at once, without the parent's exit handlers and buffers.
            unsafe { libc::_exit(libc::c_int::from(written.is_err())) }
        }
        pid => Ok(Child { pid, report }),
    }
}

/// Has the kernel kill this process when its parent dies.
pub fn die_with_parent() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

fn read_report(mut pipe: io::PipeReader) -> anyhow::Result<Value> {
    let mut text = String::new();
    pipe.read_to_string(&mut text)
        .context("cannot read the report of a client process")?;
    let value: Value = serde_json::from_str(&text).context("a client process died without a report")?;
    match value.get("error") {
        Some(error) => bail!("{}", error.as_str().unwrap_or("a client process failed")),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_starts_zeroed() {
        let shared: Shared<AtomicU32> = Shared::new(3).unwrap();
        shared[2].store(9, Relaxed);
        let copy = shared;
        assert_eq!(
            copy.iter().map(|value| value.load(Relaxed)).collect::<Vec<_>>(),
            [0, 0, 9]
        );
    }
}
