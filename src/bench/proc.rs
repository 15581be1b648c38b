//! A server's cost, measured from outside: processor time and memory of its processes, from `/proc`.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::modes::Modes;

/// A server under test: the processes with these ids and all their descendants, looked up anew at each sample.
#[derive(Clone, Debug, Default)]
pub struct Server {
    roots: Vec<u32>,
}

/// Processor time used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Time on a processor, in user and kernel mode, to the nanosecond.
    pub total: Duration,
    /// Its user-mode part, if available: that needs root.
    pub user: Option<Duration>,
}

/// Measures a server's processor time from its creation on.
#[derive(Debug)]
pub struct Meter {
    server: Server,
    before: Duration,
    modes: Option<Modes>,
}

impl Meter {
    /// Processor time used since then.
    pub fn read(self) -> Cpu {
        let total = self.server.on_cpu().saturating_sub(self.before);
        let part = self.modes.and_then(|modes| modes.end().user_part());
        Cpu {
            total,
            user: part.map(|part| total.mul_f64(part)),
        }
    }
}

impl Server {
    pub fn new(roots: Vec<u32>) -> anyhow::Result<Self> {
        for root in &roots {
            fs::metadata(format!("/proc/{root}")).with_context(|| format!("there is no process {root}"))?;
        }
        Ok(Self { roots })
    }

    /// Whether any process is known.
    pub fn is_known(&self) -> bool {
        !self.roots.is_empty()
    }

    /// The living processes of the server.
    pub fn pids(&self) -> Vec<u32> {
        let mut found: BTreeSet<u32> = BTreeSet::new();
        let mut open = self.roots.clone();
        while let Some(pid) = open.pop() {
            if found.insert(pid) {
                open.extend(children(pid));
            }
        }
        found
            .into_iter()
            .filter(|pid| fs::metadata(format!("/proc/{pid}")).is_ok())
            .collect()
    }

    /// Starts to measure processor time.
    pub fn meter(&self) -> Meter {
        Meter {
            server: self.clone(),
            before: self.on_cpu(),
            modes: Modes::watch(&self.pids()).ok(),
        }
    }

    /// Processor time of all processes so far.
    fn on_cpu(&self) -> Duration {
        let of = |pid: u32| {
            let task = move |task| fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat"));
            let tasks = entries(&format!("/proc/{pid}/task")).into_iter();
            tasks
                .filter_map(move |number| on_cpu(&task(number).ok()?))
                .sum::<Duration>()
        };
        self.pids().into_iter().map(of).sum()
    }

    /// Open files of all processes.
    pub fn descriptors(&self) -> u64 {
        let of = |pid: u32| entries(&format!("/proc/{pid}/fd")).len() as u64;
        self.pids().into_iter().map(of).sum()
    }

    /// Bytes of all heaps, stacks and shared zones; each page divided by the number of processes that map it. Without
    /// the pages of the program's file: other programs occasionally map those, too.
    pub fn memory(&self) -> u64 {
        self.pages(&["Pss_Anon:", "Pss_Shmem:"])
    }

    /// The same without shared zones.
    pub fn private_memory(&self) -> u64 {
        self.pages(&["Pss_Anon:"])
    }

    fn pages(&self, kinds: &[&str]) -> u64 {
        let of = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            kinds.iter().map(|kind| kilobytes(&text, kind)).sum::<u64>()
        };
        self.pids().into_iter().map(of).sum()
    }
}

/// What a server kept of a round, relative to its memory after the round before, in percent.
pub fn kept_percent(before: u64, after: u64) -> f64 {
    (after as f64 / before.max(1) as f64 - 1.0) * 100.0
}

/// Worker processes of an nginx master that still accept connections.
pub fn nginx_workers(master: u32) -> Vec<u32> {
    let is_worker = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| {
            let title = String::from_utf8_lossy(&title);
            title.starts_with("nginx: worker process") && !title.contains("shutting down")
        })
    };
    children(master).into_iter().filter(is_worker).collect()
}

/// Whether the process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name before it may contain any character.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: libc::c_int) -> anyhow::Result<()> {
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .context("no such process")?;
    // SAFETY: takes no pointers; 0, 1 and negative numbers, which mean more than one process, are excluded.
    if unsafe { libc::kill(pid, signal) } != 0 {
        bail!(std::io::Error::last_os_error());
    }
    Ok(())
}

/// The inodes of all sockets that a process has open.
pub fn sockets(pid: u32) -> Vec<u64> {
    let directory = format!("/proc/{pid}/fd");
    let inode = |fd: u32| {
        let target = fs::read_link(format!("{directory}/{fd}")).ok()?;
        target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    };
    entries(&directory).into_iter().filter_map(inode).collect()
}

