//! Batches: many messages in one request to a publisher location, with a verdict on each.

use std::borrow::Cow;
use std::collections::HashSet;

use ngx::ffi::*;
use push_stream_core::store::{Counter, Now, Publication, Published, Publishing, Terms};
use push_stream_core::wire::batch::{self, Line, Verdict};
use push_stream_core::wire::event_id;

use super::answer;
use super::body::Body;
use super::channels;
use super::denial::Denial;
use super::request::{HeaderName, Request};
use super::token::{self, Pass, Right};
use crate::config::Settings;
use crate::delivery;

/// Lines read before they are published: as many as the store accepts at once.
const LINES_AT_ONCE: usize = 64;

/// Status of a line that was not tried because an earlier one for the same channel failed.
const FAILED_DEPENDENCY: u32 = 424;

/// Is this a batch request, in a location that accepts batches?
pub fn is_batch(r: Request<'_>) -> bool {
    r.location().batch().is_some() && is_ndjson(r)
}

/// Does the request declare its body as NDJSON?
fn is_ndjson(r: Request<'_>) -> bool {
    r.content_type().is_some_and(batch::is_batch)
}

/// Warns a publisher whose lines became one message, as the C module does with any body.
pub fn warn_of_single_message(r: Request<'_>) -> Result<(), Denial> {
    if !is_ndjson(r) {
        return Ok(());
    }
    let reason: &[u8] = if r.location().batch().is_some() {
        b"Published as one message: only POST takes batches."
    } else {
        b"Published as one message: push_stream_batch_publish is off."
    };
    Ok(r.add_header("X-Nginx-PushStream-Warning", reason)?)
}

/// Publishes a body of lines that nginx has read completely.
pub fn publish(r: Request<'_>) -> Result<ngx_int_t, Denial> {
    let limits = r
        .location()
        .batch()
        .ok_or(Denial::Internal("the location takes no batches"))?;
    let body = Body::of(r);
    let body = body.read()?;
    if let Err(too_large) = batch::check(&body, limits.lines, limits.line_bytes) {
        r.add_header("X-Nginx-PushStream-Explain", too_large.to_string().as_bytes())?;
        return answer::header_only(r, NGX_HTTP_REQUEST_ENTITY_TOO_LARGE);
    }
    let minimal = batch::prefers_minimal(r.headers(&HeaderName::PREFER));
    let mut report = Report {
        figures: r.location().info_on_publish() && !minimal,
        ids: r.location().gives_ids(),
        successes: !minimal,
        ..Report::default()
    };
    let settings = r.settings()?;
    let pass = token::admit(r)?;
    let now = Now::read();
    delivery::with_store(|worker| {
        let mut batch = Batch {
            pass: &pass,
            series: worker.publishing(),
            settings,
            terms: r.location().terms(),
            checks_ids: r.location().tells_ids(),
            now,
            report: &mut report,
            broken: HashSet::new(),
        };
        let mut lines = batch::lines(&body).peekable();
        while lines.peek().is_some() {
            batch.publish(lines.by_ref().take(LINES_AT_ONCE));
        }
    })
    .ok_or(Denial::Unavailable)?;
    delivery::with_store(|worker| {
        for counter in &report.refused {
            worker.count(*counter, 1);
        }
    });
    if minimal {
        r.add_header("Preference-Applied", b"return=minimal")?;
    }
    answer::with_body(r, batch::CONTENT_TYPE, report.text(minimal))
}

/// A batch in progress.
struct Batch<'a> {
    pass: &'a Pass,
    series: Publishing<'a>,
    settings: &'a Settings,
    /// The location's terms; a line may override whether its message is stored.
    terms: Terms,
    /// Are event ids and types checked?
    checks_ids: bool,
    now: Now,
    report: &'a mut Report,
    /// Channels that have missed a message. Later messages for them fail too: otherwise a client that resends the
    /// failed lines would change their order.
    broken: HashSet<Vec<u8>>,
}

/// A line, and the message parsed from it.
struct Entry<'b> {
    number: usize,
    line: Result<Line<'b>, Refused>,
}

/// Why a line is not published.
enum Refused {
    Malformed(String),
    Denied(Denial),
    /// An earlier line for one of its channels was refused.
    Broken,
}

