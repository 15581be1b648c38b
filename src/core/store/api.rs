//! The types that callers see. No pointer and no borrow of shared memory appears in any of them.

use std::collections::VecDeque;

use super::history::{Late, Offer};
use super::{Connections, Counts};
use crate::wire::event_id::OrderedId;

/// A point in time, read once per event and passed down, so that tests can turn the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC` in milliseconds: every deadline. The same clock in all processes of a machine.
    pub monotonic_ms: u64,
    /// `CLOCK_REALTIME` in milliseconds since the epoch: message times, only for people and headers.
    pub unix_ms: u64,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Now {
        let read = |clock| {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` is a valid timespec and both clocks exist on every Linux.
            unsafe { libc::clock_gettime(clock, &mut time) };
            time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
        };
        Now {
            monotonic_ms: read(libc::CLOCK_MONOTONIC),
            unix_ms: read(libc::CLOCK_REALTIME),
        }
    }

    /// Seconds since the epoch.
    pub fn unix_secs(self) -> u64 {
        self.unix_ms / 1000
    }
}

/// What a full zone does with a newcomer (`push_stream_on_full`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// Refuse it: [`Refusal::Full`].
    Refuse,
    /// Make room: trash, expired, the oldest stored messages, idle channels, and in the end undelivered messages.
    /// [`Refusal::NothingToEvict`] only if even that is not enough.
    Evict,
}

/// The limits of the http block, as configured now. They are no part of the shared state: a reload changes them at once.
#[derive(Clone, Debug)]
pub struct Limits {
    pub message_ttl_secs: u32,
    pub channel_inactivity_secs: u32,
    pub max_stored_per_channel: Option<u32>,
    pub max_subscribers_per_channel: Option<u32>,
    pub max_channels: Option<u32>,
    pub max_wildcard_channels: Option<u32>,
    /// Channels whose id starts with this are wildcard channels; empty = there are none.
    pub wildcard_prefix: Vec<u8>,
    pub on_full: OnFull,
    /// The channel that tells what happens to the others, if there shall be one.
    pub events: Option<Events>,
    /// Something in the configuration needs to know the order of event ids. Once begun, the zone goes on with it.
    pub track_ids: bool,
    /// Some messages without an id get one from the zone.
    pub auto_ids: bool,
    /// Accepted ids that each channel remembers where publishing is idempotent.
    pub idempotent_window: u32,
}

/// The events channel.
#[derive(Clone, Debug)]
pub struct Events {
    pub channel: Vec<u8>,
    /// Text of the message about a channel, from its id.
    pub text: fn(ChannelEvent, &[u8]) -> Vec<u8>,
}

/// What can happen to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    Created,
    Destroyed,
    ClientSubscribed,
    ClientUnsubscribed,
}

impl ChannelEvent {
    /// Its name in the message and as event type.
    pub fn name(self) -> &'static str {
        match self {
            ChannelEvent::Created => "channel_created",
            ChannelEvent::Destroyed => "channel_destroyed",
            ChannelEvent::ClientSubscribed => "client_subscribed",
            ChannelEvent::ClientUnsubscribed => "client_unsubscribed",
        }
    }
}

/// Why the store did not do what it was asked. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the shared memory zone is full")]
    Full,
    #[error("the shared memory zone is full and nothing in it can be evicted")]
    NothingToEvict,
    #[error("the message is larger than 256 MiB")]
    TooLarge,
    #[error("the number of channels was exceeded")]
    TooManyChannels,
    #[error("the number of subscribers of a channel was exceeded")]
    TooManySubscribers,
    #[error("the number of subscribers from an address was exceeded")]
    TooManyFromAddress,
    #[error("the subscriber may not create channels")]
    MayNotCreate,
    #[error("the subscriber may not follow the events channel")]
    EventsChannel,
    #[error("a channel has had a higher event id")]
    OutOfOrder,
}

/// What becomes of a message whose ordered id is not above the newest of its channel (`push_stream_out_of_order`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfOrder {
    /// The whole publish is refused: [`Refusal::OutOfOrder`].
    Refuse,
    /// It is stored, and marked as [late](Message::late).
    Store,
}

/// On which terms a message is published.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub store: bool,
    /// If it brings no event id, it gets one from the zone, each copy its own.
    pub auto_id: bool,
    /// Channels that have accepted its event id before are skipped.
    pub idempotent: bool,
    pub out_of_order: OutOfOrder,
}

impl Terms {
    /// With nothing but what the message brings.
    pub fn plain(store: bool) -> Terms {
        Terms {
            store,
            auto_id: false,
            idempotent: false,
            out_of_order: OutOfOrder::Store,
        }
    }
}

/// What became of a publish in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The channel's figures, counting this message.
    pub info: ChannelInfo,
    /// The channel had accepted this id before, and was skipped.
    pub duplicate: bool,
    /// The newest ordered id of the channel, if the zone keeps track of ids.
    pub newest_id: Option<OrderedId>,
}

/// One channel's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Messages ever published: the id of the newest one.
    pub published: u64,
    /// Messages stored now.
    pub stored: u64,
    /// Subscriptions over all workers.
    pub subscribers: u64,
}

/// The figures of the whole zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub channels: u64,
    pub wildcard_channels: u64,
    pub published: u64,
    pub stored: u64,
    pub messages_in_trash: u64,
    pub channels_in_delete: u64,
    pub channels_in_trash: u64,
    /// Connected subscribers, however many channels each has.
    pub subscribers: u64,
    /// Seconds since the zone was created; survives reloads.
    pub uptime_secs: u64,
    pub workers: Vec<WorkerInfo>,
    pub evicted: Evictions,
    /// Publishes and subscriptions refused because the zone was full.
    pub refused_full: u64,
    pub bytes_total: u64,
    pub bytes_free: u64,
    /// The most that was ever in use.
    pub bytes_high_water: u64,
    /// Workers that died and were not told to.
    pub restarts: u64,
    pub counts: Counts,
}

/// What was evicted to make room, ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Messages that nobody could get any more, before the time for which they are kept for statistics.
    pub trash: u64,
    /// Messages whose time was over and that were not removed yet.
    pub expired: u64,
    pub stored: u64,
    pub channels: u64,
    /// Messages that a worker had not yet taken: its subscribers have a gap.
    pub undelivered: u64,
}

/// One living nginx worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    pub slot: u16,
    pub pid: u32,
    pub subscribers: u64,
    pub uptime_secs: u64,
    /// As the worker itself counts them.
    pub connections: Connections,
    /// The longest that it did not look for events while it delivered, in microseconds.
    pub longest_stretch_us: u32,
    /// Seconds since the epoch.
    pub started_unix: u64,
    /// Bytes that wait for slow readers, as the worker said last.
    pub queued_bytes: u64,
}

/// This worker's membership in one channel. Equal for all its subscribers of that channel; valid until the last of them
/// has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Membership(pub u32);

/// One element of a subscriber's path.
#[derive(Clone, Copy, Debug)]
pub struct JoinChannel<'a> {
    pub id: &'a [u8],
    /// `.bN`; 0 = none. `u32::MAX` = everything.
    pub backtrack: u32,
}

/// Where a client wants to resume.
#[derive(Clone, Copy, Debug, Default)]
pub struct Position<'a> {
    pub event_id: Option<&'a [u8]>,
    /// Seconds since the epoch.
    pub time: Option<u64>,
    pub tag: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinMode {
    /// Streaming, EventSource, WebSocket: always subscribes.
    Stream,
    /// Subscribes only if there is nothing to send at once.
    LongPoll,
    /// Never subscribes.
    Poll,
}

/// How many subscribers there may be from one client address.
#[derive(Clone, Copy, Debug)]
pub struct AddressLimit<'a> {
    /// What stands for the address; any bytes.
    pub key: &'a [u8],
    pub max: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct JoinRequest<'a> {
    pub channels: &'a [JoinChannel<'a>],
    pub position: Position<'a>,
    pub mode: JoinMode,
    /// Resume by the order of ids, with the event id before all else (`push_stream_resume ordered`).
    pub ordered: bool,
    /// Say who has missed something, and send them all there is (`push_stream_gap_notice`).
    pub gap_notices: bool,
    /// `push_stream_authorized_channels_only`.
    pub authorized_channels_only: bool,
    /// May it follow the events channel?
    pub may_follow_events: bool,
    pub address: Option<AddressLimit<'a>>,
}

/// The answer to a [`JoinRequest`], decided in one step: whatever is published later is live, whatever was published
/// before is in `replay`.
#[derive(Debug)]
pub struct Joined {
    /// One per element of the path, in order, duplicates repeated; empty if the request did not subscribe (polls).
    pub memberships: Vec<Membership>,
    /// The subscriber's share of its address, if that is limited; to be left when the subscriber is gone, like a channel.
    pub address: Option<Membership>,
    /// Zone sequence number at the moment of joining. A live message is for this subscriber only if its `seq` is above.
    pub seq: u64,
    /// Old messages to send first, if there are any.
    pub replay: Option<Replay>,
    /// For polls with something to send: (time, tag) that Last-Modified and Etag report.
    pub bound: Option<(u64, u32)>,
    /// Channels in which something was lost since the position.
    pub gaps: Vec<Gap>,
    /// Where the subscriber is when it has what is in `replay`: only a higher id is a position for it. Without a replay that is the
    /// zone's newest id, or what it asked with if that is higher and is no gap.
    pub position: Option<OrderedId>,
}

impl Joined {
    /// The position that a notice of a gap tells; None if old messages follow that bring one.
    pub fn position_of_notice(&self) -> Option<OrderedId> {
        let gap = |part: &ReplayPart| self.gaps.iter().find(|gap| gap.path_index == part.path_index);
        // Where nothing was lost, a replay begins above an id.
        let brings_ids = |part: &ReplayPart| gap(part).is_none_or(|gap| gap.first.is_some());
        let follow = self
            .replay
            .as_ref()
            .is_some_and(|replay| replay.parts.iter().any(brings_ids));
        self.position.filter(|_| !follow)
    }

    /// Takes up where messages were lost while the replay went on.
    pub fn note_gaps(&mut self) {
        for path_index in self.replay.as_mut().map(Replay::take_gaps).unwrap_or_default() {
            if self.gaps.iter().all(|gap| gap.path_index != path_index) {
                self.gaps.push(Gap {
                    path_index,
                    first: None,
                });
            }
        }
    }
}

/// A channel in which something was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Index in the path.
    pub path_index: u32,
    /// The lowest id that is there.
    pub first: Option<OrderedId>,
}

/// A walk over old messages that goes on from call to call ([`Worker::replay`](super::Worker::replay)); what was evicted meanwhile is skipped.
///
/// It holds nothing in the zone: dropping it is free.
#[derive(Debug)]
pub struct Replay {
    pub(super) parts: VecDeque<ReplayPart>,
    /// Merged over all channels by event id.
    pub(super) ordered: bool,
    /// Messages that were lost between the calls.
    pub lost: bool,
    /// In an ordered replay: the parts of the path that they were in.
    pub(super) gaps: Vec<u32>,
}

impl Replay {
    /// Where messages were lost since the last call, before what [`Worker::replay`](super::Worker::replay) has found last: indices in the
    /// path, of an ordered replay.
    pub fn take_gaps(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gaps)
    }
}

/// The part of a [`Replay`] that one channel has.
#[derive(Debug)]
pub(super) struct ReplayPart {
    pub path_index: u32,
    pub channel: u32,
    pub channel_born: u64,
    /// The link to copy next, if it is still there, and its sequence number; `u64::MAX` = there is none.
    pub hint: u32,
    pub next_seq: u64,
    /// Is it known that this one belongs to the replay?
    pub hint_is_wanted: bool,
    /// One that belongs to it is gone.
    pub has_gap: bool,
    /// The last sequence number that belongs to the replay; what follows is live.
    pub until: u64,
    /// Only messages with a higher id.
    pub above: Option<OrderedId>,
    /// Messages that came out of order, the lowest id last.
    pub late: Vec<Late>,
    pub offer: Offer,
}

/// Where a walk over stored messages stands. It holds nothing in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Sequence number of the message that is next; it may be gone.
    pub seq: u64,
    /// Where it is, if it is still there.
    pub link: u32,
}

impl Replay {
    /// Where it goes on; None at the end.
    pub fn mark(&self) -> Option<Mark> {
        let part = self.parts.front()?;
        Some(Mark {
            seq: part.next_seq,
            link: part.hint,
        })
    }
}

/// What kind of message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Ordinary,
    /// The channel was deleted; the text is the notice. The membership ends with it: every subscriber of it must
    /// leave ([`Worker::leave`](super::Worker::leave)).
    Deleted,
    /// Not for the client's eyes: every subscriber that joined before it is to be ended. The channel stays.
    Dismissed,
}

/// A message copied out of the zone; its bytes are in the [`Batch`] it came in.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: MessageKind,
    /// 1, 2, 3 ... per channel; 0 for notices.
    pub id: u64,
    /// Zone-wide, strictly increasing.
    pub seq: u64,
    /// Publish time, seconds since the epoch.
    pub time: u64,
    pub tag: u32,
    /// The same time in milliseconds, as the publisher's clock said.
    pub unix_ms: u64,
    pub event_id: Option<&'a [u8]>,
    /// In an ordered replay: the next message has the same event id, so this one is no position to resume from.
    pub repeated_id: bool,
    /// Its event id is not above that of an earlier message of its channel, or may not be.
    pub late: bool,
    /// It came as binary data ([`Draft::mark_binary`](super::Draft::mark_binary)).
    pub binary: bool,
    pub event_type: Option<&'a [u8]>,
    pub text: &'a [u8],
}

/// Messages copied out of the zone by one [`Worker::drain`](super::Worker::drain) or [`Worker::replay`](super::Worker::replay); reuse it from call to call.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) lost: Vec<Lost>,
}

/// Messages of a channel were taken away to make room before this worker had taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub membership: Membership,
    /// Sequence number of the last of them: who joined before has missed something.
    pub seq: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Membership (drain) or index in the path (replay).
    pub source: u32,
    pub kind: MessageKind,
    pub id: u64,
    pub seq: u64,
    pub time: u64,
    pub tag: u32,
    /// The event id is that of the zone: there is none in the payload.
    pub auto_id: bool,
    pub repeated_id: bool,
    pub late: bool,
    pub binary: bool,
    pub unix_ms: u64,
    pub event_id: Option<Span>,
    pub event_type: Option<Span>,
    pub text: Span,
}

/// A piece of a batch's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub start: usize,
    pub len: usize,
}

impl Batch {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.lost.clear();
    }

    /// What a drain should have found and did not, as far as it is known now. It comes before the messages of the same channel.
    pub fn lost(&self) -> &[Lost] {
        &self.lost
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Marks messages whose event id the next one has, too. `next`: the id of what follows the batch.
    pub(super) fn mark_repeated(&mut self, next: Option<OrderedId>) {
        let next = next.map(|id| id.to_text());
        let bytes = |span: Option<Span>| span.map(|span| &self.bytes[span.start..span.start + span.len]);
        let ids: Vec<_> = self
            .records
            .iter()
            .map(|record| bytes(record.event_id))
            .chain([next.as_deref()])
            .collect();
        let repeated: Vec<_> = ids
            .windows(2)
            .map(|pair| pair[0].is_some() && pair[0] == pair[1])
            .collect();
        for (record, repeated) in self.records.iter_mut().zip(repeated) {
            record.repeated_id = repeated;
        }
    }

    /// The messages in order, each with where it came from: the [`Membership`]'s number after a drain (all messages of
    /// one membership are consecutive and in publish order), the index in the subscriber's path after a replay.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Message<'_>)> {
        self.records.iter().map(|record| self.read(record))
    }

    /// One of them.
    pub fn get(&self, index: usize) -> Option<(u32, Message<'_>)> {
        self.records.get(index).map(|record| self.read(record))
    }

    fn read(&self, record: &Record) -> (u32, Message<'_>) {
        let bytes = |span: Span| &self.bytes[span.start..span.start + span.len];
        let message = Message {
            kind: record.kind,
            id: record.id,
            seq: record.seq,
            time: record.time,
            tag: record.tag,
            unix_ms: record.unix_ms,
            event_id: record.event_id.map(bytes),
            repeated_id: record.repeated_id,
            late: record.late,
            binary: record.binary,
            event_type: record.event_type.map(bytes),
            text: bytes(record.text),
        };
        (record.source, message)
    }
}

/// What a [`Worker::tick`](super::Worker::tick) left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    Done,
    /// The budget was used up: call again soon (from a posted event, not in a loop).
    More,
}
