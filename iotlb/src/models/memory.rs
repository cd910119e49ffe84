//! Table memory that loom watches: the product's own tables, lookups and walks run over it.
//!
//! The first words of each page are loom's; a case puts there what it changes. The others hold what
//! was written before the case began, and no case changes them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use crate::abi::PAGE_BYTES;
use crate::sync::Ordering;

/// Where the tables' addresses begin.
pub(super) const BASE: u64 = 1 << 40;

/// Table pages; a case needs fewer.
const PAGES: u64 = 10;

/// Words of each page that loom watches: entry 0 of a table, and of a PASID entry what a walk through
/// a second level depends on.
const WATCHED_BYTES: u64 = 16;

/// The words, shared by both sides.
pub(super) struct Memory {
    watched: Vec<AtomicU64>,
    constant: Mutex<BTreeMap<u64, u64>>,
}

impl Memory {
    fn new() -> Self {
        let words = PAGES * WATCHED_BYTES / 8;
        let watched = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self { watched, constant: Mutex::default() }
    }

    /// The word at `at`, if loom watches it.
    fn watched(&self, at: PhysAddr) -> Option<&AtomicU64> {
        let offset = at.raw() - BASE;
        let (page, within) = (offset / PAGE_BYTES, offset % PAGE_BYTES);
        let index = page * (WATCHED_BYTES / 8) + within / 8;
        let word = self.watched.get(usize::try_from(index).unwrap());
        word.filter(|_| within < WATCHED_BYTES)
    }

    fn constant(&self, at: PhysAddr) -> u64 {
        self.constant.lock().unwrap().get(&at.raw()).copied().unwrap_or(0)
    }
}

/// The reader's side, as `View`.
pub(super) struct Seen {
    pub(super) memory: Arc<Memory>,
    /// A broken twin follows pointers without this.
    pub(super) acquires: bool,
}

impl TableMemory for Seen {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let Some(word) = self.memory.watched(at) else { return Some(self.memory.constant(at)) };
        let entry = word.load(Ordering::Relaxed);
        if self.acquires {
            fence(Ordering::Acquire);
        }
        Some(entry)
    }
}

/// The writer's side, as `Region`.
pub(super) struct Store {
    pub(super) memory: Arc<Memory>,
    /// How words are stored: a broken twin releases nothing.
    pub(super) order: Ordering,
    /// The case has begun.
    pub(super) has_begun: bool,
    fresh: u64,
    free: Vec<PhysAddr>,
    limbo: Vec<PhysAddr>,
    live: BTreeMap<PhysAddr, u16>,
}

impl Store {
    pub(super) fn new() -> Self {
        let memory = Arc::new(Memory::new());
        let (free, limbo) = (Vec::new(), Vec::new());
        let order = Ordering::Release;
        Self { memory, order, has_begun: false, fresh: 0, free, limbo, live: BTreeMap::new() }
    }

    /// As `Region::reclaim`.
    pub(super) fn reclaim(&mut self) {
        self.free.append(&mut self.limbo);
    }
}

impl TableMemory for Store {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let watched = self.memory.watched(at).map(|word| word.load(Ordering::Relaxed));
        Some(watched.unwrap_or_else(|| self.memory.constant(at)))
    }
}

impl TableStore for Store {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        if let Some(word) = self.memory.watched(at) {
            word.store(entry, self.order);
        } else if self.memory.constant(at) != entry {
            assert!(!self.has_begun, "the case changes {at}, which loom does not watch");
            self.memory.constant.lock().unwrap().insert(at.raw(), entry);
        }
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        assert_eq!(pages, 1, "single pages only");
        let Some(page) = self.free.pop() else {
            self.fresh += 1;
            return Ok(PhysAddr::new(BASE + (self.fresh - 1) * PAGE_BYTES));
        };
        for offset in (0..WATCHED_BYTES).step_by(8) {
            // as `Region::clear`
            let word = self.memory.watched(PhysAddr::new(page.raw() + offset)).unwrap();
            word.store(0, Ordering::Relaxed);
        }
        self.live.remove(&page);
        Ok(page)
    }

    fn free_pages(&mut self, start: PhysAddr, _: u64) {
        self.limbo.push(start);
    }

    fn pages_left(&self) -> u64 {
        PAGES - self.fresh + u64::try_from(self.free.len()).unwrap()
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(&page).copied().unwrap_or(0)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.live.insert(page, entries);
    }
}
