//! Series of messages: many under one hold of the lock, and one wake-up for all of them.

use super::blocks::BLOCKS_PER_HOLD;
use super::layout::*;
use super::messages::Shape;
use super::publishing::Filled;
use super::{Now, Published, Refusal, Terms, Worker};

/// Links that one hold of the lock appends: as long a hold as that of a drain or a listing.
const LINKS_PER_HOLD: usize = 64;
/// Messages after which held wake-ups are sent: one drain takes no more, and while a worker's wake-up is held, other
/// publishers do not wake it either.
const MESSAGES_PER_WAKE: usize = 1024;

/// One message of a series.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    /// At least one; in order, duplicates twice.
    pub ids: &'a [&'a [u8]],
    pub event_id: Option<&'a [u8]>,
    pub event_type: Option<&'a [u8]>,
    pub text: &'a [u8],
    pub terms: Terms,
}

impl Publication<'_> {
    fn shape(&self) -> Option<Shape> {
        Shape::of(self.text.len(), self.event_id, self.event_type, self.ids.len())
    }
}

/// A series in progress. Each message is published as if alone, to all of its channels or to none; only the wake-ups
/// are delayed until this is dropped, and then sent together.
#[derive(Debug)]
pub struct Publishing<'w> {
    worker: &'w mut Worker,
    /// Messages since wake-ups were last sent.
    unannounced: usize,
}

impl<'w> Publishing<'w> {
    pub(super) fn new(worker: &'w mut Worker) -> Publishing<'w> {
        worker.hold_wakes();
        Publishing { worker, unannounced: 0 }
    }

    /// Publishes `posts` in order until one is refused, which leaves nothing behind. Appends the figures of their
    /// channels, in order. Returns how many were published, and why the next one was not.
    pub fn publish(
        &mut self,
        posts: &[Publication<'_>],
        now: Now,
        figures: &mut Vec<Published>,
    ) -> (usize, Option<Refusal>) {
        let mut done = 0;
        while done < posts.len() {
            let group = first_group(&posts[done..]);
            let published = self.worker.publish_together(group, now, figures);
            self.count(published);
            done += published;
            if published < group.len() {
                match self.worker.publish_alone(&posts[done], now) {
                    Ok(of_one) => figures.extend(of_one),
                    Err(refusal) => return (done, Some(refusal)),
                }
                self.count(1);
                done += 1;
            }
        }
        (done, None)
    }

    fn count(&mut self, published: usize) {
        self.unannounced += published;
        if self.unannounced >= MESSAGES_PER_WAKE {
            self.unannounced = 0;
            self.worker.send_wakes();
            self.worker.hold_wakes();
        }
    }
}

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        self.worker.send_wakes();
    }
}

/// As many posts as one hold may take; at least one.
fn first_group<'p, 'a>(posts: &'p [Publication<'a>]) -> &'p [Publication<'a>] {
    let (mut links, mut blocks) = (0, 0);
    let fits = posts.iter().take_while(|post| {
        links += post.ids.len();
        blocks += post.shape().map_or(BLOCKS_PER_HOLD, Shape::blocks);
        links <= LINKS_PER_HOLD && blocks <= BLOCKS_PER_HOLD
    });
    &posts[..fits.count().max(1)]
}

impl Worker {
    /// Starts a series of messages that are published one after the other.
    pub fn publishing(&mut self) -> Publishing<'_> {
        Publishing::new(self)
    }

    /// Publishes from the front of `posts`, under one hold, until one needs more blocks than are free. Returns how many
    /// were published.
    fn publish_together(&mut self, posts: &[Publication<'_>], now: Now, figures: &mut Vec<Published>) -> usize {
        let Some(shapes) = posts.iter().map(Publication::shape).collect::<Option<Vec<_>>>() else {
            return 0;
        };
        self.unreserve();
        if self
            .reserve(shapes.iter().map(|shape| shape.blocks()).sum(), now)
            .is_err()
        {
            self.unreserve();
            return 0;
        }
        let ends = self.fill(posts, &shapes);
        let hashes = self.hashes(posts.iter().flat_map(|post| post.ids).copied());
        for &hash in &hashes {
            self.memory().prefetch_publish(hash);
        }
        let first_figure = figures.len();
        let published = self.link(posts, &shapes, &ends, &hashes, now, figures);
        if published < posts.len() {
            self.unreserve();
        }
        self.count_duplicates(&figures[first_figure..]);
        let mut links = 0;
        for post in &posts[..published] {
            let next = links + post.ids.len();
            let of_post = &mut figures[first_figure + links..first_figure + next];
            self.trim(&hashes[links..next], post.ids, of_post);
            links = next;
        }
        published
    }

    /// Writes the messages into the reservation, one behind the other. No lock is held. Returns their last blocks.
    fn fill(&mut self, posts: &[Publication<'_>], shapes: &[Shape]) -> Vec<BlockRef> {
        let mut next = self.memory().peek(self.slot, slot::reserved);
        let fill_one = |(post, &shape): (&Publication<'_>, &Shape)| {
            let mut draft = self.start(next, shape, post.event_id, post.event_type);
            self.write(&mut draft, post.text);
            next = self.memory().peek(draft.block, block::next);
            draft.block
        };
        posts.iter().zip(shapes).map(fill_one).collect()
    }

    /// Links the messages that [`Worker::fill`] has written, each by its own mutation. Returns how many were linked.
    fn link(
        &mut self,
        posts: &[Publication<'_>],
        shapes: &[Shape],
        ends: &[BlockRef],
        hashes: &[u32],
        now: Now,
        figures: &mut Vec<Published>,
    ) -> usize {
        let (zone, limits, slot) = (self.zone, self.limits.clone(), self.slot);
        let messages: Vec<_> = posts
            .iter()
            .zip(shapes)
            .zip(ends)
            .map(|((post, &shape), &end)| Filled::new(shape, end, self.brought(post.event_id), post.terms))
            .collect();
        let mut locked = zone.memory.lock_with(&limits);
        let mut hashes = hashes;
        let mut linked = 0;
        for (post, message) in posts.iter().zip(&messages) {
            let cost = self.cost(post.ids.iter().copied()).of_publish(post.terms.idempotent);
            let (own, rest) = hashes.split_at(post.ids.len());
            hashes = rest;
            let named = own.iter().copied().zip(post.ids.iter().copied());
            if locked.lacks_room(cost, named, &limits).is_some() {
                break;
            }
            locked.begin();
            locked.advance_clock(now);
            let known = figures.len();
            match locked.publish_reserved(slot, message, post.ids, own, &limits, figures) {
                Ok(true) => {}
                // The blocks of a message that no channel accepts are freed when it is published alone.
                Ok(false) | Err(_) => {
                    figures.truncate(known);
                    break;
                }
            }
            locked.commit();
            linked += 1;
        }
        let wakes = locked.unlock();
        self.wake(wakes);
        linked
    }

    /// Publishes one message the normal way: evicts for it, and reports the reason of a refusal.
    fn publish_alone(&mut self, post: &Publication<'_>, now: Now) -> Result<Vec<Published>, Refusal> {
        let mut draft = self.draft(post.text.len(), post.event_id, post.event_type, post.ids.len(), now)?;
        self.write(&mut draft, post.text);
        self.publish(draft, post.ids, post.terms, now)
    }
}
