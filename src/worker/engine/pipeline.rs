//! A running pipeline: shared by all lanes, immutable.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::settlement::{Account, SinkAccount};
use crate::ops::metrics::Component;
use crate::sink::RunningSink;
use crate::stage::{Order, Stage};

/// Events in flight per dark pipeline. Further events miss that pipeline: dark load never delays the live one.
pub const DARK_BACKLOG: usize = 4096;

pub struct Pipeline {
    pub name: String,
    /// Index among all pipelines of the worker.
    pub index: usize,
    pub stages: Vec<StageSlot>,
    pub sinks: Vec<SinkSlot>,
    pub account: Arc<Account>,
    pub order: Order,
    /// Prefix of every channel.
    pub prefix: String,
    /// In dark mode the source does not wait for this pipeline.
    pub dark: Option<Arc<Semaphore>>,
}

/// A stage at its place in a pipeline.
pub struct StageSlot {
    pub name: String,
    pub stage: Arc<dyn Stage>,
    pub metrics: Arc<Component>,
}

/// A sink at its place in a pipeline.
pub struct SinkSlot {
    pub name: String,
    /// Index into the worker's sinks.
    pub sink: usize,
    pub running: Arc<dyn RunningSink>,
    pub required: bool,
    pub metrics: Arc<Component>,
}

/// What the settlement of an event needs of a pipeline.
pub fn account(source: &str, pipeline: &str, sinks: &[SinkSlot]) -> Arc<Account> {
    let sinks = sinks.iter().map(|slot| SinkAccount {
        name: slot.name.clone(),
        required: slot.required,
        metrics: Arc::clone(&slot.metrics),
    });
    Arc::new(Account {
        source: source.to_owned(),
        pipeline: pipeline.to_owned(),
        sinks: sinks.collect(),
    })
}

impl Pipeline {
    /// Do all its sinks settle events in the order they are given? Then no event has to wait in a lane.
    pub fn keeps_order(&self) -> bool {
        self.sinks
            .iter()
            .filter(|slot| slot.required)
            .all(|slot| slot.running.keeps_order())
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pipeline {}", self.name)
    }
}
