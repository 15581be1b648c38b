//! What is wrong with a broker just now: told when it begins, when it becomes something else, and when it is over; not at every attempt.

#[derive(Debug, Default)]
pub struct Trouble(Option<String>);

impl Trouble {
    /// It did not work; `then` is what happens now.
    pub fn tell(&mut self, source: &str, error: String, then: &str) {
        if self.0.as_ref() != Some(&error) {
            tracing::warn!("source {source}: {error}; {then}");
            self.0 = Some(error);
        }
    }

    /// It works. Did it not before?
    pub fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}
