//! The driver of sources that are queues: claims a batch, hands it to the lanes, finishes settled events, stores and
//! finishes parked ones, keeps the other claims alive, and gives the rest back at the end.
//!
//! A source that promises order is *exclusive*: several workers may be configured for one queue; one holds its lease
//! and works, the others stand by. A worker that wins the lease first takes over its predecessor's claims, in order,
//! and only then claims more; a worker that has lost it finds its fence down before it sends anything further, and its
//! scripts refused.
//!
//! After a crash the first deliveries come again in bulk. An event delivered again and again without ever being
//! finished may be what kills the worker: it is delivered alone, one suspect at a time, with a mark in the queue. Only
//! a death under that mark counts against an event, so that a worker killed at random parks nothing.

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
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::event::Event;
use crate::fence::Fence;
use crate::finalizer::{Ack, AckTo, Handle, Outcome, Parked};
use crate::retry::{Backoff, Policy};

/// Settled events wait this long for more before they are finished.
const SETTLE_WAIT: Duration = Duration::from_millis(5);
/// This many settled events do not wait.
const SETTLE_BATCH: usize = 100;
/// After a first outcome, others may arrive for this time: each alone would wake this thread.
const ACK_PAUSE: Duration = Duration::from_millis(1);
/// An emptied queue is asked again after this time, and watched only if it is still empty: so a steady trickle comes in
/// small batches. An event that comes to a quiet queue does not wait.
const LINGER: Duration = Duration::from_millis(2);
/// An event delivered more often than this and never finished is a suspect.
const INNOCENT_DELIVERIES: u32 = 3;
/// Maximum interval of a standby worker's attempts.
const STANDBY_ASKS: Duration = Duration::from_millis(500);
/// Interval of queue length queries.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// Parameters of work on a queue.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Maximum events per claim.
    pub batch: usize,
    /// A claim not renewed for this long is free for others.
    pub lease: Duration,
    /// Is one worker active while others stand by?
    pub exclusive: bool,
    /// An event that has killed the worker this often is parked.
    pub max_deaths: u32,
}

/// With a shorter lease, a brief pause of the machine loses it.
const MIN_LEASE: Duration = Duration::from_millis(300);

impl Terms {
    /// Reads `batch`, `consumers`, `lease` and `max_deaths`; the parameters `batch` and `lease` are the defaults of
    /// this kind of queue, `max_batch` is its maximum per claim.
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

/// A claimed event. `C` identifies it in the queue.
pub struct Claimed<C> {
    pub claim: C,
    pub event: Event,
    /// Number of deliveries, this one included.
    pub deliveries: u32,
    /// Reason why it cannot be processed at all.
    pub unusable: Option<String>,
}

/// The result of a queue operation under the lease.
pub enum Grant<T> {
    Granted(T),
    /// Another worker holds the lease.
    Lost,
}

impl Grant<u64> {
    /// Number of settled events that were no longer ours; `ours` is `None` if another worker holds the lease.
    pub fn lost_of(ours: Option<u64>, settled: usize) -> Self {
        match ours {
            None => Self::Lost,
            Some(ours) => Self::Granted((settled as u64).saturating_sub(ours)),
        }
    }
}

/// A queue with its connections. An error means a lost connection; the driver then reconnects.
pub trait Queue {
    type Claim: Clone + PartialEq;

    fn name(&self) -> &str;

    /// Connects, and creates missing objects at the broker.
    async fn connect(&mut self) -> Result<(), String>;

    /// Takes or renews the lease. `Some(true)`: it was ours already.
    async fn take_lease(&mut self) -> Result<Option<bool>, String>;

    async fn release_lease(&mut self) -> Result<(), String>;

    /// Claims waiting events, oldest first.
    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<Self::Claim>>>, String>;

    /// The lease is ours, but not continuously since it was last taken: claims must be recovered from the beginning.
    async fn start_over(&mut self) -> Result<(), String>;

    /// Takes over claims of dead or idle workers, oldest first, in slices. The flag marks the last slice.
    async fn recover(&mut self, count: usize) -> Result<Grant<(Vec<Claimed<Self::Claim>>, bool)>, String>;

    /// Records durably that a suspect is about to be processed, and returns how often that was recorded.
    async fn mark_suspect(&mut self, claim: &Self::Claim) -> Result<u32, String>;

    /// Finishes and parks events, and returns how many of them were no longer ours.
    async fn settle(
        &mut self,
        finished: &[Self::Claim],
        parked: &[(Self::Claim, Parked)],
    ) -> Result<Grant<u64>, String>;

    /// Both in one round trip, where possible. The first result is `None` if nothing was settled, because events were
    /// ready to be given out at once.
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

    /// Keeps claims alive; called every third of the lease. An exclusive queue also sweeps here.
    async fn renew(&mut self, claims: Vec<Self::Claim>) -> Result<(), String>;

