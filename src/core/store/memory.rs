//! The zone's memory: bounds-checked typed access, and [`Locked`], the lock's guard, through which the zone is changed.
//!
//! # Dying at any instruction
//!
//! Every change is made inside a [`Locked`] that was [begun](Locked::begin). Beginning saves the hot part of the
//! header; each write elsewhere first puts the old value into the undo log, which lies in the zone too.
//! [`Locked::commit`] is one store that empties the undo log. The process that takes the lock after a death finds a
//! non-empty undo log and undoes it, newest entry first: the zone is then exactly as it was before the mutation began.
//! An undo takes as long as the mutation had taken. A mutation that fails, or panics, undoes itself the same way.
//!
//! Blocks that are not reachable yet are written without an undo log: if they never become reachable, their contents do
//! not matter.
//!
//! # The undo log's size
//!
//! The undo log's fixed part is large enough for every mutation that must not fail: a bounded number of writes, and one
//! announcement to a member in each slot ([`undo_capacity`]). Longer mutations borrow free blocks while they run, and
//! return them on commit; they begin only when as many blocks are free as they may need. A block freed in a mutation is
//! not free before its commit: its contents may still have to be restored.
//!
//! All of the `unsafe` of the store is in this file, in [`super::lock`] and in the two calls of [`super::Zone`] that
//! take memory from outside.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::hash::Hasher;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

use libc::pthread_mutex_t;
use smallvec::SmallVec;

use super::Refusal;
use super::figures::{Connections, Counter, Counts};
use super::layout::*;
use super::lock::{self, Taken, Tried};
use super::wake;

/// The zone as mapped in this process. Copies are handles on the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: *mut u8,
    slots_at: usize,
    undo_at: usize,
    buckets_at: usize,
    entry_buckets_at: usize,
    kinds_at: usize,
    blocks_at: usize,
    pub slots: u16,
    pub undo_capacity: u32,
    pub buckets: u32,
    pub entry_buckets: u32,
    /// Blocks are numbered 1 to this.
    pub blocks: u32,
    hash_key: [u64; 2],
    created_monotonic_ms: u64,
    /// This process's slot: never signalled.
    own: Option<SlotRef>,
}

/// Why a mutation stopped; it is then undone.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Refused(Refusal),
    /// Too few free blocks: evict, then retry.
    Short,
}

/// A record that a reference names, by its offset in the zone.
pub trait Record: Copy {
    /// Is it part of the hot header, which needs no undo log?
    const HOT: bool = false;

    /// Offset in the zone. Panics if the record does not exist, so that damage never becomes a wild pointer.
    fn offset(self, memory: &Memory) -> usize;
}

macro_rules! block_record {
    ($($name:ident)*) => { $(
        impl Record for $name {
            fn offset(self, memory: &Memory) -> usize {
                memory.block_offset(self.0)
            }
        }
    )* };
}
block_record!(BlockRef ChannelRef BodyRef MemberRef IdsRef CommandRef);

impl Record for LinkRef {
    fn offset(self, memory: &Memory) -> usize {
        memory.block_offset(self.0 / LINKS_PER_BLOCK) + (self.0 % LINKS_PER_BLOCK) as usize * link::SIZE
    }
}

impl Record for EntryRef {
    fn offset(self, memory: &Memory) -> usize {
        memory.block_offset(self.0 / ENTRIES_PER_BLOCK) + (self.0 % ENTRIES_PER_BLOCK) as usize * entry::SIZE
    }
}

impl Record for EntryBucketRef {
    fn offset(self, memory: &Memory) -> usize {
        assert!(self.0 < memory.entry_buckets, "no such bucket of ids");
        memory.entry_buckets_at + self.0 as usize * 4
    }
}

impl Record for ZoneIds {
    fn offset(self, _: &Memory) -> usize {
        std::mem::offset_of!(Header, ids)
    }
}

impl Record for SlotRef {
    fn offset(self, memory: &Memory) -> usize {
        assert!(self.0 < memory.slots, "no such slot");
        memory.slots_at + self.0 as usize * slot::SIZE
    }
}

impl Record for BucketRef {
    fn offset(self, memory: &Memory) -> usize {
        assert!(self.0 < memory.buckets, "no such bucket");
        memory.buckets_at + self.0 as usize * 4
    }
}

impl Record for Hot {
    const HOT: bool = true;

    fn offset(self, _: &Memory) -> usize {
        std::mem::offset_of!(Header, hot)
    }
}

/// A bucket's first channel.
pub const BUCKET_FIRST: Field<BucketRef, ChannelRef> = Field::FIRST;

/// The first id of a bucket.
pub const ENTRY_BUCKET_FIRST: Field<EntryBucketRef, EntryRef> = Field::FIRST;

