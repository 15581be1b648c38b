//! `thoonk`: jobs of a Thoonk queue on Redis, shared with producers and workers that use the Python or JavaScript
//! library.
//!
//! ```toml
//! posts = { type = "thoonk", url = "redis://127.0.0.1:6379/0", queue = "posts", dialect = "classic" }
//! ```
//!
//! `dialect` is the schema: `"classic"` for thoonk.py and thoonk.js up to 0.5, `"jobs"` for thoonk-jobs.js. All transitions are single scripts:
//!
//! | here | in the schema |
//! |---|---|
//! | claim | oldest of `ids` → `claimed`; an id without body, or claimed already, is passed over |
//! | published | finish: out of `claimed`, `published`, `items`; `finishes` + 1 |
//! | parked | stall: into `stalled`, the body stays; why is in the hash `glue.park:QUEUE` |
//! | claim too old | back to the head of `ids`, `cancelled` + 1 |
//! | `park retry` | retry: out of `stalled`, into `ids` |
//!
//! State that the schema lacks is under `glue.`: the claims' holders, a sequence number per job (it makes the
//! `Event-Id`, and stays with the job across redeliveries), the lease. Claims of workers without this state are handed
//! back after `foreign_lease`. A job that is only in `items`, as left by a crash between two commands of such a worker,
//! is queued again when it has been seen so twice.
//!
//! `consumers = "one"` (default) keeps the order: one worker is active, others stand by. With `"many"` all take jobs,
//! and order is lost. Needs Redis 6.2.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Script, Value};
use tokio::sync::Notify;

use super::queue_driver::{self, Claimed, Grant, Queue, Terms};
use super::watch::Watches;
use super::{Context, Guarantee, Kind, Limits, Open, Operation, Run, Source};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::engine::feed::Feed;
use crate::event::{Event, EventId};
use crate::finalizer::Parked;
use crate::redis_link::{Lease, Server, describe_error, invoke, process_name};

pub const KIND: Kind = Kind {
    name: "thoonk",
    about: "jobs of a Thoonk queue on Redis",
    read,
};

/// A blocking wait is renewed after this time.
const BLOCK_SECONDS: u64 = 5;
/// Jobs per script: while Redis works on some, the lane works on the previous ones.
const DEFAULT_BATCH: usize = 256;
/// Maximum jobs per script, since scripts block the whole server.
const MAX_BATCH: usize = 1000;
/// Interval of searches for orphans, which read all ids.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(60);
/// Times below this are seconds: thoonk.py's retry writes them so.
const SECONDS_BELOW: f64 = 1e11;

#[derive(Clone)]
pub struct Thoonk {
    server: Server,
    queue: String,
    dialect: Dialect,
    /// A claim without our mark older than this is handed back.
    foreign_lease: Duration,
    orphan_interval: Duration,
    terms: Terms,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Classic,
    Jobs,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let server = Server::read(section);
    let queue = section.required::<String>("queue");
    if queue
        .as_ref()
        .is_some_and(|queue| queue.is_empty() || queue.contains('\0'))
    {
        section.complain_at("queue", "is not the name of a queue");
    }
    let words = [("classic", Dialect::Classic), ("jobs", Dialect::Jobs)];
    let dialect = section.choice("dialect", &words, Dialect::Classic);
    let terms = Terms::read(section, DEFAULT_BATCH, MAX_BATCH, Duration::from_secs(30));
    let foreign_lease = section.or("foreign_lease", Duration::from_secs(600));
    let orphan_interval = section.or("orphan_interval", ORPHAN_INTERVAL);
    Some(Box::new(Thoonk {
        server: server?,
        queue: queue?,
        dialect,
        foreign_lease,
        orphan_interval,
        terms,
        limits: Limits::read(section),
    }))
}

impl Source for Thoonk {
    fn examine(&self) -> Option<super::Examination<'_>> {
        Some(Box::pin(self.server.examine(true)))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn keeps_order(&self) -> bool {
        self.terms.exclusive
    }

    fn may_block(&self) -> bool {
        false
    }

