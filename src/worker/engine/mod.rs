//! The engine: lanes, sources and sinks' publishers on their threads, and the order of start and stop.
//!
//! ```text
//! source ──claim──▶ Feed ──hash(order key)──▶ lane: stages, then sinks ──▶ nginx
//!    ▲                                          │
//!    └──────────── Handle (worst outcome) ◀─────┘──▶ dead letters
//! ```
//!
//! No queue between source and lane has a bound of its own: [`Credit`] bounds them all at the entry. A stop follows the
//! events: sources stop claiming, events in flight get time to finish, then lanes end, then the dead letters.
//!
//! A reload starts the new topology beside the old one. Each new source begins when the old source of the same name has
//! ended: no source waits for another, and each keeps its order. Events in flight that a source cannot deliver, because
//! a node is down, are given back to its queue and claimed again by its successor; the old topology's fence keeps it
//! from sending them afterwards.

pub mod dead_letter;
pub mod feed;
pub mod lane;
mod lane_thread;
pub mod order;
pub mod pipeline;
mod report;
pub mod sequencer;
pub mod settlement;
pub mod spawn;
pub mod stop;
mod succession;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::config::{self, Config};
use crate::credit::Credit;
use crate::engine::dead_letter::DeadLetters;
use crate::engine::feed::{DRAIN_POLL, Feed};
use crate::engine::lane::Lane;
use crate::engine::lane_thread::{LaneThreads, Spawner, runtime};
use crate::engine::pipeline::{DARK_BACKLOG, Pipeline, SinkSlot, StageSlot, account};
use crate::engine::report::{Ended, Report};
use crate::engine::stop::{Phase, Stop};
use crate::engine::succession::{Predecessors, Succeeding};
use crate::fence::Fence;
use crate::ops::admin;
use crate::ops::alert::{self, Alert};
use crate::ops::metrics::{Labels, Metrics, Node};
use crate::ops::parked::Parked;
use crate::ops::statsd::Statsd;
use crate::ops::watchdog::{Beat, Watchdog};
use crate::sink::RunningSink;
use crate::source::{Context, Guarantee, Source};
use crate::stage::Order;
use crate::switch::live::Switches;

/// A thread still running this long after everything it waits for has ended is stuck.
const STUCK: Duration = Duration::from_secs(5);
/// Extra time for dark pipelines and optional sinks once all sources have ended.
const GRACE: Duration = Duration::from_secs(1);
/// At a reload, a source without progress for this long while a node is down gives back its events in flight.
const HELD_UP_BY_NODE: Duration = Duration::from_millis(100);
/// The same if no node is known to be down, and at a stop, where no successor in this process continues.
const HELD_UP: Duration = Duration::from_secs(1);
/// Time to write the last responses.
const FLUSH: Duration = Duration::from_secs(1);

/// A worker could not start or had to end.
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

/// The lock on a state directory.
type Lock = Arc<(PathBuf, File)>;

/// Runs the worker until its sources end or a signal comes. Also `Ok` after a drain that ran out of time.
///
/// SIGHUP reads `path` again. If the file is valid and the new topology starts, the old one finishes its events in
/// flight and ends; else the old one continues.
pub fn run(path: &Path, config: Config) -> Result<(), Error> {
    run_reloading(Some(path), config)
}

/// Runs until its sources end. Without a file to reload, SIGHUP, as from a closed terminal, means stop.
pub fn run_once(config: Config) -> Result<(), Error> {
    run_reloading(None, config)
}

fn run_reloading(path: Option<&Path>, config: Config) -> Result<(), Error> {
    let metrics = Arc::<Metrics>::default();
    let runtime = runtime().map_err(io_error("cannot start"))?;
    let result = LocalSet::new().block_on(&runtime, async {
        let signals = Signals::listen().map_err(io_error("signals"))?;
        let lock = Arc::new(lock_state_dir(&config.state_dir)?);
        let first = Topology::start(config, lock, &metrics, Vec::new())?;
        let mut worker = Worker {
            path,
            metrics,
            current: first,
            retiring: Vec::new(),
            is_ending: false,
            result: Ok(()),
        };
        worker.supervise(signals).await;
        worker.result
    });
    // Do not wait for a hanging name resolution.
    runtime.shutdown_background();
    result
}

