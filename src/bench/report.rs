//! Results: as a text table, as JSON, and side by side in Markdown.

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

    /// Rounded to the measurable precision: JSON and table show the same.
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

/// The results of a scenario.
#[derive(Clone, Debug)]
pub struct Report {
    scenario: String,
    label: String,
    facts: Vec<Fact>,
    /// Reasons why this run failed; empty on success.
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

    /// Reports the time until departed subscribers were gone, or the reason why they are not.
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

/// Reference of a row's values.
#[derive(Clone, Copy, Debug)]
enum Reference {
    /// The same value of the server with this label.
    Server(&'static str),
    /// The same server's value in this scenario.
    Scenario(&'static str),
    /// Shown without ratio, but for the baseline as well.
    Shown,
    Nothing,
}

/// The bare server, and nginx without a push module.
const BASELINE: Reference = Reference::Server("baseline");
const NGINX: Reference = Reference::Server("nginx");

/// A row of the Markdown table: scenario, fact, text, reference.
type Row = (&'static str, &'static str, &'static str, Reference);

const ROWS: &[Row] = &[
    ("idle", "pss_bytes", "memory per idle subscriber", Reference::Shown),
    (
        "attached",
        "pss_bytes",
        "the same if it keeps its request, with the pools of million.conf",
        Reference::Nothing,
    ),
    (
        "growth",
        "growth_bytes",
        "its growth after 1,000 messages",
        Reference::Shown,
    ),
    (
        "idle",
        "kernel_slab_bytes",
        "kernel memory per connection, both ends",
        Reference::Shown,
    ),
    (
        "idle",
        "kept_bytes",
        "kept of each subscriber that left",
        Reference::Shown,
    ),
    (
        "churn",
        "growth_bytes",
        "kept of each that came and went",
        Reference::Shown,
    ),
    (
        "churn",
        "kept_percent",
        "private memory after a second round of churn, against after the first",
        Reference::Nothing,
    ),
    ("churn", "zone_kept_bytes", "the same in the zone", Reference::Nothing),
    (
        "idle-again",
        "kept_percent",
        "private memory after a second 100,000 have left, against after the first",
        Reference::Nothing,
    ),
    (
        "idle-again",
        "zone_kept_bytes",
        "the same in the zone",
        Reference::Nothing,
    ),
    (
        "soak",
        "kept_percent",
        "private memory after a second round of all at once, against after the first",
        Reference::Nothing,
    ),
    ("soak", "zone_kept_bytes", "the same in the zone", Reference::Nothing),
    ("channels", "channel_bytes", "memory per channel", Reference::Nothing),
    (
        "channels",
        "message_bytes",
        "memory per stored message of 150 bytes",
        Reference::Nothing,
    ),
    ("fanout", "cpu_us", "CPU per delivery, 1 channel × 10,000", BASELINE),
    ("fanout", "user_cpu_us", "of that in user mode", BASELINE),
    (
        "many",
        "cpu_us",
        "CPU per delivery, 10,000 channels × 10, 1,000 messages/s",
        BASELINE,
    ),
    ("many", "user_cpu_us", "of that in user mode", BASELINE),
    (
        "flood",
        "cpu_us",
        "CPU per delivery, 16 publishers at full speed",
        BASELINE,
    ),
    ("flood", "user_cpu_us", "of that in user mode", BASELINE),
    (
        "sustained",
        "deliveries_per_second",
        "deliveries per second, 1 channel × 50,000",
        BASELINE,
    ),
    (
        "fanout",
        "latency_p50_ms",
        "publish to delivery, 1 × 10,000, median",
        BASELINE,
    ),
    (
        "fanout",
        "latency_p99_ms",
        "publish to delivery, 1 × 10,000, 99 %",
        BASELINE,
    ),
    (
        "stalls",
        "away_max_ms",
        "longest time away from epoll_wait in 8 broadcasts, median of 3 runs",
        Reference::Shown,
    ),
    ("stalls", "busy_max_ms", "of that with a processor", Reference::Shown),
    ("publish", "cpu_us", "CPU per publish, against `return 200`", NGINX),
    (
        "publish",
        "publishes_per_second",
        "publishes per second, against `return 200`",
        NGINX,
    ),
    (
        "channels",
        "cpu_us",
        "CPU per publish, 1,000,000 channels against 1,000",
        Reference::Scenario("few-channels"),
    ),
    (
        "zone-4g",
        "cpu_us",
        "CPU per publish, zone of 4 GiB against 32 MiB",
        Reference::Scenario("zone-32m"),
    ),
    (
        "batch",
        "cpu_us",
        "CPU per message in batches of 100, against one by one",
        Reference::Scenario("publish"),
    ),
    (
        "workers-2",
        "cpu_us",
        "CPU per publish, 2 workers at once, against `return 200`",
        NGINX,
    ),
    ("workers-4", "cpu_us", "the same with 4 workers", NGINX),
    ("workers-8", "cpu_us", "the same with 8 workers", NGINX),
    ("storm", "cpu_us", "CPU per new subscriber", BASELINE),
    ("storm", "user_cpu_us", "of that in user mode", BASELINE),
    ("storm", "cpu_us", "CPU per new subscriber, against `return 200`", NGINX),
    (
        "storm",
        "opening_p99_ms",
        "connect to response head, 5,000/s, 99 %",
        BASELINE,
    ),
    (
        "rush",
        "opened_per_second",
        "new subscribers per second if 45,000 want in",
        BASELINE,
    ),
    (
        "rush",
        "opening_p99_ms",
        "connect to response head then, 99 %",
        BASELINE,
    ),
    (
        "disqus",
        "deliveries_per_second",
        "mix: deliveries per second",
        Reference::Shown,
    ),
    ("disqus", "cpu_percent", "mix: server CPU, of one processor", BASELINE),
    (
        "disqus",
        "latency_p50_ms",
        "mix: publish to delivery, median",
        Reference::Shown,
    ),
    (
        "disqus",
        "latency_p99_ms",
        "mix: publish to delivery, 99 %",
        Reference::Shown,
    ),
    (
        "disqus",
        "latency_p999_ms",
        "mix: publish to delivery, 99.9 %",
        Reference::Shown,
    ),
    (
        "disqus",
        "opening_p99_ms",
        "mix: connect to response head, 99 %",
        Reference::Shown,
    ),
    (
        "tls-idle",
        "private_bytes",
        "memory per idle subscriber over TLS",
        BASELINE,
    ),
    (
        "h2-idle",
        "private_bytes",
        "memory per idle subscriber over HTTP/2, one stream a connection",
        Reference::Nothing,
    ),
    (
        "h2-streams-idle",
        "private_bytes",
        "memory per idle subscriber over HTTP/2, six streams a connection",
        Reference::Nothing,
    ),
    (
        "h2-streams-idle",
        "stream_bytes",
        "of that each further stream of a connection",
        Reference::Nothing,
    ),
    (
        "tls-growth",
        "growth_bytes",
        "growth of each by 1,000 messages, over TLS",
        Reference::Nothing,
    ),
    ("h2-growth", "growth_bytes", "the same over HTTP/2", Reference::Nothing),
    (
        "tls-fanout",
        "cpu_us",
        "CPU per delivery over TLS, 1 channel × 10,000",
        BASELINE,
    ),
    ("tls-fanout", "user_cpu_us", "of that in user mode", BASELINE),
    (
        "tls-fanout",
        "cpu_us",
        "CPU per delivery over TLS, against plain HTTP/1.1",
        Reference::Scenario("plain-fanout"),
    ),
    (
        "h2-fanout",
        "cpu_us",
        "CPU per delivery over HTTP/2, one stream a connection, against plain HTTP/1.1",
        Reference::Scenario("plain-fanout"),
    ),
    ("h2-fanout", "user_cpu_us", "of that in user mode", Reference::Nothing),
    (
        "h2-streams-fanout",
        "cpu_us",
        "CPU per delivery over HTTP/2, six streams a connection, against plain HTTP/1.1",
        Reference::Scenario("plain-fanout"),
    ),
    (
        "h2-streams-fanout",
        "user_cpu_us",
        "of that in user mode",
        Reference::Nothing,
    ),
    (
        "tls-storm",
        "cpu_us",
        "CPU per new subscriber over TLS, against `return 200`",
        NGINX,
    ),
    (
        "h2-storm",
        "cpu_us",
        "CPU per new subscriber over HTTP/2, against `return 200`",
        NGINX,
    ),
    (
        "tls-publish",
        "cpu_us",
        "CPU per publish over TLS, against `return 200`",
        NGINX,
    ),
    (
        "h2-publish",
        "cpu_us",
        "CPU per publish over HTTP/2, against `return 200`",
        NGINX,
    ),
    ("million", "subscribers", "subscribers at once", Reference::Nothing),
    ("million", "pss_bytes", "memory of each", Reference::Nothing),
    (
        "million",
        "broadcast_s",
        "a broadcast to all of them",
        Reference::Nothing,
    ),
];

/// Reports (one JSON object a line) side by side: the reference of each row, then a column for each other label.
///
/// Where a label has several reports of a scenario, their median is shown. Its ratio to the reference is the median
/// over pairs of reports, first with first and so on, with its 95 % interval if there are enough.
pub fn markdown(lines: &str) -> anyhow::Result<String> {
    let mut reports = Vec::new();
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        reports.push(serde_json::from_str::<Value>(line).with_context(|| format!("not a report: {line}"))?);
    }
    let mut labels: Vec<&str> = Vec::new();
    for report in &reports {
        let label = report["label"].as_str().context("a report without a label")?;
        if !labels.contains(&label) && !["baseline", "nginx"].contains(&label) {
            labels.push(label);
        }
    }
    if labels.is_empty() {
        bail!("no reports but of what others are compared with");
    }
    let mut table = format!(
        "| | reference | {} |\n|---|---:|{}\n",
        labels.join(" | "),
        "---:|".repeat(labels.len())
    );
    for row in ROWS {
        if let Some(line) = markdown_row(&reports, &labels, row) {
            table.push_str(&line);
        }
    }
    Ok(table)
}

/// One line of the table; `None` if no label has that value.
fn markdown_row(reports: &[Value], labels: &[&str], (scenario, key, text, reference): &Row) -> Option<String> {
    let series: Vec<_> = labels
        .iter()
        .map(|label| Series::of(reports, label, scenario, key))
        .collect();
    if series.iter().all(Option::is_none) {
        return None;
    }
    let others = |label: &&str| match reference {
        Reference::Server(server) => Series::of(reports, server, scenario, key),
        Reference::Scenario(other) => Series::of(reports, label, other, key),
        Reference::Shown => Series::of(reports, "baseline", scenario, key),
        Reference::Nothing => None,
    };
    let references: Vec<_> = labels.iter().map(others).collect();
    let shown = references.first().and_then(Option::as_ref);
    let mut line = format!("| {text} | {}", shown.map_or("–".to_owned(), Series::shown));
    for (own, reference_series) in series.iter().zip(&references) {
        line.push_str(" | ");
        let Some(own) = own else {
            line.push('–');
            continue;
        };
        line.push_str(&own.shown());
        if let Some(base) = reference_series
            && !matches!(reference, Reference::Shown)
        {
            line.push_str(&own.ratio_to(base));
        }
    }
    line.push_str(" |\n");
    Some(line)
}

/// A fact over all reports of a label and a scenario, in their order.
#[derive(Debug)]
struct Series<'a> {
    values: Vec<f64>,
    unit: &'a str,
}

impl<'a> Series<'a> {
    fn of(reports: &'a [Value], label: &str, scenario: &str, key: &str) -> Option<Self> {
        let facts: Vec<&Value> = reports
            .iter()
            .filter(|report| report["label"] == label && report["scenario"] == scenario)
            .map(|report| &report["facts"][key])
            .filter(|fact| fact["value"].is_number())
            .collect();
        Some(Self {
            unit: facts.first()?["unit"].as_str()?,
            values: facts.iter().filter_map(|fact| fact["value"].as_f64()).collect(),
        })
    }

