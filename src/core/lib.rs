//! What the push stream module knows that has nothing to do with nginx.
//!
//! # Layout
//!
//! * [`wire`]: bytes in, bytes out. Channel paths, templates, EventSource frames, statistics formats, HTTP dates.
//! * [`store`]: the shared-memory zone. Channels, messages, worker slots, counters; robust against the death of any
//!   process at any instruction.
//!
//! Neither knows nginx, so everything here runs under plain `cargo test`. The store asks [`wire::event_id`] for the order of two
//! ids; beside that they do not know each other.

pub mod store;
pub mod wire;
