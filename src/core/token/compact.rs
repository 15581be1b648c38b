//! The compact form of a signed token: header, payload and signature.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::signature::Algorithm;
use super::{LONGEST, Rejection, json};

/// A token of which nothing is verified.
#[derive(Debug)]
pub struct Unverified<'t> {
    pub algorithm: Algorithm,
    /// `kid`: which key the signer claims to have used.
    pub key_id: Option<String>,
    /// What is signed: header and payload as they came.
    pub signed: &'t [u8],
    /// The signature as it came, in base64url.
    pub signature: &'t str,
    pub claims: Map<String, Value>,
}

/// Members of a header that would let the token choose its own key, or change what a signature covers.
const REFUSED_MEMBERS: [&str; 7] = ["crit", "jku", "x5u", "jwk", "b64", "zip", "enc"];

/// Splits and decodes a token.
pub fn parse(text: &[u8]) -> Result<Unverified<'_>, Rejection> {
    if text.is_empty() {
        return Err(Rejection::Missing);
    }
    if text.len() > LONGEST {
        return Err(Rejection::TooLong);
    }
    let text = str::from_utf8(text).map_err(|_| Rejection::Malformed)?;
    let (signed, signature) = text.rsplit_once('.').ok_or(Rejection::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(Rejection::Malformed)?;
    let header = decode(header)
        .and_then(|header| json::object(&header))
        .ok_or(Rejection::Malformed)?;
    if REFUSED_MEMBERS.iter().any(|name| header.contains_key(*name)) {
        return Err(Rejection::Header);
    }
    let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Rejection::Malformed)?;
    let algorithm = Algorithm::named(algorithm).ok_or(Rejection::Algorithm)?;
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(_) => return Err(Rejection::Malformed),
    };
    // A payload with a dot in it, as the JSON form of five parts has, is no base64url.
    let claims = decode(payload)
        .and_then(|claims| json::object(&claims))
        .ok_or(Rejection::Malformed)?;
    if decode(signature).is_none_or(|signature| signature.is_empty()) {
        return Err(Rejection::Malformed);
    }
    Ok(Unverified {
        algorithm,
        key_id,
        signed: signed.as_bytes(),
        signature,
        claims,
    })
}

/// base64url without padding, in its one canonical form: a token must not have two texts.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
