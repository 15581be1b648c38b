//! The small HTTP server under `http_in` and the admin address.
//!
//! A [`Front`] belongs to an address and outlives reloads: its listener, its connections and the requests whose body is
//! still being read stay. The [`Service`] that answers them belongs to one configuration; requests wait between two
//! services.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
use tokio::sync::watch;
use tokio::task::spawn_local;

/// A client that takes longer than this for its request line and headers is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after accept failed, most likely for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time to write pending responses when the address is closed. Incomplete request heads are cut off then, too.
const FLUSH: Duration = Duration::from_millis(100);
/// How often a closed connection checks whether its request is answered.
const CLOSE_POLL: Duration = Duration::from_millis(5);

pub type Answer = Response<Full<Bytes>>;

/// Listeners by address, from before their service starts until the address is given up.
static HELD: Mutex<BTreeMap<SocketAddr, std::net::TcpListener>> = Mutex::new(BTreeMap::new());
/// Number of fronts that still have connections.
static SERVING: AtomicUsize = AtomicUsize::new(0);

/// Binds the address unless already bound. The error names it.
pub fn hold(address: SocketAddr) -> io::Result<()> {
    if let Entry::Vacant(place) = HELD.lock().entry(address) {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        let listener = std::net::TcpListener::bind(address).map_err(named)?;
        listener.set_nonblocking(true).map_err(named)?;
        place.insert(listener);
    }
    Ok(())
}

/// Closes all held listeners but these.
pub fn hold_only(addresses: &[SocketAddr]) {
    HELD.lock().retain(|address, _| addresses.contains(address));
}

/// Waits until the last responses are written, or until `patience` runs out.
pub async fn all_closed(patience: Duration) {
    let closed = async {
        while SERVING.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(CLOSE_POLL).await;
        }
    };
    let _ = tokio::time::timeout(patience, closed).await;
}

/// The request handler of an address under one configuration.
pub trait Service: Send + Sync + Sized + 'static {
    /// State handed to its successor.
    type Handed: Send;
    type Body: Body<Data = Bytes, Error = Infallible> + 'static;

    /// Get the service ([`Front::current`]) only when it is needed, and do not hold it while waiting for a client.
    fn answer(front: Arc<Front<Self>>, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>>;
}

enum Standing<S> {
    Open(Arc<S>),
    /// The last service has been withdrawn, and the next one is not installed yet.
    Between,
    Closed,
}

/// An address and its connections.
pub struct Front<S: Service> {
    standing: watch::Sender<Standing<S>>,
    max_connections: AtomicUsize,
    connections: watch::Sender<usize>,
    handed: Mutex<Vec<S::Handed>>,
}

/// All fronts of one kind of service.
pub struct Fronts<S: Service>(Mutex<BTreeMap<SocketAddr, Arc<Front<S>>>>);

impl<S: Service> Default for Fronts<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Service> Fronts<S> {
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// The front of this address. If there is none yet, `run` has it served.
    pub fn open(
        &self,
        address: SocketAddr,
        max_connections: usize,
        run: impl FnOnce(Arc<Front<S>>, std::net::TcpListener) -> io::Result<()>,
    ) -> io::Result<Arc<Front<S>>> {
        let mut fronts = self.0.lock();
        if let Some(front) = fronts.get(&address) {
            front.max_connections.store(max_connections, Ordering::Relaxed);
            // Connections waiting for a free place check the new limit.
            front.connections.send_modify(|_| ());
            return Ok(Arc::clone(front));
        }
        hold(address)?;
        let listener = HELD.lock().get(&address).map(std::net::TcpListener::try_clone);
        let front = Arc::new(Front {
            standing: watch::Sender::new(Standing::Between),
            max_connections: AtomicUsize::new(max_connections),
            connections: watch::Sender::new(0),
            handed: Mutex::default(),
        });
        run(Arc::clone(&front), listener.ok_or(io::ErrorKind::AddrNotAvailable)??)?;
        fronts.insert(address, Arc::clone(&front));
        Ok(front)
    }

