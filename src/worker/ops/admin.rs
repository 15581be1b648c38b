//! The admin address: `/metrics`, `/ready`, `/health`.

use std::future::Future;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use super::metrics::Metrics;
use crate::engine::{Pulse, Stop};
use crate::server::{self, Answer};

/// A scraper, a load balancer, an operator, and room for their mistakes.
const MAX_CONNECTIONS: usize = 64;

pub fn serve(listener: TcpListener, stop: Stop, metrics: Arc<Metrics>, pulse: Arc<Pulse>) -> impl Future<Output = ()> {
    let told = stop.clone();
    server::serve(listener, MAX_CONNECTIONS, stop, move |request| {
        let answer = answer(&request, &told, &metrics, &pulse);
        async { answer }
    })
}

fn answer(request: &Request<Incoming>, stop: &Stop, metrics: &Metrics, pulse: &Pulse) -> Answer {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => server::answer(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics.render(),
        ),
        // Alive: all lanes move. A supervisor may restart a worker that is not.
        "/health" => match pulse.silent().as_slice() {
            [] => text(StatusCode::OK, "ok\n".to_owned()),
            silent => text(StatusCode::SERVICE_UNAVAILABLE, format!("silent lanes: {silent:?}\n")),
        },
        // Ready: events get through.
        "/ready" => match metrics.nodes_down().as_slice() {
            _ if stop.is_requested() => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned()),
            [] => text(StatusCode::OK, "ready\n".to_owned()),
            down => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not answering: {}\n", down.join(", ")),
            ),
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics /ready /health\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Answer {
    server::answer(status, "text/plain", body)
}
