//! Live subscriptions: what clients ask, and the messages between workers about it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::control::{self, Change, Key, Operation, Outcome, Request, Session};
use serde_json::Value;

fuzz_target!(|text: &[u8]| {
    if let Ok(request) = Request::parse(text) {
        assert!(
            request.subscribe.len() <= control::MOST_CHANNELS && request.unsubscribe.len() <= control::MOST_CHANNELS
        );
        assert!(
            request
                .subscribe
                .iter()
                .all(|wanted| !wanted.id.is_empty() && !wanted.id.contains(&b'/'))
        );
        assert!(request.unsubscribe.iter().all(|id| !id.is_empty()));
    }
    let (id, operation) = Operation::parse(text);
    let reply = control::reply(&id, 200, operation.err(), Some(&[text.to_vec()]));
    let read: Value = serde_json::from_str(&reply).expect("a reply is JSON");
    assert_eq!(read["id"], id);
    if let Ok(name) = str::from_utf8(text)
        && let Some(session) = Session::parse(name)
    {
        assert_eq!(session.to_text(), name);
        assert!(!Key::new().expect("random numbers").knows(session), "a guessed secret");
    }
    if let Some(change) = control::decode::<Change>(text) {
        assert_eq!(control::decode(&control::encode(&change)), Some(change));
    }
    if let Some(outcome) = control::decode::<Outcome>(text) {
        assert_eq!(control::decode(&control::encode(&outcome)), Some(outcome));
    }
});
