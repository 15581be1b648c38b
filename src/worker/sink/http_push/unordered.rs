//! Unordered publishing: every lane has connections of its own to every node, and each event one POST.
//!
//! The lane lets one event per key through at a time, so order per key holds; between keys there is none.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_local;

use super::node::{Answer, Attempt, Failure, Node};
use super::tally::Tally;
use super::{HttpPush, MAX_ANSWER_BYTES, event_request};
use crate::client::Pool;
use crate::engine::turn::Turn;
use crate::event::Event;
use crate::retry::Backoff;
use crate::sink::{Delivery, LaneSink, Verdict};

/// Events that others have settled and that are still tried at a node; beyond it they miss that node.
const BEHIND: usize = 1024;

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
                slots: Semaphore::new(config.connections),
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
    fn deliver(&self, event: Arc<Event>, _turn: Option<Turn>) -> Delivery {
        let (tally, verdict) = Tally::new(self.clients.len(), self.needed);
        let tally = Rc::new(tally);
        for client in &self.clients {
            let (client, event, tally) = (Rc::clone(client), Arc::clone(&event), Rc::clone(&tally));
            spawn_local(async move { client.publish(&event, &tally).await });
        }
        Box::pin(async move { verdict.await.unwrap_or(Verdict::Released) })
    }
}

/// One lane's connections to one node.
struct Client {
    node: Arc<Node>,
    config: Arc<HttpPush>,
    pool: Pool,
    slots: Semaphore,
    behind: Arc<Semaphore>,
}

impl Client {
    /// Tries until this node has it, will never have it, or nobody needs to know any more.
    async fn publish(&self, event: &Event, tally: &Tally) {
        let policy = &self.config.retry;
        let mut backoff = Backoff::new(policy);
        let mut attempts = 0;
        let mut behind = None;
        loop {
            let deadline = event.received_at + policy.max_age;
            let admitted = tokio::time::timeout_at(deadline.into(), self.node.admit()).await;
            if event.is_fenced() {
                return tally.release();
            }
            let (failure, after) = if admitted.is_err() {
                ("it does not answer".to_owned(), None)
            } else {
                attempts += 1;
                match self.attempt(event).await {
                    Attempt::Accepted => return tally.accept(),
                    Attempt::Permanent(reason) => {
                        return tally.refuse(format!("{}: {reason}", self.node.address), attempts);
                    }
                    Attempt::Retry { failure, after } => (failure, after),
                }
            };
            let pause = backoff.pause().max(after.unwrap_or_default()).min(policy.max);
            if event.received_at.elapsed() + pause > policy.max_age {
                let address = &self.node.address;
                let reason = format!("{address}: gave up at the age of {:?}: {failure}", policy.max_age);
                return tally.refuse(reason, attempts);
            }
            if tally.is_settled() && behind.is_none() {
                match Arc::clone(&self.behind).try_acquire_owned() {
                    Ok(room) => behind = Some(room),
                    Err(_) => return self.node.metrics.miss(),
                }
            }
            self.node.pause(pause).await;
        }
    }

    async fn attempt(&self, event: &Event) -> Attempt {
        let request = match event_request(&self.config, &self.node, event) {
            Ok(request) => request,
            Err(reason) => return Attempt::Permanent(reason),
        };
        let timeout = self.config.timeout;
        // The slots are never closed. Waiting for one is not part of the attempt: the node is not to blame for it.
        let _slot = self.slots.acquire().await;
        let failure = match tokio::time::timeout(timeout, self.pool.request(request)).await {
            Ok(Ok((parts, _))) => return self.node.judge(&self.config, Answer::of(&parts)),
            Ok(Err(failure)) => failure.into(),
            Err(_) => Failure::Timeout(timeout),
        };
        self.node.unanswered(&self.config, &failure)
    }
}
