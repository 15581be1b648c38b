//! The engine: sources on their threads, lanes on theirs, and the order in which everything starts and ends.
//!
//! ```text
//! source thread ──claim──▶ Feed ──hash(order key)──▶ lane thread: stages, then sinks ──▶ nginx
//!        ▲                                              │
//!        └────────────── Handle (worst outcome) ◀───────┘──▶ parking lot
//! ```
//!
//! Nothing between source and lane is bounded by itself: [`Credit`] bounds it all at the entry. A stop goes the same way as the
//! events: sources stop claiming, what is in flight gets its time, then lanes end, then the parking lot.

pub mod join;
pub mod lane;
pub mod order;
pub mod park;
pub mod pipeline;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::config::Config;
use crate::credit::Credit;
use crate::engine::lane::{Job, Lane};
use crate::engine::order::OrderKey;
use crate::engine::park::{ParkingLot, Reason};
use crate::engine::pipeline::{Pipeline, SinkSlot, StageSlot};
use crate::event::Event;
use crate::finalizer::Handle;
use crate::ops::admin;
use crate::ops::metrics::{Component, Labels, Metrics, Source as Gauges};
use crate::sink::RunningSink;
use crate::source::{Context, Source};
use crate::stage::Order;

/// How often each lane says that it lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A lane that has been silent for so long is stuck.
const BEAT_LIMIT: Duration = Duration::from_secs(5);
/// How often a drain looks whether it is over, where no event tells.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// Why a worker could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("{} is in use by another worker", .0.display())]
    Locked(PathBuf),
    #[error("source {name}: {error}")]
    Source { name: String, error: io::Error },
    #[error("lane {0} has died")]
    Lane(usize),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Io { what, error }
}

/// How far a stop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    /// Claim nothing more; finish what is in flight.
    Draining,
    /// Let go of what is in flight.
    Abandoning,
}

/// How everybody hears that the worker is to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    pub async fn requested(&mut self) {
        self.reached(Phase::Draining).await;
    }

    /// The time for draining is over.
    pub async fn abandoned(&mut self) {
        self.reached(Phase::Abandoning).await;
    }

    async fn reached(&mut self, phase: Phase) {
        // If the sender is gone, so is the worker.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

/// A source's way to the lanes.
#[derive(Clone)]
pub struct Feed {
    /// All that read from this source.
    pipelines: Vec<Arc<Pipeline>>,
    lanes: Vec<mpsc::UnboundedSender<Job>>,
    credit: Arc<Credit>,
    parking: ParkingLot,
    metrics: Arc<Component>,
    gauges: Arc<Gauges>,
}

impl Feed {
    pub fn credit(&self) -> &Arc<Credit> {
        &self.credit
    }

    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Hands the event to every pipeline of the source.
    pub fn emit(&self, event: Event, handle: Handle) {
        self.metrics.receive();
        if let [only] = self.pipelines.as_slice() {
            self.send(only, event, handle);
        } else {
            for pipeline in &self.pipelines {
                self.send(pipeline, event.clone(), handle.share());
            }
            handle.resolve(crate::finalizer::Outcome::Accepted);
        }
        self.metrics.send(1);
    }

    /// For what is not even an event.
    pub fn park(&self, event: &Event, reason: &Reason, handle: Handle) {
        self.metrics.receive();
        self.parking.park("", event, reason, handle);
        self.metrics.park();
    }

    /// Until nothing of this source is in flight, or nobody wants to wait any more.
    pub async fn drained(&self, stop: &mut Stop) {
        let empty = async {
            while self.credit.in_flight() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        tokio::select! {
            () = empty => {}
            () = stop.abandoned() => {}
        }
    }

    fn send(&self, pipeline: &Arc<Pipeline>, event: Event, handle: Handle) {
        let key = OrderKey::of(&event, &pipeline.order);
        let lane = &self.lanes[key.lane(self.lanes.len())];
        // A lane that has died drops the job, and so releases the event.
        let _ = lane.send(Job {
            pipeline: Arc::clone(pipeline),
            event,
            key,
            handle,
        });
    }
}

/// Signs of life of all lanes.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds since `start`. Independent of each other, so relaxed.
    beats: Vec<AtomicU64>,
}

impl Pulse {
    fn new(lanes: usize) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            beats: (0..lanes).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    fn beat(&self, lane: usize) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beats[lane].store(now, Ordering::Relaxed);
    }

    /// Lanes that have not shown a sign of life lately.
    pub fn silent(&self) -> Vec<usize> {
        let age = |beat: &AtomicU64| {
            self.start
                .elapsed()
                .saturating_sub(Duration::from_millis(beat.load(Ordering::Relaxed)))
        };
        (0..self.beats.len())
            .filter(|&lane| age(&self.beats[lane]) > BEAT_LIMIT)
            .collect()
    }
}

