//! The slab: all subscribers of this worker, by index.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
#[cfg(target_arch = "x86_64")]
use std::ptr;

use super::subscriber::{Subscriber, SubscriberId};

/// Subscribers in one chunk of memory.
const CHUNK: usize = 256;

/// All subscribers by index. They lie next to each other in the order of their arrival, as in their channels' lists;
/// memory is allocated and freed in chunks.
#[derive(Default)]
pub struct Slab {
    chunks: Vec<Option<Box<Chunk>>>,
    /// All chunks before this one are full.
    first_with_room: usize,
    len: usize,
    /// Generation of the last subscriber inserted.
    generation: u32,
}

struct Chunk {
    entries: Box<[Entry]>,
    /// One bit for each entry: is it taken?
    taken: [u64; CHUNK / 64],
}

struct Entry {
    generation: u32,
    subscriber: Option<Subscriber>,
}

/// Bounds memory for a million subscribers: with the generation, three cache lines each.
const _: () = assert!(size_of::<Entry>() <= 176);

impl Chunk {
    fn new() -> Box<Chunk> {
        let entry = || Entry {
            generation: 0,
            subscriber: None,
        };
        Box::new(Chunk {
            entries: std::iter::repeat_with(entry).take(CHUNK).collect(),
            taken: [0; CHUNK / 64],
        })
    }

    fn is_empty(&self) -> bool {
        self.taken == [0; CHUNK / 64]
    }

    /// A free place.
    fn room(&self) -> Option<usize> {
        let word = self.taken.iter().position(|&word| word != u64::MAX)?;
        Some(word * 64 + self.taken[word].trailing_ones() as usize)
    }
}

impl Slab {
    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        let chunk = self.chunks.get_mut(index as usize / CHUNK)?.as_deref_mut()?;
        chunk.entries.get_mut(index as usize % CHUNK)
    }

    /// The subscriber at this index.
    pub fn at(&mut self, index: u32) -> Option<&mut Subscriber> {
        self.entry(index)?.subscriber.as_mut()
    }

    /// The subscriber at this index, and its id.
    pub fn named(&mut self, index: u32) -> Option<(SubscriberId, &mut Subscriber)> {
        let Entry { generation, subscriber } = self.entry(index)?;
        let id = SubscriberId {
            index,
            generation: *generation,
        };
        Some((id, subscriber.as_mut()?))
    }

    /// The subscriber with this id, if it still exists.
    pub fn get(&mut self, id: SubscriberId) -> Option<&mut Subscriber> {
        let entry = self.entry(id.index).filter(|entry| entry.generation == id.generation)?;
        entry.subscriber.as_mut()
    }

    /// The id of the subscriber at this index.
    pub fn id(&mut self, index: u32) -> Option<SubscriberId> {
        self.named(index).map(|(id, _)| id)
    }

    /// Prefetches the part of a subscriber that every message touches, while another one is handled.
    pub fn prefetch(&self, index: u32) {
        #[cfg(target_arch = "x86_64")]
        if let Some(Some(chunk)) = self.chunks.get(index as usize / CHUNK)
            && let Some(entry) = chunk.entries.get(index as usize % CHUNK)
        {
            // SAFETY: fetching has no effect but on the cache.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(entry).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = index;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// End of the range of indices.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    pub fn insert(&mut self, subscriber: Subscriber) -> SubscriberId {
        let (number, place) = self.room();
        // Generations repeat so late that no id of the old one is left.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let generation = self.generation;
        let chunk = self.chunks[number].get_or_insert_with(Chunk::new);
        chunk.taken[place / 64] |= 1 << (place % 64);
        chunk.entries[place] = Entry {
            generation,
            subscriber: Some(subscriber),
        };
        self.len += 1;
        SubscriberId {
            index: (number * CHUNK + place) as u32,
            generation,
        }
    }

    /// The first free place: number of its chunk, and index in that.
    fn room(&mut self) -> (usize, usize) {
        while let Some(chunk) = self.chunks.get(self.first_with_room) {
            match chunk {
                None => return (self.first_with_room, 0),
                Some(chunk) => {
                    if let Some(place) = chunk.room() {
                        return (self.first_with_room, place);
                    }
                }
            }
            self.first_with_room += 1;
        }
        self.chunks.push(None);
        (self.first_with_room, 0)
    }

    pub fn take(&mut self, id: SubscriberId) -> Option<Subscriber> {
        let entry = self.entry(id.index).filter(|entry| entry.generation == id.generation)?;
        let subscriber = entry.subscriber.take()?;
        let (number, place) = (id.index as usize / CHUNK, id.index as usize % CHUNK);
        if let Some(chunk) = &mut self.chunks[number] {
            chunk.taken[place / 64] &= !(1 << (place % 64));
            if chunk.is_empty() {
                self.chunks[number] = None;
            }
        }
        self.first_with_room = self.first_with_room.min(number);
        self.len -= 1;
        Some(subscriber)
    }
}