/// All topologies of the process: one, and during a reload also those about to end.
struct Worker<'p> {
    /// `None`: no reload.
    path: Option<&'p Path>,
    metrics: Arc<Metrics>,
    current: Topology,
    retiring: Vec<Topology>,
    is_ending: bool,
    result: Result<(), Error>,
}

impl Worker<'_> {
    /// Runs until everything has ended.
    async fn supervise(&mut self, mut signals: Signals) {
        if let Err(error) = self.current.start_tasks(self.path) {
            self.fail(error);
        }
        loop {
            let is_draining = self.is_ending || !self.retiring.is_empty();
            let poll = async {
                match is_draining {
                    true => tokio::time::sleep(DRAIN_POLL).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.current.endings.recv() => self.note(ended, None),
                _ = signals.terminate.recv() => self.stop(),
                _ = signals.interrupt.recv() => self.stop(),
                _ = signals.hangup.recv() => self.reload(),
                () = poll => {}
            }
            for index in 0..self.retiring.len() {
                while let Ok(ended) = self.retiring[index].endings.try_recv() {
                    self.note(ended, Some(index));
                }
            }
            self.retiring.iter_mut().for_each(Topology::press);
            let before = self.retiring.len();
            self.retiring.retain_mut(|topology| !topology.has_ended());
            if before > 0 && self.retiring.is_empty() && !self.is_ending {
                tracing::info!("reloaded {}", self.path.unwrap_or(Path::new("")).display());
            }
            if self.is_ending {
                self.current.press();
            } else if self.current.sources.iter().all(|source| source.has_ended) {
                // All sources have ended.
                self.end();
            }
            if self.is_ending && self.retiring.is_empty() && self.current.has_ended() {
                break;
            }
        }
        crate::server::all_closed(FLUSH).await;
        if self.result.is_ok() {
            tracing::info!("stopped");
        }
    }

    fn note(&mut self, ended: Ended, of_retiring: Option<usize>) {
        match ended {
            Ended::Source { name, result } => {
                let topology = match of_retiring {
                    Some(index) => &mut self.retiring[index],
                    None => &mut self.current,
                };
                topology.source_ended(&name);
                if let Err(error) = result {
                    tracing::error!("source {name}: {error}");
                    self.fail(Error::Source { name, error });
                }
            }
            Ended::Lane(number) => {
                // The events of a dead lane will never be settled.
                self.fail(Error::Lane(number));
                self.topologies().for_each(Topology::abandon);
            }
        }
    }

    fn topologies(&mut self) -> impl Iterator<Item = &mut Topology> {
        self.retiring.iter_mut().chain(std::iter::once(&mut self.current))
    }

    fn fail(&mut self, error: Error) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
        self.end();
    }

    /// Handles a signal to stop. A second one skips the drain.
    fn stop(&mut self) {
        if self.is_ending {
            self.topologies().for_each(Topology::abandon);
            return;
        }
        let drain = self.current.drain;
        tracing::info!("stopping: finishing what is in flight, for at most {drain:?}");
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.is_ending, true) {
            return;
        }
        // No successor will use the addresses.
        crate::source::http_in::keep_only(&[]);
        admin::keep_only(&[]);
        crate::server::hold_only(&[]);
        self.current.retire(false);
    }

    fn reload(&mut self) {
        let Some(path) = self.path else {
            return self.stop();
        };
        if self.is_ending {
            return;
        }
        let Some(config) = reread(path, &self.metrics) else {
            return;
        };
        let started = self
            .lock_for(&config.state_dir)
            .and_then(|lock| Topology::start(config, lock, &self.metrics, self.current.sources_running()));
        let next = match started {
            Ok(topology) => topology,
            Err(error) => {
                crate::server::hold_only(&self.current.addresses());
                self.metrics.reloaded(false);
                tracing::error!("the new configuration does not start: {error}; going on with the old one");
                return;
            }
        };
        self.metrics.reloaded(true);
        let mut old = std::mem::replace(&mut self.current, next);
        old.retire(true);
        self.retiring.push(old);
        if let Err(error) = self.current.start_tasks(self.path) {
            self.fail(error);
        }
    }

    /// The state directory's lock; a reload may change the directory.
    fn lock_for(&mut self, directory: &Path) -> Result<Lock, Error> {
        let ours = self.topologies().find(|topology| topology.lock.0 == directory);
        match ours {
            Some(topology) => Ok(Arc::clone(&topology.lock)),
            None => lock_state_dir(directory).map(Arc::new),
        }
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

/// All threads and tasks of one configuration.
struct Topology {
    metrics: Arc<Metrics>,
    /// Phase as seen by lanes and sinks' publishers.
    phase: watch::Sender<Phase>,
    sources: Vec<RunningSource>,
    endings: mpsc::UnboundedReceiver<Ended>,
    lanes: Vec<JoinHandle<()>>,
    dead_letters: JoinHandle<()>,
    watchdog: Arc<Watchdog>,
    waiting_tasks: Option<Tasks>,
    tasks: JoinSet<()>,
    /// Nodes that this configuration publishes to.
    nodes: Vec<Arc<Node>>,
    listens: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_retry: bool,
    drain: Duration,
    /// End of the drain time.
    deadline: Option<Instant>,
    /// Another topology replaces it.
    is_replaced: bool,
    /// When all sources had ended.
    quiet_since: Option<Instant>,
    lock: Lock,
}

/// Tasks beside the supervisor.
struct Tasks {
    statsd: Option<Statsd>,
    alerts: Vec<Alert>,
    switches: Arc<Switches>,
}

/// The supervisor's view of a source.
struct RunningSource {
    name: String,
    phase: watch::Sender<Phase>,
    fence: Arc<Fence>,
    credit: Arc<Credit>,
    /// Do events that it gives back come again?
    gives_back: bool,
    has_ended: bool,
    /// Closed when the source has ended.
    presence: watch::Receiver<()>,
    /// Number of events in flight, and since when it has not changed.
    progress: (usize, Instant),
}

impl RunningSource {
    fn abandon(&self) {
        if !self.has_ended {
            // In this order: events given back must not be sent from here any more.
            self.fence.drop_now();
            self.phase.send_replace(Phase::Abandoning);
        }
    }

    /// Time since its last progress.
    fn held_up(&mut self) -> Duration {
        let in_flight = self.credit.in_flight();
        if self.progress.0 != in_flight {
            self.progress = (in_flight, Instant::now());
        }
        self.progress.1.elapsed()
    }
}

impl Topology {
    fn start(config: Config, lock: Lock, metrics: &Arc<Metrics>, predecessors: Predecessors) -> Result<Self, Error> {
        let listening = |named: &config::Named<Box<dyn Source>>| Some((named.name.clone(), named.component.listens()?));
        let mut listens = Vec::new();
        for (name, address) in config.sources.iter().filter_map(listening) {
            crate::server::hold(address).map_err(|error| Error::Source { name, error })?;
            listens.push(address);
        }
        if let Some(address) = config.admin {
            crate::server::hold(address).map_err(io_error("admin"))?;
        }
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
        let (dead_letters, dead_letter_thread) = DeadLetters::open(&config.park_path, Arc::clone(metrics))
            .map_err(io_error(format!("cannot open {}", config.park_path.display())))?;
        let (phase, stop) = watch::channel(Phase::Running);
        let stop = Stop(stop);
        let (ended, endings) = mpsc::unbounded_channel();
        let watchdog = Watchdog::new();
        let mut threads = LaneThreads::new(config.lanes);
        let sinks = start_sinks(&config, metrics, &watchdog, &mut threads)?;
        let nodes = metrics.nodes();
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..config.lanes).map(|_| mpsc::unbounded_channel()).unzip();

        let built = build_pipelines(&config, metrics, &sinks);
        let recoveries = metrics.recoveries();
        let Config {
            sources,
            state_dir,
            drain,
            admin,
            admin_retry,
            statsd,
            alerts,
            switches,
            ..
        } = config;
        let mut running = Vec::with_capacity(sources.len());
        let mut blocking = Vec::new();
        for (index, named) in sources.into_iter().enumerate() {
            let limits = named.component.limits();
            let credit = Credit::new(limits.events, limits.bytes);
            let gauges = metrics.source(&named.name, &credit, named.component.starts_ready());
            let fence = Arc::new(Fence::standing());
            let (source_phase, source_stop) = watch::channel(Phase::Running);
            let (presence, present) = watch::channel(());
            running.push(RunningSource {
                name: named.name.clone(),
                phase: source_phase,
                fence: Arc::clone(&fence),
                credit: Arc::clone(&credit),
                gives_back: named.component.guarantee() != Guarantee::BestEffort,
                has_ended: false,
                presence: present,
                progress: (0, Instant::now()),
            });
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
                dead_letters: dead_letters.clone(),
                metrics: metrics.component(labels),
                gauges,
                recoveries: recoveries.clone(),
                fence,
            };
            let context = Context {
                name: named.name.clone(),
                state_dir: state_dir.clone(),
                feed,
                stop: Stop(source_stop),
            };
            let beat = watchdog.watch(format!("source-{}", named.name));
            let may_block = named.component.may_block();
            let source = Succeeding {
                source: named.component,
                predecessors: predecessors.clone(),
                presence,
            };
            if may_block {
                blocking.push((source, context, beat));
            } else {
                threads.take_next().source(source, context, ended.clone(), beat);
            }
        }
        let mut lane_threads = Vec::with_capacity(receivers.len());
        for ((number, jobs), lane_thread) in receivers.into_iter().enumerate().zip(threads.into_vec()) {
            let (sinks, dead_letters, metrics) = (sinks.clone(), dead_letters.clone(), Arc::clone(metrics));
            let (stop, beat) = (stop.clone(), watchdog.watch(format!("lane-{number}")));
            // Publishers end when no lane can open their sink any more.
            let open = move || Lane::new(&sinks, dead_letters, metrics);
            let body = move || lane_thread.run(open, jobs, stop, &beat);
            let report = Report::of_lane(number, ended.clone());
            lane_threads.push(spawn(format!("lane-{number}"), report, body)?);
        }
        for (source, context, beat) in blocking {
            start_source(source, context, ended.clone(), beat)?;
        }
        Ok(Self {
            metrics: Arc::clone(metrics),
            phase,
            sources: running,
            endings,
            lanes: lane_threads,
            dead_letters: dead_letter_thread,
            watchdog,
            waiting_tasks: Some(Tasks {
                statsd,
                alerts,
                switches,
            }),
            tasks: JoinSet::new(),
            nodes,
            listens,
            admin,
            admin_retry,
            drain,
            deadline: None,
            is_replaced: false,
            quiet_since: None,
            lock,
        })
    }

    /// Starts the tasks beside the supervisor, once this is the current topology.
    fn start_tasks(&mut self, path: Option<&Path>) -> Result<(), Error> {
        let Some(tasks) = self.waiting_tasks.take() else {
            return Ok(());
        };
        crate::source::http_in::keep_only(&self.listens);
        admin::keep_only(self.admin.as_slice());
        crate::server::hold_only(&self.addresses());
        if let Some(address) = self.admin {
            let (metrics, watchdog) = (Arc::clone(&self.metrics), Arc::clone(&self.watchdog));
            let stop = Stop(self.phase.subscribe());
            let parked = path.map(|path| Parked::new(path, self.admin_retry));
            let desk = admin::Desk::new(stop, metrics, watchdog, Arc::clone(&tasks.switches), parked);
            admin::install(address, desk).map_err(io_error("admin"))?;
            tracing::info!("admin: http://{address}/metrics /ready /health");
        }
        if let Some(statsd) = tasks.statsd {
            self.tasks.spawn_local(statsd.run(Arc::clone(&self.metrics)));
        }
        let (metrics, watchdog) = (Arc::clone(&self.metrics), Arc::clone(&self.watchdog));
        self.tasks.spawn_local(alert::run(tasks.alerts, metrics, watchdog));
        self.tasks.spawn_local(tasks.switches.follow());
        self.tasks.spawn_local(Arc::clone(&self.watchdog).run());
        Ok(())
    }

    /// Listening addresses.
    fn addresses(&self) -> Vec<SocketAddr> {
        self.listens.iter().copied().chain(self.admin).collect()
    }

    /// Stops claiming in all sources, and starts the drain time.
    fn retire(&mut self, is_replaced: bool) {
        self.is_replaced = is_replaced;
        self.deadline = Some(Instant::now() + self.drain);
        self.phase.send_replace(Phase::Draining);
        for source in &mut self.sources {
            source.phase.send_replace(Phase::Draining);
            source.progress = (source.credit.in_flight(), Instant::now());
        }
        if is_replaced {
            // Metrics and alerts belong to the new topology now.
            self.tasks.abort_all();
        }
    }

    /// During a drain: abandons sources that make no progress or are out of time.
    fn press(&mut self) {
        if self.deadline.is_some_and(|at| Instant::now() > at) && self.sources.iter().any(|source| !source.has_ended) {
            let drain = self.drain;
            tracing::warn!(
                "not everything could be finished in {drain:?}; the rest comes again where the source allows it"
            );
            self.abandon();
        }
        let is_node_away = self.nodes.iter().any(|node| !node.is_up());
        let patience = match (self.is_replaced, is_node_away) {
            (true, true) => HELD_UP_BY_NODE,
            (true, false) | (false, true) => HELD_UP,
            (false, false) => return,
        };
        for source in self
            .sources
            .iter_mut()
            .filter(|source| source.gives_back && !source.has_ended)
        {
            if source.held_up() > patience && *source.phase.borrow() < Phase::Abandoning {
                let (name, in_flight) = (&source.name, source.credit.in_flight());
                if in_flight > 0 {
                    tracing::info!("source {name}: giving back {in_flight} events that cannot be published now");
                }
                source.abandon();
            }
        }
    }

    /// Abandons all events in flight.
    fn abandon(&mut self) {
        self.deadline = None;
        self.sources.iter().for_each(RunningSource::abandon);
        self.phase.send_replace(Phase::Abandoning);
    }

    fn source_ended(&mut self, name: &str) {
        for source in self.sources.iter_mut().filter(|source| source.name == name) {
            source.has_ended = true;
        }
    }

    /// Running sources, for a successor to wait for.
    fn sources_running(&self) -> Predecessors {
        let presences = self.sources.iter();
        presences
            .map(|source| (source.name.clone(), source.presence.clone()))
            .collect()
    }

    /// Have the sources ended, and then lanes and dead letters? Optional sinks get a little extra time.
    fn has_ended(&mut self) -> bool {
        if self.sources.iter().any(|source| !source.has_ended) {
            return false;
        }
        let since = *self.quiet_since.get_or_insert_with(Instant::now);
        let is_running = |thread: &JoinHandle<()>| !thread.is_finished();
        if !self.lanes.iter().any(is_running) && !is_running(&self.dead_letters) {
            return true;
        }
        if since.elapsed() > STUCK {
            tracing::error!("a thread does not end; leaving it behind");
            return true;
        }
        let was_abandoned = self
            .sources
            .iter()
            .any(|source| *source.phase.borrow() == Phase::Abandoning);
        if (was_abandoned || since.elapsed() > GRACE) && *self.phase.borrow() < Phase::Abandoning {
            self.phase.send_replace(Phase::Abandoning);
        }
        false
    }
}

