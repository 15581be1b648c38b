//! The small HTTP server under `http_in` and the admin address.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use crate::engine::Stop;

/// A client that dawdles over its request line and headers longer than this is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the system refused a connection, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub type Answer = Response<Full<Bytes>>;

/// Listeners that outlive a reload: between the old topology and the new one, clients wait in the queue of the kernel and are not refused.
static HELD: Mutex<BTreeMap<SocketAddr, std::net::TcpListener>> = Mutex::new(BTreeMap::new());

/// Binds, or takes what is held, with an error that names the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let held = HELD.lock().get(&address).map(std::net::TcpListener::try_clone);
    let listener = match held {
        Some(listener) => listener.map_err(named)?,
        None => TcpListener::bind(address)
            .await
            .and_then(TcpListener::into_std)
            .map_err(named)?,
    };
    let to_hold = listener.try_clone().map_err(named)?;
    HELD.lock().entry(address).or_insert(to_hold);
    TcpListener::from_std(listener).map_err(named)
}

/// Closes all that are held but these. Those that somebody serves stay open for as long as he does.
pub fn hold_only(addresses: &[SocketAddr]) {
    HELD.lock().retain(|address, _| addresses.contains(address));
}

/// Serves until a stop is requested, then until the requests under way are answered or the stop is final.
pub async fn serve<H, F, B>(listener: TcpListener, max_connections: usize, mut stop: Stop, handler: H)
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let slots = Arc::new(Semaphore::new(max_connections));
    let handler = Rc::new(handler);
    loop {
        let accepted = tokio::select! {
            () = stop.requested() => break,
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (listener.accept().await, slot)
            } => accepted,
        };
        let (Ok((stream, _)), slot) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (handler, stop) = (Rc::clone(&handler), stop.clone());
        spawn_local(async move {
            serve_connection(stream, stop, handler).await;
            drop(slot);
        });
    }
    drop(listener);
    let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
    tokio::select! {
        _ = slots.acquire_many(all) => {}
        () = stop.abandoned() => {}
    }
}

async fn serve_connection<H, F, B>(stream: TcpStream, mut stop: Stop, handler: Rc<H>)
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    // Without it an answer may wait for the acknowledgement of the one before. Failure costs only that time.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // An error is the client's broken connection: there is nobody left to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.requested() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A whole answer.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
