//! Reads as a member of a consumer group.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Script, ScriptInvocation, Value};
use tokio::sync::Notify;

use super::entry::{Entry, StreamId, bytes_of, list_of};
use super::reader::{self, Reader};
use super::stream::{RedisStreams, wait_for_entry};
use super::trimmed::{Extent, Missed};
use crate::clock::Timestamp;
use crate::engine::feed::Feed;
use crate::finalizer::Parked;
use crate::redis_link::{Lease, describe_error, invoke, process_name};
use crate::source::queue_driver::{Claimed, Grant, Queue};
use crate::source::reason_json;
use crate::source::watch::Watches;

static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end
local answer = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[1], '>')
if not answer then return {} end
return answer[1][2]",
    )
});

// Entries come in the order of their ids, each with its delivery count.
static RECOVER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
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
return {answer[1], entries, counts, answer[3] or {}}",
    )
});

// ARGV: token, group, delete, number of finished ids, these, then for each parked id: id, reason as JSON.
static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
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
return ours",
    )
});

/// Reads as a member of a consumer group.
pub struct Group {
    config: RedisStreams,
    group: String,
    name: String,
    consumer: String,
    lease: Lease,
    parked: String,
    suspects: String,
    /// Key that records the connection on which the lease's holder waits.
    reader_key: String,
    commands: Option<MultiplexedConnection>,
    waiting: Option<Waiting>,
    /// Start of the next slice of a recovery.
    recovered: StreamId,
    last_seen: StreamId,
    missed: Missed,
    watches: Watches,
}

/// The way to wait for more entries.
enum Waiting {
    /// New entries are claimed at once.
    Claiming(Reader),
    /// New entries are noticed, and then claimed.
    Watching(MultiplexedConnection),
}

impl Group {
    pub fn new(config: RedisStreams, group: String, name: &str) -> Self {
        let stream = &config.stream;
        // With a single active worker, all workers use the same consumer name.
        let consumer = if config.terms.exclusive {
            "worker".to_owned()
        } else {
            process_name()
        };
        Self {
            lease: Lease::new(format!("glue.lease:{stream}:{group}"), config.terms.lease),
            parked: format!("{stream}.parked"),
            suspects: format!("glue.suspects:{stream}:{group}"),
            reader_key: format!("glue.reader:{stream}:{group}"),
            name: name.to_owned(),
            consumer,
            group,
            config,
            commands: None,
            waiting: None,
            recovered: StreamId::default(),
            last_seen: StreamId::default(),
            missed: Missed::default(),
            watches: Watches::default(),
        }
    }

    fn connection(&mut self) -> Result<MultiplexedConnection, String> {
        self.commands.clone().ok_or_else(|| "no connection".to_owned())
    }

    async fn connect_waiting(&self) -> Result<Waiting, String> {
        let connection = self.config.server.connect_patiently().await?;
        if !self.config.terms.exclusive {
            return Ok(Waiting::Watching(connection));
        }
        match Reader::new(connection.clone()).await {
            Ok(reader) => Ok(Waiting::Claiming(reader)),
            Err(error) => {
                tracing::info!(
                    "source {}: watching the stream, which takes a step more: {error}",
                    self.name
                );
                Ok(Waiting::Watching(connection))
            }
        }
    }

    fn token(&self) -> &str {
        if self.config.terms.exclusive {
            &self.lease.token
        } else {
            ""
        }
    }

    /// Entries claimed while waiting.
    fn arrived(&mut self) -> Result<Option<Vec<Claimed<StreamId>>>, String> {
        let Some(Waiting::Claiming(reader)) = &self.waiting else {
            return Ok(None);
        };
        let arrived = reader.take_arrived()?;
        let arrived: Vec<_> = arrived.into_iter().map(|entry| self.claimed(entry, 1)).collect();
        Ok((!arrived.is_empty()).then_some(arrived))
    }

