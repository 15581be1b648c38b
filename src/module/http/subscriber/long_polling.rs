//! Long polling: what there is, or the first message that comes.

use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::{JoinMode, Now};

use super::Candidate;
use super::polling::{self, Envelope};
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
    // The request that a subrequest belongs to must not wait with it.
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
    let gaps: Vec<Vec<u8>> = candidate.gaps(&joined).into_iter().map(<[u8]>::to_vec).collect();
    let answer = move |r: *mut ngx_http_request_t, reply: Reply<'_>, missed: &[Rc<[u8]>]| {
        // SAFETY: the delivery calls this for a request that is waiting and was not answered.
        let r = unsafe { Request::new(r) };
        let mut gaps: Vec<&[u8]> = gaps.iter().map(Vec::as_slice).collect();
        for channel in missed.iter().map(|channel| &**channel) {
            if !gaps.contains(&channel) {
                gaps.push(channel);
            }
        }
        answer::conclude(r, reply_to(r, &envelope, &gaps, timeout_with_body, reply))
    };
    let enlistment = Enlistment {
        audience: candidate.audience.clone(),
        ids: candidate.path.ids(),
        joined,
        seat,
        kind: Kind::Waiting(Box::new(answer)),
        direct: Err(None),
        message_min: 0,
        asked: candidate.resume.asked(),
    };
    delivery::enlist(candidate.r.raw(), enlistment).ok_or(NOT_ENLISTED)
}

fn reply_to(
    r: Request<'_>,
    envelope: &Envelope,
    gaps: &[&[u8]],
    timeout_with_body: bool,
    reply: Reply<'_>,
) -> Result<ngx_int_t, Denial> {
    envelope.set_content_type(r)?;
    let now = Now::read().unix_secs();
    let (time, tag, body) = match reply {
        Reply::Message { time, tag, text } => (time, tag, Some(envelope.wrap(text))),
        Reply::Deleted { text } => (now, 0, Some(envelope.wrap(text))),
        Reply::TimedOut => (
            now,
            0,
            timeout_with_body.then(|| envelope.wrap_notice(TIMED_OUT_ID, TIMED_OUT)),
        ),
    };
    r.set_last_modified(time);
    polling::add_etag(r, tag)?;
    polling::add_gaps(r, gaps)?;
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
