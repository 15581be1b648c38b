//! The invariants of the whole zone: they hold whenever the lock is free, wherever a process has died. For tests; the
//! check reads everything, so it takes long on a large zone and holds the lock all the while.

use std::collections::{BTreeMap, BTreeSet};

use super::Zone;
use super::channels::{channel_trash, deleting, idle, order};
use super::layout::*;
use super::lists::{Item, List};
use super::memory::{BUCKET_FIRST, ENTRY_BUCKET_FIRST, Locked, Record};
use super::messages::first_link;

/// More items than any list can have: detects a list that is wrongly circular.
const ENDLESS: usize = 1 << 26;

impl Zone {
    /// Descriptions of all violations; empty if the zone is whole.
    pub fn check(&self) -> Vec<String> {
        let locked = self.memory.lock();
        let mut check = Check {
            locked: &locked,
            owners: BTreeMap::new(),
            problems: Vec::new(),
            bodies: BTreeMap::new(),
            entries: BTreeSet::new(),
            stored: 0,
            unstored_queued: 0,
        };
        check.all();
        check.problems
    }

    /// Number of free blocks, and number of all blocks.
    pub fn free_blocks(&self) -> (u32, u32) {
        let locked = self.memory.lock();
        (locked.available(), self.memory.blocks)
    }
}

struct Check<'a, 'm> {
    locked: &'a Locked<'m>,
    owners: BTreeMap<u32, &'static str>,
    problems: Vec<String>,
    /// Number of links of each body that are queued or in the trash.
    bodies: BTreeMap<BodyRef, u32>,
    /// Ids in windows.
    entries: BTreeSet<EntryRef>,
    stored: u64,
    unstored_queued: u32,
}

impl Check<'_, '_> {
    fn all(&mut self) {
        let listed = self.listed_channels();
        for &channel in &listed {
            self.channel(channel);
        }
        self.entry_buckets();
        self.slots();
        self.trash();
        self.garbage();
        self.bodies();
        self.free();
        let locked = self.locked;
        self.expect(
            locked.hot(hot::stored) == self.stored,
            "the zone's count of stored messages is wrong",
        );
        self.expect(
            locked.hot(hot::unstored_queued) == self.unstored_queued,
            "the count of unstored messages is wrong",
        );
        let owned = self.owners.len() as u32;
        self.expect(owned == locked.hot(hot::high_water) - 1, "blocks are owned by nobody");
    }

    fn expect(&mut self, holds: bool, problem: &str) {
        if !holds {
            self.problems.push(problem.to_string());
        }
    }

    fn own(&mut self, block: u32, owner: &'static str) {
        if let Some(other) = self.owners.insert(block, owner) {
            self.problems
                .push(format!("block {block} is owned by a {other} and a {owner}"));
        }
        if block >= self.locked.hot(hot::high_water) {
            self.problems
                .push(format!("block {block} of a {owner} is above the high-water mark"));
        }
        let kind = self.locked.kind(block);
        let wanted = match owner {
            "channel" => kind::CHANNEL,
            "message" => kind::BODY,
            "link block" => kind::LINKS,
            "member" => kind::MEMBER,
            _ => kind::OTHER,
        };
        self.expect(kind == wanted, &format!("the {owner} in block {block} has kind {kind}"));
    }

    /// A list's items, with a check of its backward links.
    fn items<H: Record, R: Item + std::fmt::Debug>(&mut self, name: &str, list: List<H, R>) -> Vec<R> {
        let mut items = Vec::new();
        let mut before = R::NONE;
        let mut next = self.locked.get(list.head, list.first);
        while next.is_some() && items.len() < ENDLESS {
            if self.locked.get(next, list.prev) != before {
                self.problems
                    .push(format!("{name}: {next:?} does not point back to {before:?}"));
                break;
            }
            items.push(next);
            before = next;
            next = self.locked.get(next, list.next);
        }
        if let Some(last) = list.last {
            let last = self.locked.get(list.head, last);
            self.expect(last == before, &format!("{name}: its end is {before:?}, not {last:?}"));
        }
        items
    }

    fn chain(&mut self, first: BlockRef, owner: &'static str) -> u32 {
        let mut count = 0;
        let mut next = first;
        while let Some(block) = next.some() {
            if self.owners.contains_key(&block.0) {
                self.problems
                    .push(format!("the chain of a {owner} runs into block {}", block.0));
                break;
            }
            self.own(block.0, owner);
            count += 1;
            next = self.locked.get(block, block::next);
        }
        count
    }

