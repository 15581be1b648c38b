//! Drain: takes messages out of the zone for a worker, live ones and stored ones for new subscribers.
//!
//! Messages are selected under the lock and copied without it; meanwhile they are pinned through the worker's slot, so
//! that they are not freed.

use super::api::{Head, REPLAY_BYTES, REPLAY_MESSAGES, Record, Span};
use super::layout::*;
use super::memory::{Locked, Memory};
use super::worker::WholeDrain;
use super::*;

/// Messages that one hold of the lock selects for delivery.
const DRAIN_MESSAGES: usize = 1024;
/// Bytes of messages (as [counted](weight)) that a drain copies before it releases the lock: that takes less time than
/// taking the lock once more to release the messages.
const COPIED_AT_ONCE: usize = 1024;
/// Sequence numbers that a [whole drain](Worker::drain_whole) covers at once: all their messages are in memory then.
const WHOLE_DRAIN: u64 = 512;

/// What a drain takes, and the first membership that it has put back.
enum Scope<'s> {
    /// Everything of the memberships that are not skipped, nothing of the others.
    Except {
        skipped: &'s dyn Fn(Membership) -> bool,
        first: Option<MemberRef>,
    },
    Whole(&'s mut WholeDrain),
}

impl Scope<'_> {
    fn skips(&self, member: MemberRef) -> bool {
        matches!(self, Scope::Except { skipped, .. } if skipped(Membership(member.0)))
    }

    fn first_left(&self) -> Option<MemberRef> {
        match self {
            Scope::Except { first, .. } => *first,
            Scope::Whole(whole) => whole.first_left,
        }
    }

    /// Records that a membership was put back.
    fn leave(&mut self, member: MemberRef) {
        let first = match self {
            Scope::Except { first, .. } => first,
            Scope::Whole(whole) => &mut whole.first_left,
        };
        first.get_or_insert(member);
    }
}

/// Progress of a [whole drain](Worker::drain_whole).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Incomplete: continue at once.
    Part,
    /// Everything up to the sequence number `until`. `more`: newer messages wait.
    Whole { more: bool, until: u64 },
}

/// Messages that a drain takes for one membership.
struct Take {
    member: MemberRef,
    count: u32,
}

impl Worker {
    /// Takes live messages of all channels this worker is a member of into `batch`, which is cleared first: at most
    /// about `max_bytes` of text (always at least one message, if there is one). True if there is more.
    pub fn drain(&mut self, max_bytes: usize, batch: &mut Batch) -> bool {
        self.drain_except(max_bytes, batch, |_| false)
    }

    /// As [`Worker::drain`], but takes only memberships that are not `skipped`: the messages of skipped ones stay in
    /// the zone, and count as more.
    pub fn drain_except(&mut self, max_bytes: usize, batch: &mut Batch, skipped: impl Fn(Membership) -> bool) -> bool {
        batch.clear();
        wake::lower(self.memory().woken(self.slot));
        self.memory().prefetch_drain(self.slot);
        let mut takes = Vec::new();
        let heads = self.step(|locked, slot| {
            let mut scope = Scope::Except {
                skipped: &skipped,
                first: None,
            };
            locked.gather(slot, max_bytes, &mut scope, batch, &mut takes)
        });
        if !takes.is_empty() {
            self.take(&heads, takes, batch);
        }
        self.memory().peek(self.slot, slot::dirty_first) != MemberRef::NONE
    }

    /// As [`Worker::drain`], for callers that merge channels: the batches up to a [whole](Drained::Whole) one contain,
    /// of all channels, exactly the messages published up to some sequence number and not taken before.
    pub fn drain_whole(&mut self, max_bytes: usize, batch: &mut Batch) -> Drained {
        self.drain_whole_to(u64::MAX, max_bytes, batch)
    }

    /// The same, up to the sequence number `last` at most; when a whole one ends there, all messages up to it are taken.
    pub fn drain_whole_to(&mut self, last: u64, max_bytes: usize, batch: &mut Batch) -> Drained {
        batch.clear();
        wake::lower(self.memory().woken(self.slot));
        self.memory().prefetch_drain(self.slot);
        let mut drain = self.whole_drain.take();
        let mut takes = Vec::new();
        let heads = self.step(|locked, slot| {
            let drain = drain.get_or_insert_with(|| locked.begin_whole_drain(slot, last));
            locked.gather(slot, max_bytes, &mut Scope::Whole(drain), batch, &mut takes)
        });
        if !takes.is_empty() {
            self.take(&heads, takes, batch);
        }
        let front = self.memory().peek(self.slot, slot::dirty_first).some();
        if front.is_none() || drain.as_ref().is_some_and(|drain| drain.first_left == front) {
            return Drained::Whole {
                more: front.is_some(),
                until: drain.map_or(0, |drain| drain.until),
            };
        }
        self.whole_drain = drain;
        Drained::Part
    }

