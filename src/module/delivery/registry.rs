//! This worker's subscribers, and their seats in channels.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ffi::c_void;
#[cfg(target_arch = "x86_64")]
use std::ptr;
use std::ptr::NonNull;
use std::rc::Rc;

use ngx::ffi::{ngx_connection_t, ngx_http_request_t, ngx_int_t};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use push_stream_core::store::{AttachReason, Connection, Membership, Mode, Replay};
use push_stream_core::wire::event_id::OrderedId;

use super::disconnect_log::DisconnectRecord;
use super::ending::{Ending, Reason};
use super::flight::Flight;
use super::format::Transport;
use super::frames::Style;
use super::profile::Audience;
use super::send_queue::{Bound, SendQueue};
use super::timer_wheel::Place;
use super::websocket::Socket;

/// Names a subscriber, also after it is gone: its place is then empty or another subscriber's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberId {
    pub index: u32,
    generation: u32,
}

const _: () = assert!(
    size_of::<usize>() == 8,
    "a subscriber's id travels through nginx in a pointer"
);

impl SubscriberId {
    /// The id as the data of a C callback; never NULL, because generations start at 1.
    pub fn to_pointer(self) -> *mut c_void {
        ((self.generation as usize) << 32 | self.index as usize) as *mut c_void
    }

