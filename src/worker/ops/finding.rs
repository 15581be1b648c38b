//! What commands ask of components: checks with their findings, and other operations.

use std::future::Future;
use std::pin::Pin;

/// Checks whose findings `doctor` prints.
pub type Examination<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;

/// The error is text for the operator.
pub type Operation<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + 'a>>;

/// Findings other than `Good` include the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Good(String),
    /// It works at present, but may fail under load or after a fault.
    Warning(String),
    /// It cannot work.
    Bad(String),
}
