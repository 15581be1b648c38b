//! Publisher locations: publish, read figures, delete.

use ngx::ffi::*;
use push_stream_core::store::{Now, Published, Worker};
use push_stream_core::wire::event_id::{self, OrderedId};
use push_stream_core::wire::{batch::CONTENT_TYPE, statistics};

use super::answer;
use super::batch;
use super::body::{self, Body};
use super::channels::{self, Path};
use super::denial::{Denial, NO_MEMORY};
use super::operators;
use super::request::{HeaderName, Request};
use super::token::{self, Pass, Right};
use crate::config::{PublisherMode, Role};
use crate::delivery;
use crate::ffi::{lookup, pool};

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    answer::conclude(r, respond(r))
}

/// Answers as an operator's publisher, also for a console.
pub fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let admin = r.location().role == Some(Role::Publisher(PublisherMode::Admin));
    let methods = if admin {
        "GET, POST, PUT, DELETE"
    } else {
        "GET, POST, PUT"
    };
    answer::add_cors_headers(r, methods)?;
    answer::add_cache_headers(r)?;
    if r.method() == NGX_HTTP_OPTIONS {
        // Browsers ask this without a token, before they send a request with one.
        return tell_options(r);
    }
    let pass = token::admit(r).inspect_err(count_refusal)?;
    if let Some(answered) = operators::respond(r, &pass)? {
        return Ok(answered);
    }
    match r.method() {
        NGX_HTTP_GET => {
            let path = known_path(r)?;
            pass.check(Right::Publish, &path)?;
            report(r, &path)
        }
        NGX_HTTP_POST if batch::is_batch(r) => Ok(r.read_body(publish_lines)?),
        NGX_HTTP_POST | NGX_HTTP_PUT => {
            let path = publishable_path(r, &pass).inspect_err(count_refusal)?;
            check_fields(r).inspect_err(count_refusal)?;
            read_body(r, path, publish_body)
        }
        NGX_HTTP_DELETE if admin => {
            let path = channels::changeable_path(r)?;
            pass.check(Right::Publish, &path)?;
            read_body(r, path, delete_body)
        }
        _ => Err(Denial::Method(methods)),
    }
}

/// OPTIONS: what the location accepts.
fn tell_options(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    if r.location().batch().is_some() {
        r.add_header("Accept-Post", CONTENT_TYPE.as_bytes())?;
    }
    if r.header(&HeaderName::EPOCH).is_some() {
        tell_epoch(r)?;
        if r.location().terms().idempotent {
            r.add_header(HeaderName::IDEMPOTENT.text(), b"on")?;
        }
    }
    answer::header_only(r, NGX_HTTP_OK)
}

/// Adds the zone's epoch: a client that filled the zone can tell whether it is still the same.
fn tell_epoch(r: Request<'_>) -> Result<(), Denial> {
    let epoch = delivery::with_store(|worker| worker.zone().epoch_ms());
    let epoch = epoch.ok_or(Denial::Unavailable)?;
    Ok(r.add_header(HeaderName::EPOCH.text(), epoch.to_string().as_bytes())?)
}

/// The path of a request for figures.
fn known_path(r: Request<'_>) -> Result<Path, Denial> {
    let (path, settings) = (Path::of(r)?, r.settings()?);
    path.judge(|id| channels::check_id(id, settings), |_| Ok(()))?;
    Ok(path)
}

/// A path whose channels exist or may be created.
fn publishable_path(r: Request<'_>, pass: &Pass) -> Result<Path, Denial> {
    let (path, settings) = (Path::of(r)?, r.settings()?);
    pass.check(Right::Publish, &path)?;
    let may_exist = |count| {
        let ids = path.ids();
        let checked = delivery::with_store(|worker| worker.check_channels(&ids[..count]));
        Ok(checked.ok_or(Denial::Unavailable)??)
    };
    path.judge(|id| channels::check_changeable(id, settings), may_exist)?;
    Ok(path)
}

/// Counts a refused message in the statistics.
fn count_refusal(denial: &Denial) {
    if let Some(counter) = denial.counter() {
        delivery::with_store(|worker| worker.count(counter, 1));
    }
}

/// The event id given by the publisher; where the location assigns ids, an empty one counts as none.
fn brought_id(r: Request<'_>) -> Option<&[u8]> {
    r.header(&HeaderName::EVENT_ID)
        .filter(|id| !r.location().gives_ids() || !id.is_empty())
}

/// The store counts the bytes of an event id or type in 16 bits.
const LONGEST_FIELD: usize = u16::MAX as usize;

/// Checks event id and type: their length, and their characters in locations that check them.
fn check_fields(r: Request<'_>) -> Result<(), Denial> {
    let fields = [r.header(&HeaderName::EVENT_ID), r.header(&HeaderName::EVENT_TYPE)];
    if fields.into_iter().flatten().any(|field| field.len() > LONGEST_FIELD) {
        return Err(Denial::EventFieldTooLong);
    }
    if r.location().tells_ids() && !fields.into_iter().flatten().all(event_id::is_acceptable) {
        return Err(Denial::BadEventField);
    }
    Ok(())
}

