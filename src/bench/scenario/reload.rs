//! `reload`: counts what subscribers notice of reloads.
//!
//! Messages flow at a fixed rate while the configuration is reloaded repeatedly. Every lost connection counts, except
//! those of workers killed on purpose. Subscribers that lose theirs reconnect with Last-Event-ID and must have missed
//! nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Cast, Clients, Run, Target, fetch, per_second, subscribers_in};
use crate::killed::{self, Book};
use crate::latency::Latency;
use crate::message;
use crate::proc;
use crate::processes::Board;
use crate::report::{Report, Unit};
use crate::url::UrlTemplate;

#[derive(Args, Debug)]
pub struct Reload {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    clients: Clients,
    /// Master process of the nginx that is reloaded (SIGHUP)
    #[arg(long, value_name = "PID")]
    master_pid: u32,
    /// Subscribers
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    subscribers: usize,
    /// Further subscribers that connect to --also-url
    #[arg(long, default_value_t = 0, value_name = "N", requires = "also_url")]
    also: usize,
    /// Where these subscribe, e.g. https://127.0.0.1:8443/ev/{channel}
    #[arg(long, value_name = "URL")]
    also_url: Option<UrlTemplate>,
    /// Channels; subscriber I listens to channel I % CHANNELS
    #[arg(long, default_value_t = 100, value_name = "N")]
    channels: u32,
    /// Keep-alive connections that publish
    #[arg(long, default_value_t = 8, value_name = "N")]
    publishers: u32,
    /// Messages a second, over all channels
    #[arg(long, default_value_t = 200.0, value_name = "N")]
    rate: f64,
    /// Length of a message
    #[arg(long, default_value_t = 150, value_name = "BYTES")]
    bytes: usize,
    /// How long messages flow
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    seconds: f64,
    /// Reloads in that time
    #[arg(long, default_value_t = 10, value_name = "N")]
    reloads: u32,
    /// Workers to kill (SIGKILL) between reloads
    #[arg(long, default_value_t = 0, value_name = "N")]
    kills: u32,
    /// Connections that are lost are no failure
    #[arg(long)]
    tolerate_lost_connections: bool,
    /// Seconds that an old worker may live after a reload
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    old_worker_limit: f64,
    /// Seconds after a reload or a kill until the statistics must say how many subscribers there are
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    count_limit: f64,
}

/// How long to listen for duplicates after all messages have arrived.
const AFTERMATH: Duration = Duration::from_millis(500);

