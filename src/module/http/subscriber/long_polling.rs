//! Long polling: stored messages, or the first new one.

use std::borrow::Cow;
use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::{JoinMode, Now};

use super::polling::{self, Envelope};
use super::{Asides, Candidate};
use crate::delivery::{self, Enlistment, Kind, Reply};
use crate::http::answer;
use crate::http::denial::{Denial, NOT_ENLISTED};
use crate::http::request::Request;

/// Text of the message that `push_stream_timeout_with_body` sends.
const TIMED_OUT: &[u8] = b"Timed out";
const TIMED_OUT_ID: i64 = -3;

/// Answers as polling does, or waits; the head is withheld until there is an answer.
pub fn respond(candidate: &Candidate<'_>) -> Result<ngx_int_t, Denial> {
    let envelope = Envelope::of(candidate)?;
    // A subrequest must not wait: its main request would wait with it.
    let may_wait = candidate.r.is_main();
    let mode = if may_wait { JoinMode::LongPoll } else { JoinMode::Poll };
    let (joined, seat) = candidate.join(mode)?;
    if joined.replay.is_some() {
        return polling::send_stored(candidate, envelope, joined, seat);
    }
    if !may_wait {
        return Err(Denial::Subrequest);
    }
    let timeout_with_body = candidate.settings.timeout_with_body;
    let mut asides = candidate.asides(&joined);
    let answer = move |r: *mut ngx_http_request_t, reply: Reply<'_>, missed: &[Rc<[u8]>]| {
        // SAFETY: the delivery calls this for a request that is waiting and was not answered.
        let r = unsafe { Request::new(r) };
        missed.iter().for_each(|channel| asides.add_gap(channel));
        answer::conclude(r, reply_to(r, &envelope, asides, timeout_with_body, reply))
    };
    let enlistment = Enlistment {
        audience: candidate.audience.clone(),
        ids: candidate.path.ids(),
        joined,
        seat,
        kind: Kind::Waiting(Box::new(Box::new(answer))),
        direct: Err(None),
        coding: None,
        message_min: 0,
        asked: candidate.resume.asked(),
        ends_in_ms: candidate.pass.ends_in_ms(),
        subject: candidate.pass.subject(),
    };
    delivery::enlist(candidate.r.raw(), enlistment).ok_or(NOT_ENLISTED)
}

fn reply_to(
    r: Request<'_>,
    envelope: &Envelope,
    mut asides: Asides,
    timeout_with_body: bool,
    reply: Reply<'_>,
) -> Result<ngx_int_t, Denial> {
    envelope.set_content_type(r)?;
    let now = Now::read().unix_secs();
    let (time, tag, message) = match reply {
        Reply::Message {
            time,
            tag,
            position,
            text,
        } => {
            if position.is_some() {
                asides.position_of_notice = None;
                asides.position = asides.position.max(position);
            }
            (time, tag, Some(Cow::Borrowed(text)))
        }
        Reply::Deleted { text } => (now, 0, Some(Cow::Borrowed(text))),
        Reply::TimedOut => {
            let notice = timeout_with_body.then(|| Cow::Owned(envelope.notice(TIMED_OUT_ID, TIMED_OUT)));
            (now, 0, notice)
        }
    };
    let (body, coding) = envelope.code(r, envelope.wrap(&asides, message.as_deref()))?;
    r.set_last_modified(time);
    polling::add_etag(r, tag, coding)?;
    asides.add_headers(r)?;
    let Some(body) = body else {
        return answer::header_only(r, NGX_HTTP_NOT_MODIFIED);
    };
    r.set_status(NGX_HTTP_OK, None);
    Ok(match r.send_head() {
        Ok(true) => r.send_body(body, true),
        Ok(false) => NGX_OK as ngx_int_t,
        Err(code) => code,
    })
}