    fn listed_channels(&mut self) -> Vec<ChannelRef> {
        let locked = self.locked;
        let living = self.items("order", order());
        let count = locked.hot(hot::channels) + locked.hot(hot::wildcard_channels);
        self.expect(living.len() as u32 == count, "the count of channels is wrong");
        for &channel in &living {
            let mut id = Vec::new();
            locked.copy_id(channel, &mut id);
            self.expect(
                locked.find(locked.hash(&id), &id) == Some(channel),
                "a channel is not found by its id",
            );
            self.expect(
                !locked.has_flag(channel, channel_flag::DELETED),
                "a listed channel is deleted",
            );
        }
        let idle: BTreeSet<ChannelRef> = self.items("idle", idle()).into_iter().collect();
        let flagged = living
            .iter()
            .copied()
            .filter(|&channel| locked.has_flag(channel, channel_flag::IDLE_LISTED));
        self.expect(
            flagged.collect::<BTreeSet<_>>() == idle,
            "the idle list and the channels' flags differ",
        );
        let deleting = self.items("deleting", deleting());
        self.expect(
            deleting.len() as u32 == locked.hot(hot::deleting_count),
            "the count of deletions is wrong",
        );
        let trash = self.items("channel trash", channel_trash());
        self.expect(
            trash.len() as u32 == locked.hot(hot::channel_trash_count),
            "the count of trashed channels is wrong",
        );
        for &channel in &trash {
            self.expect(
                !locked.get(channel, channel::first).is_some(),
                "a trashed channel has messages",
            );
            self.expect(
                !locked.get(channel, channel::members).is_some(),
                "a trashed channel has members",
            );
        }
        let addresses = self.addresses();
        [living, deleting, trash, addresses].concat()
    }

    /// Client addresses: entries of the table that are in no list.
    fn addresses(&mut self) -> Vec<ChannelRef> {
        let locked = self.locked;
        let mut addresses = Vec::new();
        for bucket in 0..locked.buckets {
            let mut next = locked.get(BucketRef(bucket), BUCKET_FIRST);
            while let Some(channel) = next.some() {
                if locked.has_flag(channel, channel_flag::ADDRESS) {
                    self.expect(
                        locked.get(channel, channel::members).is_some(),
                        "an address without subscribers",
                    );
                    addresses.push(channel);
                }
                next = locked.get(channel, channel::hash_next);
            }
        }
        addresses
    }

    fn channel(&mut self, channel: ChannelRef) {
        let locked = self.locked;
        self.own(channel.0, "channel");
        self.chain(locked.get(channel, channel::id_more), "channel id");
        if let Some(known) = locked.get(channel, channel::ids).some() {
            self.own(known.0, "ids");
            self.window(channel, known);
        }
        let members = self.items(
            "members",
            List {
                head: channel,
                first: channel::members,
                last: None,
                next: member::channel_next,
                prev: member::channel_prev,
            },
        );
        let subscribers: u32 = members.iter().map(|&member| locked.get(member, member::count)).sum();
        self.expect(
            subscribers == locked.get(channel, channel::subscribers),
            "a channel's subscriber count is wrong",
        );
        for &member in &members {
            self.expect(
                locked.get(member, member::channel) == channel,
                "a member is in another channel's list",
            );
            let slot = SlotRef(locked.get(member, member::slot));
            self.expect(locked.get(slot, slot::live) != 0, "a member's slot is not in use");
            let dirty = locked.get(member, member::flags) & member_flag::DIRTY != 0;
            let behind = locked.get(member, member::next).is_some();
            let reading = locked.get(member, member::flags) & member_flag::READING != 0;
            self.expect(
                dirty || !behind || reading,
                "a member has messages to take and is not dirty",
            );
        }
        self.queue(channel, &members);
    }

    /// The channel's window of accepted ids.
    fn window(&mut self, channel: ChannelRef, window: IdsRef) {
        let locked = self.locked;
        let (mut count, mut last, mut block) = (0, EntryRef::NONE, None);
        let mut next = locked.get(window, ids::window_first);
        while let Some(entry) = next.some() {
            if block != Some(entry.0 / ENTRIES_PER_BLOCK) {
                block = Some(entry.0 / ENTRIES_PER_BLOCK);
                self.own(entry.0 / ENTRIES_PER_BLOCK, "window");
            }
            if !self.entries.insert(entry) {
                self.problems.push("a window runs in a circle".to_string());
                break;
            }
            self.expect(
                locked.in_bucket(entry),
                &format!("an id of channel {} is not in the table", channel.0),
            );
            count += 1;
            last = entry;
            next = locked.get(entry, entry::later);
        }
        self.expect(
            count == locked.get(window, ids::window_count),
            "the count of a window's ids is wrong",
        );
        self.expect(last == locked.get(window, ids::window_last), "a window's end is wrong");
    }

