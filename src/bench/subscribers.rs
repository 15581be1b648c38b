//! The subscribing side: one process with thousands of clients in one epoll loop.
//!
//! Over HTTP/1 each client has its own connection; [`streams`] has the differences of HTTP/2.

mod streams;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::arrivals::{Arrivals, Departing, spare_places};
use crate::checker::{Checker, Position};
use crate::coding::{Coding, Decoder};
use crate::flows::{Audience, Flows, channel_name};
use crate::http::{self, Body, Malformed, ResponseHead};
use crate::killed::{self, Book};
use crate::latency::Latency;
use crate::message::{Mark, Messages};
use crate::net::{self, Epoll, Interest, Ready};
use crate::processes::{Board, Phase};
use crate::text::Kind;
use crate::tls::{Connector, Protocol};
use crate::transport::{self, Feed, Item, Transport};
use crate::url::UrlTemplate;
use crate::wire::{self, Wire};

use streams::{Multiplex, Place};

/// More than a socket's usual receive buffer, so that one read takes all available data.
const READ_BYTES: usize = 256 * 1024;

/// Interval of a client's checks for completeness, once publishing is over.
const BEHIND_CHECK: Duration = Duration::from_millis(25);

/// Pause before a refused client tries again. The first try after a broken connection is immediate.
const RETRY: Duration = Duration::from_millis(25);

/// One process's part of the subscribers.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: UrlTemplate,
    pub transport: Transport,
    /// Over HTTP/2, with this many streams per connection.
    pub streams: Option<usize>,
    /// Index of the first subscriber within the whole run.
    pub first: usize,
    pub count: usize,
    /// Number of subscribers of the whole run.
    pub subscribers: usize,
    pub flows: Flows,
    pub audience: Audience,
    pub run: u32,
    pub max_message_bytes: usize,
    pub text: Kind,
    /// Ask for this coding.
    pub compressed: Option<Coding>,
    /// Messages carry the bench's event ids.
    pub event_ids: bool,
    /// Loopback source addresses to spread over.
    pub addresses: usize,
    /// New connections a second; `None`: as fast as possible.
    pub connect_rate: Option<f64>,
    /// Maximum connections waiting for their response head.
    pub connect_window: usize,
    /// Subscribers a second that leave and are replaced while messages flow.
    pub arrival_rate: Option<f64>,
    /// How long a departing client waits for its missing messages.
    pub patience: Duration,
    /// A client whose stream ends reconnects with its position; otherwise the end is a problem.
    pub reconnect: bool,
    /// Connections of killed workers: only others are counted as lost.
    pub killed: Option<Book>,
    /// Interval of looks at the board when idle: many processes together must not load the machine.
    pub glance: Duration,
}

/// The state of one client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    /// Connected; TLS is being negotiated.
    Handshake,
    /// The request is sent.
    Head,
    /// Long polling: the request is sent, and the server answers when there is a message.
    Polling,
    Streaming,
}

/// One client. This and four bytes of history are the whole cost of an idle one.
#[derive(Debug)]
struct Subscriber {
    link: Link,
    state: State,
    /// The server will close the connection after this response.
    last_response: bool,
    is_departing: bool,
    channel: u32,
    body: Body,
    feed: Feed,
    /// The last message seen: the `Last-Event-ID` of the next connect.
    position: Option<Position>,
    /// Long polling: header lines with the position at the end of the last response.
    poll_position: Option<Box<PollPosition>>,
    /// When the connection was due.
    due_ns: u64,
}

/// Header lines. Boxed, because few clients have any.
#[derive(Debug, PartialEq, Eq)]
struct PollPosition(String);

/// A client's input.
#[derive(Debug)]
enum Link {
    None,
    Plain(TcpStream),
    Encrypted(Box<Wire>),
    /// One stream of an HTTP/2 connection.
    Stream(Place),
}

impl Subscriber {
    fn new(channel: u32) -> Self {
        Self {
            link: Link::None,
            state: State::Closed,
            last_response: false,
            is_departing: false,
            channel,
            body: Body::Done,
            feed: Feed::Anything,
            position: None,
            poll_position: None,
            due_ns: 0,
        }
    }
}