    fn starts_ready(&self) -> bool {
        false
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let terms = self.terms;
            queue_driver::run(Jobs::new(*self, &context.name), terms, context).await
        })
    }

    fn open_since(&self, until: Timestamp) -> Option<Operation<'_, Open>> {
        Some(Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let [published, stalled] = [2, 5].map(|at| self.keys().0[at].clone());
            let (all, stalls): (Vec<(String, f64)>, HashSet<String>) = redis::pipe()
                .cmd("ZRANGE")
                .arg(&published)
                .arg(0)
                .arg(-1)
                .arg("WITHSCORES")
                .cmd("SMEMBERS")
                .arg(stalled)
                .query_async(&mut connection)
                .await
                .map_err(describe_error)?;
            // One of the libraries leaves stalled jobs in `published`.
            let times = all
                .into_iter()
                .filter(|(id, _)| !stalls.contains(id))
                .map(|(_, score)| Timestamp(millis_of(score)));
            let times: Vec<Timestamp> = times.filter(|time| *time <= until).collect();
            Ok(Open {
                events: times.len() as u64,
                oldest: times.into_iter().min(),
            })
        }))
    }

    fn parked(&self) -> Option<Box<dyn super::ParkedEvents>> {
        Some(Box::new(self.clone()))
    }
}

/// The keys of a queue, in the order expected by all scripts.
pub struct Keys(pub Vec<String>);

impl Thoonk {
    fn keys(&self) -> Keys {
        let prefix = match self.dialect {
            Dialect::Classic => "feed",
            Dialect::Jobs => "job",
        };
        let queue = &self.queue;
        let schema = [
            "ids",
            "items",
            "published",
            "claimed",
            "cancelled",
            "stalled",
            "finishes",
        ];
        let schema = schema.iter().map(|name| format!("{prefix}.{name}:{queue}"));
        let own = ["lease", "seq", "seqno", "owner", "deliveries", "suspects", "park"];
        let own = own.iter().map(|name| format!("glue.{name}:{queue}"));
        Keys(schema.chain(own).collect())
    }
}

/// Names the keys and checks the lease.
const PREAMBLE: &str = r"
local ids, items, published, claimed, cancelled, stalled, finishes = unpack(KEYS, 1, 7)
local lease, seq, seqno, owner, deliveries, suspects, park = unpack(KEYS, 8, 14)
if ARGV[1] ~= '' and redis.call('GET', lease) ~= ARGV[1] then return false end
-- What is told of claimed jobs; `bodies` has the body of each.
local function describe(list, bodies)
    local out = {}
    if #list == 0 then return out end
    local numbers = redis.call('HMGET', seq, unpack(list))
    local times = redis.call('ZMSCORE', published, unpack(list))
    for i, id in ipairs(list) do
        local number = numbers[i]
        if not number then
            number = redis.call('INCR', seqno)
            redis.call('HSET', seq, id, number)
        end
        out[i] = {id, bodies[i], redis.call('HINCRBY', deliveries, id, 1), times[i] or '0', number}
    end
    return out
end
local function forget(...)
    redis.call('HDEL', seq, ...)
    redis.call('HDEL', owner, ...)
    redis.call('HDEL', deliveries, ...)
    redis.call('HDEL', suspects, ...)
end
";

