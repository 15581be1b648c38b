//! The baseline server: the minimal push server, as the reference for everything else.
//!
//! One epoll loop per worker. Any GET is answered with the head of a stream and held; any POST or PUT is answered and
//! then sent, as one chunk or frame and by one `send(2)`, to every subscriber of its channel. No history, no templates,
//! no timers, no limits; twelve bytes and a list entry per subscriber. The baseline's cost is the kernel's; a real
//! server's cost beyond it is its own.
//!
//! The channel is the `id` argument or the last segment of the path. `/stats` counts subscribers, `/ws/` and `/stream/`
//! are for WebSocket and plain streaming, everything else is EventSource.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use openssl::ssl::SslContext;

use crate::baseline_tls::{self, Encryption};
use crate::net::{self, Epoll, Interest};
use crate::processes::{Shared, die_with_parent};
use crate::transport;

#[derive(Args, Clone, Debug)]
pub struct Baseline {
    /// Port to listen on; 0 takes a free one. The address is printed
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Worker processes
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Connections that may wait to be accepted
    #[arg(long, default_value_t = 4096)]
    backlog: u16,
    /// Speak TLS, with a certificate of its own
    #[arg(long)]
    tls: bool,
    /// Do every fiftieth message wrong for one subscriber, to see whether a checker notices
    #[arg(long, hide = true)]
    spoil: Option<Spoil>,
}

/// Ways to do it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spoil {
    Lose,
    Double,
    Reorder,
    /// Change one byte.
    Garble,
    /// Send the bytes without their HTTP chunk.
    Unframe,
    /// Close the connection.
    Cut,
    /// Keep memory and files of those who left.
    Leak,
    /// Count the first one who left as if he were there.
    Haunt,
}

/// One message in this many is spoilt.
const SPOIL_EVERY: u64 = 50;

/// More than nginx's largest default header and the bodies of most messages.
const READ_BYTES: usize = 64 * 1024;

/// A subscriber this far behind is dropped: the baseline must not exhaust the machine's memory.
const MAX_UNSENT_BYTES: usize = 64 * 1024 * 1024;

/// As long as a web server's head: with a date and a no-cache header.
const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nServer: baseline\r\nDate: Thu, 01 Jan 1970 00:00:01 GMT\r\n\
    Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\
    Expires: Thu, 01 Jan 1970 00:00:01 GMT\r\nCache-Control: no-cache, no-store, must-revalidate\r\n\r\n3\r\n: \n\r\n";
const PLAIN_STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\
    Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n";
const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A subscriber's message format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    EventSource,
    Streaming,
    WebSocket,
}

impl Format {
    const ALL: [Self; 3] = [Self::EventSource, Self::Streaming, Self::WebSocket];

    fn of_target(target: &[u8]) -> Self {
        match target {
            target if target.starts_with(b"/ws/") => Self::WebSocket,
            target if target.starts_with(b"/stream/") => Self::Streaming,
            _ => Self::EventSource,
        }
    }

    /// The response head for a subscription. The WebSocket key is always that of [`crate::transport`].
    fn head(self) -> Vec<u8> {
        match self {
            Self::EventSource => STREAM_HEAD.to_vec(),
            Self::Streaming => PLAIN_STREAM_HEAD.to_vec(),
            Self::WebSocket => format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                transport::WEBSOCKET_ACCEPT
            )
            .into_bytes(),
        }
    }

    /// The message in wire format.
    fn frame(self, message: &Publication<'_>) -> Vec<u8> {
        match self {
            Self::EventSource => chunk(&message.event()),
            Self::Streaming => chunk(&[message.body, b"\r\n"].concat()),
            Self::WebSocket => transport::websocket_text(message.body),
        }
    }

    /// Number of bytes after the last byte of the text.
    fn tail(self) -> usize {
        match self {
            // Two line ends of the format, or one of two bytes, and the end of the chunk.
            Self::EventSource | Self::Streaming => 4,
            Self::WebSocket => 0,
        }
    }
}

