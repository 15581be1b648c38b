//! The final reports of the engine's threads and tasks.

use std::io;

use tokio::sync::mpsc;

/// A thread's final report.
pub enum Ended {
    Source { name: String, result: io::Result<()> },
    Lane(usize),
}

/// Sends its message when dropped, thus on every path.
pub struct Report(Option<(mpsc::UnboundedSender<Ended>, Ended)>);

impl Report {
    pub fn of_lane(number: usize, ended: mpsc::UnboundedSender<Ended>) -> Self {
        Self(Some((ended, Ended::Lane(number))))
    }

    pub fn of_source(name: String, ended: mpsc::UnboundedSender<Ended>) -> Self {
        let result = Err(io::Error::other("it panicked"));
        Self(Some((ended, Ended::Source { name, result })))
    }

    /// Reports a regular end.
    pub fn tell(mut self, result: io::Result<()>) {
        match (&mut self.0, result) {
            (Some((_, Ended::Source { result: reported, .. })), result) => *reported = result,
            // A lane ends well when all sources have dropped it, which may precede the report of their own end.
            (Some((_, Ended::Lane(_))), Ok(())) => self.0 = None,
            _ => {}
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some((ended, ending)) = self.0.take() {
            let _ = ended.send(ending);
        }
    }
}