impl Reload {
    pub fn run(&self) -> anyhow::Result<Report> {
        let channels = self.channels.max(1);
        let subscribers = self.subscribers + self.also;
        let duration = Duration::from_secs_f64(self.seconds.clamp(0.1, 86_400.0));
        let book = match self.kills {
            0 => None,
            kills => {
                killed::check_family(self.target.sub_url.address())?;
                // Publishers and statistics queries have connections, too.
                Some(Book::new(kills as usize * (2 * subscribers + 1_000))?)
            }
        };
        let cast = Cast {
            subscribers,
            also: self.also_url.clone().map(|url| (url, self.also)),
            channels,
            // With more publishers than channels a channel would have several, and its order would be unknown.
            publishers: self.publishers.clamp(1, channels),
            duration: Some(duration),
            rate: Some(self.rate.max(0.001)),
            message_bytes: self.bytes.max(message::MIN_BYTES),
            event_ids: true,
            reconnect: true,
            killed: book,
            ..Cast::default()
        };
        let mut run = Run::muster(&self.target, &self.clients, cast)?;
        run.connect(subscribers)?;
        run.prime()?;
        let counts = Counts::watch(
            self.target.stats_url.clone(),
            run.processes.board(),
            run.processes.subscribing(),
        );
        let mut trouble = Trouble::new(self, duration, book);
        run.publish(|_| trouble.make(&counts))?;
        let complete = run.drain()?;
        // Wait for the last old workers and counts, as long as they may take.
        let last = Instant::now();
        let limits = self.old_worker_limit.max(self.count_limit).clamp(0.0, 3600.0);
        let patience = self
            .clients
            .patience()
            .max(Duration::from_secs_f64(limits))
            .max(AFTERMATH);
        let is_over =
            |trouble: &Trouble| last.elapsed() > AFTERMATH && trouble.old.is_empty() && counts.are_true_since(last);
        while !is_over(&trouble) && last.elapsed() < patience {
            trouble.look();
            std::thread::sleep(Duration::from_millis(10));
        }
        let settling = counts.end(&trouble.events);
        let findings = run.finish()?;

        let mut report = self.target.report("reload");
        report.count("subscribers", "subscribers", subscribers as u64);
        report.count("reloads", "reloads", u64::from(trouble.reloads));
        report.count("killed", "workers killed", u64::from(trouble.killed));
        report.count("published", "messages accepted", findings.accepted);
        report.count("unanswered", "publishes without an answer", findings.unanswered);
        report.count("deliveries", "deliveries", findings.messages);
        let rate = per_second(findings.messages, findings.delivering);
        report.fact("deliveries_per_second", "deliveries per second", rate, Unit::PerSecond);
        let lost = findings.disconnects - findings.excused;
        report.count("excused", "readers of killed workers", findings.excused);
        report.count("lost_connections", "other readers whose connection was lost", lost);
        let each = lost as f64 / f64::from(trouble.reloads.max(1));
        report.fact("lost_per_reload", "these for each reload", each, Unit::Count);
        report.count("reconnects", "reconnects", findings.reconnects);
        report.latency("latency", "publish to delivery", &findings.latency);
        report.latency("old_worker", "life of an old worker after a reload", &trouble.lives);
        report.latency("count", "until the statistics were true after it", &settling.times);

        if lost > 0 && !self.tolerate_lost_connections {
            report.problem(format!("{lost} connections lost whose worker was not killed"));
        }
        let allowed = |seconds: f64| Duration::from_secs_f64(seconds.clamp(0.0, 3600.0));
        let oldest = trouble.lives.at(100.0);
        if trouble.lives.count() > 0 && oldest > allowed(self.old_worker_limit) {
            report.problem(format!(
                "an old worker lived for {oldest:.1?} after a reload, {} s are allowed",
                self.old_worker_limit
            ));
        }
        if !trouble.old.is_empty() {
            report.problem(format!("{} old workers are still there", trouble.old.len()));
        }
        let slowest = settling.times.at(100.0);
        if settling.times.count() > 0 && slowest > allowed(self.count_limit) {
            report.problem(format!(
                "the statistics were wrong for {slowest:.1?} after a reload or a kill, {} s are allowed",
                self.count_limit
            ));
        }
        if self.target.stats_url.is_some() && settling.times.count() == 0 && !trouble.events.is_empty() {
            report.problem("the statistics never answered");
        }
        if let Some(shown) = settling.wrong_at_end {
            report.problem(format!("in the end the statistics show {shown}"));
        }
        if !complete {
            report.problem("some subscribers never came to the end");
        }
        if trouble.reloads < self.reloads || trouble.killed < self.kills {
            report.problem("not all reloads and kills had their time: use more --seconds");
        }
        findings.judge(&mut report, true);
        Ok(report)
    }
}

/// Reloads and kills, when due, and the fate of old workers.
struct Trouble {
    master: u32,
    duration: Duration,
    wanted_reloads: u32,
    wanted_kills: u32,
    book: Option<Book>,
    reloads: u32,
    killed: u32,
    start: Option<Instant>,
    /// Old workers, and since when they are old.
    old: BTreeMap<u32, Instant>,
    lives: Latency,
    /// Times of actions after which the statistics may be wrong.
    events: Vec<Instant>,
}

impl Trouble {
    fn new(reload: &Reload, duration: Duration, book: Option<Book>) -> Self {
        Self {
            master: reload.master_pid,
            duration,
            wanted_reloads: reload.reloads,
            wanted_kills: reload.kills,
            book,
            reloads: 0,
            killed: 0,
            start: None,
            old: BTreeMap::new(),
            lives: Latency::new(),
            events: Vec::new(),
        }
    }

    fn make(&mut self, counts: &Counts) -> anyhow::Result<()> {
        let elapsed = self.start.get_or_insert_with(Instant::now).elapsed();
        self.look();
        counts.check()?;
        if self.reloads < self.wanted_reloads && elapsed > self.due(self.reloads, RELOAD) {
            let workers = proc::nginx_workers(self.master);
            let now = Instant::now();
            proc::signal(self.master, libc::SIGHUP)?;
            for pid in workers {
                self.old.entry(pid).or_insert(now);
            }
            self.reloads += 1;
            self.events.push(now);
        }
        if let Some(book) = self.book
            && self.killed < self.wanted_kills
            && elapsed > self.due(share_of_kill(self.killed, self.wanted_kills, self.wanted_reloads), KILL)
        {
            let mut workers = proc::nginx_workers(self.master);
            workers.retain(|pid| !self.old.contains_key(pid));
            // No worker just after a kill: the next call finds its successor.
            if let Some(worker) = fastrand::choice(&workers) {
                book.kill(*worker)?;
                self.killed += 1;
                self.events.push(Instant::now());
            }
        }
        Ok(())
    }

    /// Due time of an action at this part of a reload's share of the time.
    fn due(&self, share: u32, part: f64) -> Duration {
        let shares = f64::from(self.wanted_reloads.max(1));
        self.duration.mul_f64((f64::from(share) + part) / shares)
    }

