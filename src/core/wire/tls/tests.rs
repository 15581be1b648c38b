use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20poly1305::ChaCha20Poly1305;
use hkdf::Hkdf;
use proptest::prelude::*;
use sha2::{Sha256, Sha384};

use super::keys::Suite;
use super::session::{RECORDS_PER_KEY, STRAY_PER_MINUTE, UPDATES_PER_MINUTE};
use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// One direction as another implementation does it: RustCrypto's ciphers and HKDF.
#[derive(Clone)]
struct Reference {
    suite: Suite,
    secret: Vec<u8>,
    number: u64,
}

impl Reference {
    fn new(suite: Suite, secret: &[u8]) -> Reference {
        Reference {
            suite,
            secret: secret.to_vec(),
            number: 0,
        }
    }

    fn expand(&self, label: &str, len: usize) -> Vec<u8> {
        let label = format!("tls13 {label}");
        let mut info = (len as u16).to_be_bytes().to_vec();
        info.push(label.len() as u8);
        info.extend_from_slice(label.as_bytes());
        info.push(0);
        let mut out = vec![0; len];
        match self.suite {
            Suite::Aes256Gcm => Hkdf::<Sha384>::from_prk(&self.secret).unwrap().expand(&info, &mut out),
            _ => Hkdf::<Sha256>::from_prk(&self.secret).unwrap().expand(&info, &mut out),
        }
        .unwrap();
        out
    }

    fn update(&mut self) {
        self.secret = self.expand("traffic upd", self.secret.len());
        self.number = 0;
    }

    fn crypt(&mut self, seal: bool, header: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        let key_len = if self.suite == Suite::Aes128Gcm { 16 } else { 32 };
        let (key, iv) = (self.expand("key", key_len), self.expand("iv", 12));
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.number.to_be_bytes());
        nonce.iter_mut().zip(iv).for_each(|(byte, iv)| *byte ^= iv);
        self.number += 1;
        let nonce = (&nonce).into();
        let payload = Payload { msg: text, aad: header };
        macro_rules! with {
            ($cipher:ty) => {{
                let cipher = <$cipher>::new_from_slice(&key).unwrap();
                if seal {
                    cipher.encrypt(nonce, payload)
                } else {
                    cipher.decrypt(nonce, payload)
                }
                .ok()
            }};
        }
        match self.suite {
            Suite::Aes128Gcm => with!(Aes128Gcm),
            Suite::Aes256Gcm => with!(Aes256Gcm),
            Suite::ChaCha20Poly1305 => with!(ChaCha20Poly1305),
        }
    }

    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let inner = [content, &[kind], &vec![0; padding]].concat();
        let header = [&[23, 3, 3][..], &((inner.len() + TAG) as u16).to_be_bytes()].concat();
        let sealed = self.crypt(true, &header, &inner).unwrap();
        [header, sealed].concat()
    }

    /// Opens all records, which must be numbered without a gap, following updates of the keys.
    fn open_all(&mut self, mut wire: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut seen = Vec::new();
        while !wire.is_empty() {
            let (header, rest) = wire.split_at(HEADER);
            assert_eq!(header[..3], [23, 3, 3]);
            let (record, rest) = rest.split_at(usize::from(u16::from_be_bytes([header[3], header[4]])));
            let mut inner = self.crypt(false, header, record).expect("the next number's record");
            let kind = inner.pop().unwrap();
            if kind == 22 {
                assert_eq!(inner[..4], [24, 0, 0, 1]);
                self.update();
            }
            seen.push((kind, inner));
            wire = rest;
        }
        seen
    }
}

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn secret(suite: Suite, fill: u8) -> Vec<u8> {
    (0..suite.secret_len()).map(|index| fill ^ index as u8).collect()
}

fn half(suite: Suite, secret: &[u8], number: u64) -> Half {
    Half {
        secret: Secret::new(suite, secret).unwrap(),
        number,
    }
}

/// A session, and the other end: what opens its records and what seals records for it.
fn pair(suite: Suite) -> (Session, Reference, Reference) {
    let (write, read) = (secret(suite, 1), secret(suite, 2));
    let session = Session::new(half(suite, &write, 0), half(suite, &read, 0)).unwrap();
    (session, Reference::new(suite, &write), Reference::new(suite, &read))
}

