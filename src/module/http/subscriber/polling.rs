//! Polling: stored messages or a 304, at once.

use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::{Batch, Counter, JoinMode, Joined, Worker};
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::template::Fields;

use super::{Asides, Candidate};
use crate::delivery::{self, Audience, Enlistment, Kind, Rest, Seat};
use crate::http::answer;
use crate::http::denial::{Denial, NOT_ENLISTED};
use crate::http::request::Request;

/// Answers with the messages after the client's position, or 304.
pub fn respond(candidate: &Candidate<'_>) -> Result<ngx_int_t, Denial> {
    let envelope = Envelope::of(candidate)?;
    let (joined, seat) = candidate.join(JoinMode::Poll)?;
    if joined.replay.is_some() {
        return send_stored(candidate, envelope, joined, seat);
    }
    let r = candidate.r;
    envelope.set_content_type(r)?;
    if let Some(time) = candidate.resume.time.filter(|&time| time > 0) {
        r.set_last_modified(time);
    }
    let asides = candidate.asides(&joined);
    let (body, coding) = envelope.code(r, envelope.wrap(&asides, None))?;
    if let Some(tag) = candidate.resume.tag {
        add_etag(r, tag, coding)?;
    }
    asides.add_headers(r)?;
    match body {
        None => answer::header_only(r, NGX_HTTP_NOT_MODIFIED),
        Some(body) => {
            r.set_status(NGX_HTTP_OK, None);
            Ok(match r.send_head() {
                Ok(true) => r.send_body(body, true),
                Ok(false) => NGX_OK as ngx_int_t,
                Err(code) => code,
            })
        }
    }
}

/// Adds an Etag of `W/` and the bare number: the form that clients of the C module send back. That of a coded answer
/// names the coding.
pub fn add_etag(r: Request<'_>, tag: u32, coding: Option<Coding>) -> Result<(), Denial> {
    let suffix = coding.map_or_else(String::new, |coding| format!("-{}", coding.name()));
    Ok(r.add_header("Etag", format!("W/{tag}{suffix}").as_bytes())?)
}

/// Answers with old messages: a short answer in one piece, a long one as the client takes it. With gap notices, up to
/// one subscriber queue of messages is read before the head is sent, so that the head can name messages lost meanwhile.
/// A subrequest gets all in one piece: events of the connection go to the request that is being sent, which may be
/// another.
pub fn send_stored(
    candidate: &Candidate<'_>,
    envelope: Envelope,
    mut joined: Joined,
    seat: Seat,
) -> Result<ngx_int_t, Denial> {
    let r = candidate.r;
    let ids = candidate.path.ids();
    let (mut body, mut more, mut empty) = (envelope.opening(), false, true);
    let whole = !r.is_main();
    let opening_len = body.len();
    let mut asides = candidate.asides(&joined);
    if let Some(replay) = &mut joined.replay {
        let mut batch = Batch::default();
        let format = &envelope.audience.format;
        loop {
            let replay_some = |worker: &mut Worker| {
                let more = worker.replay(replay, &mut batch);
                worker.count(Counter::Delivered, batch.len() as u64);
                more
            };
            more = delivery::with_store(replay_some).ok_or(Denial::Unavailable)?;
            for (index, message) in batch.iter() {
                let channel = ids.get(index as usize).copied().unwrap_or_default();
                envelope.separate(&mut empty, &mut body);
                format.render(&delivery::fields(format, channel, &message), message.binary, &mut body);
            }
            let looks_ahead = format.gap_text.is_some() && body.len() < envelope.audience.queue_bytes;
            if !more || !(whole || looks_ahead) {
                break;
            }
        }
        if format.gap_text.is_some() {
            joined.note_gaps();
            candidate
                .gaps(&joined)
                .into_iter()
                .for_each(|channel| asides.add_gap(channel));
        }
    }
    let mut notices = envelope.gap_notices(&asides);
    if !notices.is_empty() && !empty {
        notices.extend_from_slice(envelope.separator());
    }
    body.splice(opening_len..opening_len, notices);
    envelope.set_content_type(r)?;
    // A long answer is rendered while it is sent, and goes out as it is.
    let mut coding = None;
    if !more {
        body.extend(envelope.closing());
        let coded = envelope.code(r, Some(body))?;
        (body, coding) = (coded.0.unwrap_or_default(), coded.1);
    }
    if let Some((time, tag)) = joined.bound {
        r.set_last_modified(time);
        add_etag(r, tag, coding)?;
    }
    asides.add_headers(r)?;
    r.set_status(NGX_HTTP_OK, None);
    match r.send_head() {
        Ok(true) => {}
        Ok(false) => return Ok(NGX_OK as ngx_int_t),
        Err(code) => return Ok(code),
    }
    if !more {
        return Ok(r.send_body(body, true));
    }
    if r.send_body(body, false) == NGX_ERROR as ngx_int_t {
        return Ok(NGX_ERROR as ngx_int_t);
    }
    let kind = Kind::Answer(Box::new(Rest {
        separator: envelope.separator(),
        closing: envelope.closing(),
    }));
    let enlistment = Enlistment {
        audience: candidate.audience.clone(),
        ids,
        joined,
        seat,
        kind,
        direct: Err(None),
        coding: None,
        message_min: 0,
        asked: candidate.resume.asked(),
        ends_in_ms: candidate.pass.ends_in_ms(),
        subject: candidate.pass.subject(),
    };
    delivery::enlist(r.raw(), enlistment).ok_or(NOT_ENLISTED)
}