    /// Copies the gathered messages, and advances the memberships.
    fn take(&mut self, heads: &[Head], takes: Vec<Take>, batch: &mut Batch) {
        self.copy(heads, batch);
        let mut takes = takes.into_iter().peekable();
        let mut taken = 0;
        while takes.peek().is_some() {
            self.step(|locked, _| {
                // One hold for a usual drain, several for a large one.
                for _ in 0..256 {
                    let Some(&Take { member, count }) = takes.peek() else {
                        return;
                    };
                    if taken < count {
                        locked.advance(member);
                        taken += 1;
                    } else {
                        locked.set_reading(member, false);
                        taken = 0;
                        takes.next();
                    }
                    if locked.nearly_full() {
                        locked.step();
                    }
                }
            });
        }
    }

    /// Copies the next slice of old messages (at most 100 or about 64 KiB, always whole messages) into `batch`, which
    /// is cleared first. True if there is more.
    pub fn replay(&mut self, replay: &mut Replay, batch: &mut Batch) -> bool {
        batch.clear();
        if replay.ordered {
            return self.replay_ordered(replay, batch);
        }
        let Some(part) = replay.parts.front_mut() else {
            return false;
        };
        let (heads, done) = self.step(|locked, slot| locked.pin_old(slot, part, &mut replay.lost, batch));
        self.copy(&heads, batch);
        self.unpin();
        if done {
            replay.parts.pop_front();
        }
        !replay.parts.is_empty()
    }

    /// Merges the channels' messages by event id, in runs of one channel.
    fn replay_ordered(&mut self, replay: &mut Replay, batch: &mut Batch) -> bool {
        while batch.records.len() < REPLAY_MESSAGES && batch.bytes.len() < REPLAY_BYTES {
            let room = REPLAY_MESSAGES - batch.records.len();
            let Some(heads) = self.step(|locked, slot| locked.pin_ordered(slot, replay, room, batch)) else {
                break;
            };
            self.copy(&heads, batch);
            self.unpin();
        }
        let next = self.step(|locked, _| locked.next_offer(replay));
        batch.mark_repeated(next);
        !replay.parts.is_empty()
    }

    /// Copies the payloads that `heads` refer to; all are pinned. `heads` match the last records of the batch.
    fn copy(&self, heads: &[Head], batch: &mut Batch) {
        let first = batch.records.len() - heads.len();
        for (head, record) in heads.iter().zip(&mut batch.records[first..]) {
            self.memory().copy_message(head, record, &mut batch.bytes);
        }
    }

    /// Unpins the messages that this worker has copied.
    fn unpin(&mut self) {
        loop {
            let more = self.step(|locked, slot| {
                for _ in 0..16 {
                    let Some(link) = locked.get(slot, slot::pin_first).some() else {
                        return false;
                    };
                    locked.unpin_first(slot, link);
                    if locked.nearly_full() {
                        break;
                    }
                }
                true
            });
            if !more {
                break;
            }
        }
    }
}

impl Memory {
    /// Appends a message's payload to `bytes`, and records where it is. Conditions as for [`Memory::copy_payload`].
    fn copy_message(&self, head: &Head, record: &mut Record, bytes: &mut Vec<u8>) {
        let mut at = bytes.len();
        self.copy_payload(head.body, head.payload_len, head.multi, bytes);
        let mut prefixed = |present: bool| {
            present.then(|| {
                let len = u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
                at += 2 + len;
                Span { start: at - len, len }
            })
        };
        record.event_id = prefixed(head.event_id);
        record.event_type = prefixed(head.event_type);
        record.text = Span {
            start: at,
            len: bytes.len() - at,
        };
        if record.auto_id {
            let start = bytes.len();
            self.auto_id(record.seq).write(bytes);
            record.event_id = Some(Span {
                start,
                len: bytes.len() - start,
            });
        }
    }
}

