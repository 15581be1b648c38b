//! Real brokers, started by a test on free ports and gone with it.

use std::process::{Child, Command, Stdio};

use redis::{Commands, Connection};

use crate::support::*;

/// A program that dies with the test, however that ends.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Debian's redis-server, keeping everything in an append-only file.
pub struct Redis {
    child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let dir = TempDir::new();
        let port = free_port();
        let child = Self::spawn(&dir, port);
        let redis = Self { child, port, dir };
        redis.await_answer();
        redis
    }

    fn spawn(dir: &TempDir, port: u16) -> Child {
        let mut command = mortal("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--dir").arg(dir.path(""));
        command.spawn().expect("redis-server: scripts/setup test installs it")
    }

    fn await_answer(&self) {
        wait("Redis", || {
            let connection = self.client().get_connection();
            connection.is_ok_and(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok())
        });
    }

    /// SIGKILL, and up again on the same data.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir, self.port);
        self.await_answer();
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    pub fn connect(&self) -> Connection {
        self.client().get_connection().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A producer and observer of a Thoonk queue that knows the schema of the Python library and nothing else.
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

    /// As `Job.put` does it.
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

    /// As `Job.get` does it: two steps.
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