/// The parts around the messages of a poll's answer: header and footer template, and the JSONP call.
pub struct Envelope {
    pub audience: Rc<Audience>,
    callback: Option<Vec<u8>>,
}

impl Envelope {
    /// Reads the `callback` argument.
    pub fn of(candidate: &Candidate<'_>) -> Result<Envelope, Denial> {
        let callback = candidate.r.argument("callback").filter(|name| !name.is_empty());
        if callback
            .as_deref()
            .is_some_and(|name| !name.iter().all(|&byte| is_callback_byte(byte)))
        {
            return Err(Denial::BadCallback);
        }
        Ok(Envelope {
            audience: candidate.audience.clone(),
            callback,
        })
    }

    pub fn set_content_type(&self, r: Request<'_>) -> Result<(), Denial> {
        if self.callback.is_none() {
            return Ok(r.set_default_content_type()?);
        }
        r.set_content_type("application/javascript");
        Ok(())
    }

    pub fn opening(&self) -> Vec<u8> {
        let mut out = self.audience.header.clone();
        if let Some(name) = &self.callback {
            out.extend_from_slice(name);
            out.extend_from_slice(b"([");
        }
        out
    }

    pub fn closing(&self) -> Vec<u8> {
        let mut out = if self.callback.is_some() {
            b"]);".to_vec()
        } else {
            Vec::new()
        };
        out.extend_from_slice(&self.audience.footer);
        out
    }

    /// Bytes between two messages.
    fn separator(&self) -> &'static [u8] {
        if self.callback.is_some() { b"," } else { b"" }
    }

    fn separate(&self, empty: &mut bool, out: &mut Vec<u8>) {
        if !std::mem::take(empty) {
            out.extend_from_slice(self.separator());
        }
    }

    /// A whole answer with this message, if there is one. None if the body would be empty.
    pub fn wrap(&self, asides: &Asides, message: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut messages = self.gap_notices(asides);
        let mut empty = messages.is_empty();
        if let Some(message) = message {
            self.separate(&mut empty, &mut messages);
            messages.extend_from_slice(message);
        }
        if message.is_none() && empty {
            return None;
        }
        Some([self.opening(), messages, self.closing()].concat())
    }

    /// The body in the coding that the client prefers, which is named in the head.
    pub fn code(&self, r: Request<'_>, body: Option<Vec<u8>>) -> Result<(Option<Vec<u8>>, Option<Coding>), Denial> {
        let Some(compression) = self.audience.format.compression else {
            return Ok((body, None));
        };
        let body_is_long = |body: &Vec<u8>| body.len() >= compression.terms.min_length;
        let coding = super::coding(r, &self.audience, body.as_ref().is_some_and(body_is_long))?;
        let code = |body: Vec<u8>| match coding {
            None => Some(body),
            Some(coding) => delivery::member(compression.terms, coding, &body),
        };
        Ok((body.and_then(code), coding))
    }

    /// Gap notices in the body, for a script: it sees no headers, nor an answer without a body.
    fn gap_notices(&self, asides: &Asides) -> Vec<u8> {
        let (mut notices, mut empty) = (Vec::new(), true);
        if self.callback.is_some() {
            for channel in &asides.gaps {
                self.separate(&mut empty, &mut notices);
                let format = &self.audience.format;
                format.render_gap(channel, None, None, asides.position_of_notice, &mut notices);
            }
        }
        notices
    }

    /// Renders a message that is in no channel.
    pub fn notice(&self, id: i64, text: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        let fields = Fields {
            id,
            channel: b"",
            text,
            time: 0,
            tag: 0,
            event_id: None,
            event_type: None,
        };
        self.audience.format.render(&fields, false, &mut message);
        message
    }
}

fn is_callback_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.$[]".contains(&byte)
}