    /// Checks that the id table contains those of the windows, and no others.
    fn entry_buckets(&mut self) {
        let locked = self.locked;
        let mut found = BTreeSet::new();
        for bucket in 0..locked.entry_buckets {
            let mut next = locked.get(EntryBucketRef(bucket), ENTRY_BUCKET_FIRST);
            while let Some(entry) = next.some() {
                if !found.insert(entry) {
                    self.problems.push("a bucket of ids runs in a circle".to_string());
                    break;
                }
                next = locked.get(entry, entry::next);
            }
        }
        self.expect(found == self.entries, "the table of ids and the windows differ");
    }

    fn queue(&mut self, channel: ChannelRef, members: &[MemberRef]) {
        let locked = self.locked;
        let links = self.items("queue", super::messages::queue(channel));
        let (mut stored, mut stored_blocks) = (0, 0);
        let (mut seq, mut id) = (0, None);
        let newest = locked.newest_id(channel);
        let mut behind: BTreeSet<MemberRef> = BTreeSet::new();
        let mut pinned: BTreeSet<u16> = BTreeSet::new();
        for &link in &links {
            let next_seq = locked.seq_of(link);
            self.expect(next_seq > seq, "a queue is not in order");
            seq = next_seq;
            if let Some(next_id) = locked.ordered_id_of(link).filter(|_| !locked.is_of_unknown_order(link)) {
                self.expect(Some(next_id) >= id, "a message came out of order and is not marked");
                self.expect(Some(next_id) <= newest, "a channel's newest id is too low");
                id = Some(next_id);
            }
            self.expect(
                locked.get(link, link::channel) == channel,
                "a link is in another channel's queue",
            );
            self.expect(
                locked.link_flag(link, link_flag::QUEUED),
                "a queued link does not say so",
            );
            behind.extend(
                members
                    .iter()
                    .filter(|&&member| locked.get(member, member::next) == link),
            );
            let slots = || locked.all_slots();
            pinned.extend(
                slots()
                    .filter(|&slot| locked.get(slot, slot::pin_first) == link)
                    .map(|slot| slot.0),
            );
            let pending = behind.len() + pinned.len();
            let said = locked.get(link, link::pending);
            self.expect(
                said as usize == pending,
                &format!("a link has pending {said}, but {pending} wait for it"),
            );
            for slot in slots().filter(|&slot| locked.get(slot, slot::pin_last) == link) {
                pinned.remove(&slot.0);
            }
            if locked.link_flag(link, link_flag::STORED) {
                stored += 1;
                stored_blocks += locked.text_blocks_of(link);
            } else {
                self.expect(pending > 0, "a queued link is neither stored nor pending");
                if !locked.link_flag(link, link_flag::NOTICE) {
                    self.unstored_queued += 1;
                }
            }
            *self.bodies.entry(locked.body_of(link)).or_default() += 1;
        }
        let all_found = members.iter().all(|&member| {
            let next = locked.get(member, member::next);
            !next.is_some() || behind.contains(&member)
        });
        self.expect(all_found, "a member waits for a message that is not in the queue");
        self.expect(pinned.is_empty(), "a pin has no end");
        self.expect(
            stored == locked.get(channel, channel::stored),
            "a channel's count of stored messages is wrong",
        );
        self.expect(
            stored_blocks == locked.get(channel, channel::stored_blocks),
            "a channel's count of stored blocks is wrong",
        );
        if !locked.has_flag(channel, channel_flag::EVENTS) {
            self.stored += u64::from(stored);
        }
    }

    fn slots(&mut self) {
        let locked = self.locked;
        let mut live = 0;
        for slot in locked.all_slots() {
            let list = List {
                head: slot,
                first: slot::members,
                last: None,
                next: member::slot_next,
                prev: member::slot_prev,
            };
            let members = self.items("memberships", list);
            for &member in &members {
                self.own(member.0, "member");
                self.expect(
                    locked.get(member, member::slot) == slot.0,
                    "a member is in another slot's list",
                );
            }
            self.dirty(slot, &members);
            self.chain(locked.get(slot, slot::reserved), "reservation");
            let (records, problems) = locked.check_commands(slot);
            self.problems.extend(problems);
            for (record, more) in records {
                self.own(record.0, "command");
                self.chain(more, "command's text");
            }
            if locked.get(slot, slot::live) != 0 {
                live += 1;
            } else {
                self.expect(members.is_empty(), "a free slot has members");
            }
        }
        self.expect(live == locked.hot(hot::workers), "the count of workers is wrong");
    }

