//! Credit: bounds events in flight by count and bytes; no credit, no fetch.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

/// The bound of one source.
#[derive(Debug)]
pub struct Credit {
    events: Semaphore,
    bytes: Semaphore,
    max_events: usize,
    max_bytes: usize,
}

/// The right to have one event in flight. Returned on drop.
#[derive(Debug)]
pub struct Permit {
    credit: Arc<Credit>,
    bytes: u32,
}

impl Credit {
    /// Semaphores count in `u32`; 4 GiB in flight is more than any source needs.
    pub const MAX_BYTES: usize = u32::MAX as usize;

    pub fn new(max_events: usize, max_bytes: usize) -> Arc<Self> {
        let max_bytes = max_bytes.clamp(1, Self::MAX_BYTES);
        let max_events = max_events.clamp(1, Self::MAX_BYTES);
        Arc::new(Self {
            events: Semaphore::new(max_events),
            bytes: Semaphore::new(max_bytes),
            max_events,
            max_bytes,
        })
    }

    /// Waits until an event of this size may enter. An event larger than the whole bound enters alone.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Permit {
        let bytes = self.clamp(bytes);
        // The semaphores are never closed, so both waits end in a permit. Dropping this future between the two returns
        // the first one.
        let event_permit = self.events.acquire().await;
        let bytes_permit = self.bytes.acquire_many(bytes).await;
        event_permit
            .into_iter()
            .chain(bytes_permit)
            .for_each(SemaphorePermit::forget);
        Permit {
            credit: Arc::clone(self),
            bytes,
        }
    }

    /// Takes credit for several events at once, or none.
    pub fn try_reserve(self: &Arc<Self>, sizes: impl Iterator<Item = usize>) -> Option<Vec<Permit>> {
        sizes.map(|bytes| self.try_reserve_one(bytes)).collect()
    }

    pub fn try_reserve_one(self: &Arc<Self>, bytes: usize) -> Option<Permit> {
        let bytes = self.clamp(bytes);
        let event = self.events.try_acquire().ok()?;
        self.bytes.try_acquire_many(bytes).ok()?.forget();
        event.forget();
        Some(Permit {
            credit: Arc::clone(self),
            bytes,
        })
    }

    /// Events that may still enter.
    pub fn room(&self) -> usize {
        self.events.available_permits()
    }

    /// Events in flight now.
    pub fn in_flight(&self) -> usize {
        self.max_events.saturating_sub(self.events.available_permits())
    }

    /// Bytes in flight now.
    pub fn bytes_in_flight(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes.available_permits())
    }

    fn clamp(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.clamp(1, self.max_bytes)).unwrap_or(u32::MAX)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.credit.events.add_permits(1);
        self.credit.bytes.add_permits(self.bytes as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_permits_come_back() {
        let credit = Credit::new(2, 100);
        let a = credit.try_reserve_one(60).unwrap();
        assert!(credit.try_reserve_one(60).is_none(), "bytes");
        let b = credit.try_reserve_one(40).unwrap();
        assert!(credit.try_reserve_one(0).is_none(), "events");
        assert_eq!((credit.in_flight(), credit.bytes_in_flight()), (2, 100));
        drop((a, b));
        assert_eq!((credit.in_flight(), credit.bytes_in_flight()), (0, 0));
        assert!(credit.try_reserve([50, 51].into_iter()).is_none());
        assert_eq!(credit.in_flight(), 0, "all or nothing");
    }

    #[test]
    fn an_event_larger_than_the_bound_goes_alone() {
        let credit = Credit::new(5, 10);
        let big = credit.try_reserve_one(1000).unwrap();
        assert!(credit.try_reserve_one(1).is_none());
        drop(big);
        assert!(credit.try_reserve_one(1).is_some());
    }
}