/// One process's epoll loop.
struct EventLoop {
    plan: Plan,
    board: Board,
    place: usize,
    epoll: Epoll,
    subscribers: Vec<Subscriber>,
    arrivals: Option<Arrivals>,
    checker: Checker,
    /// Writes the ids of positions.
    messages: Messages,
    /// Incomplete response heads.
    heads: HashMap<usize, Vec<u8>>,
    /// Of those whose answer is compressed.
    decoders: HashMap<usize, Decoder>,
    /// Clients to reconnect, by due time.
    retries: BinaryHeap<Reverse<(u64, usize)>>,
    /// Number of clients that have started their first connect.
    started: usize,
    first_connect_ns: u64,
    /// Connects without a response head yet.
    opening: usize,
    open: usize,
    /// Visitors that arrived after the start: their numbers choose their channels.
    visitors: usize,
    headers: String,
    connector: Option<Connector>,
    multiplex: Option<Multiplex>,
    killed: Option<killed::Reader>,
    /// Reason to end the run.
    fatal: Option<String>,
    buffer: Vec<u8>,
    decoded: Vec<u8>,
}

/// Does the subscribing work of one process until the board's last phase; returns its report.
pub fn work(plan: Plan, board: Board, place: usize) -> anyhow::Result<Value> {
    let messages = || Messages::new(plan.run, plan.text, plan.max_message_bytes);
    let expects_ids = plan.event_ids && plan.transport.shows_ids();
    let places = plan.count + plan.arrival_rate.map_or(0, spare_places);
    let protocol = plan.streams.map_or(Protocol::Http1, |_| Protocol::Http2);
    let connector = || Connector::new(plan.url.authority(), plan.url.address(), protocol);
    let channel = |index| plan.audience.channel(plan.first + index, plan.flows.channels());
    let event_loop = EventLoop {
        board,
        place,
        epoll: Epoll::new().context("no epoll")?,
        subscribers: (0..places).map(|index| Subscriber::new(channel(index))).collect(),
        arrivals: plan.arrival_rate.map(|rate| Arrivals::new(rate, plan.count..places)),
        checker: Checker::new(plan.first, places, plan.flows, messages(), expects_ids),
        messages: messages(),
        heads: HashMap::new(),
        decoders: HashMap::new(),
        retries: BinaryHeap::new(),
        started: 0,
        first_connect_ns: 0,
        opening: 0,
        open: 0,
        visitors: 0,
        headers: match plan.compressed {
            Some(coding) => format!("{}Accept-Encoding: {}\r\n", plan.transport.headers(), coding.name()),
            None => plan.transport.headers(),
        },
        connector: plan.url.is_encrypted().then(connector).transpose()?,
        multiplex: plan
            .streams
            .map(|streams| Multiplex::new(&plan.url, plan.transport, streams, places)),
        killed: plan.killed.map(killed::Reader::new),
        fatal: None,
        buffer: vec![0; READ_BYTES],
        decoded: Vec::new(),
        plan,
    };
    event_loop.run()
}

impl EventLoop {
    fn run(mut self) -> anyhow::Result<Value> {
        let mut next_behind_check = 0;
        loop {
            if let Some(why) = &self.fatal {
                bail!("{why}");
            }
            let phase = self.board.phase();
            match phase {
                Phase::Finish => return Ok(self.report()),
                Phase::Leave => self.leave(),
                _ => self.connect_due(),
            }
            self.exchange_visitors(phase);
            let now = net::now_ns();
            if phase == Phase::Drain && now >= next_behind_check {
                self.board.counters(self.place).behind.store(self.behind(), Relaxed);
                self.board.settle(self.place, phase);
                next_behind_check = now + BEHIND_CHECK.as_nanos() as u64;
            }
            let patience = self.patience(phase);
            let count = self.epoll.wait(Some(patience)).context("epoll_wait")?;
            for index in 0..count {
                let ready = self.epoll.ready(index);
                self.serve(ready);
            }
            self.show();
        }
    }

