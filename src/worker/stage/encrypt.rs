//! `encrypt`: encrypts the payload for holders of the key; nginx and intermediaries see only an envelope.
//!
//! ```toml
//! secure = { type = "encrypt", algorithm = "aes-256-gcm", key = { file = "keys/firehose.key", id = "k7" } }
//! ```
//!
//! The envelope is a JSON object:
//!
//! | member | |
//! |---|---|
//! | `v` | 1 |
//! | `alg` | `aes-256-gcm` (default) or `chacha20-poly1305` |
//! | `kid` | which key |
//! | `salt` | 16 bytes, random for each run of the worker and each such stage |
//! | `nonce` | 12 bytes, never the same with one salt |
//! | `id` | the event's id |
//! | `data` | ciphertext and tag |
//!
//! All members but `v`, `alg`, `kid` and `id` are bytes in base64. The key is HKDF-SHA256 of the 32 bytes in the key
//! file, with the salt, and with the info `push-stream 1 ALG`. Associated data is `1`, `kid` and `id`, joined by zero
//! bytes: an envelope cannot be passed off as another event. The channel is not part of it, so that one ciphertext
//! serves all channels of an event.
//!
//! Random nonces under one key would collide after about 2^32 events, five days at 10,000/s; so each run derives its
//! own key and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use chacha20poly1305::ChaCha20Poly1305;
use hkdf::Hkdf;
use serde::Serialize;
use sha2::Sha256;

use super::{Flow, KEY_BYTES, Kind, Stage, key_file};
use crate::config::section::Section;
use crate::event::Event;

pub const KIND: Kind = Kind {
    name: "encrypt",
    about: "seals the payload for those who have the key",
    read,
};

const VERSION: &str = "1";
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

enum Cipher {
    Aes256Gcm(Box<Aes256Gcm>),
    ChaCha20Poly1305(ChaCha20Poly1305),
}

pub struct Encrypt {
    algorithm: Algorithm,
    key_id: String,
    /// Salt of this run, in base64.
    salt: String,
    cipher: Cipher,
    /// The next nonce. Shared by all lanes, so that each value is used once; relaxed, because only uniqueness matters.
    counter: AtomicU64,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let words = [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305].map(|one| (one.name(), one));
    let algorithm = section.choice("algorithm", &words, Algorithm::Aes256Gcm);
    if !section.has("key") {
        section.complain_at("key", "is missing: key = { file = \"…\", id = \"…\" }");
    }
    let (key, key_id) = section.table("key", |key| Some((key_file(key)?, key.required::<String>("id")?)))??;
    match Encrypt::new(algorithm, &key, key_id) {
        Ok(stage) => Some(Arc::new(stage)),
        Err(error) => {
            section.complain(error);
            None
        }
    }
}

impl Encrypt {
    fn new(algorithm: Algorithm, key: &[u8; KEY_BYTES], key_id: String) -> Result<Self, String> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| format!("no randomness: {error}"))?;
        let mut derived = [0; KEY_BYTES];
        let info = format!("push-stream {VERSION} {}", algorithm.name());
        let expanded = Hkdf::<Sha256>::new(Some(&salt), key).expand(info.as_bytes(), &mut derived);
        expanded.map_err(|error| error.to_string())?;
        let cipher = match algorithm {
            Algorithm::Aes256Gcm => Cipher::Aes256Gcm(Box::new(Aes256Gcm::new(&derived.into()))),
            Algorithm::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305(ChaCha20Poly1305::new(&derived.into())),
        };
        Ok(Self {
            algorithm,
            key_id,
            salt: BASE64_STANDARD.encode(salt),
            cipher,
            counter: AtomicU64::new(0),
        })
    }

    fn seal(&self, event: &Event) -> Result<Bytes, String> {
        #[derive(Serialize)]
        struct Envelope<'a> {
            v: u8,
            alg: &'a str,
            kid: &'a str,
            salt: &'a str,
            nonce: String,
            id: &'a str,
            data: String,
        }
        let id = event.id.to_string();
        let associated = [VERSION, &self.key_id, &id].join("\0");
        let payload = event.payload();
        let sealed = Payload {
            msg: &payload,
            aad: associated.as_bytes(),
        };
        let mut nonce = [0; NONCE_BYTES];
        nonce[NONCE_BYTES - 8..].copy_from_slice(&self.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let data = match &self.cipher {
            Cipher::Aes256Gcm(cipher) => cipher.encrypt(&nonce.into(), sealed),
            Cipher::ChaCha20Poly1305(cipher) => cipher.encrypt(&nonce.into(), sealed),
        };
        let envelope = Envelope {
            v: 1,
            alg: self.algorithm.name(),
            kid: &self.key_id,
            salt: &self.salt,
            nonce: BASE64_STANDARD.encode(nonce),
            id: &id,
            data: BASE64_STANDARD.encode(data.map_err(|_| "the payload is too long to be encrypted".to_owned())?),
        };
        serde_json::to_vec(&envelope)
            .map(Bytes::from)
            .map_err(|error| error.to_string())
    }
}

