//! Verification of a token: its form, its key, its signature, its claims.

use std::rc::Rc;

use serde_json::Value;

use super::claims::{Dialect, Token};
use super::compact::{self, Unverified};
use super::keys::{Key, KeySet};
use super::{Rejection, Revocations};

/// Keys tried for one token.
const TRIES: usize = 4;

/// The keys of one file, and whose tokens they verify.
#[derive(Clone, Debug)]
pub struct Source {
    /// Only tokens with this `iss` are verified with these keys; None = any token.
    pub issuer: Option<String>,
    pub keys: Rc<KeySet>,
}

/// What tokens must fulfil.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    pub sources: Vec<Source>,
    /// One of them must be in `aud`. Without any, a token with an `aud` is for somebody else (RFC 7519 §4.1.3).
    pub audience: Vec<String>,
    pub dialect: Dialect,
    /// Seconds by which the clocks of signer and verifier may differ.
    pub leeway: u64,
    pub revocations: Rc<Revocations>,
}

impl Verifier {
    /// Verifies all that stays true of a token; [`Verifier::check`] has the rest.
    pub fn verify(&self, text: &[u8]) -> Result<Token, Rejection> {
        let unverified = compact::parse(text)?;
        self.verify_signature(&unverified)?;
        self.check_audience(unverified.claims.get("aud"))?;
        Token::of(&unverified.claims, self.dialect)
    }

    /// Checks what depends on the time, in Unix seconds, and on what was revoked meanwhile.
    pub fn check(&self, token: &Token, now: u64) -> Result<(), Rejection> {
        token.check(now, self.leeway, &self.revocations)
    }

    fn verify_signature(&self, token: &Unverified<'_>) -> Result<(), Rejection> {
        // The issuer only chooses among trusted keys, so that it may be read before it is verified.
        let issuer = match token.claims.get("iss") {
            None => None,
            Some(Value::String(issuer)) => Some(issuer.as_str()),
            Some(_) => return Err(Rejection::Claims),
        };
        let trusted = |source: &&Source| source.issuer.as_deref().is_none_or(|bound| Some(bound) == issuer);
        if !self.sources.iter().any(|source| trusted(&source)) {
            return Err(Rejection::Issuer);
        }
        let candidates = || {
            let sources = self.sources.iter().filter(trusted);
            sources
                .flat_map(|source| source.keys.keys())
                .filter(|key| key.may_verify(token.algorithm))
        };
        let named = |key: &&Key| key.id().is_some() && key.id() == token.key_id.as_deref();
        let verifies = |key: &Key| key.verifies(token.algorithm, token.signed, token.signature);
        let mut tried = 0;
        let mut one_of = |keys: &mut dyn Iterator<Item = &Key>| {
            keys.take(TRIES).any(|key| {
                tried += 1;
                verifies(key)
            })
        };
        let verified = if candidates().any(|key| named(&key)) {
            one_of(&mut candidates().filter(named))
        } else {
            // A key with another name is another key. One without a name, such as any in PEM, may be the one.
            one_of(&mut candidates().filter(|key| token.key_id.is_none() || key.id().is_none()))
        };
        match verified {
            true => Ok(()),
            false if tried == 0 => Err(Rejection::Key),
            false => Err(Rejection::Signature),
        }
    }

    fn check_audience(&self, claim: Option<&Value>) -> Result<(), Rejection> {
        let wanted = |value: &str| self.audience.iter().any(|own| own == value);
        let fits = match claim {
            None => self.audience.is_empty(),
            Some(Value::String(value)) => wanted(value),
            Some(Value::Array(values)) => {
                if !values.iter().all(Value::is_string) {
                    return Err(Rejection::Claims);
                }
                values.iter().filter_map(Value::as_str).any(wanted)
            }
            Some(_) => return Err(Rejection::Claims),
        };
        if fits { Ok(()) } else { Err(Rejection::Audience) }
    }
}
