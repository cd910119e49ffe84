//! A table store in ordinary memory, for tests.

use std::vec::Vec;

use crate::{OutOfTables, PhysAddr, TableMemory, TableStore};

const PAGE_ENTRIES: usize = 512;

/// Table pages from `base` on, in a vector. Single-threaded.
///
/// Freed pages wait for [`reclaim`](Self::reclaim), as in a store whose readers must be drained.
/// Misuse by the mapper panics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeapStore {
    base: u64,
    limit: u64,
    entries: Vec<u64>,
    pages: Vec<Page>,
    free: Vec<u64>,
    withdrawn: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    live: u16,
    taken: bool,
    /// Freed with every word zero.
    clean: bool,
}

impl HeapStore {
    /// A store of at most `limit` pages at `base`, which is a multiple of 1 MiB: of what the largest
    /// contiguous root needs.
    #[must_use]
    pub const fn new(base: PhysAddr, limit: u64) -> Self {
        assert!(base.is_aligned(20), "misaligned base");
        Self {
            base: base.raw(),
            limit,
            entries: Vec::new(),
            pages: Vec::new(),
            free: Vec::new(),
            withdrawn: Vec::new(),
        }
    }

    /// Makes what was freed available again.
    pub fn reclaim(&mut self) {
        self.free.append(&mut self.withdrawn);
    }

    /// Pages handed out and not freed.
    #[must_use]
    pub fn pages_taken(&self) -> u64 {
        self.pages.iter().map(|page| u64::from(page.taken)).sum()
    }

    /// True if `at` is in a page that was handed out and not freed.
    #[must_use]
    pub fn is_taken(&self, at: PhysAddr) -> bool {
        self.pages.get(self.number(at)).is_some_and(|page| page.taken)
    }

    /// Changes an entry behind the mapper's back, wherever it is.
    pub fn poke(&mut self, at: PhysAddr, raw: u64) {
        let index = self.index(at);
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = raw;
        }
    }

    /// Index of an entry; past the end for what is not here.
    fn index(&self, at: PhysAddr) -> usize {
        debug_assert!(at.is_aligned(3), "entry at {at} is not aligned");
        usize::try_from(at.raw().wrapping_sub(self.base) / 8).unwrap_or(usize::MAX)
    }

    /// Number of a page; past the end for what is not here.
    fn number(&self, at: PhysAddr) -> usize {
        self.index(at) / PAGE_ENTRIES
    }

    fn address(&self, number: u64) -> PhysAddr {
        PhysAddr::new(self.base + number * Self::PAGE_BYTES)
    }

    fn page_mut(&mut self, at: PhysAddr) -> Option<&mut Page> {
        let number = self.number(at);
        self.pages.get_mut(number)
    }

    /// The number of the first of `pages` contiguous pages from the end, aligned to their size.
    fn bump(&mut self, pages: u64) -> Option<u64> {
        let end = self.pages.len() as u64;
        let start = end.next_multiple_of(pages.next_power_of_two());
        let new_end = start.checked_add(pages).filter(|end| *end <= self.limit)?;
        self.free.extend(end..start);
        let len = usize::try_from(new_end).ok()?;
        self.pages.resize(len, Page { live: 0, taken: false, clean: false });
        self.entries.resize(len * PAGE_ENTRIES, 0);
        Some(start)
    }
}

impl TableMemory for HeapStore {
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.entries.get(self.index(at)).copied()
    }
}

impl TableStore for HeapStore {
    #[inline]
    fn store(&mut self, at: PhysAddr, entry: u64) {
        debug_assert!(self.is_taken(at), "{at} is in no taken page");
        self.poke(at, entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let out = OutOfTables { needed_pages: pages, free_pages: self.pages_left() };
        let single = if pages == 1 { self.free.pop() } else { None };
        let number = single.or_else(|| self.bump(pages)).ok_or(out)?;
        let start = self.address(number);
        for page in 0..pages {
            let at = PhysAddr::new(start.raw() + page * Self::PAGE_BYTES);
            let (first, clean) = (self.index(at), self.page_mut(at).is_some_and(|page| page.clean));
            if let Some(entries) = self.entries.get_mut(first..first + PAGE_ENTRIES) {
                if !clean {
                    entries.fill(0);
                }
                debug_assert!(entries.iter().all(|entry| *entry == 0), "{at} was not clean");
            }
            if let Some(page) = self.page_mut(at) {
                *page = Page { live: 0, taken: true, clean: false };
            }
        }
        Ok(start)
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        for page in 0..pages {
            let at = PhysAddr::new(start.raw() + page * Self::PAGE_BYTES);
            assert!(self.is_taken(at), "{at} freed without being taken");
            if let Some(page) = self.page_mut(at) {
                page.taken = false;
            }
            self.withdrawn.push((at.raw() - self.base) / Self::PAGE_BYTES);
        }
    }

    fn free_clean_pages(&mut self, start: PhysAddr, pages: u64) {
        self.free_pages(start, pages);
        for page in 0..pages {
            let at = PhysAddr::new(start.raw() + page * Self::PAGE_BYTES);
            if let Some(page) = self.page_mut(at) {
                page.clean = true;
            }
        }
    }

    fn pages_left(&self) -> u64 {
        self.limit - self.pages.len() as u64 + self.free.len() as u64
    }

    #[inline]
    fn live(&self, page: PhysAddr) -> u16 {
        self.pages.get(self.number(page)).map_or(0, |page| page.live)
    }

    #[inline]
    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        if let Some(page) = self.page_mut(page) {
            page.live = entries;
        }
    }
}
