//! The layout of the zone, as typed fields. See the drawing in [`super`].

use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::wire::event_id::MAX_GROUPS;

/// Size of a block in bytes. A message head with its first link takes 64 of them, so a comment of 64 bytes is one
/// block; a channel with an id of up to 40 bytes is one block.
pub const BLOCK: usize = 128;
/// Text bytes in a block that continues another: the first four hold the next block's number.
pub const CONTINUATION: usize = BLOCK - 4;
/// Links in a block that holds nothing else.
pub const LINKS_PER_BLOCK: u32 = 4;
/// Where the text starts in a message's head block.
pub const HEAD_TEXT: usize = 64;
/// Text bytes in the head block of a message in one channel.
pub const HEAD_ROOM: usize = BLOCK - HEAD_TEXT;
/// The same if it is in several: the last four bytes count its stored and queued links.
pub const HEAD_ROOM_MULTI: usize = HEAD_ROOM - 4;
/// Kinds of connection by which a worker counts its subscribers.
pub const CONNECTION_COUNTS: usize = 16;
/// Number of counters outside of the lock: each [`super::Counter`] at its own number, then [`super::Fanout`].
pub const COUNTERS: usize = 96;
/// Index of the fan-out's sum among the counters, and that of its first bucket.
pub const FANOUT_SUM: usize = 80;
pub const FANOUT_FIRST: usize = FANOUT_SUM + 1;
pub const FANOUT_BUCKETS: usize = COUNTERS - FANOUT_FIRST;
/// Bits of a message's tag field that hold the milliseconds of its publish time.
pub const MILLIS_BITS: u32 = 10;
/// Maximum tag: more tags in a second than the lock can be taken times.
pub const TAG_MASK: u32 = u32::MAX >> MILLIS_BITS;
/// Age lists: one per distinct message ttl in use.
pub const AGE_LISTS: usize = 8;
/// To be changed with every change of anything in this file; part of the zone's tag, so that a module with another
/// layout never adopts this zone.
pub const LAYOUT_VERSION: u32 = 10;
pub const MAGIC: u64 = u64::from_be_bytes(*b"pushstrm");
/// Words of a lock: 5 on x86-64, 6 on arm64. A zone is never in two kinds of machines.
pub const LOCK_WORDS: usize = size_of::<libc::pthread_mutex_t>().div_ceil(8);

/// A value that a field can hold: at most eight bytes, any bit pattern valid.
///
/// Words that are also read outside of the lock are written and read whole, as relaxed atomics, in no order with
/// others: on the supported machines by the same instructions as any word.
pub trait Word: Copy {
    fn to_bits(self) -> u64;
    fn from_bits(bits: u64) -> Self;

    /// # Safety
    /// `place` is an aligned, initialised word of this type that is only written by [`Word::write_whole`] meanwhile.
    unsafe fn read_whole(place: *mut Self) -> Self;

    /// # Safety
    /// `place` is an aligned word of this type that others only read by [`Word::read_whole`] meanwhile.
    unsafe fn write_whole(self, place: *mut Self);
}

macro_rules! word {
    ($($type:ty, $atomic:ty;)*) => { $(
        impl Word for $type {
            fn to_bits(self) -> u64 {
                self as u64
            }
            fn from_bits(bits: u64) -> Self {
                bits as $type
            }
            unsafe fn read_whole(place: *mut Self) -> Self {
                // SAFETY: guaranteed by the caller.
                unsafe { <$atomic>::from_ptr(place).load(Ordering::Relaxed) }
            }
            unsafe fn write_whole(self, place: *mut Self) {
                // SAFETY: guaranteed by the caller.
                unsafe { <$atomic>::from_ptr(place).store(self, Ordering::Relaxed) }
            }
        }
    )* };
}
word! {
    u8, AtomicU8;
    u16, AtomicU16;
    u32, AtomicU32;
    u64, AtomicU64;
}

