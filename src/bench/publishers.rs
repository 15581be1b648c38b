//! The publishing side: keep-alive connections in one epoll loop, each with one message, or one batch, under way at a
//! time.
//!
//! With a rate the loop is open: each message has a due time, and all latencies count from it, whether or not the
//! server was ready. Without a rate each connection publishes as fast as it gets answers.

use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::batch;
use crate::flows::{Flow, Flows, channel_name};
use crate::h2::{self, Event, Request};
use crate::http::{Body, ResponseHead};
use crate::latency::Latency;
use crate::message::{Mark, Messages, Stamped};
use crate::net::{self, Epoll, Interest, Timer};
use crate::processes::{Board, Phase};
use crate::text::Kind;
use crate::tls::{Connector, Protocol};
use crate::url::UrlTemplate;
use crate::wire::{self, Wire, is_unready};

/// Without an answer for this long the connection is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a broken connection, so that a dead server is not flooded with new messages.
const RETRY: Duration = Duration::from_millis(5);

/// Polling interval of publishers that are too far ahead.
const AHEAD_CHECK: Duration = Duration::from_millis(1);

/// Maximum problems recorded individually.
const MAX_PROBLEMS: usize = 20;

/// Everything to publish.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: UrlTemplate,
    /// Each publisher has an HTTP/2 connection, with one stream at a time.
    pub http2: bool,
    pub publishers: u32,
    pub flows: Flows,
    pub run: u32,
    pub message_bytes: usize,
    pub text: Kind,
    pub event_ids: bool,
    /// Ends after this many accepted messages.
    pub messages: Option<u64>,
    /// Ends after this time.
    pub duration: Option<Duration>,
    /// Messages a second over all publishers; `None`: as fast as possible.
    pub rate: Option<f64>,
    /// Waits while this many accepted messages have not reached the subscribers, on average.
    pub max_ahead: Option<u64>,
    /// Average number of subscribers that get each message.
    pub audience: f64,
    /// Messages per request; more than one only if the server takes batches.
    pub batch: usize,
}

/// A message under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    flow: Flow,
    sequence: u32,
    due_ns: u64,
}

