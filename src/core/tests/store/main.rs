//! The store under several processes. The test process forks children that use the zone and die in it.

mod basics;
mod commands;
mod counters;
#[cfg(feature = "fault-points")]
mod deaths;
mod eviction;
mod full;
mod handover;
mod listing;
mod model;
mod order;
mod processes;
mod publishing;
#[cfg(feature = "fault-points")]
mod shortages;
mod threads;
mod zone;
