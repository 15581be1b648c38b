//! The parts of the push stream module that do not depend on nginx.
//!
//! # Layout
//!
//! * [`wire`]: bytes in, bytes out. Channel paths, templates, EventSource frames, statistics formats, HTTP dates.
//! * [`store`]: the shared-memory zone. Channels, messages, worker slots, counters; robust against the death of any
//!   process at any instruction.
//! * [`token`]: access tokens. Key files, signatures, claims, and the channels that they grant.
//!
//! None depends on nginx, so everything here runs under plain `cargo test`. The store uses [`wire::event_id`] to
//! compare event ids; otherwise they are independent.

pub mod store;
pub mod token;
pub mod wire;
