//! The configuration file.
//!
//! Named `[source]`, `[stage]` and `[sink]` tables, and ordered `[pipeline]` lists of their names. [`load`] reads the
//! file and returns a [`Config`] that can run, or every mistake found.

mod cycle;
pub mod endpoint;
pub mod section;
mod spec;
pub mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use crate::ops::alert::Alert;
use crate::ops::statsd::Statsd;
use crate::pipeline_test::PipelineTest;
use crate::sink::{self, Sink};
use crate::source::{self, Guarantee, Source};
use crate::stage::gate::Gate;
use crate::stage::{self, Stage};
use crate::switch::live::{self, Live, Switches};
use section::{Located, Problem, Problems, Section};
use spec::LocatedSpec;
pub use spec::{Named, PipelineSpec};

/// Lanes are threads; a larger number is a typing mistake.
const MAX_LANES: usize = 256;

/// A valid configuration.
pub struct Config {
    /// The configuration text.
    pub text: String,
    /// Directory of checkpoints, spools and the lock: `state_dir = "state"`.
    pub state_dir: PathBuf,
    /// Threads that run stages and deliver: `[engine] lanes`. Default: processors minus one, at least 1.
    pub lanes: usize,
    /// Time to finish events in flight at a stop: `[engine] drain = "10s"`.
    pub drain: Duration,
    /// The dead-letter file: `[park] path`. Default: `parked.ndjson` in `state_dir`.
    pub park_path: PathBuf,
    /// Address of the metrics: `[admin] listen`. Default: none.
    pub admin: Option<SocketAddr>,
    /// May dead letters be retried there: `[admin] retry = true`. Default: no.
    pub admin_retry: bool,
    /// `[statsd]`
    pub statsd: Option<Statsd>,
    /// `[alert.*]`
    pub alerts: Vec<Alert>,
    /// `[switch.*]` and `[switches]`
    pub switches: Arc<Switches>,
    /// `[test.*]`
    pub tests: Vec<PipelineTest>,
    pub sources: Vec<Named<Box<dyn Source>>>,
    pub stages: Vec<Named<Arc<dyn Stage>>>,
    pub sinks: Vec<Named<Arc<dyn Sink>>>,
    pub pipelines: Vec<PipelineSpec>,
    /// Legal settings that are probably mistakes.
    pub warnings: Vec<String>,
}

/// Reading the configuration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    /// Shown one per line, as `file:line: key: text`.
    #[error("{}", show(.path, .problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

fn show(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| format!("{}:{problem}", path.display()))
        .collect();
    lines.join("\n")
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Config, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    parse(&text).map_err(|problems| Error::Invalid {
        path: path.to_owned(),
        problems,
    })
}

/// Reads a configuration text.
pub fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let problems = Problems::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        problems.add(error.span().map_or(0, |span| span.start), "", told(error, text));
    }
    let root = Section::root(&problems, table.get_ref());
    // After a syntax error, keys may be missing from the parsed part; its other values can still be checked.
    let config = read(text, &root, &problems, errors.is_empty());
    match (config, problems.into_sorted()) {
        (Some(config), list) if list.is_empty() => Ok(config),
        (_, list) => Err(list),
    }
}

/// The syntax error as text. The parser does not name a duplicate key.
fn told(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(span)) {
        Some(key) if message == "duplicate key" => format!("{message} \"{}\"", key.trim_matches(['"', '\''])),
        _ => message,
    }
}

