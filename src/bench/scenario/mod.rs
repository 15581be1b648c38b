//! Scenarios: load patterns against a server. Each is one file: its arguments, its run, its report.
//!
//! Shared parts are here: the target, the client processes, and the sum of their results.

pub mod churn;
pub mod disqus;
pub mod fanout;
pub mod idle;
pub mod million;
mod mix;
pub mod publish;
pub mod reload;
pub mod soak;
pub mod storm;
pub mod verify;

use std::collections::HashMap;
use std::io::{IsTerminal, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::arrivals::spare_places;
use crate::coding::Coding;
use crate::flows::{Audience, Flows};
use crate::history::Unanswered;
use crate::http::ResponseHead;
use crate::killed::Book;
use crate::latency::Latency;
use crate::loop_stalls::{LoopStalls, Seen};
use crate::message;
use crate::net;
use crate::proc::{Cpu, Server};
use crate::processes::{Phase, Processes, Work};
use crate::report::{Report, Unit};
use crate::text::Kind;
use crate::tls::{self, Connector, Protocol};
use crate::transport::Transport;
use crate::url::UrlTemplate;
use crate::{publishers, subscribers};

/// The server under test and how it is reached.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Where to publish: a URL with {channel} in it
    #[arg(long, default_value = "http://127.0.0.1:8080/pub?id={channel}", value_name = "URL")]
    pub pub_url: UrlTemplate,
    /// Where to subscribe: a URL with {channel} in it
    #[arg(long, default_value = "http://127.0.0.1:8080/ev/{channel}", value_name = "URL")]
    pub sub_url: UrlTemplate,
    /// Encrypt: as if both URLs began with https://. TLS 1.3; certificates are not checked
    #[arg(long)]
    pub tls: bool,
    /// Speak HTTP/2: subscribers and publishers, or only some of them. With http:// URLs without negotiation (prior
    /// knowledge)
    #[arg(
        long,
        value_enum,
        value_name = "WHO",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    pub http2: Option<Http2>,
    /// Over HTTP/2: subscribers that share a connection
    #[arg(long, default_value_t = 1, value_name = "N", requires = "http2")]
    pub streams: usize,
    /// How to subscribe there
    #[arg(long, value_enum, default_value_t = Transport::EventSource)]
    pub transport: Transport,
    /// Statistics that hold the number of subscribers; publishing begins when it shows them all
    #[arg(long, value_name = "URL")]
    pub stats_url: Option<UrlTemplate>,
    /// Metrics of the push stream module: with --warm-up, what its zone holds must be the same again after each round
    #[arg(long, value_name = "URL")]
    pub metrics_url: Option<UrlTemplate>,
    /// Process whose cost (and that of its children) is measured; repeatable. For nginx: the master
    #[arg(long, value_name = "PID")]
    pub server_pid: Vec<u32>,
    /// Name of the server in the report
    #[arg(long, default_value = "server")]
    pub label: String,
    /// Name of the scenario in the report, to tell its variants apart
    #[arg(long)]
    pub name: Option<String>,
}

/// Who speaks HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Http2 {
    All,
    Subscribers,
    Publishers,
}

impl Target {
    /// The target with all options combined.
    fn checked(&self) -> anyhow::Result<Self> {
        let mut target = self.clone();
        if self.tls {
            target.pub_url = self.pub_url.to_encrypted()?;
            target.sub_url = self.sub_url.to_encrypted()?;
        }
        if self.streams == 0 {
            bail!("--streams wants at least 1");
        }
        if self.subscribers_share().is_some() && self.transport == Transport::WebSocket {
            bail!("WebSocket is not available over HTTP/2 (RFC 8441 is in no nginx)");
        }
        Ok(target)
    }

    /// Number of subscribers per HTTP/2 connection; `None` without HTTP/2 for subscribers.
    fn subscribers_share(&self) -> Option<usize> {
        matches!(self.http2, Some(Http2::All | Http2::Subscribers)).then_some(self.streams)
    }

