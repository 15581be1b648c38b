//! The subscribing side: one process with thousands of EventSource clients in one epoll loop.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::crew::{Board, Phase};
use crate::history::{History, Sighting};
use crate::http::{Body, ResponseHead};
use crate::lanes::{Lane, Lanes, channel_name};
use crate::latency::Latency;
use crate::message::{Mark, Messages};
use crate::net::{self, Epoll, Interest, Ready};
use crate::sse::{EventStream, Item, Message};
use crate::url::UrlTemplate;

/// What a current browser sends with an EventSource request: servers keep it in memory, so it must be of real size.
const BROWSER_HEADERS: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\nAccept: text/event-stream\r\nAccept-Language: en-US,en;q=0.9\r\n\
    Cache-Control: no-cache\r\nConnection: keep-alive\r\nReferer: http://example.com/forum/thread/1234567\r\n";

/// More than a socket's usual receive buffer, so that one read takes what there is.
const READ_BYTES: usize = 256 * 1024;

/// Above this the counts speak for themselves.
const MAX_PROBLEMS: usize = 20;

/// How often a client looks whether it has seen everything, once publishing is over.
const BEHIND_CHECK: Duration = Duration::from_millis(25);

/// Pause before a client that was refused tries again. The first try after a broken connection is at once.
const RETRY: Duration = Duration::from_millis(25);

/// The part of the subscribers that one process takes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: UrlTemplate,
    /// Number of the first subscriber among all of the run.
    pub first: usize,
    pub count: usize,
    pub lanes: Lanes,
    pub run: u32,
    pub max_message_bytes: usize,
    /// Messages carry event ids of ours, which must arrive.
    pub event_ids: bool,
    /// Loopback source addresses to spread over.
    pub addresses: usize,
    /// New connections a second; as fast as possible if none.
    pub connect_rate: Option<f64>,
    /// Connections that may wait for their response head at a time.
    pub connect_window: usize,
    /// A client whose stream ends comes back with `Last-Event-ID`; else it is a problem.
    pub reconnect: bool,
}

/// The state of one client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Connecting,
    /// The request is sent.
    Head,
    Streaming,
}

/// One client. Its size and [`History::bytes_per_subscriber`] are all that an idle one costs.
#[derive(Debug)]
struct Subscriber {
    stream: Option<TcpStream>,
    state: State,
    body: Body,
    events: EventStream,
    /// The last message seen: what `Last-Event-ID` says at the next connect.
    position: Option<(u32, u32)>,
    connect_ns: u64,
}

impl Subscriber {
    fn new() -> Self {
        Self {
            stream: None,
            state: State::Closed,
            body: Body::Done,
            events: EventStream::default(),
            position: None,
            connect_ns: 0,
        }
    }
}

/// What a process found out about its subscribers.
#[derive(Debug)]
struct Tally {
    lanes: Lanes,
    messages: Messages,
    event_ids: bool,
    first: usize,
    history: History,
    latency: Latency,
    /// From the start of a connect to the response head.
    opening: Latency,
    counts: Counts,
    last_message_ns: u64,
    problems: Vec<String>,
    id: String,
}

#[derive(Debug, Default)]
struct Counts {
    /// Read of messages that were not whole yet: pings, which come for ever, are no progress.
    partial_bytes: u64,
    messages: u64,
    comments: u64,
    foreign: u64,
    doubled: u64,
    out_of_order: u64,
    /// Responses that were no event stream.
    refused: u64,
    /// Responses that were no HTTP.
    malformed: u64,
    disconnects: u64,
    reconnects: u64,
    failed_connects: u64,
}

