//! Atomics: the standard library's, or loom's when the interleavings are searched (`--cfg loom`).
//!
//! Everything that takes part in an ordering argument imports from here.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