    fn publishers_speak_http2(&self) -> bool {
        matches!(self.http2, Some(Http2::All | Http2::Publishers))
    }

    /// An empty report of `scenario`.
    fn report(&self, scenario: &str) -> Report {
        Report::new(self.name.as_deref().unwrap_or(scenario), &self.label)
    }

    /// Bytes of the zone in use, if there is a metrics URL.
    fn zone_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Some(url) = &self.metrics_url else {
            return Ok(None);
        };
        let figure = zone_bytes(&fetch(url)?);
        Ok(Some(figure.with_context(|| {
            format!("nothing about the zone at {}{}", url.authority(), url.path(""))
        })?))
    }

    /// Reports what a round after a warm-up has left behind in the zone; any difference is a problem.
    fn report_zone_kept(&self, before: Option<u64>, after: Option<u64>, report: &mut Report) {
        let (Some(before), Some(after)) = (before, after) else {
            return;
        };
        let kept = after as f64 - before as f64;
        report.fact(
            "zone_kept_bytes",
            "zone after all have left, against before",
            kept,
            Unit::Bytes,
        );
        if after != before {
            report.problem(format!("the zone has {after} bytes in use, and had {before} before"));
        }
    }
}

/// The client side of the bench.
#[derive(Args, Clone, Debug)]
pub struct Clients {
    /// Client processes for the subscribers; as few as the limit of open files allows if not given
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Loopback source addresses (127.0.0.1 …) of the subscribers; enough for their ports if not given
    #[arg(long, value_name = "N")]
    pub addresses: Option<usize>,
    /// Connections of each client process that may wait for their response at a time
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub connect_window: usize,
    /// Seconds without any progress after which the run is over
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub patience: f64,
    /// Seconds after which those who left must be gone from the statistics
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
    pub leave_limit: f64,
    /// Ask for answers in this coding, gzip if none is named, and check their ends, too; over HTTP/1
    #[arg(long, value_name = "CODING", num_args = 0..=1, require_equals = true, default_missing_value = "gzip")]
    pub compressed: Option<Coding>,
    /// What messages consist of
    #[arg(long, value_enum, default_value = "noise", value_name = "KIND")]
    pub text: Kind,
}

impl Clients {
    fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience.clamp(0.1, 3600.0))
    }

    fn leave_limit(&self) -> Duration {
        Duration::from_secs_f64(self.leave_limit.clamp(0.1, 3600.0))
    }
}

/// Subscribers and publishers of a run.
#[derive(Clone, Debug)]
struct Cast {
    subscribers: usize,
    /// The last this many subscribers use another URL.
    also: Option<(UrlTemplate, usize)>,
    channels: u32,
    audience: Audience,
    publishers: u32,
    /// Ends after this many accepted messages.
    messages: Option<u64>,
    /// Ends after this time.
    duration: Option<Duration>,
    /// Messages a second.
    rate: Option<f64>,
    max_ahead: Option<u64>,
    /// Messages in one request.
    batch: usize,
    message_bytes: usize,
    event_ids: bool,
    reconnect: bool,
    /// Book of the connections of workers that the run kills.
    killed: Option<Book>,
    /// New subscribers a second at the start.
    connect_rate: Option<f64>,
    /// Subscribers a second that leave and are replaced.
    arrival_rate: Option<f64>,
}

impl Default for Cast {
    /// No subscribers, one publisher without messages.
    fn default() -> Self {
        Self {
            subscribers: 0,
            also: None,
            channels: 1,
            audience: Audience::Even,
            publishers: 1,
            messages: None,
            duration: None,
            rate: None,
            max_ahead: None,
            batch: 1,
            message_bytes: message::MIN_BYTES,
            event_ids: false,
            reconnect: false,
            killed: None,
            connect_rate: None,
            arrival_rate: None,
        }
    }
}

/// With more processes each looks at the board less often.
const FEW_PROCESSES: usize = 8;

/// Descriptors that a client process needs beside its connections.
const SPARE_DESCRIPTORS: usize = 64;

