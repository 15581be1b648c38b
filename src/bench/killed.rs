//! Connections that ended because their server process was killed; any other end is the server's fault.
//!
//! To kill a process, it is stopped, the client addresses of its connections are written into memory shared by all
//! client processes, and then it is killed. So an expected end is in the book before a client sees it.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use anyhow::{Context, bail};

use crate::proc;
use crate::processes::Shared;

/// The addresses, shared by all processes of a run. The first element counts the others.
#[derive(Clone, Copy, Debug)]
pub struct Book(Shared<AtomicU64>);

impl Book {
    /// With room for this many connections.
    pub fn new(room: usize) -> io::Result<Self> {
        Ok(Self(Shared::new(room + 1)?))
    }

    fn write(&self, addresses: impl Iterator<Item = SocketAddrV4>) -> anyhow::Result<()> {
        for address in addresses {
            let count = self.0[0].load(Relaxed);
            let slot = self
                .0
                .get(count as usize + 1)
                .context("more connections were killed than there are")?;
            slot.store(key(address), Relaxed);
            // Pairs with [`Reader::read`].
            self.0[0].store(count + 1, Release);
        }
        Ok(())
    }

    /// Kills a process of the server; returns how many connections it had.
    pub fn kill(&self, pid: u32) -> anyhow::Result<usize> {
        // While it runs: this is slow with very many connections.
        let mut peers = proc::tcp_peers()?;
        proc::signal(pid, libc::SIGSTOP).context("cannot stop a worker")?;
        let sockets = proc::sockets(pid);
        if sockets.iter().any(|socket| !peers.contains_key(socket)) {
            peers = proc::tcp_peers()?;
        }
        let addresses: Vec<SocketAddrV4> = sockets.iter().filter_map(|socket| peers.get(socket).copied()).collect();
        let written = self.write(addresses.iter().copied());
        proc::signal(pid, libc::SIGKILL).context("cannot kill a worker")?;
        written?;
        Ok(addresses.len())
    }
}

fn key(address: SocketAddrV4) -> u64 {
    u64::from(u32::from(*address.ip())) << 16 | u64::from(address.port())
}

/// One process' view of the book.
#[derive(Debug)]
pub struct Reader {
    book: Book,
    read: usize,
    killed: HashSet<u64>,
}

impl Reader {
    pub fn new(book: Book) -> Self {
        Self {
            book,
            read: 0,
            killed: HashSet::new(),
        }
    }

    /// Whether the connection from this address ended because its server was killed.
    pub fn is_killed(&mut self, address: SocketAddr) -> bool {
        let end = self.book.0[0].load(Acquire) as usize;
        let new = self.book.0[1..][self.read..end].iter();
        self.killed.extend(new.map(|entry| entry.load(Relaxed)));
        self.read = end;
        match address {
            SocketAddr::V4(address) => self.killed.contains(&key(address)),
            SocketAddr::V6(_) => false,
        }
    }

    /// The address may be reused by another connection from now on.
    pub fn forget(&mut self, address: SocketAddr) {
        if let SocketAddr::V4(address) = address {
            self.killed.remove(&key(address));
        }
    }
}

/// Only the addresses of IPv4 connections are known.
pub fn check_family(address: SocketAddr) -> anyhow::Result<()> {
    if !address.is_ipv4() {
        bail!("workers can only be killed under an IPv4 address: which connections they have would not be known");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_seen_by_all_until_it_is_forgotten() {
        let book = Book::new(3).unwrap();
        let (mut first, mut second) = (Reader::new(book), Reader::new(book));
        let addresses: [SocketAddrV4; 3] =
            ["127.0.0.1:5", "127.0.0.2:5", "127.0.0.1:6"].map(|address| address.parse().unwrap());
        assert!(!first.is_killed(addresses[0].into()));
        book.write(addresses[..2].iter().copied()).unwrap();
        assert!(first.is_killed(addresses[0].into()) && second.is_killed(addresses[1].into()));
        assert!(!first.is_killed(addresses[2].into()));
        first.forget(addresses[0].into());
        book.write(addresses[2..].iter().copied()).unwrap();
        assert!(!first.is_killed(addresses[0].into()) && first.is_killed(addresses[2].into()));
        assert!(book.write(addresses.into_iter()).is_err());
    }

    #[test]
    fn the_connections_of_a_process_are_known_when_it_is_killed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(std::os::fd::OwnedFd::from(server))
            .spawn()
            .unwrap();
        let book = Book::new(10).unwrap();
        assert_eq!(book.kill(child.id()).unwrap(), 1);
        child.wait().unwrap();
        assert!(Reader::new(book).is_killed(client.local_addr().unwrap()));
    }
}
