//! A configured stream, and waiting for its next entry.

use std::time::Duration;

use redis::Value;
use redis::aio::MultiplexedConnection;

use super::entry::{Format, StreamId};
use crate::redis_link::Server;
use crate::source::Limits;
use crate::source::queue_driver::Terms;

/// A blocking read is renewed after this time.
pub const BLOCK: Duration = Duration::from_secs(5);
/// A failed wait counts as over after this time.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
pub struct RedisStreams {
    pub server: Server,
    pub stream: String,
    /// `None`: reads from a cursor.
    pub group: Option<String>,
    pub format: Format,
    /// A new group or cursor starts at the end of the stream.
    pub from_end: bool,
    /// How far back a cursor begins at each start.
    pub history: Option<Duration>,
    /// Delete finished entries.
    pub delete: bool,
    pub terms: Terms,
    pub limits: Limits,
}

/// Returns when there is an entry after this one, or after a timeout.
pub async fn wait_for_entry(mut connection: MultiplexedConnection, stream: &str, after: StreamId) {
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
        // The main connection will have failed, too.
        tracing::debug!("waiting for stream {stream}: {error}");
        tokio::time::sleep(FAILURE_PAUSE).await;
    }
}