/// The peer of each connected IPv4 socket of the machine, by the socket's inode.
pub fn tcp_peers() -> anyhow::Result<HashMap<u64, SocketAddrV4>> {
    let table = fs::read_to_string("/proc/net/tcp").context("no /proc/net/tcp")?;
    Ok(table.lines().skip(1).filter_map(tcp_peer).collect())
}

/// A line of that table: number, local and remote address, state, …, the inode in the tenth field.
fn tcp_peer(line: &str) -> Option<(u64, SocketAddrV4)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(2)?.split_once(':')?;
    if fields.next()? == LISTEN {
        return None;
    }
    // The four bytes are printed in the machine's byte order.
    let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes());
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some((inode, SocketAddrV4::new(address, port)))
}

/// Kernel memory for connections, both ends, in bytes: charged to no process.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelMemory {
    /// Sockets, dentries, epoll items, …
    pub slab: u64,
    /// Unread and unsent TCP data.
    pub socket_buffers: u64,
}

impl KernelMemory {
    pub fn now() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let sockstat = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        Self {
            slab: kilobytes(&meminfo, "Slab:"),
            socket_buffers: socket_pages(&sockstat) * 4096,
        }
    }
}

/// The machine's free or reclaimable memory, in bytes.
pub fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    Some(kilobytes(&meminfo, "MemAvailable:"))
}

const FILE_MAX: &str = "/proc/sys/fs/file-max";

/// Limit of open files of all processes of the machine together.
pub fn open_files_limit() -> Option<u64> {
    fs::read_to_string(FILE_MAX).ok()?.trim().parse().ok()
}

/// Needs root.
pub fn raise_open_files_limit(limit: u64) -> std::io::Result<()> {
    fs::write(FILE_MAX, limit.to_string())
}

fn children(pid: u32) -> Vec<u32> {
    entries(&format!("/proc/{pid}/task"))
        .iter()
        .filter_map(|task| fs::read_to_string(format!("/proc/{pid}/task/{task}/children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The numeric entries of a `/proc` directory.
fn entries(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The first field of a schedstat: nanoseconds on a processor.
fn on_cpu(schedstat: &str) -> Option<Duration> {
    Some(Duration::from_nanos(schedstat.split_whitespace().next()?.parse().ok()?))
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// `mem` of the `TCP:` line of a sockstat, in pages.
fn socket_pages(sockstat: &str) -> u64 {
    let fields = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"));
    let mut fields = fields.unwrap_or_default().split_whitespace();
    fields.by_ref().find(|field| *field == "mem");
    fields.next().and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_processor_is_the_first_field() {
        assert_eq!(on_cpu("12345 678 9\n"), Some(Duration::from_nanos(12345)));
        assert_eq!(on_cpu("garbage"), None);
    }

    #[test]
    fn memory_lines_are_found_by_name() {
        let text = "Rss:   20 kB\nPss:                 12 kB\nPss_Anon: 3 kB\n";
        assert_eq!((kilobytes(text, "Pss:"), kilobytes(text, "Swap:")), (12 * 1024, 0));
        let sockstat = "sockets: used 9\nTCP: inuse 4 orphan 0 tw 2 alloc 5 mem 31\nUDP: inuse 1 mem 2\n";
        assert_eq!(socket_pages(sockstat), 31);
    }

    #[test]
    fn a_connected_socket_has_a_peer() {
        let line =
            "   7: 0100007F:1F90 0201007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 12345 1 0";
        let listening =
            "   7: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9 1 0";
        // The table has this form on little-endian machines only.
        if cfg!(target_endian = "little") {
            assert_eq!(tcp_peer(line), Some((12345, "127.0.1.2:50000".parse().unwrap())));
        }
        assert_eq!((tcp_peer(listening), tcp_peer("sl local_address")), (None, None));
    }

    #[test]
    fn a_server_is_its_process_and_all_descendants() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let server = Server::new(vec![child.id()]).unwrap();
        let start = std::time::Instant::now();
        while server.pids().len() < 2 && start.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
        assert_eq!(server.pids().len(), 2);
        assert!(server.memory() > 50_000);
        let grandchild = server.pids().into_iter().find(|pid| *pid != child.id()).unwrap();
        std::process::Command::new("kill")
            .arg(grandchild.to_string())
            .status()
            .unwrap();
        child.wait().unwrap();
        assert!(Server::new(vec![u32::MAX - 1]).is_err());
    }
}
