//! The section protocol under loom: all interleavings of small cases, and of each a twin that is
//! broken on purpose and must be caught.
//!
//! In each case a table entry leads to a page; `GOOD` in the page is what a device may use, and the
//! writer destroys it once the drain says that nobody is left.

mod attach;
mod cut_off;
mod lanes;
mod memory;
mod park;
mod pins;
mod replace;
mod shortcuts;
mod unmap;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

use crate::abi::State;
use crate::section::{self, FIRST_EPOCH, UNSEEN};
use crate::sync::{Ordering, Word};

/// What a page holds while it may be used.
const GOOD: u64 = 7;

/// What a page holds after its reuse.
const REUSED: u64 = 0;

/// How each assertion begins that a broken twin must fail.
const PROMISE: &str = "broken promise";

/// Preemptions that loom tries in one run; the broken twins need at most two.
const PREEMPTIONS: usize = 3;

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        Self::fetch_or(self, bits, order)
    }

    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        Self::fetch_and(self, bits, order)
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

    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.0.fetch_and(bits, order)
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

    fn fetch_or(&self, bits: u64, _: Ordering) -> u64 {
        self.0.fetch_or(bits, Ordering::Relaxed)
    }

    fn fetch_and(&self, bits: u64, _: Ordering) -> u64 {
        self.0.fetch_and(bits, Ordering::Relaxed)
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

/// What both sides share: one epoch, one reader, one entry that leads to one of two pages.
struct Shared<E, S> {
    epoch: E,
    slot: S,
    /// 0, or the number of a page plus 1.
    entry: AtomicU64,
    pages: [AtomicU64; 2],
    /// [`State::raw`].
    state: AtomicU64,
}

impl<E: Word + New, S: Word + New> Shared<E, S> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: E::new(FIRST_EPOCH),
            slot: S::new(section::IDLE),
            entry: AtomicU64::new(1),
            pages: [AtomicU64::new(GOOD), AtomicU64::new(REUSED)],
            state: AtomicU64::new(State::Running.raw().into()),
        })
    }

    /// As `Connection::set_state`.
    fn set_state(&self, state: State) {
        self.state.store(state.raw().into(), Ordering::Release);
    }

    /// As `Link::state`.
    fn state(&self) -> State {
        State::from_raw(u32::try_from(self.state.load(Ordering::Acquire)).unwrap())
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

    fn held(&self, found: u64) -> u64 {
        self.page(found).load(Ordering::Relaxed)
    }

    fn use_page(&self, found: u64) {
        if found != 0 {
            assert_eq!(self.held(found), GOOD, "{PROMISE}: used page {found} after its reuse");
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

    /// As `Reader::begin`; false if accesses are parked or refused.
    fn begin(&mut self) -> bool {
        let slot = &self.shared.slot;
        let now = section::enter(&self.shared.epoch, slot, self.seen);
        if now == self.seen {
            return true;
        }
        let state = || if self.looks_at_state { self.shared.state() } else { State::Running };
        let flush = || self.known = self.known.filter(|_| !self.flushes);
        if section::begin_anew(slot, now, state, flush) != State::Running {
            return false;
        }
        self.seen = now;
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

/// True if loom finds an execution in which `case` breaks a promise, and not just anything.
fn is_caught(case: impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static) -> bool {
    let Err(panic) = std::panic::catch_unwind(|| search(case)) else { return false };
    panic.downcast_ref::<String>().is_some_and(|said| said.contains(PROMISE))
}
