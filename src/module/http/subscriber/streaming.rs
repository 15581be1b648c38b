//! Streaming: an endless response.

use ngx::ffi::*;
use push_stream_core::store::JoinMode;
use push_stream_core::wire::coding::Coding;

use super::Candidate;
use crate::config::Padding;
use crate::delivery::{self, Compressed, Compression, Contexts, Enlistment, Kind};
use crate::http::denial::{Denial, NOT_ENLISTED};
use crate::http::request::HeaderName;

/// Starts the stream; the delivery continues it.
pub fn respond(candidate: &Candidate<'_>) -> Result<ngx_int_t, Denial> {
    candidate.r.set_default_content_type()?;
    start(candidate)
}

/// Joins, sends head and header template, and hands the request over.
pub fn start(candidate: &Candidate<'_>) -> Result<ngx_int_t, Denial> {
    let (r, audience) = (candidate.r, candidate.audience);
    let padding = padding(candidate)?;
    let (joined, seat) = candidate.join(JoinMode::Stream)?;
    let compressed = negotiate(candidate)?;
    // Proxies that know the header, such as an nginx in front, then pass each message on as it comes.
    r.add_header("X-Accel-Buffering", b"no")?;
    r.set_status(NGX_HTTP_OK, None);
    // SAFETY: the request is valid.
    let before = unsafe { Contexts::of(r.raw()) };
    match r.send_head() {
        Ok(true) => {}
        Ok(false) => return Ok(NGX_OK as ngx_int_t),
        Err(code) => return Ok(code),
    }
    // SAFETY: as above.
    let direct = unsafe { delivery::may_send_directly(r.raw(), &before) };
    let filler = padding.and_then(|padding| delivery::header_filler(audience, padding));
    let introduction = candidate.introduction(&joined);
    // The head must not wait for a message.
    let (code, kind) = match compressed {
        Some((compression, coding)) => {
            let mut text = audience.header.clone();
            filler
                .iter()
                .chain(&introduction)
                .for_each(|part| text.extend_from_slice(part));
            let opened = delivery::opening(compression.terms, coding, &text);
            let (bytes, reader) = opened.ok_or(Denial::Unavailable)?;
            (r.send_body(bytes, false), Kind::Compressed(Compressed::new(reader)))
        }
        None => (r.send_body_copy(&audience.header), Kind::Stream),
    };
    if code == NGX_ERROR as ngx_int_t {
        return Ok(code);
    }
    if compressed.is_none() {
        for piece in filler.into_iter().chain(introduction) {
            r.send_body(piece, false);
        }
    }
    delivery::enlist(
        r.raw(),
        Enlistment {
            audience: audience.clone(),
            ids: candidate.path.ids(),
            joined,
            seat,
            kind,
            direct: direct.map_err(Some),
            coding: compressed.map(|(_, coding)| coding),
            message_min: padding.map_or(0, |padding| padding.message_min),
            asked: candidate.resume.asked(),
            ends_in_ms: candidate.pass.ends_in_ms(),
            subject: candidate.pass.subject(),
        },
    )
    .ok_or(NOT_ENLISTED)
}

/// The compression for this client, announced in the head; None = none.
fn negotiate(candidate: &Candidate<'_>) -> Result<Option<(Compression, Coding)>, Denial> {
    let Some(compression) = candidate.audience.format.compression else {
        return Ok(None);
    };
    let coding = super::coding(candidate.r, candidate.audience, true)?;
    Ok(coding.map(|coding| (compression, coding)))
}

/// The padding group for this client, if there is one.
fn padding<'c>(candidate: &Candidate<'c>) -> Result<Option<&'c Padding>, Denial> {
    let (r, groups) = (candidate.r, &candidate.audience.padding);
    if groups.is_empty() {
        return Ok(None);
    }
    let agent = match r.value(r.location().user_agent)? {
        Some(agent) => agent,
        None => r.header(&HeaderName::USER_AGENT).unwrap_or_default().to_vec(),
    };
    Ok(groups.iter().find(|group| !agent.is_empty() && group.matches(&agent)))
}