impl Baseline {
    pub fn run(&self) -> anyhow::Result<()> {
        net::raise_file_limit().context("cannot read the limit of open files")?;
        let workers = self.workers.max(1);
        let mut address = SocketAddr::new(self.host, self.port);
        let mut listeners = Vec::new();
        for _ in 0..workers {
            let listener = net::listen(address, self.backlog).with_context(|| format!("cannot listen on {address}"))?;
            address = listener.local_addr().context("a socket without an address")?;
            listeners.push(listener);
        }
        let links = (0..workers)
            .map(|_| net::packet_pair())
            .collect::<io::Result<Vec<_>>>()
            .context("no sockets")?;
        let (senders, receivers): (Vec<_>, Vec<_>) = links.into_iter().unzip();
        let senders = Rc::new(senders);
        let counts = Shared::new(workers).context("no shared memory")?;
        let context = self.tls.then(baseline_tls::context).transpose()?;
        println!("{address}");
        io::stdout().flush().context("cannot print")?;

        let mut made = listeners
            .into_iter()
            .zip(receivers)
            .enumerate()
            .map(|(number, (listener, receiver))| {
                let senders = Rc::clone(&senders);
                Worker::new(number, listener, receiver, senders, counts, self.spoil, context.clone())
                    .context("no epoll")
            });
        if workers == 1 {
            return made.next().context("no worker")??.run();
        }
        for worker in made {
            let worker = worker?;
            // SAFETY: this process has one thread, so the child's copy of every lock is free.
            match unsafe { libc::fork() } {
                -1 => return Err(io::Error::last_os_error()).context("cannot fork"),
                0 => {
                    die_with_parent();
                    return worker.run();
                }
                _ => drop(worker),
            }
        }
        // SAFETY: the status is not asked for.
        unsafe { libc::wait(std::ptr::null_mut()) };
        anyhow::bail!("a worker ended")
    }
}

/// A connection, by its descriptor.
#[derive(Debug)]
struct Peer {
    fd: Option<OwnedFd>,
    /// [`NO_CHANNEL`] for non-subscribers; else a channel in one format.
    channel: u32,
    /// Index in its channel's list.
    place: u32,
}

const NO_CHANNEL: u32 = u32::MAX;

const LISTENER: u64 = u64::MAX;
const RECEIVER: u64 = u64::MAX - 1;

struct Worker {
    number: usize,
    epoll: Epoll,
    listener: TcpListener,
    /// Messages accepted by other workers.
    receiver: OwnedFd,
    /// To each worker.
    senders: Rc<Vec<OwnedFd>>,
    /// Hand-overs that did not fit into a worker's socket.
    handovers: Vec<VecDeque<Rc<Vec<u8>>>>,
    /// Subscribers of each worker.
    counts: Shared<AtomicU64>,
    peers: Vec<Peer>,
    encryption: Option<Encryption>,
    /// The number of each channel, per format.
    names: [HashMap<Vec<u8>, u32>; Format::ALL.len()],
    channels: Vec<Vec<RawFd>>,
    /// Incomplete requests.
    partial: HashMap<RawFd, Vec<u8>>,
    /// Output that slow readers have not taken yet.
    unsent: HashMap<RawFd, Vec<u8>>,
    /// Subscribers to close after the current fan-out.
    hopeless: Vec<RawFd>,
    spoil: Option<Spoil>,
    fan_outs: u64,
    /// Leaked memory and descriptors of departed subscribers.
    leaks: Vec<(Option<OwnedFd>, Vec<u8>)>,
    /// A message held back until after the next one.
    held: Vec<u8>,
    buffer: Vec<u8>,
}