/// GET: the figures of the existing channels of the path.
fn report(r: Request<'_>, path: &Path) -> Result<ngx_int_t, Denial> {
    let (format, content_type) = statistics::negotiate(r.header(&HeaderName::ACCEPT));
    let body = delivery::with_store(|worker| {
        let known: Vec<_> = path
            .ids()
            .into_iter()
            .filter_map(|id| Some((id, worker.channel(id)?)))
            .collect();
        if known.is_empty() {
            return Err(Denial::UnknownChannel);
        }
        let newest = known.last().filter(|_| r.location().tells_ids());
        let newest = newest.and_then(|(id, _)| worker.newest_event_id(id));
        Ok((channels::write_figures(format, worker, Now::read(), &known), newest))
    });
    let (body, newest) = body.ok_or(Denial::Unavailable)??;
    answer::add_event_id(r, newest.as_deref())?;
    answer::with_body(r, content_type, body)
}

/// Lets nginx read the body, then calls `then`. The path is kept with the request meanwhile.
fn read_body(
    r: Request<'_>,
    path: Path,
    then: unsafe extern "C" fn(*mut ngx_http_request_t),
) -> Result<ngx_int_t, Denial> {
    // SAFETY: the request is valid; its context entry of this module is ours.
    unsafe {
        let place = pool::place((*r.raw()).pool, path).ok_or(NO_MEMORY)?;
        *lookup::context(r.raw()) = place.as_ptr().cast();
    }
    Ok(r.read_body(then)?)
}

/// The path kept by [`read_body`].
fn kept_path(r: Request<'_>) -> Result<&Path, Denial> {
    // SAFETY: the entry is NULL or was set by `read_body`; the path lives as long as the request.
    unsafe {
        lookup::context(r.raw())
            .cast::<Path>()
            .as_ref()
            .ok_or(Denial::Internal("the channels of a publish are lost"))
    }
}

unsafe extern "C" fn publish_body(r: *mut ngx_http_request_t) {
    // SAFETY: nginx calls this once, when it has read the whole body.
    unsafe { answer::go_on(r, publish) }
}

unsafe extern "C" fn publish_lines(r: *mut ngx_http_request_t) {
    // SAFETY: as above.
    unsafe { answer::go_on(r, batch::publish) }
}

unsafe extern "C" fn delete_body(r: *mut ngx_http_request_t) {
    // SAFETY: as above.
    unsafe { answer::go_on(r, delete) }
}

/// POST and PUT: one message to every channel of the path, or to none.
fn publish(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let ids = kept_path(r)?.ids();
    let body = Body::of(r);
    let now = Now::read();
    let published = delivery::with_store(|worker| {
        if body.len() == 0 {
            return refuse_empty(worker, &ids, now);
        }
        let mut draft = worker.draft(
            body.len(),
            brought_id(r),
            r.header(&HeaderName::EVENT_TYPE),
            ids.len(),
            now,
        )?;
        if let Err(denial) = body.copy(worker, &mut draft) {
            worker.discard(draft);
            return Err(denial);
        }
        Ok(worker.publish(draft, &ids, r.location().terms(), now)?)
    })
    .ok_or(Denial::Unavailable)?
    .inspect_err(count_refusal)?;
    add_outcome(r, &published)?;
    batch::warn_of_single_message(r)?;
    if r.location().info_on_publish() {
        confirm(r, &ids, &published, now)
    } else {
        answer::header_only(r, NGX_HTTP_OK)
    }
}

/// Adds how many channels had already accepted the message, and the newest id of the last one.
fn add_outcome(r: Request<'_>, published: &[Published]) -> Result<(), Denial> {
    let duplicates = published.iter().filter(|published| published.duplicate).count();
    if duplicates > 0 {
        r.add_header("X-Nginx-PushStream-Duplicate", duplicates.to_string().as_bytes())?;
    }
    if !r.location().tells_ids() {
        return Ok(());
    }
    let brought = brought_id(r);
    let newest = published.last().and_then(|published| published.newest_id);
    let unordered = brought.filter(|id| OrderedId::parse(id).is_none());
    let id = unordered.map(<[u8]>::to_vec).or_else(|| newest.map(|id| id.to_text()));
    // A zone that does not track ids knows no newer one.
    answer::add_event_id(r, id.as_deref().or(brought))
}

/// Refuses an empty message; a single channel is created all the same, as in the C module.
fn refuse_empty(worker: &mut Worker, ids: &[&[u8]], now: Now) -> Result<Vec<Published>, Denial> {
    if ids.len() == 1 {
        worker.create_channels(ids, now)?;
    }
    Err(Denial::EmptyPost)
}

fn confirm(r: Request<'_>, ids: &[&[u8]], published: &[Published], now: Now) -> Result<ngx_int_t, Denial> {
    let (format, content_type) = statistics::negotiate(r.header(&HeaderName::ACCEPT));
    let channels: Vec<_> = ids
        .iter()
        .copied()
        .zip(published.iter().map(|published| published.info))
        .collect();
    let body = delivery::with_store(|worker| channels::write_figures(format, worker, now, &channels));
    answer::with_body(r, content_type, body.ok_or(Denial::Unavailable)?)
}

/// DELETE: a request body replaces the configured notice.
fn delete(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let settings = r.settings()?;
    let ids = kept_path(r)?.ids();
    let body = Body::of(r);
    let notice = body::deletion_notice(settings, &body)?;
    let deleted =
        delivery::with_store(|worker| worker.delete(&ids, &notice, Now::read())).ok_or(Denial::Unavailable)??;
    if deleted == 0 {
        return Err(Denial::UnknownChannel);
    }
    r.add_header("X-Nginx-PushStream-Explain", b"Channel deleted.")?;
    answer::header_only(r, NGX_HTTP_OK)
}
