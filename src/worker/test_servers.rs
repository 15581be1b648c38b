//! Private servers on free loopback ports, for `bench` and for tests: Redis, RabbitMQ, NATS and nginx. They end with
//! the thread that started them, however that ends.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Far longer than any of them takes to start, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(3);

/// A directory that is removed on drop.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("push-stream-worker-{}-{number}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that gets this signal when the thread that started it ends.
pub fn mortal(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A port that was free a moment ago, below the kernel's ephemeral range: a client that keeps retrying a loopback port
/// without a listener there can end up connected to itself and occupy the port.
///
/// All processes take them from one row, so that none comes again soon: somebody may still be trying to reach the server
/// that had it before.
pub fn free_port() -> io::Result<u16> {
    const PORTS: Range<u16> = 21_000..32_000;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut options = OpenOptions::new();
    let row = options.read(true).write(true).create(true).truncate(false);
    let Ok(mut row) = row.open(std::env::temp_dir().join("push-stream-ports")) else {
        // It is another user's.
        let mut some = std::iter::repeat_with(|| fastrand::u16(PORTS)).take(100);
        return some.find(is_free).ok_or_else(no_free_port);
    };
    row.lock()?;
    let mut last = String::new();
    row.read_to_string(&mut last)?;
    let last = last.trim().parse().ok().filter(|last| PORTS.contains(last));
    let last = last.unwrap_or_else(|| fastrand::u16(PORTS));
    let port = (last + 1..PORTS.end).chain(PORTS.start..last).find(is_free);
    let port = port.ok_or_else(no_free_port)?;
    row.rewind()?;
    // Of the same length always: nothing of the old one is left.
    write!(row, "{port}")?;
    Ok(port)
}

fn no_free_port() -> io::Error {
    io::Error::other("no free port")
}

/// Polls a condition that sends no notification.
fn wait(what: &str, child: &mut Child, mut is_there: impl FnMut() -> bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("{what} does not start: {status}")));
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{what} does not start within {PATIENCE:?}")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn spawn(mut command: Command, program: &str) -> io::Result<Child> {
    let named = |error| io::Error::other(format!("cannot start {program}: {error}"));
    command.spawn().map_err(named)
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn terminate(child: &mut Child) -> io::Result<()> {
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
    child.wait().map(drop)
}

/// A broker with its own port and directory.
pub trait Broker {
    const PROGRAM: &'static str;

    /// The command that starts it on its existing data.
    fn command(&self, port: u16) -> io::Result<Command>;

    fn is_up(&self, port: u16) -> bool {
        listens(port)
    }
}

/// A running broker; dropping it ends it.
#[derive(Debug)]
pub struct Running<B: Broker> {
    child: Child,
    pub port: u16,
    broker: B,
}

impl<B: Broker> Running<B> {
    fn launch(broker: B, port: u16) -> io::Result<Self> {
        let child = spawn(broker.command(port)?, B::PROGRAM)?;
        let mut running = Self { child, port, broker };
        running.await_start()?;
        Ok(running)
    }

    fn await_start(&mut self) -> io::Result<()> {
        let Self { child, port, broker } = self;
        wait(B::PROGRAM, child, || broker.is_up(*port))
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        kill(&mut self.child);
    }

    /// SIGTERM, then waits for the exit.
    pub fn stop(&mut self) -> io::Result<()> {
        terminate(&mut self.child)
    }

    /// Restarts on the same data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = spawn(self.broker.command(self.port)?, B::PROGRAM)?;
        self.await_start()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl<B: Broker> Drop for Running<B> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Debian's redis-server with an append-only file.
#[derive(Debug)]
pub struct RedisServer {
    options: Vec<String>,
    directory: Directory,
}

pub type Redis = Running<RedisServer>;

fn redis_url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}/0")
}

impl Broker for RedisServer {
    const PROGRAM: &'static str = "redis-server";

    fn command(&self, port: u16) -> io::Result<Command> {
        let mut command = mortal("KILL", Self::PROGRAM);
        command.args(["--port", &port.to_string()]).args(&self.options);
        command.arg("--dir").arg(self.directory.path(""));
        Ok(command)
    }

    /// Redis answers with an error while it loads its file.
    fn is_up(&self, port: u16) -> bool {
        let connection = redis::Client::open(redis_url(port)).and_then(|client| client.get_connection());
        connection.is_ok_and(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok())
    }
}

impl Redis {
    /// `fsync` is `always`, `everysec` or `no`; `options` are further command-line options.
    pub fn start(fsync: &str, options: &[&str]) -> io::Result<Self> {
        let always = [
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            fsync,
        ];
        let options = always.iter().chain(options).map(|&option| option.to_owned()).collect();
        let directory = Directory::new()?;
        Self::launch(RedisServer { options, directory }, free_port()?)
    }

    pub fn url(&self) -> String {
        redis_url(self.port)
    }
}

/// Debian's RabbitMQ, without the wrapper that switches user, and with a private name server (epmd).
#[derive(Debug)]
pub struct RabbitMqServer {
    names: Child,
    names_port: u16,
    distribution_port: u16,
    directory: Directory,
}