impl Stage for Encrypt {
    fn run(&self, event: &mut Event) -> Flow {
        match self.seal(event) {
            Ok(envelope) => {
                event.body = Some(envelope);
                Flow::Next
            }
            Err(reason) => Flow::Park(reason),
        }
    }

    fn needs_fields(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;
    use serde_json::Value;
    use std::collections::HashSet;

    const KEY: [u8; KEY_BYTES] = [9; KEY_BYTES];

    fn stage(algorithm: Algorithm) -> Encrypt {
        Encrypt::new(algorithm, &KEY, "k7".into()).unwrap()
    }

    fn seal(stage: &Encrypt, id: u64) -> Value {
        let mut event = Event::new(EventId::new(1, id), Timestamp(0), "secret".into());
        assert!(matches!(stage.run(&mut event), Flow::Next));
        let body = event.body.unwrap();
        assert!(memchr::memmem::find(&body, b"secret").is_none());
        serde_json::from_slice(&body).unwrap()
    }

    /// Decrypts as a reader of the documentation would.
    fn open(envelope: &Value, id: &str) -> Option<Vec<u8>> {
        let bytes = |key: &str| BASE64_STANDARD.decode(envelope[key].as_str().unwrap()).unwrap();
        let mut derived = [0; KEY_BYTES];
        let algorithm = envelope["alg"].as_str().unwrap();
        Hkdf::<Sha256>::new(Some(&bytes("salt")), &KEY)
            .expand(format!("push-stream 1 {algorithm}").as_bytes(), &mut derived)
            .unwrap();
        let associated = format!("1\0{}\0{id}", envelope["kid"].as_str().unwrap());
        let data = bytes("data");
        let sealed = Payload {
            msg: &data,
            aad: associated.as_bytes(),
        };
        let nonce: [u8; NONCE_BYTES] = bytes("nonce").try_into().unwrap();
        match algorithm {
            "aes-256-gcm" => Aes256Gcm::new(&derived.into()).decrypt(&nonce.into(), sealed).ok(),
            _ => ChaCha20Poly1305::new(&derived.into())
                .decrypt(&nonce.into(), sealed)
                .ok(),
        }
    }

    #[test]
    fn who_has_the_key_can_open_the_envelope_and_only_as_the_event_it_is() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let envelope = seal(&stage(algorithm), 5);
            assert_eq!(open(&envelope, "1-5").as_deref(), Some(&b"secret"[..]));
            assert_eq!(open(&envelope, "1-6"), None, "another event");
            let mut forged = envelope.clone();
            forged["kid"] = "k8".into();
            assert_eq!(open(&forged, "1-5"), None, "another key's name");
        }
    }

    #[test]
    fn no_two_envelopes_share_salt_and_nonce_whatever_lanes_and_restarts_there_are() {
        let mut seen = HashSet::new();
        for _restart in 0..5 {
            let stage = stage(Algorithm::Aes256Gcm);
            let lanes = std::thread::scope(|scope| {
                let lane = || (0..500).map(|id| seal(&stage, id)).collect::<Vec<_>>();
                let lanes: Vec<_> = (0..4).map(|_| scope.spawn(lane)).collect();
                lanes
                    .into_iter()
                    .flat_map(|lane| lane.join().unwrap())
                    .collect::<Vec<_>>()
            });
            for envelope in lanes {
                assert!(seen.insert((envelope["salt"].to_string(), envelope["nonce"].to_string())));
            }
        }
        assert_eq!(seen.iter().map(|(salt, _)| salt).collect::<HashSet<_>>().len(), 5);
    }
}
