//! Waking a worker: a flag in its slot, up from the wake-up until the worker looks for messages, and its eventfd.
//!
//! A publisher that has linked a message for a worker, and has released the lock, raises the flag; if it was down, the
//! publisher signals the eventfd. The worker lowers the flag first and takes the lock then: it finds all messages
//! linked before; later publishers find the flag down and signal again. So it is signalled once for many messages, and
//! never too seldom. If a publisher dies before it signals, the worker's next tick looks all the same.
//!
//! The lock provides the order: a worker that has not seen a message had the lock before its publisher, and lowered the
//! flag before that.

use std::sync::atomic::{AtomicU32, Ordering};

/// The word that holds the flag.
pub trait Flag {
    fn swap(&self, value: u32) -> u32;
    fn get(&self) -> u32;
}

impl Flag for AtomicU32 {
    fn swap(&self, value: u32) -> u32 {
        AtomicU32::swap(self, value, Ordering::SeqCst)
    }

    fn get(&self) -> u32 {
        self.load(Ordering::SeqCst)
    }
}

/// Raises the flag: messages wait. True if the worker is to be signalled.
pub fn raise(flag: &impl Flag) -> bool {
    flag.swap(1) == 0
}

/// Lowers the flag: the worker is about to look. (A swap, like every change of the flag: so all changes have one order,
/// at the cost of a store.)
pub fn lower(flag: &impl Flag) {
    flag.swap(0);
}

/// Was the worker woken since it last looked?
pub fn is_raised(flag: &impl Flag) -> bool {
    flag.get() != 0
}

/// Every interleaving of threads, and every state that they can then observe.
#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    impl Flag for AtomicU32 {
        fn swap(&self, value: u32) -> u32 {
            AtomicU32::swap(self, value, Ordering::SeqCst)
        }

        fn get(&self) -> u32 {
            self.load(Ordering::SeqCst)
        }
    }

    /// A worker's part of the zone.
    struct Slot {
        linked: Mutex<u32>,
        flag: AtomicU32,
        eventfd: AtomicU32,
    }

    /// The point at which a publisher dies.
    #[derive(Clone, Copy, PartialEq)]
    enum Death {
        Never,
        BeforeItRaises,
        BeforeItSignals,
    }

    impl Slot {
        fn new() -> Arc<Slot> {
            Arc::new(Slot {
                linked: Mutex::new(0),
                flag: AtomicU32::new(0),
                eventfd: AtomicU32::new(0),
            })
        }

        fn publish(&self, death: Death) {
            *self.linked.lock().unwrap() += 1;
            if death != Death::BeforeItRaises && raise(&self.flag) && death != Death::BeforeItSignals {
                self.eventfd.fetch_add(1, Ordering::AcqRel);
            }
        }

        fn take(&self) -> u32 {
            lower(&self.flag);
            std::mem::take(&mut *self.linked.lock().unwrap())
        }

        /// The number of messages that the worker takes if it was signalled.
        fn react(&self) -> u32 {
            match self.eventfd.swap(0, Ordering::AcqRel) {
                0 => 0,
                _ => self.take(),
            }
        }
    }

    /// Runs publishers beside a worker that looks `looks` times. Returns how many messages it took, and its slot.
    fn run(publishers: &[Death], looks: u32) -> (u32, Arc<Slot>) {
        let slot = Slot::new();
        let threads: Vec<_> = publishers
            .iter()
            .map(|&death| {
                let slot = slot.clone();
                thread::spawn(move || slot.publish(death))
            })
            .collect();
        let taken = (0..looks).map(|_| slot.react()).sum();
        for thread in threads {
            thread.join().unwrap();
        }
        (taken, slot)
    }

    #[test]
    fn no_message_stays_unnoticed() {
        for (publishers, looks) in [(1, 2), (2, 1), (2, 2)] {
            loom::model(move || {
                let (mut taken, slot) = run(&vec![Death::Never; publishers], looks);
                // Every message not yet taken was signalled.
                taken += slot.react();
                assert_eq!(taken, publishers as u32);
                // The flag may be up without a signal, but the next publisher's signal arrives.
                slot.react();
                slot.publish(Death::Never);
                assert_eq!(slot.react(), 1);
            });
        }
    }

    #[test]
    fn a_tick_finds_what_a_dead_publisher_did_not_tell() {
        for death in [Death::BeforeItRaises, Death::BeforeItSignals] {
            loom::model(move || {
                let (mut taken, slot) = run(&[death, Death::Never], 1);
                taken += slot.react();
                // The tick.
                taken += slot.take();
                assert_eq!(taken, 2);
                // And the next publisher's signal arrives again.
                slot.react();
                slot.publish(Death::Never);
                assert_eq!(slot.react(), 1);
            });
        }
    }

    #[test]
    fn a_worker_signals_nobody_for_itself() {
        loom::model(|| {
            let slot = Slot::new();
            let other = {
                let slot = slot.clone();
                thread::spawn(move || slot.publish(Death::Never))
            };
            // It publishes, and looks because the flag is up, whichever thread has raised it.
            *slot.linked.lock().unwrap() += 1;
            raise(&slot.flag);
            let mut taken = if is_raised(&slot.flag) { slot.take() } else { 0 };
            other.join().unwrap();
            taken += slot.react();
            if is_raised(&slot.flag) {
                taken += slot.take();
            }
            assert_eq!(taken, 2);
        });
    }
}
