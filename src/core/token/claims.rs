//! What a token says: who, until when, and which channels, in three dialects.

use serde_json::{Map, Value};

use super::grants::{self, Grants, Star};
use super::{Rejection, Revocations};

/// How a token names the channels that it grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `{"push": {"subscribe": ["news", "user.42.*"], "publish": ["chat.7"]}}`.
    #[default]
    Native,
    /// Mercure's: `{"mercure": {"subscribe": [...], "publish": [...]}}` before its version 1.0, and
    /// `authorization_details` (RFC 9396) since then.
    Mercure,
    /// Centrifugo's: `channels` of a connection token, `channel` of a subscription token. They grant subscribing.
    Centrifugo,
}

/// The type of Mercure's authorization details.
const MERCURE: &str = "https://mercure.rocks/authorization-detail";

/// The claims of a token whose signature is verified. What depends on the time is not verified yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    pub subject: Option<Box<str>>,
    /// `jti`.
    pub id: Option<Box<str>>,
    /// `exp`: Unix time, seconds.
    pub expires: Option<u64>,
    /// When its streams end, without leeway. That is `exp`, unless the dialect has a claim of its own for it.
    pub ends: Option<u64>,
    /// The later of `nbf` and `iat`.
    pub begins: Option<u64>,
    pub subscribe: Grants,
    pub publish: Grants,
}

impl Token {
    /// Reads the claims.
    pub fn of(claims: &Map<String, Value>, dialect: Dialect) -> Result<Token, Rejection> {
        let expires = date(claims, "exp")?;
        let mut token = Token {
            subject: text(claims, "sub")?,
            id: text(claims, "jti")?,
            expires,
            ends: expires,
            begins: date(claims, "nbf")?.max(date(claims, "iat")?),
            ..Token::default()
        };
        match dialect {
            Dialect::Native => {
                if let Some(push) = object(claims, "push")? {
                    token.add_lists(push, Star::AfterDot)?;
                }
            }
            Dialect::Mercure => {
                if let Some(mercure) = object(claims, "mercure")? {
                    token.add_lists(mercure, Star::Anywhere)?;
                }
                token.add_details(claims)?;
            }
            Dialect::Centrifugo => {
                token.subscribe.add_list(claims, "channels", Star::None)?;
                if let Some(channel) = text(claims, "channel")? {
                    token.subscribe.add(&channel, Star::None)?;
                }
                if claims.contains_key("expire_at") {
                    // "If 0, the connection does not expire."
                    token.ends = date(claims, "expire_at")?.filter(|&end| end > 0);
                }
            }
        }
        grants::check_number([&token.subscribe, &token.publish])?;
        Ok(token)
    }

    fn add_lists(&mut self, lists: &Map<String, Value>, star: Star) -> Result<(), Rejection> {
        self.subscribe.add_list(lists, "subscribe", star)?;
        self.publish.add_list(lists, "publish", star)
    }

    /// Mercure 1.0: each detail of the right type names actions and topics. A topic is one id, `*`, or a URL pattern;
    /// patterns grant nothing unless their only special letter is a star at the end.
    fn add_details(&mut self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        let details = match claims.get("authorization_details") {
            None => return Ok(()),
            Some(Value::Array(details)) => details,
            Some(_) => return Err(Rejection::Claims),
        };
        for detail in details {
            let detail = detail.as_object().ok_or(Rejection::Claims)?;
            if detail.get("type").and_then(Value::as_str) != Some(MERCURE) {
                continue;
            }
            let list = |name| detail.get(name).and_then(Value::as_array).ok_or(Rejection::Claims);
            let (actions, topics) = (list("actions")?, list("topics")?);
            for topic in topics {
                let topic = topic.as_object().ok_or(Rejection::Claims)?;
                let pattern = topic.get("match").and_then(Value::as_str).ok_or(Rejection::Claims)?;
                let kind = match topic.get("match_type") {
                    None => "exact",
                    Some(kind) => kind.as_str().ok_or(Rejection::Claims)?,
                };
                let star = match kind.to_ascii_lowercase().as_str() {
                    "exact" => Star::Alone,
                    "urlpattern" if is_plain_pattern(pattern) => Star::Anywhere,
                    _ => continue,
                };
                for action in actions {
                    match action.as_str().ok_or(Rejection::Claims)? {
                        "subscribe" => self.subscribe.add(pattern, star)?,
                        "publish" => self.publish.add(pattern, star)?,
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks what depends on the time and on the revocations, both of which change while a token is remembered.
    /// `now` is Unix time in seconds.
    pub fn check(&self, now: u64, leeway: u64, revocations: &Revocations) -> Result<(), Rejection> {
        if self
            .expires
            .is_some_and(|expires| now >= expires.saturating_add(leeway))
        {
            return Err(Rejection::Expired);
        }
        if self.ends.is_some_and(|ends| now >= ends.saturating_add(leeway)) {
            return Err(Rejection::Expired);
        }
        if self.begins.is_some_and(|begins| now.saturating_add(leeway) < begins) {
            return Err(Rejection::NotYet);
        }
        if revocations.revokes(self.id.as_deref(), self.subject.as_deref()) {
            return Err(Rejection::Revoked);
        }
        Ok(())
    }
}

/// A URL pattern that means the same as a prefix: no group, no modifier, no star but the last letter.
fn is_plain_pattern(pattern: &str) -> bool {
    let body = pattern.strip_suffix('*').unwrap_or(pattern);
    let (scheme, rest) = body.split_once("://").unwrap_or(("", body));
    !scheme.contains(':') && !rest.contains([':', '*', '(', ')', '{', '}', '?', '+', '\\'])
}

impl Grants {
    fn add_list(&mut self, claims: &Map<String, Value>, name: &str, star: Star) -> Result<(), Rejection> {
        match claims.get(name) {
            None | Some(Value::Null) => Ok(()),
            Some(Value::Array(list)) => list
                .iter()
                .try_for_each(|item| self.add(item.as_str().ok_or(Rejection::Claims)?, star)),
            Some(_) => Err(Rejection::Claims),
        }
    }
}

fn object<'c>(claims: &'c Map<String, Value>, name: &str) -> Result<Option<&'c Map<String, Value>>, Rejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(Rejection::Claims),
    }
}

fn text(claims: &Map<String, Value>, name: &str) -> Result<Option<Box<str>>, Rejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str().into())),
        Some(_) => Err(Rejection::Claims),
    }
}

/// A NumericDate (RFC 7519 §2): seconds, with an optional fraction, which is dropped.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Rejection> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds));
    }
    match value.as_f64() {
        // Beyond this a float has no whole seconds any more.
        Some(seconds) if (0.0..9e15).contains(&seconds) => Ok(Some(seconds as u64)),
        _ => Err(Rejection::Claims),
    }
}