    fn shown(&self) -> String {
        let decimals = match self.unit {
            "µs" | "ms" | "s" => 2,
            "%" => 1,
            _ => 0,
        };
        let value = number(median(&self.values), decimals);
        format!("{value} {}", self.unit).trim_end().to_owned()
    }

    /// `, 1.07 × (1.05–1.09)`
    fn ratio_to(&self, base: &Self) -> String {
        let pairs = self.values.iter().zip(&base.values).filter(|(_, base)| **base > 0.0);
        let ratios: Vec<f64> = pairs.map(|(own, base)| own / base).collect();
        if ratios.is_empty() {
            return String::new();
        }
        let mut text = format!(", {:.2} ×", median(&ratios));
        if let Some((low, high)) = interval(&ratios) {
            // Writing to a string cannot fail.
            let _ = write!(text, " ({low:.2}–{high:.2})");
        }
        text
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The median of at least one value.
fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The 95 % interval of the median, from order statistics, so for any distribution: the true median lies outside of the
/// Kth smallest and greatest value with twice the probability that fewer than K of all fair coins show heads. `None`
/// for fewer than six values.
fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    let count = sorted.len();
    let mut outside = 0.0;
    let mut coins = 0.5_f64.powi(count as i32);
    let mut kept = None;
    for below in 0..count / 2 {
        outside += 2.0 * coins;
        if outside > 0.05 {
            break;
        }
        kept = Some((sorted[below], sorted[count - 1 - below]));
        coins *= (count - below) as f64 / (below + 1) as f64;
    }
    kept
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
        let report = report("baseline", 5.4321);
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
        let mut report = report("baseline", 1.0);
        report.problem("7 messages lost");
        assert!(report.failed() && report.to_table().contains("FAILED: 7 messages lost"));
        assert_eq!(report.to_json()["ok"], false);
    }

