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
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::spawn(&self.dir, self.port);
        self.await_answer();
    }

    /// SIGKILL.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
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

/// Debian's RabbitMQ, without the wrapper that wants to be another user. It takes seconds to start, so tests that need it share one.
pub struct RabbitMq {
    dir: TempDir,
    pub port: u16,
    epmd_port: u16,
    distribution_port: u16,
    child: Child,
}

impl RabbitMq {
    pub fn start() -> Self {
        let dir = TempDir::new();
        let [port, epmd_port, distribution_port] = [free_port(), free_port(), free_port()];
        std::fs::create_dir(dir.path("home")).unwrap();
        std::fs::set_permissions(dir.path("home"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(
            dir.path("rabbit.conf"),
            format!("listeners.tcp.1 = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n"),
        )
        .unwrap();
        std::fs::write(dir.path("enabled_plugins"), "[].").unwrap();
        let child = Self::spawn(&dir, epmd_port, distribution_port);
        let broker = Self {
            dir,
            port,
            epmd_port,
            distribution_port,
            child,
        };
        broker.await_start();
        broker
    }

    /// Where the package has its real scripts.
    fn scripts() -> String {
        let list = Command::new("dpkg").args(["-L", "rabbitmq-server"]).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let server = list
            .lines()
            .find(|line| line.contains("/lib/") && line.ends_with("/sbin/rabbitmq-server"));
        server
            .expect("rabbitmq-server: scripts/setup brokers installs it")
            .trim_end_matches("/rabbitmq-server")
            .to_owned()
    }

    fn command(dir: &TempDir, program: &str, epmd_port: u16, distribution_port: u16) -> Command {
        let mut command = mortal(&format!("{}/{program}", Self::scripts()));
        command
            .env("HOME", dir.path("home"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", epmd_port.to_string())
            .env("RABBITMQ_NODENAME", format!("worker{epmd_port}@localhost"))
            .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", dir.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", dir.path("log"))
            .env("RABBITMQ_CONFIG_FILE", dir.path("rabbit.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.path("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", dir.path("pid"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            );
        command
    }

    fn spawn(dir: &TempDir, epmd_port: u16, distribution_port: u16) -> Child {
        let out = std::fs::File::create(dir.path("out")).unwrap();
        Self::command(dir, "rabbitmq-server", epmd_port, distribution_port)
            .stdout(out)
            .spawn()
            .unwrap()
    }

    fn await_start(&self) {
        wait("RabbitMQ", || self.dir.read("out").contains("completed with"));
        wait_for_port(self.port);
    }

    /// Stops it in good order, and starts it again on the same data.
    pub fn restart(&mut self) {
        let pid = self.dir.read("pid");
        let status = Command::new("kill").args(["-TERM", pid.trim()]).status();
        assert!(status.unwrap().success());
        let _ = self.child.wait();
        self.child = Self::spawn(&self.dir, self.epmd_port, self.distribution_port);
        self.await_start();
    }

    fn kill(&mut self) {
        // The script has started the Erlang machine, which is in the file.
        let pid = self.dir.read("pid");
        let _ = Command::new("kill")
            .args(["-KILL", pid.trim()])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f", self.port)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        // The name server outlives what it names.
        let mut epmd = Command::new("epmd");
        epmd.args(["-port", &self.epmd_port.to_string(), "-kill"])
            .env("ERL_EPMD_RELAXED_COMMAND_CHECK", "1");
        let _ = epmd.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Debian's nats-server with JetStream.
pub struct Nats {
    child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Nats {
    pub fn start() -> Self {
        let dir = TempDir::new();
        let port = free_port();
        let child = Self::spawn(&dir, port);
        wait_for_port(port);
        Self { child, port, dir }
    }

    fn spawn(dir: &TempDir, port: u16) -> Child {
        let mut command = mortal("nats-server");
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
            .arg(dir.path("js"));
        command.spawn().expect("nats-server: scripts/setup brokers installs it")
    }

    /// Stops it in good order, and starts it again on the same data.
    pub fn restart(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir, self.port);
        wait_for_port(self.port);
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