    fn dirty(&mut self, slot: SlotRef, members: &[MemberRef]) {
        let locked = self.locked;
        let mut next = locked.get(slot, slot::dirty_first);
        let mut last = MemberRef::NONE;
        let mut listed = BTreeSet::new();
        while let Some(member) = next.some() {
            let flags = locked.get(member, member::flags);
            self.expect(flags & member_flag::DIRTY != 0, "a dirty member does not say so");
            if flags & member_flag::GONE != 0 {
                self.own(member.0, "member");
            }
            if !listed.insert(member) {
                self.problems.push("a dirty list runs in a circle".to_string());
                break;
            }
            last = member;
            next = locked.get(member, member::dirty_next);
        }
        self.expect(
            locked.get(slot, slot::dirty_last) == last,
            "a dirty list's end is wrong",
        );
        let said = members
            .iter()
            .filter(|&&member| locked.get(member, member::flags) & member_flag::DIRTY != 0);
        self.expect(
            said.into_iter().all(|member| listed.contains(member)),
            "a member says dirty and is not listed",
        );
    }

    fn trash(&mut self) {
        let locked = self.locked;
        let mut count = 0;
        let mut last = LinkRef::NONE;
        let mut next = locked.hot(hot::trash_first);
        while let Some(link) = next.some() {
            count += 1;
            self.expect(!locked.link_flag(link, link_flag::QUEUED), "a trashed link is queued");
            *self.bodies.entry(locked.body_of(link)).or_default() += 1;
            last = link;
            next = locked.get(link, link::next);
        }
        self.expect(
            count == locked.hot(hot::trash_count),
            "the count of trashed messages is wrong",
        );
        self.expect(last == locked.hot(hot::trash_last), "the trash's end is wrong");
    }

    fn garbage(&mut self) {
        let mut next = self.locked.hot(hot::garbage);
        while let Some(body) = next.some() {
            self.expect(!self.bodies.contains_key(&body), "garbage is still referred to");
            self.own_body(body);
            next = self.locked.get(body, body::age_next);
        }
    }

    fn own_body(&mut self, body: BodyRef) {
        let locked = self.locked;
        self.own(body.0, "message");
        self.chain(locked.get(body, body::chain), "text");
        let mut blocks = BTreeSet::new();
        let mut next = locked.get(first_link(body), link::sibling);
        while let Some(link) = next.some() {
            blocks.insert(link.0 / LINKS_PER_BLOCK);
            next = locked.get(link, link::sibling);
        }
        for block in blocks {
            self.own(block, "link block");
        }
    }

    fn bodies(&mut self) {
        let locked = self.locked;
        let mut listed = BTreeMap::new();
        for index in 0..AGE_LISTS {
            let list = List {
                head: Hot,
                first: hot::age_first.nth(index),
                last: Some(hot::age_last.nth(index)),
                next: body::age_next,
                prev: body::age_prev,
            };
            for body in self.items("age", list) {
                listed.insert(body, FIRST_AGE + index as u16);
            }
        }
        let limbo = List {
            head: Hot,
            first: hot::limbo_first,
            last: Some(hot::limbo_last),
            next: body::age_next,
            prev: body::age_prev,
        };
        for body in self.items("limbo", limbo) {
            listed.insert(body, LIMBO);
        }
        for (body, links) in std::mem::take(&mut self.bodies) {
            self.own_body(body);
            let first = first_link(body);
            let refs = locked.get(first, link::index_or_refs);
            self.expect(
                u32::from(refs) == links,
                &format!("a message has {links} links and says {refs}"),
            );
            let code = (locked.get(first, link::flags) & link_flag::LIST_MASK) >> link_flag::LIST_SHIFT;
            self.expect(
                listed.remove(&body).unwrap_or(0) == code,
                "a message is in another list than it says",
            );
            let (mut stored, mut queued) = (false, false);
            let mut next = first;
            while let Some(link) = next.some() {
                stored |= locked.link_flag(link, link_flag::STORED);
                queued |= locked.link_flag(link, link_flag::QUEUED);
                next = locked.get(link, link::sibling);
            }
            let right = match code {
                0 => !queued,
                LIMBO => queued && !stored,
                _ => stored,
            };
            self.expect(
                right,
                &format!("a message is in list {code}, stored {stored}, queued {queued}"),
            );
        }
        self.expect(listed.is_empty(), "a list holds a message that nobody has");
    }

    fn free(&mut self) {
        let count = self.chain(self.locked.hot(hot::free), "free block");
        self.expect(
            count == self.locked.hot(hot::free_count),
            "the count of free blocks is wrong",
        );
    }
}