    /// Gives back claims that will not be processed, in the order of the source.
    async fn give_back(&mut self, claims: Vec<Self::Claim>) -> Result<(), String>;

    /// Starts to wait for more; notifies once. `true`: up to `count` new events are claimed at once, and the next claim
    /// returns them.
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
        suspect: None,
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

/// State that is independent of connections.
struct Work<C> {
    terms: Terms,
    feed: Feed,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    fence: Option<Arc<Fence>>,
    /// Events with the lanes.
    open: Open<(C, Permit)>,
    finished: Vec<(C, Permit)>,
    parked: Vec<(C, Parked, Permit)>,
    /// When the oldest unsettled outcome arrived.
    unsettled_since: Option<Instant>,
    /// Claimed events waiting for credit.
    pending: VecDeque<Claimed<C>>,
    trouble: Trouble,
    /// An event was released because the lease was not certain: later ones must not overtake it.
    has_hole: bool,
    /// The queue may have given out events that have not arrived here.
    is_asking: bool,
    /// The last suspect, and how often a worker had died on it before. It comes again after the loss of a lease, which
    /// is no death.
    suspect: Option<(C, u32)>,
}

/// Why work under a lease ended.
enum LeaseEnd {
    Stopped,
    LostLease,
}

impl<C: Clone + PartialEq> Work<C> {
    /// Runs from connect to a stop, or to an error.
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
                // Events in flight under the old lease are fenced; they must be gone before they are taken over again.
                self.forget(stop).await;
                if !self.is_certain() && !stop.is_requested() {
                    // This took longer than the lease.
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
                // A lease that was certain at every moment since the last one is the same claim.
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
            // A standby worker is ready: another worker is active.
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
            // Margin for clock drift and for a POST already under way.
            fence.hold(asked, self.terms.lease * 9 / 10);
        }
    }

    /// Was the lease certain at every moment, and is every claim under it still in flight?
    fn is_certain(&self) -> bool {
        !self.has_hole && self.fence.as_ref().is_some_and(|fence| fence.is_held())
    }

    fn drop_fence(&self) {
        if let Some(fence) = &self.fence {
            fence.drop_now();
        }
    }

    /// Waits until nothing is in flight any more; all of it is lost to this worker.
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

    /// Works while holding the lease.
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
        // Until then the queue is not asked for more, and outcomes do not wake this task.
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
            // Settle together with the next claim, if one is due soon.
            let has_company = is_claiming || claim_at.is_some();
            if !is_claiming && self.is_settling_due(stop, has_company) {
                if !self.settle(queue).await? {
                    return Ok(LeaseEnd::LostLease);
                }
                if !has_room {
                    // Settling has freed credit.
                    continue;
                }
            }
            if now >= renew_at {
                renew_at = now + self.terms.lease / 3;
                if !self.renew(queue).await? {
                    return Ok(LeaseEnd::LostLease);
                }
                // Other workers may have died since.
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
                // Continue at once while there is more, but check for outcomes first.
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
            // A suspect waits for the events in flight, not for credit.
            let innocent = self
                .pending
                .front()
                .filter(|claimed| claimed.deliveries <= INNOCENT_DELIVERIES);
            let wanted = innocent.map(|claimed| claimed.event.raw.len());
            let credit = Arc::clone(self.feed.credit());
            let stopping = stop.is_requested();
            // Outcomes can wait for a claim that is due soon, unless they free credit for waiting events.
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

    /// Hands over events as credit allows; a suspect is delivered alone.
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
                let deaths = match &self.suspect {
                    Some((claim, deaths)) if *claim == next.claim => *deaths,
                    _ => queue.mark_suspect(&next.claim).await? - 1,
                };
                self.suspect = Some((next.claim.clone(), deaths));
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
            // The claim stays, and ends with its lease.
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

    /// Settling waits for a claim that is due.
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

    /// Claims, and settles finished events in the same round trip.
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

    /// Outcomes to report to the queue.
    fn unsettled(&self) -> (Vec<C>, Vec<(C, Parked)>) {
        let finished = self.finished.iter().map(|(claim, _)| claim.clone());
        let parked = self
            .parked
            .iter()
            .map(|(claim, parked, _)| (claim.clone(), parked.clone()));
        (finished.collect(), parked.collect())
    }

    /// Handles the queue's answer. `false`: the lease is lost.
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

    /// All claims, in the order of the source.
    fn claims(&self) -> Vec<C> {
        let open = self.open.iter().map(|(claim, _)| claim.clone());
        let done = self.finished.iter().map(|(claim, _)| claim.clone());
        let parked = self.parked.iter().map(|(claim, ..)| claim.clone());
        done.chain(parked)
            .chain(open)
            .chain(self.pending.iter().map(|one| one.claim.clone()))
            .collect()
    }

    /// Ends the work: settles and gives back all claims.
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
