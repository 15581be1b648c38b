//! `redis_streams`: entries of a Redis Stream, as a consumer group or from a cursor of one's own.
//!
//! ```toml
//! posts = { type = "redis_streams", url = "redis://127.0.0.1:6379/0", stream = "posts", group = "push" }
//! log   = { type = "redis_streams", url = "redis://127.0.0.1:6379/0", stream = "out", envelope = true, history = "10m" }
//! ```
//!
//! The event is the entry's `field` (default `body`), or with `field = "*"` all fields as one JSON object. Its id is the entry's.
//! With `envelope = true` the entry is what a `redis_stream` sink wrote: finished bytes with their channels; no stage is needed.
//!
//! **With `group`** entries are acknowledged when they are published, and come again if not. `consumers = "one"` (default) keeps the order: of all workers with this
//! group one is active, by a lease in Redis, the others stand by. `consumers = "many"` shares the entries out among all; order is
//! lost. What is parked is copied to the stream `<stream>.parked`, with reason, and acknowledged in the same step.
//!
//! **Without `group`** the worker reads from a cursor of its own, stored in `state_dir`: every worker gets every entry. `history` makes
//! it begin so far back at each start, and again whenever a node has been away, to fill the node's memory; `/ready` says yes when it has caught up. A node
//! that has an entry already drops it by its id.
//!
//! Needs Redis 7.0. The stream must keep entries for longer than a worker may be away: trim it by time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Script, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

use super::claiming::{self, Claimed, Grant, Queue, Terms};
use super::{Context, Guarantee, Kind, Limits, Open, Operation, Run, Source};
use crate::checkpoint::{self, Checkpointer};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::engine::park::Reason;
use crate::engine::{Feed, Stop};
use crate::event::{Event, EventId};
use crate::finalizer::{Ack, AckTo, Handle, Parked};
use crate::redis_link::{Lease, Server, invoke, process_name, told};
use crate::watermark::Watermark;

pub const KIND: Kind = Kind {
    name: "redis_streams",
    about: "a Redis Stream, by consumer group or from a cursor",
    read,
};

/// A blocking read is asked anew after this time.
const BLOCK: Duration = Duration::from_secs(5);
/// Entries to one read.
const DEFAULT_BATCH: usize = 256;
/// An append whose reply was lost is repeated within seconds; so many ids are remembered to find it.
const REMEMBERED: usize = 16_384;

#[derive(Clone)]
pub struct RedisStreams {
    server: Server,
    stream: String,
    /// `None`: from a cursor.
    group: Option<String>,
    format: Format,
    /// Where a new group or cursor begins.
    from_end: bool,
    /// How far back a cursor begins at each start.
    history: Option<Duration>,
    /// Remove entries that are done.
    delete: bool,
    terms: Terms,
    limits: Limits,
}

/// How an event lies in an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Format {
    /// In this field.
    Field(String),
    /// Spread over all fields.
    Object,
    /// Finished, as the `redis_stream` sink writes it.
    Envelope,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let server = Server::read(section);
    let stream = section.required("stream");
    let group = section.optional::<String>("group");
    let is_grouped = section.has("group");
    let envelope = section.or("envelope", false);
    let field = section.or("field", "body".to_owned());
    if envelope && section.has("field") {
        section.complain_at("field", "contradicts envelope = true");
    }
    let format = match field.as_str() {
        _ if envelope => Format::Envelope,
        "*" => Format::Object,
        _ => Format::Field(field),
    };
    let from_end = section.choice("start", &[("beginning", false), ("end", true)], false);
    let history = section.optional("history");
    let exclusive = section.choice("consumers", &[("one", true), ("many", false)], true);
    let batch = section.or("batch", DEFAULT_BATCH);
    let lease = section.or("lease", Duration::from_secs(10));
    let max_deaths = section.or("max_deaths", 3_usize);
    let delete = section.or("delete", false);
    for key in ["consumers", "lease", "max_deaths", "delete"] {
        if !is_grouped && section.has(key) {
            section.complain_at(key, "belongs to a consumer group: group = \"…\"");
        }
    }
    if is_grouped && section.has("history") {
        section.complain_at("history", "belongs to a cursor; a group goes on where it was");
    }
    if section.has("start") && section.has("history") {
        section.complain_at("start", "contradicts history");
    }
    if batch == 0 {
        section.complain_at("batch", "must be at least 1");
    }
    if lease < MIN_LEASE {
        section.complain_at("lease", format!("must be at least {MIN_LEASE:?}"));
    }
    Some(Box::new(RedisStreams {
        server: server?,
        stream: stream?,
        group,
        format,
        from_end,
        history,
        delete,
        terms: Terms {
            batch,
            lease,
            exclusive,
            max_deaths: u32::try_from(max_deaths).unwrap_or(u32::MAX),
        },
        limits: Limits::read(section),
    }))
}

