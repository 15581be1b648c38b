//! Subscriber locations: admission and resume position. Each mode has a module of its own.

mod eventsource;
mod long_polling;
mod polling;
mod streaming;
mod websocket;

use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::{
    AddressLimit, Counter, JoinChannel, JoinMode, JoinRequest, Joined, Now, Position, Refusal,
};
use push_stream_core::wire::coding::{Coding, accept};
use push_stream_core::wire::event_id::OrderedId;
use push_stream_core::wire::{eventsource as eventsource_wire, gap, http_date, position};

use smallvec::SmallVec;

use super::answer;
use super::channels::{self, Path};
use super::denial::Denial;
use super::request::{HeaderName, Request};
use super::token::{self, Pass, Right};
use crate::config::{Role, Settings, SubscriberMode};
use crate::delivery::{self, Audience, Seat, Transport};

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    let result = respond(r).inspect_err(count_refusal);
    answer::conclude(r, result.or_else(|denial| soften(r, denial)))
}

/// `push_stream_refuse_softly`: an answer after which an EventSource comes back, for it gives up for ever on any other
/// status than 200.
fn soften(r: Request<'_>, denial: Denial) -> Result<ngx_int_t, Denial> {
    let eventsource = mode(r) == SubscriberMode::EventSource;
    let Some(reason) = denial
        .passing_reason()
        .filter(|_| eventsource && r.location().refuses_softly() && !r.is_head_sent())
    else {
        return Err(denial);
    };
    answer::log(r, denial);
    if let Some(explain) = denial.explain() {
        r.add_header("X-Nginx-PushStream-Explain", explain.as_bytes())?;
    }
    let body = eventsource_wire::refusal(denial.status(), reason);
    answer::with_body(r, "text/event-stream; charset=utf-8", body)
}

/// Counts a refused subscription, for the statistics and the error log.
fn count_refusal(denial: &Denial) {
    if let Some(counter) = denial.subscriber_counter() {
        delivery::count_refused_subscriber(counter);
    }
}

fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    if token::is_about_tickets(r) {
        answer::add_cors_headers(r, "GET, POST")?;
        answer::add_cache_headers(r)?;
        return match r.method() {
            NGX_HTTP_OPTIONS => answer::header_only(r, NGX_HTTP_OK),
            _ => token::issue_ticket(r),
        };
    }
    if r.location().role == Some(Role::Subscriber(SubscriberMode::WebSocket)) {
        return websocket::respond(r);
    }
    let tickets = r.location().gate.as_ref().is_some_and(|gate| gate.tickets.is_some());
    answer::add_cors_headers(r, if tickets { "GET, POST" } else { "GET" })?;
    if r.method() == NGX_HTTP_OPTIONS {
        return answer::header_only(r, NGX_HTTP_OK);
    }
    answer::add_cache_headers(r)?;
    if r.method() != NGX_HTTP_GET {
        return Err(Denial::Method("GET"));
    }
    let mode = mode(r);
    if !r.is_main() && matches!(mode, SubscriberMode::Streaming | SubscriberMode::EventSource) {
        return Err(Denial::Subrequest);
    }
    let candidate = Candidate::of(r)?;
    r.discard_body()?;
    match mode {
        SubscriberMode::Streaming => streaming::respond(&candidate),
        SubscriberMode::EventSource => eventsource::respond(&candidate),
        SubscriberMode::Polling => polling::respond(&candidate),
        SubscriberMode::LongPolling => long_polling::respond(&candidate),
        // A WebSocket location is handled elsewhere, and no header selects this mode.
        SubscriberMode::WebSocket => Err(Denial::Internal("a WebSocket location without a handshake")),
    }
}

/// The location's mode, unless a header turns a stream into a poll. Nothing turns a poll into a stream.
fn mode(r: Request<'_>) -> SubscriberMode {
    let configured = match r.location().role {
        Some(Role::Subscriber(mode)) => mode,
        _ => SubscriberMode::Streaming,
    };
    let asked = r.header(&HeaderName::MODE).unwrap_or_default();
    if asked.eq_ignore_ascii_case(b"long-polling") {
        SubscriberMode::LongPolling
    } else if asked.eq_ignore_ascii_case(b"polling") && configured != SubscriberMode::LongPolling {
        SubscriberMode::Polling
    } else {
        configured
    }
}

/// A subscription request, and what it names.
struct Candidate<'r> {
    r: Request<'r>,
    settings: &'r Settings,
    audience: &'r Rc<Audience>,
    path: Path,
    resume: Resume,
    pass: Pass,
}

