//! A pipeline as it runs: shared by all lanes, unchanging.

use std::fmt;
use std::sync::Arc;

use crate::ops::metrics::Component;
use crate::stage::{Order, Stage};

pub struct Pipeline {
    pub name: String,
    /// Among all pipelines of the worker.
    pub index: usize,
    pub stages: Vec<StageSlot>,
    pub sinks: Vec<SinkSlot>,
    pub order: Order,
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
    pub required: bool,
    pub metrics: Arc<Component>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pipeline {}", self.name)
    }
}
