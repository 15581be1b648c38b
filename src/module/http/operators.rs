//! Operators' requests to an admin publisher (`push_stream_admin_api`): listing channels and stored messages, deleting
//! channels and dismissing subscribers in bulk, piece by piece. [`subjects`] sends one subject away.

use ngx::ffi::*;
use push_stream_core::store::{Batch, ChannelInfo, Landmark, Listing, Mark, Now};
use push_stream_core::wire::operators::{self, List, Stored, bookmark, read_bookmark};

use super::answer;
use super::body::{self, Body};
use super::channels::{self, Path};
use super::denial::Denial;
use super::pieces::{self, Source};
use super::request::Request;
use super::subjects;
use super::token::{Pass, Right};
use crate::delivery;

/// Channels per page by default.
const CHANNELS: u64 = 1000;
/// Messages per page by default.
const MESSAGES: u64 = 100;
/// Slices of the channel list, each a few hundred channels, per piece.
const LISTS_PER_PIECE: usize = 4;
/// Channels deleted in one step of the store.
const DELETED_AT_ONCE: usize = 64;
/// Slices of stored messages, each up to a hundred, per piece.
const REPLAYS_PER_PIECE: usize = 4;

const JSON: &str = "application/json";

/// The request's arguments that matter here.
#[derive(Default)]
struct Arguments {
    list: bool,
    messages: bool,
    prefix: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    limit: Option<u64>,
    dry_run: bool,
    only: Option<Vec<u8>>,
    subject: Option<Vec<u8>>,
}

/// Handles an operator's request; None if it is any other.
pub fn respond(r: Request<'_>, pass: &Pass) -> Result<Option<ngx_int_t>, Denial> {
    if !r.location().admin_api() {
        return Ok(None);
    }
    match r.method() {
        NGX_HTTP_GET => {
            let arguments = Arguments::of(r)?;
            if arguments.list {
                return list_channels(r, pass, &arguments).map(Some);
            }
            if arguments.messages {
                return list_messages(r, pass, &arguments).map(Some);
            }
            Ok(None)
        }
        NGX_HTTP_DELETE => {
            let arguments = Arguments::of(r)?;
            if arguments.subject.is_some() {
                if arguments.prefix.is_some() || arguments.only.is_some() {
                    return Err(Denial::Argument("Argument subject goes with no other."));
                }
                // Whoever may send anybody away may do so in every channel.
                pass.check_all_from(Right::Publish, b"")?;
                return Ok(Some(r.read_body(delete_body)?));
            }
            if let Some(prefix) = &arguments.prefix {
                pass.check_all_from(Right::Publish, prefix)?;
                return Ok(Some(r.read_body(delete_body)?));
            }
            if arguments.only.is_some() {
                return dismiss(r, pass, &arguments).map(Some);
            }
            Ok(None)
        }
        _ => Ok(None),
    }
}

impl Arguments {
    fn of(r: Request<'_>) -> Result<Arguments, Denial> {
        let mut arguments = Arguments::default();
        for (name, value) in r.arguments() {
            let given = value.clone().filter(|value| !value.is_empty());
            match &name[..] {
                b"list" => arguments.list = true,
                b"messages" => arguments.messages = true,
                b"prefix" => arguments.prefix = Some(value.unwrap_or_default()),
                b"after" => arguments.after = given,
                b"limit" => arguments.limit = given.map(|limit| number(&limit)).transpose()?,
                b"dry_run" => arguments.dry_run = value.as_deref() != Some(b"0"),
                b"only" => arguments.only = Some(value.unwrap_or_default()),
                b"subject" => arguments.subject = Some(value.unwrap_or_default()),
                _ => {}
            }
        }
        Ok(arguments)
    }
}

/// Parses a limit: at least one.
fn number(text: &[u8]) -> Result<u64, Denial> {
    str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|&number| number > 0)
        .ok_or(Denial::Argument("Argument limit must be a number above zero."))
}

const UNKNOWN_AFTER: Denial = Denial::Argument("Argument after names nothing.");

/// GET `?list&prefix=&after=&limit=`
fn list_channels(r: Request<'_>, pass: &Pass, arguments: &Arguments) -> Result<ngx_int_t, Denial> {
    let prefix = arguments.prefix.clone().unwrap_or_default();
    pass.check_all_from(Right::Publish, &prefix)?;
    let mut listing = match &arguments.after {
        None => Listing::default(),
        Some(after) => Listing::after(landmark(after)?),
    };
    let mut left = arguments.limit.unwrap_or(CHANNELS);
    let mut list = List::default();
    let source: Source = Box::new(move |worker, out| {
        for _ in 0..LISTS_PER_PIECE {
            let mut last = None;
            let more = worker.list(&mut listing, |_, _| true, &mut |listed| {
                if left > 0 && listed.id.starts_with(&prefix) {
                    left -= 1;
                    last = Some(listed.landmark);
                    let figures = channels::figures(listed.id, listed.info);
                    list.channel(&figures, listed.extent.stored_bytes, out);
                }
            });
            if left == 0 || !more {
                let next = last
                    .filter(|_| left == 0)
                    .map(|last| bookmark(&[last.born, last.block.into()]));
                std::mem::take(&mut list).end_channels(next.as_deref(), out);
                return Ok(false);
            }
        }
        Ok(true)
    });
    pieces::answer(r, JSON, source)
}

