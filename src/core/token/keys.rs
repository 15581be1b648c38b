//! Key files: a JWK Set (RFC 7517), or public keys in PEM. The key decides by which algorithms it verifies (RFC 8725
//! §3.1), not the token.

use jsonwebtoken::DecodingKey;
use pkcs1::RsaPublicKeyRef;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::compact::decode;
use super::json;
use super::signature::{Algorithm, verifies};

/// Bytes of a key file.
pub const LONGEST_FILE: usize = 1 << 20;

/// Bits of an RSA modulus: less is weak (RFC 7518 §3.3), more is slow to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Bytes of the shortest shared secret.
const SHORTEST_SECRET: usize = 32;

/// The keys of one file.
#[derive(Clone, Debug)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// One key, and what it may verify.
#[derive(Clone, Debug)]
pub struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub fn may_verify(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Does `signature`, in base64url, belong to `signed`?
    pub fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &str) -> bool {
        self.may_verify(algorithm) && verifies(algorithm, &self.key, signed, signature)
    }
}

impl KeySet {
    /// Reads a key file. With `algorithms`, keys verify by those only. The error says what is wrong with the file.
    pub fn parse(file: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, String> {
        if file.len() > LONGEST_FILE {
            return Err(format!("is longer than {LONGEST_FILE} bytes"));
        }
        let mut keys = if file.trim_ascii_start().starts_with(b"{") {
            parse_set(file)?
        } else {
            parse_pem(file)?
        };
        if keys.is_empty() {
            return Err("has no key that verifies signatures".to_owned());
        }
        if !algorithms.is_empty() {
            for key in &mut keys {
                key.algorithms.retain(|algorithm| algorithms.contains(algorithm));
            }
            keys.retain(|key| !key.algorithms.is_empty());
            if keys.is_empty() {
                return Err("has no key for the given algorithms".to_owned());
            }
        }
        Ok(KeySet { keys })
    }

    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}

fn parse_set(file: &[u8]) -> Result<Vec<Key>, String> {
    let set = json::object(file).ok_or("is no JSON, or has a duplicate member")?;
    // A file with a single key is taken for a set of one.
    let Some(keys) = set.get("keys") else {
        return match set.contains_key("kty") {
            true => Ok(parse_jwk(&set)?.into_iter().collect()),
            false => Err("is no JWK Set: the member keys is missing".to_owned()),
        };
    };
    let keys = keys.as_array().ok_or("is no JWK Set: keys is no array")?;
    let mut parsed = Vec::with_capacity(keys.len());
    for (index, key) in keys.iter().enumerate() {
        let number = index + 1;
        let key = key.as_object().ok_or_else(|| format!("key {number}: is no object"))?;
        parsed.extend(parse_jwk(key).map_err(|problem| format!("key {number}: {problem}"))?);
    }
    Ok(parsed)
}

/// A key; None if it is not for verifying signatures, or of a kind that is not supported: such keys are skipped
/// (RFC 7517 §5).
fn parse_jwk(jwk: &Map<String, Value>) -> Result<Option<Key>, String> {
    let text = |name: &str| match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name} is no text")),
    };
    let bytes = |name: &str| {
        let text = text(name)?.ok_or_else(|| format!("{name} is missing"))?;
        decode(text).ok_or_else(|| format!("{name} is no base64url"))
    };
    if text("use")?.is_some_and(|purpose| purpose != "sig") {
        return Ok(None);
    }
    if let Some(operations) = jwk.get("key_ops") {
        let operations = operations.as_array().ok_or("key_ops is no array")?;
        if !operations.iter().any(|operation| operation == "verify") {
            return Ok(None);
        }
    }
    let kind = text("kty")?.ok_or("kty is missing")?;
    let (key, mut algorithms) = match (kind, text("crv")?) {
        ("RSA", _) => rsa(&bytes("n")?, &bytes("e")?)?,
        ("EC", Some("P-256")) => ec("ES256", 32, &bytes("x")?, &bytes("y")?)?,
        ("EC", Some("P-384")) => ec("ES384", 48, &bytes("x")?, &bytes("y")?)?,
        ("OKP", Some("Ed25519")) => ed(&bytes("x")?)?,
        ("oct", _) => oct(&bytes("k")?)?,
        ("EC" | "OKP", None) => return Err("crv is missing".to_owned()),
        _ => return Ok(None),
    };
    if let Some(name) = text("alg")? {
        // Of a known kind, but for something else, such as encryption.
        let Some(algorithm) = Algorithm::named(name) else {
            return Ok(None);
        };
        if !algorithms.contains(&algorithm) {
            return Err(format!("alg {name} does not go with this key"));
        }
        algorithms = vec![algorithm];
    }
    Ok(Some(Key {
        id: text("kid")?.map(str::to_owned),
        algorithms,
        key,
    }))
}

