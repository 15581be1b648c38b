//! A lane: one thread that runs all stages inline and delivers with its own connections.
//!
//! The order key has chosen the lane, so events that must not overtake each other arrive here, in the order of the
//! source. A lane runs the stages of an event as soon as it arrives. If all sinks of its pipeline keep the order in
//! which they are handed events, the event goes there at once; else it waits for earlier events of the same key: one in
//! flight per key, other keys continue. There is no work stealing, and no lock but those of the sinks.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_local;

use super::dead_letter::{DeadLetters, Reason};
use super::order::OrderKey;
use super::pipeline::{Pipeline, SinkSlot};
use super::sequencer::Reservation;
use super::settlement::{InFlight, SinkAck, Verdict};
use crate::event::{Event, EventId};
use crate::finalizer::{Handle, Outcome};
use crate::ops::metrics::{Component, Metrics};
use crate::sink::{Delivery, LaneSink, RunningSink};
use crate::stage::{Flow, Stage};

/// How often an event may panic a stage before it is parked.
const PANIC_TRIES: u32 = 2;
/// After this many events the lane yields to other tasks of its thread: while the answers of nodes and brokers stay
/// unread, nginx and the broker are idle.
const IN_A_ROW: u32 = 32;
/// It also yields after this time, however few events it ran: leases are renewed on this thread, too.
const SPELL: Duration = Duration::from_millis(2);
/// Events that a lane queues for optional sinks. Further events miss that sink.
const OPTIONAL_BACKLOG: usize = 1024;

/// One event for one pipeline.
#[derive(Debug)]
pub struct Job {
    pub pipeline: Arc<Pipeline>,
    pub event: Event,
    pub key: OrderKey,
    pub handle: Handle,
    /// Its reservations at those sinks of the pipeline that keep the order of the source.
    pub reservations: Reservations,
}

/// With the index of the sink in its pipeline.
pub type Reservations = Vec<(usize, Reservation)>;

/// An event that has been through its stages.
struct Ready {
    pipeline: Arc<Pipeline>,
    event: Arc<Event>,
    handle: Handle,
    reservations: Reservations,
}

pub struct Lane {
    /// By the index of [`SinkSlot::sink`].
    sinks: Vec<Rc<dyn LaneSink>>,
    in_flight: Arc<InFlight>,
    /// A key in the map has an event in flight; its queue holds the events waiting for it.
    busy: RefCell<HashMap<(usize, OrderKey), VecDeque<Ready>>>,
    optional: Arc<Semaphore>,
}

impl Lane {
    /// Call on the lane's own thread.
    pub fn new(sinks: &[Arc<dyn RunningSink>], dead_letters: DeadLetters, metrics: Arc<Metrics>) -> Rc<Self> {
        Rc::new(Self {
            sinks: sinks.iter().map(|sink| sink.open()).collect(),
            in_flight: InFlight::new(dead_letters, metrics),
            busy: RefCell::default(),
            optional: Arc::new(Semaphore::new(OPTIONAL_BACKLOG)),
        })
    }

    /// Works until all senders are dropped.
    pub async fn run(self: Rc<Self>, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let (mut in_a_row, mut since) = (0, Instant::now());
        loop {
            let job = match jobs.try_recv() {
                Ok(job) if in_a_row < IN_A_ROW && since.elapsed() < SPELL => job,
                Ok(job) => {
                    tokio::task::yield_now().await;
                    (in_a_row, since) = (0, Instant::now());
                    job
                }
                Err(_) => {
                    let Some(job) = jobs.recv().await else { break };
                    (in_a_row, since) = (0, Instant::now());
                    job
                }
            };
            in_a_row += 1;
            let Job {
                pipeline,
                event,
                key,
                handle,
                reservations,
            } = job;
            let slot = (pipeline.index, key);
            let keeps_order = pipeline.keeps_order();
            self.process(&pipeline, event, &handle, |event, handle| {
                let ready = Ready {
                    pipeline: Arc::clone(&pipeline),
                    event: Arc::new(event),
                    handle,
                    reservations: reservations.clone(),
                };
                if keeps_order {
                    // No later event waits for this one.
                    self.hand_over(ready)
                        .into_iter()
                        .for_each(|delivery| drop(spawn_local(delivery)));
                } else {
                    self.enqueue(slot, ready);
                }
            });
            // Every event the stages produced holds its own share.
            handle.resolve(Outcome::Accepted);
        }
        // Some sinks settle on threads of their own.
        self.in_flight.closed().await;
    }

