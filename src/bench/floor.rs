//! The floor: the least that a push server can do, as the reference for everything else.
//!
//! One epoll loop for each worker. Any GET is answered with the head of an event stream and held; any POST or PUT is
//! answered and then sent, as one chunk and by one `send(2)`, to every subscriber of its channel. No history, no
//! templates, no timers, no limits; twelve bytes and a list entry for a subscriber. What a real server costs beyond
//! this is its own; what the floor costs is the kernel's.
//!
//! The channel is the `id` argument or the last segment of the path. `/stats` counts subscribers.

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

use crate::crew::{Shared, die_with_parent};
use crate::net::{self, Epoll, Interest};

#[derive(Args, Clone, Debug)]
pub struct Floor {
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
    /// Do every fiftieth message wrong for one subscriber, to see whether a checker notices
    #[arg(long, hide = true)]
    spoil: Option<Spoil>,
}

/// Ways to do it wrong.
#[derive(Clone, Copy, Debug, ValueEnum)]
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
}

/// One of so many messages is spoilt.
const SPOIL_EVERY: u64 = 50;

/// More than nginx's largest default header and the bodies of most messages.
const READ_BYTES: usize = 64 * 1024;

/// A subscriber that is so far behind is dropped: the floor must not eat the machine.
const MAX_UNSENT_BYTES: usize = 64 * 1024 * 1024;

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
    Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n3\r\n: \n\r\n";
const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

impl Floor {
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
        println!("{address}");
        io::stdout().flush().context("cannot print")?;

