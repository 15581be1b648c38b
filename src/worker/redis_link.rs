//! Redis: connections, scripts and leases, shared by all components that use it.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, FromRedisValue, Script, TlsCertificates};

use crate::broker_tls::BrokerTls;
use crate::clock::Timestamp;
use crate::config::endpoint::Endpoint;
use crate::config::section::Section;
use crate::config::value::FromText;
use crate::ops::finding::Finding;

/// A Redis server silent for this long is considered down.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle time before TCP keepalive probes a connection.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// `redis://[user:password@]host:port/database`, `rediss://` for TLS, or `unix:///socket`.
#[derive(Clone, Debug)]
pub struct Server(Client);

impl FromText for Server {
    const WANTED: &'static str = "a Redis URL such as \"redis://127.0.0.1:6379/0\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = |error| format!("not a Redis URL ({error}; example: \"redis://127.0.0.1:6379/0\")");
        let client = Client::open(text).map_err(bad)?;
        if let ConnectionAddr::Tcp(_, 0) | ConnectionAddr::TcpTls { port: 0, .. } = client.get_connection_info().addr()
        {
            return Err(format!("\"{text}\": there is no port 0"));
        }
        // Send requests at once (no Nagle delay), and detect a vanished server on idle connections, too.
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 3)
            .with_retries(3);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        let server = client.get_connection_info().clone().set_tcp_settings(tcp);
        Client::open(server).map(Self).map_err(bad)
    }
}

impl Server {
    /// Reads `url`, and with TLS the certificates.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let Self(client) = section.required("url")?;
        let address = client.get_connection_info().addr().clone();
        let is_tls = matches!(address, ConnectionAddr::TcpTls { .. });
        let BrokerTls { authorities, identity } = BrokerTls::read(section, "rediss://", is_tls);
        if !is_tls {
            return Some(Self(client));
        }
        let client_tls = identity.map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.text,
            client_key: key.text,
        });
        let certificates = TlsCertificates {
            client_tls,
            root_cert: authorities.map(|pem| pem.text),
        };
        match Client::build_with_tls(client.get_connection_info().clone(), certificates) {
            Ok(client) => Some(Self(client)),
            Err(error) => {
                section.complain_at("url", format!("TLS: {error}"));
                None
            }
        }
    }

    /// A stream on this server, for the check whether a source reads what a sink writes.
    pub fn stream_endpoint(&self, stream: &str) -> Endpoint {
        let info = self.0.get_connection_info();
        let address = info.addr().to_string().replace("localhost:", "127.0.0.1:");
        Endpoint::RedisStream {
            server: format!("{address}/{}", info.redis_settings().db()),
            stream: stream.to_owned(),
        }
    }

    pub async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        self.open(&config).await
    }

    /// A dedicated connection without a response timeout, for blocking commands.
    pub async fn connect_patiently(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        self.open(&config).await
    }

    async fn open(&self, config: &AsyncConnectionConfig) -> Result<MultiplexedConnection, String> {
        let connection = self.0.get_multiplexed_async_connection_with_config(config).await;
        connection.map_err(|error| self.unreachable(&error))
    }

    pub async fn subscribe(&self) -> Result<PubSub, String> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.0.get_async_pubsub()).await {
            Ok(subscriber) => subscriber.map_err(|error| self.unreachable(&error)),
            Err(_) => Err(self.unreachable(&"it does not answer")),
        }
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> String {
        let address = self.0.get_connection_info().addr();
        format!("no connection to Redis at {address}: {error}")
    }

    /// Is it configured to hold events durably?
    pub async fn examine(&self, holds_events: bool) -> Vec<Finding> {
        let address = self.0.get_connection_info().addr().to_string();
        let mut connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => return vec![Finding::Bad(with_advice(&error))],
        };
        let before = Timestamp::now();
        let asked = redis::pipe()
            .cmd("INFO")
            .cmd("TIME")
            .query_async::<(redis::InfoDict, (u64, u64))>(&mut connection)
            .await;
        let (info, (seconds, micros)) = match asked {
            Ok(answers) => answers,
            Err(error) => {
                return vec![Finding::Bad(format!(
                    "{address}: {}",
                    with_advice(&describe_error(error))
                ))];
            }
        };
        let ahead = i128::from(seconds * 1000 + micros / 1000) - i128::from(before.0);
        let mut findings = vec![Finding::Good(format!("Redis at {address} answers"))];
        findings.extend(clock(ahead));
        if holds_events {
            findings.extend(durability(&info));
        }
        findings
    }
}