/// Connections from one source address to one target: below the 28,000 ports that Linux assigns, because those of an
/// earlier run may still be in TIME_WAIT.
const CONNECTIONS_PER_ADDRESS: usize = 8_000;

/// A run: processes at work against a target.
struct Run {
    processes: Processes,
    cast: Cast,
    stats_url: Option<UrlTemplate>,
    server: Server,
    patience: Duration,
    leave_limit: Duration,
    progress: Progress,
    loop_stalls: Option<LoopStalls>,
}

impl Run {
    fn muster(target: &Target, clients: &Clients, cast: Cast) -> anyhow::Result<Self> {
        if cast.channels > 1 && !(target.sub_url.names_channel() && target.pub_url.names_channel()) {
            bail!("several channels need {{channel}} in --sub-url and --pub-url");
        }
        if cast.arrival_rate.is_some() && matches!(target.transport, Transport::LongPolling | Transport::Plain) {
            bail!("visitors need a transport that tells when they are there: not long polling");
        }
        let target = &target.checked()?;
        let server = Server::new(target.server_pid.clone())?;
        let limit = net::raise_file_limit().context("cannot read the limit of open files")?;
        let most = limit.saturating_sub(SPARE_DESCRIPTORS).max(1);
        let places = cast.subscribers + cast.arrival_rate.map_or(0, spare_places);
        let streams = target.subscribers_share();
        let shared_by = streams.unwrap_or(1);
        let processes = clients
            .processes
            .unwrap_or(1)
            .max(places.div_ceil(shared_by).div_ceil(most));
        let addresses = clients
            .addresses
            .unwrap_or(cast.subscribers.div_ceil(CONNECTIONS_PER_ADDRESS))
            .max(1);
        let flows = Flows::new(cast.channels, cast.publishers).context("no shared memory")?;
        let run = fastrand::u32(1..1 << 28);
        let elsewhere = cast.also.as_ref().map_or(0, |(_, count)| *count);
        let parts = [(&target.sub_url, 0..cast.subscribers - elsewhere)].into_iter();
        let others = cast.also.iter();
        let parts = parts.chain(others.map(|(url, count)| (url, cast.subscribers - count..cast.subscribers)));
        // Subscribers that share a connection are in the same process.
        let share = |part: &Range<usize>, process: usize| {
            let groups = part.len().div_ceil(shared_by);
            part.start + (groups * process / processes * shared_by).min(part.len())
        };
        let plans = parts.flat_map(|(url, part)| {
            (0..processes).map(move |process| (url, share(&part, process)..share(&part, process + 1)))
        });
        let subscribing = plans.filter(|(_, part)| !part.is_empty()).map(|(url, part)| {
            let plan = subscribers::Plan {
                url: url.clone(),
                transport: target.transport,
                streams,
                first: part.start,
                count: part.len(),
                subscribers: cast.subscribers,
                flows,
                audience: cast.audience,
                run,
                max_message_bytes: cast.message_bytes,
                text: clients.text,
                compressed: clients.compressed,
                event_ids: cast.event_ids,
                addresses,
                connect_rate: cast.connect_rate.map(|rate| rate / processes as f64),
                connect_window: match cast.connect_rate.or(cast.arrival_rate) {
                    Some(_) => usize::MAX,
                    None => clients.connect_window.max(1),
                },
                arrival_rate: cast.arrival_rate.map(|rate| rate / processes as f64),
                patience: clients.patience(),
                reconnect: cast.reconnect,
                killed: cast.killed,
                glance: Duration::from_millis(if processes > FEW_PROCESSES { 100 } else { 10 }),
            };
            Box::new(move |board, place| subscribers::work(plan, board, place)) as Work
        });
        let plan = publishers::Plan {
            url: target.pub_url.clone(),
            http2: target.publishers_speak_http2(),
            publishers: cast.publishers,
            flows,
            run,
            message_bytes: cast.message_bytes,
            text: clients.text,
            event_ids: cast.event_ids,
            messages: cast.messages,
            duration: cast.duration,
            rate: cast.rate,
            max_ahead: cast.max_ahead,
            audience: cast.subscribers as f64 / f64::from(cast.channels),
            batch: cast.batch.max(1),
        };
        let publishing: Work = Box::new(move |board, place| publishers::work(plan, board, place));
        let processes = Processes::muster(subscribing.collect(), vec![publishing])?;
        let (patience, leave_limit) = (clients.patience(), clients.leave_limit());
        // Plain requests are no subscribers, thus not in the statistics.
        let stats_url = target
            .stats_url
            .clone()
            .filter(|_| target.transport != Transport::Plain);
        Ok(Self {
            processes,
            cast,
            stats_url,
            server,
            patience,
            leave_limit,
            progress: Progress::new(),
            loop_stalls: None,
        })
    }

