//! The driver of sources that are queues: claim a batch, hand it to the lanes, finish what is done, store and finish what is parked, keep
//! the rest alive, and let go of it properly.
//!
//! A source that promises order is *exclusive*: several workers may be configured for one queue, one holds its lease and works, the others stand by. Who wins
//! the lease first takes over whatever its predecessor had claimed, in order, and only then claims more; whoever has lost it finds its fence
//! down before it sends anything further, and its scripts refused.
//!
//! After a crash the first deliveries come again in bulk. What has come again and again without ever being finished may be what
//! kills the worker: it goes alone, one suspect at a time, with a mark in the queue. Only a death under that mark counts against an event, so
//! that a worker that is killed at random parks nobody.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::Context;
use super::open::Open;
use super::trouble::Trouble;
use crate::config::section::Section;
use crate::credit::Permit;
use crate::engine::{Feed, Stop};
use crate::event::Event;
use crate::fence::Fence;
use crate::finalizer::{Ack, AckTo, Handle, Outcome, Parked};
use crate::retry::{Backoff, Policy};

/// What is done waits so long for company before it is finished.
const SETTLE_WAIT: Duration = Duration::from_millis(5);
/// With so much company it does not wait.
const SETTLE_BATCH: usize = 100;
/// After a first word on how events went, others are let come for so long: each of them alone would wake this thread.
const ACK_PAUSE: Duration = Duration::from_millis(1);
/// A queue that was emptied is asked again after this time, and only if there is nothing then, watched: so a steady trickle comes in small
/// batches. An event that comes to a quiet queue does not wait.
const LINGER: Duration = Duration::from_millis(2);
/// An event that was handed out more often than this and never finished is suspected.
const INNOCENT_DELIVERIES: u32 = 3;
/// A standby worker asks at least so often.
const STANDBY_ASKS: Duration = Duration::from_millis(500);
/// How often the queue is asked how long it is.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// How a queue is worked on.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Events to a claim at most.
    pub batch: usize,
    /// A claim that is not renewed for so long is anybody's.
    pub lease: Duration,
    /// Is one worker active and others stand by?
    pub exclusive: bool,
    /// An event that has killed the worker so often is parked.
    pub max_deaths: u32,
}

/// Below this a pause of the machine loses the lease.
const MIN_LEASE: Duration = Duration::from_millis(300);

impl Terms {
    /// `batch`, `consumers`, `lease` and `max_deaths`; `batch` and `lease` are the defaults of this kind of queue, `max_batch` is what it can give at once.
    pub fn read(section: &Section<'_>, batch: usize, max_batch: usize, lease: Duration) -> Self {
        let exclusive = section.choice("consumers", &[("one", true), ("many", false)], true);
        let batch = section.or("batch", batch);
        if batch == 0 && max_batch == usize::MAX {
            section.complain_at("batch", "must be at least 1");
        } else if !(1..=max_batch).contains(&batch) {
            section.complain_at("batch", format!("must be from 1 to {max_batch}"));
        }
        let lease = section.or("lease", lease);
        if lease < MIN_LEASE {
            section.complain_at("lease", format!("must be at least {MIN_LEASE:?}"));
        }
        let max_deaths = section.or("max_deaths", 3);
        Self {
            batch,
            lease,
            exclusive,
            max_deaths,
        }
    }
}

/// One event as claimed. `C` is what the queue knows it by.
pub struct Claimed<C> {
    pub claim: C,
    pub event: Event,
    /// How often it was handed out, this time included.
    pub deliveries: u32,
    /// Why it cannot even begin.
    pub unusable: Option<String>,
}

/// The answer to an attempt to work on the queue.
pub enum Grant<T> {
    Granted(T),
    /// The lease is somebody else's.
    Lost,
}

impl Grant<u64> {
    /// How many of the settled were not ours any more; `ours` is `None` if the lease is somebody else's.
    pub fn lost_of(ours: Option<u64>, settled: usize) -> Self {
        match ours {
            None => Self::Lost,
            Some(ours) => Self::Granted((settled as u64).saturating_sub(ours)),
        }
    }
}

/// A queue with its connections. An error is a lost connection; the queue is then connected anew.
pub trait Queue {
    type Claim: Clone;

    fn name(&self) -> &str;

    /// Connects, and creates at the broker what must be there.
    async fn connect(&mut self) -> Result<(), String>;

    /// Takes the lease, or keeps it. `Some(true)`: it was ours already.
    async fn take_lease(&mut self) -> Result<Option<bool>, String>;

    async fn release_lease(&mut self) -> Result<(), String>;

    /// Claims what is waiting, oldest first.
    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<Self::Claim>>>, String>;