/// Channel buckets per id bucket: the id table takes a quarter per cent of the zone, and even in a zone full of ids a
/// bucket holds four dozen on average. Without ids, its pages are never touched.
const BUCKETS_PER_ENTRY_BUCKET: u32 = 4;

/// Undo log entries of every zone's fixed part, excluding those for announcements. The longest mutation that must not
/// fail pins the links of a replay, or returns blocks of a reservation.
const UNDO_BASE: usize = 224;
/// Undo log entries to announce a message to one member.
pub const ENTRIES_PER_MEMBER: usize = 4;
/// Undo log entries that a loop may write between two calls of [`Locked::nearly_full`].
const ENTRIES_PER_ROUND: usize = 64;

/// Undo log entries in the zone's fixed part: enough for all mutations that must not fail, and in a large zone for a
/// publish to many channels without borrowing blocks.
fn undo_capacity(len: usize, slots: u16) -> u32 {
    let needed = UNDO_BASE + usize::from(slots) * ENTRIES_PER_MEMBER;
    (len / 8192).min(16384).max(needed) as u32
}

/// How the memory is divided.
#[derive(Debug)]
pub struct Division {
    undo_capacity: u32,
    slots_at: usize,
    undo_at: usize,
    buckets: u32,
    buckets_at: usize,
    entry_buckets: u32,
    entry_buckets_at: usize,
    kinds_at: usize,
    blocks: u32,
    blocks_at: usize,
}

impl Division {
    /// None if `len` bytes are too few to hold anything useful.
    fn of(len: usize, slots: u16) -> Option<Division> {
        let undo_capacity = undo_capacity(len, slots);
        let align = |at: usize| at.next_multiple_of(64);
        let slots_at = align(size_of::<Header>());
        let undo_at = align(slots_at + slots as usize * slot::SIZE);
        let buckets_at = align(undo_at + undo_capacity as usize * size_of::<UndoEntry>());
        // A channel with a message and a member takes three blocks, so there is at most one channel per bucket on
        // average.
        let blocks_if_alone = (len.checked_sub(buckets_at)? / BLOCK).max(1);
        let buckets = (blocks_if_alone / 3).next_power_of_two().min(1 << 31) as u32;
        let entry_buckets = (buckets / BUCKETS_PER_ENTRY_BUCKET).max(1);
        let entry_buckets_at = align(buckets_at + buckets as usize * 4);
        let kinds_at = align(entry_buckets_at + entry_buckets as usize * 4);
        // One byte of kind for each block.
        let blocks = len.checked_sub(kinds_at + 64)? / (BLOCK + 1);
        let blocks_at = align(kinds_at + blocks + 1);
        let blocks = blocks.min(u32::MAX as usize / LINKS_PER_BLOCK as usize - 1) as u32;
        (blocks >= 64).then_some(Division {
            undo_capacity,
            slots_at,
            undo_at,
            buckets,
            buckets_at,
            entry_buckets,
            entry_buckets_at,
            kinds_at,
            blocks,
            blocks_at,
        })
    }
}

/// The division of a zone of this size, for comparing layouts.
#[cfg(test)]
pub fn division(len: usize, slots: u16) -> Option<Division> {
    Division::of(len, slots)
}

/// Why memory cannot become, or is not, a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("{0} bytes are too few for a zone")]
    TooSmall(usize),
    #[error("the memory holds no zone of this layout")]
    Foreign,
    #[error("a robust lock cannot be made: error {0}")]
    Lock(i32),
}

impl Memory {
    /// Lays out a zone.
    ///
    /// # Safety
    /// `base` points to `len` zeroed bytes, aligned to 64, mapped shared by all processes that will use the zone, as
    /// long as they do.
    pub unsafe fn create(base: *mut u8, len: usize, slots: u16, now: super::Now) -> Result<Memory, ZoneError> {
        let division = Division::of(len, slots).ok_or(ZoneError::TooSmall(len))?;
        let header = base.cast::<Header>();
        // SAFETY: the division fits into `len`, which the caller guarantees; no other process uses the memory yet.
        unsafe {
            (*header).version = LAYOUT_VERSION;
            (*header).slots = slots.into();
            (*header).len = len as u64;
            (*header).blocks = division.blocks;
            (*header).buckets = division.buckets;
            (*header).undo_capacity = division.undo_capacity;
            (*header).created_monotonic_ms = now.monotonic_ms;
            (*header).created_unix_ms = now.unix_ms;
            (*header).hash_key = random_key();
            lock::init((&raw mut (*header).lock).cast()).map_err(ZoneError::Lock)?;
            for index in 0..slots {
                let alive = base.add(division.slots_at + index as usize * slot::SIZE + slot::alive.offset);
                lock::init(alive.cast()).map_err(ZoneError::Lock)?;
            }
            compiler_fence(Ordering::SeqCst);
            (*header).magic = MAGIC;
            let memory = Memory::attach(base, len)?;
            let mut locked = memory.lock();
            locked.begin();
            locked.set_hot(hot::high_water, 1);
            locked.commit();
            drop(locked);
            Ok(memory)
        }
    }

