//! WebSocket: the handshake, and refusals as close frames. The delivery handles all later frames.

use ngx::ffi::*;
use push_stream_core::store::{JoinMode, Joined};
use push_stream_core::wire::coding::permessage::{self, Agreed};
use push_stream_core::wire::{control, websocket};

use super::Candidate;
use crate::delivery::{self, Deflated, Enlistment, Framing, Kind, Seat, Socket};
use crate::http::answer;
use crate::http::denial::{Denial, NOT_ENLISTED};
use crate::http::request::{HeaderName, Request};
use crate::http::token::Right;

/// Close code of a refusal (RFC 6455 §7.4.1: policy violation).
const REFUSED: u16 = 1008;

/// Handles one request of a WebSocket location.
pub fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    r.close_afterwards();
    if r.method() != NGX_HTTP_GET {
        return Err(Denial::Method("GET"));
    }
    answer::add_cache_headers(r)?;
    if !r.is_main() {
        return Err(Denial::Subrequest);
    }
    let accept = judge_handshake(r)?;
    let deflate = negotiate(r);
    let operates = agrees_on_operations(r);
    let mut opening = head(&accept, deflate.as_ref().map(|(_, extension)| &extension[..]), operates);
    // The client sees the switch of protocols first, whether or not its subscription is accepted.
    match join(r) {
        Ok(admitted) => admitted.enlist(opening, deflate.map(|(agreed, _)| agreed), operates),
        Err(denial) => {
            answer::log(r, denial);
            super::count_refusal(&denial);
            push_refusal(denial, &mut opening);
            Ok(r.send_raw(&opening, NGX_HTTP_SWITCHING_PROTOCOLS))
        }
    }
}

/// The value of `Sec-WebSocket-Accept` for a request that is a handshake (RFC 6455 §4.2.1).
fn judge_handshake(r: Request<'_>) -> Result<String, Denial> {
    if !r.may_switch_protocols() {
        return Err(Denial::NoHandshake);
    }
    let header = |name| r.header(name).ok_or(Denial::NoHandshake);
    header(&HeaderName::UPGRADE)?;
    header(&HeaderName::CONNECTION)?;
    let key = header(&HeaderName::WEBSOCKET_KEY)?;
    let version = header(&HeaderName::WEBSOCKET_VERSION)?;
    if !matches!(version, b"8" | b"13") {
        return Err(Denial::HandshakeVersion);
    }
    let says = |name, word| r.headers(name).any(|value| websocket::has_word(value, word));
    if !says(&HeaderName::UPGRADE, "websocket") {
        return Err(Denial::Handshake("Header Upgrade must name websocket."));
    }
    if !says(&HeaderName::CONNECTION, "upgrade") {
        return Err(Denial::Handshake("Header Connection must name Upgrade."));
    }
    if !websocket::is_key(key) {
        return Err(Denial::Handshake(
            "Header Sec-WebSocket-Key must be 16 bytes in base64.",
        ));
    }
    Ok(websocket::accept_key(key))
}

/// What is agreed on about compression, and the extension that the answer names.
fn negotiate(r: Request<'_>) -> Option<(Agreed, String)> {
    let compression = r.location().audience.as_ref()?.format.compression?;
    permessage::agree(r.headers(&HeaderName::WEBSOCKET_EXTENSIONS), compression.terms.grouped)
}

/// Does the client offer the subprotocol of operations where it is accepted?
fn agrees_on_operations(r: Request<'_>) -> bool {
    let is_it = |word: &[u8]| word.trim_ascii() == control::SUBPROTOCOL.as_bytes();
    r.location().audience.as_ref().is_some_and(|audience| audience.control)
        && r.headers(&HeaderName::WEBSOCKET_PROTOCOL)
            .any(|value| value.split(|&byte| byte == b',').any(is_it))
}

fn head(accept: &str, extension: Option<&str>, operates: bool) -> Vec<u8> {
    let protocol = match operates {
        true => format!("Sec-WebSocket-Protocol: {}\r\n", control::SUBPROTOCOL),
        false => String::new(),
    };
    let extension = extension.map_or_else(String::new, |extension| {
        format!("Sec-WebSocket-Extensions: {extension}\r\n")
    });
    format!(
        "HTTP/1.1 101 Switching Protocols\r\n\
         Expires: Thu, 01 Jan 1970 00:00:01 GMT\r\n\
         Cache-Control: no-cache, no-store, must-revalidate\r\n\
         Upgrade: WebSocket\r\n\
         Connection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\
         {extension}{protocol}\r\n"
    )
    .into_bytes()
}

/// A close frame with the reason; nothing if no channel was named at all.
fn push_refusal(denial: Denial, out: &mut Vec<u8>) {
    if denial != Denial::NoChannelId {
        let explain = denial.explain().unwrap_or_default();
        let reason = format!(r#"{{"http_status": {}, "explain":"{explain}"}}"#, denial.status());
        websocket::push_close(REFUSED, reason.as_bytes(), out);
    }
}

/// An admitted client.
struct Admitted<'r> {
    candidate: Candidate<'r>,
    joined: Joined,
    seat: Seat,
}

fn join(r: Request<'_>) -> Result<Admitted<'_>, Denial> {
    let candidate = Candidate::of(r)?;
    let (joined, seat) = candidate.join(JoinMode::Stream)?;
    Ok(Admitted {
        candidate,
        joined,
        seat,
    })
}

impl Admitted<'_> {
    fn enlist(self, mut opening: Vec<u8>, deflate: Option<Agreed>, operates: bool) -> Result<ngx_int_t, Denial> {
        let Admitted {
            candidate,
            joined,
            seat,
        } = self;
        opening.extend_from_slice(&candidate.audience.header);
        opening.extend(candidate.introduction(&joined).concat());
        let r = candidate.r;
        let muted = candidate.pass.check(Right::Publish, &candidate.path).is_err();
        r.head_is_sent(NGX_HTTP_SWITCHING_PROTOCOLS);
        let socket = Socket::new(opening, muted, operates);
        let (kind, framing) = match deflate {
            Some(agreed) => (
                Kind::Deflated(Box::new(Deflated::new(socket))),
                Framing::Deflated(agreed),
            ),
            None => (Kind::Socket(Box::new(socket)), Framing::Raw),
        };
        delivery::enlist(
            r.raw(),
            Enlistment {
                audience: candidate.audience.clone(),
                ids: candidate.path.ids(),
                joined,
                seat,
                kind,
                direct: Ok(framing),
                coding: None,
                message_min: 0,
                asked: candidate.resume.asked(),
                ends_in_ms: candidate.pass.ends_in_ms(),
                subject: candidate.pass.subject(),
            },
        )
        .ok_or(NOT_ENLISTED)
    }
}