    /// The lease is ours, and was not at every moment since it was last taken: what is claimed is to be recovered from its beginning.
    async fn start_over(&mut self) -> Result<(), String>;

    /// Takes over claims of others that are dead or idle, oldest first, in slices. The flag says that this was the last.
    async fn recover(&mut self, count: usize) -> Result<Grant<(Vec<Claimed<Self::Claim>>, bool)>, String>;

    /// Notes durably that a suspect is about to be worked on, and returns how often that was noted.
    async fn mark_suspect(&mut self, claim: &Self::Claim) -> Result<u32, String>;

    /// Finishes and parks, and returns how many of them were no longer ours.
    async fn settle(
        &mut self,
        finished: &[Self::Claim],
        parked: &[(Self::Claim, Parked)],
    ) -> Result<Grant<u64>, String>;

    /// Both in one go, where that saves time. The first answer is `None` if nothing was settled, because there was something to be given out at once.
    async fn settle_and_claim(
        &mut self,
        finished: &[Self::Claim],
        parked: &[(Self::Claim, Parked)],
        count: usize,
    ) -> Result<(Option<Grant<u64>>, Grant<Vec<Claimed<Self::Claim>>>), String> {
        let Grant::Granted(lost) = self.settle(finished, parked).await? else {
            return Ok((Some(Grant::Lost), Grant::Lost));
        };
        Ok((Some(Grant::Granted(lost)), self.claim(count).await?))
    }

    /// Keeps claims alive; called every third of the lease. An exclusive queue sweeps here, too.
    async fn renew(&mut self, claims: Vec<Self::Claim>) -> Result<(), String>;

    /// Gives back what will not be worked on, in the order of the source.
    async fn give_back(&mut self, claims: Vec<Self::Claim>) -> Result<(), String>;

    /// Starts to wait for more; tells once. `true`: what comes is claimed at once, up to so many, and the next claim gives it out.
    fn wait_for_more(&mut self, count: usize, more: Arc<Notify>) -> bool;

    /// Sets the gauges.
    async fn lag(&mut self, feed: &Feed) -> Result<(), String>;
}

/// Works until a stop.
pub async fn run<Q: Queue>(mut queue: Q, terms: Terms, context: Context) -> io::Result<()> {
    let Context { feed, mut stop, .. } = context;
    let (ack_to, acks) = mpsc::unbounded_channel();
    let mut work = Work {
        terms,
        feed,
        acks,
        ack_to,
        fence: terms.exclusive.then(Arc::default),
        open: Open::default(),
        finished: Vec::new(),
        parked: Vec::new(),
        unsettled_since: None,
        pending: VecDeque::new(),
        trouble: Trouble::default(),
        has_hole: false,
        is_asking: false,
    };
    let policy = Policy {
        initial: Duration::from_millis(50),
        max: Duration::from_secs(2),
        ..Policy::default()
    };
    let mut backoff = Backoff::new(&policy);
    loop {
        let error = match work.session(&mut queue, &mut stop, &mut backoff, &policy).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        work.feed.gauges().set_ready(false);
        work.trouble.tell(queue.name(), error, "connecting again");
        tokio::select! {
            () = tokio::time::sleep(backoff.pause()) => {}
            () = stop.abandoned() => return Ok(()),
        }
        if stop.is_requested() && work.open.is_empty() && !work.has_unsettled() {
            return Ok(());
        }
    }
}

/// What is going on, independent of connections.
struct Work<C> {
    terms: Terms,
    feed: Feed,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    fence: Option<Arc<Fence>>,
    /// With the lanes.
    open: Open<(C, Permit)>,
    finished: Vec<(C, Permit)>,
    parked: Vec<(C, Parked, Permit)>,
    /// Since when something waits to be settled.
    unsettled_since: Option<Instant>,
    /// Claimed, and waiting for credit.
    pending: VecDeque<Claimed<C>>,
    trouble: Trouble,
    /// Something was let go of because the lease was not certain: what comes after it must not go on before it.
    has_hole: bool,
    /// The queue may have given out something that has not arrived here.
    is_asking: bool,
}

/// Why work under a lease ended.
enum LeaseEnd {
    Stopped,
    LostLease,
}