fn take_all(wire: &mut Vec<u8>) -> impl FnMut(&[u8]) -> Offered {
    |bytes| {
        wire.extend_from_slice(bytes);
        Offered::Taken(bytes.len())
    }
}

/// The content sent, and everything that is seen.
fn receive_all(session: &mut Session, mut input: &[u8], wants_data: bool) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(event) = session.receive(&mut input, wants_data, 0, |event| format!("{event:?}")) {
        let over = event.starts_with("Err");
        seen.push(event);
        if over {
            break;
        }
    }
    seen
}

/// RFC 8448 §3.
mod rfc8448 {
    use super::*;

    const SERVER: &str =
        "a1 1a f9 f0 55 31 f8 56 ad 47 11 6b 45 a9 50 32 82 04 b4 f4 4b fb 6b 3a 4b 4f 1f 3f cb 63 16 43";
    const CLIENT: &str =
        "9e 40 64 6c e7 9a 7f 9d c0 5a f8 88 9b ce 65 52 87 5a fa 0b 06 df 00 87 f7 92 eb b7 c1 75 04 a5";

    #[test]
    fn keys_follow_from_the_secrets() {
        for (secret, key, iv) in [
            (SERVER, "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"),
            (CLIENT, "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"),
        ] {
            let keys = Secret::new(Suite::Aes128Gcm, &bytes(secret)).unwrap().keys().unwrap();
            assert_eq!(keys.parts(), (&bytes(key)[..], &bytes(iv)[..]));
        }
    }

    #[test]
    fn records_are_those_of_the_trace() {
        let suite = Suite::Aes128Gcm;
        // The server's record 0 is its ticket.
        let mut session = Session::new(half(suite, &bytes(SERVER), 1), half(suite, &bytes(CLIENT), 0)).unwrap();
        let content: Vec<u8> = (0..50).collect();
        let mut wire = Vec::new();
        let mut scratch = Vec::new();
        assert_eq!(
            session.send(&content, &mut scratch, &mut take_all(&mut wire)),
            (50, Progress::Done)
        );
        assert_eq!(
            session.close(Alert::CloseNotify, &mut scratch, &mut take_all(&mut wire)),
            Progress::Done
        );
        let expected = "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36
            e3 0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1
            67 c2 95 5d 17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9";
        assert_eq!(wire, bytes(expected));
        let client = "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f
            2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21
            69 49 15 e4 17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3";
        let seen = receive_all(&mut session, &bytes(client), true);
        assert_eq!(seen, [format!("Ok(Data({content:?}))"), "Ok(Closed)".into()]);
    }
}

#[test]
fn a_secret_has_the_length_of_its_suite() {
    for suite in SUITES {
        assert_eq!(Suite::from_number(suite.number()), Some(suite));
        for len in 0..64 {
            assert_eq!(Secret::new(suite, &vec![7; len]).is_some(), len == suite.secret_len());
        }
    }
    assert_eq!(Suite::from_number(0x1304), None, "CCM");
    assert!(
        Session::new(
            half(SUITES[0], &secret(SUITES[0], 1), 0),
            half(SUITES[2], &secret(SUITES[2], 1), 0)
        )
        .is_none()
    );
}

#[test]
fn the_state_is_small() {
    assert!(size_of::<Session>() <= 264, "{}", size_of::<Session>());
}

#[test]
fn own_keys_change_after_their_share_of_records() {
    for suite in SUITES {
        let write = secret(suite, 1);
        let number = RECORDS_PER_KEY - 2;
        let mut session = Session::new(half(suite, &write, number), half(suite, &secret(suite, 2), 0)).unwrap();
        let mut peer = Reference::new(suite, &write);
        peer.number = number;
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        for text in ["a", "b", "c", "d"] {
            session.send(text.as_bytes(), &mut scratch, &mut take_all(&mut wire));
        }
        let kinds: Vec<u8> = peer.open_all(&wire).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [23, 23, 22, 23, 23], "an update under the old key, once");
        assert_eq!(peer.number, 2);
    }
}