/// Below this a pause of the machine loses the lease.
pub const MIN_LEASE: Duration = Duration::from_millis(300);

impl Source for RedisStreams {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn keeps_order(&self) -> bool {
        self.group.is_none() || self.terms.exclusive
    }

    fn starts_ready(&self) -> bool {
        false
    }

    fn gives_channels(&self) -> bool {
        self.format == Format::Envelope
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            match self.group.clone() {
                Some(group) => {
                    let terms = self.terms;
                    claiming::run(Group::new(*self, group, &context.name), terms, context).await
                }
                None => Cursor::start(*self, context)?.run().await,
            }
        })
    }

    fn open_since(&self, until: Timestamp) -> Option<Operation<'_, Open>> {
        let group = self.group.as_ref()?;
        Some(Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let info = group_info(&mut connection, &self.stream, group).await?;
            let delivered = info.get("last-delivered-id").cloned().and_then(bytes_of);
            let delivered = delivered.map_or_else(|| "0".to_owned(), |id| String::from_utf8_lossy(&id).into_owned());
            let end = until.0.to_string();
            let ((count, oldest, _, _), waiting): (PendingSummary, Vec<Value>) = redis::pipe()
                .cmd("XPENDING")
                .arg(&self.stream)
                .arg(group)
                .cmd("XRANGE")
                .arg(&self.stream)
                .arg(format!("({delivered}"))
                .arg(end)
                .query_async(&mut connection)
                .await
                .map_err(told)?;
            let pending = oldest.and_then(|id| StreamId::parse(id.as_bytes()));
            let first = waiting.first().cloned().and_then(Entry::of).map(|entry| entry.id);
            Ok(Open {
                events: count + waiting.len() as u64,
                oldest: pending.into_iter().chain(first).min().map(|id| Timestamp(id.millis)),
            })
        }))
    }

    fn parked(&self) -> Option<Box<dyn super::ParkedEvents>> {
        self.group.as_ref()?;
        Some(Box::new(self.clone()))
    }
}

/// Number, first id, last id, and numbers by consumer.
type PendingSummary = (u64, Option<String>, Option<String>, Option<Vec<(String, String)>>);

/// An entry as Redis returns it.
struct Entry {
    id: StreamId,
    /// `None`: the entry was trimmed away.
    fields: Option<Vec<(String, Vec<u8>)>>,
}

/// `<milliseconds>-<sequence>`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct StreamId {
    millis: u64,
    seq: u64,
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.millis, self.seq)
    }
}

impl StreamId {
    fn parse(text: &[u8]) -> Option<Self> {
        let (millis, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }

    /// The largest id that is smaller; reading after it begins with this one.
    fn before(self) -> Self {
        match (self.millis, self.seq) {
            (0, 0) => self,
            (millis, 0) => Self {
                millis: millis - 1,
                seq: u64::MAX,
            },
            (millis, seq) => Self { millis, seq: seq - 1 },
        }
    }
}

fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Int(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

fn list_of(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) | Value::Set(list) => list,
        Value::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
        _ => Vec::new(),
    }
}