impl<C: Clone> Work<C> {
    /// From connect to a stop, or to an error.
    async fn session<Q: Queue<Claim = C>>(
        &mut self,
        queue: &mut Q,
        stop: &mut Stop,
        backoff: &mut Backoff,
        policy: &Policy,
    ) -> Result<(), String> {
        queue.connect().await?;
        loop {
            let kept = if self.terms.exclusive {
                match self.stand_by(queue, stop).await? {
                    Some(kept) => kept,
                    None => return Ok(()),
                }
            } else {
                true
            };
            if !kept {
                // What is still on its way under the old lease is fenced; it must be gone before it can be taken over again.
                self.forget(stop).await;
                if !self.is_certain() && !stop.is_requested() {
                    // That has taken longer than the lease.
                    continue;
                }
                self.is_asking = true;
                queue.start_over().await?;
            }
            if self.trouble.is_over() {
                tracing::info!("source {}: connected again", queue.name());
            }
            *backoff = Backoff::new(policy);
            self.feed.gauges().set_ready(true);
            let must_recover = !kept || !self.terms.exclusive;
            match self.work_lease(queue, stop, must_recover).await? {
                LeaseEnd::Stopped => return self.leave(queue).await,
                LeaseEnd::LostLease => {
                    self.drop_fence();
                    tracing::warn!(
                        "source {}: the lease ran out, or another worker has taken over; standing by",
                        queue.name()
                    );
                }
            }
        }
    }

    /// Waits for the lease. `None`: stopped first.
    async fn stand_by<Q: Queue<Claim = C>>(&mut self, queue: &mut Q, stop: &mut Stop) -> Result<Option<bool>, String> {
        let pause = (self.terms.lease / 3).min(STANDBY_ASKS);
        let mut is_told = false;
        loop {
            let asked = Instant::now();
            if let Some(kept) = queue.take_lease().await? {
                // A claim that was certain at every moment since the last one is the same claim.
                let kept = kept && self.is_certain() && !self.is_asking;
                if !kept {
                    self.drop_fence();
                    self.fence = Some(Arc::default());
                }
                self.hold_fence(asked);
                self.feed.gauges().set_active(true);
                if is_told {
                    tracing::info!("source {}: active from now on", queue.name());
                }
                return Ok(Some(kept));
            }
            // Standing by is being ready: another worker does the work.
            self.feed.gauges().set_ready(true);
            self.feed.gauges().set_active(false);
            if !std::mem::replace(&mut is_told, true) {
                tracing::info!("source {}: another worker is active; standing by", queue.name());
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.requested() => return Ok(None),
            }
        }
    }

    fn hold_fence(&self, asked: Instant) {
        if let Some(fence) = &self.fence {
            // Clocks may run at different speeds, and a POST that has begun takes its time.
            fence.hold(asked, self.terms.lease * 9 / 10);
        }
    }

    /// Was the lease certain at every moment, and is everything that was claimed under it still on its way?
    fn is_certain(&self) -> bool {
        !self.has_hole && self.fence.as_ref().is_some_and(|fence| fence.is_held())
    }

    fn drop_fence(&self) {
        if let Some(fence) = &self.fence {
            fence.drop_now();
        }
    }

