//! Access tokens of requests: where they are, what they grant, and the variables about them.

use std::rc::Rc;

use ngx::ffi::*;
use ngx::ngx_string;
use push_stream_core::store::Now;
use push_stream_core::token::subject::Subject;
use push_stream_core::token::{Grants, Rejection, Token};

use super::answer;
use super::channels::{self, Path};
use super::denial::Denial;
use super::request::{HeaderName, Request};
use crate::config::{Carrier, Gate, Role};
use crate::ffi::variable;
use crate::token::{subjects, tickets};

/// A request that may do something.
pub struct Pass {
    /// None if the location asks for no token, or the request needed none.
    token: Option<Rc<Token>>,
    leeway: u64,
}

/// What a token has to grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Subscribe,
    Publish,
}

impl Pass {
    fn grants(&self, right: Right) -> Option<&Grants> {
        self.token.as_deref().map(|token| match right {
            Right::Subscribe => &token.subscribe,
            Right::Publish => &token.publish,
        })
    }

    /// May the request do this in the channel?
    pub fn allows(&self, right: Right, id: &[u8]) -> bool {
        self.grants(right).is_none_or(|grants| grants.allows(id))
    }

    /// May it do this in every channel of the path?
    pub fn check(&self, right: Right, path: &Path) -> Result<(), Denial> {
        match self.grants(right) {
            Some(grants) if !path.segments().all(|segment| grants.allows(segment.id)) => Err(Denial::NotGranted),
            _ => Ok(()),
        }
    }

    /// May it do this in all channels whose id begins like this?
    pub fn check_all_from(&self, right: Right, start: &[u8]) -> Result<(), Denial> {
        match self.grants(right) {
            Some(grants) if !grants.allows_all_from(start) => Err(Denial::NotGranted),
            _ => Ok(()),
        }
    }

    /// Was a token asked for and verified?
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whose it is; None without a token, or if that does not say.
    pub fn subject(&self) -> Option<Subject> {
        subjects::hash(self.token.as_ref()?.subject.as_ref()?)
    }

    /// Time until a stream of it ends with its token; None = it does not.
    pub fn ends_in_ms(&self) -> Option<u64> {
        let ends = self.token.as_ref()?.ends?.saturating_add(self.leeway);
        Some(ends.saturating_mul(1000).saturating_sub(Now::read().unix_ms))
    }
}

/// The token of a request, if it is valid. Without one the request passes where tokens are optional.
pub fn admit(r: Request<'_>) -> Result<Pass, Denial> {
    let Some(gate) = &r.location().gate else {
        return Ok(Pass { token: None, leeway: 0 });
    };
    let token = match ticket(r, gate) {
        Some((ticket, verifier)) => {
            let book = tickets::book().ok_or(Denial::Internal("there are no tickets"))?;
            let token = book.redeem(&ticket, verifier, Now::read().unix_secs());
            let token = token.map_err(Denial::Token)?;
            r.main().tokens.check(gate.policy, &token).map_err(Denial::Token)?;
            Some(Rc::new(token))
        }
        None => verify(r, gate)?.map_err(Denial::Token)?,
    };
    Ok(Pass {
        token,
        leeway: r.main().tokens.leeway(gate.policy),
    })
}

/// The ticket of a subscriber, where such are accepted, with the verifier that it has to be of.
fn ticket(r: Request<'_>, gate: &Gate) -> Option<(Vec<u8>, u64)> {
    let subscriber = matches!(r.location().role, Some(Role::Subscriber(_)));
    let tickets = gate.tickets.filter(|_| subscriber)?;
    let ticket = r.argument("ticket").filter(|ticket| !ticket.is_empty())?;
    Some((ticket, tickets.verifier))
}

/// Does the request ask for a ticket, or whether it may?
pub fn is_about_tickets(r: Request<'_>) -> bool {
    let issues = r.location().gate.as_ref().is_some_and(|gate| gate.tickets.is_some());
    issues && matches!(r.method(), NGX_HTTP_POST | NGX_HTTP_OPTIONS)
}

/// POST: a ticket for the channels of the path.
pub fn issue_ticket(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let missing = Denial::Token(Rejection::Missing);
    let gate = r.location().gate.as_ref().ok_or(missing)?;
    let terms = gate.tickets.ok_or(missing)?;
    // A ticket gives no further tickets.
    let token = verify(r, gate)?.map_err(Denial::Token)?.ok_or(missing)?;
    let pass = Pass {
        token: Some(token.clone()),
        leeway: r.main().tokens.leeway(gate.policy),
    };
    let (path, settings) = (Path::of(r)?, r.settings()?);
    path.judge(|id| channels::check_id(id, settings), |_| Ok(()))?;
    pass.check(Right::Subscribe, &path)?;
    let lifetime = pass
        .ends_in_ms()
        .map_or(terms.lifetime, |ms| terms.lifetime.min(ms.div_ceil(1000)));
    let until = Now::read().unix_secs() + lifetime;
    let book = tickets::book().ok_or(Denial::Internal("there are no tickets"))?;
    let ticket = book
        .issue(&token, &path.ids(), terms.verifier, until)
        .ok_or(Denial::Internal("a ticket cannot be made"))?;
    let body = format!("{{\"ticket\":\"{ticket}\",\"expires_in\":{lifetime}}}");
    answer::with_body(r, "application/json", body.into_bytes())
}

/// The token of a request; None if there is none and none is needed. The outer error is not the token's fault.
fn verify(r: Request<'_>, gate: &Gate) -> Result<Result<Option<Rc<Token>>, Rejection>, Denial> {
    Ok(match find(r, gate)? {
        Some(text) => r.main().tokens.verify(gate.policy, &text).map(Some),
        None if gate.required => Err(Rejection::Missing),
        None => Ok(None),
    })
}

