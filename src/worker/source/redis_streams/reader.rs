//! Claims that wait at the broker: a new entry is claimed and delivered in one step, without a query in between.
//!
//! A claiming script checks the lease first; a blocking command cannot. So the holder of the lease records, under the
//! lease, the connection on which it waits, and the next holder has that connection closed before it recovers the
//! claims. After that nothing more can be claimed through it, however long its owner was paused, and earlier claims are
//! recovered.
//!
//! This needs the right to use `CLIENT KILL`. Without it, or behind a proxy, streams are watched, and entries claimed
//! by script.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;

use super::entry::Entry;
use super::stream::BLOCK;
use crate::redis_link::{describe_error, invoke};

// KEYS: lease, reader. ARGV: token, name of the reader.
static REGISTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1",
    )
});

// KEYS: reader. ARGV: its name.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0",
    )
});

/// The waiting connection.
pub struct Reader {
    connection: MultiplexedConnection,
    name: Name,
    is_registered: Rc<Cell<bool>>,
    arrived: Rc<RefCell<Result<Vec<Entry>, String>>>,
}

/// What to claim, and under which lease.
pub struct Terms {
    pub stream: String,
    pub group: String,
    pub consumer: String,
    pub lease: String,
    pub token: String,
    /// Key that records the reader.
    pub key: String,
    pub count: usize,
}

/// A connection's identity within one run of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    run: String,
    client: u64,
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let (run, client) = text.split_once(' ')?;
        Some(Self {
            run: run.to_owned(),
            client: client.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.run, self.client)
    }
}

impl Reader {
    /// `Err`: connections cannot be identified here, or not be closed.
    pub async fn new(mut connection: MultiplexedConnection) -> Result<Self, String> {
        let client: u64 = redis::cmd("CLIENT")
            .arg("ID")
            .query_async(&mut connection)
            .await
            .map_err(describe_error)?;
        let run = run_of_server(&mut connection).await?;
        // Tests the permission: this closes no connection.
        kill(&mut connection, client).await?;
        Ok(Self {
            connection,
            name: Name { run, client },
            is_registered: Rc::default(),
            arrived: Rc::new(RefCell::new(Ok(Vec::new()))),
        })
    }

    /// Entries that arrived during the wait. `Err`: the connection failed, and entries that arrived must be recovered.
    pub fn take_arrived(&self) -> Result<Vec<Entry>, String> {
        self.arrived.replace(Ok(Vec::new()))
    }

    /// May entries be claimed through it?
    pub fn is_used(&self) -> bool {
        self.is_registered.get()
    }

    /// Ends it: nothing more is claimed through it, and the next holder need not close it.
    pub async fn close(self, by: &mut MultiplexedConnection, key: &str) -> Result<(), String> {
        if !self.is_used() {
            return Ok(());
        }
        kill(by, self.name.client).await?;
        let mut call = FORGET.key(key);
        invoke(by, call.arg(self.name.to_string())).await
    }

    /// Claims the next entries as soon as they arrive, or ends after a timeout; then notifies.
    pub fn wait(&self, terms: Terms, more: Arc<Notify>) -> impl Future<Output = ()> + use<> {
        let mut connection = self.connection.clone();
        let (name, arrived) = (self.name.to_string(), Rc::clone(&self.arrived));
        let is_registered = Rc::clone(&self.is_registered);
        async move {
            let claimed = claim(&mut connection, &terms, &name, &is_registered).await;
            *arrived.borrow_mut() = claimed;
            more.notify_one();
        }
    }
}

async fn claim(
    connection: &mut MultiplexedConnection,
    terms: &Terms,
    name: &str,
    is_registered: &Cell<bool>,
) -> Result<Vec<Entry>, String> {
    if !is_registered.get() {
        let mut call = REGISTER.key(&terms.lease);
        call.key(&terms.key).arg(&terms.token).arg(name);
        if invoke::<u8>(connection, &call).await? == 0 {
            return Err("the lease is somebody else's".to_owned());
        }
        is_registered.set(true);
    }
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(&terms.group).arg(&terms.consumer);
    read.arg("COUNT").arg(terms.count);
    read.arg("BLOCK")
        .arg(u64::try_from(BLOCK.as_millis()).unwrap_or(u64::MAX));
    read.arg("STREAMS").arg(&terms.stream).arg(">");
    read.query_async(connection)
        .await
        .map(Entry::of_read)
        .map_err(describe_error)
}

/// Closes the connection on which the last holder of the lease waited, if it still exists. Call under the lease.
pub async fn close_last(connection: &mut MultiplexedConnection, key: &str) -> Result<(), String> {
    let last: Option<String> = redis::cmd("GET")
        .arg(key)
        .query_async(connection)
        .await
        .map_err(describe_error)?;
    let Some(last) = last.as_deref().and_then(Name::parse) else {
        return Ok(());
    };
    // After a restart of the server the id belongs to another connection.
    if last.run != run_of_server(connection).await? {
        return Ok(());
    }
    kill(connection, last.client).await.map_err(|error| {
        format!("{error}; the worker before may be waiting there, and only CLIENT KILL keeps it from claiming more")
    })
}

async fn kill(connection: &mut MultiplexedConnection, client: u64) -> Result<(), String> {
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("ID").arg(client);
    kill.query_async::<u64>(connection)
        .await
        .map(drop)
        .map_err(describe_error)
}

/// An id that the server generates at each start.
async fn run_of_server(connection: &mut MultiplexedConnection) -> Result<String, String> {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(connection)
        .await
        .map_err(describe_error)?;
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    run.map(|run| run.trim().to_owned())
        .ok_or_else(|| "Redis does not tell its run_id".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let name = Name {
            run: "5e6f".to_owned(),
            client: 17,
        };
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        assert_eq!(Name::parse("17"), None);
    }
}
