//! Directives about access tokens: as written, inherited, and prepared for the requests of a location.

use ngx::ffi::*;
use ngx::ngx_string;
use push_stream_core::token::Dialect;

use super::values::{unset, word};
use crate::token::{KeySource, Policy, PolicyId, Tokens};

/// `push_stream_token`.
pub static mut MODE: [ngx_conf_enum_t; 4] = [
    word(ngx_string!("off"), OFF),
    word(ngx_string!("optional"), 1),
    word(ngx_string!("required"), REQUIRED),
    word(ngx_str_t::empty(), 0),
];

const OFF: ngx_uint_t = 0;
const REQUIRED: ngx_uint_t = 2;

/// `push_stream_token_claims`.
pub static mut CLAIMS: [ngx_conf_enum_t; 4] = [
    word(ngx_string!("native"), 0),
    word(ngx_string!("mercure"), 1),
    word(ngx_string!("centrifugo"), 2),
    word(ngx_str_t::empty(), 0),
];

/// Default of `push_stream_token_leeway`, and the longest: seconds.
const LEEWAY: u64 = 30;
pub const LONGEST_LEEWAY: u64 = 300;

/// The longest `push_stream_token_ticket`: seconds.
pub const LONGEST_TICKET: u64 = 3600;

/// The cookie that holds a token by default. A browser takes one of this name over TLS only.
const COOKIE: &str = "__Secure-push_stream_token";

/// Where a request may have its token.
#[derive(Clone, Debug)]
pub enum Carrier {
    /// The header Authorization.
    Bearer,
    Cookie(Box<[u8]>),
    Query(String),
    Value(*mut ngx_http_complex_value_t),
}

/// One level's directives, as written and, after merging, as inherited.
#[derive(Default)]
pub struct Written {
    pub carriers: Option<Vec<Carrier>>,
    pub keys: Vec<KeySource>,
    pub audience: Option<Vec<String>>,
    pub leeway: Option<u64>,
    pub revoked: Option<Box<[u8]>>,
    /// `push_stream_token_ticket`: seconds; `Some(None)` is off.
    pub ticket: Option<Option<u64>>,
}

/// What a location asks of tokens.
#[derive(Debug)]
pub struct Gate {
    /// Is a request without a token refused?
    pub required: bool,
    pub carriers: Vec<Carrier>,
    pub policy: PolicyId,
    pub tickets: Option<Tickets>,
}

/// What a location needs to issue and accept tickets.
#[derive(Clone, Copy, Debug)]
pub struct Tickets {
    /// Seconds that a ticket is valid.
    pub lifetime: u64,
    /// Tickets of locations with another policy are not accepted.
    pub verifier: u64,
}

impl Written {
    pub fn inherit(&mut self, outer: &Written) {
        if self.carriers.is_none() {
            self.carriers.clone_from(&outer.carriers);
        }
        if self.keys.is_empty() {
            self.keys.clone_from(&outer.keys);
        }
        if self.audience.is_none() {
            self.audience.clone_from(&outer.audience);
        }
        self.leeway = self.leeway.or(outer.leeway);
        self.ticket = self.ticket.or(outer.ticket);
        if self.revoked.is_none() {
            self.revoked.clone_from(&outer.revoked);
        }
    }

    /// The gate of a location with a role; None if it asks for no tokens. The error says what is wrong.
    pub fn prepare(&self, mode: ngx_uint_t, claims: ngx_uint_t, tokens: &Tokens) -> Result<Option<Gate>, String> {
        if mode == OFF {
            return Ok(None);
        }
        if self.keys.is_empty() {
            return Err("push_stream_token needs push_stream_token_keys.".to_owned());
        }
        let policy = Policy {
            keys: self.keys.clone(),
            audience: self.audience.clone().unwrap_or_default(),
            dialect: match claims {
                1 => Dialect::Mercure,
                2 => Dialect::Centrifugo,
                _ => Dialect::Native,
            },
            leeway: self.leeway.unwrap_or(LEEWAY),
            revoked: self.revoked.clone(),
        };
        let carriers = self.carriers.clone();
        let policy = tokens.intern(policy)?;
        let tickets = self.ticket.flatten().map(|lifetime| Tickets {
            lifetime,
            verifier: tokens.fingerprint(policy),
        });
        tokens.tickets.set(tokens.tickets.get() || tickets.is_some());
        Ok(Some(Gate {
            required: mode == REQUIRED,
            carriers: carriers.unwrap_or_else(|| vec![Carrier::Bearer, Carrier::Cookie(COOKIE.as_bytes().into())]),
            policy,
            tickets,
        }))
    }
}

/// Settles the two directives that are words of an enumeration.
pub fn settle(inner: &mut ngx_uint_t, outer: ngx_uint_t) {
    if *inner == unset::ENUM {
        *inner = if outer == unset::ENUM { 0 } else { outer };
    }
}
