//! Parking: what a reader is told takes effect with the next epoch.

use super::{Model, Shared, is_caught, search};
use crate::abi::State;
use crate::section::FIRST_EPOCH;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

/// Parking: nothing is withdrawn, but nobody may be inside after the drain.
fn park(looks_at_state: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            reader.looks_at_state = looks_at_state;
            reader.section();
            reader.section();
        });
        shared.set_state(State::Parked);
        shared.drain(FIRST_EPOCH + 1);
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn after_a_drain_no_reader_of_a_parked_endpoint_is_inside() {
    search(park(true));
}

#[test]
fn a_reader_that_does_not_look_at_its_state_is_caught() {
    assert!(is_caught(park(false)));
}
