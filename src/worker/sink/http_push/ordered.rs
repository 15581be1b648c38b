//! Ordered publishing: one publisher per node.
//!
//! All lanes put their events under reservations of a [`Sequencer`]; each node's publisher, a task with one connection,
//! takes them in the order of the source and has one POST under way at a time: a batch, if the node offers that, else
//! one event. Nothing overtakes: an event that must be retried delays the later ones at this node. So a node sees ids
//! in order over all channels, which lets a browser resume from a single position.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::batch;
use super::config::{EPOCH, HttpPush, MAX_ANSWER_BYTES};
use super::node::{Attempt, Failure, Node};
use super::quorum::Quorum;
use super::request::event_request;
use crate::client::{self, Sender};
use crate::engine::sequencer::Sequencer;
use crate::event::Event;
use crate::retry::Backoff;

/// Events that are settled by other nodes but not by a node that is down; beyond it the oldest miss that node.
const BEHIND: usize = 4096;
/// Minimum interval for reopening an idle connection that nginx has closed, to check whether nginx is still there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// An event on its way to all nodes.
pub struct Parcel {
    pub event: Arc<Event>,
    pub quorum: Quorum,
    /// Rendered on first use, then shared.
    line: OnceLock<Bytes>,
}

impl Parcel {
    pub fn new(event: Arc<Event>, quorum: Quorum) -> Arc<Self> {
        Arc::new(Self {
            event,
            quorum,
            line: OnceLock::new(),
        })
    }

    pub fn line(&self) -> &Bytes {
        self.line.get_or_init(|| batch::line(&self.event))
    }
}

pub struct OrderedPublisher {
    pub config: Arc<HttpPush>,
    pub node: Arc<Node>,
    pub sequencer: Arc<Sequencer<Arc<Parcel>>>,
    /// Its index among the consumers of the sequencer.
    pub place: usize,
}

/// A connection, and its node's capabilities.
struct Link {
    sender: Sender,
    ended: Rc<Notify>,
    takes_batches: bool,
}

/// State of a running publisher.
struct Work {
    publisher: OrderedPublisher,
    /// The head is tried next; its verdicts are still open here.
    queue: VecDeque<Arc<Parcel>>,
    link: Option<Link>,
    /// When a closed idle connection may be reopened.
    look_at: Instant,
    /// Halved when the node rejects a batch as too large.
    max_lines: usize,
    /// Attempts on the head of the queue, and the time of the first one.
    attempts: u32,
    tried_since: Option<Instant>,
}

/// One POST's verdicts, one per event from the head of the queue.
type Verdicts = Vec<Attempt>;

impl OrderedPublisher {
    pub async fn run(self) {
        let mut reconciling = JoinSet::new();
        reconciling.spawn_local(super::reconcile::run(Arc::clone(&self.config), Arc::clone(&self.node)));
        let max_lines = self.config.batch;
        let mut work = Work {
            publisher: self,
            queue: VecDeque::new(),
            link: None,
            look_at: Instant::now(),
            max_lines,
            attempts: 0,
            tried_since: None,
        };
        work.run().await;
    }
}