    /// Adopts a zone.
    ///
    /// # Safety
    /// `base` and `len` are as they were for [`Memory::create`] in this or another process, or name other memory of
    /// that size.
    pub unsafe fn attach(base: *mut u8, len: usize) -> Result<Memory, ZoneError> {
        if len < size_of::<Header>() {
            return Err(ZoneError::TooSmall(len));
        }
        // SAFETY: the header lies within `len`; after creation this part of it never changes.
        let (slots, hash_key, created_monotonic_ms) = unsafe {
            let header = base.cast::<Header>();
            if (*header).magic != MAGIC || (*header).version != LAYOUT_VERSION || (*header).len != len as u64 {
                return Err(ZoneError::Foreign);
            }
            (
                (*header).slots as u16,
                (*header).hash_key,
                (*header).created_monotonic_ms,
            )
        };
        let division = Division::of(len, slots).ok_or(ZoneError::Foreign)?;
        let Division {
            undo_capacity,
            slots_at,
            undo_at,
            buckets,
            buckets_at,
            entry_buckets,
            entry_buckets_at,
            kinds_at,
            blocks,
            blocks_at,
        } = division;
        Ok(Memory {
            base,
            slots_at,
            undo_at,
            buckets_at,
            entry_buckets_at,
            kinds_at,
            blocks_at,
            slots,
            undo_capacity,
            buckets,
            entry_buckets,
            blocks,
            hash_key,
            created_monotonic_ms,
            own: None,
        })
    }

    fn header(&self) -> *mut Header {
        self.base.cast()
    }

    fn undo_end(&self) -> usize {
        self.undo_at + self.undo_capacity as usize * size_of::<UndoEntry>()
    }

    /// Does a block of this number exist?
    pub fn has_block(&self, number: u32) -> bool {
        number.wrapping_sub(1) < self.blocks
    }

    /// The bucket of channels with this hash.
    pub fn bucket(&self, hash: u32) -> BucketRef {
        BucketRef(hash & (self.buckets - 1))
    }

    /// Prefetches a block into the processor's cache, if a block of this number exists.
    pub fn fetch(&self, number: u32) {
        if self.has_block(number) {
            let offset = self.block_offset(number);
            // SAFETY: the block lies within the zone; fetching has no effect but on the cache.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                let block = self.base.add(offset).cast::<i8>();
                _mm_prefetch::<_MM_HINT_T0>(block);
                _mm_prefetch::<_MM_HINT_T0>(block.add(64));
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = offset;
        }
    }

    fn block_offset(&self, number: u32) -> usize {
        assert!(number.wrapping_sub(1) < self.blocks, "no such block");
        self.blocks_at + (number as usize - 1) * BLOCK
    }

    /// The same memory, used by the process in this slot.
    pub fn used_by(self, own: SlotRef) -> Memory {
        Memory { own: Some(own), ..self }
    }

    /// All slots.
    pub fn all_slots(&self) -> impl Iterator<Item = SlotRef> + use<> {
        (0..self.slots).map(SlotRef)
    }

    /// A channel id's hash, keyed so that clients cannot construct colliding ids.
    pub fn hash(&self, id: &[u8]) -> u32 {
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(self.hash_key[0], self.hash_key[1]);
        hasher.write(id);
        hasher.finish() as u32
    }

    /// An event id's key in windows of accepted ids: 128 bits, so collisions do not occur, keyed so that clients cannot
    /// construct any.
    pub fn id_key(&self, id: &[u8]) -> (u64, u64) {
        use siphasher::sip128::Hasher128;
        let mut hasher = siphasher::sip128::SipHasher13::new_with_keys(self.hash_key[1], self.hash_key[0]);
        hasher.write(id);
        let hash = hasher.finish128();
        (hash.h1, hash.h2)
    }

    /// Time in tenths of a second since the zone's creation, never 0.
    pub fn ticks(&self, now: super::Now) -> u32 {
        (now.monotonic_ms.saturating_sub(self.created_monotonic_ms) / 100 + 1).min(u32::MAX.into()) as u32
    }

    /// Unix time in milliseconds at which the zone was created.
    pub fn epoch_ms(&self) -> u64 {
        // SAFETY: written once before any process attached.
        unsafe { (*self.header()).created_unix_ms }
    }