// ARGV: token, now in ms, worker, count
const CLAIM: &str = r"
local taken, bodies, wanted = {}, {}, tonumber(ARGV[4])
for _ = 1, 10 do
    if #taken >= wanted then break end
    local popped = redis.call('RPOP', ids, wanted - #taken)
    if not popped then break end
    local found = redis.call('HMGET', items, unpack(popped))
    for i, id in ipairs(popped) do
        if found[i] and redis.call('ZADD', claimed, 'NX', ARGV[2], id) == 1 then
            taken[#taken + 1] = id
            bodies[#taken] = found[i]
            redis.call('HSET', owner, id, ARGV[3])
        end
    end
end
return describe(taken, bodies)";

// Claims with our mark, each with its number. ARGV: token
const OURS: &str = r"
local out = {}
for _, id in ipairs(redis.call('ZRANGE', claimed, 0, -1)) do
    if redis.call('HEXISTS', owner, id) == 1 then
        out[#out + 1] = {id, redis.call('HGET', seq, id) or '0'}
    end
end
return out";

// ARGV: token, now in ms, worker, ids
const TAKE_OVER: &str = r"
local taken, bodies = {}, {}
for i = 4, #ARGV do
    local id = ARGV[i]
    local body = redis.call('HGET', items, id)
    if body and redis.call('ZSCORE', claimed, id) then
        redis.call('ZADD', claimed, 'XX', ARGV[2], id)
        redis.call('HSET', owner, id, ARGV[3])
        taken[#taken + 1] = id
        bodies[#taken] = body
    else
        redis.call('ZREM', claimed, id)
        forget(id)
    end
end
return describe(taken, bodies)";

// ARGV: token, worker, channel for results or '', number of finished ids, these, then for each parked id: id, reason as JSON
const SETTLE: &str = r"
local count, ours = tonumber(ARGV[4]), 0
local function is_ours(id)
    return (ARGV[1] ~= '' or redis.call('HGET', owner, id) == ARGV[2]) and redis.call('ZREM', claimed, id) == 1
end
for first = 5, 4 + count, 1000 do
    local done = {}
    for i = first, math.min(first + 999, 4 + count) do
        if is_ours(ARGV[i]) then done[#done + 1] = ARGV[i] end
    end
    if #done > 0 then
        redis.call('HDEL', cancelled, unpack(done))
        redis.call('ZREM', published, unpack(done))
        redis.call('HDEL', items, unpack(done))
        forget(unpack(done))
        redis.call('INCRBY', finishes, #done)
        ours = ours + #done
    end
    if ARGV[3] ~= '' then
        for _, id in ipairs(done) do redis.call('PUBLISH', ARGV[3], id) end
    end
end
for i = 5 + count, #ARGV, 2 do
    local id = ARGV[i]
    if is_ours(id) then
        ours = ours + 1
        redis.call('HSET', park, id, ARGV[i + 1])
        redis.call('HDEL', cancelled, id)
        redis.call('SADD', stalled, id)
        redis.call('ZREM', published, id)
        forget(id)
    end
end
return ours";

// ARGV: token, now in ms, ids
const RENEW: &str = r"
for i = 3, #ARGV do redis.call('ZADD', claimed, 'XX', ARGV[2], ARGV[i]) end
return 1";

// Back to the head, the last first. ARGV: token, ids
const GIVE_BACK: &str = r"
for i = #ARGV, 2, -1 do
    if redis.call('ZREM', claimed, ARGV[i]) == 1 then
        redis.call('HDEL', owner, ARGV[i])
        redis.call('HINCRBY', deliveries, ARGV[i], -1)
        redis.call('RPUSH', ids, ARGV[i])
    end
end
return 1";

// Hands back abandoned claims, the newest first, so that the oldest is at the head. With a lease, claims with our mark
// are the holder's, whatever their age. ARGV: token, ours older than, foreign older than
const SWEEP: &str = r"
local back = 0
local old = redis.call('ZRANGEBYSCORE', claimed, '-inf', ARGV[2], 'LIMIT', 0, 1000)
for i = #old, 1, -1 do
    local id = old[i]
    local score = tonumber(redis.call('ZSCORE', claimed, id))
    if score < 1e11 then score = score * 1000 end
    local is_ours = redis.call('HEXISTS', owner, id) == 1
    local limit = ARGV[3]
    if is_ours then limit = ARGV[2] end
    if score <= tonumber(limit) and not (is_ours and ARGV[1] ~= '') then
        redis.call('ZREM', claimed, id)
        redis.call('HDEL', owner, id)
        if redis.call('HEXISTS', items, id) == 1 then
            redis.call('HINCRBY', cancelled, id, 1)
            redis.call('RPUSH', ids, id)
            back = back + 1
        end
    end
end
return back";

// ARGV: token, ids
const ADOPT: &str = r"
local adopted = 0
for i = 2, #ARGV do
    local id = ARGV[i]
    if redis.call('HEXISTS', items, id) == 1 and not redis.call('ZSCORE', claimed, id)
        and redis.call('SISMEMBER', stalled, id) == 0 and not redis.call('LPOS', ids, id) then
        redis.call('LPUSH', ids, id)
        adopted = adopted + 1
    end
end
return adopted";

const RETRY: &str = r"
local again = 0
for i = 3, #ARGV do
    if redis.call('SREM', stalled, ARGV[i]) == 1 then
        redis.call('HDEL', park, ARGV[i])
        redis.call('LPUSH', ids, ARGV[i])
        redis.call('ZADD', published, ARGV[2], ARGV[i])
        again = again + 1
    end
end
return again";

// ARGV: token, ids
const DROP: &str = r"
local gone = 0
for i = 2, #ARGV do
    if redis.call('SREM', stalled, ARGV[i]) == 1 then
        redis.call('HDEL', park, ARGV[i])
        redis.call('HDEL', items, ARGV[i])
        redis.call('HDEL', cancelled, ARGV[i])
        gone = gone + 1
    end
end
return gone";

struct Jobs {
    config: Thoonk,
    name: String,
    keys: Keys,
    worker: String,
    lease: Lease,
    /// Held by the sweeping worker, where several are active.
    sweeping: Lease,
    epoch: u64,
    commands: Option<MultiplexedConnection>,
    waiting: Option<MultiplexedConnection>,
    /// Claims that a recovery has still to take over, oldest last.
    inherited: Option<Vec<String>>,
    suspected_orphans: HashSet<String>,
    orphans_at: Instant,
    watches: Watches,
}

/// Ids, bodies by id, reasons by id.
type StalledJobs = (Vec<String>, HashMap<String, Vec<u8>>, HashMap<String, String>);

/// A job as a script describes it: id, body, deliveries, published, number.
type Described = (String, Vec<u8>, u32, f64, u64);

impl Jobs {
    fn new(config: Thoonk, name: &str) -> Self {
        let queue = &config.queue;
        Self {
            keys: config.keys(),
            lease: Lease::new(format!("glue.lease:{queue}"), config.terms.lease),
            sweeping: Lease::new(format!("glue.leader:{queue}"), config.terms.lease),
            worker: process_name(),
            name: name.to_owned(),
            epoch: 0,
            commands: None,
            waiting: None,
            inherited: None,
            suspected_orphans: HashSet::new(),
            orphans_at: Instant::now(),
            watches: Watches::default(),
            config,
        }
    }

    fn connection(&self) -> Result<MultiplexedConnection, String> {
        self.commands.clone().ok_or_else(|| "no connection".to_owned())
    }

    fn token(&self) -> String {
        if self.config.terms.exclusive {
            self.lease.token.clone()
        } else {
            String::new()
        }
    }

    async fn call<T: redis::FromRedisValue>(&self, script: &str, arguments: &[String]) -> Result<T, String> {
        call(&mut self.connection()?, &self.keys, script, &self.token(), arguments).await
    }

    fn claim_arguments(&self, count: usize) -> [String; 3] {
        [now(), self.worker.clone(), count.to_string()]
    }

    fn settle_arguments(&self, finished: &[String], parked: &[(String, Parked)]) -> Vec<String> {
        let results = match self.config.dialect {
            Dialect::Classic => String::new(),
            Dialect::Jobs => format!("event.job.finish:{}", self.config.queue),
        };
        let mut arguments = vec![self.worker.clone(), results, finished.len().to_string()];
        arguments.extend_from_slice(finished);
        let parked = parked.iter();
        arguments.extend(parked.flat_map(|(id, parked)| [id.clone(), super::reason_json(parked)]));
        arguments
    }

    /// `None`: another worker holds the lease.
    fn granted(&self, jobs: Option<Vec<Described>>) -> Grant<Vec<Claimed<String>>> {
        match jobs {
            None => Grant::Lost,
            Some(jobs) => Grant::Granted(jobs.into_iter().map(|job| self.claimed(job)).collect()),
        }
    }

    fn claimed(&self, (id, body, deliveries, published, number): Described) -> Claimed<String> {
        let published = Timestamp(millis_of(published));
        Claimed {
            event: Event::new(EventId::new(self.epoch, number), published, Bytes::from(body)),
            claim: id,
            deliveries,
            unusable: None,
        }
    }

    /// Queues jobs again that were orphans twice in a row.
    async fn look_for_orphans(&mut self) -> Result<(), String> {
        if self.orphans_at.elapsed() < self.config.orphan_interval {
            return Ok(());
        }
        self.orphans_at = Instant::now();
        let mut connection = self.connection()?;
        let [ids, items, _, claimed, _, stalled] = [0, 1, 2, 3, 4, 5].map(|at| self.keys.0[at].as_str());
        // Read in this order, so that a job that moves meanwhile is seen at its destination.
        let (bodies, waiting, claims, stalls): (Vec<String>, Vec<String>, Vec<String>, Vec<String>) = redis::pipe()
            .cmd("HKEYS")
            .arg(items)
            .cmd("LRANGE")
            .arg(ids)
            .arg(0)
            .arg(-1)
            .cmd("ZRANGE")
            .arg(claimed)
            .arg(0)
            .arg(-1)
            .cmd("SMEMBERS")
            .arg(stalled)
            .query_async(&mut connection)
            .await
            .map_err(describe_error)?;
        let known: HashSet<String> = waiting.into_iter().chain(claims).chain(stalls).collect();
        let orphans: HashSet<String> = bodies.into_iter().filter(|id| !known.contains(id)).collect();
        let twice: Vec<String> = orphans.intersection(&self.suspected_orphans).cloned().collect();
        self.suspected_orphans = orphans;
        if !twice.is_empty() {
            let adopted: u64 = self.call(ADOPT, &twice).await?;
            tracing::warn!(
                "source {}: {adopted} jobs were neither waiting nor claimed; they wait again",
                self.name
            );
        }
        Ok(())
    }
}

async fn call<T: redis::FromRedisValue>(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    script: &str,
    token: &str,
    arguments: &[String],
) -> Result<T, String> {
    let script = Script::new(&format!("{PREAMBLE}{script}"));
    let mut call = script.key(&keys.0[0]);
    for key in &keys.0[1..] {
        call.key(key);
    }
    call.arg(token);
    for argument in arguments {
        call.arg(argument);
    }
    invoke(connection, &call).await
}

fn millis_of(score: f64) -> u64 {
    let millis = if score < SECONDS_BELOW { score * 1000.0 } else { score };
    // Scores are times; negative or too large values are invalid.
    if (0.0..1e18).contains(&millis) {
        millis as u64
    } else {
        0
    }
}

fn now() -> String {
    Timestamp::now().0.to_string()
}

impl Queue for Jobs {
    type Claim = String;

    fn name(&self) -> &str {
        &self.name
    }

    async fn connect(&mut self) -> Result<(), String> {
        let mut connection = self.config.server.connect().await?;
        self.waiting = Some(self.config.server.connect_patiently().await?);
        let queue = &self.config.queue;
        let registry = if self.config.dialect == Dialect::Classic {
            "feeds"
        } else {
            "jobs"
        };
        let is_new: u8 = redis::cmd("SADD")
            .arg(registry)
            .arg(queue)
            .query_async(&mut connection)
            .await
            .map_err(describe_error)?;
        if is_new == 1 && self.config.dialect == Dialect::Classic {
            // The libraries' announcement of a new queue.
            let said = format!("{queue}\0{}", self.worker);
            redis::pipe()
                .cmd("HSET")
                .arg(format!("feed.config:{queue}"))
                .arg("type")
                .arg("job")
                .ignore()
                .cmd("PUBLISH")
                .arg("newfeed")
                .arg(&said)
                .ignore()
                .cmd("PUBLISH")
                .arg("conffeed")
                .arg(&said)
                .ignore()
                .query_async::<()>(&mut connection)
                .await
                .map_err(describe_error)?;
        }
        let epoch = format!("glue.epoch:{queue}");
        let ((), epoch): ((), u64) = redis::pipe()
            .cmd("SET")
            .arg(&epoch)
            .arg(now())
            .arg("NX")
            .cmd("GET")
            .arg(&epoch)
            .query_async::<(Value, u64)>(&mut connection)
            .await
            .map(|(_, epoch)| ((), epoch))
            .map_err(describe_error)?;
        self.epoch = epoch;
        self.commands = Some(connection);
        self.inherited = None;
        tracing::info!("source {}: taking jobs of queue {queue}", self.name);
        Ok(())
    }

    async fn take_lease(&mut self) -> Result<Option<bool>, String> {
        self.lease.take(&mut self.connection()?).await
    }

    async fn release_lease(&mut self) -> Result<(), String> {
        self.lease.release(&mut self.connection()?).await
    }

    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<String>>>, String> {
        let jobs = self.call(CLAIM, &self.claim_arguments(count)).await?;
        Ok(self.granted(jobs))
    }

    async fn start_over(&mut self) -> Result<(), String> {
        self.inherited = None;
        Ok(())
    }

    async fn recover(&mut self, count: usize) -> Result<Grant<(Vec<Claimed<String>>, bool)>, String> {
        if !self.config.terms.exclusive {
            // Other workers are active: the sweep hands back what they abandon.
            return Ok(Grant::Granted((Vec::new(), true)));
        }
        let inherited = match self.inherited.take() {
            Some(inherited) => inherited,
            None => {
                let Some(mut ours) = self.call::<Option<Vec<(String, u64)>>>(OURS, &[]).await? else {
                    return Ok(Grant::Lost);
                };
                ours.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
                ours.into_iter().map(|(id, _)| id).collect()
            }
        };
        let mut rest = inherited;
        let slice = rest.split_off(rest.len().saturating_sub(count.min(MAX_BATCH)));
        let mut arguments = vec![now(), self.worker.clone()];
        arguments.extend(slice.into_iter().rev());
        let Some(jobs) = self.call::<Option<Vec<Described>>>(TAKE_OVER, &arguments).await? else {
            return Ok(Grant::Lost);
        };
        let is_last = rest.is_empty();
        self.inherited = Some(rest).filter(|rest| !rest.is_empty());
        Ok(Grant::Granted((
            jobs.into_iter().map(|job| self.claimed(job)).collect(),
            is_last,
        )))
    }

    async fn mark_suspect(&mut self, claim: &String) -> Result<u32, String> {
        let mut mark = redis::cmd("HINCRBY");
        mark.arg(&self.keys.0[12]).arg(claim).arg(1);
        mark.query_async(&mut self.connection()?).await.map_err(describe_error)
    }

    async fn settle(&mut self, finished: &[String], parked: &[(String, Parked)]) -> Result<Grant<u64>, String> {
        let ours = self.call(SETTLE, &self.settle_arguments(finished, parked)).await?;
        Ok(Grant::lost_of(ours, finished.len() + parked.len()))
    }

    async fn settle_and_claim(
        &mut self,
        finished: &[String],
        parked: &[(String, Parked)],
        count: usize,
    ) -> Result<(Option<Grant<u64>>, Grant<Vec<Claimed<String>>>), String> {
        let (settle, claim) = (self.settle_arguments(finished, parked), self.claim_arguments(count));
        // Pipelined on one connection.
        let (ours, jobs) = tokio::try_join!(self.call(SETTLE, &settle), self.call(CLAIM, &claim))?;
        Ok((
            Some(Grant::lost_of(ours, finished.len() + parked.len())),
            self.granted(jobs),
        ))
    }

    async fn renew(&mut self, claims: Vec<String>) -> Result<(), String> {
        let mut arguments = vec![now()];
        arguments.extend(claims);
        self.call::<Value>(RENEW, &arguments).await?;
        let mut connection = self.connection()?;
        if !self.config.terms.exclusive && self.sweeping.take(&mut connection).await?.is_none() {
            return Ok(());
        }
        let before = |lease: Duration| {
            let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            Timestamp::now().0.saturating_sub(lease).to_string()
        };
        let limits = [before(self.config.terms.lease), before(self.config.foreign_lease)];
        let back = self.call::<Option<u64>>(SWEEP, &limits).await?.unwrap_or_default();
        if back > 0 {
            tracing::warn!("source {}: {back} claims were too old; the jobs wait again", self.name);
        }
        self.look_for_orphans().await
    }

    async fn give_back(&mut self, claims: Vec<String>) -> Result<(), String> {
        self.call::<Value>(GIVE_BACK, &claims).await.map(drop)
    }

    fn wait_for_more(&mut self, _count: usize, more: Arc<Notify>) -> bool {
        let Some(mut connection) = self.waiting.clone() else {
            return false;
        };
        let ids = self.keys.0[0].clone();
        self.watches.spawn(async move {
            // Returns as soon as the list is not empty, and leaves it unchanged.
            let mut wait = redis::cmd("BLMOVE");
            wait.arg(&ids).arg(&ids).arg("RIGHT").arg("RIGHT").arg(BLOCK_SECONDS);
            if let Err(error) = wait.query_async::<Value>(&mut connection).await {
                // The main connection will have failed, too.
                tracing::debug!("waiting for {ids}: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            more.notify_one();
        });
        false
    }

    async fn lag(&mut self, feed: &Feed) -> Result<(), String> {
        let [ids, published, stalled] = [0, 2, 5].map(|at| self.keys.0[at].as_str());
        let (waiting, oldest, stalls): (u64, Vec<(String, f64)>, HashSet<String>) = redis::pipe()
            .cmd("LLEN")
            .arg(ids)
            .cmd("ZRANGE")
            .arg(published)
            .arg(0)
            .arg(15)
            .arg("WITHSCORES")
            .cmd("SMEMBERS")
            .arg(stalled)
            .query_async(&mut self.connection()?)
            .await
            .map_err(describe_error)?;
        // One of the libraries leaves stalled jobs in `published`.
        let oldest = oldest.into_iter().find(|(id, _)| !stalls.contains(id));
        feed.gauges()
            .set_lag(waiting, oldest.map(|(_, score)| Timestamp(millis_of(score))));
        Ok(())
    }
}

impl super::ParkedEvents for Thoonk {
    fn list(&self) -> super::Operation<'_, Vec<super::ParkedEvent>> {
        Box::pin(async move {
            let keys = self.keys();
            let mut connection = self.server.connect().await?;
            let (stalled, bodies, reasons): StalledJobs = redis::pipe()
                .cmd("SMEMBERS")
                .arg(&keys.0[5])
                .cmd("HGETALL")
                .arg(&keys.0[1])
                .cmd("HGETALL")
                .arg(&keys.0[13])
                .query_async(&mut connection)
                .await
                .map_err(describe_error)?;
            let event = |id: String| super::ParkedEvent {
                raw: bodies.get(&id).cloned().unwrap_or_default(),
                reason: reasons
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| "{\"reason\":\"stalled by another worker\"}".to_owned()),
                id,
            };
            Ok(stalled.into_iter().map(event).collect())
        })
    }

    fn retry(&self, ids: Vec<String>) -> super::Operation<'_, u64> {
        Box::pin(async move {
            let mut arguments = vec![now()];
            arguments.extend(ids);
            call(&mut self.server.connect().await?, &self.keys(), RETRY, "", &arguments).await
        })
    }

    fn forget(&self, ids: Vec<String>) -> super::Operation<'_, u64> {
        Box::pin(async move { call(&mut self.server.connect().await?, &self.keys(), DROP, "", &ids).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_in_seconds_are_times_too() {
        assert_eq!(millis_of(1_700_000_000.25), 1_700_000_000_250);
        assert_eq!(millis_of(1_700_000_000_250.0), 1_700_000_000_250);
        assert_eq!(millis_of(-1.0), 0);
    }

    #[test]
    fn keys_follow_the_dialect() {
        use crate::config::value::FromText;
        let mut config = Thoonk {
            server: Server::from_text("redis://127.0.0.1:1").unwrap(),
            queue: "q".into(),
            dialect: Dialect::Classic,
            foreign_lease: Duration::ZERO,
            orphan_interval: Duration::ZERO,
            terms: Terms {
                batch: 1,
                lease: Duration::ZERO,
                exclusive: true,
                max_deaths: 3,
            },
            limits: Limits { events: 1, bytes: 1 },
        };
        assert_eq!(config.keys().0[..2], ["feed.ids:q", "feed.items:q"]);
        config.dialect = Dialect::Jobs;
        let keys = config.keys().0;
        assert_eq!(
            (keys[6].as_str(), keys[12].as_str(), keys[13].as_str()),
            ("job.finishes:q", "glue.suspects:q", "glue.park:q")
        );
    }
}