impl Locked<'_> {
    /// Covers everything up to now or `last`, but at most `WHOLE_DRAIN` past the first dirty membership's next message, about the
    /// longest waiting one.
    fn begin_whole_drain(&self, slot: SlotRef, last: u64) -> WholeDrain {
        let mut until = self.hot(hot::seq).min(last);
        if let Some(member) = self.get(slot, slot::dirty_first).some()
            && self.get(member, member::flags) & member_flag::GONE == 0
            && let Some(link) = self.get(member, member::next).some()
        {
            until = until.min(self.seq_of(link) + WHOLE_DRAIN);
        }
        WholeDrain {
            until,
            first_left: None,
        }
    }

    /// Takes live messages of the slot's dirty memberships: the first few are copied and released at once, the others
    /// are selected and protected from eviction, until they are [taken](Worker::take) without the lock.
    fn gather(
        &mut self,
        slot: SlotRef,
        max_bytes: usize,
        scope: &mut Scope<'_>,
        batch: &mut Batch,
        takes: &mut Vec<Take>,
    ) -> Vec<Head> {
        let mut heads = Vec::new();
        let mut bytes = 0;
        // Copies of one message have consecutive sequence numbers and must be taken together.
        let until = match scope {
            Scope::Whole(whole) => whole.until,
            Scope::Except { .. } => u64::MAX,
        };
        let is_due = |locked: &Self, link: LinkRef| until == u64::MAX || locked.first_seq(link) <= until;
        while let Some(member) = self.get(slot, slot::dirty_first).some() {
            if scope.first_left() == Some(member) {
                break;
            }
            if batch.records.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes {
                break;
            }
            let gone = self.get(member, member::flags) & member_flag::GONE != 0;
            if !gone && scope.skips(member) {
                self.put_back(slot);
                scope.leave(member);
                if self.nearly_full() {
                    self.step();
                }
                continue;
            }
            let mut next = if gone {
                None
            } else {
                self.get(member, member::next).some()
            };
            if !gone && next.is_none_or(|link| is_due(self, link)) {
                self.tell_lost(member, batch);
            }
            let mut count = 0;
            while let Some(link) = next {
                if batch.records.len() >= DRAIN_MESSAGES || bytes > 0 && bytes >= max_bytes || !is_due(self, link) {
                    break;
                }
                let head = self.head(link);
                let mut record = self.record(link, member.0);
                next = self.get(link, link::next).some();
                bytes += weight(&head);
                if bytes <= COPIED_AT_ONCE {
                    self.copy_message(&head, &mut record, &mut batch.bytes);
                    self.advance(member);
                    if self.nearly_full() {
                        self.step();
                    }
                } else {
                    heads.push(head);
                    count += 1;
                }
                batch.records.push(record);
            }
            if count > 0 {
                self.set_reading(member, true);
                takes.push(Take { member, count });
            }
            match next {
                None => self.pop_dirty(slot),
                Some(link) if is_due(self, link) => break,
                Some(_) => {
                    self.put_back(slot);
                    scope.leave(member);
                }
            }
            if self.nearly_full() {
                self.step();
            }
        }
        heads
    }

    /// Reports the messages that were evicted before this member took them, once.
    fn tell_lost(&mut self, member: MemberRef, batch: &mut Batch) {
        let seq = self.get(member, member::lost_seq);
        if seq > 0 {
            self.set(member, member::lost_seq, 0);
            batch.lost.push(Lost {
                membership: Membership(member.0),
                seq,
            });
        }
    }

    pub(super) fn head(&self, link: LinkRef) -> Head {
        let body = self.body_of(link);
        Head {
            body,
            payload_len: self.get(body, body::payload_len) as usize,
            multi: self.link_flag(link, link_flag::MULTI),
            event_id: self.link_flag(link, link_flag::EVENT_ID),
            event_type: self.link_flag(link, link_flag::EVENT_TYPE),
        }
    }

    pub(super) fn record(&self, link: LinkRef, source: u32) -> Record {
        let (notice, dismissal) = (
            self.link_flag(link, link_flag::NOTICE),
            self.link_flag(link, link_flag::DISMISSAL),
        );
        Record {
            source,
            kind: match (notice, dismissal) {
                (false, _) => MessageKind::Ordinary,
                (true, false) => MessageKind::Deleted,
                (true, true) => MessageKind::Dismissed,
            },
            id: self.id_of(link),
            seq: self.seq_of(link),
            time: self.time_of(link),
            tag: self.tag_of(link),
            auto_id: self.link_flag(link, link_flag::AUTO_ID),
            repeated_id: false,
            late: self.is_of_unknown_order(link),
            binary: self.link_flag(link, link_flag::BINARY),
            unix_ms: self.unix_ms_of(link),
            event_id: None,
            event_type: None,
            text: Span { start: 0, len: 0 },
        }
    }
}

/// What a message counts in a batch: one byte more than its payload, so that empty messages fill a batch too.
fn weight(head: &Head) -> usize {
    head.payload_len + 1
}
