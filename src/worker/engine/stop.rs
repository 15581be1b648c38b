//! How far a stop has come, for everything that has to end.

use tokio::sync::watch;

/// Progress of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// Claim nothing more; finish what is in flight.
    Draining,
    /// Abandon the events in flight.
    Abandoning,
}

/// Stop notification, shared by all tasks.
#[derive(Clone, Debug)]
pub struct Stop(pub(super) watch::Receiver<Phase>);

impl Stop {
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    pub async fn requested(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// The time for draining is over.
    pub async fn abandoned(&mut self) {
        self.reached(Phase::Abandoning).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // If the sender is gone, the worker has ended.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