    pub fn from_pointer(pointer: *mut c_void) -> SubscriberId {
        let number = pointer as usize;
        SubscriberId {
            index: number as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// The kind of a subscriber.
pub enum Kind {
    /// Streaming, EventSource: receives all messages until it ends.
    Stream,
    /// WebSocket: receives as a stream, and may send.
    Socket(Box<Socket>),
    /// A long poll that waits for its first message. The closure sends the whole answer.
    Waiting(Responder),
    /// A poll's answer that is too long for one piece. It is in no channel.
    Answer(Box<Rest>),
}

/// The parts of an answer beside its messages.
pub struct Rest {
    /// Sent between two messages.
    pub separator: &'static [u8],
    /// Sent after the last message.
    pub closing: Vec<u8>,
}

/// Due time of something that is never due.
pub const NEVER: u64 = u64::MAX;

/// Sends the answer to a waiting request; returns the code to finalize the request with. Its last argument: the
/// channels in which the client missed messages meanwhile.
pub type Responder = Box<dyn FnOnce(*mut ngx_http_request_t, Reply<'_>, &[Rc<[u8]>]) -> ngx_int_t>;

/// The answer to a waiting request.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'t> {
    Message {
        time: u64,
        tag: u32,
        /// Its event id, if the reader can resume from there.
        position: Option<OrderedId>,
        text: &'t [u8],
    },
    Deleted {
        text: &'t [u8],
    },
    TimedOut,
}

/// One open stream or waiting request. It holds all that is needed after its response head; nothing is looked up in the
/// request.
///
/// The fields that every message touches come first and fill one cache line.
#[repr(C)]
pub struct Subscriber {
    /// Messages up to this sequence number are not sent to it.
    pub joined_seq: u64,
    pub style: Rc<Style>,
    pub send_queue: SendQueue,
    pub replay: Option<Box<Replaying>>,
    /// Its record for the disconnect log.
    pub disconnect_record: Option<Box<DisconnectRecord>>,
    pub ping_due_ms: u64,
    pub audience: Rc<Audience>,
    /// The socket, if bytes may be sent to it directly: no request, no TLS. Else -1.
    pub socket: i32,
    /// It has left its channels, and ends once everything is sent.
    pub ending: bool,
    /// The first reason for its end, if that has begun.
    pub end_reason: Option<Reason>,
    /// Why it keeps its request; None if it is detached, or if it waits for one answer.
    pub attach_reason: Option<AttachReason>,
    pub transit: Transit,

    /// Open as long as the subscriber is registered.
    pub connection: *mut ngx_connection_t,
    /// Alive as long as the subscriber is registered: its cleanup removes the subscriber. NULL once detached.
    pub request: *mut ngx_http_request_t,
    /// None: bytes go straight to the connection. Otherwise the buffers in nginx's output filters; they belong to the
    /// request's pool, which is destroyed after the subscriber is removed.
    pub flight: Option<NonNull<Flight>>,
    pub kind: Kind,
    pub seats: SmallVec<[Seated; 2]>,
    pub end_due_ms: u64,
    /// Its membership in its client's address if that is limited; else number 0, which no membership has.
    pub address: Membership,
    pub place: Place,
}

/// A subscriber's seat in one channel.
#[derive(Clone, Copy, Debug)]
pub struct Seated {
    pub membership: Membership,
    /// Index in the channel's list.
    position: u32,
}

/// A replay in progress; live messages wait behind it.
pub struct Replaying {
    pub replay: Replay,
    /// Ids of the path's channels.
    pub ids: Vec<Rc<[u8]>>,
    pub behind: SendQueue,
    pub first: bool,
    /// For an EventSource that resumes in order: its position, unless a replayed message carries one.
    pub position: Option<OrderedId>,
    /// The last id sent to it, or the one it resumed from.
    pub last: Option<OrderedId>,
}

/// Bounds memory for a million subscribers: with the slab's generation, three cache lines each.
const _: () = {
    assert!(size_of::<Entry>() <= 176);
    assert!(std::mem::offset_of!(Subscriber, connection) <= 64);
};

/// Is it on its way from one worker to another? Then nothing is sent to it or read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transit {
    None,
    /// On offer to another worker.
    Leaving,
    /// Coming from another worker.
    Arriving,
    /// No other worker accepts it.
    Refused,
}

/// Placeholder for no membership.
pub const NOWHERE: Membership = Membership(0);

impl Subscriber {
    /// Takes the membership of its address, for leaving it in the store now.
    pub fn take_address(&mut self) -> Option<Membership> {
        Some(std::mem::replace(&mut self.address, NOWHERE)).filter(|&address| address != NOWHERE)
    }

    /// The membership of its address, if it has one.
    pub fn share_of_address(&self) -> Option<Membership> {
        Some(self.address).filter(|&address| address != NOWHERE)
    }

    /// Does it belong to another worker, too, so that neither may send or read?
    pub fn is_in_transit(&self) -> bool {
        matches!(self.transit, Transit::Leaving | Transit::Arriving)
    }

    /// Begins its end, if it has not begun already.
    pub fn ends(&mut self, reason: Reason) {
        self.end_reason.get_or_insert(reason);
    }

    /// The reason of its end, if it was a stream.
    pub fn closing_reason(&self, ending: Ending) -> Option<Reason> {
        matches!(self.kind, Kind::Stream | Kind::Socket(_)).then(|| self.end_reason.unwrap_or(Reason::of(ending)))
    }

    /// Has it given its request back to nginx?
    pub fn is_detached(&self) -> bool {
        self.request.is_null()
    }

    pub fn mode(&self) -> Mode {
        match (&self.kind, self.style.format.transport) {
            (Kind::Waiting(_) | Kind::Answer(_), _) => Mode::LongPolling,
            (_, Transport::Plain) => Mode::Streaming,
            (_, Transport::EventSource) => Mode::EventSource,
            (_, Transport::WebSocket { .. }) => Mode::WebSocket,
        }
    }

    /// How it is connected, for the counters.
    pub fn connected(&self) -> Connection {
        let mode = self.mode();
        if self.is_detached() {
            Connection::Detached(mode)
        } else {
            Connection::Attached(mode, self.attach_reason)
        }
    }

    pub fn bound(&self, frozen: bool) -> Bound {
        Bound {
            bytes: self.audience.queue_bytes,
            policy: self.audience.slow_reader,
            frozen,
        }
    }

    /// When the timer wheel must handle it next.
    pub fn next_due_ms(&self) -> u64 {
        self.ping_due_ms.min(self.end_due_ms)
    }

    /// A message was delivered: the ping interval starts anew.
    pub fn postpone_ping(&mut self, now_ms: u64) {
        if self.ping_due_ms != NEVER
            && let Some(interval) = self.audience.ping_interval_ms
        {
            self.ping_due_ms = now_ms + interval;
        }
    }
}

/// Subscribers in one chunk of memory.
const CHUNK: usize = 256;

/// All subscribers by index. They lie next to each other in the order of their arrival, as in their channels' lists;
/// memory is allocated and freed in chunks.
#[derive(Default)]
pub struct Slab {
    chunks: Vec<Option<Box<Chunk>>>,
    /// All chunks before this one are full.
    first_with_room: usize,
    len: usize,
    /// Generation of the last subscriber inserted.
    generation: u32,
}

struct Chunk {
    entries: Box<[Entry]>,
    /// One bit for each entry: is it taken?
    taken: [u64; CHUNK / 64],
}

struct Entry {
    generation: u32,
    subscriber: Option<Subscriber>,
}

impl Chunk {
    fn new() -> Box<Chunk> {
        let entry = || Entry {
            generation: 0,
            subscriber: None,
        };
        Box::new(Chunk {
            entries: std::iter::repeat_with(entry).take(CHUNK).collect(),
            taken: [0; CHUNK / 64],
        })
    }

    fn is_empty(&self) -> bool {
        self.taken == [0; CHUNK / 64]
    }

    /// A free place.
    fn room(&self) -> Option<usize> {
        let word = self.taken.iter().position(|&word| word != u64::MAX)?;
        Some(word * 64 + self.taken[word].trailing_ones() as usize)
    }
}

impl Slab {
    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        let chunk = self.chunks.get_mut(index as usize / CHUNK)?.as_deref_mut()?;
        chunk.entries.get_mut(index as usize % CHUNK)
    }

    /// The subscriber at this index.
    pub fn at(&mut self, index: u32) -> Option<&mut Subscriber> {
        self.entry(index)?.subscriber.as_mut()
    }

    /// The subscriber at this index, and its id.
    pub fn named(&mut self, index: u32) -> Option<(SubscriberId, &mut Subscriber)> {
        let Entry { generation, subscriber } = self.entry(index)?;
        let id = SubscriberId {
            index,
            generation: *generation,
        };
        Some((id, subscriber.as_mut()?))
    }

    /// The subscriber with this id, if it still exists.
    pub fn get(&mut self, id: SubscriberId) -> Option<&mut Subscriber> {
        let entry = self.entry(id.index).filter(|entry| entry.generation == id.generation)?;
        entry.subscriber.as_mut()
    }

    /// The id of the subscriber at this index.
    pub fn id(&mut self, index: u32) -> Option<SubscriberId> {
        self.named(index).map(|(id, _)| id)
    }

    /// Prefetches the part of a subscriber that every message touches, while another one is handled.
    pub fn prefetch(&self, index: u32) {
        #[cfg(target_arch = "x86_64")]
        if let Some(Some(chunk)) = self.chunks.get(index as usize / CHUNK)
            && let Some(entry) = chunk.entries.get(index as usize % CHUNK)
        {
            // SAFETY: fetching has no effect but on the cache.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(entry).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = index;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// End of the range of indices.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    fn insert(&mut self, subscriber: Subscriber) -> SubscriberId {
        let (number, place) = self.room();
        // Generations repeat so late that no id of the old one is left.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        let chunk = self.chunks[number].get_or_insert_with(Chunk::new);
        chunk.taken[place / 64] |= 1 << (place % 64);
        chunk.entries[place] = Entry {
            generation,
            subscriber: Some(subscriber),
        };
        self.len += 1;
        SubscriberId {
            index: (number * CHUNK + place) as u32,
            generation,
        }
    }

    /// The first free place: number of its chunk, and index in that.
    fn room(&mut self) -> (usize, usize) {
        while let Some(chunk) = self.chunks.get(self.first_with_room) {
            match chunk {
                None => return (self.first_with_room, 0),
                Some(chunk) => {
                    if let Some(place) = chunk.room() {
                        return (self.first_with_room, place);
                    }
                }
            }
            self.first_with_room += 1;
        }
        self.chunks.push(None);
        (self.first_with_room, 0)
    }

    fn take(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let entry = self.entry(id.index).filter(|entry| entry.generation == id.generation)?;
        let subscriber = entry.subscriber.take()?;
        let (number, place) = (id.index as usize / CHUNK, id.index as usize % CHUNK);
        if let Some(chunk) = &mut self.chunks[number] {
            chunk.taken[place / 64] &= !(1 << (place % 64));
            if chunk.is_empty() {
                self.chunks[number] = None;
            }
        }
        self.first_with_room = self.first_with_room.min(number);
        self.len -= 1;
        Some(subscriber)
    }
}

/// The styles in use. Equal styles are interned, so that comparing them is comparing pointers.
#[derive(Default)]
pub struct Styles(Vec<Rc<Style>>);

impl Styles {
    /// The interned style that is equal to `style`.
    pub fn intern(&mut self, style: Style) -> Rc<Style> {
        if let Some(known) = self.0.iter().find(|known| ***known == style) {
            return known.clone();
        }
        // Drop unused styles of earlier configurations.
        self.0.retain(|known| Rc::strong_count(known) > 1);
        let style = Rc::new(style);
        self.0.push(style.clone());
        style
    }
}

/// A channel that has subscribers in this worker.
pub struct LocalChannel {
    pub id: Rc<[u8]>,
    /// Subscribers by index; a subscriber that named the channel twice is here twice.
    pub members: Vec<u32>,
    /// How many of them, from the front, have been given the part being delivered.
    pub done: usize,
    /// The members' styles, with how many have each.
    styles: SmallVec<[(Rc<Style>, usize); 1]>,
}

impl LocalChannel {
    pub fn styles(&self) -> impl Iterator<Item = &Rc<Style>> {
        self.styles.iter().map(|(style, _)| style)
    }

    fn add_style(&mut self, style: &Rc<Style>) {
        match self.styles.iter_mut().find(|(known, _)| Rc::ptr_eq(known, style)) {
            Some((_, count)) => *count += 1,
            None => self.styles.push((style.clone(), 1)),
        }
    }

    fn remove_style(&mut self, style: &Rc<Style>) {
        if let Some(index) = self.styles.iter().position(|(known, _)| Rc::ptr_eq(known, style)) {
            self.styles[index].1 -= 1;
            if self.styles[index].1 == 0 {
                self.styles.swap_remove(index);
            }
        }
    }
}

/// Subscribers and channels of this worker.
#[derive(Default)]
pub struct Registry {
    pub slab: Slab,
    pub channels: FxHashMap<Membership, LocalChannel>,
    pub styles: Styles,
}

impl Registry {
    /// Adds a subscriber to the channels it has joined: `memberships[i]` is the channel `ids[i]`.
    pub fn add(&mut self, subscriber: Subscriber, memberships: &[Membership], ids: &[&[u8]]) -> SubscriberId {
        let id = self.slab.insert(subscriber);
        for (&membership, &channel_id) in memberships.iter().zip(ids) {
            self.seat(id.index, membership, channel_id);
        }
        id
    }

    fn seat(&mut self, index: u32, membership: Membership, channel_id: &[u8]) {
        let Some(subscriber) = self.slab.at(index) else {
            return;
        };
        let channel = self.channels.entry(membership).or_insert_with(|| LocalChannel {
            id: channel_id.into(),
            members: Vec::new(),
            done: 0,
            styles: SmallVec::new(),
        });
        subscriber.seats.push(Seated {
            membership,
            position: channel.members.len() as u32,
        });
        channel.members.push(index);
        channel.add_style(&subscriber.style);
    }

    /// Removes a subscriber that has no seat any more.
    pub fn take(&mut self, id: SubscriberId) -> Option<Subscriber> {
        self.slab.take(id)
    }

    /// The subscriber's position in the channel's list; one of them, if it is there twice.
    pub fn seat_in(&mut self, index: u32, membership: Membership) -> Option<u32> {
        let seats = &self.slab.at(index)?.seats;
        let seat = seats.iter().find(|seat| seat.membership == membership)?;
        Some(seat.position)
    }

    /// Is the subscriber at `index` still to be given the part being handed out in one of these channels?
    pub fn expects(&mut self, index: u32, is_one: impl Fn(Membership) -> bool) -> bool {
        let Some(subscriber) = self.slab.at(index) else {
            return false;
        };
        let waits = |seat: &Seated| {
            let channel = self.channels.get(&seat.membership);
            channel.is_some_and(|channel| seat.position as usize >= channel.done)
        };
        subscriber
            .seats
            .iter()
            .any(|seat| is_one(seat.membership) && waits(seat))
    }

    /// Removes the subscriber at `index` from all its channels; returns them.
    pub fn unseat_all(&mut self, index: u32) -> SmallVec<[Membership; 2]> {
        std::iter::from_fn(|| self.unseat(index, None)).collect()
    }

    /// Removes the subscriber at `index` from one seat: the one at `position` of `membership`, or its last.
    pub fn unseat(&mut self, index: u32, seat: Option<(Membership, u32)>) -> Option<Membership> {
        let subscriber = self.slab.at(index)?;
        let number = match seat {
            Some((membership, position)) => subscriber
                .seats
                .iter()
                .position(|seated| (seated.membership, seated.position) == (membership, position))?,
            None => subscriber.seats.len().checked_sub(1)?,
        };
        let seated = subscriber.seats.swap_remove(number);
        let style = subscriber.style.clone();
        let channel = self.channels.get_mut(&seated.membership)?;
        channel.remove_style(&style);
        // The list stays partitioned into members that have been given the part being delivered and the others: the
        // last of the former fills the gap, and the last of all fills that one's place.
        let mut gap = seated.position as usize;
        if gap < channel.done {
            channel.done -= 1;
            if gap != channel.done {
                let moved = channel.members[channel.done];
                channel.members[gap] = moved;
                move_seat(&mut self.slab, moved, seated.membership, channel.done, gap);
            }
            gap = channel.done;
        }
        let last = channel.members.len() - 1;
        channel.members.swap_remove(gap);
        if gap != last {
            let moved = channel.members[gap];
            move_seat(&mut self.slab, moved, seated.membership, last, gap);
        }
        if channel.members.is_empty() {
            self.channels.remove(&seated.membership);
        }
        Some(seated.membership)
    }
}

fn move_seat(slab: &mut Slab, index: u32, membership: Membership, from: usize, to: usize) {
    let seats = slab
        .at(index)
        .map(|subscriber| &mut subscriber.seats)
        .into_iter()
        .flatten();
    for seated in seats {
        if seated.membership == membership && seated.position as usize == from {
            seated.position = to as u32;
            return;
        }
    }
}
