//! The result of a check, printed by `doctor`.

/// Findings other than `Good` include the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works at present, but may fail under load or after a fault.
    Warning(String),
    /// It cannot work.
    Bad(String),
}