#[test]
fn a_wish_for_new_keys_is_granted_under_the_old_ones() {
    for suite in SUITES {
        let (mut session, mut reader, mut writer) = pair(suite);
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        // Two wishes before the answer, and data under each new key.
        let mut input = Vec::new();
        for _ in 0..2 {
            input.extend(writer.seal(22, &[24, 0, 0, 1, 1], 0));
            writer.update();
            input.extend(writer.seal(23, b"new", 3));
        }
        let seen = receive_all(&mut session, &input, true);
        let update = "Ok(KeyUpdate { wanted: true })";
        let data = "Ok(Data([110, 101, 119]))";
        assert_eq!(seen, [update, data, update, data]);
        assert!(session.has_to_send());
        assert_eq!(session.flush(&mut scratch, &mut take_all(&mut wire)), Progress::Done);
        assert!(!session.has_to_send());
        session.send(b"text", &mut scratch, &mut take_all(&mut wire));
        let sent = reader.open_all(&wire);
        assert_eq!(sent, [(22, vec![24, 0, 0, 1, 0]), (23, b"text".to_vec())], "one answer");
    }
}

#[test]
fn keys_change_only_so_often_in_a_minute() {
    let (mut session, _, mut writer) = pair(Suite::Aes128Gcm);
    let mut update = |now_ms: u64| {
        let record = writer.seal(22, &[24, 0, 0, 1, 0], 0);
        writer.update();
        session
            .receive(&mut &record[..], true, now_ms, |event| event.is_ok())
            .unwrap()
    };
    for _ in 0..UPDATES_PER_MINUTE {
        assert!(update(59_999));
    }
    assert!(!update(59_999));
    assert!(update(120_000));
}

#[test]
fn what_is_of_no_use_is_bounded() {
    let (mut session, _, mut writer) = pair(Suite::ChaCha20Poly1305);
    let mut count = |text: &[u8], wants: bool, now_ms| {
        let mut ok = 0;
        while ok < 10_000
            && session
                .receive(&mut &writer.seal(23, text, 0)[..], wants, now_ms, |event| event.is_ok())
                .unwrap()
        {
            ok += 1;
        }
        ok
    };
    assert_eq!(count(&[0; 1000], false, 0), STRAY_PER_MINUTE / 1022);
    assert_eq!(count(b"", true, 60_000), STRAY_PER_MINUTE / 22, "empty records, too");
    assert_eq!(count(b"text", true, 120_000), 10_000, "but not what is of use");
}

/// As the message between two processes would carry it.
fn moved(session: Session) -> Session {
    let (state, ciphertext) = session.into_parts();
    let bytes = postcard::to_allocvec(&(state, ciphertext)).unwrap();
    let (state, ciphertext) = postcard::from_bytes(&bytes).unwrap();
    Session::from_parts(state, ciphertext).expect("parts of a session")
}

#[test]
fn a_session_moves_with_what_it_owes_and_what_was_done() {
    for suite in SUITES {
        let (session, mut reader, mut writer) = pair(suite);
        let mut session = moved(session);
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        // A wish for new keys, and half of a record.
        let mut input = writer.seal(22, &[24, 0, 0, 1, 1], 0);
        writer.update();
        let data = writer.seal(23, b"data", 2);
        input.extend(&data[..data.len() - 3]);
        receive_all(&mut session, &input, true);
        let mut session = moved(session);
        assert!(session.has_to_send());
        let seen = receive_all(&mut session, &data[data.len() - 3..], true);
        assert_eq!(seen, ["Ok(Data([100, 97, 116, 97]))"]);
        session.send(b"one", &mut scratch, &mut take_all(&mut wire));
        let mut session = moved(session);
        session.send(b"two", &mut scratch, &mut take_all(&mut wire));
        session.close(Alert::CloseNotify, &mut scratch, &mut take_all(&mut wire));
        let mut session = moved(session);
        assert!(session.is_closed());
        assert_eq!(
            session.send(b"three", &mut scratch, &mut take_all(&mut wire)).0,
            0,
            "it stays closed"
        );
        let kinds: Vec<u8> = reader.open_all(&wire).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [22, 23, 23, 21]);
    }
}

