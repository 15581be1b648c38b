//! Servers of one's own on free loopback ports, for `bench` and for tests: Redis, RabbitMQ, NATS and nginx. They end with the thread that started
//! them, however that ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Far beyond what any of them takes to start, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(3);

/// A directory that is gone when this is dropped.
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

/// A program that gets this signal when the thread that starts it ends.
pub fn mortal(signal: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A port that was free a moment ago.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Polls for what gives no notice.
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

/// Debian's redis-server with an append-only file.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    pub port: u16,
    options: Vec<String>,
    directory: Directory,
}

impl Redis {
    /// `fsync` is `always`, `everysec` or `no`; further options as on its command line.
    pub fn start(fsync: &str, options: &[&str]) -> io::Result<Self> {
        let directory = Directory::new()?;
        let port = free_port()?;
        let mut all = vec![
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            fsync,
        ];
        all.extend(options);
        let options: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let child = Self::spawn(&directory, port, &options)?;
        let mut redis = Self {
            child,
            port,
            options,
            directory,
        };
        redis.await_answer()?;
        Ok(redis)
    }

    fn spawn(directory: &Directory, port: u16, options: &[String]) -> io::Result<Child> {
        let mut command = mortal("KILL", "redis-server");
        command.args(["--port", &port.to_string()]).args(options);
        command.arg("--dir").arg(directory.path(""));
        spawn(command, "redis-server")
    }

    fn await_answer(&mut self) -> io::Result<()> {
        let client = redis::Client::open(self.url()).map_err(io::Error::other)?;
        wait("redis-server", &mut self.child, || {
            let connection = client.get_connection();
            // It answers with an error while it reads its file.
            connection.is_ok_and(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok())
        })
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        kill(&mut self.child);
    }

    /// Up again on the same data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = Self::spawn(&self.directory, self.port, &self.options)?;
        self.await_answer()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Debian's RabbitMQ, without the wrapper that wants to be another user, and with a name server of its own.
#[derive(Debug)]
pub struct RabbitMq {
    child: Child,
    names: Child,
    pub port: u16,
    names_port: u16,
    distribution_port: u16,
    directory: Directory,
}

impl RabbitMq {
    /// Further lines of `rabbitmq.conf`.
    pub fn start(options: &str) -> io::Result<Self> {
        let directory = Directory::new()?;
        let (port, names_port, distribution_port) = (free_port()?, free_port()?, free_port()?);
        let home = directory.path("home");
        fs::create_dir(&home)?;
        fs::set_permissions(&home, PermissionsExt::from_mode(0o700))?;
        let options = format!("listeners.tcp.1 = 127.0.0.1:{port}\ndisk_free_limit.absolute = 50MB\n{options}");
        fs::write(directory.path("rabbit.conf"), options)?;
        fs::write(directory.path("enabled_plugins"), "[].")?;
        // Else the first Erlang program starts one, which outlives everybody.
        let mut names = mortal("KILL", "epmd");
        names.args(["-address", "127.0.0.1", "-port", &names_port.to_string()]);
        let mut names = spawn(names, "epmd")?;
        wait("epmd", &mut names, || listens(names_port))?;
        let child = Self::spawn(&directory, names_port, distribution_port)?;
        let mut broker = Self {
            child,
            names,
            port,
            names_port,
            distribution_port,
            directory,
        };
        broker.await_start()?;
        Ok(broker)
    }

    /// Where the package has its real scripts.
    fn script() -> io::Result<PathBuf> {
        let list = Command::new("dpkg").args(["-L", "rabbitmq-server"]).output()?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let script = list
            .lines()
            .find(|line| line.contains("/lib/") && line.ends_with("/sbin/rabbitmq-server"));
        let missing = || io::Error::other("the package rabbitmq-server is not installed");
        script.map(PathBuf::from).ok_or_else(missing)
    }

    fn spawn(directory: &Directory, names_port: u16, distribution_port: u16) -> io::Result<Child> {
        let mut command = mortal("KILL", Self::script()?);
        command
            .env("HOME", directory.path("home"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", names_port.to_string())
            .env("RABBITMQ_NODENAME", format!("worker{names_port}@localhost"))
            .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", directory.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", directory.path("log"))
            .env("RABBITMQ_CONFIG_FILE", directory.path("rabbit.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", directory.path("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", directory.path("pid"))
            // The script then becomes the Erlang machine, and is not its parent.
            .env("RUNNING_UNDER_SYSTEMD", "1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
            )
            .stdout(File::create(directory.path("out"))?);
        spawn(command, "rabbitmq-server")
    }

    fn await_start(&mut self) -> io::Result<()> {
        let (directory, port) = (&self.directory, self.port);
        wait("rabbitmq-server", &mut self.child, || {
            directory.read("out").contains("completed with") && listens(port)
        })
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        kill(&mut self.child);
    }

    pub fn stop(&mut self) -> io::Result<()> {
        terminate(&mut self.child)
    }

    /// Up again on the same data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = Self::spawn(&self.directory, self.names_port, self.distribution_port)?;
        self.await_start()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("amqp://127.0.0.1:{}/%2f", self.port)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        self.kill();
        kill(&mut self.names);
    }
}

/// Debian's nats-server with JetStream.
#[derive(Debug)]
pub struct Nats {
    child: Child,
    pub port: u16,
    options: Vec<String>,
    directory: Directory,
}

impl Nats {
    /// With further options as on its command line.
    pub fn start(options: &[&str]) -> io::Result<Self> {
        let directory = Directory::new()?;
        let port = free_port()?;
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let child = Self::spawn(&directory, port, &options)?;
        let mut nats = Self {
            child,
            port,
            options,
            directory,
        };
        wait("nats-server", &mut nats.child, || listens(port))?;
        Ok(nats)
    }

    fn spawn(directory: &Directory, port: u16, options: &[String]) -> io::Result<Child> {
        let mut command = mortal("KILL", "nats-server");
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
            .arg(directory.path("js"))
            .args(options);
        spawn(command, "nats-server")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        kill(&mut self.child);
    }

    pub fn stop(&mut self) -> io::Result<()> {
        terminate(&mut self.child)
    }

    /// Up again on the same data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.kill();
        self.child = Self::spawn(&self.directory, self.port, &self.options)?;
        let port = self.port;
        wait("nats-server", &mut self.child, || listens(port))
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
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
    /// `configuration` with `${MODULE}`, `${DIR}` and `${PORT}` in it.
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
        // Its workers end with the master only if the master is asked.
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

    /// Where publishers connect.
    pub fn publish_address(&self) -> String {
        format!("unix:{}", self.directory.path("publish.sock").display())
    }

    /// The master.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = terminate(&mut self.child);
    }
}
