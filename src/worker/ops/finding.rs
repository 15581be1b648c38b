//! What a look at something has shown: `doctor` prints it.

/// With what to do about it, unless it is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works, until something happens.
    Warning(String),
    /// It cannot work.
    Bad(String),
}
