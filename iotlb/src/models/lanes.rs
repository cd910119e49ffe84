//! Readers come and go while the daemon drains: which slots are in use is a word of its own.

use super::{Model, Shared, is_caught, search};
use crate::link::{give_bit, take_bit};
use crate::section::{self, FIRST_EPOCH};
use crate::sync::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

/// A reader is made, has one section, and is dropped. The writer looks after its fence who there is,
/// or before.
fn comes_and_goes(looks_after: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        let used = Arc::new(AtomicU64::new(0));
        let (theirs, their_used) = (Arc::clone(&shared), Arc::clone(&used));
        let reader = thread::spawn(move || {
            let lane = take_bit(&*their_used).unwrap();
            Model::new(&theirs).section();
            give_bit(&*their_used, lane);
        });
        shared.entry.store(0, Ordering::Release);
        let before = AtomicU64::new(used.load(Ordering::Acquire));
        section::publish(&shared.epoch, FIRST_EPOCH + 1);
        let used = if looks_after { &*used } else { &before };
        while !section::all_have_passed(used, |_| Some(&shared.slot), FIRST_EPOCH + 1) {
            thread::yield_now();
        }
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn a_reader_that_comes_during_a_drain_is_waited_for_or_begins_at_its_epoch() {
    search(comes_and_goes(true));
}

#[test]
fn a_writer_that_looks_before_its_fence_who_there_is_is_caught() {
    assert!(is_caught(comes_and_goes(false)));
}
