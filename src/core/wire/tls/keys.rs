//! Cipher suites, and keys from a traffic secret (RFC 8446 §7).

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use ring::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{HEADER, TAG};

/// A cipher suite of TLS 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

/// Longest secret: that of SHA-384.
const MAX_SECRET: usize = 48;

/// Longest key.
pub(super) const MAX_KEY: usize = 32;

impl Suite {
    /// The suite with this number (RFC 8446 §B.4); None for others, such as CCM.
    pub fn from_number(number: u16) -> Option<Suite> {
        match number {
            0x1301 => Some(Suite::Aes128Gcm),
            0x1302 => Some(Suite::Aes256Gcm),
            0x1303 => Some(Suite::ChaCha20Poly1305),
            _ => None,
        }
    }

    pub fn number(self) -> u16 {
        match self {
            Suite::Aes128Gcm => 0x1301,
            Suite::Aes256Gcm => 0x1302,
            Suite::ChaCha20Poly1305 => 0x1303,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Suite::Aes128Gcm => &AES_128_GCM,
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn hash(self) -> hkdf::Algorithm {
        match self {
            Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => HKDF_SHA256,
            Suite::Aes256Gcm => HKDF_SHA384,
        }
    }

    /// Length of its secrets in bytes.
    pub fn secret_len(self) -> usize {
        self.hash().hmac_algorithm().digest_algorithm().output_len()
    }

    fn key_len(self) -> usize {
        self.algorithm().key_len()
    }
}

/// The length of what HKDF makes, for ring.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// A traffic secret: of one direction, from one KeyUpdate to the next. Overwritten when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret {
    #[zeroize(skip)]
    suite: Suite,
    bytes: [u8; MAX_SECRET],
}

impl Secret {
    /// None if the secret's length is not the suite's.
    pub fn new(suite: Suite, secret: &[u8]) -> Option<Secret> {
        if secret.len() != suite.secret_len() {
            return None;
        }
        let mut bytes = [0; MAX_SECRET];
        bytes[..secret.len()].copy_from_slice(secret);
        Some(Secret { suite, bytes })
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.suite.secret_len()]
    }

    /// Replaces it by the one after a KeyUpdate (RFC 8446 §7.2).
    pub(super) fn update(&mut self) -> Option<()> {
        let mut next = Zeroizing::new([0; MAX_SECRET]);
        let len = self.suite.secret_len();
        self.expand(b"traffic upd", &mut next[..len])?;
        self.bytes.copy_from_slice(&*next);
        Some(())
    }

    /// The key and the initialization vector of records (RFC 8446 §7.3).
    pub(super) fn keys(&self) -> Option<Keys> {
        let mut keys = Keys {
            suite: self.suite,
            key: [0; MAX_KEY],
            iv: [0; NONCE_LEN],
        };
        self.expand(b"key", &mut keys.key[..self.suite.key_len()])?;
        self.expand(b"iv", &mut keys.iv)?;
        Some(keys)
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 §7.1). None never happens: ring refuses only outputs that are
    /// longer than any here.
    fn expand(&self, label: &[u8], out: &mut [u8]) -> Option<()> {
        let length = (out.len() as u16).to_be_bytes();
        let label_length = [(b"tls13 ".len() + label.len()) as u8];
        let info = [&length[..], &label_length, b"tls13 ", label, &[0]];
        let key = Prk::new_less_safe(self.suite.hash(), self.bytes());
        key.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out)).ok()
    }
}

/// What records of one direction are sealed or opened with. Overwritten when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Keys {
    #[zeroize(skip)]
    suite: Suite,
    key: [u8; MAX_KEY],
    iv: [u8; NONCE_LEN],
}

impl Keys {
    /// The cipher, ready for use: several times the size of the key, so it is not kept. None never happens: ring refuses
    /// only keys of a wrong length.
    pub(super) fn cipher(&self) -> Option<Cipher<'_>> {
        let key = UnboundKey::new(self.suite.algorithm(), &self.key[..self.suite.key_len()]);
        Some(Cipher {
            key: LessSafeKey::new(key.ok()?),
            iv: &self.iv,
        })
    }

    #[cfg(test)]
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        (&self.key[..self.suite.key_len()], &self.iv)
    }
}

/// A cipher that is set up for a few records.
pub(super) struct Cipher<'k> {
    key: LessSafeKey,
    iv: &'k [u8; NONCE_LEN],
}

impl Cipher<'_> {
    /// The nonce of a record (RFC 8446 §5.3).
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, counted) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= counted;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts `content` in place; returns the tag. The caller never uses a number twice. None never happens: ring
    /// refuses only gigabytes.
    pub(super) fn seal(&self, number: u64, header: [u8; HEADER], content: &mut [u8]) -> Option<[u8; TAG]> {
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(number), Aad::from(header), content);
        tag.ok()?.as_ref().try_into().ok()
    }

    /// Decrypts in place what includes the tag; None if it is not authentic.
    pub(super) fn open<'r>(&self, number: u64, header: [u8; HEADER], record: &'r mut [u8]) -> Option<&'r mut [u8]> {
        let opened = self.key.open_in_place(self.nonce(number), Aad::from(header), record);
        opened.ok()
    }
}
