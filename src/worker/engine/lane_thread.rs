//! The thread of a lane, and the tasks that share it: sources that never block, and sinks' tasks outside the lanes.
//!
//! Every hand-over of an event between threads costs a wake-up, which is most of an event's latency in a quiet worker,
//! and frees memory on another thread than it was allocated on. So the engine has as many threads as lanes, and
//! distributes all non-blocking tasks among them: with one lane an event stays on one thread from the claim to the
//! acknowledgement.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::lane::{Job, Lane};
use super::report::{Ended, Report};
use super::spawn::{Spawn, Task};
use super::stop::Stop;
use super::succession::Succeeding;
use crate::ops::watchdog::{Beat, Watchdog};
use crate::source::Context;

/// The tasks of one thread, beside its lane.
#[derive(Default)]
pub struct LaneThread {
    sources: Vec<Task>,
    sinks: Vec<Task>,
}

impl LaneThread {
    /// Keeps a watchdog beat for as long as the task runs.
    fn sink(&mut self, task: Task, beat: Beat) {
        self.sinks.push(Box::new(move || {
            let work = task();
            Box::pin(async move {
                tokio::select! {
                    () = work => {}
                    () = beat.keep() => {}
                }
            })
        }));
    }

    /// Reports its end, even after a panic.
    pub fn source(&mut self, source: Succeeding, context: Context, ended: mpsc::UnboundedSender<Ended>, beat: Beat) {
        let report = Report::of_source(context.name.clone(), ended);
        self.sources.push(Box::new(move || {
            Box::pin(async move {
                let result = tokio::select! {
                    result = source.run(context) => result,
                    () = beat.keep() => Ok(()),
                };
                report.tell(result);
            })
        }));
    }

    /// Runs the lane and its tasks until the end.
    pub fn run(
        self,
        open: impl FnOnce() -> std::rc::Rc<Lane>,
        jobs: mpsc::UnboundedReceiver<Job>,
        mut stop: Stop,
        beat: &Beat,
    ) -> io::Result<()> {
        let runtime = runtime()?;
        let local = LocalSet::new();
        local.spawn_local(open().run(jobs));
        for task in self.sinks {
            local.spawn_local(task());
        }
        let mut sources = JoinSet::new();
        for task in self.sources {
            sources.spawn_local_on(task(), &local);
        }
        runtime.block_on(async {
            tokio::select! {
                // Ends when all senders of jobs are dropped, all deliveries are done, and the sinks have been told.
                () = local => {}
                () = async {
                    stop.abandoned().await;
                    // Sources still have to finish with their brokers.
                    while sources.join_next().await.is_some() {}
                } => {}
                () = beat.keep() => {}
            }
        });
        // Do not wait for a hanging name resolution.
        runtime.shutdown_background();
        Ok(())
    }
}

/// The threads of all lanes, while tasks are distributed among them.
pub struct LaneThreads {
    threads: Vec<LaneThread>,
    next: usize,
}

impl LaneThreads {
    pub fn new(lanes: usize) -> Self {
        Self {
            threads: (0..lanes.max(1)).map(|_| LaneThread::default()).collect(),
            next: 0,
        }
    }

    /// The next thread, round robin.
    pub fn take_next(&mut self) -> &mut LaneThread {
        let place = self.next % self.threads.len();
        self.next += 1;
        &mut self.threads[place]
    }

    pub fn into_vec(self) -> Vec<LaneThread> {
        self.threads
    }
}

/// Distributes the tasks of sinks.
pub struct Spawner<'a> {
    pub threads: &'a mut LaneThreads,
    pub watchdog: &'a Watchdog,
}

impl Spawn for Spawner<'_> {
    fn spawn(&mut self, name: String, task: Task) {
        let beat = self.watchdog.watch(name);
        self.threads.take_next().sink(task, beat);
    }
}

pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
