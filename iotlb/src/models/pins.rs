//! Pins: accesses that outlive their section.

use super::{Model, Shared, is_caught, search};
use crate::link::{give_bit, take_bit};
use crate::section::{self, FIRST_EPOCH};
use crate::sync::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

/// What a pin's words say: the range that the writer withdraws, or another one.
const WITHDRAWN: u64 = 1;
const ANOTHER: u64 = 2;

/// The place of one pin; its last owner pinned another range.
struct Pins {
    used: AtomicU64,
    range: AtomicU64,
}

/// What is done in the wrong order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// The pin is taken after the section.
    TakenLate,
    /// The section ends before the pin says what it is for.
    FilledLate,
    /// The writer looks for pins before the sections are over.
    SoughtEarly,
}

impl Pins {
    fn new() -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), range: AtomicU64::new(ANOTHER) })
    }

    /// As `Pin::new`, in a section that [`leave`](section::leave) ends.
    fn pin(&self, wrong: Wrong, leave: impl Fn()) -> usize {
        let fill = || self.range.store(WITHDRAWN, Ordering::Relaxed);
        if wrong == Wrong::TakenLate {
            leave();
        }
        let index = take_bit(&self.used).unwrap();
        if wrong == Wrong::FilledLate {
            leave();
        }
        fill();
        if ![Wrong::TakenLate, Wrong::FilledLate].contains(&wrong) {
            leave();
        }
        index
    }

    /// As `Connection::has_pin`.
    fn are_in_the_way(&self) -> bool {
        self.used.load(Ordering::Acquire) != 0 && self.range.load(Ordering::Relaxed) == WITHDRAWN
    }

    fn await_none(&self) {
        while self.are_in_the_way() {
            thread::yield_now();
        }
    }
}

/// The page is used after the section's end, under a pin.
fn pinned(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let (shared, pins) = (Shared::<AtomicU64, AtomicU64>::new(), Pins::new());
        let (theirs, their_pins) = (Arc::clone(&shared), Arc::clone(&pins));
        let reader = thread::spawn(move || {
            assert!(Model::new(&theirs).begin());
            let found = theirs.walk();
            let pin = their_pins.pin(wrong, || section::leave(&theirs.slot));
            theirs.use_page(found);
            give_bit(&their_pins.used, pin);
        });
        shared.entry.store(0, Ordering::Release);
        if wrong == Wrong::SoughtEarly {
            section::publish(&shared.epoch, FIRST_EPOCH + 1);
            pins.await_none();
        }
        shared.drain(FIRST_EPOCH + 1);
        if wrong != Wrong::SoughtEarly {
            pins.await_none();
        }
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn a_pinned_page_is_not_reused_before_the_pin_is_gone() {
    search(pinned(Wrong::Nothing));
}

#[test]
fn a_pin_taken_after_the_section_is_caught() {
    assert!(is_caught(pinned(Wrong::TakenLate)));
}

#[test]
fn a_pin_that_says_after_the_section_what_it_is_for_is_caught() {
    assert!(is_caught(pinned(Wrong::FilledLate)));
}

#[test]
fn a_writer_that_looks_for_pins_before_the_sections_are_over_is_caught() {
    assert!(is_caught(pinned(Wrong::SoughtEarly)));
}
