//! Unordered publishing: every lane has its own connections to every node.
//!
//! The lane lets one event per key through at a time, so order per key holds; there is no order between keys. A POST
//! carries one event, or, where the node offers batches, all events that arrived while earlier POSTs were under way.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_local;

use super::batch;
use super::config::{EPOCH, HttpPush, MAX_ANSWER_BYTES};
use super::node::{Attempt, Failure, Node};
use super::quorum::Quorum;
use super::request::event_request;
use crate::client::{self, Pool};
use crate::engine::sequencer::Reservation;
use crate::event::Event;
use crate::retry::Backoff;
use crate::sink::{Delivery, LaneSink, Verdict};

/// Events settled by other nodes and still being tried at a node; beyond it they miss that node.
const BEHIND: usize = 1024;
/// Concurrent POSTs to a node with batches: one fills while the other is answered.
const BATCHES: usize = 2;

/// A node without batches is asked again after this time: its configuration may have changed without a new connection.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// One lane's connections to all nodes.
pub struct Lane {
    clients: Vec<Rc<Client>>,
    needed: usize,
}

impl Lane {
    pub fn new(config: &Arc<HttpPush>, nodes: &[Arc<Node>]) -> Self {
        let client = |node: &Arc<Node>| {
            Rc::new(Client {
                node: Arc::clone(node),
                config: Arc::clone(config),
                pool: Pool::new(node.address.clone(), config.tls.clone(), MAX_ANSWER_BYTES),
                waiting: RefCell::default(),
                posting: Cell::new(0),
                takes_batches: Cell::new(None),
                asked_at: Cell::new(Instant::now()),
                max_lines: Cell::new(config.batch),
                behind: Arc::new(Semaphore::new(BEHIND)),
            })
        };
        Self {
            clients: nodes.iter().map(client).collect(),
            needed: config.required.of(nodes.len()),
        }
    }
}

impl LaneSink for Lane {
    fn deliver(&self, event: Arc<Event>, _reservation: Option<Reservation>) -> Delivery {
        let (quorum, verdict) = Quorum::awaited(self.clients.len(), self.needed);
        let quorum = Rc::new(quorum);
        for client in &self.clients {
            let (client, event, quorum) = (Rc::clone(client), Arc::clone(&event), Rc::clone(&quorum));
            spawn_local(async move { client.publish(event, &quorum).await });
        }
        Box::pin(async move { verdict.await.unwrap_or(Verdict::Released) })
    }
}

/// One lane's connections to one node.
struct Client {
    node: Arc<Node>,
    config: Arc<HttpPush>,
    pool: Pool,
    /// Attempts not yet in a POST.
    waiting: RefCell<VecDeque<Waiting>>,
    /// Tasks that send them.
    posting: Cell<usize>,
    /// `None`: not yet asked.
    takes_batches: Cell<Option<bool>>,
    asked_at: Cell<Instant>,
    /// Halved when the node rejects a batch as too large.
    max_lines: Cell<usize>,
    behind: Arc<Semaphore>,
}

/// One attempt to publish.
struct Waiting {
    event: Arc<Event>,
    line: Bytes,
    reply: oneshot::Sender<Attempt>,
}

impl Client {
    /// Tries until this node accepts or refuses it, or the verdict no longer matters.
    async fn publish(self: Rc<Self>, event: Arc<Event>, quorum: &Quorum) {
        let policy = &self.config.retry;
        let mut backoff = Backoff::new(policy);
        let mut attempts = 0;
        let mut behind = None;
        loop {
            let deadline = event.received_at + policy.max_age;
            let admitted = tokio::time::timeout_at(deadline.into(), self.node.admit()).await;
            if event.is_fenced() {
                return quorum.release();
            }
            let (failure, after) = if admitted.is_err() {
                ("it does not answer".to_owned(), None)
            } else {
                attempts += 1;
                match self.attempt(&event).await {
                    Attempt::Accepted => return quorum.accept(),
                    Attempt::Permanent(reason) => {
                        return quorum.refuse(format!("{}: {reason}", self.node.address), attempts);
                    }
                    Attempt::Retry { failure, after } => (failure, after),
                }
            };
            let pause = backoff.pause().max(after.unwrap_or_default()).min(policy.max);
            if event.received_at.elapsed() + pause > policy.max_age {
                let address = &self.node.address;
                let reason = format!("{address}: gave up at the age of {:?}: {failure}", policy.max_age);
                return quorum.refuse(reason, attempts);
            }
            if quorum.is_settled() && behind.is_none() {
                match Arc::clone(&self.behind).try_acquire_owned() {
                    Ok(room) => behind = Some(room),
                    Err(_) => return self.node.metrics.miss(),
                }
            }
            self.node.pause(pause).await;
        }
    }

    async fn attempt(self: &Rc<Self>, event: &Arc<Event>) -> Attempt {
        let (reply, attempt) = oneshot::channel();
        let line = if self.config.batch > 0 {
            batch::line(event)
        } else {
            Bytes::new()
        };
        let event = Arc::clone(event);
        self.waiting.borrow_mut().push_back(Waiting { event, line, reply });
        let most = match self.takes_batches.get() {
            Some(true) => BATCHES,
            Some(false) => self.config.connections,
            None if self.config.batch > 0 => 1,
            None => self.config.connections,
        };
        if self.posting.get() < most {
            self.posting.set(self.posting.get() + 1);
            let client = Rc::clone(self);
            spawn_local(async move {
                client.post_all().await;
                client.posting.set(client.posting.get() - 1);
            });
        }
        let lost = Attempt::Retry {
            failure: "the attempt was given up".to_owned(),
            after: None,
        };
        attempt.await.unwrap_or(lost)
    }

