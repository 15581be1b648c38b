//! Console locations: a page for operators, the figures that it shows, and, with the admin API, what it can do.

use ngx::ffi::*;
use push_stream_core::store::{Connections, Counter, Fanout, Mode, Now, Summary};
use push_stream_core::wire::console::{self, Busy, Figures, Worker};
use push_stream_core::wire::percent;
use push_stream_core::wire::statistics::Format;

use super::channels;
use super::denial::Denial;
use super::request::{HeaderName, Request};
use super::{answer, publisher};
use crate::config::{Location, Watched};
use crate::delivery::{self, TopChannel, Tops};

const PAGE: &str = include_str!("console.html");

/// Nothing may run or be shown but what stands in the page, and nothing be asked but this server: the SHA-256 of the
/// page's script and style, which `t/console.t` checks.
const POLICY: &str = "default-src 'none'; script-src 'sha256-aiQLkuoVBEXSF8/UPRSmun1u11iPyh7P+S9ARhuazqk='; \
     style-src 'sha256-VqAEFg06CA42D+9tw1h8g0Idw09zIRsMnHMsbIE1Rpg='; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Handles one request.
pub fn handle(r: Request<'_>) -> ngx_int_t {
    answer::conclude(r, respond(r))
}

fn respond(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let mut asked = Asked::Page;
    let (mut only, mut prefix, mut list) = (false, false, false);
    let (mut parked, mut retry) = (false, None);
    for (name, value) in r.arguments() {
        match &name[..] {
            b"figures" => asked = Asked::Figures,
            b"channel" => asked = Asked::Channel(value.unwrap_or_default()),
            b"worker" => asked = Asked::Worker(value.unwrap_or_default()),
            b"node" => asked = Asked::Node(value.unwrap_or_default()),
            b"parked" => parked = true,
            b"retry" => retry = Some(value.unwrap_or_default()),
            b"list" | b"messages" => list = true,
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
    if changes || list || parked || retry.is_some() {
        if !r.location().admin_api() {
            return Err(Denial::AdminApiOff);
        }
        // Pages of other origins cannot send this.
        if r.header(&HeaderName::CONSOLE).is_none() {
            return Err(Denial::NotFromConsole);
        }
    }
    match &asked {
        Asked::Worker(number) => {
            let uri = watched(r.location().console_workers(), number)?.uri.as_bytes();
            let uri = uri.strip_suffix(b"/").unwrap_or(uri);
            let (path, id) = match (changes, retry, parked) {
                (true, Some(id), _) => (&b"/parked/retry"[..], id),
                (true, None, _) => return Err(Denial::Argument("What to do with the worker is not said.")),
                (false, _, true) => (&b"/parked"[..], Vec::new()),
                (false, ..) => (&b"/stats"[..], Vec::new()),
            };
            return redirect(r, &[uri, path].concat(), &percent::encode(&id));
        }
        Asked::Node(number) if !changes => {
            let uri = watched(r.location().console_nodes(), number)?.uri;
            return redirect(r, uri.as_bytes(), b"figures");
        }
        _ if changes || list => return publisher::respond(r),
        _ => {}
    }
    answer::add_cache_headers(r)?;
    let body = match asked {
        Asked::Figures => figures(r)?,
        Asked::Channel(id) => {
            channels::check_length(&id, r.settings()?)?;
            channel(&id)?
        }
        Asked::Page | Asked::Worker(_) | Asked::Node(_) => {
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
    /// One of `push_stream_console_worker`, by its number.
    Worker(Vec<u8>),
    /// One of `push_stream_console_node`, by its number.
    Node(Vec<u8>),
}

fn watched<'a>(list: &'a [Watched], number: &[u8]) -> Result<&'a Watched, Denial> {
    let number = str::from_utf8(number).ok().and_then(|text| text.parse::<usize>().ok());
    number.and_then(|number| list.get(number)).ok_or(Denial::NotWatched)
}

/// Whoever is watched is behind a location of this server, which says how to get there, and in which time.
fn redirect(r: Request<'_>, path: &[u8], arguments: &[u8]) -> Result<ngx_int_t, Denial> {
    Ok(r.redirect(path, arguments)?)
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
    let tops = delivery::top_channels(r.location().statistics_channels());
    let mut out = Vec::new();
    write(&summary, &tops, r.location(), &mut out);
    Ok(out)
}

fn write(summary: &Summary, tops: &Tops, location: &Location, out: &mut Vec<u8>) {
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
        ("slow_closed", counts.get(Counter::SlowClose)),
        ("slow_skipped", sum(&[Counter::SlowSkip, Counter::SlowLatest])),
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
            admin: location.admin_api(),
            top: location.statistics_channels() as u64,
            numbers: &numbers,
            modes: &modes,
            fanout: &fanout,
            workers: &workers,
            companions: &names(location.console_workers()),
            nodes: &names(location.console_nodes()),
            by_subscribers: &busy(&tops.by_subscribers),
            by_bytes: &busy(&tops.by_bytes),
            by_rate: &busy(&tops.by_rate),
        },
        out,
    );
}

fn names(watched: &[Watched]) -> Vec<&[u8]> {
    watched.iter().map(|one| one.name.as_bytes()).collect()
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
