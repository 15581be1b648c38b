//! Console locations: a page for operators, the figures that it shows, and, with the admin API, what it can do.

use ngx::ffi::*;
use push_stream_core::store::{Connections, Counter, Fanout, Mode, Now, Summary};
use push_stream_core::wire::console::{self, Busy, Figures, Worker};
use push_stream_core::wire::statistics::Format;

use super::channels;
use super::denial::Denial;
use super::request::{HeaderName, Request};
use super::{answer, publisher};
use crate::delivery::{self, TopChannel, Tops};

const PAGE: &str = include_str!("console.html");

/// Nothing may run or be shown but what stands in the page, and nothing be asked but this server: the SHA-256 of the
/// page's script and style, which `t/console.t` checks.
const POLICY: &str = "default-src 'none'; script-src 'sha256-wJSZxsIdvd8amod4nweduNAcePK83iP2E4KeYgIrmbM='; \
     style-src 'sha256-bYFU4DXJLLe7j5JEMrXFgrwJ27udGnbB6u1acAMKHgo='; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    answer::conclude(r, respond(r))
}

fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let mut asked = Asked::Page;
    let (mut only, mut prefix) = (false, false);
    for (name, value) in r.arguments() {
        match &name[..] {
            b"figures" => asked = Asked::Figures,
            b"channel" => asked = Asked::Channel(value.unwrap_or_default()),
            b"list" | b"messages" => asked = Asked::Operation,
            b"only" => only = true,
            b"prefix" => prefix = true,
            _ => {}
        }
    }
    let changes = match r.method() {
        NGX_HTTP_GET => false,
        NGX_HTTP_POST => true,
        // Subscribers may be sent away; channels are not deleted here.
        NGX_HTTP_DELETE if only && !prefix => true,
        _ => return Err(Denial::Method("GET, POST, DELETE")),
    };
    if changes || matches!(asked, Asked::Operation) {
        if !r.location().admin_api() {
            return Err(Denial::AdminApiOff);
        }
        // Pages of other origins cannot send this.
        if r.header(&HeaderName::CONSOLE).is_none() {
            return Err(Denial::NotFromConsole);
        }
        return publisher::respond(r);
    }
    answer::add_cache_headers(r)?;
    let body = match asked {
        Asked::Figures => figures(r)?,
        Asked::Channel(id) => {
            channels::check_length(&id, r.settings()?)?;
            channel(&id)?
        }
        Asked::Page | Asked::Operation => {
            r.add_header("Content-Security-Policy", POLICY.as_bytes())?;
            r.add_header("X-Content-Type-Options", b"nosniff")?;
            r.add_header("Referrer-Policy", b"no-referrer")?;
            return answer::with_body(r, "text/html; charset=utf-8", PAGE.into());
        }
    };
    answer::with_body(r, Format::Json.content_type(), body)
}

/// What a request is for.
enum Asked {
    Page,
    Figures,
    Channel(Vec<u8>),
    /// One of the admin API's lists.
    Operation,
}

fn channel(id: &[u8]) -> Result<Vec<u8>, Denial> {
    let now = Now::read();
    let figures = delivery::with_store(|worker| {
        let info = worker.channel(id)?;
        Some(channels::write_figures(Format::Json, worker, now, &[(id, info)]))
    });
    figures.ok_or(Denial::Unavailable)?.ok_or(Denial::UnknownChannel)
}

fn figures(r: Request<'_>) -> Result<Vec<u8>, Denial> {
    let summary = delivery::figures(Now::read()).ok_or(Denial::Unavailable)?;
    let top = r.location().statistics_channels();
    let tops = delivery::top_channels(top);
    let mut out = Vec::new();
    write(&summary, &tops, r.location().admin_api(), top as u64, &mut out);
    Ok(out)
}

fn write(summary: &Summary, tops: &Tops, admin: bool, top: u64, out: &mut Vec<u8>) {
    let counts = &summary.counts;
    let sum = |counters: &[Counter]| counters.iter().map(|&counter| counts.get(counter)).sum();
    let numbers = [
        ("uptime", summary.uptime_secs),
        ("subscribers", summary.subscribers),
        ("channels", summary.channels + summary.wildcard_channels),
        ("stored", summary.stored),
        ("published", summary.published),
        ("delivered", counts.get(Counter::Delivered)),
        (
            "refused",
            sum(&[
                Counter::RefusedFull,
                Counter::RefusedLimit,
                Counter::RefusedInvalid,
                Counter::RefusedForbidden,
                Counter::RefusedDependency,
                Counter::RefusedOutOfOrder,
            ]),
        ),
        ("refused_full", summary.refused_full),
        (
            "refused_subscribers",
            sum(&[
                Counter::SubscriberLimit,
                Counter::SubscriberForbidden,
                Counter::SubscriberInvalid,
                Counter::SubscriberFull,
                Counter::SubscriberUnavailable,
            ]),
        ),
        ("evicted_stored", summary.evicted.stored),
        ("evicted_undelivered", summary.evicted.undelivered),
        ("evicted_channels", summary.evicted.channels),
        ("gap_notices", counts.get(Counter::GapNotice)),
        (
            "slow_readers",
            sum(&[Counter::SlowClose, Counter::SlowSkip, Counter::SlowLatest]),
        ),
        ("worker_restarts", summary.restarts),
        ("bytes_total", summary.bytes_total),
        ("bytes_free", summary.bytes_free),
        ("bytes_high_water", summary.bytes_high_water),
    ];
    let connected = |mode| {
        let of_each = |count: fn(&Connections, Mode) -> u32| {
            let workers = summary.workers.iter();
            workers
                .map(|worker| u64::from(count(&worker.connections, mode)))
                .sum::<u64>()
        };
        of_each(Connections::attached) + of_each(Connections::detached)
    };
    let modes = Mode::ALL.map(|mode| (mode.name(), connected(mode)));
    let bounds = Fanout::BOUNDS_MS.into_iter().map(Some).chain([None]);
    let fanout: Vec<_> = bounds.zip(counts.fanout().buckets).collect();
    let workers: Vec<_> = summary
        .workers
        .iter()
        .map(|worker| Worker {
            slot: worker.slot,
            pid: worker.pid,
            subscribers: worker.subscribers,
            queued_bytes: worker.queued_bytes,
            stall_ms: u64::from(worker.longest_stretch_us) / 1000,
            uptime: worker.uptime_secs,
        })
        .collect();
    console::figures(
        &Figures {
            hostname: channels::hostname(),
            version: env!("CARGO_PKG_VERSION"),
            admin,
            top,
            numbers: &numbers,
            modes: &modes,
            fanout: &fanout,
            workers: &workers,
            by_subscribers: &busy(&tops.by_subscribers),
            by_bytes: &busy(&tops.by_bytes),
            by_rate: &busy(&tops.by_rate),
        },
        out,
    );
}

fn busy(channels: &[TopChannel]) -> Vec<Busy<'_>> {
    channels
        .iter()
        .map(|top| Busy {
            channel: channels::figures(&top.id, top.info),
            stored_bytes: top.stored_bytes,
            per_1000_secs: top.per_1000_secs,
        })
        .collect()
}
