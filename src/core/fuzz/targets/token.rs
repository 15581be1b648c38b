//! Tokens, key files and files of revocations.
#![no_main]

use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use push_stream_core::token::{Dialect, KeySet, Revocations, Verifier, claims::Token, compact, json, verifier::Source};

const KEYS: &[u8] = br#"{"keys":[{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}]}"#;

/// The token of RFC 7515 A.1, the only one that this key has ever signed.
const SIGNED: &[u8] = b"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

fuzz_target!(|text: &[u8]| {
    let keys = KeySet::parse(KEYS, &[]).expect("a key of RFC 7515");
    let verifier = Verifier {
        sources: vec![Source {
            issuer: None,
            keys: Rc::new(keys),
        }],
        ..Verifier::default()
    };
    assert!(verifier.verify(SIGNED).is_ok());
    if text != SIGNED {
        assert!(verifier.verify(text).is_err(), "a forged token");
    }
    if let Ok(unverified) = compact::parse(text) {
        for dialect in [Dialect::Native, Dialect::Mercure, Dialect::Centrifugo] {
            let _ = Token::of(&unverified.claims, dialect);
        }
    }
    // The claims, without the base64 around them.
    if let Some(claims) = json::object(text) {
        for dialect in [Dialect::Native, Dialect::Mercure, Dialect::Centrifugo] {
            if let Ok(token) = Token::of(&claims, dialect) {
                let _ = token.check(1_700_000_000, 30, &Revocations::default());
                token.subscribe.allows(b"news");
            }
        }
    }
    if let Ok(keys) = KeySet::parse(text, &[]) {
        assert!(!keys.keys().is_empty());
        let verifier = Verifier {
            sources: vec![Source {
                issuer: None,
                keys: Rc::new(keys),
            }],
            ..Verifier::default()
        };
        let _ = verifier.verify(SIGNED);
    }
    let _ = Revocations::parse(text);
});