    /// How often a death inside the lock was repaired.
    pub fn repairs(&self) -> u64 {
        // SAFETY: an aligned word that only lock holders write; a torn or stale read is a stale count.
        unsafe { u64::read_whole(&raw mut (*self.header()).repairs) }
    }

    /// Are the slots' descriptors set?
    pub fn wake_fds_set(&self) -> bool {
        // SAFETY: written by the master before any worker exists.
        unsafe { ptr::read_volatile(&raw const (*self.header()).wake_fds) != 0 }
    }

    pub fn mark_wake_fds_set(&self) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*self.header()).wake_fds, 1) }
    }

    /// The ends of the socket on which subscribers are offered, if it exists.
    pub fn handover_fds(&self) -> Option<[i32; 2]> {
        // SAFETY: written by the master before any worker exists.
        let fds = unsafe { ptr::read_volatile(&raw const (*self.header()).handover_fds) };
        (fds[0] != 0).then(|| fds.map(|fd| fd as i32))
    }

    pub fn set_handover_fds(&self, fds: [i32; 2]) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*self.header()).handover_fds, fds.map(|fd| fd as u32)) }
    }

    /// Configurations put into use so far.
    pub fn cycles(&self) -> u32 {
        // SAFETY: written by the master only, between two generations of workers.
        unsafe { ptr::read_volatile(&raw const (*self.header()).cycles) }
    }

    pub fn count_cycle(&self) {
        let next = self.cycles().wrapping_add(1).max(1);
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*self.header()).cycles, next) }
    }

    /// Reads without the lock: for a field that only this process writes, that is written once, or whose value may be
    /// stale.
    pub fn peek<R: Record, T: Word>(&self, record: R, field: Field<R, T>) -> T {
        // SAFETY: `offset` is in bounds for a whole record and the field lies within it; any bit pattern is a `T`.
        unsafe { T::read_whole(self.base.add(record.offset(self) + field.offset).cast()) }
    }

    /// Writes a field of a record that no other process reads (as a fresh or reserved block), or only
    /// [peeks](Memory::peek) at.
    pub fn init<R: Record, T: Word>(&self, record: R, field: Field<R, T>, value: T) {
        death_point();
        // SAFETY: in bounds as above.
        unsafe { value.write_whole(self.base.add(record.offset(self) + field.offset).cast()) }
    }

    /// Copies `bytes` into a block that no other process accesses.
    pub fn copy_in(&self, block: BlockRef, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= BLOCK, "past the block's end");
        // SAFETY: in bounds; `bytes` is private memory, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(block.offset(self) + at), bytes.len()) }
    }

    /// Appends bytes of a block that cannot change meanwhile: pinned, or read under the lock.
    pub fn copy_out(&self, block: BlockRef, at: usize, len: usize, out: &mut Vec<u8>) {
        assert!(at + len <= BLOCK, "past the block's end");
        out.reserve(len);
        // SAFETY: in bounds; room for `len` bytes was reserved; the bytes are initialised before the length says so.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            ptr::copy_nonoverlapping(self.base.add(block.offset(self) + at), end, len);
            out.set_len(out.len() + len);
        }
    }

    /// Reads bytes of a block that cannot change meanwhile, as for [`Memory::copy_out`].
    pub fn read(&self, block: BlockRef, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= BLOCK, "past the block's end");
        // SAFETY: in bounds; `out` is private memory, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.base.add(block.offset(self) + at), out.as_mut_ptr(), out.len()) }
    }

    /// Does the block hold these bytes at this offset?
    pub fn equal(&self, block: BlockRef, at: usize, bytes: &[u8]) -> bool {
        assert!(at + bytes.len() <= BLOCK, "past the block's end");
        // SAFETY: in bounds; under the lock no process writes there, so the borrow is of unchanging memory.
        unsafe { std::slice::from_raw_parts(self.base.add(block.offset(self) + at), bytes.len()) == bytes }
    }

    fn kind_offset(&self, block: u32) -> usize {
        assert!(block.wrapping_sub(1) < self.blocks, "no such block");
        self.kinds_at + block as usize
    }

    fn slot_lock(&self, slot: SlotRef) -> *mut pthread_mutex_t {
        // SAFETY: in bounds.
        unsafe { self.base.add(slot.offset(self) + slot::alive.offset).cast() }
    }

    /// Tries to take a slot's liveness lock.
    pub fn try_alive(&self, slot: SlotRef) -> Tried {
        // SAFETY: made at creation.
        unsafe { lock::try_lock(self.slot_lock(slot)) }
    }

    /// Releases a slot's liveness lock.
    pub fn release_alive(&self, slot: SlotRef, taken: Taken) {
        // SAFETY: the caller took it by `try_alive`.
        unsafe {
            if taken == Taken::OwnerDied {
                lock::consistent(self.slot_lock(slot));
            }
            lock::unlock(self.slot_lock(slot));
        }
    }

    /// Marks a liveness lock whose owner died as usable; this process keeps it.
    pub fn keep_alive(&self, slot: SlotRef) {
        // SAFETY: the caller took it by `try_alive` as `OwnerDied`.
        unsafe { lock::consistent(self.slot_lock(slot)) }
    }

    /// The wake-up flag: raised from the wake-up until the worker looks for messages.
    pub fn woken(&self, slot: SlotRef) -> &AtomicU32 {
        // SAFETY: in bounds, aligned, and only ever used as an atomic; the zone outlives the handle.
        unsafe { AtomicU32::from_ptr(self.base.add(slot.offset(self) + slot::woken.offset).cast()) }
    }

    /// A counter outside of the lock.
    pub fn counter(&self, index: usize) -> &AtomicU64 {
        assert!(index < COUNTERS, "no such counter");
        // SAFETY: in bounds, aligned, and only ever used as an atomic; the zone outlives the handle.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.header()).counters).cast::<u64>().add(index)) }
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, more: u64) {
        self.add_to(counter as usize, more);
    }

    pub fn add_to(&self, index: usize, more: u64) {
        if more > 0 {
            // No other data depends on the order in which other processes see it.
            self.counter(index).fetch_add(more, Ordering::Relaxed);
        }
    }

    /// All counters.
    pub fn counts(&self) -> Counts {
        // Related counters may be read a moment apart: they are for display.
        Counts(std::array::from_fn(|index| self.counter(index).load(Ordering::Relaxed)))
    }

    /// How the subscribers of a slot's process are connected.
    pub fn connections(&self, slot: SlotRef) -> Connections {
        Connections(std::array::from_fn(|index| {
            self.peek(slot, slot::connection_counts.nth(index))
        }))
    }

    /// Clears the figures of a slot's former process.
    pub fn clear_connections(&self, slot: SlotRef) {
        for index in 0..CONNECTION_COUNTS {
            self.init(slot, slot::connection_counts.nth(index), 0);
        }
        self.init(slot, slot::stretch_us, 0);
    }

    /// Signals the slots' processes that messages wait for them.
    pub fn wake(&self, slots: &[SlotRef]) {
        let mut own = 0;
        let mut fds = SmallVec::<[i32; 8]>::new();
        for &slot in slots.iter().filter(|&&slot| wake::raise(self.woken(slot))) {
            if self.own == Some(slot) {
                own += 1;
            } else {
                fds.extend(Some(self.peek(slot, slot::fd) as i32).filter(|&fd| fd > 0));
            }
        }
        // Counted before: whoever has got a message may look.
        self.count(Counter::WakeupOwn, own);
        self.count(Counter::WakeupSignal, fds.len() as u64);
        let one = 1u64.to_ne_bytes();
        for fd in fds {
            // SAFETY: the buffer is as long as said. A full eventfd is readable already, so the result does not matter.
            unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
        }
    }

    /// Takes the zone's lock for a mutation; `limits` define the events channel's messages.
    pub fn lock_with<'m>(&'m self, limits: &'m super::Limits) -> Locked<'m> {
        let mut locked = self.lock();
        locked.limits = Some(limits);
        locked
    }

    /// Takes the zone's lock; first undoes the unfinished mutation of a dead holder.
    pub fn lock(&self) -> Locked<'_> {
        // SAFETY: made at creation; no `Locked` of this process is alive, because none is kept across a call.
        let taken = unsafe { lock::lock((&raw mut (*self.header()).lock).cast()) };
        let mut locked = Locked {
            memory: self,
            limits: None,
            unix_ms: 0,
            wakes: Wakes::new(),
            committed_wakes: 0,
            entries: 0,
            entries_at: self.undo_at,
            entries_end: self.undo_end(),
            lent: Vec::new(),
            freed: Freed::default(),
            changing: false,
        };
        if taken == Taken::OwnerDied {
            locked.repair();
        }
        locked
    }
}