pub type RabbitMq = Running<RabbitMqServer>;

impl RabbitMqServer {
    /// Directory of the package's real scripts.
    fn script() -> io::Result<PathBuf> {
        let list = Command::new("dpkg").args(["-L", "rabbitmq-server"]).output()?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let script = list
            .lines()
            .find(|line| line.contains("/lib/") && line.ends_with("/sbin/rabbitmq-server"));
        let missing = || io::Error::other("the package rabbitmq-server is not installed");
        script.map(PathBuf::from).ok_or_else(missing)
    }
}

impl Broker for RabbitMqServer {
    const PROGRAM: &'static str = "rabbitmq-server";

    fn command(&self, _port: u16) -> io::Result<Command> {
        let Self {
            names_port, directory, ..
        } = self;
        let mut command = mortal("KILL", Self::script()?);
        command
            .env("HOME", directory.path("home"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", names_port.to_string())
            .env("RABBITMQ_NODENAME", format!("worker{names_port}@localhost"))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", directory.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", directory.path("log"))
            .env("RABBITMQ_CONFIG_FILE", directory.path("rabbit.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", directory.path("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", directory.path("pid"))
            // RabbitMQ leaves files in its working directory when killed.
            .current_dir(&directory.0)
            // With this variable the script execs the Erlang VM instead of staying its parent.
            .env("RUNNING_UNDER_SYSTEMD", "1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .stdout(File::create(directory.path("out"))?);
        Ok(command)
    }

    fn is_up(&self, port: u16) -> bool {
        self.directory.read("out").contains("completed with") && listens(port)
    }
}

impl Drop for RabbitMqServer {
    fn drop(&mut self) {
        kill(&mut self.names);
    }
}

impl RabbitMq {
    /// `options` are further lines of `rabbitmq.conf`.
    pub fn start(options: &str) -> io::Result<Self> {
        let directory = Directory::new()?;
        let (port, names_port, distribution_port) = (free_port()?, free_port()?, free_port()?);
        let home = directory.path("home");
        fs::create_dir(&home)?;
        fs::set_permissions(&home, PermissionsExt::from_mode(0o700))?;
        let options = format!("listeners.tcp.1 = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n{options}");
        fs::write(directory.path("rabbit.conf"), options)?;
        fs::write(directory.path("enabled_plugins"), "[].")?;
        // Otherwise the first Erlang program starts one that outlives the test.
        let mut names = mortal("KILL", "epmd");
        names.args(["-address", "127.0.0.1", "-port", &names_port.to_string()]);
        let names = spawn(names, "epmd")?;
        let mut broker = RabbitMqServer {
            names,
            names_port,
            distribution_port,
            directory,
        };
        wait("epmd", &mut broker.names, || listens(names_port))?;
        Self::launch(broker, port)
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f", self.port)
    }
}

/// Debian's nats-server with JetStream.
#[derive(Debug)]
pub struct NatsServer {
    options: Vec<String>,
    directory: Directory,
}

pub type Nats = Running<NatsServer>;

impl Broker for NatsServer {
    const PROGRAM: &'static str = "nats-server";

    fn command(&self, port: u16) -> io::Result<Command> {
        let mut command = mortal("KILL", Self::PROGRAM);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]);
        command.arg(self.directory.path("js")).args(&self.options);
        Ok(command)
    }
}

impl Nats {
    /// `options` are further command-line options.
    pub fn start(options: &[&str]) -> io::Result<Self> {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let directory = Directory::new()?;
        Self::launch(NatsServer { options, directory }, free_port()?)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

/// nginx with the module: publishers on a unix socket, readers on a port.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    pub port: u16,
    directory: Directory,
}

impl Nginx {
    /// `configuration` may use `${MODULE}`, `${DIR}` and `${PORT}`.
    pub fn start(program: &Path, module: &Path, configuration: &str) -> io::Result<Self> {
        let directory = Directory::new()?;
        let port = free_port()?;
        let value = |name: &str| match name {
            "MODULE" => Some(module.display().to_string()),
            "DIR" => Some(directory.path("").display().to_string()),
            "PORT" => Some(port.to_string()),
            _ => None,
        };
        let text = crate::config::value::substitute(configuration, value).map_err(io::Error::other)?;
        fs::write(directory.path("nginx.conf"), text)?;
        // nginx's workers end with the master only if the master gets SIGTERM.
        let mut command = mortal("TERM", program);
        command
            .arg("-p")
            .arg(directory.path(""))
            .args(["-e", "error.log", "-c", "nginx.conf", "-g", "daemon off;"]);
        command.stderr(File::create(directory.path("stderr"))?);
        let child = spawn(command, &program.display().to_string())?;
        let mut nginx = Self { child, port, directory };
        let started = wait("nginx", &mut nginx.child, || listens(port));
        started.map_err(|error| io::Error::other(format!("{error}: {}", nginx.directory.read("stderr").trim())))?;
        Ok(nginx)
    }

    /// The publisher address.
    pub fn publish_address(&self) -> String {
        format!("unix:{}", self.directory.path("publish.sock").display())
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = terminate(&mut self.child);
    }
}