impl Work {
    async fn run(&mut self) {
        let mut backoff = Backoff::new(&self.publisher.config.retry);
        while self.gather().await {
            // The worker that has the claim now may have sent newer events already.
            if !self.is_admitted().await {
                return;
            }
            let verdicts = self.post().await;
            let pause = self.settle(verdicts);
            match pause {
                None => backoff = Backoff::new(&self.publisher.config.retry),
                Some(after) => {
                    let longest = self.publisher.config.retry.max;
                    let pause = backoff.pause().max(after).min(longest);
                    if !self.wait(pause).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits while the node's breaker is open. `false`: closed.
    async fn is_admitted(&self) -> bool {
        let OrderedPublisher {
            node, sequencer, place, ..
        } = &self.publisher;
        let admitted = node.admit();
        tokio::pin!(admitted);
        loop {
            tokio::select! {
                biased;
                () = &mut admitted => return !sequencer.is_closed(),
                () = sequencer.grown(*place) => if sequencer.is_closed() {
                    return false;
                }
            }
        }
    }

    /// Fills the queue; waits while it is empty, as long as the node is connected. `false`: closed.
    async fn gather(&mut self) -> bool {
        loop {
            let place = self.publisher.place;
            let room = self.max_lines.max(1).saturating_sub(self.queue.len());
            if !self.publisher.sequencer.take(place, &mut self.queue, room) {
                return false;
            }
            self.leave_out_fenced();
            self.leave_out_repeated();
            if !self.queue.is_empty() || self.is_to_look() {
                return true;
            }
            let Self {
                publisher,
                link,
                look_at,
                ..
            } = self;
            let ended = link.as_ref().map(|link| Rc::clone(&link.ended));
            let is_closed = link.as_ref().is_some_and(|link| link.sender.is_closed());
            tokio::select! {
                () = publisher.sequencer.grown(place) => {}
                () = async { ended.unwrap_or_default().notified().await } => {}
                () = tokio::time::sleep_until((*look_at).into()), if is_closed => {}
            }
        }
    }

    /// Was the connection lost while idle? If the node was restarted, its memory must be refilled before new events.
    fn is_to_look(&mut self) -> bool {
        if self.publisher.node.is_gone() {
            return true;
        }
        let is_closed = self.link.as_ref().is_some_and(|link| link.sender.is_closed());
        let is_time = is_closed && Instant::now() >= self.look_at;
        if is_time {
            self.look_at = Instant::now() + LOOK_INTERVAL;
        }
        is_time
    }

    /// Waits before the next attempt, and meanwhile bounds the queue.
    async fn wait(&mut self, pause: Duration) -> bool {
        let OrderedPublisher {
            node, sequencer, place, ..
        } = &self.publisher;
        let pause = node.pause(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return true,
                () = sequencer.grown(*place) => {
                    if !sequencer.take(*place, &mut self.queue, usize::MAX) {
                        return false;
                    }
                    miss_settled(&mut self.queue, node);
                }
            }
        }
    }

    /// Removes events that another worker may have claimed.
    fn leave_out_fenced(&mut self) {
        self.queue.retain(|parcel| {
            let is_fenced = parcel.event.is_fenced();
            if is_fenced {
                parcel.quorum.release();
            }
            !is_fenced
        });
    }

    /// Removes events that will come again, after older ones.
    fn leave_out_repeated(&mut self) {
        let node = &self.publisher.node;
        let before = self.queue.len();
        self.queue.retain(|parcel| {
            let is_repeated = node.gets_again(&parcel.event);
            if is_repeated {
                parcel.quorum.accept();
            }
            !is_repeated
        });
        if self.queue.len() < before {
            (self.attempts, self.tried_since) = (0, None);
        }
    }

    async fn post(&mut self) -> Verdicts {
        let timeout = self.publisher.config.timeout;
        let posted = tokio::time::timeout(timeout, self.exchange()).await;
        match posted.unwrap_or(Err(Failure::Timeout(timeout))) {
            Ok(verdicts) => verdicts,
            Err(failure) => {
                // A late answer on this connection must not be taken for that of the next request.
                self.link = None;
                vec![self.publisher.node.unanswered(&self.publisher.config, &failure)]
            }
        }
    }

    async fn exchange(&mut self) -> Result<Verdicts, Failure> {
        // The node may have closed it since; nothing was sent then.
        if let Some(link) = &mut self.link
            && link.sender.ready().await.is_err()
        {
            self.link = None;
        }
        let is_used = self.link.is_some();
        if !is_used {
            self.link = Some(self.connect().await?);
            self.leave_out_repeated();
        }
        match self.send().await {
            // A node may close an idle connection while a request is in transit: no sign of a fault.
            Err(Failure::Client(client::Error::Http(_))) if is_used => {
                self.link = Some(self.connect().await?);
                self.leave_out_repeated();
                self.send().await
            }
            other => other,
        }
    }

    async fn connect(&self) -> Result<Link, Failure> {
        let mut link = self.ask().await?;
        if link.sender.ready().await.is_err() {
            // A node that ends closes it after the answer, and the one in its place may answer otherwise.
            link = self.ask().await?;
        }
        // One of old may close it after each unknown method. nginx waits at its end for the first request of a connection:
        // there is none unless a request follows at once.
        if !self.queue.is_empty() && link.sender.ready().await.is_err() {
            let OrderedPublisher { config, node, .. } = &self.publisher;
            (link.sender, link.ended) = client::connect_watched(&node.address, config.tls.as_ref()).await?;
        }
        self.publisher.node.metrics.set_batches(link.takes_batches);
        Ok(link)
    }

    /// A new connection, on which the node was asked what it takes.
    async fn ask(&self) -> Result<Link, Failure> {
        let OrderedPublisher { config, node, .. } = &self.publisher;
        let (mut sender, ended) = client::connect_watched(&node.address, config.tls.as_ref()).await?;
        let request = batch::question(config, &node.host);
        // A socket may still be open after its listener stopped accepting.
        let gone = |error| client::Error::Connect(std::io::Error::other(error));
        let answer = sender.send_request(request).await.map_err(gone)?;
        let (parts, _) = client::read_body(answer, MAX_ANSWER_BYTES).await?;
        if !parts.status.is_server_error() {
            node.arrived(parts.headers.get(EPOCH));
        }
        let takes_batches = config.batch > 0 && batch::is_offered(&parts);
        Ok(Link {
            sender,
            ended,
            takes_batches,
        })
    }

    async fn send(&mut self) -> Result<Verdicts, Failure> {
        let Some(link) = &mut self.link else {
            return Ok(Vec::new());
        };
        // The connection was only a check whether the node is there.
        if self.queue.is_empty() {
            return Ok(Vec::new());
        }
        let OrderedPublisher { config, node, .. } = &self.publisher;
        let count = batch::fitting(self.queue.iter().map(|parcel| parcel.line()), self.max_lines);
        if !link.takes_batches || count == 0 || self.max_lines == 0 {
            let event = &self.queue[0].event;
            let request = match event_request(config, node, event) {
                Ok(request) => request,
                Err(reason) => return Ok(vec![Attempt::Permanent(reason)]),
            };
            let answer = link.sender.send_request(request).await.map_err(client::Error::from)?;
            let (parts, _) = client::read_body(answer, MAX_ANSWER_BYTES).await?;
            return Ok(vec![node.judge(config, node.answered(&parts))]);
        }
        let mut body = Vec::with_capacity(self.queue.iter().take(count).map(|parcel| parcel.line().len()).sum());
        self.queue
            .iter()
            .take(count)
            .for_each(|parcel| body.extend_from_slice(parcel.line()));
        let request = batch::request(config, node, body);
        let answer = link.sender.send_request(request).await.map_err(client::Error::from)?;
        let (parts, body) = client::read_body(answer, MAX_ANSWER_BYTES * count).await?;
        match batch::outcome(config, node, &parts, &body, count)? {
            batch::Outcome::Verdicts(verdicts) => {
                self.max_lines = (self.max_lines * 2).min(config.batch);
                Ok(verdicts)
            }
            batch::Outcome::Whole(attempt) => Ok(vec![attempt]),
            batch::Outcome::Refused(attempt) => {
                // The next connection starts with the OPTIONS request.
                self.link = None;
                Ok(vec![attempt])
            }
            batch::Outcome::TooLarge => {
                self.max_lines = if count == 1 { 0 } else { count / 2 };
                Ok(Vec::new())
            }
            batch::Outcome::NotTaken => {
                link.takes_batches = false;
                node.metrics.set_batches(false);
                Ok(Vec::new())
            }
        }
    }

    /// Reports verdicts to the quorum. Events to retry stay at the head, in order; returned is the delay that the node
    /// asked for.
    fn settle(&mut self, verdicts: Verdicts) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let OrderedPublisher { config, node, .. } = &self.publisher;
        self.attempts += 1;
        let age = self.tried_since.get_or_insert_with(Instant::now).elapsed();
        let mut again: VecDeque<Arc<Parcel>> = VecDeque::new();
        let mut pause: Option<Duration> = None;
        let mut is_moving = false;
        for attempt in verdicts {
            let Some(parcel) = self.queue.pop_front() else { break };
            match attempt {
                Attempt::Accepted => {
                    node.metrics.accept(parcel.event.channels.len() as u64);
                    parcel.quorum.accept();
                }
                Attempt::Permanent(reason) => parcel
                    .quorum
                    .refuse(format!("{}: {reason}", node.address), self.attempts),
                Attempt::Retry { failure, after } => {
                    pause = Some(pause.unwrap_or_default().max(after.unwrap_or_default()));
                    // An event's time waiting for earlier ones does not count towards its age.
                    let is_head = !is_moving && again.is_empty();
                    if is_head && age + config.retry.initial > config.retry.max_age {
                        let limit = config.retry.max_age;
                        let reason = format!("{}: gave up at the age of {limit:?}: {failure}", node.address);
                        parcel.quorum.refuse(reason, self.attempts);
                    } else {
                        again.push_back(parcel);
                        continue;
                    }
                }
            }
            is_moving = true;
        }
        again.into_iter().rev().for_each(|parcel| self.queue.push_front(parcel));
        if is_moving {
            (self.attempts, self.tried_since) = (0, None);
        }
        if pause.is_some() {
            miss_settled(&mut self.queue, node);
        }
        pause
    }
}

/// Bounds the queue of a node that is down: events accepted by other nodes may miss it.
fn miss_settled(queue: &mut VecDeque<Arc<Parcel>>, node: &Node) {
    let mut excess = queue.len().saturating_sub(BEHIND);
    queue.retain(|parcel| {
        let is_missed = excess > 0 && parcel.quorum.is_settled();
        if is_missed {
            excess -= 1;
            node.metrics.miss();
        }
        !is_missed
    });
}
