//! Tickets of all processes: memory and key are made by the master, before the first process that needs them.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use push_stream_core::token::ticket::Book;

use crate::ffi::shared_memory;

/// Tickets that may be out at once. Memory that was never used takes no room.
const MOST: usize = 1 << 16;

/// Goes on over a reload: new processes are forked by the same master.
static BOOK: OnceLock<Book> = OnceLock::new();

/// Makes the book, unless an earlier configuration did. False if the system has no memory or random numbers for it.
pub fn prepare() -> bool {
    let make = || Book::new(words()?);
    BOOK.get().is_some() || make().is_some_and(|book| BOOK.set(book).is_ok())
}

fn words() -> Option<&'static [AtomicU64]> {
    shared_memory::words(1 + MOST)
}

/// The book; None in a process whose configuration issues no tickets.
pub fn book() -> Option<&'static Book> {
    BOOK.get()
}