/// Reads a configuration that can replace the running one.
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

/// Locks the state directory: two workers on one directory would deliver everything twice.
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

fn start_sinks(
    config: &Config,
    metrics: &Metrics,
    watchdog: &Watchdog,
    threads: &mut LaneThreads,
) -> Result<Vec<Arc<dyn RunningSink>>, Error> {
    let start = |(index, sink): (usize, &config::Named<Arc<dyn crate::sink::Sink>>)| {
        let mut scene = crate::sink::Scene {
            name: &sink.name,
            metrics,
            has_ids: has_ids(config, index),
            spawn: &mut Spawner { threads, watchdog },
        };
        sink.component
            .start(&mut scene)
            .map_err(io_error(format!("sink {}", sink.name)))
    };
    config.sinks.iter().enumerate().map(start).collect()
}

/// Does every event that reaches this sink have an id?
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
                account: account(&config.sources[spec.source].name, &spec.name, &slots),
                sinks: slots,
                order,
                prefix: spec.prefix.clone(),
                dark: spec.is_dark.then(|| Arc::new(Semaphore::new(DARK_BACKLOG))),
            }),
        )
    };
    config.pipelines.iter().enumerate().map(build).collect()
}

/// Starts a thread that reports its end, even after a panic.
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

/// A source with a thread of its own.
fn start_source(
    source: Succeeding,
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