fn read(text: &str, root: &Section<'_>, problems: &Problems, is_whole: bool) -> Option<Config> {
    let state_dir = root.or("state_dir", PathBuf::from("state"));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let default_lanes = processors.saturating_sub(1).max(1);
    let engine = root.table("engine", |engine| {
        let lanes = engine.or("lanes", default_lanes);
        if !(1..=MAX_LANES).contains(&lanes) {
            engine.complain_at("lanes", format!("must be from 1 to {MAX_LANES}"));
        }
        (lanes, engine.or("drain", Duration::from_secs(10)))
    });
    let (lanes, drain) = engine.unwrap_or((default_lanes, Duration::from_secs(10)));
    let park_path = root.table("park", |park| park.optional("path")).flatten();
    let admin = root.table("admin", |admin| (admin.required("listen"), admin.or("retry", false)));
    let (admin, admin_retry) = admin.unwrap_or_default();
    let statsd = root.table("statsd", Statsd::read);
    let alerts = read_all(root, "alert", Alert::read);

    let sources = read_kind(
        root,
        "source",
        &lookup(source::KINDS, |kind| (kind.name, kind.read)),
        is_whole,
    );
    let stages = read_kind(
        root,
        "stage",
        &lookup(stage::KINDS, |kind| (kind.name, kind.read)),
        false,
    );
    let sinks = read_kind(
        root,
        "sink",
        &lookup(sink::KINDS, |kind| (kind.name, kind.read)),
        is_whole,
    );
    let names = Names {
        sources: sources.names(),
        stages: stages.names(),
        sinks: sinks.names(),
    };
    let specs = root.table("pipeline", |table| {
        let read = |section: Section<'_>| {
            let spec = read_pipeline(&section, &names, problems);
            section.refuse_unknown();
            spec
        };
        table.named_tables().into_iter().map(read).collect::<Vec<_>>()
    });
    if specs.as_ref().is_none_or(Vec::is_empty) && is_whole {
        root.complain("there is no [pipeline]");
    }
    let switches = read_switches(root, problems);
    let pipeline_names: Vec<String> = specs
        .iter()
        .flatten()
        .flatten()
        .map(|located| located.spec.name.clone())
        .collect();
    let tests = read_all(root, "test", |section| PipelineTest::read(section, &pipeline_names));
    root.refuse_unknown();

    let complete = (sources.complete(), stages.complete(), sinks.complete());
    let pipelines: Option<Vec<LocatedSpec>> = specs.unwrap_or_default().into_iter().collect();
    let ((Some(sources), Some(mut stages), Some(sinks)), Some(mut pipelines)) = (complete, pipelines) else {
        return None;
    };
    for pipeline in &pipelines {
        check_pipeline(pipeline, &sources, &stages, &sinks, problems);
    }
    let park_path = park_path.unwrap_or_else(|| state_dir.join("parked.ndjson"));
    cycle::refuse(&pipelines, &sources, &sinks, &park_path, problems);
    check_addresses(&sources, admin, problems);
    let warnings = check_use(problems, &pipelines, &sources, &stages, &sinks);
    for pipeline in &mut pipelines {
        insert_gate(pipeline, &mut stages);
    }
    Some(Config {
        text: text.to_owned(),
        statsd: statsd.flatten(),
        alerts: alerts?,
        switches: Arc::new(switches?),
        tests: tests?,
        park_path,
        state_dir,
        lanes,
        drain,
        admin,
        admin_retry,
        sources,
        stages,
        sinks,
        pipelines: pipelines.into_iter().map(|pipeline| pipeline.spec).collect(),
        warnings,
    })
}

/// Components by the name of their type.
type Lookup<T> = BTreeMap<&'static str, fn(&Section<'_>) -> Option<T>>;