#[test]
fn bounds_of_a_minute_hold_across_moves() {
    let (mut session, _, mut writer) = pair(Suite::Aes128Gcm);
    let mut updates = 0;
    loop {
        let record = writer.seal(22, &[24, 0, 0, 1, 0], 0);
        writer.update();
        if !session
            .receive(&mut &record[..], true, 7, |event| event.is_ok())
            .unwrap()
        {
            break;
        }
        updates += 1;
        session = moved(session);
    }
    assert_eq!(updates, UPDATES_PER_MINUTE);
}

#[test]
fn parts_that_are_no_session_are_refused() {
    let resumed = |tail: &[u8], begun: &[u8]| {
        let (state, _) = pair(Suite::Aes128Gcm).0.into_parts();
        let (tail, begun) = (tail.to_vec(), begun.to_vec());
        Session::from_parts(state, Ciphertext { tail, begun }).is_some()
    };
    assert!(resumed(&[1], &[]));
    assert!(resumed(&[], &[23]));
    assert!(resumed(&[], &[23, 3, 3, 0, 20, 1]));
    assert!(!resumed(&[], &[22, 3, 3, 0, 20]), "no record of the kind that may come");
    assert!(
        !resumed(&[], &[[23, 3, 3, 0, 17].as_slice(), &[0; 17]].concat()),
        "a whole record"
    );
    assert!(
        !resumed(&[], &[[23, 3, 3, 0, 17].as_slice(), &[0; 18]].concat()),
        "more than that"
    );
}