/// Typed numbers of blocks and of records in them. 0 = none.
macro_rules! reference {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            pub const NONE: $name = $name(0);

            /// None if the number is 0.
            pub fn some(self) -> Option<$name> {
                (self.0 != 0).then_some(self)
            }
        }

        impl Word for $name {
            fn to_bits(self) -> u64 {
                self.0.into()
            }
            fn from_bits(bits: u64) -> Self {
                $name(bits as u32)
            }
            unsafe fn read_whole(place: *mut Self) -> Self {
                // SAFETY: guaranteed by the caller; the type is transparent.
                $name(unsafe { u32::read_whole(place.cast()) })
            }
            unsafe fn write_whole(self, place: *mut Self) {
                // SAFETY: as above.
                unsafe { self.0.write_whole(place.cast()) }
            }
        }
    )* };
}

reference! {
    /// A block with any content.
    BlockRef;
    /// A channel's block.
    ChannelRef;
    /// A message's head block.
    BodyRef;
    /// A message's place in one channel: block number × 4 + place in the block.
    LinkRef;
    /// A worker's membership in a channel.
    MemberRef;
    /// A channel's record of its messages' ids.
    IdsRef;
    /// An id in a channel's window: block number × 4 + place in the block.
    EntryRef;
    /// A command from one process to another, or its answer.
    CommandRef;
}

/// A worker slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRef(pub u16);

/// A bucket of the channel table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRef(pub u32);

/// A bucket of the id table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryBucketRef(pub u32);

/// The part of the header about ordered ids.
#[derive(Clone, Copy, Debug)]
pub struct ZoneIds;

/// The part of the header that every mutation may write; saved as a whole before each.
#[derive(Clone, Copy, Debug)]
pub struct Hot;

/// The `T` in a record that `R` refers to.
pub struct Field<R, T> {
    pub offset: usize,
    marker: PhantomData<fn(R) -> T>,
}

impl<R, T> Clone for Field<R, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, T> Copy for Field<R, T> {}

impl<R, T> Field<R, T> {
    /// The field at the record's start.
    pub const FIRST: Field<R, T> = Field::at(0);

    const fn at(offset: usize) -> Field<R, T> {
        Field {
            offset,
            marker: PhantomData,
        }
    }
}

impl<R, T, const N: usize> Field<R, [T; N]> {
    /// The array's element at `index`.
    pub fn nth(self, index: usize) -> Field<R, T> {
        assert!(index < N, "past the array's end");
        Field::at(self.offset + index * size_of::<T>())
    }
}

