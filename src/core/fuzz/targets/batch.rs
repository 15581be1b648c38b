//! Bodies of batch publishes: accepted bodies are JSON of exactly the documented form, and the answers are JSON.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::{batch, channel_path};
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let limits = (5, 200);
    let fits = batch::check(body, limits.0, limits.1).is_ok();
    let mut count = 0;
    for (number, line) in batch::lines(body) {
        count += 1;
        assert!(!line.contains(&b'\n') && number >= count);
        if fits {
            assert!(count <= limits.0 && line.len() <= limits.1);
        }
        let verdict = batch::Verdict {
            line: number,
            status: 200,
            explain: None,
            duplicates: 0,
            id: None,
        };
        match batch::parse(line) {
            Ok(parsed) => {
                check(line, &parsed);
                let id = parsed.event_id.as_deref();
                let verdict = batch::Verdict {
                    duplicates: parsed.channels.len(),
                    id: id.and_then(|id| OrderedId::parse(id.as_bytes())),
                    ..verdict
                };
                let answer = answer(verdict);
                assert_eq!(
                    (&answer["status"], &answer["duplicate"]),
                    (&200.into(), &verdict.duplicates.into())
                );
                assert!(verdict.id.is_none() || answer["id"].as_str() == id);
            }
            Err(malformed) => {
                assert!(malformed.column <= line.len() + 1, "{malformed}");
                let explain = malformed.to_string();
                let answer = answer(batch::Verdict {
                    status: 400,
                    explain: Some(&explain),
                    ..verdict
                });
                assert_eq!(
                    (&answer["status"], answer["explain"].as_str()),
                    (&400.into(), Some(&*explain))
                );
            }
        }
    }
});

/// The text of a verdict, read by another parser.
fn answer(verdict: batch::Verdict<'_>) -> Value {
    let mut text = Vec::new();
    batch::push_verdict(verdict, &[], &mut text);
    serde_json::from_slice(&text).expect("a verdict is JSON")
}

/// The same line, read by another parser.
fn check(line: &[u8], parsed: &batch::Line<'_>) {
    let value: Value = serde_json::from_slice(line).expect("what is accepted is JSON");
    let object = value.as_object().expect("an object");
    let channels: Vec<&str> = value["channels"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(parsed.channels, channels);
    assert!((1..=batch::MAX_CHANNELS).contains(&channels.len()));
    for channel in channels {
        assert!(channel_path::is_one_id(channel.as_bytes()) && !channel_path::is_reserved(channel.as_bytes()));
    }
    let body = match (object.get("text"), object.get("base64")) {
        (Some(text), None) => text.as_str().expect("a string").as_bytes().to_vec(),
        (None, Some(coded)) => STANDARD.decode(coded.as_str().expect("a string")).expect("base64"),
        both => panic!("exactly one of text and base64: {both:?}"),
    };
    assert_eq!(parsed.body, body);
    let text = |name| object.get(name).map(|value: &Value| value.as_str().expect("a string"));
    assert_eq!(parsed.event_id.as_deref(), text("id"));
    assert_eq!(parsed.event_type.as_deref(), text("type"));
    assert_eq!(
        parsed.store,
        object.get("store").map(|store| store.as_bool().expect("a bool"))
    );
    let known = ["channels", "text", "base64", "id", "type", "store"];
    assert!(object.keys().all(|key| known.contains(&key.as_str())));
}
