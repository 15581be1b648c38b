//! Real brokers, started by a test on free ports and ended with it.

use std::ops::{Deref, DerefMut};

use push_stream_worker::test_servers;
use redis::{Commands, Connection};

/// `scripts/setup test brokers` installs the required programs.
macro_rules! server {
    ($name:ident, $start:expr) => {
        pub struct $name(test_servers::$name);

        impl $name {
            pub fn start() -> Self {
                Self($start.unwrap())
            }
        }

        impl Deref for $name {
            type Target = test_servers::$name;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl DerefMut for $name {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
    };
}

server!(Redis, test_servers::Redis::start("always", &[]));
server!(RabbitMq, test_servers::RabbitMq::start(""));
server!(Nats, test_servers::Nats::start(&[]));

impl Redis {
    pub fn connect(&self) -> Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }
}

/// Stops the broker cleanly, and restarts it on the same data.
macro_rules! calm_restart {
    ($name:ident) => {
        impl $name {
            pub fn stop_and_restart(&mut self) {
                self.stop().unwrap();
                self.restart().unwrap();
            }
        }
    };
}

calm_restart!(RabbitMq);
calm_restart!(Nats);

/// A producer and observer of a Thoonk queue, limited to the schema of the Python library.
pub struct Thoonk {
    pub redis: Connection,
    prefix: &'static str,
    pub queue: String,
}

impl Thoonk {
    pub fn classic(redis: &Redis, queue: &str) -> Self {
        Self {
            redis: redis.connect(),
            prefix: "feed",
            queue: queue.to_owned(),
        }
    }

    pub fn jobs(redis: &Redis, queue: &str) -> Self {
        Self {
            prefix: "job",
            ..Self::classic(redis, queue)
        }
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}:{}", self.prefix, self.queue)
    }

    /// As in `Job.put`.
    pub fn put(&mut self, id: &str, body: &str) {
        let now = unix_millis();
        let keys = ["ids", "publishes", "items", "published"].map(|name| self.key(name));
        redis::pipe()
            .atomic()
            .lpush(&keys[0], id)
            .incr(&keys[1], 1)
            .hset(&keys[2], id, body)
            .zadd(&keys[3], id, now)
            .query::<()>(&mut self.redis)
            .unwrap();
    }

    /// As in `Job.get`: two steps.
    pub fn get(&mut self) -> String {
        let id: String = self.redis.rpop(self.key("ids"), None).unwrap();
        let _: () = self.redis.zadd(self.key("claimed"), &id, unix_millis()).unwrap();
        id
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        let value: Option<u64> = self.redis.get(self.key(name)).unwrap();
        value.unwrap_or_default()
    }

    /// Lengths of ids, items, published, claimed and stalled.
    pub fn sizes(&mut self) -> [usize; 5] {
        let [ids, items, published, claimed, stalled] =
            ["ids", "items", "published", "claimed", "stalled"].map(|name| self.key(name));
        let (a, b, c, d, e) = redis::pipe()
            .llen(ids)
            .hlen(items)
            .zcard(published)
            .zcard(claimed)
            .scard(stalled)
            .query(&mut self.redis)
            .unwrap();
        [a, b, c, d, e]
    }
}

pub fn unix_millis() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
