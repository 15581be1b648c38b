//! Statistics locations.

use ngx::ffi::*;
use push_stream_core::store::{Listing, Now, Worker};
use push_stream_core::wire::exposition::Exposition;
use push_stream_core::wire::statistics::{self, Format};

use super::answer;
use super::channels::{self, Path};
use super::denial::Denial;
use super::metrics;
use super::pieces::{self, Source};
use super::request::{HeaderName, Request};
use crate::config::StatisticsFormat;
use crate::delivery;

/// Slices of the channel list, each a few hundred channels, per piece.
const LISTS_PER_PIECE: usize = 4;

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    answer::conclude(r, respond(r))
}

fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    answer::add_cache_headers(r)?;
    if r.method() != NGX_HTTP_GET {
        return Err(Denial::Method("GET"));
    }
    r.add_header("X-Nginx-PushStream-Tag", env!("CARGO_PKG_VERSION").as_bytes())?;
    r.add_header("X-Nginx-PushStream-Commit", env!("PUSH_STREAM_COMMIT").as_bytes())?;
    let accept = r.header(&HeaderName::ACCEPT);
    let (format, content_type) = match r.location().statistics_format() {
        StatisticsFormat::Metrics => return send_metrics(r, Exposition::negotiate(accept)),
        StatisticsFormat::Fixed(format) => (format, format.content_type()),
        StatisticsFormat::Negotiated if statistics::prefers_openmetrics(accept) => {
            return send_metrics(r, Exposition::OpenMetrics);
        }
        StatisticsFormat::Negotiated => statistics::negotiate(accept),
    };
    let path = Path::of(r)?;
    let now = Now::read();
    let body = match question(r, &path)? {
        Question::Group(prefix) => return pieces::answer(r, content_type, group(format, prefix.to_vec())),
        Question::Summary => delivery::with_store(|worker| Ok(summary(format, worker, now))),
        Question::Channels(ids) => delivery::with_store(|worker| known(format, worker, now, &ids)),
    };
    answer::with_body(r, content_type, body.ok_or(Denial::Unavailable)??)
}

fn send_metrics(r: Request<'_>, exposition: Exposition) -> Result<ngx_int_t, Denial> {
    let summary = delivery::figures(Now::read()).ok_or(Denial::Unavailable)?;
    let top_channels = delivery::top_channels(r.location().statistics_channels());
    let body = metrics::write(exposition, &summary, &top_channels);
    answer::with_body(r, exposition.content_type(), body)
}

/// The figures that a request asks for.
enum Question<'p> {
    Summary,
    /// All channels whose id starts with this prefix.
    Group(&'p [u8]),
    Channels(Vec<&'p [u8]>),
}

/// The first id that names a group decides.
fn question<'p>(r: Request<'_>, path: &'p Path) -> Result<Question<'p>, Denial> {
    if path.is_empty() {
        return Ok(Question::Summary);
    }
    let settings = r.settings()?;
    let mut ids = Vec::new();
    for id in path.ids() {
        channels::check_length(id, settings)?;
        if let Some(star) = id.iter().position(|&byte| byte == b'*') {
            return Ok(Question::Group(&id[..star]));
        }
        if id == b"ALL" {
            return Ok(Question::Group(b""));
        }
        ids.push(id);
    }
    Ok(Question::Channels(ids))
}

fn known(format: Format, worker: &Worker, now: Now, ids: &[&[u8]]) -> Result<Vec<u8>, Denial> {
    let known: Vec<_> = ids.iter().filter_map(|id| Some((*id, worker.channel(id)?))).collect();
    if known.is_empty() {
        return Err(Denial::UnknownChannel);
    }
    // Several ids of which only one exists get the single form, too.
    Ok(channels::write_figures(format, worker, now, &known))
}

/// The figures of all channels whose id starts with `prefix`.
fn group(format: Format, prefix: Vec<u8>) -> Source {
    let mut listing = Listing::default();
    let mut group = None;
    Box::new(move |worker, out| {
        let now = Now::read();
        let writer = group.get_or_insert_with(|| channels::start_group(format, &worker.summary(now), now, out));
        let mut more = true;
        for _ in 0..LISTS_PER_PIECE {
            more = worker.list(&mut listing, |_, _| true, &mut |listed| {
                if listed.id.starts_with(&prefix) {
                    writer.channel(&channels::figures(listed.id, listed.info), out);
                }
            });
            if !more {
                break;
            }
        }
        if let Some(writer) = group.take_if(|_| !more) {
            writer.finish(out);
        }
        Ok(more)
    })
}

fn summary(format: Format, worker: &Worker, now: Now) -> Vec<u8> {
    let summary = worker.summary(now);
    let workers: Vec<_> = summary
        .workers
        .iter()
        .map(|worker| statistics::Worker {
            pid: worker.pid,
            subscribers: worker.subscribers,
            uptime: worker.uptime_secs,
        })
        .collect();
    let mut out = Vec::new();
    let figures = statistics::Summary {
        hostname: channels::hostname(),
        time: now.unix_secs(),
        channels: summary.channels,
        wildcard_channels: summary.wildcard_channels,
        published: summary.published,
        stored: summary.stored,
        messages_in_trash: summary.messages_in_trash,
        channels_in_delete: summary.channels_in_delete,
        channels_in_trash: summary.channels_in_trash,
        subscribers: summary.subscribers,
        uptime: summary.uptime_secs,
        workers: &workers,
    };
    statistics::summary(format, &figures, &mut out);
    out
}
