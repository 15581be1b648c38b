//! The shared-memory zone: channels, messages, worker slots and counters.
//!
//! One [`Zone`] per nginx; each nginx worker process claims a [`Worker`] slot in it and does everything through that.
//! All calls are synchronous and short; no call blocks on another process for longer than a few dozen memory writes.

mod api;
mod worker;

pub use api::*;
pub use worker::{Draft, Worker, Zone, ZoneError};
