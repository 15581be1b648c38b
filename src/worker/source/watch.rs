//! Tasks beside a source that wait for its broker.

use std::future::Future;

use tokio::task::{AbortHandle, spawn_local};

/// Tasks that end with their source: a task waiting for a message that will never be taken must not hold up the thread.
#[derive(Debug, Default)]
pub struct Watches(Vec<AbortHandle>);

impl Watches {
    pub fn spawn(&mut self, watch: impl Future<Output = ()> + 'static) {
        self.0.retain(|watch| !watch.is_finished());
        self.0.push(spawn_local(watch).abort_handle());
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}