        let mut made = listeners
            .into_iter()
            .zip(receivers)
            .enumerate()
            .map(|(number, (listener, receiver))| {
                Worker::new(number, listener, receiver, Rc::clone(&senders), counts, self.spoil).context("no epoll")
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
    /// [`NO_CHANNEL`] unless it subscribes.
    channel: u32,
    /// Where in its channel's list.
    place: u32,
}

const NO_CHANNEL: u32 = u32::MAX;

const LISTENER: u64 = u64::MAX;
const RECEIVER: u64 = u64::MAX - 1;

struct Worker {
    number: usize,
    epoll: Epoll,
    listener: TcpListener,
    /// Messages that other workers took.
    receiver: OwnedFd,
    /// To each worker.
    senders: Rc<Vec<OwnedFd>>,
    /// What did not fit into a worker's socket.
    handovers: Vec<VecDeque<Rc<Vec<u8>>>>,
    /// Subscribers of each worker.
    counts: Shared<AtomicU64>,
    peers: Vec<Peer>,
    names: HashMap<Vec<u8>, u32>,
    channels: Vec<Vec<RawFd>>,
    /// Requests that came in pieces.
    partial: HashMap<RawFd, Vec<u8>>,
    /// What slow readers have not taken yet.
    unsent: HashMap<RawFd, Vec<u8>>,
    /// Subscribers to close when the current fan-out is over.
    hopeless: Vec<RawFd>,
    spoil: Option<Spoil>,
    fan_outs: u64,
    /// A message that is sent after the next one.
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
            names: HashMap::new(),
            channels: Vec::new(),
            partial: HashMap::new(),
            unsent: HashMap::new(),
            hopeless: Vec::new(),
            spoil,
            fan_outs: 0,
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
        // Any error means that there is nothing more to accept, or nothing to accept it with.
        while let Ok(fd) = net::accept(&self.listener) {
            let raw = fd.as_raw_fd();
            if self.epoll.add(fd.as_fd(), raw as u64, Interest::Read).is_err() {
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
        match net::receive(fd, &mut self.buffer) {
            Ok(0) => self.close(fd),
            // What a subscriber says is of no interest.
            Ok(_) if self.peers[fd as usize].channel != NO_CHANNEL => {}
            Ok(length) => self.requests(fd, length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(fd),
        }
    }

    /// Answers all requests that are complete with the `length` bytes in the buffer.
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
                    self.send(fd, REFUSED);
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
            self.send(fd, ACCEPTED);
            let framed = frame(request);
            self.hand_over(request.channel, &framed);
            self.fan_out(request.channel, &framed);
        } else if request.statistics {
            let answer = self.statistics();
            self.send(fd, answer.as_bytes());
        } else {
            self.subscribe(fd, request.channel);
            self.send(fd, STREAM_HEAD);
        }
    }

    fn statistics(&self) -> String {
        let total: u64 = self.counts.iter().map(|count| count.load(Relaxed)).sum();
        let body = format!("{{\"hostname\": \"floor\", \"subscribers\": {total}}}\r\n");
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn subscribe(&mut self, fd: RawFd, channel: &[u8]) {
        let number = match self.names.get(channel) {
            Some(number) => *number,
            None => {
                let number = self.channels.len() as u32;
                self.names.insert(channel.to_vec(), number);
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
        let peer = &mut self.peers[fd as usize];
        peer.fd = None;
        let (channel, place) = (peer.channel, peer.place as usize);
        if channel != NO_CHANNEL {
            peer.channel = NO_CHANNEL;
            let list = &mut self.channels[channel as usize];
            list.swap_remove(place);
            if let Some(moved) = list.get(place) {
                self.peers[*moved as usize].place = place as u32;
            }
            self.counts[self.number].fetch_sub(1, Relaxed);
        }
        self.partial.remove(&fd);
        self.unsent.remove(&fd);
    }

    /// The loop that everything is measured against.
    fn fan_out(&mut self, channel: &[u8], framed: &[u8]) {
        let Some(&number) = self.names.get(channel) else {
            return;
        };
        let list = std::mem::take(&mut self.channels[number as usize]);
        let spoilt = usize::from(self.spoil.is_some() && self.spoil_first(&list, framed));
        for &fd in list.iter().skip(spoilt) {
            self.send(fd, framed);
        }
        self.channels[number as usize] = list;
        for fd in std::mem::take(&mut self.hopeless) {
            self.close(fd);
        }
    }

    /// Serves the first subscriber of a channel wrongly, if it is time for that; true if it is served.
    fn spoil_first(&mut self, list: &[RawFd], framed: &[u8]) -> bool {
        let (Some(spoil), Some(&fd)) = (self.spoil, list.first()) else {
            return false;
        };
        self.fan_outs += 1;
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.send(fd, framed);
            self.send(fd, &held);
            return true;
        }
        if !self.fan_outs.is_multiple_of(SPOIL_EVERY) {
            return false;
        }
        match spoil {
            Spoil::Lose => {}
            Spoil::Double => {
                self.send(fd, framed);
                self.send(fd, framed);
            }
            Spoil::Reorder => self.held = framed.to_vec(),
            Spoil::Garble => {
                let mut garbled = framed.to_vec();
                // The last byte of the text is followed by two line feeds and the end of the chunk.
                let last = garbled.len().saturating_sub(5);
                garbled[last] ^= 1;
                self.send(fd, &garbled);
            }
            Spoil::Unframe => self.send(fd, b"data: hello\n\n"),
            Spoil::Cut => self.hopeless.push(fd),
        }
        true
    }

    fn send(&mut self, fd: RawFd, bytes: &[u8]) {
        if !self.unsent.is_empty() && self.unsent.contains_key(&fd) {
            return self.keep(fd, bytes);
        }
        match net::send(fd, bytes) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => self.keep(fd, &bytes[sent..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.keep(fd, bytes),
            // The connection is dead; epoll will say so.
            Err(_) => {}
        }
    }

    /// Keeps what a slow reader did not take.
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
        if let Ok(sent) = net::send(fd, &rest) {
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
    fn hand_over(&mut self, channel: &[u8], framed: &[u8]) {
        let others = |worker: &usize| *worker != self.number && self.counts[*worker].load(Relaxed) > 0;
        let others: Vec<usize> = (0..self.senders.len()).filter(others).collect();
        if others.is_empty() {
            return;
        }
        let mut packet = Vec::with_capacity(2 + channel.len() + framed.len());
        packet.extend_from_slice(&(channel.len() as u16).to_le_bytes());
        packet.extend_from_slice(channel);
        packet.extend_from_slice(framed);
        let packet = Rc::new(packet);
        for worker in others {
            self.handovers[worker].push_back(Rc::clone(&packet));
        }
        self.hand_over_late();
    }

    /// Sends hand-overs as long as the other workers' sockets take them.
    fn hand_over_late(&mut self) {
        for (queue, sender) in self.handovers.iter_mut().zip(self.senders.iter()) {
            while let Some(packet) = queue.front() {
                match net::send(sender.as_raw_fd(), packet) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => eprintln!("floor: a message of {} bytes is not handed over: {error}", packet.len()),
                    Ok(_) => {}
                }
                queue.pop_front();
            }
        }
    }

    /// Delivers what other workers handed over.
    fn take_over(&mut self) {
        // Packets keep their bounds; the sender's buffer limits them to about 200 kB.
        let mut packet = vec![0; 256 * 1024];
        while let Ok(length @ 2..) = net::receive(self.receiver.as_raw_fd(), &mut packet) {
            let name_end = 2 + usize::from(u16::from_le_bytes([packet[0], packet[1]]));
            if name_end <= length {
                self.fan_out(&packet[2..name_end], &packet[name_end..length]);
            }
        }
    }
}

/// A complete request.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    publish: bool,
    statistics: bool,
    channel: &'a [u8],
    event_id: Option<&'a [u8]>,
    event_type: Option<&'a [u8]>,
    body: &'a [u8],
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
            channel: channel_of(target),
            event_id: None,
            event_type: None,
            body: &[],
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
                request.event_id = Some(value);
            } else if name.eq_ignore_ascii_case(b"event-type") {
                request.event_type = Some(value);
            } else if name.eq_ignore_ascii_case(b"connection") {
                request.close = value.eq_ignore_ascii_case(b"close");
            }
        }
        request.body = bytes.get(end + 4..end + 4 + length)?;
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

/// The message as one event in one HTTP chunk.
fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut event = Vec::with_capacity(request.body.len() + 64);
    for (name, value) in [(b"id: ".as_slice(), request.event_id), (b"event: ", request.event_type)] {
        if let Some(value) = value {
            event.extend_from_slice(name);
            event.extend_from_slice(value);
            event.push(b'\n');
        }
    }
    for line in request.body.split(|&byte| byte == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    let mut size = String::new();
    // Writing to a string cannot fail.
    let _ = write!(size, "{:X}\r\n", event.len());
    [size.as_bytes(), &event, b"\r\n"].concat()
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
            (request.channel, request.body, request.bytes),
            (b"c1".as_slice(), b"hello".as_slice(), POST.len())
        );
    }

    #[test]
    fn what_the_floor_does_not_know_is_refused() {
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
    fn a_message_is_one_event_in_one_chunk() {
        let request = Request::parse(POST).unwrap().unwrap();
        assert_eq!(frame(&request), b"13\r\nid: 7\ndata: hello\n\n\r\n");
    }
}
