//! Operation: metrics, health, alerts, taps.

pub mod admin;
pub mod alert;
pub mod finding;
pub mod metrics;
pub mod parked;
#[cfg(feature = "sentry")]
pub mod sentry;
pub mod statsd;
pub mod tap;
pub mod watchdog;