    /// Runs all stages. Resulting events go to `emit`; others are dropped or parked here.
    fn process(&self, pipeline: &Pipeline, event: Event, handle: &Handle, mut emit: impl FnMut(Event, Handle)) {
        let mut tries = 1;
        let original = event.clone();
        let mut attempt = event;
        loop {
            let outcome = catch_unwind(AssertUnwindSafe(|| run_stages(pipeline, attempt, 0)));
            match outcome {
                Ok(results) => {
                    for result in results {
                        match result {
                            StageResult::Out(event) => emit(event, handle.share()),
                            StageResult::Dropped => handle.share().resolve(Outcome::Dropped),
                            StageResult::Parked(event, reason) => {
                                self.in_flight.dead_letters.park(
                                    &pipeline.account.source,
                                    &pipeline.name,
                                    &event,
                                    &reason,
                                    handle.share(),
                                );
                            }
                        }
                    }
                    return;
                }
                Err(panic) if tries >= PANIC_TRIES => {
                    let text = format!("a stage panicked: {}", panic_text(&*panic));
                    let reason = Reason {
                        component: "stages".to_owned(),
                        text,
                        attempts: tries,
                    };
                    self.in_flight.dead_letters.park(
                        &pipeline.account.source,
                        &pipeline.name,
                        &original,
                        &reason,
                        handle.share(),
                    );
                    return;
                }
                Err(_) => {
                    tries += 1;
                    attempt = original.clone();
                }
            }
        }
    }

    fn enqueue(self: &Rc<Self>, slot: (usize, OrderKey), ready: Ready) {
        if let Some(waiting) = self.busy.borrow_mut().get_mut(&slot) {
            waiting.push_back(ready);
            return;
        }
        self.busy.borrow_mut().insert(slot, VecDeque::new());
        let lane = Rc::clone(self);
        spawn_local(async move {
            let mut next = Some(ready);
            while let Some(ready) = next {
                join_all(lane.hand_over(ready)).await;
                next = lane.next_of(slot);
            }
        });
    }

    fn next_of(&self, slot: (usize, OrderKey)) -> Option<Ready> {
        let mut busy = self.busy.borrow_mut();
        let next = busy.get_mut(&slot)?.pop_front();
        if next.is_none() {
            busy.remove(&slot);
        }
        next
    }

    /// Hands the event to all sinks of the pipeline at once. The returned futures drive the sinks that need a task of
    /// this lane.
    fn hand_over(&self, ready: Ready) -> Vec<Settling> {
        let Ready {
            pipeline,
            event,
            handle,
            mut reservations,
        } = ready;
        let mut settling = Vec::new();
        for sink_ack in self.in_flight.open(&pipeline.account, &event, handle) {
            let reservation = reservations.iter().position(|(at, _)| *at == sink_ack.sink());
            let reservation = reservation.map(|at| reservations.swap_remove(at).1);
            let sink = &self.sinks[pipeline.sinks[sink_ack.sink()].sink];
            match sink.direct() {
                Some(direct) => direct.hand_over(Arc::clone(&event), reservation, sink_ack),
                None => settling.push(settle(deliver(&**sink, &event, reservation), sink_ack)),
            }
        }
        for slot in pipeline.sinks.iter().filter(|slot| !slot.required) {
            self.deliver_aside(slot, &event);
        }
        settling
    }

