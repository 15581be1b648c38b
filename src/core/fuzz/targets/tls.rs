//! Records of TLS: noise, and sealed records of which a byte is changed, cut anywhere. The result is the same wherever the
//! network cuts, and what arrives is the beginning of what was sent. The bytes choose: suite, where to cut, what to do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::tls::{Alert, Half, Offered, Secret, Session, Suite};

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fuzz_target!(|input: &[u8]| {
    let [suite, cut, choice, at, rest @ ..] = input else {
        return;
    };
    let suite = SUITES[usize::from(suite % 3)];
    let step = usize::from(*cut).max(1);
    if choice & 1 == 0 {
        let seen = receive(suite, [rest]);
        assert_eq!(receive(suite, rest.chunks(step)), seen, "noise, cut every {step} bytes");
        assert!(
            seen.iter().all(|seen| seen.starts_with("Err")),
            "noise is not authentic"
        );
        return;
    }
    let (mut peer, mut sent, mut wire) = (session(suite, 2, 1), Vec::new(), Vec::new());
    let mut scratch = Vec::new();
    // A socket that takes a few bytes at a time, and none at every third offer.
    let mut offers = 0u32;
    let mut offer = |bytes: &[u8]| {
        offers += 1;
        if offers.is_multiple_of(3) {
            return Offered::Blocked;
        }
        let taken = bytes.len().min(step);
        wire.extend_from_slice(&bytes[..taken]);
        Offered::Taken(taken)
    };
    for text in rest.split(|&byte| byte == 0) {
        let (sealed, _) = peer.send(text, &mut scratch, &mut offer);
        sent.extend_from_slice(&text[..sealed]);
    }
    let _ = peer.close(Alert::CloseNotify, &mut scratch, &mut offer);
    while peer.is_blocked() {
        peer.flush(&mut scratch, &mut offer);
    }
    let changed = choice & 2 != 0;
    if changed {
        let at = usize::from(*at) % wire.len();
        wire[at] ^= choice.max(&4) & 0xfc | 1;
    }
    let seen = receive(suite, wire.chunks(step));
    assert_eq!(receive(suite, [&wire[..]]), seen, "cut every {step} bytes");
    let got: Vec<&str> = seen
        .iter()
        .filter(|seen| seen.starts_with("Ok(Data"))
        .map(String::as_str)
        .collect();
    let got: Vec<u8> = got.iter().flat_map(|text| numbers(text)).collect();
    assert!(sent.starts_with(&got));
    assert_eq!(seen.last().is_some_and(|last| last == "Ok(Closed)"), !changed);
    assert!(changed || got == sent);
});

fn numbers(text: &str) -> Vec<u8> {
    let digits = text.split(|digit: char| !digit.is_ascii_digit());
    digits.filter_map(|number| number.parse().ok()).collect()
}

fn session(suite: Suite, write: u8, read: u8) -> Session {
    let half = |fill: u8| Half {
        secret: Secret::new(suite, &vec![fill; suite.secret_len()]).unwrap(),
        number: 0,
    };
    Session::new(half(write), half(read)).unwrap()
}

fn receive<'i>(suite: Suite, pieces: impl IntoIterator<Item = &'i [u8]>) -> Vec<String> {
    let mut session = session(suite, 1, 2);
    let mut seen = Vec::new();
    for mut piece in pieces {
        while let Some(event) = session.receive(&mut piece, true, 0, |event| format!("{event:?}")) {
            let over = event.starts_with("Err");
            seen.push(event);
            if over {
                return seen;
            }
        }
        assert!(piece.is_empty(), "all of a piece is taken");
    }
    seen
}
