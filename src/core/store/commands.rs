//! Commands: what one process asks another to do, and the answer.
//!
//! Any process posts a command to a slot; that slot's process is woken, takes its commands in order, and answers each;
//! the answer goes to the slot that has posted. What a command means is the callers' business: the zone knows a kind, a
//! number of the request and bytes.
//!
//! A command is one record over its whole life, and lies in two lists:
//!
//! ```text
//! posted     the target's list `commands`     and the requester's list `posted`
//! taken      the target's list `taken`        and the requester's list `posted`, unless that has died
//! answered   the requester's list `answers`
//! ```
//!
//! Its text lies in blocks of its own, that only one process writes or reads at a time, so none of it is copied under
//! the lock.
//!
//! # When a process dies
//!
//! Reaping its slot releases all of it. Commands to it are answered in its place, as [gone](Reply::Gone), so that nobody
//! waits for a dead process. Commands from it that nobody has taken are withdrawn; those that are taken belong to nobody
//! from then on, and are freed by their answer. Answers to it are freed.

use super::layout::*;
use super::lists::List;
use super::memory::{Locked, Memory};
use super::*;

/// Commands that wait for one slot at most.
pub const COMMANDS_PER_SLOT: u32 = 64;
/// Length of a command's or answer's text at most.
pub const COMMAND_BYTES: usize = 16 << 10;
/// Bytes of it in the record's own block.
const ROOM: usize = BLOCK - command::SIZE;
/// Length of an answer for which there is always room.
pub const SHORT_ANSWER: usize = ROOM;
/// In place of the requester's slot: it has died.
const NOBODY: u16 = u16::MAX;

/// A process that uses the zone: a slot, and which of its successive users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub slot: u16,
    pub generation: u32,
}

/// A command as its target takes it.
#[derive(Debug)]
pub struct Command {
    record: CommandRef,
    pub kind: u16,
    pub text: Vec<u8>,
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// As it was posted with.
    pub request: u64,
    pub kind: u16,
    /// The slot that it was posted to.
    pub slot: u16,
    pub reply: Reply,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Text(Vec<u8>),
    /// The process has ended before it answered. It may have done as it was told.
    Gone,
}

/// Why a command was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unposted {
    #[error("no such process")]
    Gone,
    #[error("too many commands wait for the process")]
    Busy,
    #[error("the command is too long")]
    TooLong,
    #[error("{0}")]
    Refused(Refusal),
}

/// The commands that a slot's process has not taken.
fn commands(slot: SlotRef) -> List<SlotRef, CommandRef> {
    List {
        head: slot,
        first: slot::commands_first,
        last: Some(slot::commands_last),
        next: command::next,
        prev: command::prev,
    }
}

/// Those that it has taken and not answered.
fn taken(slot: SlotRef) -> List<SlotRef, CommandRef> {
    List {
        head: slot,
        first: slot::taken,
        last: None,
        next: command::next,
        prev: command::prev,
    }
}

/// The answers for a slot's process.
fn answers(slot: SlotRef) -> List<SlotRef, CommandRef> {
    List {
        head: slot,
        first: slot::answers_first,
        last: Some(slot::answers_last),
        next: command::next,
        prev: command::prev,
    }
}

/// The commands from a slot's process that are not answered.
fn posted(slot: SlotRef) -> List<SlotRef, CommandRef> {
    List {
        head: slot,
        first: slot::posted,
        last: None,
        next: command::posted_next,
        prev: command::posted_prev,
    }
}

/// Blocks for a text of this length, with the record's own.
fn blocks(len: usize) -> u32 {
    1 + len.saturating_sub(ROOM).div_ceil(CONTINUATION) as u32
}

impl Worker {
    /// This process, for others.
    pub fn process(&self) -> Process {
        Process {
            slot: self.slot.0,
            generation: self.memory().peek(self.slot, slot::generation),
        }
    }

    /// All processes that use the zone now, this one among them.
    pub fn processes(&self) -> Vec<Process> {
        let locked = self.memory().lock();
        let live = |&slot: &SlotRef| locked.get(slot, slot::live) != 0;
        let process = |slot: SlotRef| Process {
            slot: slot.0,
            generation: locked.get(slot, slot::generation),
        };
        self.memory().all_slots().filter(live).map(process).collect()
    }

