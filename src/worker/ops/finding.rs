//! The result of a check, printed by `doctor`.

/// Not-good findings say what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works, but not under load or after a fault.
    Warning(String),
    /// It cannot work.
    Bad(String),
}
