//! `redis_streams`: entries of a Redis Stream, as a consumer group or from a cursor of the worker's own.
//!
//! ```toml
//! posts = { type = "redis_streams", url = "redis://127.0.0.1:6379/0", stream = "posts", group = "push" }
//! log   = { type = "redis_streams", url = "redis://127.0.0.1:6379/0", stream = "out", envelope = true, history = "10m" }
//! ```
//!
//! The event is the entry's `field` (default `body`), or with `field = "*"` all fields as one JSON object. Its id is
//! the entry's. With `envelope = true` the entry was written by a `redis_stream` sink: finished bytes with their
//! channels; no stage is needed.
//!
//! **With `group`** entries are acknowledged when they are published, and redelivered otherwise. `consumers = "one"`
//! (default) keeps the order: of all workers with this group one is active, by a lease in Redis, the others stand by.
//! `consumers = "many"` shares the entries among all; order is lost. Parked entries are copied to the stream
//! `<stream>.parked`, with reason, and acknowledged in the same step.
//!
//! **Without `group`** the worker reads from its own cursor, stored in `state_dir`: every worker gets every entry. With
//! `history` it starts this far back at each start, and again after each node recovery, to refill the node's memory;
//! `/ready` answers yes once it has caught up. A node drops entries it already has by their ids.
//!
//! A user with restricted rights needs those to streams and scripts on these keys, and should have `CLIENT ID`,
//! `CLIENT KILL` and `INFO`: with them an event that comes to a quiet stream is claimed a round trip sooner.
//!
//! Needs Redis 7.0. The stream must keep entries for longer than a worker may be down: trim it by time. Entries trimmed
//! before they were read are logged and counted (`push_stream_worker_source_missed_total`).

mod cursor;
mod entry;
mod group;
mod parked;
mod reader;
mod stream;
mod trimmed;

use std::time::Duration;

use redis::Value;

use self::cursor::Cursor;
use self::entry::{Entry, Format, StreamId, bytes_of};
use self::group::{Group, group_info};
use self::stream::RedisStreams;
use super::queue_driver::{self, Terms};
use super::{Context, Guarantee, Kind, Limits, Open, Operation, Run, Source};
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::redis_link::{Server, describe_error};

pub const KIND: Kind = Kind {
    name: "redis_streams",
    about: "a Redis Stream, by consumer group or from a cursor",
    read,
};

/// Maximum entries per read.
const DEFAULT_BATCH: usize = 256;

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
    let terms = Terms::read(section, DEFAULT_BATCH, usize::MAX, Duration::from_secs(10));
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
    Some(Box::new(RedisStreams {
        server: server?,
        stream: stream?,
        group,
        format,
        from_end,
        history,
        delete,
        terms,
        limits: Limits::read(section),
    }))
}

impl Source for RedisStreams {
    fn reads(&self) -> Option<Endpoint> {
        Some(self.server.stream_endpoint(&self.stream))
    }

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
        self.group.is_none() || self.terms.exclusive
    }

    fn may_block(&self) -> bool {
        false
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
                    queue_driver::run(Group::new(*self, group, &context.name), terms, context).await
                }
                None => Cursor::start(*self, context)?.run().await,
            }
        })
    }

    fn open_since(&self, until: Timestamp) -> Option<Operation<'_, Open>> {
        let group = self.group.as_ref()?;
        Some(Box::pin(async move {
            let mut connection = self.server.connect().await?;
            let info = match group_info(&mut connection, &self.stream, group).await {
                // The stream does not exist before its first event.
                Err(error) if error.contains(NO_STREAM) => {
                    return Ok(Open {
                        events: 0,
                        oldest: None,
                    });
                }
                info => info?,
            };
            let delivered = info.get("last-delivered-id").cloned().and_then(bytes_of);
            let delivered = delivered.map_or_else(|| "0".to_owned(), |id| String::from_utf8_lossy(&id).into_owned());
            let end = until.0.to_string();
            let mut pending = redis::cmd("XPENDING");
            pending.arg(&self.stream).arg(group);
            // The first worker creates the group.
            let (count, oldest, _, _): PendingSummary = match info.is_empty() {
                true => Default::default(),
                false => pending.query_async(&mut connection).await.map_err(describe_error)?,
            };
            let mut range = redis::cmd("XRANGE");
            range.arg(&self.stream).arg(format!("({delivered}")).arg(end);
            let waiting: Vec<Value> = range.query_async(&mut connection).await.map_err(describe_error)?;
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

/// Redis's error for a missing stream.
const NO_STREAM: &str = "no such key";

/// Number, first id, last id, and numbers by consumer.
type PendingSummary = (u64, Option<String>, Option<String>, Option<Vec<(String, String)>>);
