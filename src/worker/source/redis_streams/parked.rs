//! The dead letters of a stream, for operators.

use redis::{Script, Value};

use super::entry::Entry;
use super::stream::RedisStreams;
use crate::redis_link::{describe_error, invoke};
use crate::source::{Operation, ParkedEvent, ParkedEvents};

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

impl ParkedEvents for RedisStreams {
    fn list(&self) -> Operation<'_, Vec<ParkedEvent>> {
        Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let mut range = redis::cmd("XRANGE");
            range.arg(format!("{}.parked", self.stream)).arg("-").arg("+");
            let entries: Vec<Value> = range.query_async(&mut connection).await.map_err(describe_error)?;
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
                ParkedEvent {
                    id,
                    reason,
                    raw: event.raw.to_vec(),
                }
            };
            Ok(entries.into_iter().filter_map(Entry::of).map(event).collect())
        })
    }

    fn retry(&self, ids: Vec<String>) -> Operation<'_, u64> {
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

    fn forget(&self, ids: Vec<String>) -> Operation<'_, u64> {
        Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let mut delete = redis::cmd("XDEL");
            delete.arg(format!("{}.parked", self.stream)).arg(ids);
            delete.query_async(&mut connection).await.map_err(describe_error)
        })
    }
}
