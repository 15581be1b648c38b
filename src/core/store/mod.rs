//! The shared-memory zone: channels, messages, worker slots and counters.
//!
//! One [`Zone`] per nginx; each nginx worker process claims a [`Worker`] slot in it and uses the zone only through it.
//! All calls are synchronous and short; no call blocks on another process for longer than a few dozen memory writes.
//!
//! # The memory
//!
//! ```text
//! header │ slots │ undo log │ buckets │ buckets of ids │ kinds │ blocks of 128 bytes, numbered from 1 ...
//!
//! header    geometry, written once; the lock; the undo log's state; `hot`, the part that every mutation may write, and
//!           its copy; counters outside of the lock
//! slot      one per process: its liveness lock, memberships, reserved blocks and pinned messages, its subscribers'
//!           connections
//! undo log  old values of the words that the mutation in progress has written
//! bucket    first channel of a hash chain
//! kind      one byte per block: the type of its contents (channel, message, links, membership)
//!
//! channel   128 bytes: figures, ends of its queue, its members, the id (long ids go on in further blocks)
//! ids       if the zone tracks event ids, one block per channel: newest and lost id, and the window of accepted ids,
//!           four to a block
//! message   head block: 32 bytes shared by all its links, the first link (32 bytes), 64 bytes of text;
//!           further blocks: 4 bytes of chain, 124 of text; further links: four to a block
//! member    a worker's membership in a channel: how many subscribers, the first message it has not taken
//! command   what one process asks another to do, or the answer: kind, number, the first 88 bytes of its text;
//!           further blocks as a message has
//! ```
//!
//! # When a process dies
//!
//! | the process was | what happens |
//! |---|---|
//! | changing the zone, at any instruction | the next lock holder (`EOWNERDEAD`) undoes the mutation ([`memory`]) |
//! | filling a message it had reserved | the blocks are listed in its slot; reaping frees them |
//! | copying messages out | they are pinned through its slot; reaping unpins them |
//! | idle, with subscribers | its memberships are listed in its slot; reaping takes them off the channels' counts |
//! | asked to do something, or asking | commands and answers are listed in both slots; reaping answers or frees them |
//!
//! A slot is reaped by the first process to find that its liveness lock's owner is dead: another worker in its
//! [`Worker::tick`], within a second, or the successor that claims the slot.
//!
//! # The files
//!
//! * Memory: `layout` (every field), `memory` (typed access, mutations, undo), `lock`, `blocks`, `lists`, `prefetch`.
//! * Processes: `slots` (the zone, reap), `worker` (claim, tick, mutate), `wake`, `figures` (those outside of the lock).
//! * Publish: `draft`, `series`, `notices`, `publishing`, `messages`, `ids` and `dedup_window`, `eviction` (and housekeeping).
//! * Deliver: `members`, `joining`, `history`, `drain`, `handover`.
//! * Processes among themselves: `commands`.
//! * Channels: `channels`, `listing` (walks over all of them).
//! * `api`: the types of the public interface. `invariants` and `fault_injection`: for tests.

mod api;
mod blocks;
mod channels;
mod commands;
mod dedup_window;
mod draft;
mod drain;
mod eviction;
#[cfg(feature = "fault-points")]
pub mod fault_injection;
mod figures;
mod handover;
mod history;
mod ids;
mod invariants;
mod joining;
mod layout;
mod listing;
mod lists;
mod lock;
mod members;
mod memory;
mod messages;
mod notices;
mod prefetch;
mod publishing;
mod series;
mod slots;
mod wake;
mod worker;

pub use api::*;
pub use commands::{Answer, COMMAND_BYTES, COMMANDS_PER_SLOT, Command, Process, Reply, SHORT_ANSWER, Unposted};
pub use draft::Draft;
pub use drain::Drained;
pub use figures::{AttachReason, Connection, Connections, Counter, Counts, Fanout, Mode};
pub use handover::Adopted;
pub use layout::LAYOUT_VERSION;
pub use listing::{Extent, Landmark, Listed, Listing};
pub use memory::ZoneError;
pub use series::{Publication, Publishing};
pub use slots::Zone;
pub use worker::Worker;
