//! Replacement of a live entry: its leaf is copied, and one pointer stored.

use super::{GOOD, Model, Shared, is_caught, search};
use crate::section::FIRST_EPOCH;
use crate::sync::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

/// Replacement of a live entry's leaf by a filled copy; `copies_first` is what makes it right.
fn replace(copies_first: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || Model::new(&theirs).section());
        if copies_first {
            shared.page(2).store(GOOD, Ordering::Relaxed);
        }
        shared.entry.store(2, Ordering::Release);
        shared.page(2).store(GOOD, Ordering::Relaxed);
        shared.drain(FIRST_EPOCH + 1);
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn a_replaced_leaf_is_seen_old_or_new_and_never_half() {
    search(replace(true));
}

#[test]
fn a_leaf_linked_before_it_is_filled_is_caught() {
    assert!(is_caught(replace(false)));
}
