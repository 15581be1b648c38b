//! Whose connection each subscriber is: the subject of its access token, as a keyed hash.
//!
//! Beside the slab, in chunks that belong to its: a subject takes 8 bytes, and nothing where there are no tokens.

use std::collections::VecDeque;

use push_stream_core::store::Command;
use push_stream_core::token::subject::Subject;
use push_stream_core::wire::dismissal::Done;

use super::subscriber::SubscriberId;

/// The kind of the command to send a subject away; its text and its answer are those of [`dismissal`].
///
/// [`dismissal`]: push_stream_core::wire::dismissal
pub const DISMISS: u16 = 2;

/// Subjects in one chunk of memory.
const CHUNK: usize = 256;

/// The subjects of this worker's subscribers, by index.
#[derive(Default)]
pub struct Subjects {
    chunks: Vec<Option<Box<Chunk>>>,
}

struct Chunk {
    subjects: [Option<Subject>; CHUNK],
    count: u32,
}

const _: () = assert!(size_of::<Option<Subject>>() == 8);

impl Subjects {
    pub fn set(&mut self, index: u32, subject: Subject) {
        let (number, place) = (index as usize / CHUNK, index as usize % CHUNK);
        if number >= self.chunks.len() {
            self.chunks.resize_with(number + 1, || None);
        }
        let chunk = self.chunks[number].get_or_insert_with(|| {
            Box::new(Chunk {
                subjects: [None; CHUNK],
                count: 0,
            })
        });
        if chunk.subjects[place].replace(subject).is_none() {
            chunk.count += 1;
        }
    }

    pub fn get(&self, index: u32) -> Option<Subject> {
        let chunk = self.chunks.get(index as usize / CHUNK)?.as_deref()?;
        chunk.subjects[index as usize % CHUNK]
    }

    pub fn remove(&mut self, index: u32) {
        let Some(place) = self.chunks.get_mut(index as usize / CHUNK) else {
            return;
        };
        let Some(chunk) = place else {
            return;
        };
        if chunk.subjects[index as usize % CHUNK].take().is_some() {
            chunk.count -= 1;
            if chunk.count == 0 {
                *place = None;
            }
        }
    }

    /// The subscribers of a subject, by index: one look at each, which takes a millisecond or two for a million.
    pub fn of(&self, subject: Subject) -> Vec<u32> {
        let mut found = Vec::new();
        for (number, chunk) in self.chunks.iter().enumerate() {
            for (place, known) in chunk.iter().flat_map(|chunk| chunk.subjects.iter().enumerate()) {
                if *known == Some(subject) {
                    found.push((number * CHUNK + place) as u32);
                }
            }
        }
        found
    }
}

/// Commands to send subjects away that are being obeyed.
#[derive(Default)]
pub struct Dismissals(pub VecDeque<Dismissal>);

pub struct Dismissal {
    pub command: Command,
    /// Still to be ended.
    pub ids: Vec<SubscriberId>,
    pub done: Done,
}

impl Dismissals {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