    /// The table of these reports of `fanout`, and its row on CPU.
    fn cpu_row(reports: &[(&str, f64)]) -> (String, String) {
        let lines: String = reports
            .iter()
            .map(|(label, cpu_us)| format!("{}\n", report(label, *cpu_us).to_json()))
            .collect();
        let table = markdown(&lines).unwrap();
        let row = table
            .lines()
            .find(|line| line.starts_with("| CPU per delivery, 1 channel"));
        let row = row.unwrap().rsplit_once("10,000 | ").unwrap().1.to_owned();
        (table, row)
    }

    #[test]
    fn a_server_is_compared_with_its_reference() {
        let (table, row) = cpu_row(&[("baseline", 5.0), ("module", 5.5), ("other", 10.0)]);
        assert_eq!(table.lines().next(), Some("| | reference | module | other |"));
        assert_eq!(row, "5.00 µs | 5.50 µs, 1.10 × | 10.00 µs, 2.00 × |");
        assert!(markdown("").is_err() && markdown("{").is_err());
    }

    #[test]
    fn several_rounds_give_medians_of_values_and_of_paired_ratios() {
        let rounds = [
            ("baseline", 4.0),
            ("module", 8.0),
            ("baseline", 10.0),
            ("module", 10.0),
            ("baseline", 5.0),
            ("module", 6.0),
        ];
        assert_eq!(cpu_row(&rounds).1, "5.00 µs | 8.00 µs, 1.20 × |");
    }

