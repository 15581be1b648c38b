//! Clients that share connections: HTTP/2 streams.
//!
//! Consecutive clients form a group with one connection, opened for the first and closed after the last one. A
//! connection that the server wants to close keeps its existing streams; a reconnecting client gets a new one.

use std::io;
use std::net::TcpStream;

use loona_hpack::Decoder;

use super::{EventLoop, Link, READ_BYTES, State, items, poll_position};
use crate::h2::{self, Event, Field, Request};
use crate::net::{Interest, Ready};
use crate::transport::Transport;
use crate::url::UrlTemplate;
use crate::wire::{self, Wire};

/// A client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index in the list of connections.
    connection: u32,
    /// 0 while it is not open.
    stream: u32,
    /// Bytes taken from the stream's window since the last WINDOW_UPDATE.
    taken: u32,
}

/// All connections of a process.
#[derive(Debug)]
pub struct Multiplex {
    /// Clients that share a connection.
    streams: usize,
    connections: Vec<Option<Box<Connection>>>,
    /// Free slots in that list.
    free: Vec<u32>,
    /// Each group's connection for new streams.
    current: Vec<Option<u32>>,
    request: Request,
    decoder: Codec,
    events: Vec<Event>,
}

/// The decoder of response heads.
struct Codec(Decoder<'static>);

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codec")
    }
}

#[derive(Debug)]
struct Connection {
    wire: Wire,
    state: State,
    h2: Option<h2::Connection>,
    group: u32,
    /// Clients on it or waiting for it.
    members: u32,
}

impl Multiplex {
    pub fn new(url: &UrlTemplate, transport: Transport, streams: usize, places: usize) -> Self {
        Self {
            streams,
            connections: Vec::new(),
            free: Vec::new(),
            current: vec![None; places.div_ceil(streams)],
            request: Request::new(false, url.is_encrypted(), url.authority(), &transport.headers()),
            decoder: Codec(h2::decoder()),
            events: Vec::new(),
        }
    }

    /// Closes all connections.
    pub fn hang_up(&mut self) {
        self.connections.iter_mut().for_each(|connection| *connection = None);
        self.current.iter_mut().for_each(|current| *current = None);
    }

    fn connection(&mut self, slot: u32) -> Option<&mut Connection> {
        self.connections.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The socket of a client's connection.
    pub fn socket(&self, place: Place) -> Option<&TcpStream> {
        let connection = self.connections.get(place.connection as usize)?.as_deref()?;
        Some(connection.wire.stream())
    }

    /// Closes a connection without clients.
    fn remove(&mut self, slot: u32) {
        if let Some(connection) = self.connections[slot as usize].take() {
            self.retire(connection.group, slot);
            self.free.push(slot);
        }
    }

    /// Stops new streams on a connection.
    fn retire(&mut self, group: u32, slot: u32) {
        let current = &mut self.current[group as usize];
        if *current == Some(slot) {
            *current = None;
        }
    }

    fn free_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() as u32 - 1
        })
    }
}

impl EventLoop {
    /// Puts a client on its group's connection, opening it if needed.
    pub(super) fn connect_stream(&mut self, index: usize) {
        let slot = match self.current_connection(index) {
            Ok(Some(slot)) => slot,
            Ok(None) => return,
            Err(error) => return self.failed_connect(index, &error),
        };
        let place = Place {
            connection: slot,
            stream: 0,
            taken: 0,
        };
        let subscriber = &mut self.subscribers[index];
        subscriber.link = Link::Stream(place);
        subscriber.state = State::Connecting;
        self.opening += 1;
        let connection = self.multiplex.as_mut().and_then(|multiplex| multiplex.connection(slot));
        if let Some(connection) = connection {
            connection.members += 1;
            if connection.h2.is_some() {
                self.send_first_request(index);
            }
        }
    }