impl<'r> Candidate<'r> {
    fn of(r: Request<'r>) -> Result<Candidate<'r>, Denial> {
        let settings = r.settings()?;
        let path = Path::of(r)?;
        let pass = token::admit(r)?;
        pass.check(Right::Subscribe, &path)?;
        let candidate = Candidate {
            r,
            settings,
            audience: r
                .location()
                .audience
                .as_ref()
                .ok_or(Denial::Internal("a subscriber location without its settings"))?,
            path,
            resume: Resume::of(r)?,
            pass,
        };
        candidate.check()?;
        Ok(candidate)
    }

    /// All checks but the limits of channels and of the client's address, which joining makes itself. The store is
    /// asked here only if some other check fails: its refusal of an earlier channel comes first.
    fn check(&self) -> Result<(), Denial> {
        let wildcards = check_wildcards(self.r, &self.path, self.settings);
        let count = self.path.segments().len();
        let admit = |sound| {
            if sound == count && wildcards.is_ok() {
                return Ok(());
            }
            let channels = &self.channels()[..sound];
            let admitted = delivery::with_store(|worker| worker.admits(&self.request(channels, JoinMode::Poll, None)));
            Ok(admitted.ok_or(Denial::Unavailable)??)
        };
        self.path.judge(|id| channels::check_id(id, self.settings), admit)?;
        wildcards
    }

    fn channels(&self) -> SmallVec<[JoinChannel<'_>; 2]> {
        self.path
            .segments()
            .map(|segment| JoinChannel {
                id: segment.id,
                backtrack: segment.backtrack,
            })
            .collect()
    }

    /// Joins the channels of the path. Dropping the seat leaves them again.
    fn join(&self, mode: JoinMode) -> Result<(Joined, Seat), Denial> {
        let channels = self.channels();
        let max = self.settings.max_subscribers_per_address;
        let address = max.and_then(|max| Some((self.r.address_key()?, max)));
        let address = address.as_ref().map(|(key, max)| AddressLimit { key, max: *max });
        let request = self.request(&channels, mode, address);
        let joined = delivery::with_store(|worker| {
            let joined = worker.join(&request, Now::read())?;
            worker.count(Counter::GapNotice, u64::from(!joined.gaps.is_empty()));
            Ok::<_, Refusal>(joined)
        })
        .ok_or(Denial::Unavailable)??;
        let seat = Seat::new(&joined);
        Ok((joined, seat))
    }

    fn request<'a>(
        &'a self,
        channels: &'a [JoinChannel<'a>],
        mode: JoinMode,
        address: Option<AddressLimit<'a>>,
    ) -> JoinRequest<'a> {
        JoinRequest {
            channels,
            position: self.resume.position(),
            mode,
            ordered: self.r.location().resumes_in_order(),
            gap_notices: self.r.location().tells_gaps(),
            authorized_channels_only: self.r.location().authorized_channels_only(),
            may_follow_events: self.r.location().may_follow_events(),
            address,
        }
    }

    /// The first bytes of a stream, before all messages: gap notices, and for an EventSource the retry time, and its
    /// position if no replayed message carries one.
    fn introduction(&self, joined: &Joined) -> Vec<Vec<u8>> {
        let format = &self.audience.format;
        let eventsource = format.transport == Transport::EventSource;
        let mut pieces = Vec::new();
        if let Some(retry) = self.r.location().retry().filter(|_| eventsource) {
            pieces.push(eventsource_wire::retry(random_between(retry.min_ms, retry.max_ms)));
        }
        let (asked, position) = (self.resume.asked(), joined.position_of_notice());
        for gap in &joined.gaps {
            let mut notice = Vec::new();
            let channel = self.path.id(gap.path_index as usize);
            format.render_gap(channel, asked, gap.first, position, &mut notice);
            pieces.push(notice);
        }
        let position = joined
            .position
            .filter(|_| joined.replay.is_none() && eventsource && format.ordered);
        pieces.extend(position.map(eventsource_wire::position));
        pieces
    }

    /// The parts of a poll's answer beside its messages.
    fn asides(&self, joined: &Joined) -> Asides {
        // A client that asks with an id that is not ordered keeps using such ids.
        let follows_ids = self.resume.event_id.is_none() || self.resume.asked().is_some() || !joined.gaps.is_empty();
        Asides {
            gaps: self.gaps(joined).into_iter().map(Into::into).collect(),
            position: joined
                .position
                .filter(|_| self.r.location().resumes_in_order() && follows_ids),
            position_of_notice: joined.position_of_notice(),
        }
    }

    /// The channels with lost messages.
    fn gaps(&self, joined: &Joined) -> Vec<&[u8]> {
        joined
            .gaps
            .iter()
            .map(|gap| self.path.id(gap.path_index as usize))
            .collect()
    }
}

