//! Does a sink's output come back through a source?
//!
//! Such an event would circulate for ever. Sources and sinks report their [`Endpoint`]; the cycle may run over several
//! pipelines.

use std::path::Path;
use std::sync::Arc;

use super::endpoint::{Endpoint, resolved};
use super::section::Problems;
use super::spec::{LocatedSpec, Named};
use crate::sink::Sink;
use crate::source::Source;

/// Reports each sink of a pipeline that feeds its own source, directly or through other pipelines.
pub(super) fn refuse(
    pipelines: &[LocatedSpec],
    sources: &[Named<Box<dyn Source>>],
    sinks: &[Named<Arc<dyn Sink>>],
    park_path: &Path,
    problems: &Problems,
) {
    let read: Vec<Option<Endpoint>> = sources.iter().map(|source| source.component.reads()).collect();
    let fed_by = |sink: usize| -> Vec<(usize, &Endpoint)> {
        let written = sinks[sink].component.writes();
        let fed = read
            .iter()
            .enumerate()
            .filter_map(|(index, place)| Some((index, place.as_ref()?)));
        fed.filter(|(_, place)| written.iter().any(|one| one.feeds(place)))
            .collect()
    };
    // Steps from source to source, over each sink of each pipeline.
    let mut steps = Vec::new();
    for (pipeline, located) in pipelines.iter().enumerate() {
        for (position, &sink) in located.spec.sinks.iter().enumerate() {
            for (to, place) in fed_by(sink) {
                steps.push((located.spec.source, to, pipeline, position, place));
            }
        }
    }
    for &(from, to, pipeline, position, place) in &steps {
        let Some(way) = way_between(to, from, &steps) else {
            continue;
        };
        let name = &pipelines[pipeline].sinks[position];
        let source = &sources[to].name;
        let mut text = format!(
            "a cycle: \"{}\" writes to {place}, which source \"{source}\" reads",
            name.value
        );
        for pipeline in way {
            text += &format!(", and pipeline \"{}\" leads back", pipelines[pipeline].spec.name);
        }
        problems.add(name.at, name.key.clone(), text);
    }
    for (source, place) in sources.iter().zip(&read) {
        let parked = Endpoint::File(resolved(park_path));
        if matches!(place, Some(Endpoint::File(path)) if Endpoint::File(resolved(path)) == parked) {
            problems.add(
                source.at,
                format!("source.{}.path", source.name),
                format!(
                    "a cycle: {} is where this worker parks what it cannot deliver; \"push-stream-worker park retry\" tries that again",
                    park_path.display()
                ),
            );
        }
    }
}

/// The pipelines on the way from one source to another; none if they are the same.
fn way_between(from: usize, to: usize, steps: &[(usize, usize, usize, usize, &Endpoint)]) -> Option<Vec<usize>> {
    let mut ways = vec![(from, Vec::new())];
    let mut seen = vec![from];
    while let Some((at, way)) = ways.pop() {
        if at == to {
            return Some(way);
        }
        for &(_, next, pipeline, ..) in steps.iter().filter(|step| step.0 == at) {
            if !seen.contains(&next) {
                seen.push(next);
                let longer = way.iter().copied().chain([pipeline]).collect();
                ways.push((next, longer));
            }
        }
    }
    None
}