impl Batch<'_> {
    fn publish<'b>(&mut self, lines: impl Iterator<Item = (usize, &'b [u8])>) {
        let mut entries: Vec<Entry<'b>> = lines
            .map(|(number, line)| Entry {
                number,
                line: self.read(line),
            })
            .collect();
        let mut figures = Vec::new();
        let refused = self.publish_messages(&entries, &mut figures);
        for (index, reason) in refused {
            entries[index].line = Err(reason);
        }
        self.report.add(&entries, &figures);
    }

    /// Parses a line, with the checks that a single publish makes before it calls the store.
    fn read<'b>(&self, line: &'b [u8]) -> Result<Line<'b>, Refused> {
        let line = batch::parse(line).map_err(|malformed| Refused::Malformed(malformed.to_string()))?;
        for id in &line.channels {
            channels::check_length(id.as_bytes(), self.settings).map_err(Refused::Denied)?;
            if self.settings.limits.is_events(id.as_bytes()) {
                return Err(Refused::Denied(Denial::ToEventsChannel));
            }
            if !self.pass.allows(Right::Publish, id.as_bytes()) {
                return Err(Refused::Denied(Denial::NotGranted));
            }
        }
        if line.body.is_empty() {
            return Err(Refused::Denied(Denial::EmptyPost));
        }
        let fields = [&line.event_id, &line.event_type];
        let acceptable = |field: &Cow<'_, str>| event_id::is_acceptable(field.as_bytes());
        if self.checks_ids && !fields.into_iter().flatten().all(acceptable) {
            return Err(Refused::Denied(Denial::BadEventField));
        }
        Ok(line)
    }

    /// The line's event id; where the location assigns ids, an empty one counts as none.
    fn brought_id<'l>(&self, line: &'l Line<'_>) -> Option<&'l [u8]> {
        let id = line.event_id.as_deref().map(str::as_bytes);
        id.filter(|id| !self.terms.auto_id || !id.is_empty())
    }

    /// Publishes the messages among `entries`, in order. Appends the figures of their channels; returns the refused
    /// entries, with the reasons.
    fn publish_messages(&mut self, entries: &[Entry<'_>], figures: &mut Vec<Published>) -> Vec<(usize, Refused)> {
        let messages = || {
            entries
                .iter()
                .enumerate()
                .filter_map(|(index, entry)| Some((index, entry.line.as_ref().ok()?)))
        };
        let ids: Vec<&[u8]> = messages()
            .flat_map(|(_, line)| line.channels.iter().map(|id| id.as_bytes()))
            .collect();
        let mut ids = &ids[..];
        let (indices, posts): (Vec<usize>, Vec<Publication<'_>>) = messages()
            .map(|(index, line)| {
                let own;
                (own, ids) = ids.split_at(line.channels.len());
                let post = Publication {
                    ids: own,
                    event_id: self.brought_id(line),
                    event_type: line.event_type.as_deref().map(str::as_bytes),
                    text: &line.body,
                    terms: Terms {
                        store: line.store.unwrap_or(self.terms.store),
                        ..self.terms
                    },
                };
                (index, post)
            })
            .unzip();
        let mut refused = Vec::new();
        let mut next = 0;
        while next < posts.len() {
            let whole = posts[next..].iter().take_while(|post| !self.is_broken(post)).count();
            let (published, refusal) = self.series.publish(&posts[next..next + whole], self.now, figures);
            next += published;
            let reason = match refusal {
                Some(refusal) => Refused::Denied(refusal.into()),
                None if next < posts.len() => Refused::Broken,
                None => break,
            };
            if reason.is_missed() {
                self.broken.extend(posts[next].ids.iter().map(|id| id.to_vec()));
            }
            refused.push((indices[next], reason));
            next += 1;
        }
        refused
    }

    fn is_broken(&self, post: &Publication<'_>) -> bool {
        !self.broken.is_empty() && post.ids.iter().any(|&id| self.broken.contains(id))
    }
}

impl Refused {
    /// Will the message be missing until the client resends it? The client does not resend its own mistakes.
    fn is_missed(&self) -> bool {
        matches!(self, Refused::Broken) || self.status() >= NGX_HTTP_INTERNAL_SERVER_ERROR
    }

    fn status(&self) -> u32 {
        match self {
            Refused::Malformed(_) => NGX_HTTP_BAD_REQUEST,
            Refused::Denied(denial) => denial.status(),
            Refused::Broken => FAILED_DEPENDENCY,
        }
    }

    /// The counter for this refusal in the statistics.
    fn counter(&self) -> Option<Counter> {
        match self {
            Refused::Malformed(_) => Some(Counter::RefusedInvalid),
            Refused::Denied(denial) => denial.counter(),
            Refused::Broken => Some(Counter::RefusedDependency),
        }
    }

    fn explain(&self) -> Option<&str> {
        match self {
            Refused::Malformed(reason) => Some(reason),
            Refused::Denied(denial) => denial.explain(),
            Refused::Broken => Some("An earlier line for the same channel failed."),
        }
    }
}

/// The answer under construction.
#[derive(Default)]
struct Report {
    /// Are all lines listed, not only the failed ones?
    successes: bool,
    /// With the figures of each line's channels?
    figures: bool,
    /// With the ids that the location assigned?
    ids: bool,
    lines: usize,
    failed: usize,
    /// Refusals for the statistics.
    refused: Vec<Counter>,
    verdicts: Vec<u8>,
}

impl Report {
    /// Adds the verdicts on `entries`; `figures` are those of all channels of the published lines, in order.
    fn add(&mut self, entries: &[Entry<'_>], figures: &[Published]) {
        let mut figures = figures;
        let mut channels = Vec::new();
        self.lines += entries.len();
        for entry in entries {
            let mut verdict = Verdict {
                line: entry.number,
                status: NGX_HTTP_OK,
                explain: None,
                duplicates: 0,
                id: None,
            };
            match &entry.line {
                Ok(line) => {
                    channels.clear();
                    let (own, rest) = figures.split_at(line.channels.len());
                    figures = rest;
                    verdict.duplicates = own.iter().filter(|published| published.duplicate).count();
                    let brings_id = line.event_id.as_deref().is_some_and(|id| !id.is_empty());
                    if self.ids && !brings_id {
                        verdict.id = own.last().and_then(|published| published.newest_id);
                    }
                    let own = line.channels.iter().zip(own);
                    channels.extend(own.map(|(id, published)| channels::figures(id.as_bytes(), published.info)));
                    if self.successes {
                        let shown = if self.figures { &channels[..] } else { &[] };
                        batch::push_verdict(verdict, shown, &mut self.verdicts);
                    }
                }
                Err(refused) => {
                    self.failed += 1;
                    self.refused.extend(refused.counter());
                    verdict.status = refused.status();
                    verdict.explain = refused.explain();
                    batch::push_verdict(verdict, &[], &mut self.verdicts);
                }
            }
        }
    }

    /// The answer's body.
    fn text(self, minimal: bool) -> Vec<u8> {
        if !minimal {
            return self.verdicts;
        }
        let mut text = Vec::new();
        batch::push_summary(self.lines, self.failed, &mut text);
        text.extend(self.verdicts);
        text
    }
}