    /// How long only the sockets need attention.
    fn patience(&mut self, phase: Phase) -> Duration {
        const SOON: Duration = Duration::from_millis(1);
        let waiting = phase < Phase::Leave && self.started < self.invited() && self.opening < self.plan.connect_window;
        if waiting {
            return match self.plan.connect_rate {
                None => Duration::ZERO,
                Some(_) => SOON,
            };
        }
        if self
            .arrivals
            .as_ref()
            .is_some_and(|arrivals| phase == Phase::Publish || arrivals.is_anybody_departing())
        {
            return SOON;
        }
        match self.retries.peek() {
            Some(Reverse((due, _))) => Duration::from_nanos(due.saturating_sub(net::now_ns())).min(self.plan.glance),
            None => self.plan.glance,
        }
    }

    /// Number of this process's clients that may connect by now.
    fn invited(&self) -> usize {
        let (invited, first, count) = (self.board.invited(), self.plan.first, self.plan.count);
        match self.plan.streams {
            // Spread over all processes, so that every connection has its first stream before any has its second.
            Some(2..) => {
                share(first + count, invited, self.plan.subscribers) - share(first, invited, self.plan.subscribers)
            }
            _ => invited.saturating_sub(first).min(count),
        }
    }

    fn connect_due(&mut self) {
        let now = net::now_ns();
        if self.first_connect_ns == 0 && self.invited() > 0 {
            self.first_connect_ns = now;
        }
        let invited = self.invited();
        while self.started < invited && self.opening < self.plan.connect_window {
            let due = match self.plan.connect_rate {
                Some(rate) => self.first_connect_ns + (self.started as f64 / rate * 1e9) as u64,
                None => now,
            };
            if due > now {
                break;
            }
            self.started += 1;
            let streams = self.plan.streams.unwrap_or(1);
            self.connect(in_turn(self.started - 1, self.plan.count, streams), due);
        }
        while let Some(&Reverse((due, index))) = self.retries.peek() {
            if due > now || self.opening >= self.plan.connect_window {
                break;
            }
            self.retries.pop();
            let subscriber = &self.subscribers[index];
            // Its place may have been reused meanwhile.
            if subscriber.state == State::Closed && !subscriber.is_departing {
                let first_try = !self.checker.history.has_joined(index);
                self.connect(index, if first_try { subscriber.due_ns } else { due });
            }
        }
    }

    /// Starts the connection of a client, due at `due_ns`: its opening latency counts from then.
    fn connect(&mut self, index: usize, due_ns: u64) {
        self.subscribers[index].due_ns = due_ns;
        if self.multiplex.is_some() {
            return self.connect_stream(index);
        }
        let opened = self.dial(index, index as u64).and_then(|stream| {
            Ok(match &self.connector {
                None => Link::Plain(stream),
                connector => Link::Encrypted(Box::new(Wire::new(stream, connector.as_ref())?)),
            })
        });
        match opened {
            Ok(link) => {
                let subscriber = &mut self.subscribers[index];
                subscriber.link = link;
                subscriber.state = State::Connecting;
                self.opening += 1;
            }
            Err(error) => self.failed_connect(index, &error),
        }
    }

    /// A new socket, for a client or for several that share it.
    fn dial(&self, index: usize, token: u64) -> io::Result<TcpStream> {
        let address = self.plan.url.address();
        let source = net::source_address(address, self.plan.first + index, self.plan.addresses);
        let stream = net::connect(address, source)?;
        self.epoll.add(&stream, token, Interest::ReadWrite)?;
        Ok(stream)
    }

    fn failed_connect(&mut self, index: usize, error: &io::Error) {
        self.checker.counts.failed_connects += 1;
        self.checker.problem(index, || format!("cannot connect: {error}"));
        self.retry_later(index);
    }

    fn retry_later(&mut self, index: usize) {
        self.retries
            .push(Reverse((net::now_ns() + RETRY.as_nanos() as u64, index)));
    }