    /// Closes all fronts but these: no further connection or request is accepted; pending requests are answered.
    pub fn keep_only(&self, addresses: &[SocketAddr]) {
        self.0.lock().retain(|address, front| {
            let is_kept = addresses.contains(address);
            if !is_kept {
                front.standing.send_replace(Standing::Closed);
                front.handed.lock().clear();
            }
            is_kept
        });
    }
}

impl<S: Service> Front<S> {
    /// Requests go to this service from here on.
    pub fn install(&self, service: Arc<S>) {
        self.change(Standing::Open(service));
    }

    /// Requests wait for the next service.
    pub fn withdraw(&self) {
        self.change(Standing::Between);
    }

    fn change(&self, to: Standing<S>) {
        self.standing.send_if_modified(|standing| {
            let is_open = !matches!(standing, Standing::Closed);
            if is_open {
                *standing = to;
            }
            is_open
        });
    }

    /// The current service. `None`: closed for good.
    pub async fn current(&self) -> Option<Arc<S>> {
        if let Standing::Open(service) = &*self.standing.borrow() {
            return Some(Arc::clone(service));
        }
        let mut standing = self.standing.subscribe();
        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Between));
        match &*settled.await.ok()? {
            Standing::Open(service) => Some(Arc::clone(service)),
            _ => None,
        }
    }

    pub async fn closed(&self) {
        let mut standing = self.standing.subscribe();
        let _ = standing.wait_for(|standing| matches!(standing, Standing::Closed)).await;
    }

    /// Leaves items to the next service.
    pub fn hand_over(&self, items: impl Iterator<Item = S::Handed>) {
        if !matches!(&*self.standing.borrow(), Standing::Closed) {
            self.handed.lock().extend(items);
        }
    }

    pub fn take_handed(&self) -> Vec<S::Handed> {
        std::mem::take(&mut *self.handed.lock())
    }

    /// Serves until the address is closed, then until the pending requests are answered. Call within a `LocalSet`.
    pub async fn serve(self: Arc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let _serving = Serving::begin();
        let listener = TcpListener::from_std(listener)?;
        let mut connections = self.connections.subscribe();
        loop {
            let accepted = tokio::select! {
                () = self.closed() => break,
                accepted = async {
                    let has_room = |open: &usize| *open < self.max_connections.load(Ordering::Relaxed);
                    drop(connections.wait_for(has_room).await);
                    listener.accept().await
                } => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let place = Place::take(&self);
            spawn_local(async move {
                serve_connection(stream, &place.0).await;
                drop(place);
            });
        }
        drop(listener);
        drop(connections.wait_for(|open| *open == 0).await);
        Ok(())
    }
}

/// Exists while a front has connections.
struct Serving;

impl Serving {
    fn begin() -> Self {
        SERVING.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        SERVING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection's place within the connection limit.
struct Place<S: Service>(Arc<Front<S>>);

impl<S: Service> Place<S> {
    fn take(front: &Arc<Front<S>>) -> Self {
        front.connections.send_modify(|open| *open += 1);
        Self(Arc::clone(front))
    }
}

impl<S: Service> Drop for Place<S> {
    fn drop(&mut self) {
        self.0.connections.send_modify(|open| *open -= 1);
    }
}

async fn serve_connection<S: Service>(stream: TcpStream, front: &Arc<Front<S>>) {
    // Without TCP_NODELAY a response may wait for the previous one's acknowledgement. Failure costs only that time.
    let _ = stream.set_nodelay(true);
    let in_hand = Rc::new(());
    let in_hand_of_service = Rc::clone(&in_hand);
    let service = service_fn(move |request| {
        let (front, in_hand) = (Arc::clone(front), Rc::clone(&in_hand_of_service));
        async move {
            let answer = S::answer(front, request).await;
            drop(in_hand);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // An error is the client's broken connection: no one is left to report it to.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = front.closed() => connection.as_mut().graceful_shutdown(),
    }
    let answered = async {
        // The service holds one reference, too.
        while Rc::strong_count(&in_hand) > 2 {
            tokio::time::sleep(CLOSE_POLL).await;
        }
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        _ = connection => {}
        () = answered => {}
    }
}

/// A complete response.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