/// As [`admit`], with a token that the request has in its body: that comes first.
pub fn admit_with(r: Request<'_>, text: Option<&[u8]>) -> Result<Pass, Denial> {
    let Some(text) = text else {
        return admit(r);
    };
    let gate = r.location().gate.as_ref();
    let gate = gate.ok_or(Denial::Argument("Tokens are off in this location."))?;
    let token = r.main().tokens.verify(gate.policy, text).map_err(Denial::Token)?;
    Ok(Pass {
        token: Some(token),
        leeway: r.main().tokens.leeway(gate.policy),
    })
}

/// The text of a request's token: the first that is not empty.
fn find(r: Request<'_>, gate: &Gate) -> Result<Option<Vec<u8>>, Denial> {
    for carrier in &gate.carriers {
        let text = match carrier {
            Carrier::Bearer => bearer(r).map(<[u8]>::to_vec),
            Carrier::Cookie(name) => cookie(r, name).map(<[u8]>::to_vec),
            Carrier::Query(name) => r.argument(name),
            Carrier::Value(value) => r.value(*value)?,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The token of `Authorization: Bearer …`, whose scheme is in any case (RFC 9110 §11.1).
fn bearer(r: Request<'_>) -> Option<&[u8]> {
    let value = r.header(&HeaderName::AUTHORIZATION)?;
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// The value of a cookie.
fn cookie<'r>(r: Request<'r>, name: &[u8]) -> Option<&'r [u8]> {
    r.headers(&HeaderName::COOKIE)
        .flat_map(|line| line.split(|&byte| byte == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"="))
}

/// Values of `WWW-Authenticate` (RFC 6750 §3).
pub fn challenge(denial: Denial) -> Option<&'static [u8]> {
    match denial {
        Denial::Token(Rejection::Missing) => Some(b"Bearer"),
        Denial::Token(_) => Some(br#"Bearer error="invalid_token""#),
        Denial::NotGranted => Some(br#"Bearer error="insufficient_scope""#),
        _ => None,
    }
}

/// The variables, each with its number.
const VARIABLES: [(ngx_str_t, Variable); 4] = [
    (ngx_string!("push_stream_token_sub"), Variable::Subject),
    (ngx_string!("push_stream_token_jti"), Variable::Id),
    (ngx_string!("push_stream_token_exp"), Variable::Expires),
    (ngx_string!("push_stream_token_error"), Variable::Error),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Subject,
    Id,
    Expires,
    Error,
}

/// Registers the variables, before the configuration is read.
pub unsafe extern "C" fn add_variables(cf: *mut ngx_conf_t) -> ngx_int_t {
    let mut variables = VARIABLES.iter();
    let added = variables.all(|(name, which)| variable::add(cf, name, Some(get_variable), *which as usize));
    if added {
        NGX_OK as ngx_int_t
    } else {
        NGX_ERROR as ngx_int_t
    }
}

unsafe extern "C" fn get_variable(
    r: *mut ngx_http_request_t,
    value: *mut ngx_http_variable_value_t,
    number: usize,
) -> ngx_int_t {
    let text = |request: Request<'_>| {
        let (_, which) = VARIABLES.iter().find(|(_, known)| *known as usize == number)?;
        text_of(request, *which)
    };
    // SAFETY: nginx passes a valid request and a place for the value.
    unsafe { variable::set(r, value, text) }
}

fn text_of(r: Request<'_>, variable: Variable) -> Option<Vec<u8>> {
    let gate = r.location().gate.as_ref()?;
    if variable == Variable::Error {
        return error_of(r).map(|name| name.as_bytes().to_vec());
    }
    let token = shown(r, gate)?;
    match variable {
        Variable::Subject => token.subject.as_ref().map(|text| text.as_bytes().to_vec()),
        Variable::Id => token.id.as_ref().map(|text| text.as_bytes().to_vec()),
        Variable::Expires => token.expires.map(|expires| expires.to_string().into_bytes()),
        Variable::Error => None,
    }
}

/// The token for variables: looking at a ticket does not use it.
fn shown(r: Request<'_>, gate: &Gate) -> Option<Rc<Token>> {
    match ticket(r, gate) {
        Some((ticket, verifier)) => {
            let token = tickets::book()?.peek(&ticket, verifier, Now::read().unix_secs());
            token.ok().map(Rc::new)
        }
        None => verify(r, gate).ok()?.ok()?,
    }
}

/// Why the request is refused for its token, in one word.
fn error_of(r: Request<'_>) -> Option<&'static str> {
    if r.method() == NGX_HTTP_OPTIONS {
        return None;
    }
    let right = match r.location().role? {
        // Which channels it is about stands in the body.
        Role::SessionControl => {
            return match admit(r) {
                Err(Denial::Token(rejection)) => Some(rejection.name()),
                _ => None,
            };
        }
        Role::Subscriber(_) => Right::Subscribe,
        Role::Publisher(_) => Right::Publish,
        Role::Statistics | Role::Console => return None,
    };
    let verdict = match ticket(r, r.location().gate.as_ref()?) {
        // Whether it was used before is known to the request that has used it.
        Some(_) if shown(r, r.location().gate.as_ref()?).is_some() => return None,
        Some(_) => Err(Denial::Token(Rejection::Ticket)),
        None => admit(r).and_then(|pass| pass.check(right, &Path::of(r)?)),
    };
    match verdict {
        Err(Denial::Token(rejection)) => Some(rejection.name()),
        Err(Denial::NotGranted) => Some("insufficient_scope"),
        _ => None,
    }
}
