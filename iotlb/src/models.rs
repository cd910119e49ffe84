//! The section protocol under loom: all interleavings of small cases, and of each a twin that is
//! broken on purpose and must be caught.
//!
//! In each case a table entry leads to a page; `GOOD` in the page is what a device may use, and the
//! writer destroys it once the drain says that nobody is left.

mod shortcuts;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

use crate::section::{self, FIRST_EPOCH, UNSEEN};
use crate::sync::{Ordering, Word};

/// What a page holds while it may be used.
const GOOD: u64 = 7;

/// What a page holds after its reuse.
const REUSED: u64 = 0;

/// Preemptions that loom tries in one run; the broken twins need at most two.
const PREEMPTIONS: usize = 3;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    fn fence(order: Ordering) {
        fence(order);
    }
}

/// A word whose full fences do nothing.
struct Unfenced(AtomicU64);

impl Word for Unfenced {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }

    fn fence(order: Ordering) {
        if order != Ordering::SeqCst {
            fence(order);
        }
    }
}

/// A word whose releases release nothing.
struct Unreleased(AtomicU64);

impl Word for Unreleased {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    fn store(&self, value: u64, _: Ordering) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn fence(order: Ordering) {
        fence(order);
    }
}

/// Makes a word; loom's can be made inside a model only.
trait New {
    fn new(value: u64) -> Self;
}

impl New for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }
}

impl New for Unfenced {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
}

impl New for Unreleased {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
}

/// What both sides share: one epoch, one reader, one entry that leads to one of two pages, one pin.
struct Shared<E, S> {
    epoch: E,
    slot: S,
    /// 0, or the number of a page plus 1.
    entry: AtomicU64,
    pages: [AtomicU64; 2],
    pin: AtomicU64,
    parked: AtomicU64,
}

impl<E: Word + New, S: Word + New> Shared<E, S> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: E::new(FIRST_EPOCH),
            slot: S::new(section::IDLE),
            entry: AtomicU64::new(1),
            pages: [AtomicU64::new(GOOD), AtomicU64::new(REUSED)],
            pin: AtomicU64::new(0),
            parked: AtomicU64::new(0),
        })
    }

    fn page(&self, number: u64) -> &AtomicU64 {
        &self.pages[usize::try_from(number - 1).unwrap()]
    }

    /// Walks, as `View::load` does, and uses what it finds.
    fn walk_and_use(&self) {
        let found = self.walk();
        self.use_page(found);
    }

    fn walk(&self) -> u64 {
        let found = self.entry.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        found
    }

    fn use_page(&self, found: u64) {
        if found != 0 {
            let page = self.page(found).load(Ordering::Relaxed);
            assert_eq!(page, GOOD, "used page {found} after its reuse");
        }
    }

    /// W2 to W4, for the drain that begins `new`.
    fn drain(&self, new: u64) {
        section::publish(&self.epoch, new);
        while !section::has_passed(&self.slot, new) {
            thread::yield_now();
        }
    }

    fn reuse(&self, number: u64) {
        self.page(number).store(REUSED, Ordering::Relaxed);
    }
}

/// A reader as `Reader` is: one remembered translation, good for the epoch that was seen last.
struct Model<'s, E, S> {
    shared: &'s Shared<E, S>,
    seen: u64,
    known: Option<u64>,
    /// What the broken twins leave out.
    flushes: bool,
    looks_at_state: bool,
}

impl<'s, E: Word + New, S: Word + New> Model<'s, E, S> {
    fn new(shared: &'s Shared<E, S>) -> Self {
        Self { shared, seen: UNSEEN, known: None, flushes: true, looks_at_state: true }
    }

    /// As `Reader::begin`; false if accesses are parked.
    fn begin(&mut self) -> bool {
        let slot = &self.shared.slot;
        let now = section::enter(&self.shared.epoch, slot, self.seen);
        if now == self.seen {
            return true;
        }
        section::acquire::<S>();
        if self.looks_at_state && self.shared.parked.load(Ordering::Acquire) != 0 {
            section::leave(slot);
            return false;
        }
        if self.flushes {
            self.known = None;
        }
        self.seen = now;
        section::advance_to(slot, now);
        true
    }

    /// One section: translate, remember, use.
    fn section(&mut self) {
        if self.begin() {
            let found = self.known.unwrap_or_else(|| self.shared.walk());
            self.known = Some(found).filter(|found| *found != 0);
            self.shared.use_page(found);
            section::leave(&self.shared.slot);
        }
    }
}

fn search(case: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(case);
}

/// True if loom finds an execution in which `case` fails.
fn is_caught(case: impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static) -> bool {
    std::panic::catch_unwind(|| search(case)).is_err()
}

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

/// A pin: the page is used after the section's end.
fn pin(in_section: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        let theirs = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let mut reader = Model::new(&theirs);
            assert!(reader.begin());
            let found = theirs.walk();
            if in_section {
                theirs.pin.store(1, Ordering::Relaxed);
            }
            section::leave(&theirs.slot);
            theirs.pin.store(1, Ordering::Relaxed);
            theirs.use_page(found);
            theirs.pin.store(0, Ordering::Release);
        });
        shared.entry.store(0, Ordering::Release);
        shared.drain(FIRST_EPOCH + 1);
        while shared.pin.load(Ordering::Acquire) != 0 {
            thread::yield_now();
        }
        shared.reuse(1);
        reader.join().unwrap();
    }
}

#[test]
fn a_pinned_page_is_not_reused_before_the_pin_is_gone() {
    search(pin(true));
}

#[test]
fn a_pin_taken_after_the_section_is_caught() {
    assert!(is_caught(pin(false)));
}

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
        shared.parked.store(1, Ordering::Release);
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

/// Two drains in a row: a reader that publishes the first epoch late must not be lost to the
/// second.
#[test]
fn a_reader_between_two_epochs_is_waited_for_by_both_drains() {
    search(|| {
        let shared = Shared::<AtomicU64, AtomicU64>::new();
        shared.page(2).store(GOOD, Ordering::Relaxed);
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
