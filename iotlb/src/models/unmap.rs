//! UNMAP: publish, walk, reclaim; and what the epoch means to a private TLB.

use super::{Model, New, Shared, Unfenced, Unreleased, is_caught, search};
use crate::section::{self, FIRST_EPOCH};
use crate::sync::{Ordering, Word};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

/// Unmap: two sections of one reader against a withdrawal and the reuse of the page.
fn unmap<E, S>(flushes: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static
where
    E: Word + New + Send + Sync + 'static,
    S: Word + New + Send + Sync + 'static,
{
    move || {
        let shared = Shared::<E, S>::new();
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            reader.flushes = flushes;
            reader.section();
            reader.section();
        });
        shared.entry.store(0, Ordering::Release);
        shared.drain(FIRST_EPOCH + 1);
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn nobody_uses_a_page_that_was_reused_after_a_drain() {
    search(unmap::<AtomicU64, AtomicU64>(true));
}

#[test]
fn without_the_readers_fence_a_withdrawn_page_is_used() {
    assert!(is_caught(unmap::<AtomicU64, Unfenced>(true)));
}

#[test]
fn without_the_writers_fence_a_withdrawn_page_is_used() {
    assert!(is_caught(unmap::<Unfenced, AtomicU64>(true)));
}

#[test]
fn without_the_flush_a_withdrawn_page_is_used() {
    assert!(is_caught(unmap::<AtomicU64, AtomicU64>(false)));
}

#[test]
fn an_epoch_that_releases_nothing_lets_a_withdrawn_page_be_used() {
    assert!(is_caught(unmap::<Unreleased, AtomicU64>(true)));
}

/// Two drains in a row: a reader that publishes the first epoch late must not be lost to the
/// second.
#[test]
fn a_reader_between_two_epochs_is_waited_for_by_both_drains() {
    search(|| {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        shared.page(2).store(super::GOOD, Ordering::Relaxed);
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            assert!(reader.begin());
            theirs.walk_and_use();
            section::leave(&theirs.slot);
        });
        shared.entry.store(2, Ordering::Release);
        shared.drain(FIRST_EPOCH + 1);
        shared.reuse(1);
        shared.entry.store(0, Ordering::Release);
        shared.drain(FIRST_EPOCH + 2);
        shared.reuse(2);
        reader.join().unwrap();
    });
}
