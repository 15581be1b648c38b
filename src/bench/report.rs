//! Results: as a table for people, as JSON for programs, and side by side in Markdown.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::latency::Latency;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Count,
    PerSecond,
    Bytes,
    Micros,
    Millis,
    Seconds,
    Percent,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::PerSecond => "/s",
            Self::Bytes => "B",
            Self::Micros => "µs",
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::Percent => "%",
        }
    }

    /// Rounded to what can be measured: JSON and table show the same.
    fn decimals(self) -> usize {
        match self {
            Self::Count | Self::PerSecond | Self::Bytes => 0,
            Self::Percent => 1,
            Self::Micros | Self::Millis | Self::Seconds => 2,
        }
    }
}

/// One measured value.
#[derive(Clone, Debug)]
pub struct Fact {
    key: String,
    label: String,
    value: f64,
    unit: Unit,
}

/// What a scenario found.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: String,
    label: String,
    facts: Vec<Fact>,
    /// Why this run failed; empty if all was as it must be.
    problems: Vec<String>,
}

impl Report {
    pub fn new(scenario: &str, label: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            label: label.to_owned(),
            facts: Vec::new(),
            problems: Vec::new(),
        }
    }

    pub fn fact(&mut self, key: &str, label: &str, value: f64, unit: Unit) {
        let scale = 10_f64.powi(unit.decimals() as i32);
        let value = (value * scale).round() / scale;
        self.facts.push(Fact {
            key: key.to_owned(),
            label: label.to_owned(),
            value,
            unit,
        });
    }

    pub fn count(&mut self, key: &str, label: &str, value: u64) {
        self.fact(key, label, value as f64, Unit::Count);
    }

    pub fn seconds(&mut self, key: &str, label: &str, value: Duration) {
        self.fact(key, label, value.as_secs_f64(), Unit::Seconds);
    }

    /// The usual percentiles, as `KEY_p50_ms` and so on.
    pub fn latency(&mut self, key: &str, label: &str, latency: &Latency) {
        if latency.count() == 0 {
            return;
        }
        for (percent, name) in [
            (50.0, "p50"),
            (90.0, "p90"),
            (99.0, "p99"),
            (99.9, "p999"),
            (100.0, "max"),
        ] {
            let millis = latency.at(percent).as_secs_f64() * 1e3;
            self.fact(
                &format!("{key}_{name}_ms"),
                &format!("{label}, {name}"),
                millis,
                Unit::Millis,
            );
        }
    }

    /// How long it took until those who left were gone, or why they are not.
    pub fn left(&mut self, left: &Result<Duration, String>) {
        match left {
            Ok(taken) => self.seconds("leaving_s", "until the statistics were empty again", *taken),
            Err(problem) => self.problem(problem.as_str()),
        }
    }

    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    pub fn failed(&self) -> bool {
        !self.problems.is_empty()
    }

    /// One object: `{"scenario", "label", "ok", "facts": {KEY: {"value", "unit", "label"}}, "problems"}`.
    pub fn to_json(&self) -> Value {
        let fact = |fact: &Fact| {
            let value = match fact.unit.decimals() {
                0 => json!(fact.value as i64),
                _ => json!(fact.value),
            };
            (
                fact.key.clone(),
                json!({"value": value, "unit": fact.unit.name(), "label": fact.label}),
            )
        };
        json!({
            "scenario": self.scenario,
            "label": self.label,
            "ok": !self.failed(),
            "facts": self.facts.iter().map(fact).collect::<Map<_, _>>(),
            "problems": self.problems,
        })
    }

    pub fn to_table(&self) -> String {
        let mut table = format!("{} {}\n", self.scenario, self.label);
        let width = self
            .facts
            .iter()
            .map(|fact| fact.label.chars().count())
            .max()
            .unwrap_or(0);
        for fact in &self.facts {
            let value = number(fact.value, fact.unit.decimals());
            // Writing to a string cannot fail.
            let _ = writeln!(table, "  {:<width$}  {value:>14} {}", fact.label, fact.unit.name());
        }
        for problem in &self.problems {
            let _ = writeln!(table, "  FAILED: {problem}");
        }
        table
    }
}