impl Tally {
    fn problem(&mut self, subscriber: usize, text: impl FnOnce() -> String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems
                .push(format!("subscriber {}: {}", self.first + subscriber, text()));
        }
    }

    fn foreign(&mut self, subscriber: usize, bytes: &[u8], why: &str) {
        self.counts.foreign += 1;
        self.problem(subscriber, || {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
            format!("{why}: {shown:?}")
        });
    }

    /// Judges one item of the stream of a subscriber to `channel`; returns the new position.
    fn item(&mut self, subscriber: usize, channel: u32, item: Item<'_>, now_ns: u64) -> Option<(u32, u32)> {
        match item {
            Item::Message(message) => self.message(subscriber, channel, &message, now_ns),
            Item::Comment => {
                self.counts.comments += 1;
                None
            }
            Item::Foreign(line) => {
                self.foreign(subscriber, line, "a line that is no event stream");
                None
            }
        }
    }

    fn message(&mut self, subscriber: usize, channel: u32, message: &Message<'_>, now_ns: u64) -> Option<(u32, u32)> {
        let Some(stamped) = self.messages.read(message.data) else {
            self.foreign(subscriber, message.data, "a text that no publisher of this run sent");
            return None;
        };
        let Mark {
            channel: sent_to,
            publisher,
            sequence,
        } = stamped.mark;
        if sent_to != channel {
            self.foreign(subscriber, message.data, "a message of another channel");
            return None;
        }
        let lane = Lane { channel, publisher };
        if publisher >= self.lanes.per_channel() || !self.lanes.was_sent(lane, sequence) {
            self.foreign(subscriber, message.data, "a message that was never sent");
            return None;
        }
        if self.event_ids {
            self.messages.write_id(&mut self.id, stamped.mark);
            if message.id != Some(self.id.as_bytes()) {
                let id = message.id.unwrap_or_default().to_vec();
                self.foreign(subscriber, &id, "a message with a wrong id");
                return None;
            }
        }
        self.counts.messages += 1;
        self.last_message_ns = now_ns;
        self.latency.record(now_ns.saturating_sub(stamped.due_ns));
        match self.history.observe(subscriber, publisher as usize, sequence) {
            Sighting::Expected => return Some((publisher, sequence)),
            Sighting::Jump(count) => self.problem(subscriber, || {
                format!("channel {channel}, publisher {publisher}: {count} missing before message {sequence}")
            }),
            Sighting::OutOfOrder => {
                self.counts.out_of_order += 1;
                self.problem(subscriber, || {
                    format!("channel {channel}, publisher {publisher}: message {sequence} out of order")
                });
            }
            Sighting::Doubled => {
                self.counts.doubled += 1;
                self.problem(subscriber, || {
                    format!("channel {channel}, publisher {publisher}: message {sequence} once more")
                });
            }
        }
        Some((publisher, sequence))
    }
}

/// One process' epoll loop.
struct Hand {
    plan: Plan,
    board: Board,
    place: usize,
    epoll: Epoll,
    subscribers: Vec<Subscriber>,
    tally: Tally,
    /// Response heads that came in pieces.
    heads: HashMap<usize, Vec<u8>>,
    /// Clients that come back, by the time when they do.
    retries: BinaryHeap<Reverse<(u64, usize)>>,
    /// How many clients have started their first connect.
    started: usize,
    first_connect_ns: u64,
    /// Connects without a response head yet.
    opening: usize,
    open: usize,
    buffer: Vec<u8>,
    decoded: Vec<u8>,
}

/// Does the subscribing work of one process, until the board says that it is over; returns its report.
pub fn work(plan: Plan, board: Board, place: usize) -> anyhow::Result<Value> {
    let tally = Tally {
        lanes: plan.lanes,
        messages: Messages::new(plan.run, plan.max_message_bytes),
        event_ids: plan.event_ids,
        first: plan.first,
        history: History::new(plan.count, plan.lanes.per_channel() as usize),
        latency: Latency::new(),
        opening: Latency::new(),
        counts: Counts::default(),
        last_message_ns: 0,
        problems: Vec::new(),
        id: String::new(),
    };
    let hand = Hand {
        board,
        place,
        epoll: Epoll::new().context("no epoll")?,
        subscribers: (0..plan.count).map(|_| Subscriber::new()).collect(),
        tally,
        heads: HashMap::new(),
        retries: BinaryHeap::new(),
        started: 0,
        first_connect_ns: 0,
        opening: 0,
        open: 0,
        buffer: vec![0; READ_BYTES],
        decoded: Vec::new(),
        plan,
    };
    hand.run()
}