impl Entry {
    fn of(value: Value) -> Option<Self> {
        let mut parts = list_of(value).into_iter();
        let id = StreamId::parse(&bytes_of(parts.next()?)?)?;
        let fields = match parts.next() {
            None | Some(Value::Nil) => None,
            Some(fields) => {
                let mut fields = list_of(fields).into_iter();
                let mut pairs = Vec::new();
                while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
                    let name = String::from_utf8_lossy(&bytes_of(name)?).into_owned();
                    pairs.push((name, bytes_of(value)?));
                }
                Some(pairs)
            }
        };
        Some(Self { id, fields })
    }

    /// The entries in the answer to XREAD or XREADGROUP for a single stream.
    fn of_read(value: Value) -> Vec<Self> {
        // A list (RESP2) or a map (RESP3) of stream name and entries.
        let mut answer = list_of(value);
        if let [Value::Array(_)] = answer.as_slice() {
            answer = list_of(answer.remove(0));
        }
        let entries = answer.into_iter().nth(1).map(list_of).unwrap_or_default();
        entries.into_iter().filter_map(Self::of).collect()
    }

    /// The event, and why it cannot be used, if so.
    fn into_event(self, format: &Format) -> (Event, Option<String>) {
        let id = EventId::new(self.id.millis, self.id.seq);
        let received = Timestamp(self.id.millis);
        let event = |raw: Vec<u8>| Event::new(id.clone(), received, Bytes::from(raw));
        let Some(fields) = self.fields else {
            return (
                event(Vec::new()),
                Some("the entry was trimmed away before it was read".to_owned()),
            );
        };
        match format {
            Format::Field(name) => match fields.into_iter().find(|(field, _)| field == name) {
                Some((_, raw)) => (event(raw), None),
                None => (event(Vec::new()), Some(format!("the entry has no field \"{name}\""))),
            },
            Format::Object => {
                let pairs = fields
                    .into_iter()
                    .map(|(name, value)| (name, String::from_utf8_lossy(&value).into()));
                let object: serde_json::Map<String, serde_json::Value> = pairs.collect();
                (event(serde_json::Value::Object(object).to_string().into_bytes()), None)
            }
            Format::Envelope => {
                let mut fields: HashMap<String, Vec<u8>> = fields.into_iter().collect();
                let channels = fields
                    .remove("channels")
                    .and_then(|list| serde_json::from_slice::<Vec<String>>(&list).ok());
                let body = fields.remove("body").unwrap_or_default();
                let mut event = event(body.clone());
                event.body = Some(Bytes::from(body));
                event.event_type = fields.remove("type").and_then(|kind| String::from_utf8(kind).ok());
                match channels {
                    Some(channels) if !channels.is_empty() => {
                        event.channels = channels;
                        (event, None)
                    }
                    _ => (event, Some("the entry has no list of channels".to_owned())),
                }
            }
        }
    }

    /// What the sink knew the event by.
    fn origin(&self) -> Option<&[u8]> {
        let fields = self.fields.as_ref()?;
        fields
            .iter()
            .find(|(name, _)| name == "id")
            .map(|(_, value)| value.as_slice())
    }
}

const CLAIM: &str = r"
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end
local answer = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[1], '>')
if not answer then return {} end
return answer[1][2]";

