//! Components and pipelines as the file names them.

use std::sync::Arc;

use super::section::Located;
use crate::switch::Switch;

/// A component with the name the user gave it.
pub struct Named<T> {
    pub name: String,
    pub component_type: &'static str,
    pub component: T,
    /// Byte position of its table in the file.
    pub at: usize,
}

/// A pipeline, its components by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSpec {
    pub name: String,
    pub source: usize,
    pub stages: Vec<usize>,
    pub sinks: Vec<usize>,
    /// Prefix of every channel: `prefix = "dark."`
    pub prefix: String,
    /// `mode = "dark"`: the source does not wait for it.
    pub is_dark: bool,
}

/// A pipeline and the positions of its parts in the file.
pub struct LocatedSpec {
    pub spec: PipelineSpec,
    pub from: Located<String>,
    pub stages: Vec<Located<String>>,
    pub sinks: Vec<Located<String>>,
    /// Switch that decides which events enter.
    pub gate: Option<Arc<Switch>>,
    /// Must the source hear of each event only after it was published?
    pub end_to_end: Option<Located<bool>>,
}
