//! `validate`, `test`, `graph`: inspect a configuration without running it.

use std::path::Path;
use std::process::ExitCode;

use super::{Outcome, load, refuse};
use crate::config::{self, Config, PipelineSpec};
use crate::source::{Guarantee, Source};

pub fn validate(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    for warning in &config.warnings {
        eprintln!("{}: warning: {warning}", path.display());
    }
    println!("{}: ok", path.display());
    describe(&config).iter().for_each(|line| println!("  {line}"));
    ExitCode::SUCCESS
}

/// One line per pipeline, with its guarantees.
fn describe(config: &Config) -> Vec<String> {
    let line = |spec: &PipelineSpec| {
        let source = &config.sources[spec.source];
        let stages = spec.stages.iter().map(|&index| config.stages[index].name.as_str());
        let way: Vec<&str> = std::iter::once(source.name.as_str()).chain(stages).collect();
        let sinks = spec.sinks.iter().map(|&index| config.sinks[index].name.as_str());
        let sinks: Vec<&str> = sinks.collect();
        let promise = if spec.is_dark {
            "dark: best effort".to_owned()
        } else {
            promise(&*source.component)
        };
        format!(
            "{}: {} -> {} ({promise})",
            spec.name,
            way.join(" -> "),
            sinks.join(", ")
        )
    };
    config.pipelines.iter().map(line).collect()
}

fn promise(source: &dyn Source) -> String {
    let mut promise = match source.guarantee() {
        Guarantee::AtLeastOnce => "at least once",
        Guarantee::Unacknowledged => "at least once for what was answered with 2xx",
        Guarantee::BestEffort => "best effort",
    }
    .to_owned();
    if !source.gives_ids() {
        promise += ", duplicates possible";
    }
    if !source.keeps_order() {
        promise += ", order not kept";
    }
    promise
}

pub fn test(path: &Path, names: &[String]) -> Outcome {
    let config = load(path)?;
    if let Some(unknown) = names
        .iter()
        .find(|name| !config.tests.iter().any(|test| test.name == **name))
    {
        return Err(format!("{}: there is no test \"{unknown}\"", path.display()));
    }
    let chosen = config
        .tests
        .iter()
        .filter(|test| names.is_empty() || names.contains(&test.name));
    let (mut passed, mut failed) = (0, 0);
    for test in chosen {
        let wrong = test.run(&config);
        if wrong.is_empty() {
            passed += 1;
            println!("ok      {}", test.name);
        } else {
            failed += 1;
            println!("FAILED  {}", test.name);
            wrong.iter().for_each(|difference| println!("    {difference}"));
        }
    }
    println!("{passed} passed, {failed} failed");
    if passed + failed == 0 {
        return Err(format!("{}: there is no [test]", path.display()));
    }
    if failed == 0 { Ok(()) } else { Err(String::new()) }
}

pub fn graph(path: &Path) -> Outcome {
    let config = load(path)?;
    println!("digraph worker {{\n  rankdir = LR\n  node [shape = box, fontname = sans-serif]");
    for source in &config.sources {
        let promise = promise(&*source.component);
        println!(
            "  \"source {0}\" [label = \"{0}\\n{1}\\n{promise}\", style = bold]",
            source.name, source.component_type
        );
    }
    for sink in &config.sinks {
        println!(
            "  \"sink {0}\" [label = \"{0}\\n{1}\", style = bold]",
            sink.name, sink.component_type
        );
    }
    for spec in &config.pipelines {
        let style = if spec.is_dark { ", style = dashed" } else { "" };
        let mut last = format!("source {}", config.sources[spec.source].name);
        for &stage in &spec.stages {
            let named = &config.stages[stage];
            let node = format!("{} {}", spec.name, named.name);
            println!("  \"{node}\" [label = \"{}\\n{}\"]", named.name, named.component_type);
            println!("  \"{last}\" -> \"{node}\" [label = \"{}\"{style}]", spec.name);
            last = node;
        }
        for &sink in &spec.sinks {
            println!(
                "  \"{last}\" -> \"sink {}\" [label = \"{}{}\"{style}]",
                config.sinks[sink].name,
                spec.name,
                prefix(spec)
            );
        }
    }
    println!("}}");
    Ok(())
}

fn prefix(spec: &PipelineSpec) -> String {
    if spec.prefix.is_empty() {
        String::new()
    } else {
        format!(" {}*", spec.prefix)
    }
}
