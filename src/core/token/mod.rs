//! Access tokens: JSON Web Tokens in the compact form (RFC 7515, RFC 7519), as RFC 8725 wants them verified.
//!
//! * [`compact`]: a token's three parts, and what its header may say.
//! * [`json`]: JSON without duplicate members.
//! * [`keys`]: key files, JWK Sets (RFC 7517) or PEM, and which key may verify what.
//! * [`signature`]: the algorithms, as a provider of the `jsonwebtoken` crate on `ring`.
//! * [`claims`]: what a token says, in the three dialects that are understood.
//! * [`grants`]: the channels that a token opens.
//! * [`revocation`]: tokens and subjects that are not valid any more.
//! * [`subject`]: whose token it is, as a number.
//! * [`ticket`]: for clients that cannot send a token.
//! * [`verifier`]: all of it together. [`cache`]: tokens whose signature was verified before.
//!
//! Nothing here knows of nginx, of files or of the time: callers bring texts and a clock.

pub mod cache;
pub mod claims;
pub mod compact;
pub mod grants;
pub mod json;
pub mod keys;
pub mod revocation;
mod signature;
pub mod subject;
pub mod ticket;
pub mod verifier;

pub use cache::Cache;
pub use claims::{Dialect, Token};
pub use grants::Grants;
pub use keys::KeySet;
pub use revocation::Revocations;
pub use signature::{Algorithm, sha256};
pub use verifier::Verifier;

/// Bytes of a token.
pub const LONGEST: usize = 8 * 1024;

/// Why a token is not accepted. The order of the checks is that of the variants, as far as one token can fail several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    Missing,
    TooLong,
    Malformed,
    Header,
    Algorithm,
    Issuer,
    Key,
    Signature,
    Claims,
    Grants,
    Audience,
    Expired,
    NotYet,
    Revoked,
    /// A ticket in place of a token.
    Ticket,
}

impl Rejection {
    pub const ALL: [Rejection; 15] = [
        Rejection::Missing,
        Rejection::TooLong,
        Rejection::Malformed,
        Rejection::Header,
        Rejection::Algorithm,
        Rejection::Issuer,
        Rejection::Key,
        Rejection::Signature,
        Rejection::Claims,
        Rejection::Grants,
        Rejection::Audience,
        Rejection::Expired,
        Rejection::NotYet,
        Rejection::Revoked,
        Rejection::Ticket,
    ];

    /// The reason as one word, for logs and programs.
    pub fn name(self) -> &'static str {
        match self {
            Rejection::Missing => "missing",
            Rejection::TooLong => "too_long",
            Rejection::Malformed => "malformed",
            Rejection::Header => "unsupported_header",
            Rejection::Algorithm => "unsupported_algorithm",
            Rejection::Issuer => "unknown_issuer",
            Rejection::Key => "unknown_key",
            Rejection::Signature => "bad_signature",
            Rejection::Claims => "bad_claims",
            Rejection::Grants => "too_many_grants",
            Rejection::Audience => "wrong_audience",
            Rejection::Expired => "expired",
            Rejection::NotYet => "not_yet_valid",
            Rejection::Revoked => "revoked",
            Rejection::Ticket => "bad_ticket",
        }
    }

    /// The same as a sentence.
    pub fn explain(self) -> &'static str {
        match self {
            Rejection::Missing => "No token.",
            Rejection::TooLong => "Token is longer than 8 KiB.",
            Rejection::Malformed => "Token is no JSON Web Signature in the compact form.",
            Rejection::Header => "Token's header has a member that is not supported.",
            Rejection::Algorithm => "Token's algorithm is not supported.",
            Rejection::Issuer => "Token's issuer is not trusted.",
            Rejection::Key => "No key is known for the token.",
            Rejection::Signature => "Token's signature is not valid.",
            Rejection::Claims => "Token's claims are not valid.",
            Rejection::Grants => "Token grants more than 64 channels, or one with more than 255 bytes.",
            Rejection::Audience => "Token is for another audience.",
            Rejection::Expired => "Token has expired.",
            Rejection::NotYet => "Token is not valid yet.",
            Rejection::Revoked => "Token was revoked.",
            Rejection::Ticket => "Ticket is not valid, or was used before.",
        }
    }
}

#[cfg(test)]
mod tests;