/// The content coding of an answer, which its head names: the client's choice out of those of the location. `worth`:
/// there is something to code.
fn coding(r: Request<'_>, audience: &Audience, worth: bool) -> Result<Option<Coding>, Denial> {
    if audience.codings.is_empty() {
        return Ok(None);
    }
    r.add_header("Vary", b"Accept-Encoding")?;
    let chosen = accept::choose(r.headers(&HeaderName::ACCEPT_ENCODING), &audience.codings);
    let chosen = chosen.filter(|_| worth && r.is_main() && r.may_be_coded());
    if let Some(coding) = chosen {
        r.set_content_encoding(coding.name())?;
    }
    Ok(chosen)
}

/// The parts of a poll's answer beside its messages, where the client resumes in order.
struct Asides {
    /// Channels with messages lost since the client's position.
    gaps: Vec<Rc<[u8]>>,
    /// The client's position once it has the answer.
    position: Option<OrderedId>,
    /// The position to show in gap notices, unless messages of the answer carry it.
    position_of_notice: Option<OrderedId>,
}

impl Asides {
    fn add_gap(&mut self, channel: &[u8]) {
        if !self.gaps.iter().any(|known| **known == *channel) {
            self.gaps.push(channel.into());
        }
    }

    fn add_headers(&self, r: Request<'_>) -> Result<(), Denial> {
        if !self.gaps.is_empty() {
            let channels = self.gaps.iter().map(|channel| &**channel);
            r.add_header("X-Nginx-PushStream-Gap", &gap::header_value(channels))?;
        }
        let position = self.position.map(|id| id.to_text());
        answer::add_event_id(r, position.as_deref())
    }
}

/// A random number, to spread the reconnections of many clients.
fn random_between(min: u32, max: u32) -> u32 {
    min + delivery::random_below(u64::from(max - min) + 1) as u32
}

/// Checks `push_stream_wildcard_channel_max_qtd`: not more wildcard channels, and never only wildcard channels.
fn check_wildcards(r: Request<'_>, path: &Path, settings: &Settings) -> Result<(), Denial> {
    let prefix = &settings.limits.wildcard_prefix;
    let Some(max) = r.location().wildcard_max().filter(|_| !prefix.is_empty()) else {
        return Ok(());
    };
    let (mut wildcards, mut others) = (0, 0);
    for segment in path.segments() {
        *if segment.id.starts_with(prefix) {
            &mut wildcards
        } else {
            &mut others
        } += 1;
    }
    if wildcards > max || (wildcards > 0 && others == 0) {
        return Err(Denial::TooManyWildcardChannels);
    }
    Ok(())
}

/// The position from which the client wants to resume.
struct Resume {
    event_id: Option<Vec<u8>>,
    time: Option<u64>,
    tag: Option<u32>,
}

impl Resume {
    /// A directive replaces its header, even if its value is empty.
    fn of(r: Request<'_>) -> Result<Resume, Denial> {
        let location = r.location();
        let choose = |directive, header| -> Result<Option<Vec<u8>>, Denial> {
            match r.value(directive)? {
                Some(value) => Ok(Some(value).filter(|value| !value.is_empty())),
                None => Ok(r.header(header).map(<[u8]>::to_vec)),
            }
        };
        let event_id = if location.resumes_in_order() {
            // The browser's own header is newer than an id that a page has put into its URL.
            match r.header(&HeaderName::LAST_EVENT_ID).filter(|id| !id.is_empty()) {
                Some(id) => Some(id.to_vec()),
                None => r.value(location.last_event_id)?.filter(|id| !id.is_empty()),
            }
        } else {
            choose(location.last_event_id, &HeaderName::LAST_EVENT_ID)?
        };
        Ok(Resume {
            event_id,
            time: choose(location.last_time, &HeaderName::IF_MODIFIED_SINCE)?.and_then(|text| http_date::parse(&text)),
            tag: choose(location.last_tag, &HeaderName::IF_NONE_MATCH)?.and_then(|text| position::parse_tag(&text)),
        })
    }

    /// The ordered id after which the client wants to resume.
    fn asked(&self) -> Option<OrderedId> {
        self.event_id.as_deref().and_then(OrderedId::parse)
    }

    fn position(&self) -> Position<'_> {
        Position {
            event_id: self.event_id.as_deref(),
            time: self.time,
            tag: self.tag,
        }
    }
}