    /// Connects the first `count` subscribers and returns when the server's statistics show them.
    fn connect(&mut self, count: usize) -> anyhow::Result<()> {
        self.processes.invite(count);
        let wanted = count as u64;
        let Self {
            processes, progress, ..
        } = self;
        let all = processes.wait(
            self.patience,
            |processes| processes.open() >= wanted,
            |processes| {
                progress.show(|| format!("connecting: {} of {wanted}", processes.open()));
                Ok(())
            },
        )?;
        if !all {
            bail!(
                "only {} of {wanted} subscribers could connect{}",
                self.processes.open(),
                self.first_problem()
            );
        }
        self.await_statistics(wanted)
    }

    /// The clients' first problem, for an error that ends the run.
    fn first_problem(&mut self) -> String {
        match self.processes.collect() {
            Ok((subscribers, _)) => {
                let mut problems = subscribers.iter().filter_map(|report| report["problems"][0].as_str());
                problems
                    .next()
                    .map(|problem| format!(": {problem}"))
                    .unwrap_or_default()
            }
            Err(error) => format!(": {error:#}"),
        }
    }

    fn await_statistics(&mut self, wanted: u64) -> anyhow::Result<()> {
        match self.await_count(self.patience, |shown| shown >= wanted)? {
            Count::Reached(_) => Ok(()),
            Count::Stuck(shown) => bail!("{wanted} subscribers are connected, but the statistics say {shown}"),
        }
    }