// Entries come in the order of their ids, each with the number of its deliveries.
const RECOVER: &str = r"
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end
local answer = redis.call('XAUTOCLAIM', KEYS[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], 'COUNT', ARGV[6])
local entries, deliveries = answer[2], {}
if #entries > 0 then
    local first, last = entries[1][1], entries[#entries][1]
    for _, one in ipairs(redis.call('XPENDING', KEYS[1], ARGV[2], first, last, 10 * #entries, ARGV[3])) do
        deliveries[one[1]] = one[4]
    end
end
local counts = {}
for i, entry in ipairs(entries) do counts[i] = deliveries[entry[1]] or 1 end
return {answer[1], entries, counts, answer[3] or {}}";

// ARGV: token, group, delete, number of finished ids, these, then for each parked id: id, reason as JSON.
const SETTLE: &str = r"
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end
local count, ours = tonumber(ARGV[4]), 0
local has_suspects = redis.call('EXISTS', KEYS[4]) == 1
local function done(first, last)
    ours = ours + redis.call('XACK', KEYS[1], ARGV[2], unpack(ARGV, first, last))
    if ARGV[3] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, first, last)) end
    if has_suspects then redis.call('HDEL', KEYS[4], unpack(ARGV, first, last)) end
end
for i = 5, 4 + count, 1000 do done(i, math.min(i + 999, 4 + count)) end
for i = 5 + count, #ARGV, 2 do
    local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
    local fields = entry and entry[2] or {}
    redis.call('XADD', KEYS[3], '*', 'parked.id', ARGV[i], 'parked.reason', ARGV[i + 1], unpack(fields))
    done(i, i)
end
return ours";

/// Reads as a member of a consumer group.
struct Group {
    config: RedisStreams,
    group: String,
    name: String,
    consumer: String,
    lease: Lease,
    parked: String,
    suspects: String,
    commands: Option<MultiplexedConnection>,
    waiting: Option<MultiplexedConnection>,
    /// Where the next slice of a recovery begins.
    recovered: StreamId,
    last_seen: StreamId,
}

impl Group {
    fn new(config: RedisStreams, group: String, name: &str) -> Self {
        let stream = &config.stream;
        // With a single active one, all are the same consumer.
        let consumer = if config.terms.exclusive {
            "worker".to_owned()
        } else {
            process_name()
        };
        Self {
            lease: Lease::new(format!("glue.lease:{stream}:{group}"), config.terms.lease),
            parked: format!("{stream}.parked"),
            suspects: format!("glue.suspects:{stream}:{group}"),
            name: name.to_owned(),
            consumer,
            group,
            config,
            commands: None,
            waiting: None,
            recovered: StreamId::default(),
            last_seen: StreamId::default(),
        }
    }

    fn connection(&mut self) -> Result<MultiplexedConnection, String> {
        self.commands.clone().ok_or_else(|| "no connection".to_owned())
    }

    fn token(&self) -> &str {
        if self.config.terms.exclusive {
            &self.lease.token
        } else {
            ""
        }
    }

    fn claimed(&mut self, entry: Entry, deliveries: u32) -> Claimed<StreamId> {
        let claim = entry.id;
        self.last_seen = self.last_seen.max(claim);
        let (event, unusable) = entry.into_event(&self.config.format);
        Claimed {
            claim,
            event,
            deliveries,
            unusable,
        }
    }
}

impl Queue for Group {
    type Claim = StreamId;

    fn name(&self) -> &str {
        &self.name
    }

    async fn connect(&mut self) -> Result<(), String> {
        let mut connection = self.config.server.connect().await?;
        self.waiting = Some(self.config.server.connect_patiently().await?);
        let start = if self.config.from_end { "$" } else { "0" };
        let mut create = redis::cmd("XGROUP");
        create
            .arg("CREATE")
            .arg(&self.config.stream)
            .arg(&self.group)
            .arg(start)
            .arg("MKSTREAM");
        match create.query_async::<()>(&mut connection).await {
            Err(error) if error.code() != Some("BUSYGROUP") => return Err(told(error)),
            _ => {}
        }
        self.commands = Some(connection);
        self.recovered = StreamId::default();
        let (name, stream, group) = (&self.name, &self.config.stream, &self.group);
        tracing::info!("source {name}: reading stream {stream} as group {group}");
        Ok(())
    }

    async fn take_lease(&mut self) -> Result<Option<bool>, String> {
        let mut connection = self.connection()?;
        self.lease.take(&mut connection).await
    }

    async fn release_lease(&mut self) -> Result<(), String> {
        let mut connection = self.connection()?;
        self.lease.release(&mut connection).await
    }

    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<StreamId>>>, String> {
        let mut connection = self.connection()?;
        let script = Script::new(CLAIM);
        let mut call = script.key(&self.config.stream);
        call.key(&self.lease.key)
            .arg(self.token())
            .arg(&self.group)
            .arg(&self.consumer)
            .arg(count);
        match invoke(&mut connection, &call).await? {
            Value::Nil => Ok(Grant::Lost),
            entries => {
                let entries = list_of(entries).into_iter().filter_map(Entry::of);
                Ok(Grant::Granted(entries.map(|entry| self.claimed(entry, 1)).collect()))
            }
        }
    }

    async fn start_over(&mut self) -> Result<(), String> {
        self.recovered = StreamId::default();
        Ok(())
    }

    async fn recover(&mut self, count: usize) -> Result<Grant<(Vec<Claimed<StreamId>>, bool)>, String> {
        let mut connection = self.connection()?;
        let idle = if self.config.terms.exclusive {
            Duration::ZERO
        } else {
            self.config.terms.lease
        };
        let script = Script::new(RECOVER);
        let mut call = script.key(&self.config.stream);
        call.key(&self.lease.key)
            .arg(self.token())
            .arg(&self.group)
            .arg(&self.consumer);
        call.arg(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX))
            .arg(self.recovered.to_string())
            .arg(count);
        let (cursor, entries, counts, trimmed) = match invoke::<Value>(&mut connection, &call).await? {
            Value::Nil => return Ok(Grant::Lost),
            answer => redis::from_redis_value::<(String, Vec<Value>, Vec<u32>, Vec<String>)>(answer)
                .map_err(|error| error.to_string())?,
        };
        if !trimmed.is_empty() {
            let (name, count) = (&self.name, trimmed.len());
            tracing::error!(
                "source {name}: {count} entries were trimmed away before they were published, such as {}",
                trimmed[0]
            );
        }
        self.recovered = StreamId::parse(cursor.as_bytes()).unwrap_or_default();
        let is_last = self.recovered == StreamId::default();
        let entries = entries.into_iter().filter_map(Entry::of).zip(counts);
        let claimed = entries
            .map(|(entry, deliveries)| self.claimed(entry, deliveries))
            .collect();
        Ok(Grant::Granted((claimed, is_last)))
    }

    async fn mark_suspect(&mut self, claim: &StreamId) -> Result<u32, String> {
        let mut connection = self.connection()?;
        let mut mark = redis::cmd("HINCRBY");
        mark.arg(&self.suspects).arg(claim.to_string()).arg(1);
        mark.query_async(&mut connection).await.map_err(told)
    }

    async fn settle(&mut self, finished: &[StreamId], parked: &[(StreamId, Parked)]) -> Result<Grant<u64>, String> {
        let mut connection = self.connection()?;
        let script = Script::new(SETTLE);
        let mut call = script.key(&self.config.stream);
        call.key(&self.lease.key).key(&self.parked).key(&self.suspects);
        call.arg(self.token())
            .arg(&self.group)
            .arg(u8::from(self.config.delete))
            .arg(finished.len());
        for id in finished {
            call.arg(id.to_string());
        }
        for (id, parked) in parked {
            call.arg(id.to_string()).arg(super::reason_json(parked));
        }
        match invoke::<Option<u64>>(&mut connection, &call).await? {
            None => Ok(Grant::Lost),
            Some(ours) => Ok(Grant::Granted(
                ((finished.len() + parked.len()) as u64).saturating_sub(ours),
            )),
        }
    }

    async fn renew(&mut self, claims: Vec<StreamId>) -> Result<(), String> {
        if self.config.terms.exclusive || claims.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection()?;
        let mut claim = redis::cmd("XCLAIM");
        claim
            .arg(&self.config.stream)
            .arg(&self.group)
            .arg(&self.consumer)
            .arg(0);
        for id in &claims {
            claim.arg(id.to_string());
        }
        claim.arg("JUSTID").query_async(&mut connection).await.map_err(told)
    }

    async fn give_back(&mut self, _claims: Vec<StreamId>) -> Result<(), String> {
        // Whoever comes next takes them over, in order.
        Ok(())
    }

    fn wait_for_more(&mut self, more: Arc<Notify>) {
        let Some(mut connection) = self.waiting.clone() else {
            return;
        };
        let (stream, group, seen) = (self.config.stream.clone(), self.group.clone(), self.last_seen);
        let is_alone = self.config.terms.exclusive && seen > StreamId::default();
        tokio::task::spawn_local(async move {
            // What somebody else of the group was given is no news.
            let delivered = match is_alone {
                true => None,
                false => group_info(&mut connection, &stream, &group).await.ok(),
            };
            let delivered = delivered.and_then(|info| info.get("last-delivered-id").cloned().and_then(bytes_of));
            let after = delivered
                .and_then(|id| StreamId::parse(&id))
                .unwrap_or_default()
                .max(seen);
            wait_for_entry(connection, &stream, after).await;
            more.notify_one();
        });
    }

    async fn lag(&mut self, feed: &Feed) -> Result<(), String> {
        let mut connection = self.connection()?;
        let group = group_info(&mut connection, &self.config.stream, &self.group).await?;
        let number = |key: &str| match group.get(key) {
            Some(Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
            _ => 0,
        };
        let pending: Value = redis::cmd("XPENDING")
            .arg(&self.config.stream)
            .arg(&self.group)
            .query_async(&mut connection)
            .await
            .map_err(told)?;
        let oldest = list_of(pending)
            .into_iter()
            .nth(1)
            .and_then(bytes_of)
            .and_then(|id| StreamId::parse(&id));
        feed.gauges()
            .set_lag(number("lag"), oldest.map(|id| Timestamp(id.millis)));
        Ok(())
    }
}

/// What XINFO GROUPS says of one group; nothing if there is no such group.
async fn group_info(
    connection: &mut MultiplexedConnection,
    stream: &str,
    group: &str,
) -> Result<HashMap<String, Value>, String> {
    let mut info = redis::cmd("XINFO");
    info.arg("GROUPS").arg(stream);
    let groups: Vec<HashMap<String, Value>> = info.query_async(connection).await.map_err(told)?;
    let is_ours = |one: &HashMap<String, Value>| {
        one.get("name")
            .cloned()
            .and_then(bytes_of)
            .is_some_and(|name| name == group.as_bytes())
    };
    Ok(groups.into_iter().find(is_ours).unwrap_or_default())
}

/// Returns when there is an entry after this one, or after a while.
async fn wait_for_entry(mut connection: MultiplexedConnection, stream: &str, after: StreamId) {
    let mut read = redis::cmd("XREAD");
    let block = u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX);
    read.arg("COUNT")
        .arg(1)
        .arg("BLOCK")
        .arg(block)
        .arg("STREAMS")
        .arg(stream)
        .arg(after.to_string());
    if let Err(error) = read.query_async::<Value>(&mut connection).await {
        // The other connection will have noticed, too.
        tracing::debug!("waiting for stream {stream}: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What survives a restart of a cursor.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Position {
    stream: String,
    id: StreamId,
}

/// Reads everything, from a place of its own.
struct Cursor {
    config: RedisStreams,
    name: String,
    feed: Feed,
    stop: Stop,
    /// The last entry handed out.
    at: StreamId,
    marks: Watermark<StreamId>,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    checkpointer: Checkpointer<Position>,
    remembered: Remembered,
    pending: VecDeque<Entry>,
    /// Up to where the first reading goes; then the worker is ready.
    catch_up_to: Option<StreamId>,
    /// The last recovery of a node that was answered by reading again.
    recovery: u64,
    /// There was nothing more to read; somebody waits for more.
    is_dry: bool,
    recoveries: tokio::sync::watch::Receiver<u64>,
}

impl Cursor {
    fn start(config: RedisStreams, context: Context) -> std::io::Result<Self> {
        let Context {
            name,
            state_dir,
            feed,
            stop,
        } = context;
        let file = state_dir.join(format!("{name}.position.json"));
        let position = checkpoint::load::<Position>(&file)?.filter(|position| position.stream == config.stream);
        let at = match (config.history, position) {
            (Some(history), _) => before_now(history),
            (None, Some(position)) => position.id,
            (None, None) if config.from_end => StreamId {
                millis: u64::MAX,
                seq: u64::MAX,
            },
            (None, None) => StreamId::default(),
        };
        let (ack_to, acks) = mpsc::unbounded_channel();
        let mut recoveries = feed.recoveries();
        let recovery = *recoveries.borrow_and_update();
        Ok(Self {
            checkpointer: Checkpointer::spawn(&name, file, |_| ())?,
            recoveries,
            config,
            name,
            feed,
            stop,
            at,
            marks: Watermark::new(),
            acks,
            ack_to,
            remembered: Remembered::default(),
            pending: VecDeque::new(),
            catch_up_to: None,
            recovery,
            is_dry: false,
        })
    }

    async fn run(mut self) -> std::io::Result<()> {
        let mut is_told = false;
        while !self.stop.is_requested() {
            let Err(error) = self.session(&mut is_told).await else {
                break;
            };
            self.feed.gauges().set_ready(false);
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!("source {}: {error}; connecting again", self.name);
            }
            let mut stop = self.stop.clone();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1000))) => {}
                () = stop.requested() => {}
            }
        }
        self.settle();
        while !self.marks.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(&ack),
                () = self.stop.abandoned() => break,
            }
            self.settle();
        }
        Ok(())
    }

    async fn session(&mut self, is_told: &mut bool) -> Result<(), String> {
        let mut connection = self.config.server.connect().await?;
        let waiting = self.config.server.connect_patiently().await?;
        let newest = newest(&mut connection, &self.config.stream).await?;
        self.at = self.at.min(newest);
        self.catch_up_to.get_or_insert(newest);
        let (name, stream) = (&self.name, &self.config.stream);
        tracing::info!("source {name}: reading stream {stream} after {}", self.at);
        *is_told = false;
        let more = Arc::new(Notify::new());
        self.is_dry = false;
        let mut lag_at = Instant::now();
        let mut stop = self.stop.clone();
        while !stop.is_requested() {
            self.settle();
            self.refill();
            if Instant::now() >= lag_at {
                lag_at = Instant::now() + Duration::from_secs(1);
                self.tell_lag(&mut connection).await?;
            }
            let mut is_moving = false;
            if self.pending.is_empty() && !self.is_dry && self.feed.credit().room() > 0 {
                let room = self.config.terms.batch.min(self.feed.credit().room());
                let entries = read_after(&mut connection, &self.config.stream, self.read_from(), room).await?;
                self.is_dry = entries.is_empty();
                is_moving = !self.is_dry;
                self.pending.extend(entries);
                if self.is_dry {
                    let (connection, stream, after) = (waiting.clone(), self.config.stream.clone(), self.at);
                    let more = Arc::clone(&more);
                    tokio::task::spawn_local(async move {
                        wait_for_entry(connection, &stream, after).await;
                        more.notify_one();
                    });
                }
            }
            self.emit_pending();
            self.look_whether_ready();
            if is_moving {
                tokio::task::yield_now().await;
                continue;
            }
            let wanted = self.pending.front().map(Entry::size);
            let credit = Arc::clone(self.feed.credit());
            tokio::select! {
                biased;
                () = stop.requested() => {}
                Some(ack) = self.acks.recv() => self.note(&ack),
                () = more.notified(), if self.is_dry => self.is_dry = false,
                _ = self.recoveries.changed(), if self.config.history.is_some() => self.recoveries.mark_changed(),
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() => drop(permit),
                () = tokio::time::sleep_until(lag_at.into()) => {}
            }
        }
        Ok(())
    }

    /// What was read and not handed out must not be read again.
    fn read_from(&self) -> StreamId {
        self.pending.back().map_or(self.at, |entry| entry.id)
    }

    /// A node has been away: what it had in memory may be gone.
    fn refill(&mut self) {
        let Some(history) = self.config.history else { return };
        if !self.recoveries.has_changed().unwrap_or(false) {
            return;
        }
        self.recovery = *self.recoveries.borrow_and_update();
        // What is under way is not sent to the node that is back; it may have waited for longer than there is history.
        let waiting = self.marks.unfinished().min().map(|oldest| oldest.before());
        let from = waiting.into_iter().fold(before_now(history), StreamId::min);
        if from < self.at {
            tracing::info!("source {}: a node is back; reading again from {from}", self.name);
            self.catch_up_to = Some(self.at);
            self.feed.gauges().set_ready(false);
            self.at = from;
            self.pending.clear();
            self.remembered = Remembered::default();
            self.is_dry = false;
        }
    }

    fn emit_pending(&mut self) {
        while let Some(entry) = self.pending.front() {
            let Some(permit) = self.feed.credit().try_reserve_one(entry.size()) else {
                return;
            };
            let Some(entry) = self.pending.pop_front() else { return };
            self.at = entry.id;
            let ticket = self.marks.begin(entry.id, permit);
            let is_repeat =
                self.config.format == Format::Envelope && entry.origin().is_some_and(|id| self.remembered.has(id));
            if is_repeat {
                self.marks.finish(ticket);
                continue;
            }
            let (mut event, unusable) = entry.into_event(&self.config.format);
            if self.config.history.is_some() {
                event.recovery = self.recovery;
            }
            let handle = Handle::new(ticket, AckTo::Queue(self.ack_to.clone()), None);
            match unusable {
                None => self.feed.emit(event, handle),
                Some(text) => {
                    let reason = Reason {
                        component: "source".to_owned(),
                        text,
                        attempts: 1,
                    };
                    self.feed.park(&event, &reason, handle);
                }
            }
        }
    }

    /// Ready is who has published all that was there at the start.
    fn look_whether_ready(&mut self) {
        if self.catch_up_to.is_some_and(|end| self.at >= end) && self.marks.is_empty() {
            self.catch_up_to = Some(StreamId::default());
            if self.config.history.is_some() {
                self.feed.gauges().set_refilled(self.recovery);
            }
            self.feed.gauges().set_ready(true);
        }
    }

    async fn tell_lag(&mut self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        let newest = newest(connection, &self.config.stream).await?;
        let is_behind = newest > self.at;
        // The number of entries behind a cursor is not known to Redis; the time is.
        self.feed.gauges().set_lag(
            u64::from(is_behind),
            is_behind.then_some(Timestamp(self.at.millis.max(1))),
        );
        Ok(())
    }

    fn note(&mut self, ack: &Ack) {
        // First: a node that is back accepts what it will get again, and that must still be known here.
        self.refill();
        if ack.outcome.is_settled() {
            self.marks.finish(ack.ticket);
        }
    }

    fn settle(&mut self) {
        while let Ok(ack) = self.acks.try_recv() {
            self.note(&ack);
        }
        if let Some(advance) = self.marks.advance() {
            let stream = self.config.stream.clone();
            self.checkpointer.submit(
                Position {
                    stream,
                    id: advance.position,
                },
                advance.permits,
            );
        }
    }
}