type Reader<T> = fn(&Section<'_>) -> Option<T>;

fn lookup<K, T>(kinds: &[K], entry: impl Fn(&K) -> (&'static str, Reader<T>)) -> Lookup<T> {
    kinds.iter().map(entry).collect()
}

/// All components of one kind, in the order of the file; `None` for those with mistakes.
struct Components<T>(Vec<(String, Option<Named<T>>)>);

impl<T> Components<T> {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    fn complete(self) -> Option<Vec<Named<T>>> {
        self.0.into_iter().map(|(_, component)| component).collect()
    }
}

fn read_kind<T>(root: &Section<'_>, key: &'static str, kinds: &Lookup<T>, is_required: bool) -> Components<T> {
    let components = root.table(key, |table| {
        let sections = table.named_tables();
        let components = sections.into_iter().map(|section| {
            let component = read_component(&section, kinds);
            (section.name().to_owned(), component)
        });
        Components(components.collect())
    });
    let components = components.unwrap_or(Components(Vec::new()));
    if is_required && components.0.is_empty() {
        root.complain(format!("there is no [{key}]"));
    }
    components
}

fn read_component<T>(section: &Section<'_>, kinds: &Lookup<T>) -> Option<Named<T>> {
    let kind: String = section.required("type")?;
    let Some((&component_type, read)) = kinds.get_key_value(kind.as_str()) else {
        let names: Vec<_> = kinds.keys().map(|name| format!("\"{name}\"")).collect();
        section.complain_at("type", format!("\"{kind}\" is not one of {}", names.join(", ")));
        return None;
    };
    let component = read(section);
    section.refuse_unknown();
    Some(Named {
        name: section.name().to_owned(),
        component_type,
        component: component?,
        at: section.at(),
    })
}

/// All tables below a key; `None` if one has mistakes.
fn read_all<T>(root: &Section<'_>, key: &'static str, read: impl Fn(&Section<'_>) -> Option<T>) -> Option<Vec<T>> {
    let all = root.table(key, |table| {
        let sections = table.named_tables().into_iter().map(|section| {
            let item = read(&section);
            section.refuse_unknown();
            item
        });
        sections.collect::<Vec<_>>()
    });
    all.unwrap_or_default().into_iter().collect()
}

/// `[switch.*]` for the components that use them, and `[switches]`.
fn read_switches(root: &Section<'_>, problems: &Problems) -> Option<Switches> {
    let live = root.table("switches", Live::read).flatten();
    let mut all = BTreeMap::new();
    let defined = read_all(root, "switch", |section| {
        let (state, by) = live::read(section);
        Some((section.name().to_owned(), state, by))
    })?;
    let asked = problems.switches();
    for (switch, at, key) in &asked {
        match defined.iter().find(|(name, ..)| name == switch.name()) {
            Some((name, state, by)) => {
                switch.define(state.clone(), by.clone());
                all.insert(name.clone(), Arc::clone(switch));
            }
            None => problems.add(*at, key.clone(), format!("there is no [switch.{}]", switch.name())),
        }
    }
    for (name, ..) in &defined {
        if !all.contains_key(name) {
            root.complain_at("switch", format!("nothing asks for switch \"{name}\""));
        }
    }
    Some(Switches { all, live })
}

struct Names {
    sources: Vec<String>,
    stages: Vec<String>,
    sinks: Vec<String>,
}

fn read_pipeline(section: &Section<'_>, names: &Names, problems: &Problems) -> Option<LocatedSpec> {
    let find = |kind: &str, known: &[String], name: &Located<String>| {
        let found = known.iter().position(|known| *known == name.value);
        if found.is_none() {
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let text = format!("there is no {kind} \"{}\"; there is: {known}", name.value);
            problems.add(name.at, name.key.clone(), text);
        }
        found
    };
    let all = |kind: &str, known: &[String], list: &[Located<String>]| {
        let found: Vec<_> = list.iter().map(|name| find(kind, known, name)).collect();
        found.into_iter().collect::<Option<Vec<_>>>()
    };
    let from = section.required::<Located<String>>("from");
    let stages = section.or::<Vec<Located<String>>>("stages", Vec::new());
    let to = section.required::<Vec<Located<String>>>("to");
    if to.as_ref().is_some_and(Vec::is_empty) {
        section.complain_at("to", "needs at least one sink");
    }
    let source = from.as_ref().and_then(|from| find("source", &names.sources, from));
    let is_dark = section.choice("mode", &[("live", false), ("dark", true)], false);
    let prefix = section.or("prefix", String::new());
    if prefix.contains(['/', '*']) || prefix.contains(char::is_control) {
        section.complain_at("prefix", "cannot be part of a channel id");
    }
    let end_to_end = section.optional::<Located<bool>>("end_to_end");
    let gate = section.switch("gate");
    let stage_indexes = all("stage", &names.stages, &stages);
    let sinks = to.unwrap_or_default();
    let sink_indexes = all("sink", &names.sinks, &sinks);
    let spec = PipelineSpec {
        name: section.name().to_owned(),
        source: source?,
        stages: stage_indexes?,
        sinks: sink_indexes?,
        prefix,
        is_dark,
    };
    Some(LocatedSpec {
        spec,
        from: from?,
        stages,
        sinks,
        gate,
        end_to_end: end_to_end.filter(|wanted| wanted.value),
    })
}

/// Inserts a gate right after the stage that parses the fields.
fn insert_gate(pipeline: &mut LocatedSpec, stages: &mut Vec<Named<Arc<dyn Stage>>>) {
    let Some(switch) = pipeline.gate.take() else { return };
    let parsed = pipeline
        .spec
        .stages
        .iter()
        .position(|&stage| stages[stage].component.gives_fields());
    stages.push(Named {
        name: format!("gate:{}", switch.name()),
        component_type: "gate",
        component: Arc::new(Gate::new(switch)),
        at: 0,
    });
    pipeline
        .spec
        .stages
        .insert(parsed.map_or(0, |at| at + 1), stages.len() - 1);
}

/// Do the parts of a pipeline fit together?
fn check_pipeline(
    pipeline: &LocatedSpec,
    sources: &[Named<Box<dyn Source>>],
    stages: &[Named<Arc<dyn Stage>>],
    sinks: &[Named<Arc<dyn Sink>>],
    problems: &Problems,
) {
    let LocatedSpec {
        spec,
        from,
        stages: stage_names,
        sinks: sink_names,
        end_to_end,
        ..
    } = pipeline;
    let source = &sources[spec.source].component;
    if let Some(wanted) = end_to_end {
        let refuse = |text: String| problems.add(wanted.at, wanted.key.clone(), text);
        if source.guarantee() == Guarantee::BestEffort {
            refuse(format!(
                "source \"{}\" cannot be told what was published: what is in flight at a crash is lost",
                from.value
            ));
        }
        if spec.is_dark {
            refuse("nobody waits for a dark pipeline".to_owned());
        }
        if !spec.sinks.iter().any(|&sink| sinks[sink].component.is_required()) {
            refuse("none of its sinks is required".to_owned());
        }
    }
    let (mut has_fields, mut has_channels) = (false, source.gives_channels());
    for (&index, name) in spec.stages.iter().zip(stage_names) {
        let stage = &stages[index].component;
        if stage.needs_fields() && !has_fields {
            problems.add(
                name.at,
                name.key.clone(),
                format!("\"{}\" needs a parse_json stage before it", name.value),
            );
            // Report it once.
            has_fields = true;
        }
        if stage.needs_ids() && !source.gives_ids() {
            let text = format!("\"{}\" needs ids, and source \"{}\" gives none", name.value, from.value);
            problems.add(name.at, name.key.clone(), text);
        }
        has_fields |= stage.gives_fields();
        has_channels |= stage.gives_channels();
    }
    let mut seen = Vec::new();
    for (&index, name) in spec.sinks.iter().zip(sink_names) {
        if sinks[index].component.needs_channels() && !has_channels {
            problems.add(
                name.at,
                name.key.clone(),
                format!("\"{}\" needs a route stage before it", name.value),
            );
        }
        if sinks[index].component.needs_ids() && !source.gives_ids() {
            let text = format!(
                "\"{}\" is ordered, and source \"{}\" gives no ids: duplicates are possible",
                name.value, from.value
            );
            problems.add(name.at, name.key.clone(), text);
        }
        if seen.contains(&index) {
            problems.add(name.at, name.key.clone(), format!("\"{}\" is there twice", name.value));
        }
        seen.push(index);
    }
}

/// Two listeners at one address would take each other's requests.
fn check_addresses(sources: &[Named<Box<dyn Source>>], admin: Option<SocketAddr>, problems: &Problems) {
    let mut taken: Vec<(SocketAddr, String)> = admin
        .into_iter()
        .map(|address| (address, "[admin]".to_owned()))
        .collect();
    for source in sources {
        let Some(address) = source.component.listens() else {
            continue;
        };
        let overlaps = |other: &SocketAddr| {
            other.port() == address.port()
                && (other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified())
        };
        if let Some((other, owner)) = taken.iter().find(|(other, _)| overlaps(other)) {
            let key = format!("source.{}.listen", source.name);
            problems.add(source.at, key, format!("{address}: {owner} listens at {other} already"));
        }
        taken.push((address, format!("source \"{}\"", source.name)));
    }
}

/// Is everything used? A source without a pipeline would lose all its events.
fn check_use(
    problems: &Problems,
    pipelines: &[LocatedSpec],
    sources: &[Named<Box<dyn Source>>],
    stages: &[Named<Arc<dyn Stage>>],
    sinks: &[Named<Arc<dyn Sink>>],
) -> Vec<String> {
    for (index, source) in sources.iter().enumerate() {
        if !pipelines.iter().any(|pipeline| pipeline.spec.source == index) {
            let key = format!("source.{}", source.name);
            problems.add(source.at, key, format!("no pipeline reads from \"{}\"", source.name));
        }
    }
    let unused_stages = stages
        .iter()
        .enumerate()
        .filter(|(index, _)| !pipelines.iter().any(|pipeline| pipeline.spec.stages.contains(index)));
    let unused_sinks = sinks
        .iter()
        .enumerate()
        .filter(|(index, _)| !pipelines.iter().any(|pipeline| pipeline.spec.sinks.contains(index)));
    let stage_warnings = unused_stages.map(|(_, stage)| format!("stage.{} is in no pipeline", stage.name));
    stage_warnings
        .chain(unused_sinks.map(|(_, sink)| format!("sink.{} is in no pipeline", sink.name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "s"
[source]
a = { type = "stdin" }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["forum.{forum}"] }
[sink]
nginx = { type = "http_push", nodes = ["http://127.0.0.1:1"] }
[pipeline]
p = { from = "a", stages = ["parse", "route"], to = ["nginx"] }
"#;

    fn problems(text: &str) -> Vec<String> {
        match parse(text) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_spool_must_have_room_for_the_largest_body() {
        let intake = |options: &str| {
            GOOD.replace(
                "type = \"stdin\"",
                &format!("type = \"http_in\", listen = \"127.0.0.1:2\", {options}"),
            )
        };
        let small = "ack = \"spooled\", spool_max = \"32KiB\"";
        let found = problems(&intake(small));
        assert!(
            found.len() == 1 && found[0].contains("source.a.spool_max: must be at least max_body (65536B)"),
            "{found:?}"
        );
        assert!(problems(&intake(&format!("{small}, max_body = \"32KiB\""))).is_empty());
    }

    #[test]
    fn a_good_file_becomes_a_configuration_with_defaults() {
        let config = parse(GOOD).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(config.park_path, Path::new("s/parked.ndjson"));
        assert_eq!(config.drain, Duration::from_secs(10));
        let spec = PipelineSpec {
            name: "p".into(),
            source: 0,
            stages: vec![0, 1],
            sinks: vec![0],
            prefix: String::new(),
            is_dark: false,
        };
        assert_eq!(config.pipelines, [spec]);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn the_parts_of_a_pipeline_must_exist_and_fit() {
        let text = GOOD.replace(r#"stages = ["parse", "route"]"#, r#"stages = ["route", "prase"]"#);
        assert_eq!(
            problems(&text),
            ["11: pipeline.p.stages[1]: there is no stage \"prase\"; there is: parse, route"]
        );
        let text = GOOD.replace(r#"stages = ["parse", "route"]"#, r#"stages = ["route"]"#);
        assert_eq!(
            problems(&text),
            ["11: pipeline.p.stages[0]: \"route\" needs a parse_json stage before it"]
        );
        let text = GOOD.replace(
            r#"stages = ["parse", "route"], to = ["nginx"]"#,
            r#"to = ["nginx", "nginx"]"#,
        );
        assert_eq!(
            problems(&text),
            [
                "11: pipeline.p.to[0]: \"nginx\" needs a route stage before it",
                "11: pipeline.p.to[1]: \"nginx\" needs a route stage before it",
                "11: pipeline.p.to[1]: \"nginx\" is there twice",
            ]
        );
    }

    #[test]
    fn who_wants_to_be_told_of_the_end_must_be_one_that_can_be() {
        let best_effort = GOOD.replace("to = [\"nginx\"]", "to = [\"nginx\"], end_to_end = true");
        assert_eq!(
            problems(&best_effort),
            [
                "11: pipeline.p.end_to_end: source \"a\" cannot be told what was published: what is in flight at a crash is lost"
            ]
        );
        let wanted = best_effort.replace("type = \"stdin\"", "type = \"file\", path = \"in\"");
        assert_eq!(problems(&wanted), Vec::<String>::new());
        let dark = wanted.replace("end_to_end = true", "end_to_end = true, mode = \"dark\"");
        assert_eq!(
            problems(&dark),
            ["11: pipeline.p.end_to_end: nobody waits for a dark pipeline"]
        );
    }

    #[test]
    fn mistakes_everywhere_are_all_told_at_once() {
        let text = r#"state_dri = "x"
[engine]
lanes = 0
[source.a]
type = "file"
max_in_flight = "many"
[source.b]
type = "rabbit"
[stage]
fmt = { type = "format" }
[sink]
n = { type = "http_push", nodes = ["ftp://x"], retry = { initail = "1s" } }
[pipeline]
p = { from = "a", to = [] }
"#;
        assert_eq!(
            problems(text),
            [
                "1: state_dri: unknown key, did you mean \"state_dir\"?",
                "3: engine.lanes: must be from 1 to 256",
                "4: source.a.path: is missing",
                "6: source.a.max_in_flight: \"many\" is not a whole number from 0",
                "8: source.b.type: \"rabbit\" is not one of \"amqp\", \"file\", \"http_in\", \"nats\", \"redis_pubsub\", \"redis_streams\", \"stdin\", \"thoonk\"",
                "10: stage.fmt: needs exactly one of fields, template, template_file",
                "12: sink.n.nodes[0]: \"ftp://x\" is not a server (examples: \"http://127.0.0.1:8080\", \"https://push.example.com\", \"unix:/run/nginx/pub.sock\")",
                "12: sink.n.retry.initail: unknown key, did you mean \"initial\"?",
                "14: pipeline.p.to: needs at least one sink",
            ]
        );
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        let found = problems("[source.a]\ntype = \"stdin\"\ntype = \"file\"\n[engine]\n[engine]\n");
        assert!(found.contains(&"3: duplicate key \"type\"".to_owned()), "{found:?}");
        assert!(found.contains(&"5: duplicate key \"engine\"".to_owned()), "{found:?}");
    }

    #[test]
    fn addresses_and_numbers_out_of_range_are_refused_everywhere() {
        let text = r#"
[admin]
listen = "127.0.0.1:0"
[statsd]
address = "127.0.0.1:0"
[alert.a]
when = "lag > NaN"
do = ["webhook"]
webhook = "http://127.0.0.1:70000/x"
[source]
a = { type = "http_in", listen = "127.0.0.1:99999" }
b = { type = "redis_streams", url = "redis://127.0.0.1:0/0", stream = "s", group = "g", max_deaths = 4294967296 }
c = { type = "redis_streams", url = "redis://127.0.0.1:65536/0", stream = "s" }
d = { type = "amqp", url = "amqp://127.0.0.1:0/%2f", queue = "q" }
e = { type = "amqp", url = "amqp://127.0.0.1:65536/%2f", queue = "q", prefetch = 65536 }
f = { type = "nats", url = "nats://127.0.0.1:0", stream = "s" }
g = { type = "nats", url = "nats://127.0.0.1:65536", stream = "s" }
[sink]
h = { type = "http_push", nodes = ["http://127.0.0.1:80800", "http://a:0", "https://[::1]:65536", "http://a:", "http://a:1x"] }
i = { type = "http_push", nodes = ["http://a", "http://A:80/", "unix:/a", "https://a:80", "unix:/a"] }
j = { type = "webhook", url = "http://127.0.0.1:80800/x" }
"#;
        let found = problems(text);
        for line in [
            "3: admin.listen: \"127.0.0.1:0\": there is no port 0",
            "5: statsd.address: \"127.0.0.1:0\": there is no port 0",
            "7: alert.a.when: \"lag > NaN\" is not",
            "9: alert.a.webhook: \"http://127.0.0.1:70000\": \"70000\" is not a port: these are from 1 to 65535",
            "11: source.a.listen: \"127.0.0.1:99999\" is not an address",
            "12: source.b.url: \"redis://127.0.0.1:0/0\": there is no port 0",
            "12: source.b.max_deaths: 4294967296 is larger than 4294967295",
            "13: source.c.url: not a Redis URL",
            "14: source.d.url: \"amqp://127.0.0.1:0/%2f\": there is no port 0",
            "15: source.e.url: not an AMQP URL",
            "15: source.e.prefetch: 65536 is larger than 65535",
            "16: source.f.url: \"nats://127.0.0.1:0\": there is no port 0",
            "17: source.g.url: not a NATS URL",
            "19: sink.h.nodes[0]: \"http://127.0.0.1:80800\": \"80800\" is not a port",
            "19: sink.h.nodes[1]: \"http://a:0\": \"0\" is not a port",
            "19: sink.h.nodes[2]: \"https://[::1]:65536\": \"65536\" is not a port",
            "19: sink.h.nodes[3]: ",
            "19: sink.h.nodes[4]: ",
            "20: sink.i.nodes[1]: \"http://a:80\" is there twice",
            "20: sink.i.nodes[4]: \"unix:/a\" is there twice",
            "21: sink.j.url: \"http://127.0.0.1:80800\": \"80800\" is not a port",
        ] {
            assert!(found.iter().any(|one| one.starts_with(line)), "{line}\n{found:#?}");
        }
        assert!(
            !found.iter().any(|one| one.contains("nodes[3]: \"https://a")),
            "{found:#?}"
        );
    }

    #[test]
    fn two_that_listen_at_one_address_are_refused() {
        let text = GOOD
            .replace("type = \"stdin\" }", "type = \"http_in\", listen = \"127.0.0.1:81\" }\nb = { type = \"http_in\", listen = \"0.0.0.0:81\" }")
            .replace("[pipeline]", "[admin]\nlisten = \"127.0.0.1:82\"\n[pipeline]\nq = { from = \"b\", to = [\"nginx\"], stages = [\"parse\", \"route\"] }");
        assert_eq!(
            problems(&text),
            ["5: source.b.listen: 0.0.0.0:81: source \"a\" listens at 127.0.0.1:81 already"]
        );
    }

    #[test]
    fn what_would_come_back_is_refused() {
        let config = |source: &str, sink: &str, more: &str| {
            let text = GOOD
                .replace("type = \"stdin\"", source)
                .replace("type = \"http_push\", nodes = [\"http://127.0.0.1:1\"]", sink);
            problems(&(text + more))
        };
        let redis = "type = \"redis_streams\", url = \"redis://localhost/1\", stream = \"x\"";
        for (source, sink, place) in [
            (
                "type = \"file\", path = \"/x/a\"",
                "type = \"file\", path = \"/x/a\"",
                "file /x/a",
            ),
            (
                "type = \"file\", path = \"a\"",
                "type = \"file\", path = \"./a\"",
                "file a",
            ),
            (
                "type = \"file\", path = \"a/3000\"",
                "type = \"file\", path = \"a/%Y\"",
                "file a/3000",
            ),
            (
                redis,
                "type = \"redis_stream\", url = \"redis://127.0.0.1:6379/1\", stream = \"x\", keep = \"1h\"",
                "stream x at 127.0.0.1:6379/1",
            ),
            (
                "type = \"http_in\", listen = \"0.0.0.0:81\"",
                "type = \"http_push\", nodes = [\"http://127.0.0.1:1\", \"http://localhost:81\"]",
                "0.0.0.0:81",
            ),
            (
                "type = \"http_in\", listen = \"127.0.0.1:81\"",
                "type = \"webhook\", url = \"http://127.0.0.1:81/x\"",
                "127.0.0.1:81",
            ),
        ] {
            assert_eq!(
                config(source, sink, ""),
                [format!(
                    "11: pipeline.p.to[0]: a cycle: \"nginx\" writes to {place}, which source \"a\" reads"
                )],
                "{sink}"
            );
        }
        for (source, sink) in [
            ("type = \"file\", path = \"a\"", "type = \"file\", path = \"b\""),
            ("type = \"file\", path = \"a/2020\"", "type = \"file\", path = \"a/%Y\""),
            (
                redis,
                "type = \"redis_stream\", url = \"redis://localhost/2\", stream = \"x\", keep = \"1h\"",
            ),
            (
                redis,
                "type = \"redis_stream\", url = \"redis://localhost/1\", stream = \"y\", keep = \"1h\"",
            ),
        ] {
            assert_eq!(config(source, sink, ""), Vec::<String>::new(), "{sink}");
        }
        // A cycle over two pipelines; a chain that ends is none.
        let chain = "[source.b]\ntype = \"file\"\npath = \"b\"\n[sink.c]\ntype = \"file\"\npath = \"c\"\n[pipeline.q]\nfrom = \"b\"\nto = [\"c\"]\n";
        let (source, sink) = ("type = \"file\", path = \"a\"", "type = \"file\", path = \"b\"");
        assert_eq!(config(source, sink, chain), Vec::<String>::new());
        assert_eq!(
            config(source, sink, &chain.replace("path = \"c\"", "path = \"a\"")),
            [
                "11: pipeline.p.to[0]: a cycle: \"nginx\" writes to file b, which source \"b\" reads, and pipeline \"q\" leads back",
                "20: pipeline.q.to[0]: a cycle: \"c\" writes to file a, which source \"a\" reads, and pipeline \"p\" leads back",
            ]
        );
        let parked = config("type = \"file\", path = \"s/parked.ndjson\"", "type = \"null\"", "");
        assert!(
            parked.len() == 1 && parked[0].starts_with("4: source.a.path: a cycle: s/parked.ndjson"),
            "{parked:?}"
        );
    }

    #[test]
    fn syntax_errors_do_not_hide_other_mistakes() {
        let found = problems("state_dir = \n[engine]\nlanes = 0\n");
        assert!(found.iter().any(|line| line.starts_with("1: ")), "{found:?}");
        assert!(
            found.contains(&"3: engine.lanes: must be from 1 to 256".to_owned()),
            "{found:?}"
        );
    }

    #[test]
    fn an_empty_file_says_what_is_needed() {
        assert_eq!(
            problems(""),
            [
                "1: there is no [source]",
                "1: there is no [sink]",
                "1: there is no [pipeline]"
            ]
        );
    }

    #[test]
    fn what_is_not_used_is_a_warning_but_for_a_source() {
        let config = parse(&GOOD.replace("parse =", "extra = { type = \"parse_json\" }\nparse ="))
            .ok()
            .unwrap();
        assert_eq!(config.warnings, ["stage.extra is in no pipeline"]);
        let text = GOOD.replace("a = {", "b = { type = \"stdin\" }\na = {");
        assert_eq!(problems(&text), ["4: source.b: no pipeline reads from \"b\""]);
        let text = GOOD.replace("[stage]", "[source.b]\ntype = \"stdin\"\n[stage]");
        assert_eq!(problems(&text), ["5: source.b: no pipeline reads from \"b\""]);
    }
}
