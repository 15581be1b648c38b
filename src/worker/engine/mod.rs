//! The engine: lanes on their threads, sources and couriers beside them, and the order in which everything starts and ends.
//!
//! ```text
//! source ──claim──▶ Feed ──hash(order key)──▶ lane: stages, then sinks ──▶ nginx
//!    ▲                                          │
//!    └──────────── Handle (worst outcome) ◀─────┘──▶ parking lot
//! ```
//!
//! Nothing between source and lane is bounded by itself: [`Credit`] bounds it all at the entry. A stop goes the same way as the
//! events: sources stop claiming, what is in flight gets its time, then lanes end, then the parking lot.

pub mod crew;
pub mod join;
pub mod lane;
pub mod order;
pub mod park;
pub mod pipeline;
pub mod settlement;
pub mod turn;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::LocalSet;

use crate::config::{self, Config};
use crate::credit::Credit;
use crate::engine::crew::Crews;
use crate::engine::lane::{Job, Lane};
use crate::engine::order::OrderKey;
use crate::engine::park::{ParkingLot, Reason};
use crate::engine::pipeline::{Account, DARK_BACKLOG, Pipeline, SinkSlot, StageSlot};
use crate::event::Event;
use crate::finalizer::{AckTo, Handle};
use crate::ops::admin;
use crate::ops::alert::{self, Alert};
use crate::ops::metrics::{Component, Labels, Metrics, Source as Gauges};
use crate::ops::statsd::Statsd;
use crate::ops::watchdog::{Beat, Watchdog};
use crate::sink::RunningSink;
use crate::source::{Context, Source};
use crate::stage::Order;
use crate::switch::Switches;

/// A thread that has not ended so long after everything it waits for has, is stuck.
const STUCK: Duration = Duration::from_secs(5);
/// When all sources are done, dark pipelines and optional sinks have so much longer.
const GRACE: Duration = Duration::from_secs(1);
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
    #[error("the configuration that ran is no longer valid: {0} errors")]
    Config(usize),
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
    /// As the configuration has it.
    source: Arc<str>,
    /// All that read from this source.
    pipelines: Vec<Arc<Pipeline>>,
    lanes: Vec<mpsc::UnboundedSender<Job>>,
    credit: Arc<Credit>,
    parking: ParkingLot,
    metrics: Arc<Component>,
    gauges: Arc<Gauges>,
    recoveries: watch::Receiver<u64>,
}

impl Feed {
    pub fn credit(&self) -> &Arc<Credit> {
        &self.credit
    }

    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Events that the queue has forgotten before they were read here. Nobody can bring them back.
    pub fn note_missed(&self, source: &str, events: u64) {
        if events > 0 {
            tracing::error!("source {source}: {events} events were trimmed away before they were read");
            self.gauges.count_missed(events);
        }
    }

    /// Counts how often a node has come back. What it had in memory may be gone.
    pub fn recoveries(&self) -> watch::Receiver<u64> {
        self.recoveries.clone()
    }