impl Hand {
    fn run(mut self) -> anyhow::Result<Value> {
        let mut next_behind_check = 0;
        loop {
            let phase = self.board.phase();
            if phase == Phase::Finish {
                return Ok(self.report());
            }
            if phase == Phase::Leave {
                self.leave();
            } else {
                self.connect_due();
            }
            let now = net::now_ns();
            if phase == Phase::Drain && now >= next_behind_check {
                self.board.counters(self.place).behind.store(self.behind(), Relaxed);
                self.board.settle(self.place, phase);
                next_behind_check = now + BEHIND_CHECK.as_nanos() as u64;
            }
            let count = self.epoll.wait(Some(self.patience())).context("epoll_wait")?;
            for index in 0..count {
                let ready = self.epoll.ready(index);
                self.serve(ready);
            }
            self.show();
        }
    }

    /// How long nothing but the sockets has to be looked at.
    fn patience(&self) -> Duration {
        const LONGEST: Duration = Duration::from_millis(10);
        let waiting = self.board.phase() < Phase::Leave
            && self.started < self.invited()
            && self.opening < self.plan.connect_window;
        if waiting && self.plan.connect_rate.is_none() {
            return Duration::ZERO;
        }
        if waiting {
            return Duration::from_millis(1);
        }
        match self.retries.peek() {
            Some(Reverse((due, _))) => Duration::from_nanos(due.saturating_sub(net::now_ns())).min(LONGEST),
            None => LONGEST,
        }
    }

    /// How many of this process' clients may connect by now.
    fn invited(&self) -> usize {
        self.board
            .invited()
            .saturating_sub(self.plan.first)
            .min(self.plan.count)
    }

    fn connect_due(&mut self) {
        let now = net::now_ns();
        if self.first_connect_ns == 0 && self.invited() > 0 {
            self.first_connect_ns = now;
        }
        let paced = match self.plan.connect_rate {
            Some(rate) => (now.saturating_sub(self.first_connect_ns) as f64 / 1e9 * rate) as usize,
            None => usize::MAX,
        };
        let end = self.invited().min(paced);
        while self.started < end && self.opening < self.plan.connect_window {
            self.started += 1;
            self.connect(self.started - 1);
        }
        while let Some(&Reverse((due, index))) = self.retries.peek() {
            if due > now || self.opening >= self.plan.connect_window {
                break;
            }
            self.retries.pop();
            self.connect(index);
        }
    }

    fn connect(&mut self, index: usize) {
        let source = net::source_address(self.plan.url.address(), self.plan.first + index, self.plan.addresses);
        let opened = net::connect(self.plan.url.address(), source).and_then(|stream| {
            self.epoll.add(&stream, index as u64, Interest::ReadWrite)?;
            Ok(stream)
        });
        let subscriber = &mut self.subscribers[index];
        subscriber.connect_ns = net::now_ns();
        match opened {
            Ok(stream) => {
                subscriber.stream = Some(stream);
                subscriber.state = State::Connecting;
                self.opening += 1;
            }
            Err(error) => self.failed_connect(index, &error),
        }
    }

    fn failed_connect(&mut self, index: usize, error: &io::Error) {
        self.tally.counts.failed_connects += 1;
        self.tally.problem(index, || format!("cannot connect: {error}"));
        self.retry_later(index);
    }

    fn retry_later(&mut self, index: usize) {
        self.retries
            .push(Reverse((net::now_ns() + RETRY.as_nanos() as u64, index)));
    }

