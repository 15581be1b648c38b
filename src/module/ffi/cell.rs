//! State that belongs to one nginx process.

use std::cell::RefCell;

/// A value that every entry from C may reach. It is created and used by the one thread that runs nginx's event loop.
///
/// Calls that may run other entries of this module (finalizing a request, the output filters) must not be made while it
/// is borrowed.
pub struct ProcessCell<T>(RefCell<Option<T>>);

// SAFETY: nginx calls modules on the main thread of a process only; its thread pools never run code of this module.
unsafe impl<T> Sync for ProcessCell<T> {}

impl<T> ProcessCell<T> {
    pub const fn empty() -> Self {
        ProcessCell(RefCell::new(None))
    }

    /// Stores the value.
    pub fn set(&self, value: T) {
        *self.0.borrow_mut() = Some(value);
    }

    /// Takes the value out.
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }

    /// Runs `work` on the value, if there is one. Inline, because what `work` has captured would be copied otherwise.
    #[inline(always)]
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.borrow_mut().as_mut().map(work)
    }
}
