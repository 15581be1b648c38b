//! The worker: takes events from a source, runs them through a pipeline of stages once, and publishes the resulting
//! bytes to nginx. An event is acknowledged at its source only when every required sink has accepted it.
//!
//! # Layout
//!
//! * [`cli`]: the commands. `main.rs` only calls it.
//! * [`config`]: the TOML file; every mistake is reported. `section` is the typed reader, `value` parses single values,
//!   `spec` has what the file names, `cycle` finds sinks that feed their own source.
//! * Data: [`event`] (an event and its id), [`field`] (field paths and templates), [`json`] (lenient, exact JSON
//!   reading), [`clock`].
//! * Components, one file each, with configuration, execution and tests, registered in the `KINDS` table of their
//!   directory: [`source`], [`stage`], [`sink`].
//! * [`engine`]: threads, start and stop. `feed` takes events from a source to the lanes, `lane` runs stages and
//!   delivers, `settlement` waits for the sinks, `lane_thread` is the thread a lane shares with other tasks, `order`
//!   finds the order key, `dead_letter` is the dead-letter file, `pipeline` what all lanes share of a pipeline.
//!   Components see `feed`, `stop` and `spawn` of it, never the engine itself.
//! * Delivery: [`finalizer`] (reports an event's outcome to its source), [`fence`] (until when an event may be sent),
//!   [`credit`] (bound on events in flight), [`watermark`] (position below which all events are settled),
//!   [`checkpoint`] (durable positions), [`retry`] (back-off).
//! * [`ops`]: metrics and the admin address. [`server`] is the HTTP server under it and under `http_in`, [`client`] the
//!   client under sinks, alerts and commands. [`switch`]: pipeline parts turned on and off at run time.
//!   [`jwks`]: keeps a key file of nginx equal to what an identity provider has. [`test_servers`]: servers for `bench`
//!   and tests. [`pipeline_test`]: tests in the configuration. [`broker_tls`]:
//!   certificates for brokers.

pub mod broker_tls;
pub mod checkpoint;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod credit;
pub mod engine;
pub mod event;
pub mod fence;
pub mod field;
pub mod finalizer;
pub mod json;
pub mod jwks;
pub mod ops;
pub mod pipeline_test;
pub mod redis_link;
pub mod retry;
pub mod server;
pub mod sink;
pub mod source;
pub mod stage;
pub mod switch;
pub mod test_servers;
pub mod watermark;

#[cfg(test)]
mod testing;
