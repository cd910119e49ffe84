//! A table store in ordinary memory, for tests.

use std::vec::Vec;

use crate::{OutOfTables, PhysAddr, TableMemory, TableStore};

const PAGE_ENTRIES: usize = 512;

/// Table pages from `base` on, in a vector. Single-threaded.
///
/// Freed pages wait for [`reclaim`](Self::reclaim), as in a store whose readers must be drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeapStore {
    base: u64,
    pages: Vec<Page>,
    limit: u64,
    free: Vec<u64>,
    withdrawn: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    entries: [u64; PAGE_ENTRIES],
    live: u16,
    taken: bool,
}

impl HeapStore {
    /// A store of at most `limit` pages at `base`, which is a multiple of 1 MiB: of what the largest
    /// contiguous root needs.
    #[must_use]
    pub const fn new(base: PhysAddr, limit: u64) -> Self {
        assert!(base.is_aligned(20), "misaligned base");
        Self { base: base.raw(), pages: Vec::new(), limit, free: Vec::new(), withdrawn: Vec::new() }
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
        self.number(at).and_then(|number| self.pages.get(number)).is_some_and(|page| page.taken)
    }

    /// Changes an entry behind the mapper's back, wherever it is.
    pub fn poke(&mut self, at: PhysAddr, raw: u64) {
        if let Some(entry) = self.entry_mut(at) {
            *entry = raw;
        }
    }

    fn number(&self, at: PhysAddr) -> Option<usize> {
        usize::try_from(at.raw().checked_sub(self.base)? / Self::PAGE_BYTES).ok()
    }

    fn entry_mut(&mut self, at: PhysAddr) -> Option<&mut u64> {
        let number = self.number(at)?;
        self.pages.get_mut(number)?.entries.get_mut(entry_index(at))
    }

    fn page_mut(&mut self, at: PhysAddr) -> Option<&mut Page> {
        let number = self.number(at)?;
        self.pages.get_mut(number)
    }

    fn address(&self, number: usize) -> PhysAddr {
        PhysAddr::new(self.base + number as u64 * Self::PAGE_BYTES)
    }

    /// Contiguous pages from the end, aligned to their size.
    fn bump(&mut self, pages: u64) -> Option<PhysAddr> {
        let start = (self.pages.len() as u64).next_multiple_of(pages.next_power_of_two());
        let end = start.checked_add(pages).filter(|end| *end <= self.limit)?;
        for number in self.pages.len() as u64..end {
            let taken = number >= start;
            if !taken {
                self.free.push(number);
            }
            self.pages.push(Page { entries: [0; PAGE_ENTRIES], live: 0, taken });
        }
        usize::try_from(start).ok().map(|number| self.address(number))
    }
}

fn entry_index(at: PhysAddr) -> usize {
    assert!(at.is_aligned(3), "entry at {at} is not aligned");
    // below 512
    usize::try_from(at.raw() % HeapStore::PAGE_BYTES / 8).unwrap_or(usize::MAX)
}

impl TableMemory for HeapStore {
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.pages.get(self.number(at)?)?.entries.get(entry_index(at)).copied()
    }
}

impl TableStore for HeapStore {
    #[inline]
    fn store(&mut self, at: PhysAddr, entry: u64) {
        let number = self.number(at).unwrap_or(usize::MAX);
        assert!(self.pages.get(number).is_some_and(|page| page.taken), "{at} is in no taken page");
        self.poke(at, entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let out = OutOfTables { needed_pages: pages, free_pages: self.pages_left() };
        let single = if pages == 1 { self.free.pop() } else { None };
        let Some(number) = single.and_then(|number| usize::try_from(number).ok()) else {
            return self.bump(pages).ok_or(out);
        };
        let start = self.address(number);
        let page = self.page_mut(start).ok_or(out)?;
        *page = Page { entries: [0; PAGE_ENTRIES], live: 0, taken: true };
        Ok(start)
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        for index in 0..pages {
            let at = PhysAddr::new(start.raw() + index * Self::PAGE_BYTES);
            let page = self.page_mut(at).filter(|page| page.taken);
            assert!(page.is_some(), "{at} freed without being taken");
            if let Some(page) = page {
                page.taken = false;
            }
            self.withdrawn.push((at.raw() - self.base) / Self::PAGE_BYTES);
        }
    }

    fn pages_left(&self) -> u64 {
        self.limit - self.pages.len() as u64 + self.free.len() as u64
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.number(page).and_then(|number| self.pages.get(number)).map_or(0, |page| page.live)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        if let Some(page) = self.page_mut(page) {
            page.live = entries;
        }
    }
}