#[test]
fn bad_records_are_told_apart() {
    let (_, _, writer) = pair(Suite::Aes128Gcm);
    let case = |wire: Vec<u8>| receive_all(&mut pair(Suite::Aes128Gcm).0, &wire, true).join(" ");
    let sealed = |kind, content: &[u8]| writer.clone().seal(kind, content, 0);
    let mut changed = sealed(23, b"text");
    for index in [HEADER, HEADER + 3, changed.len() - 1] {
        changed[index] ^= 1;
        assert_eq!(case(changed.clone()), "Err(BadRecordMac)");
        changed[index] ^= 1;
    }
    changed[1] ^= 1;
    assert_eq!(case(changed), "Err(BadRecordMac)", "the header is authenticated");
    assert_eq!(
        case(writer.clone().seal(0, b"", 100)),
        "Err(UnexpectedMessage)",
        "padding alone"
    );
    assert_eq!(case(sealed(20, &[1])), "Err(UnexpectedMessage)");
    assert_eq!(case(sealed(22, &[])), "Err(UnexpectedMessage)");
    assert_eq!(
        case(sealed(22, &[1, 0, 0, 0])),
        "Err(UnexpectedMessage)",
        "another handshake message"
    );
    assert_eq!(case(sealed(22, &[24, 0, 0, 1, 2])), "Err(IllegalParameter)");
    assert_eq!(case(sealed(22, &[24, 0, 0, 1])), "Err(DecodeError)");
    assert_eq!(
        case(sealed(22, &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0])),
        "Err(UnexpectedMessage)",
        "not alone"
    );
    assert_eq!(case(sealed(21, &[1])), "Err(DecodeError)");
    assert_eq!(case(sealed(21, &[2, 20])), "Ok(Aborted)");
    assert_eq!(case(sealed(21, &[1, 90])), "Ok(Nothing)");
    assert_eq!(
        case(sealed(23, &[7; MAX_CONTENT])).len(),
        case(sealed(23, &[7; MAX_CONTENT])).len()
    );
    assert!(case(sealed(23, &[7; MAX_CONTENT])).starts_with("Ok(Data("));
    assert_eq!(case(sealed(23, &[7; MAX_CONTENT + 1])), "Err(RecordOverflow)");
    assert_eq!(
        case(vec![23, 3, 3, 0x41, 0x01]),
        "Err(RecordOverflow)",
        "before it has come"
    );
    assert_eq!(case(vec![23, 3, 3, 0, 16]), "Err(DecodeError)");
    assert_eq!(case(vec![20, 3, 3, 0, 1, 1]), "Err(UnexpectedMessage)");
    assert_eq!(case(b"GET / HTTP/1.1\r\n".to_vec()), "Err(UnexpectedMessage)");
    let twice = sealed(23, b"text").repeat(2);
    assert_eq!(
        case(twice),
        "Ok(Data([116, 101, 120, 116])) Err(BadRecordMac)",
        "a repeated record"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A socket that takes any number of bytes at each offer. What arrives are the records in order, each number once:
    /// the other end opens them one by one with numbers that rise by one, and finds every byte that was sent.
    #[test]
    fn partial_sends_never_seal_twice(
        suite in 0..3usize,
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..12),
        takes in prop::collection::vec(prop_oneof![Just(0usize), 1..40usize, 1..5000usize], 1..60),
        updates in prop::collection::vec(any::<bool>(), 12),
        moves in prop::collection::vec(any::<bool>(), 12),
        large in any::<bool>(),
    ) {
        let (mut session, mut reader, mut writer) = pair(SUITES[suite]);
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        let mut takes = takes.into_iter().cycle();
        let mut offer = |bytes: &[u8]| match takes.next().unwrap() {
            0 => Offered::Blocked,
            take => {
                let take = take.min(bytes.len());
                wire.extend_from_slice(&bytes[..take]);
                Offered::Taken(take)
            }
        };
        let mut sent = Vec::new();
        for ((text, update), moves) in texts.iter().zip(updates).zip(moves) {
            // To another process, with whatever waits.
            if moves {
                session = moved(session);
            }
            let text = text.repeat(if large { 20 } else { 1 });
            if update {
                let record = writer.seal(22, &[24, 0, 0, 1, 1], 0);
                writer.update();
                prop_assert!(session.receive(&mut &record[..], true, 0, |event| event.is_ok()).unwrap());
            }
            let (sealed, _) = session.send(&text, &mut scratch, &mut offer);
            sent.extend_from_slice(&text[..sealed]);
            prop_assert!(session.waiting() <= MAX_CONTENT + 3 * OVERHEAD);
        }
        let _ = session.close(Alert::CloseNotify, &mut scratch, &mut offer);
        let mut patience = 100_000;
        while session.is_blocked() && patience > 0 {
            let before = session.waiting();
            session.flush(&mut scratch, &mut offer);
            prop_assert!(session.waiting() <= before);
            // A socket that never takes anything.
            patience -= 1;
        }
        if !session.is_blocked() {
            let records = reader.open_all(&wire);
            prop_assert_eq!(records.last(), Some(&(21, vec![1, 0])));
            let data = records.iter().filter(|(kind, _)| *kind == 23).flat_map(|(_, content)| content.clone());
            prop_assert_eq!(data.collect::<Vec<u8>>(), sent);
        }
    }

    /// Records of the other implementation, chopped anywhere: the content is the same.
    #[test]
    fn chopped_input_makes_no_difference(
        suite in 0..3usize,
        records in prop::collection::vec((0..4u8, prop::collection::vec(any::<u8>(), 0..600), 0..50usize), 0..10),
        cuts in prop::collection::vec(1..700usize, 1..20),
    ) {
        let (mut session, _, mut writer) = pair(SUITES[suite]);
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (kind, content, padding) in records {
            match kind {
                0 => {
                    wire.extend(writer.seal(22, &[24, 0, 0, 1, 0], padding));
                    writer.update();
                    expected.push("Ok(KeyUpdate { wanted: false })".to_string());
                }
                _ => {
                    wire.extend(writer.seal(23, &content, padding));
                    expected.push(format!("Ok(Data({content:?}))"));
                }
            }
        }
        let mut cuts = cuts.into_iter().cycle();
        let (mut rest, mut seen) = (&wire[..], Vec::new());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            seen.extend(receive_all(&mut session, piece, true));
            rest = later;
        }
        prop_assert!(session.is_between_records());
        prop_assert_eq!(seen, expected);
    }

    /// Arbitrary bytes are refused without harm.
    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..400), data in any::<bool>()) {
        let (mut session, _, _) = pair(Suite::Aes256Gcm);
        let noise = if data { [&[23, 3, 3, 0, 40][..], &noise].concat() } else { noise };
        let seen = receive_all(&mut session, &noise, true);
        prop_assert!(seen.iter().all(|event| event.starts_with("Err")), "{seen:?}");
    }
}