impl Entry {
    fn size(&self) -> usize {
        self.fields.iter().flatten().map(|(_, value)| value.len()).sum()
    }
}

fn before_now(history: Duration) -> StreamId {
    let millis = u64::try_from(history.as_millis()).unwrap_or(u64::MAX);
    StreamId {
        millis: Timestamp::now().0.saturating_sub(millis),
        seq: 0,
    }
}

async fn newest(connection: &mut MultiplexedConnection, stream: &str) -> Result<StreamId, String> {
    let mut last = redis::cmd("XREVRANGE");
    last.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
    let entries: Vec<Value> = last.query_async(connection).await.map_err(told)?;
    Ok(entries
        .into_iter()
        .find_map(Entry::of)
        .map_or(StreamId::default(), |entry| entry.id))
}

async fn read_after(
    connection: &mut MultiplexedConnection,
    stream: &str,
    after: StreamId,
    count: usize,
) -> Result<Vec<Entry>, String> {
    let mut read = redis::cmd("XREAD");
    read.arg("COUNT")
        .arg(count)
        .arg("STREAMS")
        .arg(stream)
        .arg(after.to_string());
    read.query_async(connection).await.map(Entry::of_read).map_err(told)
}

/// The ids of late: which of them have been here already?
#[derive(Default)]
struct Remembered {
    order: VecDeque<Box<[u8]>>,
    ids: std::collections::HashSet<Box<[u8]>>,
}

