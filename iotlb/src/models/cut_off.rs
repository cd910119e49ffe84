//! Cut-off: the drain goes on without a stuck reader, which is counted, and which begins no section
//! afterwards. Other readers of its endpoint are refused as well, and waited for once more.

use super::{GOOD, Model, PROMISE, Shared, is_caught, search};
use crate::abi::State;
use crate::section::{self, FIRST_EPOCH};
use crate::sync::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

type Words = Shared<AtomicU64, AtomicU64>;

/// What a broken twin does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// The writer goes on without saying so.
    NotCounted,
    /// No epoch begins after the reader was refused.
    NoNewEpoch,
    /// The new epoch begins before the reader is refused.
    RefusesLate,
    /// The reader begins sections whatever it was told.
    IgnoresState,
    /// The others of the endpoint are not waited for.
    DropsSiblings,
}

/// As `Hub::drain` with a bound that may be over at any moment. True if it cut the reader off.
fn drain_or_cut_off(shared: &Words, wrong: Wrong) -> bool {
    section::publish(&shared.epoch, FIRST_EPOCH + 1);
    if section::has_passed(&shared.slot, FIRST_EPOCH + 1) || wrong == Wrong::NotCounted {
        return false;
    }
    refuse(shared, wrong);
    true
}

/// As `Hub::give_up`, and the new epoch at the end of the drain.
fn refuse(shared: &Words, wrong: Wrong) {
    let begin = || section::publish(&shared.epoch, FIRST_EPOCH + 2);
    if wrong == Wrong::RefusesLate {
        begin();
    }
    shared.set_state(State::CutOff);
    if ![Wrong::RefusesLate, Wrong::NoNewEpoch].contains(&wrong) {
        begin();
    }
}

/// A reader that is late, or stuck for good, as loom likes.
fn stuck(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Words::new();
        let is_over = Arc::new(AtomicU64::new(0));
        let (theirs, their_end) = (Arc::clone(&shared), Arc::clone(&is_over));
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            reader.looks_at_state = wrong != Wrong::IgnoresState;
            let mut saw_reused = false;
            for _ in 0..3 {
                let is_refused = their_end.load(Ordering::Acquire) == 1;
                if !reader.begin() {
                    continue;
                }
                assert!(!is_refused, "{PROMISE}: a section began after the cut-off");
                let found = theirs.walk();
                saw_reused |= found != 0 && theirs.held(found) != GOOD;
                section::leave(&theirs.slot);
            }
            saw_reused
        });
        shared.entry.store(0, Ordering::Release);
        let is_cut_off = drain_or_cut_off(&shared, wrong);
        shared.reuse(1);
        is_over.store(is_cut_off.into(), Ordering::Release);
        let saw_reused = reader.join().unwrap();
        assert!(!saw_reused || is_cut_off, "{PROMISE}: stale, and nobody was counted");
    }
}

#[test]
fn a_reader_that_is_not_waited_for_is_counted_and_begins_no_section_afterwards() {
    search(stuck(Wrong::Nothing));
}

#[test]
fn a_drain_that_goes_on_and_counts_nobody_is_caught() {
    assert!(is_caught(stuck(Wrong::NotCounted)));
}

#[test]
fn a_cut_off_without_a_new_epoch_is_caught() {
    assert!(is_caught(stuck(Wrong::NoNewEpoch)));
}

#[test]
fn an_epoch_that_begins_before_the_refusal_is_caught() {
    assert!(is_caught(stuck(Wrong::RefusesLate)));
}

#[test]
fn a_reader_that_does_not_look_whether_it_is_refused_is_caught() {
    assert!(is_caught(stuck(Wrong::IgnoresState)));
}

/// An honest reader whose endpoint is cut off because of another process: it is waited for until it
/// has heard of it, and only then forgotten.
fn sibling(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Words::new();
        shared.page(2).store(GOOD, Ordering::Relaxed);
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            (0..3).for_each(|_| reader.section());
        });
        shared.entry.store(2, Ordering::Release);
        shared.drain(FIRST_EPOCH + 1);
        refuse(&shared, wrong);
        shared.reuse(1);
        if wrong != Wrong::DropsSiblings {
            shared.drain(FIRST_EPOCH + 3);
        }
        // forgotten: this one waits for nobody
        shared.entry.store(0, Ordering::Release);
        section::publish(&shared.epoch, FIRST_EPOCH + 4);
        shared.reuse(2);
        reader.join().unwrap();
    }
}

#[test]
fn an_honest_reader_of_a_cut_off_endpoint_uses_nothing_stale_to_its_end() {
    search(sibling(Wrong::Nothing));
}

#[test]
fn forgetting_an_honest_reader_before_it_has_heard_is_caught() {
    assert!(is_caught(sibling(Wrong::DropsSiblings)));
}