    /// Asks a process, which may be this one, to do something. `request`: names the command in its answer.
    pub fn command(&mut self, to: Process, kind: u16, request: u64, text: &[u8], now: Now) -> Result<(), Unposted> {
        if text.len() > COMMAND_BYTES {
            return Err(Unposted::TooLong);
        }
        if to.slot >= self.memory().slots {
            return Err(Unposted::Gone);
        }
        self.unreserve();
        if let Err(refusal) = self.reserve(blocks(text.len()), now) {
            self.unreserve();
            return Err(Unposted::Refused(refusal));
        }
        let record = CommandRef(self.memory().peek(self.slot, slot::reserved).0);
        let memory = self.memory();
        memory.fill(record, memory.peek(record, command::more), text);
        memory.init(record, command::len, text.len() as u32);
        memory.init(record, command::kind, kind);
        memory.init(record, command::request, request);
        memory.init(record, command::state, command_state::POSTED);
        memory.init(record, command::to, to.slot);
        memory.init(record, command::from, self.slot.0);
        let outcome = self.step(|locked, slot| locked.post(slot, to, record));
        // If it was posted, the reservation is empty.
        self.unreserve();
        outcome
    }

    /// Are there messages for this process?
    pub fn has_messages(&self) -> bool {
        self.memory().peek(self.slot, slot::dirty_first).some().is_some()
    }

    /// The kind of the oldest command for this process.
    pub fn next_command(&self) -> Option<u16> {
        let record = self.memory().peek(self.slot, slot::commands_first).some()?;
        Some(self.memory().peek(record, command::kind))
    }

    /// Are there commands for this process?
    pub fn has_commands(&self) -> bool {
        self.memory().peek(self.slot, slot::commands_first).some().is_some()
    }

    /// Are there commands or answers for this process? Takes no lock: to be asked after a
    /// [drain](Worker::drain), which lowers the wake-up flag.
    pub fn has_mail(&self) -> bool {
        self.has_commands() || self.memory().peek(self.slot, slot::answers_first).some().is_some()
    }

    /// The oldest command for this process, for it to [answer](Worker::answer).
    pub fn take_command(&mut self) -> Option<Command> {
        self.memory().peek(self.slot, slot::commands_first).some()?;
        let record = self.step(|locked, slot| locked.take_command(slot))?;
        let text = self.memory().command_text(record);
        self.unreserve();
        self.step(|locked, slot| {
            locked.set(slot, slot::reserved, locked.get(record, command::more));
            locked.set(record, command::more, BlockRef::NONE);
        });
        self.unreserve();
        Some(Command {
            record,
            kind: self.memory().peek(record, command::kind),
            text,
        })
    }

    /// Answers a command; the answer is dropped if its requester has died. If the zone is too full for so long a text, the
    /// command is given back, for a shorter answer: one of [`SHORT_ANSWER`] bytes always has room.
    pub fn answer(&mut self, command: Command, text: &[u8], now: Now) -> Result<(), (Command, Refusal)> {
        debug_assert!(text.len() <= COMMAND_BYTES);
        let record = command.record;
        let text = &text[..text.len().min(COMMAND_BYTES)];
        self.unreserve();
        if let Err(refusal) = self.reserve(blocks(text.len()) - 1, now) {
            self.unreserve();
            return Err((command, refusal));
        }
        let memory = self.memory();
        memory.fill(record, memory.peek(self.slot, slot::reserved), text);
        self.step(|locked, slot| locked.answer(slot, record, text.len() as u32));
        // The record itself, if nobody waits for it.
        self.unreserve();
        Ok(())
    }

    /// The oldest answer for this process.
    pub fn take_answer(&mut self) -> Option<Answer> {
        let memory = self.memory();
        let record = memory.peek(self.slot, slot::answers_first).some()?;
        // Only this process takes answers away, so the record stays without the lock.
        let answer = Answer {
            request: memory.peek(record, command::request),
            kind: memory.peek(record, command::kind),
            slot: memory.peek(record, command::to),
            reply: match memory.peek(record, command::state) {
                command_state::GONE => Reply::Gone,
                _ => Reply::Text(memory.command_text(record)),
            },
        };
        self.unreserve();
        self.step(|locked, slot| locked.drop_first_answer(slot));
        self.unreserve();
        Some(answer)
    }

