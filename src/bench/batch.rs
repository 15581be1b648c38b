//! Batch publish: many messages in one request, as lines of JSON, where the server offers it.

use std::io::Write as _;

use anyhow::{Context, bail};
use serde_json::Value;

/// Content type of a batch request, listed in `Accept-Post` by servers that take batches.
pub const CONTENT_TYPE: &str = "application/x-ndjson";

/// Adds the line of one message; channel, text and id contain nothing that JSON would escape.
pub fn write_line(out: &mut Vec<u8>, channel: &str, text: &[u8], id: Option<&str>) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{{\"channels\":[\"{channel}\"],\"text\":\"");
    out.extend_from_slice(text);
    let _ = match id {
        Some(id) => writeln!(out, "\",\"id\":\"{id}\"}}"),
        None => writeln!(out, "\"}}"),
    };
}

/// The lines (from 0) that failed according to a minimal answer to `lines` lines, each with its status.
pub fn failures(answer: &[u8], lines: usize) -> anyhow::Result<Vec<(usize, u64)>> {
    let mut parsed = answer
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| serde_json::from_slice::<Value>(line).context("a line of a batch's answer is no JSON"));
    let summary = parsed.next().context("a batch without an answer")??;
    let field = |name: &str| {
        summary[name]
            .as_u64()
            .with_context(|| format!("no \"{name}\" in {summary}"))
    };
    let (taken, ok, failed) = (field("lines")?, field("ok")?, field("failed")?);
    let failures = parsed
        .map(|verdict| {
            let verdict = verdict?;
            let line = verdict["line"].as_u64().filter(|line| (1..=taken).contains(line));
            let line = line.with_context(|| format!("no line in {verdict}"))?;
            Ok((line as usize - 1, verdict["status"].as_u64().unwrap_or(0)))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    if taken != lines as u64 || ok + failed != taken || failures.len() as u64 != failed {
        bail!("the answer to a batch of {lines} does not add up: {summary}");
    }
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json() {
        let mut out = Vec::new();
        write_line(&mut out, "c-1", b"some text", None);
        write_line(&mut out, "c-2", b"more", Some("7-1"));
        let lines: Vec<Value> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0], serde_json::json!({"channels": ["c-1"], "text": "some text"}));
        assert_eq!(
            lines[1],
            serde_json::json!({"channels": ["c-2"], "text": "more", "id": "7-1"})
        );
    }

    #[test]
    fn failed_lines_are_found() {
        let good = b"{\"lines\": 3, \"ok\": 3, \"failed\": 0}\r\n";
        assert_eq!(failures(good, 3).unwrap(), []);
        let bad = b"{\"lines\": 3, \"ok\": 1, \"failed\": 2}\n{\"line\": 1, \"status\": 507}\n{\"line\": 3, \"status\": 424}\n";
        assert_eq!(failures(bad, 3).unwrap(), [(0, 507), (2, 424)]);
    }

    #[test]
    fn an_answer_that_does_not_add_up_is_an_error() {
        for (answer, what) in [
            (b"".as_slice(), "nothing"),
            (b"<html>", "no JSON"),
            (b"{\"lines\": 2, \"ok\": 2, \"failed\": 0}", "a line too few"),
            (b"{\"lines\": 3, \"ok\": 2, \"failed\": 0}", "a line without a verdict"),
            (b"{\"lines\": 3, \"ok\": 2, \"failed\": 1}", "a missing verdict"),
            (
                b"{\"lines\": 3, \"ok\": 2, \"failed\": 1}\n{\"line\": 4, \"status\": 400}",
                "a line too many",
            ),
        ] {
            assert!(failures(answer, 3).is_err(), "{what}");
        }
    }
}