fn parse_pem(file: &[u8]) -> Result<Vec<Key>, String> {
    if contains(file, b"PRIVATE KEY-----") {
        return Err("has a private key: the public one is wanted".to_owned());
    }
    let mut keys = Vec::new();
    for (index, found) in SubjectPublicKeyInfoDer::pem_slice_iter(file).enumerate() {
        let number = index + 1;
        let info = found.map_err(|error| format!("is no PEM: {error}"))?;
        keys.push(parse_public_key(&info).map_err(|problem| format!("key {number}: {problem}"))?);
    }
    if keys.is_empty() {
        return Err("is neither a JWK Set nor PEM with a PUBLIC KEY".to_owned());
    }
    Ok(keys)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A SubjectPublicKeyInfo (RFC 5280 §4.1).
fn parse_public_key(der: &[u8]) -> Result<Key, String> {
    const UNSUPPORTED: &str = "is neither RSA, P-256, P-384 nor Ed25519";
    let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| "is no public key in DER")?;
    let bytes = info
        .subject_public_key
        .as_bytes()
        .ok_or("is no whole number of bytes")?;
    let (key, algorithms) = match info.algorithm.oid {
        RSA => {
            let key = RsaPublicKeyRef::try_from(bytes).map_err(|_| "is no RSA public key")?;
            rsa(key.modulus.as_bytes(), key.public_exponent.as_bytes())?
        }
        EC => {
            let (name, len) = match info.algorithm.parameters_oid() {
                Ok(P256) => ("ES256", 32),
                Ok(P384) => ("ES384", 48),
                _ => return Err(UNSUPPORTED.to_owned()),
            };
            let coordinates = bytes
                .strip_prefix(&[4])
                .filter(|coordinates| coordinates.len() == 2 * len);
            let (x, y) = coordinates.ok_or("is no uncompressed point")?.split_at(len);
            ec(name, len, x, y)?
        }
        ED25519 => ed(bytes)?,
        _ => return Err(UNSUPPORTED.to_owned()),
    };
    Ok(Key {
        id: None,
        algorithms,
        key,
    })
}

/// A key with the algorithms that it could be for.
type Candidate = Result<(DecodingKey, Vec<Algorithm>), String>;

fn named(names: &[&str]) -> Vec<Algorithm> {
    names.iter().filter_map(|name| Algorithm::named(name)).collect()
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Candidate {
    let strip = |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().skip_while(|byte| *byte == 0).collect() };
    let (modulus, exponent) = (strip(modulus), strip(exponent));
    let bits = modulus
        .first()
        .map_or(0, |first| 8 * modulus.len() - first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(format!(
            "RSA with {bits} bits: at least {least} and at most {most} are accepted"
        ));
    }
    // What ring accepts: odd, from 3 to 33 bits.
    let value = exponent
        .iter()
        .take(8)
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if exponent.len() > 5 || value % 2 == 0 || !(3..1 << 33).contains(&value) {
        return Err("RSA with an exponent that is not accepted".to_owned());
    }
    Ok((
        DecodingKey::from_rsa_raw_components(&modulus, &exponent),
        named(&["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
    ))
}

fn ec(algorithm: &str, len: usize, x: &[u8], y: &[u8]) -> Candidate {
    if x.len() != len || y.len() != len {
        return Err(format!("coordinates of {len} bytes are wanted"));
    }
    let point = [&[4], x, y].concat();
    Ok((DecodingKey::from_ec_der(&point), named(&[algorithm])))
}

fn ed(x: &[u8]) -> Candidate {
    if x.len() != 32 {
        return Err("32 bytes are wanted".to_owned());
    }
    Ok((DecodingKey::from_ed_der(x), named(&["EdDSA"])))
}

fn oct(secret: &[u8]) -> Candidate {
    if secret.len() < SHORTEST_SECRET {
        let len = secret.len();
        return Err(format!(
            "a secret of {len} bytes: at least {SHORTEST_SECRET} are accepted"
        ));
    }
    let mut algorithms = named(&["HS256", "HS384", "HS512"]);
    algorithms.retain(|algorithm| algorithm.hash_len() <= secret.len());
    let key = DecodingKey::from_secret(secret).map_err(|_| "a secret is wanted")?;
    Ok((key, algorithms))
}