    /// Lets visitors arrive and depart.
    fn exchange_visitors(&mut self, phase: Phase) {
        let Some(mut arrivals) = self.arrivals.take() else {
            return;
        };
        let now = net::now_ns();
        if phase == Phase::Publish {
            self.welcome(&mut arrivals, now);
        }
        let may_go = |departing: &Departing| {
            let state = self.subscribers[departing.place].state;
            state == State::Closed
                || now > departing.deadline_ns
                || self.checker.is_at(departing.place, &departing.ends)
        };
        for gone in arrivals.departures(may_go) {
            self.close(gone.place);
            let channel = self.subscribers[gone.place].channel;
            self.checker.leave(gone.place, channel, &gone.ends);
        }
        self.arrivals = Some(arrivals);
    }

    /// Connects every due visitor, and dismisses another one for each.
    fn welcome(&mut self, arrivals: &mut Arrivals, now: u64) {
        if !arrivals.have_begun() {
            // The initial rush is not part of the visitors' opening latency.
            self.checker.opening = Latency::new();
        }
        loop {
            let due = arrivals.due_ns(now);
            if due > now {
                return;
            }
            let (Some(leaver), Some(place)) = (self.draw_leaver(), arrivals.begin()) else {
                return;
            };
            let subscriber = &mut self.subscribers[leaver];
            subscriber.is_departing = true;
            arrivals.send_away(Departing {
                place: leaver,
                ends: self.checker.ends(subscriber.channel),
                deadline_ns: now + self.plan.patience.as_nanos() as u64,
            });
            self.visitors += 1;
            // A number different from those of all initial subscribers.
            let number = self.plan.first + self.plan.count * 7 + self.visitors;
            let channel = self.plan.audience.channel(number, self.plan.flows.channels());
            self.subscribers[place] = Subscriber::new(channel);
            self.connect(place, due);
        }
    }

    /// A connected subscriber that is not departing: the first one from a random place on.
    fn draw_leaver(&self) -> Option<usize> {
        let places = self.subscribers.len();
        let drawn = fastrand::usize(..places);
        let stays = |index: &usize| {
            let subscriber = &self.subscribers[*index];
            subscriber.state == State::Streaming && !subscriber.is_departing
        };
        (drawn..places).chain(0..drawn).find(stays)
    }