    /// Posts until nothing waits any more.
    async fn post_all(&self) {
        // Include what the lane is about to hand over.
        tokio::task::yield_now().await;
        while !self.waiting.borrow().is_empty() {
            if self.is_to_ask() {
                self.ask().await;
            }
            let is_batch = self.takes_batches.get() == Some(true);
            let count = {
                let waiting = self.waiting.borrow();
                let most = if is_batch { self.max_lines.get() } else { 0 };
                batch::fitting(waiting.iter().map(|one| &one.line), most)
            };
            let mut taken: Vec<Waiting> = {
                let mut waiting = self.waiting.borrow_mut();
                let count = count.max(1).min(waiting.len());
                waiting.drain(..count).collect()
            };
            if is_batch && count > 0 {
                self.post_batch(taken).await;
            } else if let Some(one) = taken.pop() {
                let attempt = self.post(&one.event).await;
                // The receiver may have gone with its lane.
                let _ = one.reply.send(attempt);
            }
        }
    }

    fn is_to_ask(&self) -> bool {
        let is_due = match self.takes_batches.get() {
            None => true,
            Some(false) => self.asked_at.get().elapsed() >= ASK_AGAIN,
            Some(true) => false,
        };
        is_due && self.config.batch > 0
    }

    /// Asks for the node's capabilities. If it does not answer, the events' own attempts will show why.
    async fn ask(&self) {
        self.asked_at.set(Instant::now());
        let request = batch::question(&self.config, &self.node.host);
        let answer = tokio::time::timeout(self.config.timeout, self.pool.request(request)).await;
        let offered = match answer {
            Ok(Ok((parts, _))) => {
                self.node.arrived(parts.headers.get(EPOCH));
                batch::is_offered(&parts)
            }
            _ => return self.takes_batches.set(Some(false)),
        };
        self.node.metrics.set_batches(offered);
        self.takes_batches.set(Some(offered));
    }

    async fn post_batch(&self, events: Vec<Waiting>) {
        let count = events.len();
        let mut body = Vec::with_capacity(events.iter().map(|one| one.line.len()).sum());
        events.iter().for_each(|one| body.extend_from_slice(&one.line));
        let request = batch::request(&self.config, &self.node, body);
        let timeout = self.config.timeout;
        let outcome = match tokio::time::timeout(timeout, self.pool.request(request)).await {
            Ok(Ok((parts, body))) => batch::outcome(&self.config, &self.node, &parts, &body, count),
            Ok(Err(failure)) => Err(failure.into()),
            Err(_) => Err(Failure::Timeout(timeout)),
        };
        let attempts = match outcome {
            Ok(batch::Outcome::Verdicts(attempts)) => {
                self.max_lines.set((self.max_lines.get() * 2).min(self.config.batch));
                attempts
            }
            Ok(batch::Outcome::Whole(attempt)) => vec![attempt; count],
            Ok(batch::Outcome::Refused(attempt)) => {
                self.takes_batches.set(None);
                vec![attempt; count]
            }
            // Send again at once, in fewer lines or one by one.
            Ok(batch::Outcome::TooLarge) => {
                self.max_lines.set(count / 2);
                return self.put_back(events);
            }
            Ok(batch::Outcome::NotTaken) => {
                self.takes_batches.set(Some(false));
                self.asked_at.set(Instant::now());
                self.node.metrics.set_batches(false);
                return self.put_back(events);
            }
            Err(failure) => vec![self.fail(&failure); count],
        };
        for (one, attempt) in events.into_iter().zip(attempts) {
            if matches!(attempt, Attempt::Accepted) {
                self.node.metrics.accept(one.event.channels.len() as u64);
            }
            let _ = one.reply.send(attempt);
        }
    }

    fn put_back(&self, events: Vec<Waiting>) {
        let mut waiting = self.waiting.borrow_mut();
        events.into_iter().rev().for_each(|one| waiting.push_front(one));
    }

    async fn post(&self, event: &Event) -> Attempt {
        let request = match event_request(&self.config, &self.node, event) {
            Ok(request) => request,
            Err(reason) => return Attempt::Permanent(reason),
        };
        let timeout = self.config.timeout;
        // A single oversized line does not limit later batches.
        self.max_lines.set(self.max_lines.get().max(1).min(self.config.batch));
        let failure = match tokio::time::timeout(timeout, self.pool.request(request)).await {
            Ok(Ok((parts, _))) => {
                let attempt = self.node.judge(&self.config, self.node.answered(&parts));
                if matches!(attempt, Attempt::Accepted) {
                    self.node.metrics.accept(event.channels.len() as u64);
                }
                return attempt;
            }
            Ok(Err(failure)) => failure.into(),
            Err(_) => Failure::Timeout(timeout),
        };
        self.fail(&failure)
    }

    /// Capabilities may have changed when the node is back.
    fn fail(&self, failure: &Failure) -> Attempt {
        if matches!(failure, Failure::Client(client::Error::Connect(_))) {
            self.takes_batches.set(None);
        }
        self.node.unanswered(&self.config, failure)
    }
}
