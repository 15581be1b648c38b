//! The signature algorithms: the `jsonwebtoken` crate's verification with a provider on `ring`.
//!
//! Its own providers are not used: `aws-lc` would be a second library of the kind beside ring, which TLS needs
//! elsewhere, and the RSA of pure Rust leaks its timing (RUSTSEC-2023-0071).

use std::sync::Once;

use ::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils, verify as verify_encoded};
use jsonwebtoken::errors::{ErrorKind, Result as JwtResult};
use jsonwebtoken::{Algorithm as Named, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{digest, hmac, signature as ring_signature};

/// A signature algorithm (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm(Named);

/// The algorithms in a row, with their names.
const ALGORITHMS: [(&str, Named); 12] = [
    ("HS256", Named::HS256),
    ("HS384", Named::HS384),
    ("HS512", Named::HS512),
    ("RS256", Named::RS256),
    ("RS384", Named::RS384),
    ("RS512", Named::RS512),
    ("PS256", Named::PS256),
    ("PS384", Named::PS384),
    ("PS512", Named::PS512),
    ("ES256", Named::ES256),
    ("ES384", Named::ES384),
    ("EdDSA", Named::EdDSA),
];

impl Algorithm {
    /// By its name in a token's header or a key's `alg`.
    pub fn named(name: &str) -> Option<Algorithm> {
        // RFC 9864 gives the one algorithm of the EdDSA family that is known here a name of its own.
        let name = if name == "Ed25519" { "EdDSA" } else { name };
        let (_, algorithm) = ALGORITHMS.iter().find(|(known, _)| *known == name)?;
        Some(Algorithm(*algorithm))
    }

    pub fn name(self) -> &'static str {
        let known = ALGORITHMS.iter().find(|(_, algorithm)| *algorithm == self.0);
        known.map_or("", |(name, _)| name)
    }

    /// Bytes of its hash value: an HMAC key must not be shorter (RFC 7518 §3.2).
    pub(super) fn hash_len(self) -> usize {
        match self.0 {
            Named::HS384 | Named::RS384 | Named::PS384 | Named::ES384 => 48,
            Named::HS512 | Named::RS512 | Named::PS512 => 64,
            _ => 32,
        }
    }
}

/// Does `signature`, in base64url, belong to `signed`?
pub(super) fn verifies(algorithm: Algorithm, key: &DecodingKey, signed: &[u8], signature: &str) -> bool {
    install();
    verify_encoded(signature, signed, key, algorithm.0).unwrap_or(false)
}

/// The SHA-256 of a text.
pub fn sha256(text: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, text).as_ref());
    hash
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

fn install() {
    static INSTALLED: Once = Once::new();
    // It fails only if it is called twice.
    INSTALLED.call_once(|| _ = PROVIDER.install_default());
}

fn no_signer(_: &Named, _: &EncodingKey) -> JwtResult<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

fn verifier(algorithm: &Named, key: &DecodingKey) -> JwtResult<Box<dyn JwtVerifier>> {
    if key.family() != family(*algorithm)? {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        key: key.clone(),
    }))
}

fn family(algorithm: Named) -> JwtResult<jsonwebtoken::AlgorithmFamily> {
    use jsonwebtoken::AlgorithmFamily::{Ec, Ed, Hmac, Rsa};
    [Hmac, Rsa, Ec, Ed]
        .into_iter()
        .find(|family| family.algorithms().contains(&algorithm))
        .ok_or_else(|| ErrorKind::UnsupportedAlgorithm.into())
}

struct RingVerifier {
    algorithm: Named,
    key: DecodingKey,
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Named {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, signed: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        self.check(signed, signature).ok_or_else(SignatureError::new)
    }
}

impl RingVerifier {
    fn check(&self, signed: &[u8], signature: &[u8]) -> Option<()> {
        match self.algorithm {
            Named::HS256 => self.check_hmac(hmac::HMAC_SHA256, signed, signature),
            Named::HS384 => self.check_hmac(hmac::HMAC_SHA384, signed, signature),
            Named::HS512 => self.check_hmac(hmac::HMAC_SHA512, signed, signature),
            Named::RS256 => self.check_rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA256, signed, signature),
            Named::RS384 => self.check_rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA384, signed, signature),
            Named::RS512 => self.check_rsa(&ring_signature::RSA_PKCS1_2048_8192_SHA512, signed, signature),
            Named::PS256 => self.check_rsa(&ring_signature::RSA_PSS_2048_8192_SHA256, signed, signature),
            Named::PS384 => self.check_rsa(&ring_signature::RSA_PSS_2048_8192_SHA384, signed, signature),
            Named::PS512 => self.check_rsa(&ring_signature::RSA_PSS_2048_8192_SHA512, signed, signature),
            Named::ES256 => self.check_point(&ring_signature::ECDSA_P256_SHA256_FIXED, signed, signature),
            Named::ES384 => self.check_point(&ring_signature::ECDSA_P384_SHA384_FIXED, signed, signature),
            Named::EdDSA => self.check_point(&ring_signature::ED25519, signed, signature),
            _ => None,
        }
    }

    fn check_hmac(&self, hash: hmac::Algorithm, signed: &[u8], signature: &[u8]) -> Option<()> {
        let key = hmac::Key::new(hash, self.key.try_get_as_bytes().ok()?);
        hmac::verify(&key, signed, signature).ok()
    }

    fn check_rsa(&self, parameters: &ring_signature::RsaParameters, signed: &[u8], signature: &[u8]) -> Option<()> {
        let DecodingKeyKind::RsaModulusExponent { n, e } = self.key.kind() else {
            return None;
        };
        RsaPublicKeyComponents { n, e }
            .verify(parameters, signed, signature)
            .ok()
    }

    fn check_point(
        &self,
        algorithm: &'static dyn ring_signature::VerificationAlgorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> Option<()> {
        let key = UnparsedPublicKey::new(algorithm, self.key.try_get_as_bytes().ok()?);
        key.verify(signed, signature).ok()
    }
}
