//! Doubly linked lists in the zone.

use super::layout::{Field, Word};
use super::memory::{Locked, Record};

/// A list: the fields of its ends, and the fields that link its items.
pub struct List<H, R> {
    pub head: H,
    pub first: Field<H, R>,
    /// None for lists that only grow at the front.
    pub last: Option<Field<H, R>>,
    pub next: Field<R, R>,
    pub prev: Field<R, R>,
}

/// A reference that can be an item.
pub trait Item: Record + Word + PartialEq {
    const NONE: Self;

    fn is_some(self) -> bool {
        self != Self::NONE
    }
}

macro_rules! item {
    ($($name:ident)*) => { $(
        impl Item for super::layout::$name {
            const NONE: Self = super::layout::$name::NONE;
        }
    )* };
}
item!(ChannelRef BodyRef LinkRef MemberRef CommandRef);

impl Locked<'_> {
    pub fn push_back<H: Record, R: Item>(&mut self, list: List<H, R>, item: R) {
        let last_field = list.last.expect("this list grows at its end");
        let last = self.get(list.head, last_field);
        self.set(item, list.next, R::NONE);
        self.set(item, list.prev, last);
        if last.is_some() {
            self.set(last, list.next, item);
        } else {
            self.set(list.head, list.first, item);
        }
        self.set(list.head, last_field, item);
    }

    /// As [`Locked::push_back`], for an item not yet reachable in the zone: its contents need no undo log.
    pub fn push_back_new<H: Record, R: Item>(&mut self, list: List<H, R>, item: R) {
        let last_field = list.last.expect("this list grows at its end");
        let last = self.get(list.head, last_field);
        self.init(item, list.next, R::NONE);
        self.init(item, list.prev, last);
        if last.is_some() {
            self.set(last, list.next, item);
        } else {
            self.set(list.head, list.first, item);
        }
        self.set(list.head, last_field, item);
    }

    pub fn push_front<H: Record, R: Item>(&mut self, list: List<H, R>, item: R) {
        let first = self.get(list.head, list.first);
        self.set(item, list.prev, R::NONE);
        self.set(item, list.next, first);
        if first.is_some() {
            self.set(first, list.prev, item);
        } else if let Some(last) = list.last {
            self.set(list.head, last, item);
        }
        self.set(list.head, list.first, item);
    }

    pub fn unlink<H: Record, R: Item>(&mut self, list: List<H, R>, item: R) {
        let next = self.get(item, list.next);
        let prev = self.get(item, list.prev);
        if prev.is_some() {
            self.set(prev, list.next, next);
        } else {
            self.set(list.head, list.first, next);
        }
        if next.is_some() {
            self.set(next, list.prev, prev);
        } else if let Some(last) = list.last {
            self.set(list.head, last, prev);
        }
    }
}