impl Remembered {
    /// Remembers the id and says whether it was there before.
    fn has(&mut self, id: &[u8]) -> bool {
        if self.ids.contains(id) {
            return true;
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back(id.into());
        self.ids.insert(id.into());
        false
    }
}

// KEYS: stream, parked. ARGV: ids of the copies.
const RETRY: &str = r"
local again = 0
for _, id in ipairs(ARGV) do
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    if entry then
        local fields = {}
        for i = 1, #entry[2], 2 do
            if string.sub(entry[2][i], 1, 7) ~= 'parked.' then
                fields[#fields + 1] = entry[2][i]
                fields[#fields + 1] = entry[2][i + 1]
            end
        end
        if #fields > 0 then redis.call('XADD', KEYS[1], '*', unpack(fields)) end
        redis.call('XDEL', KEYS[2], id)
        again = again + 1
    end
end
return again";

impl super::ParkedEvents for RedisStreams {
    fn list(&self) -> super::Operation<'_, Vec<super::ParkedEvent>> {
        Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let mut range = redis::cmd("XRANGE");
            range.arg(format!("{}.parked", self.stream)).arg("-").arg("+");
            let entries: Vec<Value> = range.query_async(&mut connection).await.map_err(told)?;
            let event = |entry: Entry| {
                let id = entry.id.to_string();
                let mut fields = entry.fields.unwrap_or_default();
                let reason = fields
                    .iter()
                    .position(|(name, _)| name == "parked.reason")
                    .map(|at| fields.remove(at).1);
                fields.retain(|(name, _)| !name.starts_with("parked."));
                let reason = String::from_utf8_lossy(&reason.unwrap_or_default()).into_owned();
                let (event, _) = Entry {
                    id: entry.id,
                    fields: Some(fields),
                }
                .into_event(&self.format);
                super::ParkedEvent {
                    id,
                    reason,
                    raw: event.raw.to_vec(),
                }
            };
            Ok(entries.into_iter().filter_map(Entry::of).map(event).collect())
        })
    }