/// What a thread of the worker has to say at its end.
enum Ended {
    Source { name: String, result: io::Result<()> },
    Lane(usize),
}

/// Runs the worker until its sources end or a signal comes. `Ok` also after a drain that ran out of time.
pub fn run(config: Config) -> Result<(), Error> {
    let _lock = lock_state_dir(&config.state_dir)?;
    let metrics = Arc::<Metrics>::default();
    let (parking, parking_thread) = ParkingLot::open(&config.park_path, Arc::clone(&metrics))
        .map_err(io_error(format!("cannot open {}", config.park_path.display())))?;
    let sinks = start_sinks(&config, &metrics)?;
    let (phase, stop) = watch::channel(Phase::Running);
    let stop = Stop(stop);
    let (ended, mut endings) = mpsc::unbounded_channel();
    let pulse = Pulse::new(config.lanes);

    let mut lanes = Vec::with_capacity(config.lanes);
    let mut lane_threads = Vec::with_capacity(config.lanes);
    for number in 0..config.lanes {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let sinks = sinks.clone();
        let (parking, metrics) = (parking.clone(), Arc::clone(&metrics));
        let (stop, pulse) = (stop.clone(), Arc::clone(&pulse));
        let body = move || {
            run_lane(
                || Lane::new(&sinks, parking, metrics),
                receiver,
                stop,
                || pulse.beat(number),
            )
        };
        lane_threads.push(spawn(
            format!("lane-{number}"),
            ended.clone(),
            Ended::Lane(number),
            body,
        )?);
        lanes.push(jobs);
    }
    drop(sinks);

    let Config {
        sources,
        pipelines,
        stages,
        ..
    } = &config;
    tracing::info!(
        "{} source(s), {} pipeline(s), {} stage(s), {} lane(s)",
        sources.len(),
        pipelines.len(),
        stages.len(),
        config.lanes
    );
    let built = build_pipelines(&config, &metrics);
    let Config {
        sources,
        state_dir,
        drain,
        admin,
        ..
    } = config;
    let source_count = sources.len();
    for (index, named) in sources.into_iter().enumerate() {
        let limits = named.component.limits();
        let credit = Credit::new(limits.events, limits.bytes);
        let gauges = metrics.source(&named.name, &credit);
        let labels = Labels {
            kind: "source",
            component_type: named.component_type,
            id: named.name.clone(),
            pipeline: String::new(),
        };
        let of_source = built.iter().filter(|(source, _)| *source == index);
        let feed = Feed {
            pipelines: of_source.map(|(_, pipeline)| Arc::clone(pipeline)).collect(),
            lanes: lanes.clone(),
            credit,
            parking: parking.clone(),
            metrics: metrics.component(labels),
            gauges,
        };
        let context = Context {
            name: named.name.clone(),
            state_dir: state_dir.clone(),
            feed,
            stop: stop.clone(),
        };
        start_source(named.name, named.component, context, ended.clone())?;
    }
    drop((lanes, parking, ended));

    let runtime = runtime().map_err(io_error("cannot start"))?;
    let supervise = async {
        if let Some(address) = admin {
            let listener = crate::server::bind(address).await.map_err(io_error("admin"))?;
            tracing::info!("admin: http://{address}/metrics /ready /health");
            tokio::task::spawn_local(admin::serve(
                listener,
                stop.clone(),
                Arc::clone(&metrics),
                Arc::clone(&pulse),
            ));
        }
        supervise(source_count, &mut endings, &phase, drain).await
    };
    let result = LocalSet::new().block_on(&runtime, supervise);

    // Sources are gone, and with them all senders of jobs, unless one is stuck beyond the drain: then so may lanes be.
    if result.is_err() {
        phase.send_replace(Phase::Abandoning);
    }
    let deadline = Instant::now() + BEAT_LIMIT;
    for thread in lane_threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(DRAIN_POLL);
        }
    }
    while !parking_thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(DRAIN_POLL);
    }
    result
}

/// Waits for the sources, and for whatever ends them.
async fn supervise(
    source_count: usize,
    endings: &mut mpsc::UnboundedReceiver<Ended>,
    phase: &watch::Sender<Phase>,
    drain: Duration,
) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("signals"))?;
    let mut running = source_count;
    let mut result = Ok(());
    let mut deadline = None;
    while running > 0 {
        let time_is_up = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let signalled = tokio::select! {
            ending = endings.recv() => match ending {
                Some(Ended::Source { result: Ok(()), .. }) => { running -= 1; false }
                Some(Ended::Source { name, result: Err(error) }) => {
                    running -= 1;
                    tracing::error!("source {name}: {error}");
                    result = result.and(Err(Error::Source { name, error }));
                    true
                }
                Some(Ended::Lane(number)) => {
                    // Its events will never be settled.
                    phase.send_replace(Phase::Abandoning);
                    result = result.and(Err(Error::Lane(number)));
                    false
                }
                None => false,
            },
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            () = time_is_up => {
                tracing::warn!("not everything could be finished in {drain:?}; the rest comes again where the source allows it");
                phase.send_replace(Phase::Abandoning);
                deadline = None;
                false
            }
        };
        if signalled && *phase.borrow() == Phase::Running {
            tracing::info!("stopping: finishing what is in flight, for at most {drain:?}");
            phase.send_replace(Phase::Draining);
            deadline = Some(tokio::time::Instant::now() + drain);
        } else if signalled {
            phase.send_replace(Phase::Abandoning);
        }
    }
    tracing::info!("stopped");
    result
}

