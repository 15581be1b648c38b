//! The types of the public interface. None contains a pointer to, or a borrow of, shared memory.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::figures::{Connections, Counter, Counts};
use super::layout::BodyRef;
use crate::wire::event_id::OrderedId;

/// Old messages that one hold of the lock selects.
pub(super) const REPLAY_MESSAGES: usize = 100;
/// Bytes of old messages after which a slice ends.
pub(super) const REPLAY_BYTES: usize = 64 * 1024;

/// A point in time, read once per event and passed down, so that tests can set the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC` in milliseconds: every deadline. The same clock in all processes of a machine.
    pub monotonic_ms: u64,
    /// `CLOCK_REALTIME` in milliseconds since the epoch: message times, used only for display and headers.
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

/// What a full zone does with a new message, channel or subscriber (`push_stream_on_full`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// Refuse it: [`Refusal::Full`].
    Refuse,
    /// Evict, in this order: trash, expired messages, the oldest stored messages, idle channels, undelivered messages.
    /// [`Refusal::NothingToEvict`] only if even that is not enough.
    Evict,
}

/// The configured limits of the http block. They are not part of the shared state: a reload changes them at once.
#[derive(Clone, Debug)]
pub struct Limits {
    pub message_ttl_secs: u32,
    pub channel_inactivity_secs: u32,
    pub max_stored_per_channel: Option<u32>,
    pub max_subscribers_per_channel: Option<u32>,
    pub max_channels: Option<u32>,
    pub max_wildcard_channels: Option<u32>,
    /// Channels whose id starts with this prefix are wildcard channels; empty = no wildcard channels.
    pub wildcard_prefix: Vec<u8>,
    pub on_full: OnFull,
    /// The events channel, which announces [`ChannelEvent`]s of all others, if configured.
    pub events: Option<Events>,
    /// Some directive needs the order of event ids. Once started, tracking continues for the life of the zone.
    pub track_ids: bool,
    /// Some messages without an id get one from the zone.
    pub auto_ids: bool,
    /// Number of accepted ids that each channel keeps for idempotent publishing.
    pub idempotent_window: u32,
}

/// The events channel.
#[derive(Clone, Debug)]
pub struct Events {
    pub channel: Vec<u8>,
    /// Formats the message about an event from the channel's id.
    pub text: fn(ChannelEvent, &[u8]) -> Vec<u8>,
}

/// An event in the life of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    Created,
    Destroyed,
    ClientSubscribed,
    ClientUnsubscribed,
}

impl ChannelEvent {
    /// Its name in the message text, also used as event type.
    pub fn name(self) -> &'static str {
        match self {
            ChannelEvent::Created => "channel_created",
            ChannelEvent::Destroyed => "channel_destroyed",
            ChannelEvent::ClientSubscribed => "client_subscribed",
            ChannelEvent::ClientUnsubscribed => "client_unsubscribed",
        }
    }
}

/// Why the store refused a request. A refused request has changed nothing.
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

impl Refusal {
    /// The counter of messages refused for this reason.
    pub fn counter(self) -> Counter {
        match self {
            Refusal::Full | Refusal::NothingToEvict => Counter::RefusedFull,
            Refusal::TooManyChannels | Refusal::TooManySubscribers | Refusal::TooManyFromAddress => {
                Counter::RefusedLimit
            }
            Refusal::TooLarge => Counter::RefusedInvalid,
            Refusal::OutOfOrder => Counter::RefusedOutOfOrder,
            Refusal::MayNotCreate | Refusal::EventsChannel => Counter::RefusedForbidden,
        }
    }
}

/// What to do with a message whose ordered id is not above the newest of its channel (`push_stream_out_of_order`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfOrder {
    /// Refuse the whole publish: [`Refusal::OutOfOrder`].
    Refuse,
    /// Store it, marked as [late](Message::late).
    Store,
}

/// Options of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub store: bool,
    /// If the message has no event id, the zone assigns one, distinct in each channel.
    pub auto_id: bool,
    /// Skip channels that have already accepted the message's event id.
    pub idempotent: bool,
    pub out_of_order: OutOfOrder,
}

impl Terms {
    /// No automatic id, not idempotent, out-of-order ids are stored.
    pub fn plain(store: bool) -> Terms {
        Terms {
            store,
            auto_id: false,
            idempotent: false,
            out_of_order: OutOfOrder::Store,
        }
    }
}

/// Result of a publish in one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The channel's figures, counting this message.
    pub info: ChannelInfo,
    /// The channel had already accepted this id, and was skipped.
    pub duplicate: bool,
    /// The newest ordered id of the channel, if the zone tracks ids.
    pub newest_id: Option<OrderedId>,
}

