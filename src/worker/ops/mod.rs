//! What operators look at.

pub mod admin;
pub mod metrics;
