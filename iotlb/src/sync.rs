//! Atomics, and what of them an ordering argument needs: everything that takes part in one imports
//! from here.
//!
//! Words in shared memory are the standard library's. The section protocol is written over
//! [`Word`], so that `models` can search its interleavings with loom's words, and break it by words
//! that do less.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A 64-bit atomic, and the fences that go with it.
pub(crate) trait Word {
    /// Loads the word.
    fn load(&self, order: Ordering) -> u64;

    /// Stores `value`.
    fn store(&self, value: u64, order: Ordering);

    /// Sets `bits` and returns the word as it was.
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;

    /// Clears all but `bits` and returns the word as it was.
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;

    /// Orders what comes before and after.
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    #[inline]
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        Self::fetch_or(self, bits, order)
    }

    #[inline]
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        Self::fetch_and(self, bits, order)
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}
