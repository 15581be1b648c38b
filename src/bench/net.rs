//! Sockets, epoll and timers: the few system calls missing in the standard library.
//!
//! All `unsafe` of sockets is in this file. Later operations on a connection (read, write, close) use std.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the -1 of a system call into its error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Nanoseconds on the monotonic clock, which all processes of the machine share.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Readiness of one descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub writable: bool,
    /// The peer has sent its last byte, or the connection is broken.
    pub hung_up: bool,
}

/// Events to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Read,
    ReadWrite,
    /// Edge-triggered: after a short read there is no need to read again.
    ReadEdge,
    /// A listening socket that several processes share: wake one of them.
    Accept,
}

impl Interest {
    fn mask(self) -> u32 {
        (match self {
            Self::Read => libc::EPOLLIN,
            Self::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
            Self::ReadEdge => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET,
            Self::Accept => libc::EPOLLIN | libc::EPOLLEXCLUSIVE,
        }) as u32
    }
}

/// An epoll set and the events of its last wait.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
    ready: usize,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; a non-negative result is a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Self {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024],
            ready: 0,
        })
    }

    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_fd(), token, interest)
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_fd(), token, interest)
    }

    fn control(&self, operation: libc::c_int, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.mask(),
            u64: token,
        };
        // SAFETY: both descriptors are open for the length of the call and `event` is valid.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits for events, at most `timeout` (rounded up to milliseconds), and keeps them for [`Self::ready`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map_or(-1, |timeout| {
            timeout.as_nanos().div_ceil(1_000_000).min(1 << 30) as libc::c_int
        });
        // SAFETY: the kernel writes at most `events.len()` entries into the vector's buffer.
        let result = check(unsafe {
            let events = self.events.as_mut_ptr();
            libc::epoll_wait(self.fd.as_raw_fd(), events, self.events.len() as libc::c_int, timeout)
        });
        self.ready = match result {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.ready)
    }

    /// The `index`th event of the last wait. Errors and hang-ups count as readable: the read tells.
    pub fn ready(&self, index: usize) -> Ready {
        let event = self.events[..self.ready][index];
        let any = |mask: libc::c_int| event.events & mask as u32 != 0;
        Ready {
            token: event.u64,
            writable: any(libc::EPOLLOUT),
            hung_up: any(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
        }
    }
}

/// A timer that becomes readable; epoll's own time-out is too coarse for an open loop of some thousand a second.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; a non-negative result is a new descriptor that nobody else owns.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Fires once at `at_ns` of the monotonic clock (at once if that is past) and clears earlier expirations.
    pub fn set(&self, at_ns: u64) -> io::Result<()> {
        let at_ns = at_ns.max(1);
        let value = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (at_ns / 1_000_000_000) as libc::time_t,
                tv_nsec: (at_ns % 1_000_000_000) as libc::c_long,
            },
        };
        // SAFETY: `value` is valid; the old value is not asked for.
        check(unsafe {
            libc::timerfd_settime(
                self.0.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &value,
                std::ptr::null_mut(),
            )
        })?;
        Ok(())
    }
}

impl Timer {
    /// Clears the expiration: until then it stays readable.
    pub fn acknowledge(&self) {
        let mut expirations = [0_u8; 8];
        // SAFETY: the kernel writes at most eight bytes. It does not block, and what it says is of no interest.
        unsafe { libc::read(self.0.as_raw_fd(), expirations.as_mut_ptr().cast(), expirations.len()) };
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An address in the kernel's form.
struct RawAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl RawAddress {
    fn new(address: SocketAddr) -> Self {
        // SAFETY: all zeroes is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let length = match address {
            SocketAddr::V4(address) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as any address type.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self {
            storage,
            length: length as libc::socklen_t,
        }
    }
}

/// A new TCP socket for `address`'s family.
fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers; a non-negative result is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?) })
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option value is an int of the given length.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length) })?;
    Ok(())
}

fn bind(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::new(address);
    // SAFETY: `raw` holds an address of `length` bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.length) })?;
    Ok(())
}