/// A worker that finds another one's lock would deliver everything twice.
fn lock_state_dir(directory: &Path) -> Result<File, Error> {
    let failed = |error| Error::Io {
        what: format!("state_dir {}", directory.display()),
        error,
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn start_sinks(config: &Config, metrics: &Metrics) -> Result<Vec<Arc<dyn RunningSink>>, Error> {
    let start = |sink: &crate::config::Named<Arc<dyn crate::sink::Sink>>| {
        sink.component
            .start(&sink.name, metrics)
            .map_err(io_error(format!("sink {}", sink.name)))
    };
    config.sinks.iter().map(start).collect()
}

/// Pipelines with the index of their source.
fn build_pipelines(config: &Config, metrics: &Metrics) -> Vec<(usize, Arc<Pipeline>)> {
    let build = |(index, spec): (usize, &crate::config::PipelineSpec)| {
        let component = |kind, component_type, id: &str| {
            metrics.component(Labels {
                kind,
                component_type,
                id: id.to_owned(),
                pipeline: spec.name.clone(),
            })
        };
        let stages: Vec<StageSlot> = spec
            .stages
            .iter()
            .map(|&stage| &config.stages[stage])
            .map(|named| StageSlot {
                name: named.name.clone(),
                stage: Arc::clone(&named.component),
                metrics: component("stage", named.component_type, &named.name),
            })
            .collect();
        let sinks = spec
            .sinks
            .iter()
            .map(|&sink| (sink, &config.sinks[sink]))
            .map(|(sink, named)| SinkSlot {
                name: named.name.clone(),
                sink,
                required: named.component.is_required(),
                metrics: component("sink", named.component_type, &named.name),
            })
            .collect();
        let order = stages
            .iter()
            .find_map(|slot| slot.stage.order())
            .unwrap_or(Order::Source);
        (
            spec.source,
            Arc::new(Pipeline {
                name: spec.name.clone(),
                index,
                stages,
                sinks,
                order,
            }),
        )
    };
    config.pipelines.iter().enumerate().map(build).collect()
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Starts a thread that reports its end, also when it panics.
fn spawn(
    name: String,
    ended: mpsc::UnboundedSender<Ended>,
    ending: Ended,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let failed = io_error(format!("cannot start the thread {name}"));
    let report = Report(Some((ended, ending)));
    let run = move || {
        let mut report = report;
        let result = body();
        match (&mut report.0, result) {
            (Some((_, Ended::Source { result: reported, .. })), result) => *reported = result,
            // A lane ends well when all sources have let go of it, which they may do before they report their own end.
            (Some((_, Ended::Lane(_))), Ok(())) => report.0 = None,
            _ => {}
        }
    };
    std::thread::Builder::new().name(name).spawn(run).map_err(failed)
}

/// Sends its message when dropped, that is, whatever happens.
struct Report(Option<(mpsc::UnboundedSender<Ended>, Ended)>);

impl Drop for Report {
    fn drop(&mut self) {
        if let Some((ended, ending)) = self.0.take() {
            let _ = ended.send(ending);
        }
    }
}

fn start_source(
    name: String,
    source: Box<dyn Source>,
    context: Context,
    ended: mpsc::UnboundedSender<Ended>,
) -> Result<(), Error> {
    let panicked = Ended::Source {
        name: name.clone(),
        result: Err(io::Error::other("its thread panicked")),
    };
    let body = move || LocalSet::new().block_on(&runtime()?, source.run(context));
    spawn(format!("source-{name}"), ended, panicked, body).map(drop)
}

/// A lane's thread.
fn run_lane(
    open: impl FnOnce() -> std::rc::Rc<Lane>,
    jobs: mpsc::UnboundedReceiver<Job>,
    mut stop: Stop,
    beat: impl Fn(),
) -> io::Result<()> {
    let runtime = runtime()?;
    let local = LocalSet::new();
    local.spawn_local(open().run(jobs));
    runtime.block_on(async {
        let beating = async {
            loop {
                beat();
                tokio::time::sleep(BEAT_INTERVAL).await;
            }
        };
        tokio::select! {
            // Ends when all senders of jobs are gone and all deliveries are done.
            () = local => {}
            () = stop.abandoned() => {}
            () = beating => {}
        }
    });
    Ok(())
}
