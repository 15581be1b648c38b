//! Alerts: rules over the worker's own metrics.
//!
//! ```toml
//! [alert.flood]
//! when = "error_ratio > 0.05"
//! for = "30s"
//! do = ["log", "webhook"]
//! webhook = "http://127.0.0.1:9000/hook"
//! ```
//!
//! Values: `error_ratio` (parked and failed of all events, over the last second), `parked_total`, `oldest_seconds` (age
//! of the oldest queued event), `lag` (events waiting), `nodes_down`, `silent_threads`, `invariant_broken`. An alert is
//! reported once when it begins and once when it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;

use super::metrics::Metrics;
#[cfg(feature = "sentry")]
use super::sentry::{self, Dsn};
use super::watchdog::Watchdog;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::sink::webhook::Target;

const INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of one notification attempt.
const TIMEOUT: Duration = Duration::from_secs(5);
const FIGURES: [&str; 7] = [
    "error_ratio",
    "parked_total",
    "oldest_seconds",
    "lag",
    "nodes_down",
    "silent_threads",
    "invariant_broken",
];

#[derive(Clone, Debug)]
pub struct Alert {
    name: String,
    when: Condition,
    lasting: Duration,
    log: bool,
    webhook: Option<Target>,
    #[cfg(feature = "sentry")]
    sentry: Option<Dsn>,
}

#[derive(Clone, Debug, PartialEq)]
struct Condition {
    figure: &'static str,
    above: f64,
}

impl FromText for Condition {
    const WANTED: &'static str = "a condition such as \"nodes_down > 0\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not FIGURE > NUMBER, with one of {}", FIGURES.join(", "));
        let (figure, above) = text.split_once('>').ok_or_else(bad)?;
        let figure = FIGURES.iter().find(|known| **known == figure.trim()).ok_or_else(bad)?;
        Ok(Self {
            figure,
            above: above
                .trim()
                .parse()
                .ok()
                .filter(|above: &f64| above.is_finite())
                .ok_or_else(bad)?,
        })
    }
}

impl Alert {
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let when = section.required("when");
        let lasting = section.or("for", Duration::ZERO);
        let actions = section.or("do", vec!["log".to_owned()]);
        for action in actions
            .iter()
            .filter(|action| !["log", "webhook", "sentry"].contains(&action.as_str()))
        {
            section.complain_at(
                "do",
                format!("\"{action}\" is not one of \"log\", \"webhook\", \"sentry\""),
            );
        }
        let does = |action: &str| actions.iter().any(|one| one == action);
        for key in ["webhook", "sentry"] {
            match (does(key), section.has(key)) {
                (true, false) => section.complain_at("do", format!("\"{key}\" needs {key} = \"https://…\"")),
                (false, true) => section.complain_at(key, format!("does nothing without \"{key}\" in do")),
                _ => {}
            }
        }
        if cfg!(not(feature = "sentry")) && (does("sentry") || section.has("sentry")) {
            section.complain_at("do", "this worker was built without the feature \"sentry\"");
            return None;
        }
        let webhook = section.optional("webhook");
        #[cfg(feature = "sentry")]
        let sentry = section.optional("sentry");
        Some(Self {
            name: section.name().to_owned(),
            when: when?,
            lasting,
            log: does("log"),
            webhook,
            #[cfg(feature = "sentry")]
            sentry,
        })
    }
}

/// State of an alert.
#[derive(Default)]
struct Standing {
    since: Option<Instant>,
    is_told: bool,
}

/// Evaluates the rules every second.
pub async fn run(alerts: Vec<Alert>, metrics: Arc<Metrics>, watchdog: Arc<Watchdog>) {
    let mut standings: Vec<Standing> = alerts.iter().map(|_| Standing::default()).collect();
    let mut before = metrics.totals();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let totals = metrics.totals();
        let silent = watchdog.silent().len();
        if silent == 0 {
            metrics.watchdog_beats.fetch_add(1, Ordering::Relaxed);
        }
        let broken = metrics.check_invariant();
        for component in &broken {
            tracing::error!("{component}: what went in is not what came out, was dropped, parked, or is in flight");
        }
        let events = totals.events.saturating_sub(before.events);
        let failed = totals.failed.saturating_sub(before.failed);
        let ratio = if events == 0 {
            0.0
        } else {
            failed as f64 / events as f64
        };
        let figures = BTreeMap::from([
            ("error_ratio", ratio),
            ("parked_total", totals.parked as f64),
            ("oldest_seconds", totals.oldest.as_secs_f64()),
            ("lag", totals.lag as f64),
            ("nodes_down", metrics.nodes_down().len() as f64),
            ("silent_threads", silent as f64),
            ("invariant_broken", broken.len() as f64),
        ]);
        before = totals;
        for (alert, standing) in alerts.iter().zip(&mut standings) {
            alert.look(figures[alert.when.figure], standing);
        }
    }
}

impl Alert {
    fn look(&self, figure: f64, standing: &mut Standing) {
        if figure > self.when.above {
            let since = *standing.since.get_or_insert_with(Instant::now);
            if !standing.is_told && since.elapsed() >= self.lasting {
                standing.is_told = true;
                self.tell("firing", figure);
            }
        } else {
            standing.since = None;
            if std::mem::take(&mut standing.is_told) {
                self.tell("resolved", figure);
            }
        }
    }

    fn tell(&self, state: &'static str, figure: f64) {
        let Condition { figure: name, above } = &self.when;
        let text = format!("alert {}: {state}: {name} is {figure} (limit {above})", self.name);
        if self.log && state == "firing" {
            tracing::error!("{text}");
        } else if self.log {
            tracing::info!("{text}");
        }
        let body =
            json!({"alert": self.name, "state": state, "figure": name, "value": figure, "limit": above, "text": text});
        if let Some(target) = self.webhook.clone() {
            send(target, "application/json", Vec::new(), body.to_string());
        }
        #[cfg(feature = "sentry")]
        if let Some(dsn) = self.sentry.as_ref().filter(|_| state == "firing") {
            let envelope = sentry::envelope(&self.name, &text, &body);
            send(dsn.target().clone(), sentry::CONTENT_TYPE, dsn.headers(), envelope);
        }
    }
}

/// Sends in the background: a slow receiver must not delay the next evaluation.
fn send(target: Target, content_type: &'static str, headers: Vec<(&'static str, String)>, body: String) {
    tokio::task::spawn_local(async move {
        let sent = tokio::time::timeout(TIMEOUT, target.post(content_type, &headers, body.into())).await;
        match sent {
            Ok(Ok(status)) if status.is_success() => {}
            Ok(Ok(status)) => tracing::warn!("alert: {target} answered {status}"),
            Ok(Err(error)) => tracing::warn!("alert: {target}: {error}"),
            Err(_) => tracing::warn!("alert: {target} does not answer"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_names_a_figure_and_a_number() {
        let condition = Condition::from_text("error_ratio > 0.05").unwrap();
        assert_eq!((condition.figure, condition.above), ("error_ratio", 0.05));
        for bad in ["error_ratio < 1", "weather > 1", "lag > many", ""] {
            assert!(Condition::from_text(bad).is_err(), "{bad}");
        }
    }
}
