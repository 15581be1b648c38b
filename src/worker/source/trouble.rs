//! A broker's current failure: logged when it begins, changes and ends; not at every attempt.

#[derive(Debug, Default)]
pub struct Trouble(Option<String>);

impl Trouble {
    /// Reports a failure; `then` is the action that follows.
    pub fn tell(&mut self, source: &str, error: String, then: &str) {
        if self.0.as_ref() != Some(&error) {
            tracing::warn!("source {source}: {error}; {then}");
            self.0 = Some(error);
        }
    }

    /// Reports success. Was there a failure before?
    pub fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}
