//! Sentry: an alert as an event, grouped by the alert's name.
//!
//! The envelope endpoint and its format: develop.sentry.dev/sdk/data-model/envelopes.

use std::fmt;

use serde_json::{Value, json};

use crate::client::Address;
use crate::clock::Timestamp;
use crate::config::value::FromText;
use crate::sink::webhook::Target;

/// A DSN: `https://PUBLIC_KEY@host/PROJECT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    target: Target,
    key: String,
}

impl FromText for Dsn {
    const WANTED: &'static str = "a Sentry DSN such as \"https://key@sentry.example.com/1\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a Sentry DSN (example: \"https://key@sentry.example.com/1\")");
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        let (key, rest) = rest.split_once('@').ok_or_else(bad)?;
        let (host, project) = rest.rsplit_once('/').ok_or_else(bad)?;
        if key.is_empty() || project.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(bad());
        }
        let (address, base) = Address::split(&format!("{scheme}://{host}"))?;
        let path = format!("{}/api/{project}/envelope/", base.trim_end_matches('/'));
        Ok(Self {
            target: Target::new(address, path),
            key: key.to_owned(),
        })
    }
}

impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

impl Dsn {
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Headers of the request.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let agent = concat!("push-stream-worker/", env!("CARGO_PKG_VERSION"));
        vec![(
            "x-sentry-auth",
            format!(
                "Sentry sentry_version=7, sentry_client={agent}, sentry_key={}",
                self.key
            ),
        )]
    }
}

pub const CONTENT_TYPE: &str = "application/x-sentry-envelope";

/// One event. The fingerprint makes all firings of one alert one issue.
pub fn envelope(name: &str, text: &str, details: &Value) -> String {
    let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let now = Timestamp::now().to_string();
    let event = json!({
        "event_id": id,
        "timestamp": now,
        "platform": "other",
        "level": "error",
        "logger": "push-stream-worker",
        "release": env!("CARGO_PKG_VERSION"),
        "message": {"formatted": text},
        "fingerprint": ["alert", name],
        "extra": details,
    })
    .to_string();
    let head = json!({"event_id": id, "sent_at": now});
    let item = json!({"type": "event", "length": event.len()});
    format!("{head}\n{item}\n{event}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dsn_names_the_envelope_endpoint() {
        let dsn = Dsn::from_text("http://abc123@127.0.0.1:9000/sentry/42").unwrap();
        assert_eq!(dsn.to_string(), "http://127.0.0.1:9000/sentry/api/42/envelope/");
        assert!(dsn.headers()[0].1.ends_with("sentry_key=abc123"));
        assert_eq!(
            Dsn::from_text("https://k@host/1").unwrap().to_string(),
            "https://host:443/api/1/envelope/"
        );
        for bad in ["", "https://host/1", "https://k@host", "k@host/1", "https://@host/1"] {
            assert!(Dsn::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_envelope_is_three_lines_and_its_item_has_the_length_it_says() {
        let text = envelope("flood", "a\nb", &json!({"x": 1}));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        let item: Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(item["length"], lines[2].len());
        let event: Value = serde_json::from_str(lines[2]).unwrap();
        assert_eq!(event["fingerprint"], json!(["alert", "flood"]));
    }
}
