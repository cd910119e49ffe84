//! A reader that remembers the lowest table on the way of an address, as `shortcuts` does.
//!
//! An upper entry leads to one of two lower tables of one entry each, and that to a page.

use super::{AtomicU64, GOOD, PROMISE, REUSED, is_caught, search};
use crate::abi::State;
use crate::section::{self, FIRST_EPOCH, UNSEEN};
use crate::sync::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::fence;
use loom::thread;

struct Tables {
    epoch: AtomicU64,
    slot: AtomicU64,
    /// 0, or the number of a lower table plus 1.
    upper: AtomicU64,
    /// Each 0, or the number of a page plus 1.
    lower: [AtomicU64; 2],
    pages: [AtomicU64; 2],
    /// 1 once the device may rely on what was mapped last.
    told: AtomicU64,
}

impl Tables {
    /// The first lower table leads to the first page; the second page is somebody else's.
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(FIRST_EPOCH),
            slot: AtomicU64::new(section::IDLE),
            upper: AtomicU64::new(1),
            lower: [AtomicU64::new(1), AtomicU64::new(0)],
            pages: [AtomicU64::new(GOOD), AtomicU64::new(REUSED)],
            told: AtomicU64::new(0),
        })
    }

    fn lower(&self, table: u64) -> u64 {
        load(&self.lower[usize::try_from(table - 1).unwrap()])
    }

    /// As the mapper does: the entry, then the way to the table that it leaves empty.
    fn unmap(&self) {
        self.lower[0].store(0, Ordering::Release);
        self.upper.store(0, Ordering::Release);
    }
}

/// As `View::load`.
fn load(word: &AtomicU64) -> u64 {
    let found = word.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    found
}

struct Reader {
    tables: Arc<Tables>,
    seen: u64,
    /// A lower table, and the epoch in which it was noted.
    shortcut: Option<(u64, u64)>,
    /// What the broken twins leave out.
    looks_at_epoch: bool,
    walks_again: bool,
}

impl Reader {
    fn new(tables: &Arc<Tables>) -> Self {
        let tables = Arc::clone(tables);
        Self { tables, seen: UNSEEN, shortcut: None, looks_at_epoch: true, walks_again: true }
    }

    fn begin(&mut self) {
        let Tables { epoch, slot, .. } = &*self.tables;
        let now = section::enter(epoch, slot, self.seen);
        if now != self.seen {
            section::begin_anew(slot, now, || State::Running, || ());
            self.seen = now;
        }
    }

    /// As `Cache::walk`.
    fn find(&mut self) -> u64 {
        if let Some((epoch, table)) = self.shortcut
            && (epoch == self.seen || !self.looks_at_epoch)
        {
            let found = self.tables.lower(table);
            if found != 0 || !self.walks_again {
                return found;
            }
        }
        match load(&self.tables.upper) {
            0 => 0,
            table => {
                self.shortcut = Some((self.seen, table));
                self.tables.lower(table)
            }
        }
    }

    fn use_page(&mut self) {
        let found = self.find();
        if found != 0 {
            let page = &self.tables.pages[usize::try_from(found - 1).unwrap()];
            assert_eq!(page.load(Ordering::Relaxed), GOOD, "{PROMISE}: used page {found}");
        }
    }

    fn section(&mut self) {
        self.begin();
        self.use_page();
        section::leave(&self.tables.slot);
    }
}

/// The table is unlinked, drained, and leads to somebody else's page afterwards.
fn reuse(looks_at_epoch: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let tables = Tables::new();
        let mut reader = Reader::new(&tables);
        reader.looks_at_epoch = looks_at_epoch;
        let reader = thread::spawn(move || {
            reader.section();
            reader.section();
        });
        tables.unmap();
        section::publish(&tables.epoch, FIRST_EPOCH + 1);
        while !section::has_passed(&tables.slot, FIRST_EPOCH + 1) {
            thread::yield_now();
        }
        tables.lower[0].store(2, Ordering::Release);
        reader.join().unwrap();
    }
}

#[test]
fn a_table_that_came_back_as_another_is_not_walked_for_the_old_address() {
    search(reuse(true));
}

#[test]
fn a_shortcut_that_outlives_its_epoch_is_caught() {
    assert!(is_caught(reuse(false)));
}

/// The table is unlinked and another takes its place, without a drain: nothing was withdrawn that the
/// device still has.
fn replace(walks_again: bool) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let tables = Tables::new();
        let mut reader = Reader::new(&tables);
        reader.walks_again = walks_again;
        let reader = thread::spawn(move || {
            reader.begin();
            let _noted = reader.find();
            if reader.tables.told.load(Ordering::Acquire) == 1 {
                assert_eq!(reader.find(), 2, "{PROMISE}: it was told of a mapping");
            }
            section::leave(&reader.tables.slot);
        });
        tables.unmap();
        tables.lower[1].store(2, Ordering::Release);
        tables.upper.store(2, Ordering::Release);
        tables.told.store(1, Ordering::Release);
        reader.join().unwrap();
    }
}

#[test]
fn a_mapping_in_a_table_that_took_anothers_place_is_found() {
    search(replace(true));
}

#[test]
fn a_shortcut_whose_no_is_believed_is_caught() {
    assert!(is_caught(replace(false)));
}