/// Slots to wake.
pub type Wakes = SmallVec<[SlotRef; 8]>;

/// The zone while this process holds its lock.
pub struct Locked<'m> {
    memory: &'m Memory,
    /// The limits in force; without them no events are published in the events channel.
    pub limits: Option<&'m super::Limits>,
    /// Wall clock of this hold.
    pub unix_ms: u64,
    /// Slots to wake once the mutation is committed and the lock is released.
    wakes: Wakes,
    /// How many of them belong to committed mutations.
    committed_wakes: usize,
    /// Undo log entries of the mutation in progress.
    entries: usize,
    /// Offset of the next entry, and the end of the room for entries.
    entries_at: usize,
    entries_end: usize,
    /// Blocks lent to the undo log by the mutation in progress, in order.
    lent: Vec<BlockRef>,
    freed: Freed,
    changing: bool,
}

/// Blocks that the mutation in progress frees: a chain that joins the free list on commit.
struct Freed {
    first: BlockRef,
    /// Its link is written only then.
    last: BlockRef,
    count: u32,
}

impl Default for Freed {
    fn default() -> Freed {
        Freed {
            first: BlockRef::NONE,
            last: BlockRef::NONE,
            count: 0,
        }
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        self.memory
    }
}

impl Locked<'_> {
    /// Starts a mutation.
    pub fn begin(&mut self) {
        debug_assert!(!self.changing);
        let header = self.memory.header();
        death_point();
        // SAFETY: the lock is held; both arrays are as long.
        unsafe {
            ptr::copy_nonoverlapping(&raw const (*header).hot, &raw mut (*header).hot_saved, 1);
        }
        self.changing = true;
        self.set_undo_state(1);
    }

    fn forget_entries(&mut self) {
        self.entries = 0;
        self.entries_at = self.memory.undo_at;
        if !self.lent.is_empty() {
            self.entries_end = self.memory.undo_end();
            self.lent.clear();
        }
    }

    /// Makes all changes since [`Locked::begin`] final.
    #[inline]
    pub fn commit(&mut self) {
        debug_assert!(self.changing);
        if self.freed.count > 0 {
            self.return_freed();
        }
        if !self.lent.is_empty() {
            self.return_lent();
        }
        self.set_undo_state(0);
        self.changing = false;
        self.forget_entries();
        self.committed_wakes = self.wakes.len();
    }

    /// Moves the blocks that the mutation has freed to the free list.
    fn return_freed(&mut self) {
        let Freed { first, last, count } = std::mem::take(&mut self.freed);
        self.ready_entry();
        self.set(last, block::next, self.hot(hot::free));
        self.set_hot(hot::free, first);
        self.add(Hot, hot::free_count, count.into());
    }

    /// Releases the lock; an uncommitted mutation is undone. Returns the slots with new messages, for the caller to
    /// [wake](Memory::wake).
    pub fn unlock(mut self) -> Wakes {
        if self.changing {
            self.roll_back();
        }
        std::mem::take(&mut self.wakes)
    }

    /// Ends one mutation and starts the next, under the same hold.
    pub fn step(&mut self) {
        self.commit();
        self.begin();
    }

    /// Marks this slot's process to be woken after the commit.
    pub fn wake_later(&mut self, slot: SlotRef) {
        self.wakes.push(slot);
    }

    /// Advances the zone's clock; it never goes back.
    pub fn advance_clock(&mut self, now: super::Now) {
        self.unix_ms = now.unix_ms;
        let ticks = self.memory.ticks(now);
        if ticks > self.hot(hot::now) {
            self.set_hot(hot::now, ticks);
        }
    }

    /// Is the undo log nearly full? Then a loop whose length its caller does not bound must [step](Locked::step).
    pub fn nearly_full(&self) -> bool {
        self.entries + ENTRIES_PER_ROUND > self.memory.undo_capacity as usize
    }

    /// Undo log entries of the mutation in progress.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Blocks that it has lent to the undo log.
    pub fn borrowed(&self) -> u32 {
        self.lent.len() as u32
    }

    fn set_undo_state(&mut self, state: u32) {
        compiler_fence(Ordering::SeqCst);
        death_point();
        // SAFETY: the lock is held. The fences keep the compiler from moving writes of the mutation across; the order
        // in the processor does not matter, because the next reader has taken the lock after this process has died or
        // released it.
        unsafe { ptr::write_volatile(&raw mut (*self.memory.header()).undo_state, state) };
        compiler_fence(Ordering::SeqCst);
    }

    pub fn get<R: Record, T: Word>(&self, record: R, field: Field<R, T>) -> T {
        // SAFETY: in bounds as in `peek`; the lock is held, so no other process writes.
        unsafe { ptr::read(self.memory.base.add(record.offset(self.memory) + field.offset).cast()) }
    }

    /// Changes a field; undone if the mutation is not committed.
    pub fn set<R: Record, T: Word>(&mut self, record: R, field: Field<R, T>, value: T) {
        let at = record.offset(self.memory) + field.offset;
        if R::HOT {
            debug_assert!(self.changing);
            mutation_point();
            // SAFETY: in bounds; the lock is held; `begin` saved the old value, and its fence keeps this behind it.
            unsafe { value.write_whole(self.memory.base.add(at).cast()) }
        } else {
            self.write(at, value);
        }
    }

    /// Adds to a counter field.
    pub fn add<R: Record, T: Word>(&mut self, record: R, field: Field<R, T>, more: u64) {
        self.set(
            record,
            field,
            T::from_bits(self.get(record, field).to_bits().wrapping_add(more)),
        );
    }

    /// Subtracts from a counter field.
    pub fn sub<R: Record, T: Word>(&mut self, record: R, field: Field<R, T>, less: u64) {
        let old = self.get(record, field).to_bits();
        debug_assert!(old >= less, "a count fell below zero");
        self.set(record, field, T::from_bits(old.saturating_sub(less)));
    }

    pub fn hot<T: Word>(&self, field: Field<Hot, T>) -> T {
        self.get(Hot, field)
    }

    /// Changes a field of the hot header.
    pub fn set_hot<T: Word>(&mut self, field: Field<Hot, T>, value: T) {
        self.set(Hot, field, value);
    }

    pub fn kind(&self, block: u32) -> u8 {
        // SAFETY: in bounds; the lock is held.
        unsafe { ptr::read(self.memory.base.add(self.memory.kind_offset(block))) }
    }

    pub fn set_kind(&mut self, block: u32, kind: u8) {
        self.write(self.memory.kind_offset(block), kind);
    }

    fn write<T: Word>(&mut self, at: usize, value: T) {
        debug_assert!(self.changing);
        // SAFETY: every caller computes `at` from a bounds-checked record; the lock is held. The old value is in the
        // undo log, and the undo log's state counts it, before the new one is written: the fences keep the compiler to
        // this order.
        unsafe {
            let target = self.memory.base.add(at).cast::<T>();
            let entry = UndoEntry {
                place: (at as u64) << 16 | size_of::<T>() as u64,
                old: ptr::read(target).to_bits(),
            };
            self.ready_entry();
            ptr::write_volatile(self.memory.base.add(self.entries_at).cast(), entry);
            self.entries_at += size_of::<UndoEntry>();
            self.entries += 1;
            self.set_undo_state(1 + self.entries as u32);
            mutation_point();
            value.write_whole(target);
        }
    }

    fn undo_entry(&self, index: usize) -> *mut UndoEntry {
        let capacity = self.memory.undo_capacity as usize;
        let at = match index.checked_sub(capacity) {
            None => self.memory.undo_at + index * size_of::<UndoEntry>(),
            Some(more) => {
                let block = self.lent[more / UNDO_ENTRIES_PER_BLOCK];
                block.offset(self.memory) + lent::SIZE + more % UNDO_ENTRIES_PER_BLOCK * size_of::<UndoEntry>()
            }
        };
        // SAFETY: within the undo log or within a block.
        unsafe { self.memory.base.add(at).cast() }
    }

    /// Number of blocks that the undo log must borrow for `entries` entries.
    pub fn undo_shortage(&self, entries: usize) -> usize {
        entries
            .saturating_sub(self.memory.undo_capacity as usize)
            .div_ceil(UNDO_ENTRIES_PER_BLOCK)
    }

    /// Ensures that there is room for the next undo log entry. To be called before changing the free list, because the
    /// room may come from there.
    #[inline(always)]
    pub fn ready_entry(&mut self) {
        if self.entries_at == self.entries_end {
            self.lend_to_undo_log();
        }
    }

    /// Borrows a free block for the next entries. Undoing the mutation frees it again: the hot header is restored, and
    /// the block's place in the free list is untouched.
    #[cold]
    #[inline(never)]
    fn lend_to_undo_log(&mut self) {
        let fresh = self.hot(hot::high_water);
        let block = if let Some(block) = self.hot(hot::free).some() {
            self.set_hot(hot::free, self.get(block, block::next));
            self.sub(Hot, hot::free_count, 1);
            block
        } else if fresh <= self.memory.blocks {
            self.set_hot(hot::high_water, fresh + 1);
            BlockRef(fresh)
        } else {
            // Mutations that may exceed the undo log's fixed part check for free blocks before they begin.
            panic!("no room in the undo log");
        };
        #[cfg(feature = "fault-points")]
        super::fault_injection::note_borrowed();
        self.init(block, lent::free_next, self.get(block, block::next));
        match self.lent.last() {
            Some(&last) => self.init(last, lent::more, block),
            None => {
                // SAFETY: the lock is held. The fence of the next entry's count is behind this.
                unsafe { ptr::write_volatile(&raw mut (*self.memory.header()).undo_more, block.0) };
            }
        }
        self.lent.push(block);
        self.entries_at = block.offset(self.memory) + lent::SIZE;
        self.entries_end = self.entries_at + UNDO_ENTRIES_PER_BLOCK * size_of::<UndoEntry>();
    }

    /// Last part of a mutation: frees the blocks lent to the undo log. Their entries stay intact until then.
    #[cold]
    #[inline(never)]
    fn return_lent(&mut self) {
        for index in 0..self.lent.len() {
            let block = self.lent[index];
            // Its old value is in the block itself.
            self.init(block, block::next, self.hot(hot::free));
            self.set_hot(hot::free, block);
        }
        self.add(Hot, hot::free_count, self.lent.len() as u64);
    }

    /// After a death: finds the lent blocks that contain entries.
    fn follow_lent(&mut self) {
        self.lent.clear();
        // SAFETY: the lock is held, and the word is aligned.
        let mut next = BlockRef(unsafe { ptr::read_volatile(&raw const (*self.memory.header()).undo_more) });
        for _ in 0..self.undo_shortage(self.entries) {
            self.lent.push(next);
            next = self.get(next, lent::more);
        }
    }

    /// Undoes the mutation in progress.
    fn roll_back(&mut self) {
        let header = self.memory.header();
        // SAFETY: the lock is held; the undo log's entries were written by `write`, so their places are in bounds and
        // their sizes are those of words. Undoing twice does no harm, so a death in here is repaired by the next
        // holder.
        unsafe {
            for index in (0..self.entries).rev() {
                let UndoEntry { place, old } = ptr::read(self.undo_entry(index));
                let target = self.memory.base.add((place >> 16) as usize);
                death_point();
                match place & 0xffff {
                    1 => (old as u8).write_whole(target),
                    2 => (old as u16).write_whole(target.cast()),
                    4 => (old as u32).write_whole(target.cast()),
                    _ => old.write_whole(target.cast()),
                }
            }
            for index in 0..self.lent.len() {
                let block = self.lent[index];
                self.init(block, block::next, self.get(block, lent::free_next));
            }
            ptr::copy_nonoverlapping(&raw const (*header).hot_saved, &raw mut (*header).hot, 1);
        }
        self.set_undo_state(0);
        self.forget_entries();
        self.freed = Freed::default();
        self.changing = false;
        self.wakes.truncate(self.committed_wakes);
    }

    /// After the death of a lock holder: undoes its mutation.
    fn repair(&mut self) {
        let header = self.memory.header();
        // SAFETY: the lock is held, and the word is aligned.
        let state = unsafe { (*header).undo_state };
        if state > 0 {
            self.entries = state as usize - 1;
            self.follow_lent();
            self.roll_back();
        }
        // SAFETY: the lock is held, and was taken as `OwnerDied`.
        unsafe {
            let repairs = &raw mut (*header).repairs;
            (ptr::read(repairs) + 1).write_whole(repairs);
            lock::consistent((&raw mut (*header).lock).cast());
        }
    }

    /// Frees a block as of the commit.
    pub fn free_block(&mut self, block: BlockRef) {
        if self.kind(block.0) != kind::OTHER {
            self.set_kind(block.0, kind::OTHER);
        }
        if self.freed.count == 0 {
            self.freed.last = block;
        } else {
            self.set(block, block::next, self.freed.first);
        }
        self.freed.first = block;
        self.freed.count += 1;
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // A panic from here on would leave the lock to a living process for ever. A dead one's is repaired by the next
        // holder.
        let abort = AbortOnUnwind;
        if self.changing {
            self.roll_back();
        }
        death_point();
        // SAFETY: the lock is held and what it guards is whole.
        unsafe { lock::unlock((&raw mut (*self.memory.header()).lock).cast()) }
        std::mem::forget(abort);
        self.memory.wake(&self.wakes);
    }
}

/// Ends the process if a panic drops it.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// An unpredictable key.
fn random_key() -> [u64; 2] {
    let mut key = [0u64; 2];
    // SAFETY: the buffer is as long as given. Sixteen bytes are never returned in part once the system has entropy.
    unsafe { libc::getrandom(key.as_mut_ptr().cast(), size_of_val(&key), 0) };
    key
}

/// With the feature `fault-points`: dies or panics here if this point was chosen. Inside a mutation that can be undone.
#[inline(always)]
fn mutation_point() {
    #[cfg(feature = "fault-points")]
    super::fault_injection::mutation_point();
}

/// With the feature `fault-points`: dies here if this point was chosen. Tests walk through all points.
#[inline(always)]
fn death_point() {
    #[cfg(feature = "fault-points")]
    super::fault_injection::point();
}