    /// Waits until the server's statistics, if there is a URL for them, show the wanted count.
    fn await_count(&self, patience: Duration, wanted: impl Fn(u64) -> bool) -> anyhow::Result<Count> {
        let start = Instant::now();
        let Some(url) = &self.stats_url else {
            return Ok(Count::Reached(start.elapsed()));
        };
        loop {
            let text = fetch(url)?;
            let shown = subscribers_in(&text).with_context(|| format!("no number of subscribers in {text:?}"))?;
            if wanted(shown) {
                return Ok(Count::Reached(start.elapsed()));
            }
            if start.elapsed() > patience {
                return Ok(Count::Stuck(shown));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Publishes one message on every flow and waits until all subscribers have it, so that each has a position.
    fn prime(&mut self) -> anyhow::Result<()> {
        self.processes.enter(Phase::Prime);
        let flows = if self.cast.channels >= self.cast.publishers {
            1
        } else {
            u64::from(self.cast.publishers)
        };
        let wanted = self.cast.subscribers as u64 * flows;
        let Self {
            processes, progress, ..
        } = self;
        let all = processes.wait(
            self.patience,
            |processes| processes.publishers_settled(Phase::Prime) && processes.received() >= wanted,
            |processes| {
                progress.show(|| {
                    format!(
                        "preparing: {} published, {} received",
                        processes.published(),
                        processes.received()
                    )
                });
                Ok(())
            },
        )?;
        if !all {
            let received = self.processes.received();
            bail!(
                "of {wanted} first messages {received} were received{}",
                self.first_problem()
            );
        }
        Ok(())
    }

    /// Watches the server's event loops from now on, while messages flow.
    fn watch_stalls(&mut self) -> anyhow::Result<()> {
        self.loop_stalls = Some(LoopStalls::watch(&self.server.pids())?);
        Ok(())
    }

    /// Runs the publishers to their end; calls `meanwhile` every 10 ms.
    fn publish(&mut self, mut meanwhile: impl FnMut(&Processes) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.processes.enter(Phase::Publish);
        let Self {
            processes,
            progress,
            patience,
            cast,
            loop_stalls,
            ..
        } = self;
        // An open loop's interval may exceed the patience.
        let patience = *patience + Duration::from_secs_f64(cast.rate.map_or(0.0, |rate| 2.0 / rate));
        let ended = processes.wait(
            patience,
            |processes| processes.publishers_settled(Phase::Publish),
            |processes| {
                progress.show(|| {
                    format!(
                        "subscribers {}, came {}, published {}, received {}, reconnects {}, trouble {}",
                        processes.open(),
                        processes.opened(),
                        processes.published(),
                        processes.received(),
                        processes.reconnects(),
                        processes.trouble()
                    )
                });
                loop_stalls.iter_mut().for_each(LoopStalls::look);
                meanwhile(processes)
            },
        )?;
        if !ended {
            bail!(
                "publishing stands still after {} messages{}",
                self.processes.published(),
                self.first_problem()
            );
        }
        Ok(())
    }

    /// Waits until every subscriber has reached the end; false if some did not.
    fn drain(&mut self) -> anyhow::Result<bool> {
        self.processes.enter(Phase::Drain);
        let Self {
            processes,
            progress,
            loop_stalls,
            ..
        } = self;
        let all = processes.wait(
            self.patience,
            |processes| processes.subscribers_settled(Phase::Drain) && processes.behind() == 0,
            |processes| {
                progress.show(|| format!("draining: {} subscribers behind", processes.behind()));
                loop_stalls.iter_mut().for_each(LoopStalls::look);
                Ok(())
            },
        )?;
        Ok(all)
    }

    /// Closes all subscribers and waits until the statistics no longer show them; returns the time taken, or a problem.
    fn leave(&mut self) -> anyhow::Result<Result<Duration, String>> {
        let limit = self.leave_limit;
        let start = Instant::now();
        self.processes.enter(Phase::Leave);
        self.processes.wait(
            limit,
            |processes| processes.subscribers_settled(Phase::Leave),
            |_| Ok(()),
        )?;
        // Wait longer than allowed, to report the time taken.
        let count = self.await_count(limit * 2, |shown| shown == 0)?;
        let taken = start.elapsed();
        Ok(match count {
            Count::Reached(_) if taken <= limit => Ok(taken),
            Count::Reached(_) => Err(format!(
                "until the statistics were empty again it took {taken:.1?}, {limit:.0?} are allowed"
            )),
            Count::Stuck(shown) => Err(format!(
                "all subscribers have left, but after {taken:.0?} the statistics still show {shown}"
            )),
        })
    }

    fn finish(mut self) -> anyhow::Result<Findings> {
        self.progress.end();
        let (subscribers, publishers) = self.processes.collect()?;
        Findings::sum(&subscribers, &publishers)
    }
}

/// Whether the statistics reached the wanted count, and after how long; else the last count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Reached(Duration),
    Stuck(u64),
}

/// Results of all processes of a run, added up.
#[derive(Debug)]
struct Findings {
    messages: u64,
    wire_bytes: u64,
    comments: u64,
    lost: u64,
    doubled: u64,
    out_of_order: u64,
    foreign: u64,
    refused: u64,
    malformed: u64,
    disconnects: u64,
    /// The part due to killed workers.
    excused: u64,
    reconnects: u64,
    accepted: u64,
    /// The first messages of flows, which only prepare.
    primed: u64,
    refused_publishes: u64,
    unanswered: u64,
    timeouts: u64,
    /// From the first publish to the last answer.
    publishing: Duration,
    /// From the first publish to the last delivery.
    delivering: Duration,
    latency: Latency,
    opening: Latency,
    publish_latency: Latency,
    /// Connections that became subscriptions, over the whole run.
    opened: u64,
    departed: u64,
    /// The first few problems, as text.
    examples: Vec<String>,
    publish_examples: Vec<String>,
}

impl Findings {
    fn sum(subscribers: &[Value], publishers: &[Value]) -> anyhow::Result<Self> {
        let sum = |reports: &[Value], key: &str| reports.iter().map(|report| number(report, key)).sum::<u64>();
        let latency = |reports: &[Value], key: &str| {
            let mut all = Latency::new();
            for report in reports {
                all.add(&Latency::from_json(&report[key]).context("a histogram that cannot be read")?);
            }
            anyhow::Ok(all)
        };
        let examples = |reports: &[Value]| {
            let lists = reports.iter().filter_map(|report| report["problems"].as_array());
            lists
                .flatten()
                .filter_map(|text| Some(text.as_str()?.to_owned()))
                .take(10)
                .collect::<Vec<_>>()
        };
        let unanswered: HashMap<u64, Unanswered> = publishers
            .iter()
            .filter_map(|report| report["unanswered"].as_array())
            .flatten()
            .filter_map(unanswered)
            .collect();
        let start = publishers
            .iter()
            .map(|report| number(report, "start_ns"))
            .min()
            .unwrap_or(0);
        let last = |reports: &[Value], key: &str| {
            let last = reports.iter().map(|report| number(report, key)).max().unwrap_or(0);
            Duration::from_nanos(last.saturating_sub(start))
        };
        let mut findings = Self {
            messages: sum(subscribers, "messages"),
            wire_bytes: sum(subscribers, "wire_bytes"),
            comments: sum(subscribers, "comments"),
            lost: 0,
            doubled: sum(subscribers, "doubled"),
            out_of_order: sum(subscribers, "out_of_order"),
            foreign: sum(subscribers, "foreign"),
            refused: sum(subscribers, "refused"),
            malformed: sum(subscribers, "malformed"),
            disconnects: sum(subscribers, "disconnects"),
            excused: sum(subscribers, "excused"),
            reconnects: sum(subscribers, "reconnects"),
            accepted: sum(publishers, "accepted"),
            refused_publishes: sum(publishers, "refused"),
            primed: sum(publishers, "primed"),
            unanswered: unanswered.values().map(Unanswered::count).sum(),
            timeouts: sum(publishers, "timeouts"),
            publishing: last(publishers, "last_answer_ns"),
            delivering: last(subscribers, "last_message_ns"),
            latency: latency(subscribers, "latency")?,
            opening: latency(subscribers, "opening")?,
            publish_latency: latency(publishers, "latency")?,
            opened: sum(subscribers, "opened"),
            departed: sum(subscribers, "departed"),
            examples: examples(subscribers),
            publish_examples: examples(publishers),
        };
        findings.count_lost(subscribers, &unanswered);
        Ok(findings)
    }

    /// Counts messages that were accepted and not seen.
    fn count_lost(&mut self, subscribers: &[Value], unanswered: &HashMap<u64, Unanswered>) {
        let all_answered = Unanswered::default();
        let unseen = subscribers
            .iter()
            .filter_map(|report| report["unseen"].as_array())
            .flatten();
        for entry in unseen {
            let flow = number(entry, "flow");
            let unanswered = unanswered.get(&flow).unwrap_or(&all_answered);
            let ranges = ranges(&entry["ranges"]);
            let lost = unanswered.lost(&ranges);
            if let Some(first) = unanswered.first_lost(&ranges)
                && self.examples.len() < 20
            {
                let subscriber = number(entry, "subscriber");
                self.examples.push(format!(
                    "subscriber {subscriber}: {lost} lost on flow {flow}, message {first} first"
                ));
            }
            self.lost += lost;
        }
    }

    /// Reports the counts that must be zero, as facts and, where they are not zero, as problems.
    fn judge(&self, report: &mut Report, may_reconnect: bool) {
        for (key, label, count) in [
            ("lost", "lost", self.lost),
            ("doubled", "doubled", self.doubled),
            ("out_of_order", "out of order", self.out_of_order),
            ("foreign", "foreign", self.foreign),
        ] {
            report.count(key, label, count);
            if count > 0 {
                report.problem(format!("{count} messages {label}"));
            }
        }
        if self.refused > 0 {
            report.problem(format!("{} subscriptions refused", self.refused));
        }
        if self.malformed > 0 {
            report.problem(format!("{} responses malformed", self.malformed));
        }
        if !may_reconnect && self.disconnects > 0 {
            report.problem(format!("{} streams ended by the server", self.disconnects));
        }
        if self.refused_publishes > 0 {
            report.problem(format!("{} publishes refused", self.refused_publishes));
        }
        if self.timeouts > 0 {
            report.problem(format!("{} publishes without an answer in time", self.timeouts));
        }
        if !may_reconnect && self.unanswered > self.refused_publishes {
            report.problem(format!(
                "{} publishes without an answer",
                self.unanswered - self.refused_publishes
            ));
        }
        if report.failed() {
            self.examples
                .iter()
                .chain(&self.publish_examples)
                .for_each(|example| report.problem(example.as_str()));
        }
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or(0)
}

/// `[flow, [unanswered, …]]`
fn unanswered(flow: &Value) -> Option<(u64, Unanswered)> {
    let sequences = flow[1].as_array()?.iter().filter_map(as_u32);
    Some((flow[0].as_u64()?, Unanswered::new(sequences.collect())))
}

/// `[[start, end], …]`
fn ranges(value: &Value) -> Vec<Range<u32>> {
    let range = |range: &Value| Some(as_u32(&range[0])?..as_u32(&range[1])?);
    value.as_array().into_iter().flatten().filter_map(range).collect()
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// Reports the server's processor time per `what`, for `count` of them.
fn cpu_facts(report: &mut Report, cpu: Cpu, count: u64, what: &str) {
    if count == 0 {
        return;
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    report.fact(
        "cpu_us",
        &format!("server CPU per {what}"),
        micros(cpu.total),
        Unit::Micros,
    );
    if let Some(user) = cpu.user {
        report.fact("user_cpu_us", "of that in user mode", micros(user), Unit::Micros);
    }
}

/// Reports the stalls of the server's event loops, if they were watched.
fn stall_facts(report: &mut Report, seen: Option<Seen>) {
    let Some(seen) = seen else {
        return;
    };
    report.latency("away", "an event loop away", &seen.away);
    report.latency("busy", "with a processor meanwhile", &seen.busy);
    if seen.lost > 0 {
        report.problem(format!("{} turns of event loops were not seen", seen.lost));
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// A complete answer to a request without a body.
struct Answer {
    status: u16,
    /// The bytes of its head.
    head: Vec<u8>,
    body: Vec<u8>,
}

/// Sends one request and waits for its answer.
fn ask(method: &str, url: &UrlTemplate) -> anyhow::Result<Answer> {
    let (path, host) = (url.path(""), url.authority());
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    let answer = || -> anyhow::Result<Answer> {
        let mut stream = TcpStream::connect(url.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut bytes = Vec::new();
        if url.is_encrypted() {
            let connector = Connector::new(url.authority(), url.address(), Protocol::Http1)?;
            bytes = tls::ask(&connector, stream, request.as_bytes())?;
        } else {
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut bytes)?;
        }
        let (mut head, length) = ResponseHead::parse(&bytes)?.context("an answer without an end of its head")?;
        let mut body = Vec::new();
        head.body.decode(&bytes[length..], &mut body)?;
        bytes.truncate(length);
        Ok(Answer {
            status: head.status,
            head: bytes,
            body,
        })
    };
    answer().with_context(|| format!("no answer to {method} {host}{path}"))
}

/// Bytes of the zone in use, from metrics in Prometheus format.
fn zone_bytes(metrics: &str) -> Option<u64> {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("push_stream_zone_bytes{state=\"used\"}"))?;
    line.trim().parse().ok()
}

/// The body of the statistics.
fn fetch(url: &UrlTemplate) -> anyhow::Result<String> {
    let answer = ask("GET", url)?;
    if answer.status != 200 {
        bail!(
            "status {} for the statistics at {}{}",
            answer.status,
            url.authority(),
            url.path("")
        );
    }
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// The first number after the word "subscribers", whatever is between: all servers' statistics contain it.
fn subscribers_in(text: &str) -> Option<u64> {
    let after = &text[text.find("subscribers")? + "subscribers".len()..];
    let digits = after.trim_start_matches(|char: char| !char.is_ascii_digit());
    let end = digits.find(|char: char| !char.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// A progress line on stderr: rewritten in place on a terminal, every two seconds elsewhere.
#[derive(Debug)]
struct Progress {
    terminal: bool,
    last: Instant,
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            last: Instant::now(),
            shown: false,
        }
    }

    fn show(&mut self, text: impl FnOnce() -> String) {
        let interval = Duration::from_millis(if self.terminal { 200 } else { 2_000 });
        if self.last.elapsed() >= interval {
            (self.last, self.shown) = (Instant::now(), true);
            match self.terminal {
                true => eprint!("\r\x1b[K{}", text()),
                false => eprintln!("{}", text()),
            }
        }
    }

    /// Prints a permanent line.
    fn note(&mut self, text: impl FnOnce() -> String) {
        self.end();
        eprintln!("{}", text());
    }

    fn end(&mut self) {
        if self.terminal && self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_number_of_subscribers_is_found_in_all_formats() {
        let json = r#"{"hostname": "h2", "channels": 3, "subscribers": 17, "by_worker": [{"subscribers": 4}]}"#;
        assert_eq!(subscribers_in(json), Some(17));
        assert_eq!(subscribers_in("channels: 1\r\nsubscribers: 0\r\n"), Some(0));
        assert_eq!(subscribers_in("<subscribers>5</subscribers>"), Some(5));
        assert_eq!(subscribers_in("total 5"), None);
    }

    #[test]
    fn what_the_zone_holds_is_found_in_metrics() {
        let metrics = "# TYPE push_stream_zone_bytes gauge\npush_stream_zone_bytes{state=\"free\"} 9000\n\
            push_stream_zone_bytes{state=\"used\"} 1280\n";
        assert_eq!(zone_bytes(metrics), Some(1280));
        assert_eq!(zone_bytes("push_stream_channels 3\n"), None);
    }

    fn subscriber(unseen: Value) -> Value {
        let empty = Latency::new().to_json();
        json!({"messages": 5, "unseen": unseen, "latency": empty, "opening": empty, "problems": []})
    }

    fn publisher() -> Value {
        json!({"accepted": 4, "broken": 2, "latency": Latency::new().to_json(), "unanswered": [[0, [3, 2]]], "problems": []})
    }

    #[test]
    fn only_what_was_accepted_can_be_lost() {
        let unseen = json!([{"subscriber": 3, "flow": 0, "ranges": [[1, 3], [3, 4]]}]);
        let findings = Findings::sum(&[subscriber(json!([])), subscriber(unseen)], &[publisher()]).unwrap();
        assert_eq!(
            (
                findings.messages,
                findings.lost,
                findings.unanswered,
                findings.refused_publishes
            ),
            (10, 1, 2, 0)
        );
        let mut report = Report::new("verify", "x");
        findings.judge(&mut report, true);
        assert!(report.failed());
        assert!(
            report
                .to_table()
                .contains("subscriber 3: 1 lost on flow 0, message 1 first")
        );
    }

    #[test]
    fn unanswered_publishes_fail_a_run_only_where_nothing_was_killed() {
        let findings = Findings::sum(&[subscriber(json!([]))], &[publisher()]).unwrap();
        let (mut calm, mut stormy) = (Report::new("fanout", "x"), Report::new("verify", "x"));
        findings.judge(&mut calm, false);
        findings.judge(&mut stormy, true);
        assert!(calm.failed() && !stormy.failed());
    }
}