    /// A socket is ready.
    fn serve(&mut self, ready: Ready) {
        if self.multiplex.is_some() {
            return self.serve_connection(ready);
        }
        let index = ready.token as usize;
        let subscriber = &mut self.subscribers[index];
        let stream = match &mut subscriber.link {
            Link::Plain(stream) => stream,
            Link::Encrypted(_) => return self.serve_encrypted(index, ready),
            Link::None | Link::Stream(_) => return,
        };
        if subscriber.state == State::Connecting {
            if let Ok(Some(error)) = stream.take_error() {
                self.close(index);
                self.failed_connect(index, &error);
                return;
            }
            if ready.writable {
                if let Err(error) = self.epoll.modify(&*stream, index as u64, Interest::ReadEdge) {
                    return self.ended(index, &error.to_string());
                }
                self.send_first_request(index);
            }
            return;
        }
        // Edge-triggered: read until a short read shows that the socket is empty, or to the end of the stream.
        while let Link::Plain(stream) = &mut self.subscribers[index].link {
            match stream.read(&mut self.buffer) {
                Ok(0) => self.ended(index, wire::CLOSED),
                Ok(length) => {
                    let empty = length < self.buffer.len() && !ready.hung_up;
                    self.received(index, length);
                    if empty {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.ended(index, &error.to_string()),
            }
        }
    }

    /// An encrypted connection's socket is ready.
    fn serve_encrypted(&mut self, index: usize, ready: Ready) {
        let subscriber = &mut self.subscribers[index];
        let Link::Encrypted(wire) = &mut subscriber.link else {
            return;
        };
        if subscriber.state == State::Connecting {
            if let Ok(Some(error)) = wire.stream().take_error() {
                self.close(index);
                self.failed_connect(index, &error);
                return;
            }
            if !ready.writable {
                return;
            }
            subscriber.state = State::Handshake;
            let edge = self.epoll.modify(wire.stream(), index as u64, Interest::ReadEdge);
            if let Err(error) = edge.and_then(|()| wire.begin()) {
                return self.ended(index, &error.to_string());
            }
        }
        while let Link::Encrypted(wire) = &mut self.subscribers[index].link {
            match wire.read(&mut self.buffer) {
                Ok(got) => {
                    let ready_now = wire.is_ready();
                    let empty = got.raw < READ_BYTES - wire::HEADROOM && !ready.hung_up;
                    if ready_now && self.subscribers[index].state == State::Handshake {
                        self.send_first_request(index);
                    }
                    if got.length > 0 {
                        self.received(index, got.length);
                    }
                    if let Some(why) = got.end {
                        self.ended(index, why);
                    }
                    if empty {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.ended(index, &error.to_string()),
            }
        }
    }

    /// The connection is established.
    fn send_first_request(&mut self, index: usize) {
        let subscriber = &mut self.subscribers[index];
        subscriber.state = State::Head;
        subscriber.feed = self.plan.transport.feed();
        self.send_request(index);
        // There is no response before the first message: count as open once the request is sent.
        if self.plan.transport == Transport::LongPolling && self.subscribers[index].state == State::Head {
            self.opened(index, State::Polling);
        }
    }

    fn send_request(&mut self, index: usize) {
        if self.multiplex.is_some() {
            return self.open_stream(index);
        }
        let request = self.request(index);
        let sent = match &mut self.subscribers[index].link {
            Link::Plain(stream) => stream.write(request.as_bytes()).map(|sent| sent == request.len()),
            Link::Encrypted(wire) => wire.write(request.as_bytes()),
            Link::None | Link::Stream(_) => return,
        };
        match sent {
            Ok(true) => {}
            Ok(false) => self.ended(index, "the request did not fit into an empty socket"),
            Err(error) => self.ended(index, &error.to_string()),
        }
    }

    fn request(&self, index: usize) -> String {
        let path = self.path(index);
        let (host, headers) = (self.plan.url.authority(), &self.headers);
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}");
        self.write_position(index, &mut request);
        request.push_str("\r\n");
        request
    }

    fn path(&self, index: usize) -> String {
        let channel = self.subscribers[index].channel;
        self.plan.url.path(&channel_name(self.plan.run, channel))
    }

    /// Adds the header lines with the resume position.
    fn write_position(&self, index: usize, request: &mut String) {
        let subscriber = &self.subscribers[index];
        if let Some(position) = &subscriber.poll_position {
            request.push_str(&position.0);
        } else if let Some((publisher, sequence)) = subscriber.position
            && self.plan.event_ids
        {
            let mark = Mark {
                channel: subscriber.channel,
                publisher,
                sequence,
            };
            let mut id = String::new();
            self.messages.write_id(&mut id, mark);
            // Writing to a string cannot fail.
            let _ = write!(request, "Last-Event-ID: {id}\r\n");
        }
    }

    /// Handles `length` bytes in the buffer.
    fn received(&mut self, index: usize, length: usize) {
        if self.subscribers[index].state == State::Streaming {
            return self.stream_bytes(index, 0..length);
        }
        // A head nearly always comes in one piece.
        let early = self.heads.remove(&index);
        let parsed = match early {
            None => ResponseHead::parse(&self.buffer[..length]).map(|parsed| (parsed, length)),
            Some(mut bytes) => {
                bytes.extend_from_slice(&self.buffer[..length]);
                let parsed = ResponseHead::parse(&bytes);
                if self.buffer.len() < bytes.len() {
                    self.buffer.resize(bytes.len(), 0);
                }
                self.buffer[..bytes.len()].copy_from_slice(&bytes);
                parsed.map(|parsed| (parsed, bytes.len()))
            }
        };
        match parsed {
            Ok((None, length)) => {
                self.heads.insert(index, self.buffer[..length].to_vec());
            }
            Ok((Some((head, used)), length)) => self.head(index, head, used, length),
            Err(error) => self.malformed(index, &error.to_string()),
        }
    }

    /// Handles a response head in the first `used` of the `length` bytes in the buffer.
    fn head(&mut self, index: usize, head: ResponseHead, used: usize, length: usize) {
        let raw = &self.buffer[..used];
        let verdict = self.plan.transport.accepts(&head, raw);
        let position = match self.plan.transport {
            Transport::LongPolling => poll_position(raw),
            _ => None,
        };
        let coding = http::header(raw, "Content-Encoding");
        let decoder = coding.and_then(Coding::named).map(Decoder::new);
        if self.take_head(index, head, verdict, position) {
            if let Some(decoder) = decoder {
                self.decoders.insert(index, decoder);
            }
            self.stream_bytes(index, used..length);
        }
    }

    /// Handles a response head; false if it does not make the client a subscriber.
    fn take_head(
        &mut self,
        index: usize,
        head: ResponseHead,
        verdict: Result<(), String>,
        position: Option<Box<PollPosition>>,
    ) -> bool {
        if let Err(why) = verdict {
            self.checker.counts.refused += 1;
            self.checker.problem(index, || why);
            self.close(index);
            self.retry_later(index);
            return false;
        }
        let subscriber = &mut self.subscribers[index];
        subscriber.last_response = head.close;
        subscriber.body = match self.plan.transport {
            Transport::WebSocket => Body::UntilClose,
            _ => head.body,
        };
        if self.plan.transport == Transport::LongPolling {
            subscriber.poll_position = position.or_else(|| subscriber.poll_position.take());
        }
        match subscriber.state {
            State::Polling => subscriber.state = State::Streaming,
            _ => self.opened(index, State::Streaming),
        }
        true
    }

    /// Makes the client a subscriber.
    fn opened(&mut self, index: usize, state: State) {
        let subscriber = &mut self.subscribers[index];
        subscriber.state = state;
        self.checker
            .opening
            .record(net::now_ns().saturating_sub(subscriber.due_ns));
        self.checker.counts.opened += 1;
        self.opening -= 1;
        self.open += 1;
        if self.plan.transport != Transport::Plain && !self.checker.history.has_joined(index) {
            self.checker.join(index, subscriber.channel);
        }
    }

    fn stream_bytes(&mut self, index: usize, bytes: Range<usize>) {
        let subscriber = &mut self.subscribers[index];
        self.decoded.clear();
        let mut decoded = subscriber.body.decode(&self.buffer[bytes.clone()], &mut self.decoded);
        self.checker.counts.wire_bytes += bytes.len() as u64;
        if let Some(decoder) = self.decoders.get_mut(&index) {
            let packed = std::mem::take(&mut self.decoded);
            let unpacked = decoder.decode(&packed, &mut self.decoded);
            decoded = decoded.and_then(|used| unpacked.map(|()| used));
            if decoded.is_ok() && subscriber.body == Body::Done && !decoder.is_whole() {
                decoded = Err(Malformed(
                    "a compressed stream without its end, or with a wrong checksum",
                ));
            }
        }
        let (pongs, closed) = items(subscriber, &mut self.checker, index, &self.decoded);
        if subscriber.feed.is_inside_message() {
            self.checker.counts.partial_bytes += bytes.len() as u64;
        }
        if !pongs.is_empty() {
            // On failure, the next read will report the reason.
            let _ = match &mut subscriber.link {
                Link::Plain(stream) => stream.write(&pongs).map(drop),
                Link::Encrypted(wire) => wire.write(&pongs).map(drop),
                Link::None | Link::Stream(_) => Ok(()),
            };
        }
        match decoded {
            Err(error) => self.malformed(index, &error.to_string()),
            Ok(used) if used < bytes.len() => {
                let rest = self.buffer[bytes.start + used..bytes.end].to_vec();
                self.checker
                    .foreign(index, &rest, "bytes behind the end of the response");
                self.ended(index, "the response ended");
            }
            Ok(_) if closed => self.ended(index, "the server sent a close frame"),
            Ok(_) if self.subscribers[index].body == Body::Done => self.response_ended(index),
            Ok(_) => {}
        }
    }

    fn response_ended(&mut self, index: usize) {
        match self.plan.transport {
            Transport::LongPolling if self.subscribers[index].last_response => {
                self.close(index);
                self.connect(index, net::now_ns());
            }
            Transport::LongPolling => {
                self.subscribers[index].state = State::Polling;
                self.send_request(index);
            }
            Transport::Plain if !self.subscribers[index].last_response => {}
            _ => self.ended(index, "the response ended"),
        }
    }

    fn malformed(&mut self, index: usize, what: &str) {
        self.checker.counts.malformed += 1;
        self.checker.problem(index, || format!("the response holds {what}"));
        self.ended(index, "malformed response");
    }

    /// The stream of a client is over, at either end.
    fn ended(&mut self, index: usize, why: &str) {
        // Needed only where workers are killed.
        let source = self.killed.is_some().then(|| self.source(index)).flatten();
        let was = self.close(index);
        let was_open = matches!(was, State::Streaming | State::Polling);
        if was_open {
            self.checker.counts.disconnects += 1;
        }
        if let (Some(killed), Some(source)) = (&mut self.killed, source) {
            let excused = killed.is_killed(source);
            self.checker.counts.excused += u64::from(excused && was_open);
            // Streams of one connection end one after the other, for the same reason.
            if excused && self.multiplex.is_none() {
                killed.forget(source);
            }
        }
        if self.plan.reconnect {
            self.checker.counts.reconnects += 1;
            let delay = if was_open { 0 } else { RETRY.as_nanos() as u64 };
            self.retries.push(Reverse((net::now_ns() + delay, index)));
        } else {
            self.checker.problem(index, || format!("stream lost: {why}"));
            if !was_open {
                self.retry_later(index);
            }
        }
    }

    /// The source address of a client's connection.
    fn source(&self, index: usize) -> Option<SocketAddr> {
        let stream = match &self.subscribers[index].link {
            Link::None => return None,
            Link::Plain(stream) => stream,
            Link::Encrypted(wire) => wire.stream(),
            Link::Stream(place) => self.multiplex.as_ref()?.socket(*place)?,
        };
        stream.local_addr().ok()
    }

    /// Closes a client's connection and returns the state it was in.
    fn close(&mut self, index: usize) -> State {
        let subscriber = &mut self.subscribers[index];
        let link = std::mem::replace(&mut subscriber.link, Link::None);
        subscriber.feed = Feed::Anything;
        self.decoders.remove(&index);
        self.heads.remove(&index);
        let was = std::mem::replace(&mut subscriber.state, State::Closed);
        match was {
            State::Closed => {}
            State::Connecting | State::Handshake | State::Head => self.opening -= 1,
            State::Polling | State::Streaming => self.open -= 1,
        }
        if let Link::Stream(place) = link {
            self.release(place);
        }
        was
    }

    fn leave(&mut self) {
        if self.open + self.opening + self.retries.len() > 0 {
            self.multiplex.iter_mut().for_each(Multiplex::hang_up);
            for index in 0..self.subscribers.len() {
                self.close(index);
            }
            self.retries.clear();
        }
        self.board.settle(self.place, Phase::Leave);
    }

    /// Number of clients that have not reached the end of the accepted messages.
    fn behind(&self) -> u64 {
        let behind = |(index, subscriber): &(usize, &Subscriber)| {
            self.checker.history.has_joined(*index)
                && !self.checker.is_at(*index, &self.checker.ends(subscriber.channel))
        };
        self.subscribers.iter().enumerate().filter(behind).count() as u64
    }

    fn show(&self) {
        let (shown, counts) = (self.board.counters(self.place), &self.checker.counts);
        shown.open.store(self.open as u64, Relaxed);
        shown.opened.store(counts.opened, Relaxed);
        shown.done.store(counts.messages, Relaxed);
        shown.partial_bytes.store(counts.partial_bytes, Relaxed);
        shown.reconnects.store(counts.reconnects, Relaxed);
        let trouble = counts.foreign + counts.doubled + counts.out_of_order + counts.malformed + counts.refused;
        shown.trouble.store(trouble, Relaxed);
    }

    fn report(&mut self) -> Value {
        let channels = self.subscribers.iter().map(|subscriber| subscriber.channel);
        self.checker.report(channels)
    }
}

/// Number of the first `first` clients among the `invited` of `all`, which are spread evenly.
fn share(first: usize, invited: usize, all: usize) -> usize {
    (first as u64 * invited.min(all) as u64 / all.max(1) as u64) as usize
}

/// The client that connects after `before` others: the first one of each group, then the second one of each.
fn in_turn(before: usize, clients: usize, group: usize) -> usize {
    let (whole, rest) = (clients / group, clients % group);
    let groups = whole + usize::from(rest > 0);
    // The last group may be incomplete.
    let (turn, number) = match before.checked_sub(rest * groups) {
        None => (before / groups, before % groups),
        Some(before) => (rest + before / whole.max(1), before % whole.max(1)),
    };
    number * group + turn
}

/// Has the checker judge every item that `bytes` complete. Returns the answers to pings, and whether the server closes.
// Inlined: called for each delivery.
#[inline(always)]
fn items(subscriber: &mut Subscriber, checker: &mut Checker, index: usize, bytes: &[u8]) -> (Vec<u8>, bool) {
    let now_ns = net::now_ns();
    let (channel, position) = (subscriber.channel, &mut subscriber.position);
    let (mut pongs, mut closed) = (Vec::new(), false);
    subscriber.feed.feed(bytes, |item| {
        if let Some(new) = checker.item(index, channel, &item, now_ns) {
            *position = Some(new);
        }
        match item {
            Item::Ping(payload) => pongs.extend_from_slice(&transport::pong(payload)),
            Item::Close => closed = true,
            _ => {}
        }
    });
    (pongs, closed)
}

/// The header lines with which the next long poll continues after the response with this head.
fn poll_position(head: &[u8]) -> Option<Box<PollPosition>> {
    let value = |name| std::str::from_utf8(http::header(head, name)?).ok();
    let (time, tag) = (value("Last-Modified")?, value("Etag")?);
    let lines = format!("If-Modified-Since: {time}\r\nIf-None-Match: {tag}\r\n");
    Some(Box::new(PollPosition(lines)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscriber_costs_less_than_300_bytes() {
        // Besides, there are four bytes of history per flow.
        assert!(size_of::<Subscriber>() <= 112, "{} bytes", size_of::<Subscriber>());
    }

    #[test]
    fn everybody_connects_once_and_the_first_of_each_group_before_the_others() {
        for (clients, group) in [(7, 1), (6, 3), (7, 3), (8, 3), (2, 3), (0, 2)] {
            let order: Vec<usize> = (0..clients).map(|before| in_turn(before, clients, group)).collect();
            let loop_stalls: Vec<usize> = order.iter().map(|index| index % group).collect();
            assert!(loop_stalls.is_sorted(), "{clients} in groups of {group}: {order:?}");
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(
                sorted,
                (0..clients).collect::<Vec<_>>(),
                "{clients} in groups of {group}"
            );
        }
    }

    #[test]
    fn invitations_add_up_over_the_processes() {
        for invited in 0..=10 {
            let bounds = [0, 4, 8, 10].map(|first| share(first, invited, 10));
            assert!(bounds.is_sorted());
            assert_eq!((bounds[0], bounds[3]), (0, invited));
        }
    }

    #[test]
    fn a_long_poll_goes_on_where_the_last_one_ended() {
        let head = b"HTTP/1.1 200 OK\r\nLast-Modified: Thu, 26 Nov 2026 07:00:00 GMT\r\nEtag: W/3\r\n\r\n";
        let wanted = "If-Modified-Since: Thu, 26 Nov 2026 07:00:00 GMT\r\nIf-None-Match: W/3\r\n";
        assert_eq!(poll_position(head).unwrap().0, wanted);
        assert_eq!(poll_position(b"HTTP/1.1 200 OK\r\nEtag: W/3\r\n\r\n"), None);
    }
}