    /// Until nothing is on its way any more; none of it is ours.
    async fn forget(&mut self, stop: &mut Stop) {
        let lost = self.open.len() + self.finished.len() + self.parked.len() + self.pending.len();
        self.feed.gauges().count_lost_claims(lost as u64);
        self.pending.clear();
        while !self.open.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(ack),
                () = stop.abandoned() => break,
            }
        }
        self.finished.clear();
        self.parked.clear();
        self.unsettled_since = None;
        (self.has_hole, self.is_asking) = (false, false);
    }

    /// Works with the lease in hand.
    async fn work_lease<Q: Queue<Claim = C>>(
        &mut self,
        queue: &mut Q,
        stop: &mut Stop,
        must_recover: bool,
    ) -> Result<LeaseEnd, String> {
        let mut is_recovering = must_recover;
        self.is_asking |= must_recover;
        let mut renew_at = Instant::now() + self.terms.lease / 3;
        let mut lag_at = Instant::now();
        let more = Arc::new(Notify::new());
        let mut is_waiting = false;
        let mut is_dry = false;
        // Until then the queue is not asked for more, and nobody wakes for what was done.
        let (mut claim_at, mut ack_at) = (None, None);
        loop {
            self.note_all();
            if self.terms.exclusive && self.has_hole && !stop.is_requested() {
                return Ok(LeaseEnd::LostLease);
            }
            let now = Instant::now();
            claim_at = claim_at.filter(|at| *at > now);
            ack_at = ack_at.filter(|at| *at > now);
            let has_room = self.pending.is_empty() && self.feed.credit().room() > 0;
            let is_claiming = has_room && !stop.is_requested() && !is_recovering && !is_dry && claim_at.is_none();
            // What is done goes with the next claim, if there is one soon.
            let has_company = is_claiming || claim_at.is_some();
            if !is_claiming && self.is_settling_due(stop, has_company) {
                if !self.settle(queue).await? {
                    return Ok(LeaseEnd::LostLease);
                }
                if !has_room {
                    // What is settled has made some.
                    continue;
                }
            }
            if now >= renew_at {
                renew_at = now + self.terms.lease / 3;
                if !self.renew(queue).await? {
                    return Ok(LeaseEnd::LostLease);
                }
                // Others may have died since.
                is_recovering |= !self.terms.exclusive;
            }
            if now >= lag_at {
                lag_at = now + LAG_INTERVAL;
                queue.lag(&self.feed).await?;
            }
            if stop.is_requested() {
                if self.open.is_empty() && !self.has_unsettled() {
                    return Ok(LeaseEnd::Stopped);
                }
            } else if self.pending.is_empty() {
                let room = self.terms.batch.min(self.feed.credit().room());
                if room > 0 && is_recovering {
                    let Grant::Granted((claimed, is_last)) = queue.recover(room).await? else {
                        return Ok(LeaseEnd::LostLease);
                    };
                    is_recovering = !is_last;
                    self.is_asking = is_recovering;
                    self.feed.gauges().count_redelivered(claimed.len() as u64);
                    if claimed.is_empty() {
                        continue;
                    }
                    self.pending.extend(claimed);
                } else if room > 0 && is_claiming {
                    self.is_asking = true;
                    let Grant::Granted(claimed) = self.claim(queue, room).await? else {
                        return Ok(LeaseEnd::LostLease);
                    };
                    self.is_asking = false;
                    is_dry = claimed.is_empty();
                    if claimed.len() < room && !is_dry {
                        claim_at = Some(Instant::now() + LINGER);
                    }
                    self.pending.extend(claimed);
                }
            }
            let was_pending = self.pending.len();
            self.emit_pending(queue, stop).await?;
            if was_pending > self.pending.len() {
                // Whatever there is goes on at once, but not without a look at what has been done.
                tokio::task::yield_now().await;
                continue;
            }
            if is_dry && !is_waiting {
                is_waiting = true;
                let room = self.terms.batch.min(self.feed.credit().room()).max(1);
                self.is_asking |= queue.wait_for_more(room, Arc::clone(&more));
            }
            let settle_at = self.unsettled_since.map(|since| since + SETTLE_WAIT);
            let times = [settle_at, claim_at, ack_at, Some(renew_at), Some(lag_at)];
            let wake_at = times.into_iter().flatten().min().unwrap_or(lag_at);
            // A suspect waits for what is in flight, and not for credit.
            let innocent = self
                .pending
                .front()
                .filter(|claimed| claimed.deliveries <= INNOCENT_DELIVERIES);
            let wanted = innocent.map(|claimed| claimed.event.raw.len());
            let credit = Arc::clone(self.feed.credit());
            let stopping = stop.is_requested();
            // What is done can wait for a claim that comes soon, unless it makes room for what waits here.
            let is_listening = ack_at.is_none() && (claim_at.is_none() || wanted.is_some());
            let mut last_word = stop.clone();
            tokio::select! {
                biased;
                () = stop.requested(), if !stopping => {}
                () = last_word.abandoned(), if stopping => return Ok(LeaseEnd::Stopped),
                Some(ack) = self.acks.recv(), if is_listening => {
                    self.note(ack);
                    ack_at = Some(Instant::now() + ACK_PAUSE);
                }
                () = more.notified(), if is_dry => (is_dry, is_waiting) = (false, false),
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() && !stopping => {
                    if let Some(claimed) = self.pending.pop_front() {
                        self.emit(claimed, permit);
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Hands over what credit allows; a suspect goes alone.
    async fn emit_pending<Q: Queue<Claim = C>>(&mut self, queue: &mut Q, stop: &Stop) -> Result<(), String> {
        while let Some(next) = self.pending.front() {
            if stop.is_requested() {
                return Ok(());
            }
            let is_suspect = next.deliveries > INNOCENT_DELIVERIES;
            if is_suspect && (!self.open.is_empty() || self.has_unsettled()) {
                return Ok(());
            }
            let Some(permit) = self.feed.credit().try_reserve_one(next.event.raw.len()) else {
                return Ok(());
            };
            let Some(mut next) = self.pending.pop_front() else {
                return Ok(());
            };
            if is_suspect {
                let deaths = queue.mark_suspect(&next.claim).await? - 1;
                if deaths >= self.terms.max_deaths {
                    next.unusable = Some(format!(
                        "the worker died {deaths} times while this event alone was in flight"
                    ));
                }
            }
            self.emit(next, permit);
            if is_suspect {
                return Ok(());
            }
        }
        Ok(())
    }

    fn emit(&mut self, claimed: Claimed<C>, permit: Permit) {
        let Claimed {
            claim,
            mut event,
            deliveries,
            unusable,
        } = claimed;
        event.fence = self.fence.clone();
        let ticket = self.open.insert((claim, permit));
        let handle = Handle::new(ticket, AckTo::Broker(self.ack_to.clone()), None);
        self.feed.emit_usable(event, unusable, deliveries, handle);
    }

    fn note_all(&mut self) {
        while let Ok(ack) = self.acks.try_recv() {
            self.note(ack);
        }
    }

    fn note(&mut self, ack: Ack) {
        let Some((claim, permit)) = self.open.remove(ack.ticket) else {
            return;
        };
        match (ack.outcome, ack.parked) {
            (Outcome::Accepted | Outcome::Dropped, _) => self.finished.push((claim, permit)),
            (Outcome::Parked, Some(parked)) => self.parked.push((claim, *parked, permit)),
            // The claim stays as it is, and ends with its lease.
            (Outcome::Parked | Outcome::Released, _) => {
                self.has_hole = true;
                return;
            }
        }
        self.unsettled_since.get_or_insert_with(Instant::now);
    }

    fn has_unsettled(&self) -> bool {
        self.unsettled_since.is_some()
    }

    /// With company on the way it waits for that.
    fn is_settling_due(&self, stop: &Stop, has_company: bool) -> bool {
        let Some(since) = self.unsettled_since else {
            return false;
        };
        self.finished.len() + self.parked.len() >= SETTLE_BATCH
            || since.elapsed() >= SETTLE_WAIT
            || (self.open.is_empty() && !has_company)
            || stop.is_requested()
    }

    /// `false`: the lease is lost.
    async fn settle<Q: Queue<Claim = C>>(&mut self, queue: &mut Q) -> Result<bool, String> {
        let (finished, parked) = self.unsettled();
        let settled = queue.settle(&finished, &parked).await?;
        Ok(self.note_settled(&settled))
    }

    /// Claims, and settles what is done by the way.
    async fn claim<Q: Queue<Claim = C>>(
        &mut self,
        queue: &mut Q,
        count: usize,
    ) -> Result<Grant<Vec<Claimed<C>>>, String> {
        if !self.has_unsettled() {
            return queue.claim(count).await;
        }
        let (finished, parked) = self.unsettled();
        let (settled, claimed) = queue.settle_and_claim(&finished, &parked, count).await?;
        let is_kept = settled.is_none_or(|settled| self.note_settled(&settled));
        Ok(if is_kept { claimed } else { Grant::Lost })
    }

    /// What the queue is to be told.
    fn unsettled(&self) -> (Vec<C>, Vec<(C, Parked)>) {
        let finished = self.finished.iter().map(|(claim, _)| claim.clone());
        let parked = self
            .parked
            .iter()
            .map(|(claim, parked, _)| (claim.clone(), parked.clone()));
        (finished.collect(), parked.collect())
    }

    /// The queue's answer. `false`: the lease is lost.
    fn note_settled(&mut self, settled: &Grant<u64>) -> bool {
        let Grant::Granted(lost) = settled else { return false };
        self.feed.gauges().count_lost_claims(*lost);
        self.finished.clear();
        self.parked.clear();
        self.unsettled_since = None;
        true
    }

    async fn renew<Q: Queue<Claim = C>>(&mut self, queue: &mut Q) -> Result<bool, String> {
        if self.terms.exclusive {
            let asked = Instant::now();
            if queue.take_lease().await? != Some(true) || !self.is_certain() {
                return Ok(false);
            }
            self.hold_fence(asked);
        }
        queue.renew(self.claims()).await?;
        Ok(true)
    }

    /// All that is claimed, in the order of the source.
    fn claims(&self) -> Vec<C> {
        let open = self.open.iter().map(|(claim, _)| claim.clone());
        let done = self.finished.iter().map(|(claim, _)| claim.clone());
        let parked = self.parked.iter().map(|(claim, ..)| claim.clone());
        done.chain(parked)
            .chain(open)
            .chain(self.pending.iter().map(|one| one.claim.clone()))
            .collect()
    }

    /// The end: nothing is done here any more.
    async fn leave<Q: Queue<Claim = C>>(&mut self, queue: &mut Q) -> Result<(), String> {
        self.drop_fence();
        let rest = self.claims();
        if !rest.is_empty() {
            queue.give_back(rest).await?;
        }
        if self.terms.exclusive {
            queue.release_lease().await?;
        }
        Ok(())
    }
}