    /// Takes a command back that its target has not taken: then it is not obeyed. False if it was taken, or answered.
    pub fn withdraw(&mut self, request: u64) -> bool {
        self.unreserve();
        let withdrawn = self.step(|locked, slot| {
            let record = locked.find_posted(slot, request);
            record.is_some_and(|record| locked.withdraw(slot, record))
        });
        self.unreserve();
        withdrawn
    }
}

impl Memory {
    /// Writes a record's text, which no other process reads yet: into its own block, then into the chain from `more` on.
    fn fill(&self, record: CommandRef, more: BlockRef, text: &[u8]) {
        let (own, mut rest) = text.split_at(text.len().min(ROOM));
        self.copy_in(BlockRef(record.0), command::SIZE, own);
        let mut block = more;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(CONTINUATION));
            self.copy_in(block, 4, part);
            block = self.peek(block, block::next);
            rest = after;
        }
    }

    /// A record's text, which no other process writes.
    fn command_text(&self, record: CommandRef) -> Vec<u8> {
        let mut rest = self.peek(record, command::len) as usize;
        let mut text = Vec::with_capacity(rest);
        let part = rest.min(ROOM);
        self.copy_out(BlockRef(record.0), command::SIZE, part, &mut text);
        rest -= part;
        let mut block = self.peek(record, command::more);
        while rest > 0 {
            let part = rest.min(CONTINUATION);
            self.copy_out(block, 4, part, &mut text);
            block = self.peek(block, block::next);
            rest -= part;
        }
        text
    }
}

impl Locked<'_> {
    /// Posts the record that is the slot's reservation.
    fn post(&mut self, slot: SlotRef, to: Process, record: CommandRef) -> Result<(), Unposted> {
        let target = SlotRef(to.slot);
        if self.get(target, slot::live) == 0 || self.get(target, slot::generation) != to.generation {
            return Err(Unposted::Gone);
        }
        if self.get(target, slot::command_count) >= COMMANDS_PER_SLOT {
            return Err(Unposted::Busy);
        }
        self.set(slot, slot::reserved, BlockRef::NONE);
        self.push_back(commands(target), record);
        self.add(target, slot::command_count, 1);
        self.push_front(posted(slot), record);
        self.wake_later(target);
        Ok(())
    }

    fn take_command(&mut self, slot: SlotRef) -> Option<CommandRef> {
        let record = self.get(slot, slot::commands_first).some()?;
        self.unlink(commands(slot), record);
        self.sub(slot, slot::command_count, 1);
        self.push_front(taken(slot), record);
        self.set(record, command::state, command_state::TAKEN);
        Some(record)
    }

    /// Answers a command that the slot has taken with the text that is written already, and goes on in the slot's
    /// reservation.
    fn answer(&mut self, slot: SlotRef, record: CommandRef, len: u32) {
        self.set(record, command::more, self.get(slot, slot::reserved));
        self.set(slot, slot::reserved, BlockRef::NONE);
        self.set(record, command::len, len);
        self.unlink(taken(slot), record);
        self.reply(slot, record, command_state::ANSWERED);
    }

    /// Hands a record that is in no list of its target any more to its requester; if there is none, it becomes the
    /// `slot`'s reservation.
    fn reply(&mut self, slot: SlotRef, record: CommandRef, state: u16) {
        let from = self.get(record, command::from);
        if from == NOBODY {
            self.set(slot, slot::reserved, BlockRef(record.0));
            return;
        }
        let requester = SlotRef(from);
        self.unlink(posted(requester), record);
        self.set(record, command::state, state);
        self.push_back(answers(requester), record);
        self.wake_later(requester);
    }

    /// Makes the slot's first answer its reservation.
    fn drop_first_answer(&mut self, slot: SlotRef) {
        if let Some(record) = self.get(slot, slot::answers_first).some() {
            self.unlink(answers(slot), record);
            self.set(slot, slot::reserved, BlockRef(record.0));
        }
    }

    fn find_posted(&self, slot: SlotRef, request: u64) -> Option<CommandRef> {
        let mut next = self.get(slot, slot::posted);
        while let Some(record) = next.some() {
            if self.get(record, command::request) == request {
                return Some(record);
            }
            next = self.get(record, command::posted_next);
        }
        None
    }

    /// Makes a command that its target has not taken its requester's reservation; false if it was taken.
    fn withdraw(&mut self, slot: SlotRef, record: CommandRef) -> bool {
        if self.get(record, command::state) != command_state::POSTED {
            return false;
        }
        let target = SlotRef(self.get(record, command::to));
        self.unlink(commands(target), record);
        self.sub(target, slot::command_count, 1);
        self.unlink(posted(slot), record);
        self.set(slot, slot::reserved, BlockRef(record.0));
        true
    }

    /// One step of releasing what a dead slot has to do with commands; it may leave a reservation. False when there is
    /// nothing left.
    pub(super) fn reap_command(&mut self, slot: SlotRef) -> bool {
        if let Some(record) = self.get(slot, slot::posted).some() {
            if !self.withdraw(slot, record) {
                // Its target frees it.
                self.unlink(posted(slot), record);
                self.set(record, command::from, NOBODY);
            }
        } else if self.get(slot, slot::answers_first).some().is_some() {
            self.drop_first_answer(slot);
        } else if let Some(record) = self.get(slot, slot::commands_first).some() {
            self.unlink(commands(slot), record);
            self.sub(slot, slot::command_count, 1);
            self.refuse(slot, record);
        } else if let Some(record) = self.get(slot, slot::taken).some() {
            self.unlink(taken(slot), record);
            self.refuse(slot, record);
        } else {
            return false;
        }
        true
    }

    /// Answers in the place of a dead slot.
    fn refuse(&mut self, slot: SlotRef, record: CommandRef) {
        if self.get(record, command::from) != NOBODY {
            // Else it is freed with the record.
            self.set(slot, slot::reserved, self.get(record, command::more));
            self.set(record, command::more, BlockRef::NONE);
            self.set(record, command::len, 0);
        }
        self.reply(slot, record, command_state::GONE);
    }
}