/// Parses `after`: the `next` of an earlier page, or a channel's id.
fn landmark(after: &[u8]) -> Result<Landmark, Denial> {
    if let Some([born, block]) = read_bookmark(after) {
        let block = u32::try_from(block).map_err(|_| UNKNOWN_AFTER)?;
        return Ok(Landmark { born, block });
    }
    delivery::with_store(|worker| worker.landmark(after))
        .ok_or(Denial::Unavailable)?
        .ok_or(UNKNOWN_AFTER)
}

/// GET `?messages&after=&limit=`
fn list_messages(r: Request<'_>, pass: &Pass, arguments: &Arguments) -> Result<ngx_int_t, Denial> {
    let (path, settings) = (Path::of(r)?, r.settings()?);
    pass.check(Right::Publish, &path)?;
    path.judge(|id| channels::check_id(id, settings), |_| Ok(()))?;
    let [id] = path.ids()[..] else {
        return Err(Denial::Argument("Exactly one channel id is needed."));
    };
    let (mut seen, from) = match &arguments.after {
        None => (0, None),
        Some(after) => position(after)?,
    };
    let mut replay = delivery::with_store(|worker| worker.stored(id, from))
        .ok_or(Denial::Unavailable)?
        .ok_or(Denial::UnknownChannel)?;
    let mut left = arguments.limit.unwrap_or(MESSAGES);
    let mut list = List::default();
    let mut batch = Batch::default();
    let source: Source = Box::new(move |worker, out| {
        for _ in 0..REPLAYS_PER_PIECE {
            let mark = replay.mark();
            let more = worker.replay(&mut replay, &mut batch);
            for (_, message) in batch.iter() {
                if message.id <= seen {
                    continue;
                }
                if left == 0 {
                    let next = mark.map(|mark| bookmark(&[seen, mark.seq, mark.link.into()]));
                    std::mem::take(&mut list).end_messages(next.as_deref(), out);
                    return Ok(false);
                }
                left -= 1;
                seen = message.id;
                let stored = Stored {
                    id: message.id,
                    time: message.time,
                    tag: message.tag,
                    event_id: message.event_id,
                    event_type: message.event_type,
                    text: message.text,
                };
                list.message(&stored, out);
            }
            if !more {
                std::mem::take(&mut list).end_messages(None, out);
                return Ok(false);
            }
        }
        Ok(true)
    });
    pieces::answer(r, JSON, source)
}

/// Parses `after`: the `next` of an earlier page, or a message's number in its channel. Returns the last message seen
/// and where the walk resumes.
fn position(after: &[u8]) -> Result<(u64, Option<Mark>), Denial> {
    if let Some([seen, seq, link]) = read_bookmark(after) {
        let link = u32::try_from(link).map_err(|_| UNKNOWN_AFTER)?;
        return Ok((seen, Some(Mark { seq, link })));
    }
    let number = str::from_utf8(after).ok().and_then(|text| text.parse().ok());
    Ok((number.ok_or(UNKNOWN_AFTER)?, None))
}

unsafe extern "C" fn delete_body(r: *mut ngx_http_request_t) {
    // SAFETY: nginx calls this once, when it has read the whole body.
    unsafe { answer::go_on(r, delete_all) }
}

/// DELETE `?subject=`, or `?prefix=&dry_run=1`; a request body replaces the configured notice.
fn delete_all(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let Arguments {
        prefix,
        dry_run,
        subject,
        ..
    } = Arguments::of(r)?;
    if let Some(subject) = subject {
        return subjects::dismiss(r, &subject);
    }
    let prefix = prefix.unwrap_or_default();
    if prefix.is_empty() && !dry_run {
        return Err(Denial::Argument("An empty prefix would delete every channel."));
    }
    let settings = r.main().settings.clone().ok_or(Denial::Unavailable)?;
    let notice = body::deletion_notice(&settings, &Body::of(r))?;
    let mut listing = Listing::default();
    let mut extent = ChannelInfo::default();
    let mut count = 0;
    let source: Source = Box::new(move |worker, out| {
        let mut ids: Vec<Vec<u8>> = Vec::new();
        let more = worker.list(&mut listing, |_, _| true, &mut |listed| {
            if listed.id.starts_with(&prefix) && !settings.limits.is_events(listed.id) {
                extent.subscribers += listed.info.subscribers;
                count += 1;
                ids.push(listed.id.to_vec());
            }
        });
        if !dry_run {
            let ids: Vec<&[u8]> = ids.iter().map(Vec::as_slice).collect();
            for ids in ids.chunks(DELETED_AT_ONCE) {
                worker.delete(ids, &notice, Now::read())?;
            }
        }
        if !more {
            operators::push_extent(count, extent.subscribers, Some(dry_run), out);
        }
        Ok(more)
    });
    pieces::answer(r, JSON, source)
}

/// DELETE `?only=subscribers`
fn dismiss(r: Request<'_>, pass: &Pass, arguments: &Arguments) -> Result<ngx_int_t, Denial> {
    if arguments.only.as_deref() != Some(b"subscribers") {
        return Err(Denial::Argument("Argument only must be subscribers."));
    }
    let path = channels::changeable_path(r)?;
    pass.check(Right::Publish, &path)?;
    let had = delivery::with_store(|worker| worker.dismiss(&path.ids(), Now::read())).ok_or(Denial::Unavailable)??;
    if had.is_empty() {
        return Err(Denial::UnknownChannel);
    }
    let subscribers = had.iter().map(|info| info.subscribers).sum();
    let mut body = Vec::new();
    operators::push_extent(had.len() as u64, subscribers, None, &mut body);
    answer::with_body(r, JSON, body)
}
