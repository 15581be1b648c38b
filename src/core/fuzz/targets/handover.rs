//! Messages of a handover, of which the other worker may be of any version: whatever is read comes back when it is
//! written, and a session with such parts seals and opens records or is refused. The first byte chooses the message.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::handover::{Answer, Keys, Offer, Rest, VERSION, decode, encode};
use push_stream_core::wire::tls::{Ciphertext, Offered, Session};

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    let message = [&[VERSION], rest].concat();
    match choice % 4 {
        0 => {
            if let Some(offer) = decode::<Offer>(&message) {
                assert_eq!(decode(&encode(&offer)), Some(offer));
            }
        }
        1 => {
            if let Some(answer) = decode::<Answer>(&message) {
                assert_eq!(decode(&encode(&answer)), Some(answer));
            }
        }
        2 => {
            if let Some(unsent) = decode::<Rest>(&message) {
                assert_eq!(decode(&encode(&unsent)), Some(unsent));
            }
        }
        _ => keys(&message, usize::from(choice >> 2)),
    }
});

/// Whatever the keys are: no panic, and nothing is sealed twice.
fn keys(message: &[u8], subscribers: usize) {
    let Some(keys) = Keys::decode(message, subscribers) else {
        return;
    };
    let encoded = keys.encode();
    assert!(encoded.is_empty() || Keys::decode(&encoded, subscribers).is_some());
    for state in keys.0.into_iter().flatten() {
        let ciphertext = Ciphertext {
            tail: b"tail".to_vec(),
            begun: Vec::new(),
        };
        let Some(mut session) = Session::from_parts(state, ciphertext) else {
            continue;
        };
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        let mut offer = |bytes: &[u8]| {
            wire.extend_from_slice(bytes);
            Offered::Taken(bytes.len())
        };
        let _ = session.flush(&mut scratch, &mut offer);
        let (first, _) = session.send(b"the same text", &mut scratch, &mut offer);
        let (second, _) = session.send(b"the same text", &mut scratch, &mut offer);
        assert!(wire.starts_with(b"tail"));
        if let Some(records) = wire
            .get(4..)
            .filter(|records| first + second == 26 && records.len().is_multiple_of(2))
        {
            let (one, other) = records.split_at(records.len() / 2);
            assert_ne!(one, other, "two records with one number");
        }
        let mut noise: &[u8] = &[23, 3, 3, 0, 32, 1, 2, 3];
        let _ = session.receive(&mut noise, true, 0, |event| format!("{event:?}"));
    }
}