    fn retry(&self, ids: Vec<String>) -> super::Operation<'_, u64> {
        Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let script = Script::new(RETRY);
            let mut call = script.key(&self.stream);
            call.key(format!("{}.parked", self.stream));
            for id in &ids {
                call.arg(id);
            }
            invoke(&mut connection, &call).await
        })
    }

    fn forget(&self, ids: Vec<String>) -> super::Operation<'_, u64> {
        Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let mut delete = redis::cmd("XDEL");
            delete.arg(format!("{}.parked", self.stream)).arg(ids);
            delete.query_async(&mut connection).await.map_err(told)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry(id: &str, fields: &[&str]) -> Value {
        Value::Array(vec![
            bulk(id),
            Value::Array(fields.iter().map(|field| bulk(field)).collect()),
        ])
    }

    #[test]
    fn an_entry_becomes_an_event_with_its_id_and_time() {
        let read = || Entry::of(entry("1700000000000-7", &["body", "{}", "x", "y"])).unwrap();
        let (event, unusable) = read().into_event(&Format::Field("body".into()));
        assert_eq!(
            (event.id.to_string().as_str(), event.received),
            ("1700000000000-7", Timestamp(1_700_000_000_000))
        );
        assert_eq!((event.raw.as_ref(), unusable), (&b"{}"[..], None));
        let (event, _) = read().into_event(&Format::Object);
        assert_eq!(event.raw, r#"{"body":"{}","x":"y"}"#);
        let (_, unusable) = read().into_event(&Format::Field("z".into()));
        assert_eq!(unusable.as_deref(), Some("the entry has no field \"z\""));
        let (_, unusable) = read().into_event(&Format::Envelope);
        assert!(unusable.unwrap().contains("channels"));
        let trimmed = Entry::of(Value::Array(vec![bulk("1-1"), Value::Nil])).unwrap();
        assert!(trimmed.into_event(&Format::Object).1.unwrap().contains("trimmed"));
    }

    #[test]
    fn both_forms_of_a_read_are_understood() {
        let entries = || Value::Array(vec![entry("1-1", &["a", "b"]), entry("1-2", &["a", "c"])]);
        let two = Value::Array(vec![Value::Array(vec![bulk("s"), entries()])]);
        let three = Value::Map(vec![(bulk("s"), entries())]);
        for form in [two, three] {
            let ids: Vec<_> = Entry::of_read(form).iter().map(|entry| entry.id.to_string()).collect();
            assert_eq!(ids, ["1-1", "1-2"]);
        }
        assert!(Entry::of_read(Value::Nil).is_empty());
    }

    #[test]
    fn ids_order_by_number() {
        let id = |text: &str| StreamId::parse(text.as_bytes()).unwrap();
        assert!(id("9-9") < id("10-0") && id("10-2") < id("10-10"));
        assert_eq!(StreamId::parse(b"x"), None);
    }

    #[test]
    fn a_repeated_append_is_remembered() {
        let mut remembered = Remembered::default();
        assert!(!remembered.has(b"a") && remembered.has(b"a"));
        for n in 0..REMEMBERED {
            assert!(!remembered.has(n.to_string().as_bytes()));
        }
        assert!(!remembered.has(b"a"), "only the ids of late");
    }
}