impl Worker {
    fn new(
        number: usize,
        listener: TcpListener,
        receiver: OwnedFd,
        senders: Rc<Vec<OwnedFd>>,
        counts: Shared<AtomicU64>,
        spoil: Option<Spoil>,
        context: Option<SslContext>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&listener, LISTENER, Interest::Accept)?;
        epoll.add(&receiver, RECEIVER, Interest::Read)?;
        Ok(Self {
            number,
            epoll,
            listener,
            receiver,
            handovers: vec![VecDeque::new(); senders.len()],
            senders,
            counts,
            peers: Vec::new(),
            encryption: context.map(Encryption::new),
            names: Default::default(),
            channels: Vec::new(),
            partial: HashMap::new(),
            unsent: HashMap::new(),
            hopeless: Vec::new(),
            spoil,
            fan_outs: 0,
            leaks: Vec::new(),
            held: Vec::new(),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn run(mut self) -> anyhow::Result<()> {
        loop {
            let waiting = self.handovers.iter().any(|queue| !queue.is_empty());
            let count = self
                .epoll
                .wait(waiting.then_some(Duration::from_millis(1)))
                .context("epoll_wait")?;
            for index in 0..count {
                let ready = self.epoll.ready(index);
                match ready.token {
                    LISTENER => self.accept(),
                    RECEIVER => self.take_over(),
                    token => self.serve(token as RawFd, ready.writable),
                }
            }
            self.hand_over_late();
        }
    }

    fn accept(&mut self) {
        // Any error means that there is nothing more to accept, or no resource for it.
        while let Ok(fd) = net::accept(&self.listener) {
            let raw = fd.as_raw_fd();
            if self.epoll.add(fd.as_fd(), raw as u64, Interest::Read).is_err() {
                continue;
            }
            if let Some(encryption) = &mut self.encryption
                && encryption.accept(raw).is_err()
            {
                continue;
            }
            let slot = raw as usize;
            if slot >= self.peers.len() {
                self.peers.resize_with(slot + 1, || Peer {
                    fd: None,
                    channel: NO_CHANNEL,
                    place: 0,
                });
            }
            self.peers[slot] = Peer {
                fd: Some(fd),
                channel: NO_CHANNEL,
                place: 0,
            };
        }
    }

    fn serve(&mut self, fd: RawFd, writable: bool) {
        if self.peers.get(fd as usize).is_none_or(|peer| peer.fd.is_none()) {
            return;
        }
        if writable {
            self.send_rest(fd);
        }
        let received = match &mut self.encryption {
            None => net::receive(fd, &mut self.buffer),
            Some(encryption) => encryption.receive(fd, &mut self.buffer),
        };
        match received {
            Ok(0) => self.close(fd),
            // Input from a subscriber is ignored.
            Ok(_) if self.peers[fd as usize].channel != NO_CHANNEL => {}
            Ok(length) => self.requests(fd, length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(fd),
        }
    }

    /// Answers all complete requests within the `length` bytes in the buffer.
    fn requests(&mut self, fd: RawFd, length: usize) {
        let mut bytes = self.partial.remove(&fd).unwrap_or_default();
        bytes.extend_from_slice(&self.buffer[..length]);
        let mut used = 0;
        while used < bytes.len() {
            match Request::parse(&bytes[used..]) {
                Some(Ok(request)) => {
                    used += request.bytes;
                    self.answer(fd, &request);
                    if request.close || self.peers[fd as usize].fd.is_none() {
                        return self.close(fd);
                    }
                }
                Some(Err(())) => {
                    self.reply(fd, REFUSED);
                    return self.close(fd);
                }
                None => break,
            }
        }
        if used < bytes.len() {
            bytes.drain(..used);
            self.partial.insert(fd, bytes);
        }
    }

    fn answer(&mut self, fd: RawFd, request: &Request<'_>) {
        if request.publish {
            self.reply(fd, ACCEPTED);
            self.hand_over(&request.message);
            self.fan_out(&request.message);
        } else if request.statistics {
            let answer = self.statistics();
            self.reply(fd, answer.as_bytes());
        } else {
            self.subscribe(fd, request.format, request.message.channel);
            self.reply(fd, &request.format.head());
        }
    }

    fn statistics(&self) -> String {
        let total: u64 = self.counts.iter().map(|count| count.load(Relaxed)).sum();
        let body = format!("{{\"hostname\": \"baseline\", \"subscribers\": {total}}}\r\n");
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn subscribe(&mut self, fd: RawFd, format: Format, channel: &[u8]) {
        let names = &mut self.names[format as usize];
        let number = match names.get(channel) {
            Some(number) => *number,
            None => {
                let number = self.channels.len() as u32;
                names.insert(channel.to_vec(), number);
                self.channels.push(Vec::new());
                number
            }
        };
        let list = &mut self.channels[number as usize];
        let peer = &mut self.peers[fd as usize];
        (peer.channel, peer.place) = (number, list.len() as u32);
        list.push(fd);
        self.counts[self.number].fetch_add(1, Relaxed);
    }

    fn close(&mut self, fd: RawFd) {
        // Forget the TLS state: the descriptor may soon be reused.
        self.encryption.iter_mut().for_each(|encryption| encryption.close(fd));
        let peer = &mut self.peers[fd as usize];
        let gone = peer.fd.take();
        let (channel, place) = (peer.channel, peer.place as usize);
        if channel != NO_CHANNEL {
            peer.channel = NO_CHANNEL;
            let list = &mut self.channels[channel as usize];
            list.swap_remove(place);
            if let Some(moved) = list.get(place) {
                self.peers[*moved as usize].place = place as u32;
            }
            if self.spoil == Some(Spoil::Leak) {
                self.leak(gone);
            }
            match self.spoil {
                Some(Spoil::Haunt) if self.leaks.is_empty() => self.leaks.push((None, Vec::new())),
                _ => drop(self.counts[self.number].fetch_sub(1, Relaxed)),
            }
        }
        self.partial.remove(&fd);
        self.unsent.remove(&fd);
    }

    /// Leaks some memory of each departed subscriber, and of one in a hundred the descriptor.
    fn leak(&mut self, gone: Option<OwnedFd>) {
        let shut = gone.filter(|_| self.leaks.len().is_multiple_of(100));
        self.leaks.push((shut, vec![1; 500]));
    }

    fn fan_out(&mut self, message: &Publication<'_>) {
        for format in Format::ALL {
            if let Some(&number) = self.names[format as usize].get(message.channel) {
                self.fan_out_to(number, format, &format.frame(message));
            }
        }
    }

    /// The fan-out loop that everything is measured against.
    fn fan_out_to(&mut self, number: u32, format: Format, framed: &[u8]) {
        let list = std::mem::take(&mut self.channels[number as usize]);
        let spoilt = usize::from(self.spoil.is_some() && self.spoil_first(&list, format, framed));
        // Encrypted connections take another path: the plain loop is the reference for servers without encryption.
        if self.encryption.is_some() {
            list.iter().skip(spoilt).for_each(|&fd| self.reply(fd, framed));
        } else {
            for &fd in list.iter().skip(spoilt) {
                self.send(fd, framed);
            }
        }
        self.channels[number as usize] = list;
        for fd in std::mem::take(&mut self.hopeless) {
            self.close(fd);
        }
    }

    /// Serves the first subscriber of a channel wrongly, if due; true if it is served.
    fn spoil_first(&mut self, list: &[RawFd], format: Format, framed: &[u8]) -> bool {
        let (Some(spoil), Some(&fd)) = (self.spoil, list.first()) else {
            return false;
        };
        self.fan_outs += 1;
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.reply(fd, framed);
            self.reply(fd, &held);
            return true;
        }
        if !self.fan_outs.is_multiple_of(SPOIL_EVERY) {
            return false;
        }
        match spoil {
            Spoil::Lose => {}
            Spoil::Double => {
                self.reply(fd, framed);
                self.reply(fd, framed);
            }
            Spoil::Reorder => self.held = framed.to_vec(),
            Spoil::Garble => {
                let mut garbled = framed.to_vec();
                let last = garbled.len() - format.tail() - 1;
                garbled[last] ^= 1;
                self.reply(fd, &garbled);
            }
            Spoil::Unframe => self.reply(fd, b"data: hello\n\n"),
            Spoil::Cut => self.hopeless.push(fd),
            Spoil::Leak | Spoil::Haunt => return false,
        }
        true
    }

    /// Sends on any connection, encrypted or not.
    fn reply(&mut self, fd: RawFd, bytes: &[u8]) {
        let Some(encryption) = &mut self.encryption else {
            return self.send(fd, bytes);
        };
        if self.unsent.contains_key(&fd) {
            return self.keep(fd, bytes);
        }
        let sent = encryption.send(fd, bytes);
        self.sent(fd, bytes, sent);
    }

    fn send(&mut self, fd: RawFd, bytes: &[u8]) {
        if !self.unsent.is_empty() && self.unsent.contains_key(&fd) {
            return self.keep(fd, bytes);
        }
        self.sent(fd, bytes, net::send(fd, bytes));
    }

    #[inline]
    fn sent(&mut self, fd: RawFd, bytes: &[u8], sent: io::Result<usize>) {
        match sent {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => self.keep(fd, &bytes[sent..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.keep(fd, bytes),
            // The connection is dead; epoll will report it.
            Err(_) => {}
        }
    }

    /// Keeps output that a slow reader did not take.
    fn keep(&mut self, fd: RawFd, bytes: &[u8]) {
        let rest = self.unsent.entry(fd).or_default();
        let first = rest.is_empty();
        rest.extend_from_slice(bytes);
        let too_much = rest.len() > MAX_UNSENT_BYTES;
        if too_much || first && !self.watch(fd, Interest::ReadWrite) {
            self.hopeless.push(fd);
        }
    }

    fn send_rest(&mut self, fd: RawFd) {
        let Some(mut rest) = self.unsent.remove(&fd) else {
            return;
        };
        let sent = match &mut self.encryption {
            None => net::send(fd, &rest),
            Some(encryption) => encryption.send(fd, &rest),
        };
        if let Ok(sent) = sent {
            rest.drain(..sent);
        }
        if rest.is_empty() {
            self.watch(fd, Interest::Read);
        } else {
            self.unsent.insert(fd, rest);
        }
    }

    fn watch(&self, fd: RawFd, interest: Interest) -> bool {
        let peer = self.peers[fd as usize].fd.as_ref();
        peer.is_some_and(|peer| self.epoll.modify(peer, fd as u64, interest).is_ok())
    }

    /// Gives a message to the other workers that have subscribers.
    fn hand_over(&mut self, message: &Publication<'_>) {
        let others = |worker: &usize| *worker != self.number && self.counts[*worker].load(Relaxed) > 0;
        let others: Vec<usize> = (0..self.senders.len()).filter(others).collect();
        if others.is_empty() {
            return;
        }
        let packet = Rc::new(message.to_packet());
        for worker in others {
            self.handovers[worker].push_back(Rc::clone(&packet));
        }
        self.hand_over_late();
    }

    /// Sends pending hand-overs as far as the other workers' sockets take them.
    fn hand_over_late(&mut self) {
        for (queue, sender) in self.handovers.iter_mut().zip(self.senders.iter()) {
            while let Some(packet) = queue.front() {
                match net::send(sender.as_raw_fd(), packet) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => eprintln!(
                        "baseline: a message of {} bytes is not handed over: {error}",
                        packet.len()
                    ),
                    Ok(_) => {}
                }
                queue.pop_front();
            }
        }
    }

    /// Delivers messages handed over by other workers.
    fn take_over(&mut self) {
        // Packets keep their boundaries; the sender's buffer limits them to about 200 kB.
        let mut packet = vec![0; 256 * 1024];
        while let Ok(length @ 1..) = net::receive(self.receiver.as_raw_fd(), &mut packet) {
            if let Some(message) = Publication::from_packet(&packet[..length]) {
                self.fan_out(&message);
            }
        }
    }
}

/// A published message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Publication<'a> {
    channel: &'a [u8],
    /// Empty if there is none.
    event_id: &'a [u8],
    /// Empty if there is none.
    event_type: &'a [u8],
    body: &'a [u8],
}

impl<'a> Publication<'a> {
    /// For another worker: the three other fields, each with its length in two bytes, then the body.
    fn to_packet(self) -> Vec<u8> {
        let mut packet = Vec::with_capacity(self.body.len() + 128);
        for field in [self.channel, self.event_id, self.event_type] {
            packet.extend_from_slice(&(field.len() as u16).to_le_bytes());
            packet.extend_from_slice(field);
        }
        packet.extend_from_slice(self.body);
        packet
    }

    fn from_packet(packet: &'a [u8]) -> Option<Self> {
        let mut rest = packet;
        let mut field = || {
            let (length, behind) = rest.split_first_chunk::<2>()?;
            let (field, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            rest = behind;
            Some(field)
        };
        let (channel, event_id, event_type) = (field()?, field()?, field()?);
        Some(Self {
            channel,
            event_id,
            event_type,
            body: rest,
        })
    }

    /// The message as an EventSource event.
    fn event(&self) -> Vec<u8> {
        let mut event = Vec::with_capacity(self.body.len() + 64);
        for (name, value) in [(b"id: ".as_slice(), self.event_id), (b"event: ", self.event_type)] {
            if !value.is_empty() {
                event.extend_from_slice(name);
                event.extend_from_slice(value);
                event.push(b'\n');
            }
        }
        for line in self.body.split(|&byte| byte == b'\n') {
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(line);
            event.push(b'\n');
        }
        event.push(b'\n');
        event
    }
}

/// One HTTP chunk.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut size = String::new();
    // Writing to a string cannot fail.
    let _ = write!(size, "{:X}\r\n", bytes.len());
    [size.as_bytes(), bytes, b"\r\n"].concat()
}

/// A complete request.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    publish: bool,
    statistics: bool,
    format: Format,
    message: Publication<'a>,
    /// The client wants the connection closed afterwards.
    close: bool,
    /// Length of head and body.
    bytes: usize,
}

impl<'a> Request<'a> {
    /// The request at the start of `bytes`; `None` while it is not complete.
    fn parse(bytes: &'a [u8]) -> Option<Result<Self, ()>> {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n")?;
        let mut lines = bytes[..end].split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
        let mut words = lines.next()?.split(|&byte| byte == b' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Some(Err(()));
        };
        let publish = match method {
            b"GET" => false,
            b"POST" | b"PUT" => true,
            _ => return Some(Err(())),
        };
        let mut request = Self {
            publish,
            statistics: target.starts_with(b"/stats"),
            format: Format::of_target(target),
            message: Publication {
                channel: channel_of(target),
                event_id: &[],
                event_type: &[],
                body: &[],
            },
            close: false,
            bytes: end + 4,
        };
        let mut length = 0;
        for line in lines {
            let Some(colon) = memchr::memchr(b':', line) else {
                return Some(Err(()));
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                match std::str::from_utf8(value)
                    .ok()
                    .and_then(|digits| digits.parse::<usize>().ok())
                {
                    Some(bytes) if bytes < MAX_UNSENT_BYTES => length = bytes,
                    _ => return Some(Err(())),
                }
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                return Some(Err(()));
            } else if name.eq_ignore_ascii_case(b"event-id") {
                request.message.event_id = value;
            } else if name.eq_ignore_ascii_case(b"event-type") {
                request.message.event_type = value;
            } else if name.eq_ignore_ascii_case(b"connection") {
                request.close = value.eq_ignore_ascii_case(b"close");
            }
        }
        request.message.body = bytes.get(end + 4..end + 4 + length)?;
        request.bytes += length;
        Some(Ok(request))
    }
}

/// The `id` argument of a target, or the last segment of its path.
fn channel_of(target: &[u8]) -> &[u8] {
    let (path, query) = match memchr::memchr(b'?', target) {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, [].as_slice()),
    };
    let mut arguments = query.split(|&byte| byte == b'&');
    arguments
        .find_map(|argument| argument.strip_prefix(b"id="))
        .unwrap_or_else(|| {
            let slash = memchr::memrchr(b'/', path).map_or(0, |slash| slash + 1);
            &path[slash..]
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &[u8] = b"POST /pub?x=1&id=c1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nEvent-Id: 7\r\n\r\nhello";

    #[test]
    fn a_request_is_complete_with_its_last_byte() {
        for cut in 0..POST.len() {
            assert_eq!(Request::parse(&POST[..cut]), None, "cut at {cut}");
        }
        let more = [POST, b"GET"].concat();
        let request = Request::parse(&more).unwrap().unwrap();
        assert!(request.publish && !request.statistics && !request.close);
        assert_eq!(
            (request.message.channel, request.message.body, request.bytes),
            (b"c1".as_slice(), b"hello".as_slice(), POST.len())
        );
    }

    #[test]
    fn what_the_baseline_does_not_know_is_refused() {
        for text in [
            "DELETE / HTTP/1.1\r\n\r\n",
            "x\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ] {
            assert_eq!(Request::parse(text.as_bytes()), Some(Err(())), "{text:?}");
        }
    }

    #[test]
    fn the_channel_is_the_argument_or_the_last_segment() {
        assert_eq!(channel_of(b"/ev/a1"), b"a1");
        assert_eq!(channel_of(b"/pub?id=a1&x=2"), b"a1");
        assert_eq!(channel_of(b"/ev/a1?x=2"), b"a1");
    }

    #[test]
    fn a_message_is_one_chunk_or_frame_in_each_format() {
        let message = Request::parse(POST).unwrap().unwrap().message;
        for (format, wanted) in [
            (Format::EventSource, b"13\r\nid: 7\ndata: hello\n\n\r\n".as_slice()),
            (Format::Streaming, b"7\r\nhello\r\n\r\n"),
            (Format::WebSocket, b"\x81\x05hello"),
        ] {
            let framed = format.frame(&message);
            assert_eq!(framed, wanted, "{format:?}");
            assert_eq!(framed[framed.len() - format.tail() - 1], b'o', "{format:?}");
        }
    }

    #[test]
    fn another_worker_gets_the_whole_message() {
        let message = Request::parse(POST).unwrap().unwrap().message;
        let packet = message.to_packet();
        assert_eq!(Publication::from_packet(&packet), Some(message));
        assert_eq!(Publication::from_packet(&packet[..5]), None);
    }

    #[test]
    fn the_path_says_in_which_format() {
        assert_eq!(Format::of_target(b"/ev/a"), Format::EventSource);
        assert_eq!(Format::of_target(b"/ws/a"), Format::WebSocket);
        assert_eq!(Format::of_target(b"/stream/a"), Format::Streaming);
    }
}