    /// Hands the event to every pipeline of the source.
    pub fn emit(&self, event: Event, handle: Handle) {
        self.metrics.receive();
        self.metrics.tap.show(&event);
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

    /// As [`Feed::emit`], unless the source itself knows why the event cannot even begin: then that is why it is parked.
    pub fn emit_usable(&self, event: Event, unusable: Option<String>, attempts: u32, handle: Handle) {
        let Some(text) = unusable else {
            return self.emit(event, handle);
        };
        let component = "source".to_owned();
        let reason = Reason {
            component,
            text,
            attempts,
        };
        self.park(&event, &reason, handle);
    }

    /// For what is not even an event.
    pub fn park(&self, event: &Event, reason: &Reason, handle: Handle) {
        self.metrics.receive();
        self.parking.park(&self.source, "", event, reason, handle);
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
        let handle = match &pipeline.dark {
            None => handle,
            // What happens in the dark concerns nobody: the source hears at once that this share is done.
            Some(room) => {
                handle.resolve(crate::finalizer::Outcome::Accepted);
                match Arc::clone(room).try_acquire_owned() {
                    Ok(room) => Handle::new(0, AckTo::Dark(room), None),
                    Err(_) => return self.metrics.miss("dark_backlog_full"),
                }
            }
        };
        let key = OrderKey::of(&event, &pipeline.order);
        let lane = &self.lanes[key.lane(self.lanes.len())];
        let turn = |(index, slot): (usize, &SinkSlot)| Some((index, slot.running.take_turn()?));
        let turns = pipeline.sinks.iter().enumerate().filter_map(turn).collect();
        // A lane that has died drops the job, and so releases the event.
        let _ = lane.send(Job {
            pipeline: Arc::clone(pipeline),
            event,
            key,
            handle,
            turns,
        });
    }
}

/// What a thread of the worker has to say at its end.
enum Ended {
    Source { name: String, result: io::Result<()> },
    Lane(usize),
}

/// Runs the worker until its sources end or a signal comes. `Ok` also after a drain that ran out of time.
///
/// SIGHUP reads `path` again. If the file is good, the old topology finishes what is in flight and the new one starts; if it is not, or the new
/// one cannot start, the old one goes on.
pub fn run(path: &Path, config: Config) -> Result<(), Error> {
    run_reloading(Some(path), config)
}

/// Runs until its sources end. There is nothing to reload: a SIGHUP, as from a terminal that is closed, is a signal to stop.
pub fn run_once(config: Config) -> Result<(), Error> {
    run_reloading(None, config)
}

fn run_reloading(path: Option<&Path>, config: Config) -> Result<(), Error> {
    let mut lock = lock_state_dir(&config.state_dir)?;
    let metrics = Arc::<Metrics>::default();
    let runtime = runtime().map_err(io_error("cannot start"))?;
    let mut signals = {
        let _context = runtime.enter();
        Signals::listen().map_err(io_error("signals"))?
    };
    let mut config = config;
    let mut running = config.text.clone();
    let mut topology = Topology::start(config, &metrics)?;
    loop {
        let local = LocalSet::new();
        let ending = local.block_on(&runtime, topology.supervise(&mut signals, path));
        drop(local);
        topology.finish(ending.is_err());
        config = match ending? {
            None => return Ok(()),
            Some(next) => next,
        };
        let text = config.text.clone();
        let started = switch_lock(&mut lock, &config.state_dir).and_then(|()| Topology::start(config, &metrics));
        topology = match started {
            Ok(topology) => {
                metrics.reloaded(true);
                running = text;
                topology
            }
            Err(error) => {
                metrics.reloaded(false);
                tracing::error!("the new configuration does not start: {error}; going on with the old one");
                let old = config::parse(&running).map_err(|problems| Error::Config(problems.len()))?;
                switch_lock(&mut lock, &old.state_dir)?;
                Topology::start(old, &metrics)?
            }
        };
        tracing::info!("reloaded {}", path.unwrap_or(Path::new("")).display());
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// All that runs for one configuration.
struct Topology {
    metrics: Arc<Metrics>,
    phase: watch::Sender<Phase>,
    stop: Stop,
    sources_running: usize,
    endings: mpsc::UnboundedReceiver<Ended>,
    lanes: Vec<JoinHandle<()>>,
    parking: JoinHandle<()>,
    watchdog: Arc<Watchdog>,
    tasks: Option<Tasks>,
    drain: Duration,
}

/// What the supervisor does beside waiting.
struct Tasks {
    admin: Option<std::net::SocketAddr>,
    statsd: Option<Statsd>,
    alerts: Vec<Alert>,
    switches: Arc<Switches>,
}

impl Topology {
    fn start(config: Config, metrics: &Arc<Metrics>) -> Result<Self, Error> {
        let listens = config.sources.iter().filter_map(|named| named.component.listens());
        crate::server::hold_only(&listens.chain(config.admin).collect::<Vec<_>>());
        let Config {
            sources,
            pipelines,
            stages,
            ..
        } = &config;
        let (sources, pipelines, stages) = (sources.len(), pipelines.len(), stages.len());
        tracing::info!(
            "{sources} source(s), {pipelines} pipeline(s), {stages} stage(s), {} lane(s)",
            config.lanes
        );
        let (parking, parking_thread) = ParkingLot::open(&config.park_path, Arc::clone(metrics))
            .map_err(io_error(format!("cannot open {}", config.park_path.display())))?;
        let (phase, stop) = watch::channel(Phase::Running);
        let stop = Stop(stop);
        let (ended, endings) = mpsc::unbounded_channel();
        let watchdog = Watchdog::new();
        let mut crews = Crews::new(config.lanes);
        let sinks = start_sinks(&config, metrics, &watchdog, &mut crews)?;
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..config.lanes).map(|_| mpsc::unbounded_channel()).unzip();

        let built = build_pipelines(&config, metrics, &sinks);
        let recoveries = metrics.recoveries();
        let Config {
            sources,
            state_dir,
            drain,
            admin,
            statsd,
            alerts,
            switches,
            ..
        } = config;
        let sources_running = sources.len();
        let mut blocking = Vec::new();
        for (index, named) in sources.into_iter().enumerate() {
            let limits = named.component.limits();
            let credit = Credit::new(limits.events, limits.bytes);
            let gauges = metrics.source(&named.name, &credit, named.component.starts_ready());
            let labels = Labels {
                kind: "source",
                component_type: named.component_type,
                id: named.name.clone(),
                pipeline: String::new(),
            };
            let of_source = built.iter().filter(|(source, _)| *source == index);
            let feed = Feed {
                source: named.name.as_str().into(),
                pipelines: of_source.map(|(_, pipeline)| Arc::clone(pipeline)).collect(),
                lanes: lanes.clone(),
                credit,
                parking: parking.clone(),
                metrics: metrics.component(labels),
                gauges,
                recoveries: recoveries.clone(),
            };
            let context = Context {
                name: named.name.clone(),
                state_dir: state_dir.clone(),
                feed,
                stop: stop.clone(),
            };
            let beat = watchdog.watch(format!("source-{}", named.name));
            if named.component.may_block() {
                blocking.push((named.component, context, beat));
            } else {
                crews.take_turn().source(named.component, context, ended.clone(), beat);
            }
        }
        let mut lane_threads = Vec::with_capacity(receivers.len());
        for ((number, jobs), crew) in receivers.into_iter().enumerate().zip(crews.into_crews()) {
            let (sinks, parking, metrics) = (sinks.clone(), parking.clone(), Arc::clone(metrics));
            let (stop, beat) = (stop.clone(), watchdog.watch(format!("lane-{number}")));
            // Couriers end when nobody can open their sink any more.
            let open = move || Lane::new(&sinks, parking, metrics);
            let body = move || crew.run(open, jobs, stop, &beat);
            let report = Report::of_lane(number, ended.clone());
            lane_threads.push(spawn(format!("lane-{number}"), report, body)?);
        }
        for (source, context, beat) in blocking {
            start_source(source, context, ended.clone(), beat)?;
        }
        Ok(Self {
            metrics: Arc::clone(metrics),
            phase,
            stop,
            sources_running,
            endings,
            lanes: lane_threads,
            parking: parking_thread,
            watchdog,
            tasks: Some(Tasks {
                admin,
                statsd,
                alerts,
                switches,
            }),
            drain,
        })
    }

    /// Until all sources have ended. The answer is the configuration to go on with, if there is one.
    async fn supervise(&mut self, signals: &mut Signals, path: Option<&Path>) -> Result<Option<Config>, Error> {
        let tasks = self.start_tasks().await;
        let mut running = self.sources_running;
        let mut result = tasks.map(|()| None);
        if result.is_err() {
            self.phase.send_replace(Phase::Draining);
        }
        let mut deadline = None;
        while running > 0 {
            let time_is_up = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let signalled = tokio::select! {
                ending = self.endings.recv() => match ending {
                    Some(Ended::Source { result: Ok(()), .. }) => { running -= 1; false }
                    Some(Ended::Source { name, result: Err(error) }) => {
                        running -= 1;
                        tracing::error!("source {name}: {error}");
                        result = result.and(Err(Error::Source { name, error }));
                        true
                    }
                    Some(Ended::Lane(number)) => {
                        // Its events will never be settled.
                        self.phase.send_replace(Phase::Abandoning);
                        result = result.and(Err(Error::Lane(number)));
                        false
                    }
                    None => false,
                },
                _ = signals.terminate.recv() => {
                    // Nobody comes after this.
                    crate::server::hold_only(&[]);
                    true
                }
                _ = signals.interrupt.recv() => {
                    crate::server::hold_only(&[]);
                    true
                }
                _ = signals.hangup.recv() => match path {
                    None => true,
                    Some(path) => {
                        let next = (*self.phase.borrow() == Phase::Running).then(|| reread(path, &self.metrics)).flatten();
                        let is_good = next.is_some();
                        if is_good {
                            result = result.map(|_| next);
                        }
                        is_good
                    }
                },
                () = time_is_up => {
                    let drain = self.drain;
                    tracing::warn!("not everything could be finished in {drain:?}; the rest comes again where the source allows it");
                    self.phase.send_replace(Phase::Abandoning);
                    deadline = None;
                    false
                }
            };
            if signalled && *self.phase.borrow() == Phase::Running {
                tracing::info!("stopping: finishing what is in flight, for at most {:?}", self.drain);
                self.phase.send_replace(Phase::Draining);
                deadline = Some(tokio::time::Instant::now() + self.drain);
            } else if signalled {
                // Whoever asks twice wants to go, and not to reload.
                result = result.map(|_| None);
                self.phase.send_replace(Phase::Abandoning);
            }
        }
        if matches!(result, Ok(None)) {
            tracing::info!("stopped");
        }
        result
    }

    async fn start_tasks(&mut self) -> Result<(), Error> {
        let Some(tasks) = self.tasks.take() else { return Ok(()) };
        if let Some(address) = tasks.admin {
            let listener = crate::server::bind(address).await.map_err(io_error("admin"))?;
            tracing::info!("admin: http://{address}/metrics /ready /health");
            let watchdog = Arc::clone(&self.watchdog);
            let desk = admin::Desk::new(
                self.stop.clone(),
                Arc::clone(&self.metrics),
                watchdog,
                tasks.switches.clone(),
            );
            tokio::task::spawn_local(admin::serve(listener, self.stop.clone(), desk));
        }
        if let Some(statsd) = tasks.statsd {
            tokio::task::spawn_local(statsd.run(Arc::clone(&self.metrics)));
        }
        tokio::task::spawn_local(alert::run(
            tasks.alerts,
            Arc::clone(&self.metrics),
            Arc::clone(&self.watchdog),
        ));
        tokio::task::spawn_local(tasks.switches.follow());
        tokio::task::spawn_local(Arc::clone(&self.watchdog).run());
        Ok(())
    }

    /// Waits for lanes and the parking lot.
    fn finish(&mut self, has_failed: bool) {
        // Sources are gone, and with them all senders of jobs, unless one is stuck beyond the drain: then so may lanes be.
        if has_failed {
            self.phase.send_replace(Phase::Abandoning);
        }
        let start = Instant::now();
        let deadline = start + STUCK;
        let is_running = |thread: &JoinHandle<()>| !thread.is_finished();
        while self.lanes.iter().any(is_running) || is_running(&self.parking) {
            if Instant::now() > deadline {
                tracing::error!("a thread does not end; leaving it behind");
                return;
            }
            // What is left now is for sinks that nobody waits for.
            if start.elapsed() > GRACE && *self.phase.borrow() < Phase::Abandoning {
                self.phase.send_replace(Phase::Abandoning);
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }
}

/// A configuration that can replace the running one.
fn reread(path: &Path, metrics: &Metrics) -> Option<Config> {
    match config::load(path) {
        Ok(config) => {
            tracing::info!("reloading {}", path.display());
            Some(config)
        }
        Err(error) => {
            metrics.reloaded(false);
            tracing::error!("not reloaded, going on as before: {error}");
            None
        }
    }
}

/// A worker that finds another one's lock would deliver everything twice.
fn lock_state_dir(directory: &Path) -> Result<(PathBuf, File), Error> {
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
        Ok(()) => Ok((directory.to_owned(), file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// A reload may move to another directory.
fn switch_lock(lock: &mut (PathBuf, File), directory: &Path) -> Result<(), Error> {
    if lock.0 != directory {
        *lock = lock_state_dir(directory)?;
    }
    Ok(())
}

fn start_sinks(
    config: &Config,
    metrics: &Metrics,
    watchdog: &Arc<Watchdog>,
    crews: &mut Crews,
) -> Result<Vec<Arc<dyn RunningSink>>, Error> {
    let start = |(index, sink): (usize, &config::Named<Arc<dyn crate::sink::Sink>>)| {
        let mut scene = crate::sink::Scene {
            name: &sink.name,
            metrics,
            watchdog,
            has_ids: has_ids(config, index),
            crews: &mut *crews,
        };
        sink.component
            .start(&mut scene)
            .map_err(io_error(format!("sink {}", sink.name)))
    };
    config.sinks.iter().enumerate().map(start).collect()
}

/// Does every event that comes to this sink have an id?
fn has_ids(config: &Config, sink: usize) -> bool {
    let mut feeding = config.pipelines.iter().filter(|spec| spec.sinks.contains(&sink));
    feeding.all(|spec| config.sources[spec.source].component.gives_ids())
}

/// Pipelines with the index of their source.
fn build_pipelines(config: &Config, metrics: &Metrics, sinks: &[Arc<dyn RunningSink>]) -> Vec<(usize, Arc<Pipeline>)> {
    let build = |(index, spec): (usize, &config::PipelineSpec)| {
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
        let slots: Vec<SinkSlot> = spec
            .sinks
            .iter()
            .map(|&sink| (sink, &config.sinks[sink]))
            .map(|(sink, named)| SinkSlot {
                name: named.name.clone(),
                sink,
                running: Arc::clone(&sinks[sink]),
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
                account: Account::of(&config.sources[spec.source].name, &spec.name, &slots),
                sinks: slots,
                order,
                prefix: spec.prefix.clone(),
                dark: spec.is_dark.then(|| Arc::new(Semaphore::new(DARK_BACKLOG))),
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
    report: Report,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    let failed = io_error(format!("cannot start the thread {name}"));
    let run = move || {
        let report = report;
        report.tell(body());
    };
    std::thread::Builder::new().name(name).spawn(run).map_err(failed)
}

/// Sends its message when dropped, that is, whatever happens.
struct Report(Option<(mpsc::UnboundedSender<Ended>, Ended)>);

impl Report {
    fn of_lane(number: usize, ended: mpsc::UnboundedSender<Ended>) -> Self {
        Self(Some((ended, Ended::Lane(number))))
    }

    fn of_source(name: String, ended: mpsc::UnboundedSender<Ended>) -> Self {
        let result = Err(io::Error::other("it panicked"));
        Self(Some((ended, Ended::Source { name, result })))
    }

    /// It has come to its end by itself.
    fn tell(mut self, result: io::Result<()>) {
        match (&mut self.0, result) {
            (Some((_, Ended::Source { result: reported, .. })), result) => *reported = result,
            // A lane ends well when all sources have let go of it, which they may do before they report their own end.
            (Some((_, Ended::Lane(_))), Ok(())) => self.0 = None,
            _ => {}
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some((ended, ending)) = self.0.take() {
            let _ = ended.send(ending);
        }
    }
}

/// A source with a thread of its own.
fn start_source(
    source: Box<dyn Source>,
    context: Context,
    ended: mpsc::UnboundedSender<Ended>,
    beat: Beat,
) -> Result<(), Error> {
    let report = Report::of_source(context.name.clone(), ended);
    let name = format!("source-{}", context.name);
    let body = move || {
        LocalSet::new().block_on(&runtime()?, async {
            tokio::select! {
                result = source.run(context) => result,
                () = beat.keep() => Ok(()),
            }
        })
    };
    spawn(name, report, body).map(drop)
}
