//! The worker: takes events from a source, runs them through a pipeline of stages once, and publishes the finished
//! bytes to nginx. An event is acknowledged at its source only when every required sink has taken it.
//!
//! # Layout
//!
//! * [`cli`]: the commands. `main.rs` only calls it.
//! * [`config`]: the TOML file, read with every mistake named. `section` is the typed reader, `value` how values are written.
//! * What flows: [`event`] (an event and its id), [`field`] (paths into it and templates of them), [`json`] (how it is read), [`clock`].
//! * Components, one file each, each with its configuration, its run and its tests, registered in the `KINDS` table of its directory:
//!   [`source`], [`stage`], [`sink`].
//! * [`engine`]: threads, start and stop. `lane` runs stages and delivers, `lane_thread` is what shares its thread, `order` finds the order key, `dead_letter` is the dead-letter file,
//!   `pipeline` what a lane works through.
//! * Delivery: [`finalizer`] (who is told how an event went), [`fence`] (who may still send it), [`credit`] (how much is in flight), [`watermark`] (how far all
//!   is settled), [`checkpoint`] (durable positions), [`retry`] (back-off).
//! * [`ops`]: metrics and the admin address. [`server`] is the HTTP server under it and under `http_in`, [`client`] the client under sinks, alerts and
//!   commands. [`switch`]: what can be turned on and off while it runs. [`test_servers`]: servers for `bench` and tests. [`pipeline_test`]: tests in the
//!   configuration. [`broker_tls`]: certificates for brokers.

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