    /// Delivers to an optional sink.
    fn deliver_aside(&self, slot: &SinkSlot, event: &Arc<Event>) {
        let metrics = Arc::clone(&slot.metrics);
        let Ok(room) = Arc::clone(&self.optional).try_acquire_owned() else {
            metrics.receive();
            metrics.discard(false, "backlog_full");
            return;
        };
        metrics.receive();
        let start = Instant::now();
        let delivery = deliver(&*self.sinks[slot.sink], event, None);
        let (id, name) = (event.id.clone(), slot.name.clone());
        spawn_local(async move {
            match delivery.await {
                Verdict::Accepted => {
                    metrics.send(1);
                    metrics.latency.observe(start.elapsed());
                }
                Verdict::Released => metrics.discard(false, "released"),
                Verdict::Refused { reason, .. } => {
                    metrics.park();
                    tracing::warn!("sink {name} (not required): event {id} is not there: {reason}");
                }
            }
            drop(room);
        });
    }
}

type Settling = Pin<Box<dyn Future<Output = ()>>>;

fn settle(delivery: Delivery, sink_ack: SinkAck) -> Settling {
    Box::pin(async move { sink_ack.tell(delivery.await) })
}

/// Hands the event over. A panic counts as a refusal.
fn deliver(sink: &dyn LaneSink, event: &Arc<Event>, reservation: Option<Reservation>) -> Delivery {
    let refuse = |panic: Panic| Verdict::Refused {
        reason: format!("the sink panicked: {}", panic_text(&*panic)),
        attempts: 1,
    };
    let handed = catch_unwind(AssertUnwindSafe(|| sink.deliver(Arc::clone(event), reservation)));
    Box::pin(async move {
        let settled = match handed {
            // A panicked future is not polled again, so its broken state is never observed.
            Ok(delivery) => AssertUnwindSafe(delivery).catch_unwind().await,
            Err(panic) => Err(panic),
        };
        settled.unwrap_or_else(refuse)
    })
}

/// The message of a panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// What a panic was raised with.
type Panic = Box<dyn Any + Send>;