/// `1234567.891` → `1,234,567.89`
fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (whole, fraction) = plain
        .split_once('.')
        .map_or((plain.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut out = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// The rows of the Markdown table: scenario, fact, text, whether a ratio says something.
const ROWS: &[(&str, &str, &str, bool)] = &[
    ("idle", "pss_bytes", "private memory per idle subscriber", false),
    (
        "idle",
        "kernel_slab_bytes",
        "kernel memory per connection, both ends",
        false,
    ),
    ("fanout", "cpu_us", "CPU per delivery", true),
    ("fanout", "user_cpu_us", "of that in user mode", true),
    ("fanout", "latency_p50_ms", "publish to delivery, median", false),
    ("fanout", "latency_p99_ms", "publish to delivery, 99 %", false),
    (
        "flood",
        "deliveries_per_second",
        "deliveries per second, 16 publishers as fast as it goes",
        true,
    ),
    (
        "flood",
        "cpu_us",
        "CPU per delivery, 16 publishers as fast as it goes",
        true,
    ),
    (
        "flood",
        "latency_p99_ms",
        "publish to delivery, 99 %, 16 publishers",
        false,
    ),
    (
        "publish",
        "publishes_per_second",
        "publishes per second, stored, no subscriber",
        true,
    ),
    ("publish", "cpu_us", "CPU per publish, stored, no subscriber", true),
    (
        "baseline",
        "cpu_us",
        "CPU per POST that nginx answers with `return 200`",
        false,
    ),
    ("publish", "latency_p99_ms", "publish to answer, 99 %", false),
    ("storm", "cpu_us", "CPU per new subscriber", true),
    ("storm", "opening_p99_ms", "connect to response head, 99 %", false),
];

/// Reports (one JSON object a line) side by side: a column for each label, medians where there are several, and ratios
/// against the last column before that is a floor.
pub fn markdown(lines: &str) -> anyhow::Result<String> {
    let mut reports = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        reports.push(serde_json::from_str::<Value>(line).with_context(|| format!("not a report: {line}"))?);
    }
    let mut labels: Vec<&str> = Vec::new();
    for report in &reports {
        let label = report["label"].as_str().context("a report without a label")?;
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    if labels.is_empty() {
        bail!("no reports");
    }
    let mut table = format!("| | {} |\n|---|{}\n", labels.join(" | "), "---:|".repeat(labels.len()));
    for (scenario, key, text, has_ratio) in ROWS {
        let cells: Vec<_> = labels
            .iter()
            .map(|label| median(&reports, label, scenario, key))
            .collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        table.push_str("| ");
        table.push_str(text);
        let mut base = None;
        for (label, cell) in labels.iter().zip(cells) {
            table.push_str(" | ");
            let Some((value, unit)) = cell else {
                table.push('–');
                continue;
            };
            let decimals = if matches!(unit, "µs" | "ms" | "s") { 2 } else { 0 };
            table.push_str(format!("{} {unit}", number(value, decimals)).trim_end());
            if label.starts_with("floor") {
                base = Some(value).filter(|value| *has_ratio && *value > 0.0);
            } else if let Some(base) = base {
                // Writing to a string cannot fail.
                let _ = write!(table, " ({:.2} ×)", value / base);
            }
        }
        table.push_str(" |\n");
    }
    Ok(table)
}

/// The median of a fact over all reports of a label and a scenario, and its unit.
fn median<'a>(reports: &'a [Value], label: &str, scenario: &str, key: &str) -> Option<(f64, &'a str)> {
    let same = |report: &&Value| report["label"] == label && report["scenario"] == scenario;
    let facts: Vec<&Value> = reports
        .iter()
        .filter(same)
        .map(|report| &report["facts"][key])
        .collect();
    let mut values: Vec<f64> = facts.iter().filter_map(|fact| fact["value"].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        0 => (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0,
        _ => *values.get(middle)?,
    };
    Some((median, facts.first()?["unit"].as_str()?))
}

/// `document` with everything between the markers replaced by `table`.
pub fn replace_between_markers(document: &str, table: &str) -> anyhow::Result<String> {
    const BEGIN: &str = "<!-- bench:begin -->";
    const END: &str = "<!-- bench:end -->";
    let begin = document.find(BEGIN).with_context(|| format!("no {BEGIN}"))? + BEGIN.len();
    let end = document[begin..]
        .find(END)
        .with_context(|| format!("no {END} behind {BEGIN}"))?
        + begin;
    Ok(format!(
        "{}\n{}\n{}",
        &document[..begin],
        table.trim_end(),
        &document[end..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(label: &str, cpu_us: f64) -> Report {
        let mut report = Report::new("fanout", label);
        report.fact("cpu_us", "CPU per delivery", cpu_us, Unit::Micros);
        report.count("deliveries", "deliveries", 1_234_567);
        report
    }

    #[test]
    fn numbers_have_thousands_separators() {
        assert_eq!(number(1_234_567.891, 2), "1,234,567.89");
        assert_eq!(number(-1_000.0, 0), "-1,000");
        assert_eq!(
            (number(999.0, 0), number(0.5, 2)),
            ("999".to_owned(), "0.50".to_owned())
        );
    }

    #[test]
    fn table_and_json_say_the_same() {
        let report = report("floor", 5.4321);
        assert!(report.to_table().contains("1,234,567"));
        let json = report.to_json();
        assert_eq!(json["facts"]["cpu_us"]["value"], 5.43);
        assert_eq!(
            (&json["ok"], &json["facts"]["deliveries"]["value"]),
            (&json!(true), &json!(1_234_567))
        );
    }

    #[test]
    fn problems_are_shown_everywhere() {
        let mut report = report("floor", 1.0);
        report.problem("7 messages lost");
        assert!(report.failed() && report.to_table().contains("FAILED: 7 messages lost"));
        assert_eq!(report.to_json()["ok"], false);
    }

    #[test]
    fn several_rounds_give_their_median() {
        let lines: String = [9.0, 5.0, 6.0]
            .map(|cpu_us| format!("{}\n", report("floor", cpu_us).to_json()))
            .concat();
        assert!(markdown(&lines).unwrap().contains("| CPU per delivery | 6.00 µs |"));
        let lines: String = [9.0, 5.0]
            .map(|cpu_us| format!("{}\n", report("floor", cpu_us).to_json()))
            .concat();
        assert!(markdown(&lines).unwrap().contains("| CPU per delivery | 7.00 µs |"));
    }

    #[test]
    fn columns_are_compared_with_the_floor_before_them() {
        let lines = format!(
            "{}\n{}\n",
            report("floor", 5.0).to_json(),
            report("module", 5.5).to_json()
        );
        let table = markdown(&lines).unwrap();
        assert_eq!(table.lines().next(), Some("| | floor | module |"));
        assert!(
            table.contains("| CPU per delivery | 5.00 µs | 5.50 µs (1.10 ×) |"),
            "{table}"
        );
        assert!(markdown("").is_err() && markdown("{").is_err());
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let document = "a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nz\n";
        let new = replace_between_markers(document, "new\n").unwrap();
        assert_eq!(new, "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nz\n");
        assert!(replace_between_markers("nothing", "x").is_err());
    }
}