/// One channel's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Messages ever published: the id of the newest one.
    pub published: u64,
    /// Messages stored now.
    pub stored: u64,
    /// Subscriptions, summed over all workers.
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
    /// Connected subscribers, each counted once regardless of its number of channels.
    pub subscribers: u64,
    /// Seconds since the zone was created; survives reloads.
    pub uptime_secs: u64,
    pub workers: Vec<WorkerInfo>,
    pub evicted: Evictions,
    /// Publishes and subscriptions refused because the zone was full.
    pub refused_full: u64,
    pub bytes_total: u64,
    pub bytes_free: u64,
    /// The maximum that was ever in use.
    pub bytes_high_water: u64,
    /// Workers that died without having been told to exit.
    pub restarts: u64,
    pub counts: Counts,
}

/// Evictions since the zone was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Trash, evicted before the end of the time for which it is kept for statistics. No reader has lost it.
    pub trash: u64,
    /// Messages past their TTL that had not been removed yet.
    pub expired: u64,
    pub stored: u64,
    pub channels: u64,
    /// Messages that some worker had not taken yet: its subscribers have a gap.
    pub undelivered: u64,
}

/// One living nginx worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    pub slot: u16,
    pub pid: u32,
    pub subscribers: u64,
    pub uptime_secs: u64,
    /// As counted by the worker itself.
    pub connections: Connections,
    /// Longest time that the worker spent delivering without polling for events, in microseconds.
    pub longest_stretch_us: u32,
    /// Seconds since the epoch.
    pub started_unix: u64,
    /// Bytes queued for slow readers, as last reported by the worker.
    pub queued_bytes: u64,
    /// Groups of compressed readers, as last reported by the worker.
    pub compress_groups: u32,
}

/// This worker's membership in one channel. Shared by all its subscribers of that channel; valid until the last of them
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

/// The position from which a client wants to resume.
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
    /// Further channels for a subscriber that is counted already.
    Further,
    /// Subscribes only if there is nothing to send at once.
    LongPoll,
    /// Never subscribes.
    Poll,
}

/// Limit on the number of subscribers per client address.
#[derive(Clone, Copy, Debug)]
pub struct AddressLimit<'a> {
    /// Identifies the address; any bytes.
    pub key: &'a [u8],
    pub max: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct JoinRequest<'a> {
    pub channels: &'a [JoinChannel<'a>],
    pub position: Position<'a>,
    pub mode: JoinMode,
    /// Resume by the order of ids, with the event id taking precedence (`push_stream_resume ordered`).
    pub ordered: bool,
    /// Report gaps, and then send everything stored (`push_stream_gap_notice`).
    pub gap_notices: bool,
    /// `push_stream_authorized_channels_only`.
    pub authorized_channels_only: bool,
    /// May the subscriber follow the events channel?
    pub may_follow_events: bool,
    pub address: Option<AddressLimit<'a>>,
}

/// Memberships of one subscriber, in the order of its path. Most have one channel: no allocation then.
pub type Memberships = SmallVec<[Membership; 4]>;

/// The answer to a [`JoinRequest`], decided atomically: messages published later are live, messages published earlier
/// are in `replay`.
#[derive(Debug)]
pub struct Joined {
    /// One per element of the path, in order, duplicates repeated; empty if the request did not subscribe (polls).
    pub memberships: Memberships,
    /// The subscriber's membership for its client address, if that is limited; to be left like a channel when the
    /// subscriber goes.
    pub address: Option<Membership>,
    /// Zone sequence number at the moment of joining. A live message is for this subscriber only if its `seq` is above.
    pub seq: u64,
    /// Old messages to send first, if there are any.
    pub replay: Option<Replay>,
    /// For polls with something to send: (time, tag) for Last-Modified and Etag.
    pub bound: Option<(u64, u32)>,
    /// Channels in which messages were lost since the client's position.
    pub gaps: Vec<Gap>,
    /// The subscriber's position once it has received `replay`: only a higher id advances it. Without a replay it is
    /// the zone's newest id, or the requested id if that is higher and not a gap.
    pub position: Option<OrderedId>,
}

impl Joined {
    /// The position that a gap notice reports; None if old messages that carry a position follow.
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

    /// Adds to `gaps` where messages were lost while the replay went on.
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

/// A channel in which messages were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Index in the path.
    pub path_index: u32,
    /// The lowest id that is still stored.
    pub first: Option<OrderedId>,
}