/// What the zone's invariants say about a slot's commands.
impl Locked<'_> {
    /// The records in the slot's lists, each with the first block of its further text, and what is wrong with them.
    pub(super) fn check_commands(&self, slot: SlotRef) -> (Vec<(CommandRef, BlockRef)>, Vec<String>) {
        let mut records = Vec::new();
        let mut problems = Vec::new();
        let mut walk = |name: &str, list: List<SlotRef, CommandRef>, states: &[u16], own: bool| {
            let mut count = 0;
            let mut before = CommandRef::NONE;
            let mut next = self.get(slot, list.first);
            while let Some(record) = next.some() {
                if self.get(record, list.prev) != before {
                    problems.push(format!("{name}: {record:?} does not point back to {before:?}"));
                    break;
                }
                if !states.contains(&self.get(record, command::state)) {
                    problems.push(format!("{name}: {record:?} has another state"));
                }
                let holder = if own { command::to } else { command::from };
                if self.get(record, holder) != slot.0 {
                    problems.push(format!("{name}: {record:?} is another slot's"));
                }
                count += 1;
                if list.next.offset == command::next.offset {
                    records.push((record, self.get(record, command::more)));
                }
                before = record;
                next = self.get(record, list.next);
            }
            if list.last.is_some_and(|last| self.get(slot, last) != before) {
                problems.push(format!("{name}: its end is not {before:?}"));
            }
            count
        };
        use command_state::*;
        let waiting = walk("commands", commands(slot), &[POSTED], true);
        let held = walk("commands taken", taken(slot), &[TAKEN], true);
        let asked = walk("commands posted", posted(slot), &[POSTED, TAKEN], false);
        let told = walk("answers", answers(slot), &[ANSWERED, GONE], false);
        if waiting != self.get(slot, slot::command_count) || waiting > COMMANDS_PER_SLOT {
            problems.push("the count of a slot's commands is wrong".to_string());
        }
        if self.get(slot, slot::live) == 0 && waiting + held + asked + told > 0 {
            problems.push("a free slot has commands".to_string());
        }
        (records, problems)
    }
}