/// One keep-alive connection and its share of the flows.
#[derive(Debug)]
struct PublisherConnection {
    wire: Option<Wire>,
    /// The socket is connected, and the handshake has started.
    begun: bool,
    /// Over HTTP/2: the connection's frames, once it is ready.
    h2: Option<h2::Connection>,
    upload: Upload,
    interest: Interest,
    /// State of the request while there are [`Self::flights`].
    progress: Progress,
    /// The messages of the request under way.
    flights: Vec<Flight>,
    deadline_ns: u64,
    flows: Vec<Flow>,
    /// Number of flows that have had their first message.
    primed: usize,
    /// Number of messages started: determines the next one's flow and due time.
    started: u64,
    /// Earliest time of the next attempt after a broken connection.
    not_before_ns: u64,
    request: Vec<u8>,
    /// Over HTTP/2: the path and the header fields of the request.
    path: String,
    fields: Vec<(&'static str, String)>,
    response: Vec<u8>,
    answer: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Progress {
    /// The request, or over HTTP/2 a part of it, has still to be sent.
    Waiting,
    /// The socket has not taken the whole request.
    Sending,
    Head,
    Body(ResponseHead),
}

/// Progress of a request over HTTP/2. Its body is [`PublisherConnection::request`].
#[derive(Clone, Copy, Debug, Default)]
struct Upload {
    /// 0 before the head is sent.
    stream: u32,
    /// The stream's send window.
    window: i64,
    sent: usize,
    /// The server takes no further request on this connection.
    is_last: bool,
}

struct EventLoop {
    plan: Plan,
    board: Board,
    place: usize,
    epoll: Epoll,
    timer: Timer,
    messages: Messages,
    connections: Vec<PublisherConnection>,
    published: Vec<Published>,
    accepted: u64,
    /// The part that is first messages of a flow.
    primed: u64,
    in_flight: u64,
    start_ns: u64,
    last_answer_ns: u64,
    latency: Latency,
    refused: u64,
    broken: u64,
    timeouts: u64,
    problems: Vec<String>,
    text: Vec<u8>,
    id: String,
    /// The body of a batch.
    lines: Vec<u8>,
    buffer: Vec<u8>,
    connector: Option<Connector>,
    /// Over HTTP/2: the header fields common to all requests.
    request: Request,
    decoder: loona_hpack::Decoder<'static>,
}

/// Outcomes of the messages of one flow.
#[derive(Clone, Debug, Default)]
struct Published {
    /// Number of messages sent: the number of the next one.
    sent: u32,
    /// Messages without a 2xx.
    unanswered: Vec<u32>,
}

/// The timer's epoll token; connections use their index.
const TIMER: u64 = u64::MAX;

/// Publishes according to the board's phase; returns the report.
pub fn work(plan: Plan, board: Board, place: usize) -> anyhow::Result<Value> {
    let (epoll, timer) = (Epoll::new().context("no epoll")?, Timer::new().context("no timer")?);
    epoll.add(&timer, TIMER, Interest::Read).context("no timer")?;
    let connection = |publisher| PublisherConnection {
        wire: None,
        begun: false,
        h2: None,
        upload: Upload::default(),
        interest: Interest::Read,
        progress: Progress::Head,
        flights: Vec::new(),
        deadline_ns: u64::MAX,
        flows: plan.flows.of_publisher(publisher),
        primed: 0,
        started: 0,
        not_before_ns: 0,
        request: Vec::new(),
        path: String::new(),
        fields: Vec::new(),
        response: Vec::new(),
        answer: Vec::new(),
    };
    let protocol = if plan.http2 { Protocol::Http2 } else { Protocol::Http1 };
    let connector = || Connector::new(plan.url.authority(), plan.url.address(), protocol);
    let connector = plan.url.is_encrypted().then(connector).transpose()?;
    let flows = (plan.flows.channels() * plan.flows.per_channel()) as usize;
    let event_loop = EventLoop {
        board,
        place,
        epoll,
        timer,
        messages: Messages::new(plan.run, plan.text, plan.message_bytes),
        connections: (0..plan.publishers).map(connection).collect(),
        published: vec![Published::default(); flows],
        accepted: 0,
        primed: 0,
        in_flight: 0,
        start_ns: 0,
        last_answer_ns: 0,
        latency: Latency::new(),
        refused: 0,
        broken: 0,
        timeouts: 0,
        problems: Vec::new(),
        text: Vec::new(),
        id: String::new(),
        lines: Vec::new(),
        buffer: vec![0; 64 * 1024 + wire::HEADROOM],
        connector,
        request: Request::new(true, plan.url.is_encrypted(), plan.url.authority(), ""),
        decoder: h2::decoder(),
        plan,
    };
    event_loop.run()
}

impl EventLoop {
    fn run(mut self) -> anyhow::Result<Value> {
        loop {
            let phase = self.board.phase();
            match phase {
                Phase::Finish => return Ok(self.report()),
                Phase::Prime | Phase::Publish => self.start_due(phase)?,
                Phase::Connect | Phase::Drain | Phase::Leave => {}
            }
            let count = self.epoll.wait(Some(Duration::from_millis(10))).context("epoll_wait")?;
            for index in 0..count {
                let ready = self.epoll.ready(index);
                match ready.token {
                    TIMER => self.timer.acknowledge(),
                    token => self.serve(token as usize, phase),
                }
            }
            self.give_up_overdue();
            self.board.counters(self.place).done.store(self.accepted, Relaxed);
        }
    }

    /// Starts every due message, sets the timer for the next, and settles the phase when none is left.
    fn start_due(&mut self, phase: Phase) -> anyhow::Result<()> {
        let now = net::now_ns();
        if phase == Phase::Publish && self.start_ns == 0 {
            self.start_ns = now;
        }
        let mut next_ns = u64::MAX;
        let mut left = false;
        if phase == Phase::Publish && self.is_too_far_ahead() {
            return self
                .timer
                .set(now + AHEAD_CHECK.as_nanos() as u64)
                .context("timerfd_settime");
        }
        for index in 0..self.connections.len() {
            while self.connections[index].flights.is_empty() && self.wants_more(index, phase, now) {
                left = true;
                let due_ns = self
                    .due_ns(index, phase, now)
                    .max(self.connections[index].not_before_ns);
                if due_ns > now {
                    next_ns = next_ns.min(due_ns);
                    break;
                }
                self.start(index, phase, now);
            }
        }
        if !left && self.in_flight == 0 {
            self.board.settle(self.place, phase);
        }
        self.timer
            .set(next_ns.min(now + 1_000_000_000))
            .context("timerfd_settime")
    }

    fn is_too_far_ahead(&self) -> bool {
        let Some(max_ahead) = self.plan.max_ahead else {
            return false;
        };
        // The subscribing processes come before this one.
        let received: u64 = (0..self.place)
            .map(|event_loop| self.board.counters(event_loop).done.load(Relaxed))
            .sum();
        (self.accepted + self.in_flight) as f64 - received as f64 / self.plan.audience.max(1.0) >= max_ahead as f64
    }

    fn wants_more(&self, index: usize, phase: Phase, now_ns: u64) -> bool {
        let connection = &self.connections[index];
        if phase == Phase::Prime {
            return connection.primed + connection.flights.len() < connection.flows.len();
        }
        let enough = self
            .plan
            .messages
            .is_some_and(|messages| self.accepted + self.in_flight >= messages);
        let over = self
            .plan
            .duration
            .is_some_and(|duration| now_ns - self.start_ns >= duration.as_nanos() as u64);
        !enough && !over && !connection.flows.is_empty()
    }

    /// When the connection's next message is due.
    fn due_ns(&self, index: usize, phase: Phase, now_ns: u64) -> u64 {
        match self.plan.rate {
            Some(rate) if phase == Phase::Publish => {
                let turn = self.connections[index].started * u64::from(self.plan.publishers) + index as u64;
                self.start_ns + (turn as f64 / rate * 1e9) as u64
            }
            _ => now_ns,
        }
    }

    /// Sends the connection's next message, or all that are due and fit into a batch.
    fn start(&mut self, index: usize, phase: Phase, now: u64) {
        self.lines.clear();
        while self.connections[index].flights.len() < self.plan.batch && self.wants_more(index, phase, now) {
            let due_ns = self.due_ns(index, phase, now);
            if due_ns > now {
                break;
            }
            self.board_message(index, phase, due_ns);
        }
        self.write_request(index);
        let connection = &mut self.connections[index];
        connection.deadline_ns = now + ANSWER_TIMEOUT.as_nanos() as u64;
        connection.response.clear();
        connection.answer.clear();
        connection.progress = Progress::Waiting;
        self.send(index);
    }

    /// Writes the connection's next message; in a batch, its line as well.
    fn board_message(&mut self, index: usize, phase: Phase, due_ns: u64) {
        let connection = &mut self.connections[index];
        let flow = match phase {
            Phase::Prime => connection.flows[connection.primed + connection.flights.len()],
            _ => connection.flows[connection.started as usize % connection.flows.len()],
        };
        if phase == Phase::Publish {
            connection.started += 1;
        }
        let published = &mut self.published[self.plan.flows.index(flow)];
        let sequence = published.sent;
        published.sent += 1;
        self.plan.flows.sending(flow, sequence);
        connection.flights.push(Flight { flow, sequence, due_ns });
        self.in_flight += 1;

        let mark = Mark {
            channel: flow.channel,
            publisher: flow.publisher,
            sequence,
        };
        self.messages
            .write(&mut self.text, Stamped { mark, due_ns }, self.plan.message_bytes);
        self.messages.write_id(&mut self.id, mark);
        if self.plan.batch > 1 {
            let id = self.plan.event_ids.then_some(self.id.as_str());
            batch::write_line(
                &mut self.lines,
                &channel_name(self.plan.run, flow.channel),
                &self.text,
                id,
            );
        }
    }

    fn write_request(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let is_batch = self.plan.batch > 1;
        let channel = match connection.flights.first() {
            Some(flight) if !is_batch => channel_name(self.plan.run, flight.flow.channel),
            _ => String::new(),
        };
        let body = if is_batch { &self.lines } else { &self.text };
        let (path, host, length) = (self.plan.url.path(&channel), self.plan.url.authority(), body.len());
        connection.request.clear();
        if self.plan.http2 {
            connection.upload = Upload {
                is_last: connection.upload.is_last,
                ..Upload::default()
            };
            connection.request.extend_from_slice(body);
            connection.fields = vec![("content-length", length.to_string())];
            match is_batch {
                true => {
                    connection.fields.push(("content-type", batch::CONTENT_TYPE.to_owned()));
                    connection.fields.push(("prefer", "return=minimal".to_owned()));
                }
                false => connection.fields.push(("content-type", "text/plain".to_owned())),
            }
            if self.plan.event_ids && !is_batch {
                connection.fields.push(("event-id", self.id.clone()));
            }
            connection.path = path;
            return;
        }
        // Writing to a vector cannot fail.
        let _ = write!(
            connection.request,
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
        );
        let _ = match is_batch {
            true => write!(
                connection.request,
                "Content-Type: {}\r\nPrefer: return=minimal\r\n",
                batch::CONTENT_TYPE
            ),
            false if self.plan.event_ids => {
                write!(
                    connection.request,
                    "Content-Type: text/plain\r\nEvent-Id: {}\r\n",
                    self.id
                )
            }
            false => write!(connection.request, "Content-Type: text/plain\r\n"),
        };
        connection.request.extend_from_slice(b"\r\n");
        connection.request.extend_from_slice(body);
    }

    /// Sends the rest of the request, over a new connection if there is none.
    fn send(&mut self, index: usize) {
        if let Err(error) = self.try_send(index) {
            self.failed(index, &error);
        }
    }

    fn try_send(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let wire = match &mut connection.wire {
            Some(wire) => wire,
            none => {
                let stream = net::connect(self.plan.url.address(), None)?;
                connection.interest = Interest::ReadWrite;
                self.epoll.add(&stream, index as u64, connection.interest)?;
                (connection.begun, connection.h2) = (false, None);
                none.insert(Wire::new(stream, self.connector.as_ref())?)
            }
        };
        if !connection.begun {
            match wire.begin() {
                Err(error) if is_unready(&error) => return Ok(()),
                begun => begun?,
            }
            connection.begun = true;
        }
        let all_sent = match connection.progress {
            _ if !wire.is_ready() => true,
            Progress::Waiting if self.plan.http2 => self.send_frames(index)?,
            Progress::Waiting => {
                connection.progress = Progress::Sending;
                wire.write(&connection.request)?
            }
            _ => wire.flush()?,
        };
        let connection = &mut self.connections[index];
        if let (Progress::Sending, true) = (connection.progress, all_sent) {
            connection.progress = Progress::Head;
        }
        let wanted = if all_sent { Interest::Read } else { Interest::ReadWrite };
        if let Some(wire) = &connection.wire
            && wanted != connection.interest
        {
            connection.interest = wanted;
            self.epoll.modify(wire.stream(), index as u64, wanted)?;
        }
        Ok(())
    }

    /// Sends the request, or as much of its rest as the windows allow, in frames; false if some of it waits in the
    /// wire.
    fn send_frames(&mut self, index: usize) -> io::Result<bool> {
        let connection = &mut self.connections[index];
        let Some(wire) = &mut connection.wire else {
            return Ok(true);
        };
        let mut out = Vec::new();
        let h2 = connection.h2.get_or_insert_with(|| h2::Connection::start(&mut out));
        let upload = &mut connection.upload;
        if upload.stream == 0 {
            (upload.stream, upload.window) = h2.post(&self.request, &connection.path, &connection.fields, &mut out);
        }
        let rest = &connection.request[upload.sent..];
        upload.sent += h2.send(upload.stream, rest, &mut upload.window, &mut out);
        if upload.sent == connection.request.len() {
            connection.progress = Progress::Sending;
        }
        wire.write(&out)
    }

    /// A connection's socket is ready.
    fn serve(&mut self, index: usize, phase: Phase) {
        let connection = &mut self.connections[index];
        let Some(wire) = &mut connection.wire else {
            return;
        };
        if !connection.flights.is_empty() && matches!(connection.progress, Progress::Waiting | Progress::Sending) {
            if let Ok(Some(error)) = wire.stream().take_error() {
                return self.failed(index, &error);
            }
            if wire.is_ready() && connection.h2.is_none() {
                return self.send(index);
            }
            if connection.interest == Interest::ReadWrite {
                self.send(index);
            }
        }
        let connection = &mut self.connections[index];
        let Some(wire) = &mut connection.wire else {
            return;
        };
        match wire.read(&mut self.buffer) {
            Ok(got) if self.plan.http2 => self.frames(index, got, phase),
            Ok(got) if got.length > 0 && connection.flights.is_empty() => {
                connection.wire = None;
                self.problem("a publisher got bytes that it had not asked for".to_owned());
                self.broken += 1;
            }
            Ok(got) => {
                if got.length > 0 {
                    connection.response.extend_from_slice(&self.buffer[..got.length]);
                    self.answer(index, phase);
                }
                self.read_on(index, got);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if !connection.flights.is_empty() => self.failed(index, &error),
            Err(_) => connection.wire = None,
        }
    }

    /// Follow-up of a read: the connection may have become ready, or ended.
    fn read_on(&mut self, index: usize, got: wire::Got) {
        let connection = &mut self.connections[index];
        match got.end {
            None if matches!(connection.progress, Progress::Waiting) && !connection.flights.is_empty() => {
                self.send(index)
            }
            None => {}
            Some(_) if connection.flights.is_empty() => connection.wire = None,
            Some(why) => self.failed(index, &io::Error::new(io::ErrorKind::UnexpectedEof, why)),
        }
    }

    /// Handles bytes received on an HTTP/2 connection.
    fn frames(&mut self, index: usize, got: wire::Got, phase: Phase) {
        let (mut events, mut out) = (Vec::new(), Vec::new());
        let connection = &mut self.connections[index];
        if let Some(h2) = &mut connection.h2 {
            let input = &self.buffer[..got.length];
            if let Err(error) = h2.receive(input, &mut self.decoder, &mut out, &mut events) {
                return self.failed(index, &io::Error::other(error));
            }
        }
        let mut answered = None;
        let mut refused = None;
        for event in events {
            let upload = &mut connection.upload;
            match event {
                Event::Head { stream, fields, end } if stream == upload.stream => {
                    match h2::http1_head(&fields) {
                        Ok((head, _)) => connection.progress = Progress::Body(head),
                        Err(error) => refused = Some(error.to_string()),
                    }
                    answered = end.then_some(());
                }
                Event::Data { stream, bytes, end, .. } if stream == upload.stream => {
                    connection.answer.extend_from_slice(&self.buffer[bytes]);
                    answered = end.then_some(());
                }
                // A server that answers before reading the whole request may say so after the complete answer.
                Event::Reset { stream, code: 0 } if stream == upload.stream && answered.is_some() => {}
                Event::Reset { stream, code } if stream == upload.stream => {
                    refused = Some(format!("the server reset the stream with code {code}"));
                }
                Event::GoAway { last, code } => {
                    upload.is_last = true;
                    if upload.stream > last {
                        refused = Some(format!("the server refused the stream by GOAWAY with code {code}"));
                    }
                }
                Event::Room { stream, more } if stream == 0 || stream == upload.stream => upload.window += more,
                _ => {}
            }
        }
        if let Some(wire) = &mut connection.wire
            && !out.is_empty()
            && let Err(error) = wire.write(&out)
        {
            return self.failed(index, &error);
        }
        if let Some(why) = refused {
            return self.failed(index, &io::Error::other(why));
        }
        if let (Some(()), Progress::Body(head)) = (answered, connection.progress)
            && !connection.flights.is_empty()
        {
            let head = ResponseHead {
                close: connection.upload.is_last,
                ..head
            };
            // Later frames on this stream are ignored; the unsent rest of the request is dropped.
            let stream = std::mem::take(&mut connection.upload.stream);
            if connection.upload.sent < connection.request.len()
                && let Some(wire) = &mut connection.wire
            {
                out.clear();
                h2::cancel(stream, &mut out);
                if let Err(error) = wire.write(&out) {
                    return self.failed(index, &error);
                }
            }
            self.answered(index, head, phase);
        } else if connection.upload.is_last && connection.flights.is_empty() {
            connection.wire = None;
            return;
        }
        self.read_on(index, got);
    }

    /// Continues reading a response.
    fn answer(&mut self, index: usize, phase: Phase) {
        let connection = &mut self.connections[index];
        if let Progress::Head = connection.progress {
            match ResponseHead::parse(&connection.response) {
                Ok(None) => return,
                Ok(Some((head, length))) => {
                    connection.response.drain(..length);
                    connection.progress = Progress::Body(head);
                }
                Err(error) => return self.failed(index, &io::Error::other(error)),
            }
        }
        let Progress::Body(head) = &mut connection.progress else {
            return;
        };
        let decoded = head.body.decode(&connection.response, &mut connection.answer);
        match decoded {
            Err(error) => return self.failed(index, &io::Error::other(error)),
            Ok(used) if used < connection.response.len() => {
                return self.failed(index, &io::Error::other("bytes behind the end of an answer"));
            }
            Ok(_) => connection.response.clear(),
        }
        if head.body == Body::Done {
            let head = *head;
            self.answered(index, head, phase);
        }
    }

    /// Handles a complete response.
    fn answered(&mut self, index: usize, head: ResponseHead, phase: Phase) {
        let connection = &mut self.connections[index];
        if head.close {
            connection.wire = None;
            connection.upload = Upload::default();
        }
        let flights = connection.flights.len();
        let good = (200..300).contains(&head.status);
        let failures = match self.plan.batch {
            _ if !good => Ok((0..flights).map(|line| (line, u64::from(head.status))).collect()),
            1 => Ok(Vec::new()),
            _ => batch::failures(&connection.answer, flights),
        };
        match failures {
            Ok(failures) => self.landed(index, &failures, phase),
            Err(error) => self.failed(index, &io::Error::other(error)),
        }
    }

    /// Accepts the messages under way, except `failures`: their places in the batch and the reasons.
    fn landed(&mut self, index: usize, failures: &[(usize, u64)], phase: Phase) {
        let now = net::now_ns();
        let mut flights = std::mem::take(&mut self.connections[index].flights);
        self.in_flight -= flights.len() as u64;
        for (place, status) in failures {
            self.refused += 1;
            self.unanswered(flights[*place]);
            self.problem(format!("a publish was refused with status {status}"));
        }
        for (place, flight) in flights.iter().enumerate() {
            if failures.iter().any(|(failed, _)| *failed == place) {
                continue;
            }
            self.accepted += 1;
            self.plan.flows.accepted(flight.flow, flight.sequence);
            if phase == Phase::Publish {
                self.latency.record(now.saturating_sub(flight.due_ns));
                self.last_answer_ns = now;
            }
        }
        if !failures.is_empty() {
            self.connections[index].not_before_ns = now + RETRY.as_nanos() as u64;
        }
        if phase == Phase::Prime {
            self.count_primed(index);
        }
        flights.clear();
        self.connections[index].flights = flights;
    }

    /// Flows are primed in their order; a flow whose first message was refused gets another.
    fn count_primed(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let is_primed = |flow: &&Flow| self.plan.flows.accepted_end(**flow) > 0;
        let more = connection.flows[connection.primed..]
            .iter()
            .take_while(is_primed)
            .count();
        connection.primed += more;
        self.primed += more as u64;
    }

    /// The connection broke before the answer: the messages may have been accepted or not.
    fn failed(&mut self, index: usize, error: &io::Error) {
        let connection = &mut self.connections[index];
        connection.wire = None;
        connection.upload = Upload::default();
        connection.not_before_ns = net::now_ns() + RETRY.as_nanos() as u64;
        self.broken += 1;
        let flights = std::mem::take(&mut connection.flights);
        self.in_flight -= flights.len() as u64;
        flights.into_iter().for_each(|flight| self.unanswered(flight));
        self.problem(format!("a publish got no answer: {error}"));
    }

    fn unanswered(&mut self, flight: Flight) {
        self.published[self.plan.flows.index(flight.flow)]
            .unanswered
            .push(flight.sequence);
    }

    fn give_up_overdue(&mut self) {
        let now = net::now_ns();
        for index in 0..self.connections.len() {
            if !self.connections[index].flights.is_empty() && now > self.connections[index].deadline_ns {
                self.timeouts += 1;
                self.failed(index, &io::Error::from(io::ErrorKind::TimedOut));
            }
        }
    }

    fn problem(&mut self, text: String) {
        self.board.counters(self.place).trouble.fetch_add(1, Relaxed);
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }

    fn report(&self) -> Value {
        let unanswered: Vec<_> = self
            .published
            .iter()
            .enumerate()
            .filter(|(_, published)| !published.unanswered.is_empty())
            .map(|(flow, published)| json!([flow, published.unanswered]))
            .collect();
        json!({
            "accepted": self.accepted,
            "primed": self.primed,
            "refused": self.refused,
            "broken": self.broken,
            "timeouts": self.timeouts,
            "start_ns": self.start_ns,
            "last_answer_ns": self.last_answer_ns,
            "latency": self.latency.to_json(),
            "unanswered": unanswered,
            "problems": self.problems,
        })
    }
}
