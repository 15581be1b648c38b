//! The thread of a lane, and the tasks that share it: sources that never block, and the work of sinks beside the lanes.
//!
//! Every step of an event from one thread to the next costs a wake-up of the next one, which is most of what an event in a quiet worker waits for, and
//! memory that is taken on one thread and given back on another. So the engine has as many threads as lanes, and deals out among them whatever can wait without
//! blocking: with one lane an event stays on one thread from the claim to the acknowledgement.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::{Ended, Report, Stop, Succeeding, runtime};
use crate::engine::lane::{Job, Lane};
use crate::ops::watchdog::Beat;
use crate::source::Context;

/// Something that is made on the thread where it runs.
type Task = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// What runs on one thread, beside its lane.
#[derive(Default)]
pub struct LaneThread {
    sources: Vec<Task>,
    sinks: Vec<Task>,
}

impl LaneThread {
    /// Beats for as long as the task runs.
    pub fn sink<F>(&mut self, work: impl FnOnce() -> F + Send + 'static, beat: Beat)
    where
        F: Future<Output = ()> + 'static,
    {
        self.sinks.push(Box::new(move || {
            let work = work();
            Box::pin(async move {
                tokio::select! {
                    () = work => {}
                    () = beat.keep() => {}
                }
            })
        }));
    }

    /// Reports its end, also when it panics.
    pub(super) fn source(
        &mut self,
        source: Succeeding,
        context: Context,
        ended: mpsc::UnboundedSender<Ended>,
        beat: Beat,
    ) {
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
                // Ends when all senders of jobs are gone, all deliveries are done, and the sinks have heard of it.
                () = local => {}
                () = async {
                    stop.abandoned().await;
                    // These have something to say to their brokers yet.
                    while sources.join_next().await.is_some() {}
                } => {}
                () = beat.keep() => {}
            }
        });
        // A look-up of a name that hangs is nothing to wait for.
        runtime.shutdown_background();
        Ok(())
    }
}

/// The threads of all lanes, while tasks are dealt out to them.
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

    /// The one whose turn it is.
    pub fn take_next(&mut self) -> &mut LaneThread {
        let place = self.next % self.threads.len();
        self.next += 1;
        &mut self.threads[place]
    }

    pub fn into_vec(self) -> Vec<LaneThread> {
        self.threads
    }
}