    #[test]
    fn six_rounds_give_an_interval() {
        let ratios = [1.3, 1.1, 1.2, 1.4, 1.5, 1.6];
        let rounds: Vec<_> = ratios
            .iter()
            .flat_map(|ratio| [("baseline", 10.0), ("module", 10.0 * ratio)])
            .collect();
        assert_eq!(cpu_row(&rounds).1, "10.00 µs | 13.50 µs, 1.35 × (1.10–1.60) |");
        assert_eq!(interval(&[1.0, 2.0, 3.0, 4.0, 5.0]), None);
        // Conover, Practical Nonparametric Statistics: ranks 2 and 8 for nine, 3 and 10 for twelve.
        let nine: Vec<f64> = (1..=9).map(f64::from).collect();
        let twelve: Vec<f64> = (1..=12).map(f64::from).collect();
        assert_eq!(
            (interval(&nine), interval(&twelve)),
            (Some((2.0, 8.0)), Some((3.0, 10.0)))
        );
    }

    #[test]
    fn a_scenario_can_be_the_reference_of_another() {
        let lines: String = [("few-channels", 10.0), ("channels", 11.0)]
            .map(|(scenario, cpu_us)| {
                let mut report = Report::new(scenario, "module");
                report.fact("cpu_us", "CPU", cpu_us, Unit::Micros);
                format!("{}\n", report.to_json())
            })
            .concat();
        assert!(
            markdown(&lines)
                .unwrap()
                .contains("against 1,000 | 10.00 µs | 11.00 µs, 1.10 × |")
        );
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let document = "a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nz\n";
        let new = replace_between_markers(document, "new\n").unwrap();
        assert_eq!(new, "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nz\n");
        assert!(replace_between_markers("nothing", "x").is_err());
    }
}
