//! What waits for a broker beside a source.

use std::future::Future;

use tokio::task::{AbortHandle, spawn_local};

/// Tasks that end with the source that started them: a thread is not held up by one that waits for a message nobody will take.
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
