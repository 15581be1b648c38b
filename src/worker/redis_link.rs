//! Redis: connections, scripts and leases for everything here that uses it.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, FromRedisValue, Script, TlsCertificates};

use crate::broker_tls::BrokerTls;
use crate::config::section::{FromText, Section};

/// A Redis that says nothing for so long is not there.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is silent for so long is tried.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// `redis://[user:password@]host:port/database`, `rediss://` for TLS, or `unix:///socket`.
#[derive(Clone, Debug)]
pub struct Server(Client);

impl FromText for Server {
    const WANTED: &'static str = "a Redis URL such as \"redis://127.0.0.1:6379/0\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let bad = |error| format!("not a Redis URL ({error}; example: \"redis://127.0.0.1:6379/0\")");
        let client = Client::open(text).map_err(bad)?;
        // What is asked for goes out at once, and a server that has gone without a word is noticed also where nothing is asked.
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
    /// `url`, and with TLS the certificates.
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

    pub async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        self.open(&config).await
    }

    /// For commands that block: these need a connection of their own, and patience.
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
}

/// What went wrong, for people.
pub fn told(error: redis::RedisError) -> String {
    format!("Redis: {error}")
}

/// The right to be the active one: a key that holds a token and ends by itself.
#[derive(Clone, Debug)]
pub struct Lease {
    pub key: String,
    pub token: String,
    pub time: Duration,
}

/// Keeps what is ours, takes what is free. 2: kept, 1: taken, 0: somebody else's.
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

    /// `None`: it is somebody else's; else whether it was ours already.
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
    call.invoke_async(connection).await.map_err(told)
}

/// A name for this process among the consumers of a queue.
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}-{:08x}", host.trim(), std::process::id(), fastrand::u32(..))
}