/// How an event, or a piece of it, left the stages.
#[derive(Debug)]
pub enum Ending {
    Out(Box<Event>),
    Dropped { stage: String, reason: &'static str },
    Parked { stage: String, reason: String },
}

/// Runs stages for their result only: nothing is counted or delivered.
pub fn try_stages(stages: &[(&str, &dyn Stage)], prefix: &str, mut event: Event) -> Vec<Ending> {
    for (index, (name, stage)) in stages.iter().enumerate() {
        let stage_name = (*name).to_owned();
        match catch_unwind(AssertUnwindSafe(|| stage.run(&mut event))) {
            Ok(Flow::Next | Flow::Doubtful(_)) => {}
            Ok(Flow::Drop(reason)) => {
                return vec![Ending::Dropped {
                    stage: stage_name,
                    reason,
                }];
            }
            Ok(Flow::Park(reason)) => {
                return vec![Ending::Parked {
                    stage: stage_name,
                    reason,
                }];
            }
            Ok(Flow::Split(parts)) => {
                let rest = &stages[index + 1..];
                let parts = number_parts(parts, &event.id);
                return parts.flat_map(|part| try_stages(rest, prefix, part)).collect();
            }
            Err(panic) => {
                let reason = format!("a stage panicked: {}", panic_text(&*panic));
                return vec![Ending::Parked {
                    stage: stage_name,
                    reason,
                }];
            }
        }
    }
    finish(&mut event, prefix);
    vec![Ending::Out(Box::new(event))]
}

fn number_parts(parts: Vec<Event>, whole: &EventId) -> impl Iterator<Item = Event> {
    parts.into_iter().zip(1..).map(move |(mut part, number)| {
        part.id = whole.part(number);
        part
    })
}

/// From here on an event is immutable.
fn finish(event: &mut Event, prefix: &str) {
    event.seal();
    if !prefix.is_empty() {
        event
            .channels
            .iter_mut()
            .for_each(|channel| channel.insert_str(0, prefix));
    }
}

enum StageResult {
    Out(Event),
    Dropped,
    Parked(Event, Reason),
}

/// Runs an event through the stages from `first` on.
fn run_stages(pipeline: &Pipeline, mut event: Event, first: usize) -> Vec<StageResult> {
    for (index, slot) in pipeline.stages.iter().enumerate().skip(first) {
        let mut running = Running {
            metrics: &slot.metrics,
            done: false,
        };
        slot.metrics.receive();
        let flow = slot.stage.run(&mut event);
        running.done = true;
        match flow {
            Flow::Next => {
                slot.metrics.send(1);
                slot.metrics.tap.show(&event);
            }
            Flow::Doubtful(kind) => {
                slot.metrics.error(kind);
                slot.metrics.send(1);
                slot.metrics.tap.show(&event);
            }
            Flow::Drop(reason) => {
                slot.metrics.discard(true, reason);
                return vec![StageResult::Dropped];
            }
            Flow::Park(text) => {
                slot.metrics.park();
                let reason = Reason {
                    component: format!("stage {}", slot.name),
                    text,
                    attempts: 1,
                };
                return vec![StageResult::Parked(event, reason)];
            }
            Flow::Split(parts) => {
                slot.metrics.send(parts.len() as u64);
                return number_parts(parts, &event.id)
                    .flat_map(|part| {
                        slot.metrics.tap.show(&part);
                        run_stages(pipeline, part, index + 1)
                    })
                    .collect();
            }
        }
    }
    finish(&mut event, &pipeline.prefix);
    vec![StageResult::Out(event)]
}

/// Keeps the in-flight gauge right when a stage panics.
struct Running<'m> {
    metrics: &'m Component,
    done: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.metrics.error("panic");
            self.metrics.discard(false, "panic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    use crate::clock::Timestamp;
    use crate::engine::pipeline::{StageSlot, account};
    use crate::finalizer::{Ack, AckTo};
    use crate::sink::Delivery;
    use crate::stage::Order;
    use crate::stage::parse_json::{OnError, ParseJson};
    use crate::testing::TempDir;

    thread_local! {
        /// What a [`Recorder`] on this thread has received.
        static RECORDED: Cell<u32> = const { Cell::new(0) };
    }

    struct Panics;

    impl Stage for Panics {
        fn run(&self, event: &mut Event) -> Flow {
            match event.payload().as_ref() {
                b"{\"bad\":1}" => panic!("cannot take this"),
                b"{\"drop\":1}" => Flow::Drop("test"),
                b"{\"slow\":1}" => {
                    std::thread::sleep(Duration::from_millis(10));
                    Flow::Next
                }
                b"{\"late\":1}" if RECORDED.get() == 0 => Flow::Drop("nobody else had a turn"),
                _ => Flow::Next,
            }
        }
    }

    /// Records what it receives; the first delivery of each key is the slowest.
    #[derive(Default)]
    struct Recorder(Rc<RefCell<Vec<String>>>);

    impl LaneSink for Recorder {
        fn deliver(&self, event: Arc<Event>, _reservation: Option<Reservation>) -> Delivery {
            let seen = Rc::clone(&self.0);
            Box::pin(async move {
                let EventId::Numbered { seq, .. } = event.id else {
                    unreachable!()
                };
                tokio::time::sleep(Duration::from_millis(20_u64.saturating_sub(seq))).await;
                let text = format!("{} {}", event.id, String::from_utf8_lossy(&event.payload()));
                assert!(!text.contains("sink panic"), "sink panic");
                seen.borrow_mut().push(text);
                RECORDED.set(RECORDED.get() + 1);
                Verdict::Accepted
            })
        }
    }

    struct Unused;

    impl RunningSink for Unused {
        fn open(&self) -> Rc<dyn LaneSink> {
            Rc::<Recorder>::default()
        }
    }

    fn run(inputs: &[(u64, &'static str)]) -> (Vec<String>, Vec<Ack>, String) {
        let dir = TempDir::new();
        let parked = dir.path().join("parked");
        let metrics = Arc::<Metrics>::default();
        let (dead_letters, thread) = DeadLetters::open(&parked, Arc::clone(&metrics)).unwrap();
        let slot = |stage: Arc<dyn Stage>| StageSlot {
            name: "s".into(),
            stage,
            metrics: Arc::default(),
        };
        let parse = ParseJson {
            on_error: OnError::Park,
            split_arrays: true,
        };
        let sinks = vec![SinkSlot {
            name: "k".into(),
            sink: 0,
            running: Arc::new(Unused),
            required: true,
            metrics: Arc::default(),
        }];
        let pipeline = Arc::new(Pipeline {
            name: "p".into(),
            index: 0,
            stages: vec![slot(Arc::new(parse)), slot(Arc::new(Panics))],
            account: account("s", "p", &sinks),
            sinks,
            order: Order::Source,
            prefix: String::new(),
            dark: None,
        });
        let recorder = Rc::<Recorder>::default();
        let (acks, mut acked) = mpsc::unbounded_channel();
        {
            let lane = Lane {
                sinks: vec![recorder.clone()],
                in_flight: InFlight::new(dead_letters, metrics),
                busy: RefCell::default(),
                optional: Arc::new(Semaphore::new(1)),
            };
            let (jobs, receiver) = mpsc::unbounded_channel();
            for (seq, &(key, raw)) in (1..).zip(inputs) {
                let event = Event::new(EventId::new(1, seq), Timestamp(0), raw.into());
                let handle = Handle::new(seq, AckTo::Queue(acks.clone()), None);
                jobs.send(Job {
                    pipeline: Arc::clone(&pipeline),
                    event,
                    key: OrderKey(key),
                    handle,
                    reservations: Vec::new(),
                })
                .unwrap();
            }
            drop((jobs, acks));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let local = tokio::task::LocalSet::new();
            local.spawn_local(Rc::new(lane).run(receiver));
            runtime.block_on(local);
        }
        thread.join().unwrap();
        let acks = std::iter::from_fn(|| acked.try_recv().ok()).collect();
        (recorder.0.take(), acks, std::fs::read_to_string(parked).unwrap())
    }

    /// A measurement, not a test; the command is in the first line of its output.
    #[test]
    #[ignore = "a measurement: cargo test --release -p push-stream-worker -- --ignored --nocapture posts_per_second"]
    fn posts_per_second_through_the_stages_of_a_public_pipeline() {
        const POSTS: u32 = 2000;
        const ROUNDS: u32 = 50;
        let text = r#"
            [source]
            a = { type = "stdin" }
            [stage]
            parse = { type = "parse_json" }
            anon = { type = "anonymise", drop = ["author.ip"], mask = ["author.email"] }
            clean = { type = "clean_html", fields = ["message"] }
            fmt = { type = "format", fields = { id = "id", author = "author.name", message = "message", created = "created" } }
            route = { type = "route", channels = ["forum.{forum}", "thread.{thread}", "user.{author.id}", "post.{id}"] }
            [sink]
            s = { type = "file", path = "/dev/null" }
            [pipeline]
            p = { from = "a", stages = ["parse", "anon", "clean", "fmt", "route"], to = ["s"] }
        "#;
        let config = crate::config::parse(text).unwrap_or_else(|problems| panic!("{problems:?}"));
        let slot = |named: &crate::config::Named<Arc<dyn Stage>>| StageSlot {
            name: named.name.clone(),
            stage: Arc::clone(&named.component),
            metrics: Arc::default(),
        };
        let stages = config.stages.iter().map(slot).collect();
        let pipeline = Pipeline {
            name: "p".into(),
            index: 0,
            stages,
            sinks: vec![],
            account: account("s", "p", &[]),
            order: Order::Source,
            prefix: String::new(),
            dark: None,
        };
        // 730 bytes; every second one holds markup.
        let post = |n: u32| {
            let message = match n % 2 {
                0 => "Plain words of a comment that nobody needs to clean, ".repeat(5),
                _ => "<p>Some <b>bold</b> words, a <a href='http://example.com/'>link</a> &amp; more</p> ".repeat(3),
            };
            let post = format!(
                "{{\"id\":\"{n}\",\"forum\":\"f{}\",\"thread\":\"{}\",\"author\":{{\"id\":\"{}\",\"name\":\"Ann\",\"email\":\
                 \"a@example.com\",\"ip\":\"192.0.2.7\"}},\"message\":\"{message}\",\"created\":\"2026-01-01T00:00:00Z\",\"pad\":\"",
                n % 50,
                n % 1000,
                n % 5000
            );
            let room = 728_usize.saturating_sub(post.len());
            Event::new(
                EventId::new(1, n.into()),
                Timestamp(0),
                format!("{post}{}\"}}", "x".repeat(room)).into(),
            )
        };
        let posts: Vec<Event> = (0..POSTS).map(post).collect();
        let start = std::time::Instant::now();
        for _ in 0..ROUNDS {
            for post in &posts {
                let results = run_stages(&pipeline, post.clone(), 0);
                assert!(matches!(&results[..], [StageResult::Out(event)] if event.channels.len() == 4));
            }
        }
        let each = start.elapsed() / (POSTS * ROUNDS);
        let bytes = posts.iter().map(|post| post.raw.len()).sum::<usize>() / posts.len();
        println!(
            "{each:?} per post of {bytes} bytes, {:.0} posts/s",
            1.0 / each.as_secs_f64()
        );
    }

    fn outcome(acks: &[Ack], ticket: u64) -> Outcome {
        let of: Vec<_> = acks.iter().filter(|ack| ack.ticket == ticket).collect();
        assert_eq!(of.len(), 1, "told once");
        of[0].outcome
    }

    #[test]
    fn events_of_one_key_keep_their_order_and_others_go_on() {
        let (seen, acks, _) = run(&[(7, "{}"), (7, "{}"), (8, "{}"), (7, "{}")]);
        let (sevens, eight): (Vec<_>, Vec<_>) = seen.iter().enumerate().partition(|(_, id)| **id != "1-3 {}");
        assert_eq!(
            sevens.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(),
            ["1-1 {}", "1-2 {}", "1-4 {}"]
        );
        assert!(eight[0].0 < sevens[1].0, "it does not wait for them: {seen:?}");
        assert_eq!(acks.len(), 4);
    }

    #[test]
    fn slow_stages_let_the_rest_of_the_thread_have_its_turn() {
        let mut events: Vec<_> = (1..=10).map(|key| (key, "{\"slow\":1}")).collect();
        events.push((11, "{\"late\":1}"));
        let (_, acks, _) = run(&events);
        assert_eq!(outcome(&acks, 11), Outcome::Accepted);
    }

    #[test]
    fn a_panic_parks_its_event_and_the_lane_lives_on() {
        let (seen, acks, parked) = run(&[
            (1, "{\"bad\":1}"),
            (1, "{\"sink panic\":1}"),
            (1, "{\"drop\":1}"),
            (1, "{}"),
        ]);
        assert_eq!(seen, ["1-4 {}"]);
        let outcomes: Vec<_> = (1..=4).map(|ticket| outcome(&acks, ticket)).collect();
        assert_eq!(
            outcomes,
            [Outcome::Parked, Outcome::Parked, Outcome::Dropped, Outcome::Accepted]
        );
        assert!(
            parked.contains("a stage panicked: cannot take this") && parked.contains("\"attempts\":2"),
            "{parked}"
        );
        assert!(parked.contains("the sink panicked"), "{parked}");
    }

    #[test]
    fn the_parts_of_a_split_event_are_numbered_and_acknowledged_together() {
        let (seen, acks, parked) = run(&[(1, "[{\"a\":1},{\"bad\":1},{\"a\":2}]"), (1, "[{\"a\":1},{\"a\":2}]")]);
        assert_eq!(
            outcome(&acks, 1),
            Outcome::Parked,
            "one part that panics parks the whole: {parked}"
        );
        assert_eq!(seen, ["1-2-1 {\"a\":1}", "1-2-2 {\"a\":2}"]);
        assert_eq!(outcome(&acks, 2), Outcome::Accepted);
    }
}
