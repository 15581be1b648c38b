//! What a component may spawn with when it starts.

use std::future::Future;
use std::pin::Pin;

/// A future that is created on the thread where it runs.
pub type Task = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The engine's threads, to a component.
pub trait Spawn {
    /// Runs this task on one of the threads, watched under this name.
    fn spawn(&mut self, name: String, task: Task);
}