/// A walk over old messages, continued from call to call ([`Worker::replay`](super::Worker::replay)); messages evicted
/// meanwhile are skipped.
///
/// It holds no resources in the zone and can simply be dropped.
#[derive(Debug)]
pub struct Replay {
    pub(super) parts: VecDeque<ReplayPart>,
    /// Merged over all channels by event id.
    pub(super) ordered: bool,
    /// Messages that were lost between the calls.
    pub lost: bool,
    /// In an ordered replay: path indices of the parts in which they were.
    pub(super) gaps: Vec<u32>,
}

impl Replay {
    /// Gaps of an ordered replay since the last call, before the messages that
    /// [`Worker::replay`](super::Worker::replay) returned last: indices in the path.
    pub fn take_gaps(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.gaps)
    }
}

/// One channel's part of a [`Replay`].
#[derive(Debug)]
pub(super) struct ReplayPart {
    pub path_index: u32,
    pub channel: u32,
    pub channel_born: u64,
    /// The link to copy next, if it is still there, and its sequence number; `u64::MAX` = none.
    pub hint: u32,
    pub next_seq: u64,
    /// Is this link known to belong to the replay?
    pub hint_is_wanted: bool,
    /// A link that belonged to the replay is gone.
    pub has_gap: bool,
    /// The last sequence number of the replay; later messages are live.
    pub until: u64,
    /// Only messages with an id above this one.
    pub above: Option<OrderedId>,
    /// Messages that were published out of order, the lowest id last.
    pub late: Vec<Late>,
    pub offer: Offer,
}

/// A stored message that was published out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Late {
    pub id: OrderedId,
    pub seq: u64,
    pub link: u32,
}

/// The next message of a part of an ordered replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// Not looked up yet.
    Unknown,
    /// A message with this id; messages without an id are sent at once.
    Message(Option<OrderedId>),
    End,
}

/// Position of a walk over stored messages. It holds no resources in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Sequence number of the next message, which may be gone.
    pub seq: u64,
    /// Its link, if it is still there.
    pub link: u32,
}

impl Replay {
    /// Where the walk continues; None at the end.
    pub fn mark(&self) -> Option<Mark> {
        let part = self.parts.front()?;
        Some(Mark {
            seq: part.next_seq,
            link: part.hint,
        })
    }
}

/// What a message means to its subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Ordinary,
    /// The channel was deleted; the text is the notice. The membership ends with it: every subscriber of it must
    /// leave ([`Worker::leave`](super::Worker::leave)).
    Deleted,
    /// Not sent to clients: every subscriber that joined before it is to be ended. The channel stays.
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
    /// The same time in milliseconds, by the publisher's clock.
    pub unix_ms: u64,
    pub event_id: Option<&'a [u8]>,
    /// In an ordered replay: the next message has the same event id, so this one is no position to resume from.
    pub repeated_id: bool,
    /// Its event id is not, or may not be, above that of an earlier message of its channel.
    pub late: bool,
    /// It was published as binary data ([`Draft::mark_binary`](super::Draft::mark_binary)).
    pub binary: bool,
    pub event_type: Option<&'a [u8]>,
    pub text: &'a [u8],
}

/// Messages copied out of the zone by one [`Worker::drain`](super::Worker::drain) or
/// [`Worker::replay`](super::Worker::replay); reuse it from call to call.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    pub(super) lost: Vec<Lost>,
}

/// Messages of a channel that were evicted before this worker had taken them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub membership: Membership,
    /// Sequence number of the last of them: subscribers that joined before it have a gap.
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
    /// The event id was assigned by the zone: the payload contains none.
    pub auto_id: bool,
    pub repeated_id: bool,
    pub late: bool,
    pub binary: bool,
    pub unix_ms: u64,
    pub event_id: Option<Span>,
    pub event_type: Option<Span>,
    pub text: Span,
}

/// A range of a batch's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub start: usize,
    pub len: usize,
}

/// The data needed to copy a message's payload without the lock.
pub(super) struct Head {
    pub body: BodyRef,
    pub payload_len: usize,
    pub multi: bool,
    pub event_id: bool,
    pub event_type: bool,
}

impl Batch {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.lost.clear();
    }

    /// Messages that this drain should have found but were evicted, as far as known. Reported before the messages of
    /// the same channel.
    pub fn lost(&self) -> &[Lost] {
        &self.lost
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Marks messages whose successor has the same event id. `next`: the id of the message after the batch.
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

    /// The messages in order, each with its source: the [`Membership`]'s number after a drain (all messages of one
    /// membership are consecutive and in publish order), the index in the subscriber's path after a replay.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Message<'_>)> {
        self.records.iter().map(|record| self.read(record))
    }

    /// The message at `index`, with its source.
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

/// Whether a [`Worker::tick`](super::Worker::tick) left work to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    Done,
    /// The budget is used up: call again soon (from a posted event, not in a loop).
    More,
}