/// Starts a non-blocking connection with TCP_NODELAY set. The stream may not be connected yet: a write then returns
/// `WouldBlock`.
pub fn connect(address: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let fd = tcp_socket(address)?;
    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if let Some(source) = source {
        // The port is chosen at connect, where only the pair of addresses must be unique: 28,000 per source address.
        set_option(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        bind(&fd, SocketAddr::V4(SocketAddrV4::new(source, 0)))?;
    }
    let raw = RawAddress::new(address);
    // SAFETY: `raw` holds an address of `length` bytes.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.length) }) {
        Ok(_) => Ok(TcpStream::from(fd)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(error) => Err(error),
    }
}

/// A non-blocking listening socket. With `SO_REUSEPORT`, so that each process of a server has its own.
pub fn listen(address: SocketAddr, backlog: u16) -> io::Result<TcpListener> {
    let fd = tcp_socket(address)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    bind(&fd, address)?;
    // SAFETY: takes no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), libc::c_int::from(backlog)) })?;
    Ok(TcpListener::from(fd))
}

/// Accepts one connection, non-blocking and with TCP_NODELAY set, without its address: the cheapest way.
pub fn accept(listener: &TcpListener) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the peer's address is not asked for; a non-negative result is a new descriptor that nobody else owns.
    let fd = unsafe {
        let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
        OwnedFd::from_raw_fd(check(libc::accept4(listener.as_raw_fd(), address, length, flags))?)
    };
    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

/// The bare `send(2)`: never blocks, never raises SIGPIPE.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the kernel reads `bytes.len()` bytes from a valid slice; a descriptor that is not open is an error.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The bare `recv(2)`: never blocks.
pub fn receive(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes into a valid slice.
    let read = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// A pair of connected sockets that keep message boundaries: `(sender, receiver)`.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: both are new descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Raises the limit of open files to its maximum and returns it.
pub fn raise_file_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid to write to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(usize::try_from(limit.rlim_max).unwrap_or(usize::MAX))
}

/// Loopback source addresses, so that one address's ports do not limit the number of connections.
///
/// `None` for remote targets, where the kernel chooses.
pub fn source_address(target: SocketAddr, index: usize, addresses: usize) -> Option<Ipv4Addr> {
    match target.ip() {
        IpAddr::V4(ip) if ip.is_loopback() && addresses > 1 => {
            let host = 1 + (index % addresses) as u32;
            Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) + host))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_connection_uses_the_source_address_it_was_given() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = connect(address, source_address(address, 4, 8)).unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&listener, 7, Interest::Accept).unwrap();
        assert_eq!(epoll.wait(Some(Duration::from_secs(5))).unwrap(), 1);
        assert_eq!(epoll.ready(0).token, 7);
        let mut server = TcpStream::from(accept(&listener).unwrap());
        assert_eq!(server.peer_addr().unwrap().ip(), Ipv4Addr::new(127, 0, 0, 5));
        server.write_all(b"x").unwrap();
        client.set_nonblocking(false).unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn source_addresses_are_for_loopback_only() {
        assert_eq!(source_address("192.0.2.1:80".parse().unwrap(), 0, 8), None);
        assert_eq!(source_address("[::1]:80".parse().unwrap(), 0, 8), None);
        let many = source_address("127.0.0.1:80".parse().unwrap(), 299, 300);
        assert_eq!(many, Some(Ipv4Addr::new(127, 0, 1, 44)));
    }

    #[test]
    fn a_timer_fires_when_it_is_due_and_only_until_acknowledged() {
        let timer = Timer::new().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(&timer, 1, Interest::Read).unwrap();
        let start = now_ns();
        timer.set(start + 3_000_000).unwrap();
        assert_eq!(epoll.wait(Some(Duration::from_secs(5))).unwrap(), 1);
        assert!(now_ns() - start >= 3_000_000);
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap(), 1);
        timer.acknowledge();
        assert_eq!(epoll.wait(Some(Duration::ZERO)).unwrap(), 0);
    }
}
