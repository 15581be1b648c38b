//! The admin address: `/metrics`, `/ready`, `/health`, `/stats`, `/switches`, `/tap/NAME`, `/parked`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::metrics::Metrics;
use super::parked::Parked;
use super::watchdog::Watchdog;
use crate::engine::stop::Stop;
use crate::server::{Front, Fronts, Service};
use crate::switch::live::Switches;

/// Enough for scrapers, load balancers, operators, and their mistakes.
const MAX_CONNECTIONS: usize = 64;
const PATHS: &str = "/metrics /stats /ready /health /switches /tap/NAME /parked\n";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The data behind the admin address.
pub struct Desk {
    stop: Stop,
    metrics: Arc<Metrics>,
    watchdog: Arc<Watchdog>,
    switches: Arc<Switches>,
    /// None if the configuration is in no file.
    parked: Option<Parked>,
}

static FRONTS: Fronts<Desk> = Fronts::new();

/// Closes all addresses but these.
pub fn keep_only(addresses: &[SocketAddr]) {
    FRONTS.keep_only(addresses);
}

impl Service for Desk {
    type Handed = ();
    type Body = UnsyncBoxBody<Bytes, Infallible>;

    async fn answer(front: Arc<Front<Self>>, request: Request<Incoming>) -> Answer {
        let Some(desk) = front.current().await else {
            return stopping();
        };
        match &desk.parked {
            Some(parked) if request.uri().path().starts_with("/parked") => {
                let parked = parked.clone();
                drop(desk);
                let (status, told) = parked.answer(request).await;
                whole(status, "application/json", told.to_string() + "\n")
            }
            _ => desk.answer_now(&request),
        }
    }
}

impl Desk {
    pub fn new(
        stop: Stop,
        metrics: Arc<Metrics>,
        watchdog: Arc<Watchdog>,
        switches: Arc<Switches>,
        parked: Option<Parked>,
    ) -> Self {
        Self {
            stop,
            metrics,
            watchdog,
            switches,
            parked,
        }
    }

    fn answer_now(&self, request: &Request<Incoming>) -> Answer {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => whole(
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.metrics.render(),
            ),
            "/stats" => whole(
                StatusCode::OK,
                "application/json",
                self.metrics.snapshot().to_string() + "\n",
            ),
            // Alive: all threads make progress. A supervisor may restart a worker that does not.
            "/health" => match self.watchdog.silent().as_slice() {
                [] => text(StatusCode::OK, "ok\n".to_owned()),
                silent => text(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("silent: {}\n", silent.join(", ")),
                ),
            },
            // Ready: events get through.
            "/ready" => match self.metrics.not_ready().as_slice() {
                _ if self.stop.is_requested() => stopping(),
                [] => text(StatusCode::OK, ready(&self.metrics.standing_by())),
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("; "))),
            },
            "/switches" => {
                let lines = self
                    .switches
                    .all
                    .iter()
                    .map(|(name, switch)| format!("{name}: {}\n", switch.describe()));
                text(StatusCode::OK, lines.collect())
            }
            path => match path.strip_prefix("/tap/") {
                Some(name) => self.tap(name, request.uri().query() == Some("raw=1")),
                None => text(StatusCode::NOT_FOUND, PATHS.to_owned()),
            },
        }
    }

    /// Streams events leaving a component as EventSource messages, until the client disconnects.
    fn tap(&self, name: &str, raw: bool) -> Answer {
        let Some(events) = self.metrics.tap(name, raw) else {
            let known = self.metrics.component_names().join(", ");
            return text(
                StatusCode::NOT_FOUND,
                format!("there is no \"{name}\"; there is: {known}\n"),
            );
        };
        let frames = futures_util::stream::unfold(events, |mut events| async {
            let event = events.recv().await?;
            Some((Ok(Frame::data(Bytes::from(format!("data: {event}\n\n")))), events))
        });
        let mut answer = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        answer
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        answer
    }
}

/// Answers requests at this address from now on. Call within a `LocalSet` that outlives reloads.
pub fn install(address: SocketAddr, desk: Desk) -> io::Result<()> {
    let front = FRONTS.open(address, MAX_CONNECTIONS, |front, listener| {
        tokio::task::spawn_local(async move {
            if let Err(error) = front.serve(listener).await {
                tracing::error!("admin: {error}");
            }
        });
        Ok(())
    })?;
    front.install(Arc::new(desk));
    Ok(())
}

/// A standby is ready, too: the text names the sources it waits for.
fn ready(standing_by: &[String]) -> String {
    match standing_by {
        [] => "ready\n".to_owned(),
        names => format!("ready; standing by: {}\n", names.join(", ")),
    }
}

fn stopping() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned())
}

fn whole(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body).boxed_unsync());
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn text(status: StatusCode, body: String) -> Answer {
    whole(status, "text/plain; charset=utf-8", body)
}