macro_rules! record {
    ($(#[$doc:meta])* $module:ident of $reference:ty { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        // Named like fields; callers do not use padding, nor every size.
        #[allow(non_upper_case_globals, dead_code)]
        pub mod $module {
            use super::*;

            #[repr(C)]
            struct Layout {
                $($field: $type,)*
            }

            $($(#[$field_doc])* pub const $field: Field<$reference, $type> = Field::at(offset_of!(Layout, $field));)*
            pub const SIZE: usize = size_of::<Layout>();

            /// Name, offset and size of each field, for comparing layouts.
            #[cfg(test)]
            pub const FIELDS: &[(&str, usize, usize)] = &[
                $((stringify!($field), offset_of!(Layout, $field), size_of::<$type>()),)*
            ];
        }
    };
}

record! {
    /// Any block on a chain: the free list, a text, an id, a reservation.
    block of BlockRef {
        next: BlockRef,
    }
}

record! {
    /// A channel; its id follows, the first bytes in the same block.
    channel of ChannelRef {
        hash_next: ChannelRef,
        hash: u32,
        /// Creation number, zone-wide: distinguishes successive channels in the same block.
        born: u64,
        order_next: ChannelRef,
        order_prev: ChannelRef,
        /// Neighbours in the idle list, the list of deletions or the trash: it is in at most one.
        idle_next: ChannelRef,
        idle_prev: ChannelRef,
        /// In ticks: when it may leave its current list.
        deadline: u32,
        flags: u16,
        id_len: u16,
        id_more: BlockRef,
        first: LinkRef,
        last: LinkRef,
        members: MemberRef,
        published: u64,
        /// Its id record, if the zone tracks ids.
        ids: IdsRef,
        /// Blocks of the stored messages, excluding those of further links.
        stored_blocks: u32,
        newest_time: u32,
        newest_tag: u32,
        stored: u32,
        subscribers: u32,
    }
}

/// Id bytes in a channel's own block.
pub const CHANNEL_ID_ROOM: usize = BLOCK - channel::SIZE;

pub mod channel_flag {
    pub const WILDCARD: u16 = 1;
    pub const IDLE_LISTED: u16 = 2;
    pub const DELETED: u16 = 4;
    /// The events channel.
    pub const EVENTS: u16 = 8;
    /// Not a channel but a client address, whose members are the subscribers from there.
    pub const ADDRESS: u16 = 16;
}

record! {
    /// A message: the part that all its links share. The first link and the text follow in the same block.
    body of BodyRef {
        chain: BlockRef,
        /// Event id, event type and text together.
        payload_len: u32,
        age_next: BodyRef,
        age_prev: BodyRef,
        /// In ticks.
        expires: u32,
        /// Of the first link; those of the others follow consecutively. In the upper [`MILLIS_BITS`], the publish time
        /// within its second.
        tag: u32,
        /// Of the first link; those of the others follow consecutively.
        seq: u64,
    }
}

record! {
    /// A message's place in one channel.
    link of LinkRef {
        /// In the channel's queue, or in the trash.
        next: LinkRef,
        prev: LinkRef,
        /// In the trash: the deadline in ticks.
        channel: ChannelRef,
        /// The message's head block; in the first link, which lies in that block, the publish time.
        body_or_time: u32,
        sibling: LinkRef,
        id_low: u32,
        id_high: u16,
        /// Number of workers that have not taken it yet, plus number of workers that are copying it.
        pending: u16,
        /// Index among the message's links; in the first link, the number of links not yet freed.
        index_or_refs: u16,
        flags: u16,
    }
}

pub mod link_flag {
    pub const STORED: u16 = 1;
    pub const QUEUED: u16 = 2;
    /// The notice of a deletion, not a message.
    pub const NOTICE: u16 = 4;
    /// It is its message's first link.
    pub const FIRST: u16 = 8;
    /// The message has more than one link.
    pub const MULTI: u16 = 16;
    pub const EVENT_ID: u16 = 32;
    pub const EVENT_TYPE: u16 = 64;
    /// Its event id is the zone's epoch and its sequence number; the payload contains none.
    pub const AUTO_ID: u16 = 128;
    /// In the first link: 0 = the message is in no list, 1 = limbo, 2.. = that age list.
    pub const LIST_SHIFT: u16 = 8;
    pub const LIST_MASK: u16 = 0xf << LIST_SHIFT;
    /// Its ordered id was not above its channel's newest at publishing.
    pub const LATE: u16 = 1 << 12;
    /// It was published as binary data.
    pub const BINARY: u16 = 1 << 13;
    /// With `NOTICE`: the subscribers are dismissed, the channel stays.
    pub const DISMISSAL: u16 = 1 << 14;
    /// It was evicted, and is counted as such.
    pub const EVICTED: u16 = 1 << 15;
}

pub const LIMBO: u16 = 1;
pub const FIRST_AGE: u16 = 2;

record! {
    /// At the end of the head block of a message with several links.
    multi of BodyRef {
        unused: [u8; BLOCK - 4],
        stored: u16,
        queued: u16,
    }
}

record! {
    /// A worker's membership in a channel.
    member of MemberRef {
        channel: ChannelRef,
        count: u32,
        slot: u16,
        flags: u16,
        /// The first message this worker has not taken.
        next: LinkRef,
        channel_next: MemberRef,
        channel_prev: MemberRef,
        slot_next: MemberRef,
        slot_prev: MemberRef,
        dirty_next: MemberRef,
        /// Sequence number of the last message that was evicted before this worker had taken it, until it is reported;
        /// 0 = none.
        lost_seq: u64,
    }
}

pub mod member_flag {
    pub const DIRTY: u16 = 1;
    /// Its worker is copying the messages from `next` on.
    pub const READING: u16 = 2;
    /// Dissolved while dirty: to be freed by the process that takes it off the dirty list.
    pub const GONE: u16 = 4;
}

record! {
    /// A worker slot. Its `alive` lock and the `woken` flag are not under the zone's lock.
    slot of SlotRef {
        alive: [u64; LOCK_WORDS],
        woken: u32,
        fd: u32,
        generation: u32,
        pid: u32,
        started_ms: u64,
        live: u32,
        subscribers: u32,
        members: MemberRef,
        dirty_first: MemberRef,
        dirty_last: MemberRef,
        reserved: BlockRef,
        /// Links that this worker is copying, each counted once in `pending`.
        pin_first: LinkRef,
        pin_last: LinkRef,
        pin_channel: ChannelRef,
        /// When its process started, seconds since the epoch.
        started_unix: u32,
        /// Bytes queued for slow readers; not under the zone's lock.
        queued: u64,
        /// Longest time spent delivering without polling for events, in microseconds; not under the zone's lock.
        stretch_us: u32,
        /// If the worker takes subscribers that others hand over, the number of its configuration ([`Header::cycles`]); else 0. Not under the
        /// zone's lock.
        accepts: u32,
        /// Groups of compressed readers; not under the zone's lock.
        compress_groups: u32,
        /// Number of the commands that it has not taken.
        command_count: u32,
        commands_first: CommandRef,
        commands_last: CommandRef,
        answers_first: CommandRef,
        answers_last: CommandRef,
        /// Commands that it has taken and not answered.
        taken: CommandRef,
        /// Commands from it that are not answered.
        posted: CommandRef,
        unused: [u32; 10],
        /// How its subscribers are connected; not under the zone's lock.
        connection_counts: [u32; CONNECTION_COUNTS],
    }
}

record! {
    /// A command, or its answer. The first bytes of its text follow in the same block.
    command of CommandRef {
        /// The chain of its text's further blocks.
        more: BlockRef,
        /// In the list of the slot that is to act next: the commands or those taken of its target, the answers of its requester.
        next: CommandRef,
        prev: CommandRef,
        /// In its requester's list of commands that are not answered.
        posted_next: CommandRef,
        posted_prev: CommandRef,
        len: u32,
        request: u64,
        state: u16,
        kind: u16,
        to: u16,
        /// The requester's slot; the highest number if that has died.
        from: u16,
    }
}

pub mod command_state {
    pub const POSTED: u16 = 1;
    pub const TAKEN: u16 = 2;
    pub const ANSWERED: u16 = 3;
    /// Its target died before it had answered.
    pub const GONE: u16 = 4;
}

record! {
    /// The fields that every mutation may write.
    hot of Hot {
        free: BlockRef,
        free_count: u32,
        /// Blocks from this number on were never used.
        high_water: u32,
        /// Slots in use.
        workers: u32,
        seq: u64,
        born: u64,
        published: u64,
        stored: u64,
        time: u32,
        tag: u32,
        now: u32,
        channels: u32,
        wildcard_channels: u32,
        order_first: ChannelRef,
        order_last: ChannelRef,
        idle_first: ChannelRef,
        idle_last: ChannelRef,
        deleting_first: ChannelRef,
        deleting_last: ChannelRef,
        deleting_count: u32,
        channel_trash_first: ChannelRef,
        channel_trash_last: ChannelRef,
        channel_trash_count: u32,
        trash_first: LinkRef,
        trash_last: LinkRef,
        trash_count: u32,
        /// Links not stored but still pending.
        unstored_queued: u32,
        garbage: BodyRef,
        /// The events channel, if it exists.
        events: ChannelRef,
        age_first: [BodyRef; AGE_LISTS],
        age_last: [BodyRef; AGE_LISTS],
        age_ttl: [u32; AGE_LISTS],
        limbo_first: BodyRef,
        limbo_last: BodyRef,
        evicted_trash: u64,
        evicted_expired: u64,
        evicted_stored: u64,
        evicted_channels: u64,
        evicted_undelivered: u64,
        refused_full: u64,
        /// Processes that died with their slot in use.
        restarts: u64,
    }
}

record! {
    /// A channel's record of its messages' ids, in a block of its own. An ordered id is its groups and their number (0:
    /// no id).
    ids of IdsRef {
        newest: [u64; MAX_GROUPS],
        /// The highest id that it has lost; initially the zone's lost id.
        lost: [u64; MAX_GROUPS],
        newest_len: u32,
        lost_len: u32,
        /// The window: ids of accepted messages, oldest first.
        window_first: EntryRef,
        window_last: EntryRef,
        window_count: u32,
    }
}

record! {
    /// An id in a channel's window: its keyed hash.
    entry of EntryRef {
        key_low: u64,
        key_high: u64,
        /// In the bucket.
        next: EntryRef,
        /// The window's next younger id: in the same block, or the first of the next one.
        later: EntryRef,
        unused: [u32; 2],
    }
}

/// Ids in a block of a window.
pub const ENTRIES_PER_BLOCK: u32 = 4;

record! {
    /// The zone's record of ordered ids.
    zone_ids of ZoneIds {
        newest: [u64; MAX_GROUPS],
        /// The highest id of removed channels.
        removed: [u64; MAX_GROUPS],
        newest_len: u32,
        removed_len: u32,
        /// 1 + the sequence number from which on ids are tracked; 0 = not tracked.
        since: u64,
    }
}

/// The header, at the start of the zone. Everything up to `lock` is written once, at creation.
#[repr(C)]
pub struct Header {
    pub magic: u64,
    pub version: u32,
    pub slots: u32,
    pub len: u64,
    pub blocks: u32,
    pub buckets: u32,
    pub undo_capacity: u32,
    pub wake_fds: u32,
    pub hash_key: [u64; 2],
    pub created_monotonic_ms: u64,
    pub created_unix_ms: u64,
    pub lock: [u64; LOCK_WORDS],
    /// Repairs after the death of a process inside the lock.
    pub repairs: u64,
    /// 0 = no mutation in progress; else 1 + the number of undo log entries.
    pub undo_state: u32,
    /// The first block lent to the undo log, if it has more entries than its fixed part takes.
    pub undo_more: u32,
    pub hot: [u64; HOT_WORDS],
    pub hot_saved: [u64; HOT_WORDS],
    pub ids: [u64; zone_ids::SIZE / 8],
    /// Atomics, not under the lock.
    pub counters: [u64; COUNTERS],
    /// The two ends of the socket on which subscribers are offered; 0 = none.
    pub handover_fds: [u32; 2],
    /// Configurations that were put into use since the zone was made.
    pub cycles: u32,
    pub unused: u32,
}

pub const HOT_WORDS: usize = hot::SIZE / 8;

/// One undone write: address (48 bits) and size (16 bits), and the old value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UndoEntry {
    pub place: u64,
    pub old: u64,
}

record! {
    /// A block lent to the undo log; entries follow.
    lent of BlockRef {
        /// The next free block, once this one is free again.
        next: BlockRef,
        /// The next lent block.
        more: BlockRef,
        /// The block behind it in the free list before.
        free_next: BlockRef,
        unused: u32,
    }
}

/// Undo log entries in a block lent to the undo log.
pub const UNDO_ENTRIES_PER_BLOCK: usize = (BLOCK - lent::SIZE) / size_of::<UndoEntry>();

/// Contents of a block, in the table of kinds: only for blocks that are found by number from outside the lock.
pub mod kind {
    pub const OTHER: u8 = 0;
    pub const BODY: u8 = 1;
    pub const LINKS: u8 = 2;
    pub const CHANNEL: u8 = 3;
    pub const MEMBER: u8 = 4;
}

const _: () = {
    assert!(size_of::<Header>() == offset_of!(Header, counters) + 8 * COUNTERS + 16);
    assert!(offset_of!(Header, lock) == 72 && offset_of!(Header, hot) == 88 + 8 * LOCK_WORDS);
    assert!(channel::SIZE == 88);
    assert!(body::SIZE == 32 && link::SIZE == 32);
    assert!(multi::SIZE == BLOCK);
    assert!(member::SIZE <= BLOCK && ids::SIZE <= BLOCK);
    assert!(entry::SIZE * ENTRIES_PER_BLOCK as usize == BLOCK);
    assert!(zone_ids::SIZE.is_multiple_of(8));
    assert!(slot::SIZE == 216 + 8 * LOCK_WORDS);
    assert!(command::SIZE == 40 && command::more.offset == block::next.offset);
    assert!(hot::SIZE.is_multiple_of(8));
};

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::super::memory::division;
    use super::super::{Connections, Counter, Fanout};
    use super::*;

    /// Every released layout by fingerprint, on x86-64, with its version; the last is the present one.
    const KNOWN: [(u32, u64); 5] = [
        (6, 0x0166_986f_d332_c451),
        (7, 0xeda6_4455_76d3_815f),
        (8, 0xf6b0_b97c_abb5_d87a),
        (9, 0x8d60_3c7f_a947_bed1),
        (10, 0x6966_9d34_8cbe_60b2),
    ];

    /// The numbers of counters, which stay when others are added: a new counter at an unused number needs no new
    /// version.
    const COUNTED: &[Counter] = &[
        Counter::Delivered,
        Counter::GapNotice,
        Counter::SlowClose,
        Counter::SlowSkip,
        Counter::SlowLatest,
        Counter::WakeupSignal,
        Counter::WakeupOwn,
        Counter::WakeupTimer,
        Counter::RefusedFull,
        Counter::RefusedLimit,
        Counter::RefusedInvalid,
        Counter::RefusedForbidden,
        Counter::RefusedDependency,
        Counter::RefusedOutOfOrder,
        Counter::Duplicate,
        Counter::SubscriberLimit,
        Counter::SubscriberForbidden,
        Counter::SubscriberInvalid,
        Counter::SubscriberFull,
        Counter::SubscriberUnavailable,
        Counter::ClosedByClient,
        Counter::ClosedByCloseFrame,
        Counter::ClosedForViolation,
        Counter::ClosedDeadPeer,
        Counter::ClosedTimedOut,
        Counter::ClosedTooSlow,
        Counter::ClosedWriteFailed,
        Counter::ClosedTtl,
        Counter::ClosedChannelDeleted,
        Counter::ClosedDismissed,
        Counter::ClosedWorkerExit,
        Counter::HandedOver,
        Counter::ClosedTokenExpired,
        Counter::SubscriberUnauthorized,
        Counter::RefusedUnauthorized,
        Counter::TokenFileBad,
        Counter::TlsTakenOver,
        Counter::TlsKeptProtocol,
        Counter::TlsKeptUnknown,
        Counter::TlsKeptBusy,
        Counter::TlsKeptUnaccounted,
        Counter::CompressedIn,
        Counter::CompressedOut,
        Counter::CompressedUs,
        Counter::DeliveredAligned,
        Counter::DeliveredUnaligned,
        Counter::DeflatedIn,
        Counter::DeflatedOut,
        Counter::SessionChanged,
        Counter::SessionUnknown,
        Counter::SessionRefused,
        Counter::SessionLate,
        Counter::ZstdIn,
        Counter::ZstdOut,
        Counter::ClosedSubject,
    ];

    /// Everything on which two modules that use the same zone must agree, as text.
    fn description() -> String {
        let mut text = String::new();
        let records = [
            ("block", block::FIELDS, block::SIZE),
            ("channel", channel::FIELDS, channel::SIZE),
            ("body", body::FIELDS, body::SIZE),
            ("link", link::FIELDS, link::SIZE),
            ("multi", multi::FIELDS, multi::SIZE),
            ("member", member::FIELDS, member::SIZE),
            ("slot", slot::FIELDS, slot::SIZE),
            ("hot", hot::FIELDS, hot::SIZE),
            ("ids", ids::FIELDS, ids::SIZE),
            ("entry", entry::FIELDS, entry::SIZE),
            ("zone ids", zone_ids::FIELDS, zone_ids::SIZE),
            ("lent", lent::FIELDS, lent::SIZE),
            ("command", command::FIELDS, command::SIZE),
        ];
        for (name, fields, size) in records {
            writeln!(text, "{name}: {fields:?}, {size}").unwrap();
        }
        macro_rules! header {
            ($($field:ident)*) => { [$(offset_of!(Header, $field)),*] };
        }
        let header = header!(
            magic version slots len blocks buckets undo_capacity wake_fds hash_key created_monotonic_ms created_unix_ms lock
            repairs undo_state undo_more hot hot_saved ids counters handover_fds cycles
        );
        writeln!(text, "header: {header:?}, {}", size_of::<Header>()).unwrap();
        let constants = [
            BLOCK,
            HEAD_TEXT,
            HEAD_ROOM_MULTI,
            CHANNEL_ID_ROOM,
            UNDO_ENTRIES_PER_BLOCK,
            AGE_LISTS,
            FANOUT_SUM,
        ];
        writeln!(
            text,
            "constants: {constants:?}, {MILLIS_BITS}, {LINKS_PER_BLOCK}, {ENTRIES_PER_BLOCK}"
        )
        .unwrap();
        let link_flags = [
            link_flag::STORED,
            link_flag::QUEUED,
            link_flag::NOTICE,
            link_flag::FIRST,
            link_flag::MULTI,
            link_flag::EVENT_ID,
            link_flag::EVENT_TYPE,
            link_flag::AUTO_ID,
            link_flag::LIST_MASK,
            link_flag::LATE,
            link_flag::BINARY,
            link_flag::DISMISSAL,
            link_flag::EVICTED,
        ];
        let channel_flags = [
            channel_flag::WILDCARD,
            channel_flag::IDLE_LISTED,
            channel_flag::DELETED,
            channel_flag::EVENTS,
            channel_flag::ADDRESS,
        ];
        let member_flags = [member_flag::DIRTY, member_flag::READING, member_flag::GONE];
        let kinds = [kind::OTHER, kind::BODY, kind::LINKS, kind::CHANNEL, kind::MEMBER];
        writeln!(
            text,
            "flags: {link_flags:?} {channel_flags:?} {member_flags:?} {kinds:?}"
        )
        .unwrap();
        writeln!(text, "{:?}, {}", Fanout::BOUNDS_MS, size_of::<Connections>()).unwrap();
        for (kib, slots) in [(128, 64), (1024, 64), (32 * 1024, 64), (1 << 20, 256)] {
            writeln!(text, "{kib} KiB, {slots} slots: {:?}", division(kib << 10, slots)).unwrap();
        }
        text
    }

    /// FNV-1a.
    fn fingerprint(text: &str) -> u64 {
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "locks are of another size here")]
    fn another_layout_has_another_version() {
        let text = description();
        assert_eq!(
            KNOWN.last(),
            Some(&(LAYOUT_VERSION, fingerprint(&text))),
            "the layout has changed, so LAYOUT_VERSION must, and both must be added here (as {:#x}):\n{text}",
            fingerprint(&text)
        );
        assert!(KNOWN.is_sorted_by(|before, after| before.0 < after.0 && before.1 != after.1));
    }

    #[test]
    fn every_counter_has_its_own_place() {
        let places: std::collections::BTreeSet<_> = Counter::ALL.iter().map(|&counter| counter as usize).collect();
        assert_eq!(places.len(), Counter::ALL.len());
        assert!(places.iter().all(|&place| place < FANOUT_SUM));
        assert!(
            COUNTED
                .iter()
                .enumerate()
                .all(|(place, &counter)| counter as usize == place)
        );
    }
}