    fn claim_call(&self, count: usize) -> ScriptInvocation<'static> {
        let mut call = CLAIM.key(&self.config.stream);
        call.key(&self.lease.key)
            .arg(self.token())
            .arg(&self.group)
            .arg(&self.consumer)
            .arg(count);
        call
    }

    fn granted(&mut self, answer: Value) -> Grant<Vec<Claimed<StreamId>>> {
        if answer == Value::Nil {
            return Grant::Lost;
        }
        let entries = list_of(answer).into_iter().filter_map(Entry::of);
        Grant::Granted(entries.map(|entry| self.claimed(entry, 1)).collect())
    }

    fn settle_call(&self, finished: &[StreamId], parked: &[(StreamId, Parked)]) -> ScriptInvocation<'static> {
        let mut call = SETTLE.key(&self.config.stream);
        call.key(&self.lease.key).key(&self.parked).key(&self.suspects);
        call.arg(self.token())
            .arg(&self.group)
            .arg(u8::from(self.config.delete))
            .arg(finished.len());
        for id in finished {
            call.arg(id.to_string());
        }
        for (id, parked) in parked {
            call.arg(id.to_string()).arg(reason_json(parked));
        }
        call
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
        self.waiting = Some(self.connect_waiting().await?);
        let start = if self.config.from_end { "$" } else { "0" };
        let mut create = redis::cmd("XGROUP");
        create
            .arg("CREATE")
            .arg(&self.config.stream)
            .arg(&self.group)
            .arg(start)
            .arg("MKSTREAM");
        match create.query_async::<()>(&mut connection).await {
            Err(error) if error.code() != Some("BUSYGROUP") => return Err(describe_error(error)),
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
        if let Some(Waiting::Claiming(reader)) = self.waiting.take() {
            // Entries that arrived through it and were not taken are recovered by the next holder.
            reader.close(&mut connection, &self.reader_key).await?;
        }
        self.lease.release(&mut connection).await
    }

    async fn claim(&mut self, count: usize) -> Result<Grant<Vec<Claimed<StreamId>>>, String> {
        if let Some(arrived) = self.arrived()? {
            return Ok(Grant::Granted(arrived));
        }
        let answer = invoke(&mut self.connection()?, &self.claim_call(count)).await?;
        Ok(self.granted(answer))
    }

    async fn start_over(&mut self) -> Result<(), String> {
        self.recovered = StreamId::default();
        let mut connection = self.connection()?;
        // Also this worker's own, from before it lost the lease.
        reader::close_last(&mut connection, &self.reader_key).await?;
        if matches!(&self.waiting, Some(Waiting::Claiming(reader)) if reader.is_used()) {
            self.waiting = Some(self.connect_waiting().await?);
        }
        Ok(())
    }

    async fn recover(&mut self, count: usize) -> Result<Grant<(Vec<Claimed<StreamId>>, bool)>, String> {
        let mut connection = self.connection()?;
        let idle = if self.config.terms.exclusive {
            Duration::ZERO
        } else {
            self.config.terms.lease
        };
        let mut call = RECOVER.key(&self.config.stream);
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
        mark.query_async(&mut connection).await.map_err(describe_error)
    }

    async fn settle(&mut self, finished: &[StreamId], parked: &[(StreamId, Parked)]) -> Result<Grant<u64>, String> {
        let call = self.settle_call(finished, parked);
        let answer = invoke(&mut self.connection()?, &call).await?;
        Ok(Grant::lost_of(answer, finished.len() + parked.len()))
    }

    async fn settle_and_claim(
        &mut self,
        finished: &[StreamId],
        parked: &[(StreamId, Parked)],
        count: usize,
    ) -> Result<(Option<Grant<u64>>, Grant<Vec<Claimed<StreamId>>>), String> {
        if let Some(arrived) = self.arrived()? {
            return Ok((None, Grant::Granted(arrived)));
        }
        let (settle, claim) = (self.settle_call(finished, parked), self.claim_call(count));
        let (mut first, mut second) = (self.connection()?, self.connection()?);
        let (settled, claimed) = tokio::try_join!(invoke(&mut first, &settle), invoke(&mut second, &claim))?;
        let lost = Grant::lost_of(settled, finished.len() + parked.len());
        Ok((Some(lost), self.granted(claimed)))
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
        claim
            .arg("JUSTID")
            .query_async(&mut connection)
            .await
            .map_err(describe_error)
    }

    async fn give_back(&mut self, _claims: Vec<StreamId>) -> Result<(), String> {
        // The next holder takes them over, in order.
        Ok(())
    }

    fn wait_for_more(&mut self, count: usize, more: Arc<Notify>) -> bool {
        match &self.waiting {
            None => false,
            Some(Waiting::Claiming(reader)) => {
                let terms = reader::Terms {
                    stream: self.config.stream.clone(),
                    group: self.group.clone(),
                    consumer: self.consumer.clone(),
                    lease: self.lease.key.clone(),
                    token: self.lease.token.clone(),
                    key: self.reader_key.clone(),
                    count,
                };
                self.watches.spawn(reader.wait(terms, more));
                true
            }
            Some(Waiting::Watching(connection)) => {
                let connection = connection.clone();
                self.watch(connection, more);
                false
            }
        }
    }

    async fn lag(&mut self, feed: &Feed) -> Result<(), String> {
        let mut connection = self.connection()?;
        let extent = Extent::of(&mut connection, &self.config.stream).await?;
        let group = group_info(&mut connection, &self.config.stream, &self.group).await?;
        let number = |key: &str| match group.get(key) {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        // The last delivered id is known exactly, or not at all.
        let delivered = group.get("last-delivered-id").cloned().and_then(bytes_of);
        let delivered = delivered.and_then(|id| StreamId::parse(&id)).unwrap_or_default();
        if let (Some(extent), Some(read)) = (extent, number("entries-read")) {
            feed.note_missed(&self.name, self.missed.since(&extent, delivered, read));
        }
        let pending: Value = redis::cmd("XPENDING")
            .arg(&self.config.stream)
            .arg(&self.group)
            .query_async(&mut connection)
            .await
            .map_err(describe_error)?;
        let oldest = list_of(pending)
            .into_iter()
            .nth(1)
            .and_then(bytes_of)
            .and_then(|id| StreamId::parse(&id));
        feed.gauges()
            .set_lag(number("lag").unwrap_or_default(), oldest.map(|id| Timestamp(id.millis)));
        Ok(())
    }
}

impl Group {
    fn watch(&mut self, mut connection: MultiplexedConnection, more: Arc<Notify>) {
        let (stream, group, seen) = (self.config.stream.clone(), self.group.clone(), self.last_seen);
        let is_alone = self.config.terms.exclusive && seen > StreamId::default();
        self.watches.spawn(async move {
            // Ignore entries that were delivered to other members of the group.
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
}

/// The XINFO GROUPS data of one group; empty if there is no such group.
pub async fn group_info(
    connection: &mut MultiplexedConnection,
    stream: &str,
    group: &str,
) -> Result<HashMap<String, Value>, String> {
    let mut info = redis::cmd("XINFO");
    info.arg("GROUPS").arg(stream);
    let groups: Vec<HashMap<String, Value>> = info.query_async(connection).await.map_err(describe_error)?;
    let is_ours = |one: &HashMap<String, Value>| {
        one.get("name")
            .cloned()
            .and_then(bytes_of)
            .is_some_and(|name| name == group.as_bytes())
    };
    Ok(groups.into_iter().find(is_ours).unwrap_or_default())
}