/// A larger clock difference makes ages misleading.
const CLOCK_TOLERANCE_MILLIS: i128 = 2000;

/// `ahead` in milliseconds.
pub fn clock(ahead: i128) -> Option<Finding> {
    let seconds = ahead.abs() / 1000;
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    (ahead.abs() > CLOCK_TOLERANCE_MILLIS).then(|| {
        Finding::Warning(format!(
            "its clock is {seconds} s {side} the one here: ages of events are wrong by that; let both follow a time server"
        ))
    })
}

/// Does acknowledged data survive?
fn durability(info: &redis::InfoDict) -> Vec<Finding> {
    let is = |key: &str, value: &str| info.get::<String>(key).is_some_and(|is| is == value);
    let mut findings = Vec::new();
    if is("role", "slave") {
        findings.push(Finding::Bad(
            "it is a replica and takes no writes: give the address of its master".to_owned(),
        ));
    }
    if is("aof_enabled", "0") {
        findings.push(Finding::Warning(
            "it has no append-only file: what is queued is lost when it ends; set \"appendonly yes\"".to_owned(),
        ));
    } else if is("aof_last_write_status", "err") {
        findings.push(Finding::Bad(
            "it cannot write its append-only file: is its disk full? See its log".to_owned(),
        ));
    }
    let policy = info.get::<String>("maxmemory_policy").unwrap_or_default();
    if info.get::<u64>("maxmemory").is_some_and(|most| most > 0) && policy != "noeviction" {
        let text = format!(
            "with maxmemory-policy {policy} it throws away queues when its memory is full; set \"maxmemory-policy noeviction\""
        );
        // The other policies evict only keys with an expiry, such as leases.
        findings.push(if policy.starts_with("allkeys") {
            Finding::Bad(text)
        } else {
            Finding::Warning(text)
        });
    }
    findings
}

fn with_advice(error: &str) -> String {
    let advice = [
        ("NOAUTH", "it wants a password: redis://:PASSWORD@host:port/0"),
        ("WRONGPASS", "check user and password in \"url\""),
        ("AuthenticationFailed", "check user and password in \"url\""),
        ("NOPERM", "this user may not do that: see ACL in its documentation"),
        (
            "Connection refused",
            "is it running there, and does it listen on that address (\"bind\")?",
        ),
        ("DB index", "check the number at the end of \"url\""),
        ("LOADING", "it still reads its file: wait"),
    ];
    let found = advice.iter().find(|(sign, _)| error.contains(sign));
    found.map_or_else(|| error.to_owned(), |(_, advice)| format!("{error}; {advice}"))
}

/// The error as text for the log.
pub fn describe_error(error: redis::RedisError) -> String {
    format!("Redis: {error}")
}

/// The lease of the active worker: a key that holds a token and expires by itself.
#[derive(Clone, Debug)]
pub struct Lease {
    pub key: String,
    pub token: String,
    pub time: Duration,
}

/// Renews our own lease, takes a free one. 2: renewed, 1: taken, 0: held by another worker.
const TAKE: &str = r"
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 2 end
if holder then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

const RELEASE: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0";

impl Lease {
    pub fn new(key: String, time: Duration) -> Self {
        let token = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        Self { key, token, time }
    }

    /// `None`: held by another worker; else whether it was ours already.
    pub async fn take(&self, connection: &mut MultiplexedConnection) -> Result<Option<bool>, String> {
        let millis = u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX);
        let script = Script::new(TAKE);
        let mut call = script.key(&self.key);
        let state: u8 = invoke(connection, call.arg(&self.token).arg(millis)).await?;
        Ok((state > 0).then_some(state == 2))
    }

    pub async fn release(&self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        let script = Script::new(RELEASE);
        let mut call = script.key(&self.key);
        invoke(connection, call.arg(&self.token)).await
    }
}

pub async fn invoke<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    call: &redis::ScriptInvocation<'_>,
) -> Result<T, String> {
    call.invoke_async(connection).await.map_err(describe_error)
}

/// This process's name among the consumers of a queue.
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}-{:08x}", host.trim(), std::process::id(), fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_of() {
        assert_eq!(clock(1500), None);
        assert_eq!(clock(-2000), None);
        let finding = |ahead| match clock(ahead) {
            Some(Finding::Warning(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(finding(75_000).starts_with("its clock is 75 s ahead of the one here"));
        assert!(finding(-3_600_000).starts_with("its clock is 3600 s behind the one here"));
    }
}
