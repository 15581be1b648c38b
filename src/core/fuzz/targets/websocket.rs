//! WebSocket frames from a client: the result is the same wherever the network splits them. The first byte chooses the
//! rules, the second where to split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::websocket::{Decoder, Received, Rules};

const MAX_MESSAGE: u64 = 300;

fuzz_target!(|input: &[u8]| {
    let [choice, cut, frames @ ..] = input else { return };
    let rules = Rules {
        max_message: MAX_MESSAGE,
        masked_only: choice & 1 != 0,
        binary: choice & 2 != 0,
        keep: choice & 4 != 0,
        deflate: choice & 8 != 0,
    };
    let whole = decode(rules, [frames]);
    let step = usize::from(*cut).max(1);
    assert_eq!(decode(rules, frames.chunks(step)), whole, "cut every {step} bytes");
    let (left, right) = frames.split_at(step.min(frames.len()));
    assert_eq!(decode(rules, [left, right]), whole, "cut at {step}");
});

fn decode<'i>(rules: Rules, pieces: impl IntoIterator<Item = &'i [u8]>) -> Vec<String> {
    let mut decoder = Decoder::new(rules);
    let mut seen = Vec::new();
    for mut piece in pieces {
        while let Some(received) = decoder.next(&mut piece) {
            if let Ok(Received::Text(text) | Received::Binary(text)) = received {
                assert!(text.len() as u64 <= MAX_MESSAGE);
                assert!(rules.keep || text.is_empty());
            }
            if let Ok(Received::Text(text)) = received {
                assert!(std::str::from_utf8(text).is_ok());
            }
            if let Ok(Received::Ping(payload)) = received {
                assert!(payload.len() <= 125);
            }
            seen.push(format!("{received:?}"));
            if received.is_err() {
                return seen;
            }
        }
        assert!(piece.is_empty(), "all of a piece is taken");
    }
    seen.push(format!("idle: {}", decoder.is_idle()));
    seen
}
