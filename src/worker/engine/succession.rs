//! The order of sources over a reload: each begins when its predecessors have ended.

use std::io;

use tokio::sync::watch;

use crate::source::{Context, Source};

/// Earlier sources by name, to wait for.
pub type Predecessors = Vec<(String, watch::Receiver<()>)>;

/// Waits for the earlier source of this name; a new name may take over another source's work, so it waits for all.
async fn wait_for_predecessors(name: &str, mut predecessors: Predecessors) {
    if predecessors.iter().any(|(known, _)| known == name) {
        predecessors.retain(|(known, _)| known == name);
    }
    for (_, mut presence) in predecessors {
        // Nothing is ever sent: the wait ends with the source.
        while presence.changed().await.is_ok() {}
    }
}

/// A source that begins when its predecessors have ended.
pub struct Succeeding {
    pub source: Box<dyn Source>,
    pub predecessors: Predecessors,
    /// Dropped at the end, so that the successor can begin.
    pub presence: watch::Sender<()>,
}

impl Succeeding {
    pub async fn run(self, context: Context) -> io::Result<()> {
        wait_for_predecessors(&context.name, self.predecessors).await;
        let result = match context.stop.is_requested() {
            true => Ok(()),
            false => self.source.run(context).await,
        };
        drop(self.presence);
        result
    }
}
