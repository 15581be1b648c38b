//! Session control: changes of the channels of a stream that is open, in whatever nginx worker it is.
//!
//! The request is checked here, by the directives of its own location: which channels there may be, and what its token
//! grants. Then the worker that has the stream is asked, and this request waits for its answer.

use ngx::ffi::*;
use push_stream_core::store::{Counter, Now, Process, Reply, Unposted};
use push_stream_core::wire::control::{self, Change, Outcome, Refused, Session};

use super::answer;
use super::body::Body;
use super::channels;
use super::denial::{Denial, NO_MEMORY};
use super::request::Request;
use super::token::{self, Right};
use crate::delivery::{self, Answers, Unasked};

const JSON: &str = "application/json";

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    answer::conclude(r, respond(r))
}

fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    answer::add_cors_headers(r, "POST")?;
    answer::add_cache_headers(r)?;
    if r.method() == NGX_HTTP_OPTIONS {
        return answer::header_only(r, NGX_HTTP_OK);
    }
    if r.method() != NGX_HTTP_POST {
        return Err(Denial::Method("POST"));
    }
    if !r.is_main() {
        return Err(Denial::Subrequest);
    }
    Ok(r.read_body(change_body)?)
}

unsafe extern "C" fn change_body(r: *mut ngx_http_request_t) {
    // SAFETY: nginx calls this once, when it has read the whole body.
    unsafe { answer::go_on(r, change) }
}

fn change(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let body = Body::of(r);
    if body.len() > control::LONGEST {
        return Err(Denial::MessageTooLarge);
    }
    let asked = control::Request::parse(&body.read()?).map_err(Denial::Argument)?;
    let name = asked
        .session
        .as_deref()
        .ok_or(Denial::Argument("Member session is missing."))?;
    let pass = token::admit_with(r, asked.token.as_deref().map(str::as_bytes))?;
    let settings = r.settings()?;
    for wanted in &asked.subscribe {
        channels::check_id(&wanted.id, settings)?;
        if !pass.allows(Right::Subscribe, &wanted.id) {
            return Err(Denial::NotGranted);
        }
    }
    check_wildcards(r, &asked)?;
    let session = Session::parse(name).ok_or(Denial::UnknownSession)?;
    let now_ms = Now::read().monotonic_ms;
    let change = Change {
        session: Some(session),
        subscribe: asked.subscribe,
        unsubscribe: asked.unsubscribe,
        last_event_id: asked.last_event_id.map(String::into_bytes),
        subject: (asked.token.is_some() && pass.has_token()).then(|| pass.subject()),
        ends_ms: asked
            .token
            .map(|_| pass.ends_in_ms().map(|in_ms| now_ms.saturating_add(in_ms))),
        checked: pass.has_token(),
        authorized_channels_only: r.location().authorized_channels_only(),
        may_follow_events: r.location().may_follow_events(),
    };
    let to = Process {
        slot: session.place.slot,
        generation: session.place.slot_generation,
    };
    let then = move |r: Request<'_>, answers| answer::conclude(r, tell(r, answers));
    let asked = delivery::ask(r, &[to], delivery::CHANGE, &control::encode(&change), Box::new(then));
    asked.map_err(|unasked| match unasked {
        Unasked::Unavailable => Denial::Unavailable,
        Unasked::NoMemory => NO_MEMORY,
        Unasked::Unposted(Unposted::Gone) => Denial::UnknownSession,
        Unasked::Unposted(Unposted::Busy) => Denial::Busy("Too many changes wait for the worker of the session."),
        Unasked::Unposted(Unposted::TooLong) => Denial::MessageTooLarge,
        Unasked::Unposted(Unposted::Refused(_)) => Denial::NothingToEvict,
    })
}

/// `push_stream_wildcard_channel_max_qtd`, for one request.
fn check_wildcards(r: Request<'_>, asked: &control::Request) -> Result<(), Denial> {
    let prefix = &r.settings()?.limits.wildcard_prefix;
    let Some(max) = r.location().wildcard_max().filter(|_| !prefix.is_empty()) else {
        return Ok(());
    };
    let wildcards = asked.subscribe.iter().filter(|wanted| wanted.id.starts_with(prefix));
    if wildcards.count() > max as usize {
        return Err(Denial::TooManyWildcardChannels);
    }
    Ok(())
}

/// Answers with what has come of it.
fn tell(r: Request<'_>, mut answers: Answers) -> Result<ngx_int_t, Denial> {
    if answers.missing > 0 {
        delivery::with_store(|worker| worker.count(Counter::SessionLate, 1));
        return Err(Denial::Late);
    }
    let text = match answers.answers.pop().map(|answer| answer.reply) {
        Some(Reply::Text(text)) => text,
        // The worker has died, and its streams with it.
        Some(Reply::Gone) | None => return Err(Denial::UnknownSession),
    };
    match control::decode(&text).ok_or(Denial::Unavailable)? {
        Outcome::Done(channels) => answer::with_body(r, JSON, control::channels_text(&channels).into_bytes()),
        Outcome::Unknown => Err(Denial::UnknownSession),
        Outcome::Moving => Err(Denial::Busy("The session is moving to another worker.")),
        Outcome::Refused(refused) => Err(match refused {
            Refused::LastChannel | Refused::TooManyChannels | Refused::TooManySubscribers | Refused::ChannelLimit => {
                Denial::Conflict(refused.verdict().1)
            }
            Refused::NotGranted => Denial::NotGranted,
            Refused::MayNotCreate => Denial::MayNotCreate,
            Refused::EventsChannel => Denial::FromEventsChannel,
            Refused::ZoneFull => Denial::NothingToEvict,
            Refused::Unavailable => Denial::Unavailable,
        }),
    }
}