    fn current_connection(&mut self, index: usize) -> io::Result<Option<u32>> {
        let Some(multiplex) = &mut self.multiplex else {
            return Ok(None);
        };
        let group = index / multiplex.streams;
        if multiplex.current[group].is_some() {
            return Ok(multiplex.current[group]);
        }
        let slot = multiplex.free_slot();
        let made = self
            .dial(index, u64::from(slot))
            .and_then(|stream: TcpStream| Wire::new(stream, self.connector.as_ref()));
        let Some(multiplex) = &mut self.multiplex else {
            return Ok(None);
        };
        let wire = made.inspect_err(|_| multiplex.free.push(slot))?;
        multiplex.connections[slot as usize] = Some(Box::new(Connection {
            wire,
            state: State::Connecting,
            h2: None,
            group: group as u32,
            members: 0,
        }));
        multiplex.current[group] = Some(slot);
        Ok(Some(slot))
    }

    /// A connection's socket is ready.
    pub(super) fn serve_connection(&mut self, ready: Ready) {
        let slot = ready.token as u32;
        let Some(connection) = self.multiplex.as_mut().and_then(|multiplex| multiplex.connection(slot)) else {
            return;
        };
        if connection.state == State::Connecting {
            if let Ok(Some(error)) = connection.wire.stream().take_error() {
                return self.lost(slot, &error.to_string(), Some(&error));
            }
            if !ready.writable {
                return;
            }
            connection.state = State::Handshake;
            let edge = self
                .epoll
                .modify(connection.wire.stream(), ready.token, Interest::ReadEdge);
            if let Err(error) = edge.and_then(|()| connection.wire.begin()) {
                return self.lost(slot, &error.to_string(), None);
            }
            self.start_streams(slot);
        } else if ready.writable {
            self.send(slot, &[]);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(connection) = self.multiplex.as_mut().and_then(|multiplex| multiplex.connection(slot)) {
            match connection.wire.read(&mut buffer) {
                Ok(got) => {
                    let empty = got.raw < READ_BYTES - wire::HEADROOM && !ready.hung_up;
                    self.start_streams(slot);
                    self.frames(slot, &buffer[..got.length]);
                    if let Some(why) = got.end {
                        self.lost(slot, why, None);
                    }
                    if empty {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.lost(slot, &error.to_string(), None),
            }
        }
        self.buffer = buffer;
    }

    /// Once the connection is ready, opens the streams of the waiting clients.
    fn start_streams(&mut self, slot: u32) {
        let Some(connection) = self.multiplex.as_mut().and_then(|multiplex| multiplex.connection(slot)) else {
            return;
        };
        if connection.h2.is_some() || !connection.wire.is_ready() {
            return;
        }
        let mut out = Vec::new();
        connection.h2 = Some(h2::Connection::start(&mut out));
        self.send(slot, &out);
        for index in self.members(slot) {
            self.send_first_request(index);
        }
    }

    /// The clients that are on a connection or wait for it.
    fn members(&self, slot: u32) -> Vec<usize> {
        let Some(multiplex) = &self.multiplex else {
            return Vec::new();
        };
        let Some(Some(connection)) = multiplex.connections.get(slot as usize) else {
            return Vec::new();
        };
        let first = connection.group as usize * multiplex.streams;
        let last = (first + multiplex.streams).min(self.subscribers.len());
        (first..last)
            .filter(|index| matches!(self.subscribers[*index].link, Link::Stream(place) if place.connection == slot))
            .collect()
    }

    /// Sends a client's request on a new stream.
    pub(super) fn open_stream(&mut self, index: usize) {
        let path = self.path(index);
        let mut position = String::new();
        self.write_position(index, &mut position);
        let fields: Vec<(String, &str)> = position
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let Link::Stream(place) = &mut self.subscribers[index].link else {
            return;
        };
        let slot = place.connection;
        let Some(multiplex) = &mut self.multiplex else {
            return;
        };
        let mut out = Vec::new();
        let connection = multiplex
            .connections
            .get_mut(slot as usize)
            .and_then(Option::as_deref_mut);
        if let Some(h2) = connection.and_then(|connection| connection.h2.as_mut()) {
            place.stream = h2.get(&multiplex.request, &path, &fields, &mut out);
            place.taken = 0;
        }
        self.send(slot, &out);
    }

    /// Sends frames, or the rest of earlier ones.
    fn send(&mut self, slot: u32, frames: &[u8]) {
        let Some(connection) = self.multiplex.as_mut().and_then(|multiplex| multiplex.connection(slot)) else {
            return;
        };
        let waited = connection.wire.is_waiting();
        let sent = match frames {
            [] => connection.wire.flush(),
            frames => connection.wire.write(frames),
        };
        let interest = match sent {
            Ok(false) if !waited => Interest::ReadWrite,
            Ok(true) if waited => Interest::ReadEdge,
            // If the connection is broken, the next read reports it.
            _ => return,
        };
        // Watching an open socket cannot fail.
        let _ = self.epoll.modify(connection.wire.stream(), u64::from(slot), interest);
    }

    /// Handles received frames.
    fn frames(&mut self, slot: u32, bytes: &[u8]) {
        let Some(multiplex) = &mut self.multiplex else {
            return;
        };
        let connection = multiplex
            .connections
            .get_mut(slot as usize)
            .and_then(Option::as_deref_mut);
        let Some(h2) = connection.and_then(|connection| connection.h2.as_mut()) else {
            return;
        };
        let (mut events, mut out) = (std::mem::take(&mut multiplex.events), Vec::new());
        let understood = h2.receive(bytes, &mut multiplex.decoder.0, &mut out, &mut events);
        if (h2.max_streams as usize) < multiplex.streams {
            let (allowed, streams) = (h2.max_streams, multiplex.streams);
            self.fatal = Some(format!(
                "the server allows {allowed} streams on a connection, not {streams}"
            ));
        }
        for event in events.drain(..) {
            self.event(slot, event, bytes, &mut out);
        }
        if let Some(multiplex) = &mut self.multiplex {
            multiplex.events = events;
        }
        if !out.is_empty() {
            self.send(slot, &out);
        }
        if let Err(error) = understood {
            self.checker.counts.malformed += 1;
            self.lost(slot, &error.to_string(), None);
        }
    }

    fn event(&mut self, slot: u32, event: Event, bytes: &[u8], out: &mut Vec<u8>) {
        match event {
            Event::Head { stream, fields, end } => {
                if let Some(index) = self.client(slot, stream) {
                    self.stream_head(index, &fields, end);
                }
            }
            Event::Data {
                stream,
                bytes: part,
                taken,
                end,
            } => {
                if let Some(index) = self.client(slot, stream) {
                    self.stream_data(index, &bytes[part], taken, end, out);
                }
            }
            Event::Reset { stream, code } => {
                if let Some(index) = self.client(slot, stream) {
                    self.forget_stream(index);
                    self.ended(index, &format!("the server reset the stream with code {code}"));
                }
            }
            Event::GoAway { last, code } => self.go_away(slot, last, code),
            Event::Room { .. } => {}
        }
    }

    /// The client of a stream; `None` if it has left meanwhile.
    fn client(&self, slot: u32, stream: u32) -> Option<usize> {
        let multiplex = self.multiplex.as_ref()?;
        let connection = multiplex.connections.get(slot as usize)?.as_deref()?;
        let first = connection.group as usize * multiplex.streams;
        let last = (first + multiplex.streams).min(self.subscribers.len());
        let is_it = |index: &usize| matches!(self.subscribers[*index].link, Link::Stream(place) if place.connection == slot && place.stream == stream);
        // Until a client leaves, streams are in the order of their clients.
        let guess = first + (stream as usize / 2) % multiplex.streams;
        Some(guess)
            .filter(|guess| *guess < last)
            .filter(is_it)
            .or_else(|| (first..last).find(is_it))
    }

    /// A client's stream is closed at both ends.
    fn forget_stream(&mut self, index: usize) {
        if let Link::Stream(place) = &mut self.subscribers[index].link {
            place.stream = 0;
        }
    }

    fn stream_head(&mut self, index: usize, fields: &[Field], end: bool) {
        let (head, raw) = match h2::http1_head(fields) {
            Ok(head) => head,
            Err(error) => return self.malformed(index, &error.to_string()),
        };
        // An interim response: another head follows.
        if (100..200).contains(&head.status) {
            return;
        }
        if end {
            self.forget_stream(index);
        }
        let verdict = self.plan.transport.accepts(&head, &raw);
        if self.take_head(index, head, verdict, poll_position(&raw)) && end {
            self.stream_ended(index);
        }
    }

    fn stream_data(&mut self, index: usize, bytes: &[u8], taken: u32, end: bool, out: &mut Vec<u8>) {
        if let Link::Stream(place) = &mut self.subscribers[index].link {
            place.taken += taken;
            let replenished = match end {
                true => Ok(()),
                false => h2::replenish(place.stream, &mut place.taken, out),
            };
            if let Err(error) = replenished {
                return self.malformed(index, &error.to_string());
            }
        }
        if end {
            self.forget_stream(index);
        }
        let subscriber = &mut self.subscribers[index];
        if subscriber.state != State::Streaming {
            return self.malformed(index, "DATA before HEADERS");
        }
        items(subscriber, &mut self.checker, index, bytes);
        if subscriber.feed.is_inside_message() {
            self.checker.counts.partial_bytes += bytes.len() as u64;
        }
        if end {
            self.stream_ended(index);
        }
    }

    /// The server has ended a response.
    fn stream_ended(&mut self, index: usize) {
        let slot = match self.subscribers[index].link {
            Link::Stream(place) => place.connection,
            _ => return,
        };
        // A connection without new streams has had its last response.
        let is_current = self.multiplex.as_ref().is_some_and(|multiplex| {
            let connection = multiplex.connections[slot as usize].as_ref();
            connection.is_some_and(|connection| multiplex.current[connection.group as usize] == Some(slot))
        });
        self.subscribers[index].last_response = !is_current;
        self.response_ended(index);
    }

    /// Handles GOAWAY: the server takes no new streams.
    fn go_away(&mut self, slot: u32, last: u32, code: u32) {
        let Some(multiplex) = &mut self.multiplex else {
            return;
        };
        if let Some(group) = multiplex.connection(slot).map(|connection| connection.group) {
            multiplex.retire(group, slot);
        }
        for index in self.members(slot) {
            if let Link::Stream(place) = self.subscribers[index].link
                && place.stream > last
            {
                self.forget_stream(index);
                self.ended(
                    index,
                    &format!("the server refused the stream by GOAWAY with code {code}"),
                );
            }
        }
    }

    /// A connection is over, with all its streams; `failed` if it was never established.
    fn lost(&mut self, slot: u32, why: &str, failed: Option<&io::Error>) {
        let members = self.members(slot);
        let source = members.first().and_then(|index| self.source(*index));
        if let Some(multiplex) = &mut self.multiplex
            && let Some(group) = multiplex.connection(slot).map(|connection| connection.group)
        {
            multiplex.retire(group, slot);
        }
        // It is closed after the last of them.
        for index in members {
            self.forget_stream(index);
            match failed {
                Some(error) => {
                    self.close(index);
                    self.failed_connect(index, error);
                }
                None => self.ended(index, why),
            }
        }
        if let (Some(killed), Some(source)) = (&mut self.killed, source) {
            killed.forget(source);
        }
    }

    /// A client leaves its stream.
    pub(super) fn release(&mut self, place: Place) {
        let Some(multiplex) = &mut self.multiplex else {
            return;
        };
        let Some(connection) = multiplex.connection(place.connection) else {
            return;
        };
        connection.members -= 1;
        if connection.members == 0 {
            return multiplex.remove(place.connection);
        }
        if place.stream != 0 {
            let mut out = Vec::new();
            h2::cancel(place.stream, &mut out);
            self.send(place.connection, &out);
        }
    }
}