    /// Records old workers that have exited.
    fn look(&mut self) {
        let lives = &mut self.lives;
        self.old.retain(|pid, since| {
            let lives_on = proc::is_running(*pid);
            if !lives_on {
                lives.record(since.elapsed().as_nanos() as u64);
            }
            lives_on
        });
    }
}

/// Places of reload and kill within a reload's share of the time: equally far from the previous and the next action.
const RELOAD: f64 = 0.4;
const KILL: f64 = 0.9;

/// The reload followed by the kill after `done` of `kills`.
fn share_of_kill(done: u32, kills: u32, reloads: u32) -> u32 {
    (u64::from(2 * done + 1) * u64::from(reloads.max(1)) / u64::from(2 * kills.max(1))) as u32
}

/// Watches the number of subscribers in the statistics, on its own thread: a query may wait for a worker that is
/// stopped or busy.
struct Counts {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// Observations of the statistics.
#[derive(Debug, Default)]
struct Seen {
    /// Times at which the statistics were wrong.
    wrong: Vec<Instant>,
    /// Time of the last query, and its count if that was wrong.
    last: Option<(Instant, Option<u64>)>,
}

/// Interval of queries.
const LOOK: Duration = Duration::from_millis(20);

/// How long the statistics were wrong after each event.
struct Settling {
    times: Latency,
    /// The last count, if wrong.
    wrong_at_end: Option<u64>,
}

impl Counts {
    fn watch(url: Option<UrlTemplate>, board: Board, processes: usize) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&seen));
        let work = |url| move || while_not(&stopped, || look(&url, board, processes, &noted));
        Self {
            stop,
            seen,
            thread: url.map(|url| std::thread::spawn(work(url))),
        }
    }

    /// Fails if the thread has ended by itself.
    fn check(&self) -> anyhow::Result<()> {
        match &self.thread {
            Some(thread) if thread.is_finished() => anyhow::bail!("the watch over the statistics has ended"),
            _ => Ok(()),
        }
    }

    /// Whether a query after that time showed the true count. Also true without a statistics URL.
    fn are_true_since(&self, time: Instant) -> bool {
        let last = lock(&self.seen).last;
        self.thread.is_none() || last.is_some_and(|(at, wrong)| at > time && wrong.is_none())
    }

    /// Observations after each event, up to the next one.
    fn end(mut self, events: &[Instant]) -> Settling {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic is on stderr already, and missing answers are a problem of their own.
            let _ = thread.join();
        }
        let seen = lock(&self.seen);
        let mut times = Latency::new();
        if seen.last.is_some() {
            for time in settling_times(events, &seen.wrong) {
                times.record(time.as_nanos() as u64);
            }
        }
        Settling {
            times,
            wrong_at_end: seen.last.and_then(|(_, wrong)| wrong),
        }
    }
}

fn while_not(stopped: &AtomicBool, mut work: impl FnMut()) {
    while !stopped.load(Relaxed) {
        work();
        std::thread::sleep(LOOK);
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compares the statistics with the clients' count.
fn look(url: &UrlTemplate, board: Board, processes: usize, seen: &Mutex<Seen>) {
    let open = || -> u64 { (0..processes).map(|hand| board.counters(hand).open.load(Relaxed)).sum() };
    let (asked, before) = (Instant::now(), open());
    // A query that a dying worker does not answer is ignored.
    let Some(shown) = fetch(url).ok().and_then(|text| subscribers_in(&text)) else {
        return;
    };
    let after = open();
    let is_true = (before.min(after)..=before.max(after)).contains(&shown);
    let mut seen = lock(seen);
    seen.last = Some((asked, (!is_true).then_some(shown)));
    if !is_true {
        seen.wrong.push(asked);
    }
}

/// For each event, the time to the last wrong count before the next event.
fn settling_times(events: &[Instant], wrong: &[Instant]) -> Vec<Duration> {
    let ends = events.iter().skip(1).copied().map(Some).chain([None]);
    let time = |(event, end): (&Instant, Option<Instant>)| {
        let within = |at: &&Instant| *at >= event && end.is_none_or(|end| **at < end);
        wrong.iter().rfind(within).map_or(Duration::ZERO, |at| *at - *event)
    };
    events.iter().zip(ends).map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_spread_over_the_reloads() {
        let shares =
            |kills, reloads| -> Vec<u32> { (0..kills).map(|done| share_of_kill(done, kills, reloads)).collect() };
        assert_eq!(shares(2, 4), [1, 3]);
        assert_eq!(shares(4, 4), [0, 1, 2, 3]);
        assert_eq!(shares(4, 2), [0, 0, 1, 1]);
        assert_eq!(shares(1, 0), [0]);
    }

    #[test]
    fn statistics_settle_at_the_last_wrong_answer() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let times = settling_times(&[at(100), at(200), at(300)], &[at(50), at(110), at(130), at(350)]);
        assert_eq!(times, [30, 0, 50].map(Duration::from_millis));
    }
}