    /// A socket is ready.
    fn serve(&mut self, ready: Ready) {
        let index = ready.token as usize;
        let subscriber = &mut self.subscribers[index];
        let Some(stream) = &mut subscriber.stream else {
            return;
        };
        if subscriber.state == State::Connecting {
            if let Ok(Some(error)) = stream.take_error() {
                self.close(index);
                self.failed_connect(index, &error);
                return;
            }
            if ready.writable {
                self.send_request(index);
            }
            return;
        }
        // Edge-triggered: read until a short read says that the socket is empty, or to the end if there is one.
        while let Some(stream) = &mut self.subscribers[index].stream {
            match stream.read(&mut self.buffer) {
                Ok(0) => self.ended(index, "the server closed the connection"),
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

    fn send_request(&mut self, index: usize) {
        let request = self.request(index);
        let subscriber = &mut self.subscribers[index];
        let Some(stream) = &mut subscriber.stream else {
            return;
        };
        let sent = stream
            .write(request.as_bytes())
            .and_then(|sent| match sent == request.len() {
                true => self.epoll.modify(&*stream, index as u64, Interest::ReadEdge),
                false => Err(io::Error::other("the request did not fit into an empty socket")),
            });
        match sent {
            Ok(()) => subscriber.state = State::Head,
            Err(error) => self.ended(index, &error.to_string()),
        }
    }

    fn request(&self, index: usize) -> String {
        let channel = self.channel(index);
        let path = self.plan.url.path(&channel_name(self.plan.run, channel));
        let mut request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{BROWSER_HEADERS}",
            self.plan.url.authority()
        );
        if let Some((publisher, sequence)) = self.subscribers[index].position
            && self.plan.event_ids
        {
            let mut id = String::new();
            self.tally.messages.write_id(
                &mut id,
                Mark {
                    channel,
                    publisher,
                    sequence,
                },
            );
            // Writing to a string cannot fail.
            let _ = write!(request, "Last-Event-ID: {id}\r\n");
        }
        request.push_str("\r\n");
        request
    }

    fn channel(&self, index: usize) -> u32 {
        ((self.plan.first + index) % self.plan.lanes.channels() as usize) as u32
    }

    /// `length` bytes lie in the buffer.
    fn received(&mut self, index: usize, length: usize) {
        if self.subscribers[index].state == State::Streaming {
            return self.stream_bytes(index, 0..length);
        }
        // A head comes in one piece nearly always.
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
            Ok((Some((head, used)), length)) => self.head(index, head, used..length),
            Err(error) => self.malformed(index, &error.to_string()),
        }
    }

    fn head(&mut self, index: usize, head: ResponseHead, rest: Range<usize>) {
        if head.status != 200 || !head.event_stream {
            self.tally.counts.refused += 1;
            self.tally.problem(index, || match head.status {
                200 => "the answer is no event stream".to_owned(),
                status => format!("refused with status {status}"),
            });
            self.close(index);
            self.retry_later(index);
            return;
        }
        let subscriber = &mut self.subscribers[index];
        subscriber.state = State::Streaming;
        subscriber.body = head.body;
        self.tally.opening.record(net::now_ns() - subscriber.connect_ns);
        self.opening -= 1;
        self.open += 1;
        self.stream_bytes(index, rest);
    }

    fn stream_bytes(&mut self, index: usize, bytes: Range<usize>) {
        let channel = self.channel(index);
        let subscriber = &mut self.subscribers[index];
        self.decoded.clear();
        let decoded = subscriber.body.decode(&self.buffer[bytes.clone()], &mut self.decoded);
        let now_ns = net::now_ns();
        let (tally, position) = (&mut self.tally, &mut subscriber.position);
        subscriber.events.feed(&self.decoded, |item| {
            if let Some(new) = tally.item(index, channel, item, now_ns) {
                *position = Some(new);
            }
        });
        if subscriber.events.is_inside_event() {
            self.tally.counts.partial_bytes += bytes.len() as u64;
        }
        match decoded {
            Err(error) => self.malformed(index, &error.to_string()),
            Ok(used) if used < bytes.len() => {
                let rest = self.buffer[bytes.start + used..bytes.end].to_vec();
                self.tally.foreign(index, &rest, "bytes behind the end of the response");
                self.ended(index, "the response ended");
            }
            Ok(_) if subscriber.body == Body::Done => self.ended(index, "the response ended"),
            Ok(_) => {}
        }
    }

    fn malformed(&mut self, index: usize, what: &str) {
        self.tally.counts.malformed += 1;
        self.tally.problem(index, || format!("the response holds {what}"));
        self.ended(index, "malformed response");
    }

    /// The stream of a client is over, whoever ended it.
    fn ended(&mut self, index: usize, why: &str) {
        let was = self.close(index);
        if was == State::Streaming {
            self.tally.counts.disconnects += 1;
        }
        if self.plan.reconnect {
            self.tally.counts.reconnects += 1;
            let delay = if was == State::Streaming {
                0
            } else {
                RETRY.as_nanos() as u64
            };
            self.retries.push(Reverse((net::now_ns() + delay, index)));
        } else {
            self.tally.problem(index, || format!("stream lost: {why}"));
            if was != State::Streaming {
                self.retry_later(index);
            }
        }
    }

    /// Closes a client's connection and returns the state it was in.
    fn close(&mut self, index: usize) -> State {
        let subscriber = &mut self.subscribers[index];
        subscriber.stream = None;
        subscriber.events.reset();
        self.heads.remove(&index);
        let was = std::mem::replace(&mut subscriber.state, State::Closed);
        match was {
            State::Closed => {}
            State::Connecting | State::Head => self.opening -= 1,
            State::Streaming => self.open -= 1,
        }
        was
    }

    fn leave(&mut self) {
        if self.open + self.opening + self.retries.len() > 0 {
            for index in 0..self.subscribers.len() {
                self.close(index);
            }
            self.retries.clear();
        }
        self.board.settle(self.place, Phase::Leave);
    }

    /// How many clients have not come to the end of what was accepted.
    fn behind(&self) -> u64 {
        let behind = |index: &usize| {
            let channel = self.channel(*index);
            (0..self.plan.lanes.per_channel()).any(|publisher| {
                let end = self.plan.lanes.accepted_end(Lane { channel, publisher });
                !self.tally.history.is_at(*index, publisher as usize, end)
            })
        };
        (0..self.subscribers.len()).filter(behind).count() as u64
    }

    fn show(&self) {
        let (shown, counts) = (self.board.counters(self.place), &self.tally.counts);
        shown.open.store(self.open as u64, Relaxed);
        shown.done.store(counts.messages, Relaxed);
        shown.partial_bytes.store(counts.partial_bytes, Relaxed);
        shown.reconnects.store(counts.reconnects, Relaxed);
        let trouble = counts.foreign + counts.doubled + counts.out_of_order + counts.malformed + counts.refused;
        shown.trouble.store(trouble, Relaxed);
    }

    fn report(&self) -> Value {
        let Tally {
            counts, history, lanes, ..
        } = &self.tally;
        let mut unseen = Vec::new();
        for index in 0..self.subscribers.len() {
            let channel = self.channel(index);
            for publisher in 0..lanes.per_channel() {
                let lane = Lane { channel, publisher };
                let ranges = history.unseen(index, publisher as usize, lanes.accepted_end(lane));
                if !ranges.is_empty() {
                    let ranges: Vec<_> = ranges.iter().map(|range| [range.start, range.end]).collect();
                    unseen.push(json!({
                        "subscriber": self.plan.first + index,
                        "lane": lanes.index(lane),
                        "ranges": ranges,
                    }));
                }
            }
        }
        json!({
            "messages": counts.messages,
            "comments": counts.comments,
            "foreign": counts.foreign,
            "doubled": counts.doubled,
            "out_of_order": counts.out_of_order,
            "refused": counts.refused,
            "malformed": counts.malformed,
            "disconnects": counts.disconnects,
            "reconnects": counts.reconnects,
            "failed_connects": counts.failed_connects,
            "last_message_ns": self.tally.last_message_ns,
            "latency": self.tally.latency.to_json(),
            "opening": self.tally.opening.to_json(),
            "bytes_per_subscriber": size_of::<Subscriber>() + history.bytes_per_subscriber(),
            "unseen": unseen,
            "problems": self.tally.problems,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Stamped;

    /// A tally for one subscriber of channel 0, of which three messages were sent.
    fn tally() -> Tally {
        let lanes = Lanes::new(2, 1).unwrap();
        lanes.sending(
            Lane {
                channel: 0,
                publisher: 0,
            },
            2,
        );
        lanes.sending(
            Lane {
                channel: 1,
                publisher: 0,
            },
            2,
        );
        Tally {
            lanes,
            messages: Messages::new(1, 200),
            event_ids: true,
            first: 0,
            history: History::new(1, 1),
            latency: Latency::new(),
            opening: Latency::new(),
            counts: Counts::default(),
            last_message_ns: 0,
            problems: Vec::new(),
            id: String::new(),
        }
    }

    /// The subscriber of channel 0 receives a message of `channel` with the id of message `id`.
    fn receive(tally: &mut Tally, channel: u32, sequence: u32, id: u32) -> Option<(u32, u32)> {
        let mut text = Vec::new();
        let mark = Mark {
            channel,
            publisher: 0,
            sequence,
        };
        tally.messages.write(&mut text, Stamped { mark, due_ns: 5 }, 150);
        let mut written = String::new();
        tally.messages.write_id(&mut written, Mark { sequence: id, ..mark });
        let message = Message {
            id: Some(written.as_bytes()),
            event: None,
            data: &text,
        };
        tally.item(0, 0, Item::Message(message), 10)
    }

    #[test]
    fn what_should_come_is_counted_and_moves_the_position() {
        let mut tally = tally();
        assert_eq!(receive(&mut tally, 0, 0, 0), Some((0, 0)));
        assert_eq!(receive(&mut tally, 0, 1, 1), Some((0, 1)));
        assert_eq!(
            (tally.counts.messages, tally.counts.foreign, tally.latency.count()),
            (2, 0, 2)
        );
        assert!(tally.problems.is_empty());
    }

    #[test]
    fn everything_foreign_is_noticed() {
        let mut tally = tally();
        assert_eq!(receive(&mut tally, 1, 0, 0), None, "a message of another channel");
        assert_eq!(receive(&mut tally, 0, 3, 3), None, "a message that was never sent");
        assert_eq!(receive(&mut tally, 0, 0, 1), None, "a message with the id of another");
        let text = Message {
            id: None,
            event: None,
            data: b"hello",
        };
        assert_eq!(tally.item(0, 0, Item::Message(text), 10), None);
        assert_eq!(tally.item(0, 0, Item::Foreign(b"<html>"), 10), None);
        assert_eq!(
            (tally.counts.foreign, tally.counts.messages, tally.problems.len()),
            (5, 0, 5)
        );
    }

    #[test]
    fn lost_doubled_and_reordered_messages_are_noticed() {
        let mut tally = tally();
        receive(&mut tally, 0, 2, 2);
        receive(&mut tally, 0, 0, 0);
        receive(&mut tally, 0, 0, 0);
        assert_eq!((tally.counts.out_of_order, tally.counts.doubled), (1, 1));
        assert_eq!(tally.history.unseen(0, 0, 3).first(), Some(&(1..2)));
        assert_eq!(tally.problems.len(), 3);
    }

    #[test]
    fn a_subscriber_costs_less_than_300_bytes() {
        assert!(size_of::<Subscriber>() <= 128, "{} bytes", size_of::<Subscriber>());
    }
}
