//! The key of subjects, for all processes: made by the master, before the first process that needs it.

use std::sync::OnceLock;

use push_stream_core::token::subject::{Subject, SubjectKey};

/// Goes on over a reload, as the readers that it names do: new processes are forked by the same master.
static KEY: OnceLock<SubjectKey> = OnceLock::new();

/// Makes the key, unless an earlier configuration did. False if the system has no random numbers.
pub fn prepare() -> bool {
    KEY.get().is_some() || SubjectKey::random().is_some_and(|key| KEY.set(key).is_ok())
}

/// A subject as it is kept with readers; None in a process that no configuration has given tokens.
pub fn hash(subject: &str) -> Option<Subject> {
    KEY.get().map(|key| key.hash(subject))
}
