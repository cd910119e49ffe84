//! A part of the machine's memory in which our mapper builds tables.

use std::collections::BTreeMap;
use std::rc::Rc;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use crate::error::{Error, Result};
use crate::memory::GuestRam;

const PAGE: [u8; 4096] = [0; 4096];

/// Table pages in the machine's memory.
///
/// Freed pages wait until [`reset`](Self::reset): a table is built, probed and forgotten, so
/// nothing is gained by handing them out again.
#[derive(Debug)]
pub struct Region {
    ram: Rc<GuestRam>,
    start: u64,
    /// What to add to an address of this region to get the machine's.
    shift: u64,
    pages: u64,
    used: u64,
    live: BTreeMap<u64, u16>,
    failed: Option<PhysAddr>,
}

impl Region {
    /// `pages` pages from `start` on, a multiple of 1 MiB.
    #[must_use]
    pub const fn new(ram: Rc<GuestRam>, start: PhysAddr, pages: u64) -> Self {
        Self::seen_at(ram, start, pages, start)
    }

    /// The same pages, by addresses from `seen` on, a multiple of 1 MiB too: where a second level
    /// puts them.
    #[must_use]
    pub const fn seen_at(ram: Rc<GuestRam>, start: PhysAddr, pages: u64, seen: PhysAddr) -> Self {
        let shift = start.raw().wrapping_sub(seen.raw());
        let live = BTreeMap::new();
        Self { ram, start: seen.raw(), shift, pages, used: 0, live, failed: None }
    }

    /// Forgets every page.
    pub fn reset(&mut self) {
        self.used = 0;
        self.live.clear();
    }

    /// # Errors
    /// If a store failed since the region was made: then the tables are not what the mapper wrote.
    pub const fn check(&self) -> Result<()> {
        match self.failed {
            Some(at) => Err(Error::TableMemory { at }),
            None => Ok(()),
        }
    }

    /// The machine's address of what is at `at` here.
    #[must_use]
    pub const fn machine(&self, at: PhysAddr) -> PhysAddr {
        PhysAddr::new(at.raw().wrapping_add(self.shift))
    }

    /// The memory that the pages are part of.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

impl TableMemory for Region {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.ram.load(self.machine(at))
    }
}

impl TableStore for Region {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        if self.ram.store(self.machine(at), entry).is_none() {
            self.failed = Some(at);
        }
    }

    fn alloc_pages(&mut self, pages: u64) -> std::result::Result<PhysAddr, OutOfTables> {
        let start = self.used.next_multiple_of(pages.next_power_of_two());
        if start + pages > self.pages {
            return Err(OutOfTables { needed_pages: pages, free_pages: self.pages_left() });
        }
        self.used = start + pages;
        for page in start..self.used {
            let at = PhysAddr::new(self.start + page * Self::PAGE_BYTES);
            if self.ram.write(self.machine(at), &PAGE).is_none() {
                self.failed = Some(at);
            }
        }
        Ok(PhysAddr::new(self.start + start * Self::PAGE_BYTES))
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        for page in 0..pages {
            self.live.remove(&(start.raw() + page * Self::PAGE_BYTES));
        }
    }

    fn pages_left(&self) -> u64 {
        self.pages - self.used
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(&page.raw()).copied().unwrap_or(0)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.live.insert(page.raw(), entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Window;

    fn region(pages: u64) -> Region {
        let ram = GuestRam::new(&[Window { start: 0, bytes: 0x10_0000, offset: 0 }]).unwrap();
        Region::seen_at(Rc::new(ram), PhysAddr::new(0), pages, PhysAddr::new(0x4000_0000))
    }

    #[test]
    fn pages_are_aligned_zero_and_seen_elsewhere() {
        let mut region = region(64);
        region.ram().store(PhysAddr::new(0x4008), 7).unwrap();
        let one = region.alloc_pages(1).unwrap();
        let four = region.alloc_pages(4).unwrap();
        assert_eq!((one.raw(), four.raw()), (0x4000_0000, 0x4000_4000));
        assert_eq!(region.load(PhysAddr::new(0x4000_4008)), Some(0));
        region.store(PhysAddr::new(0x4000_4008), 9);
        assert_eq!(region.ram().load(PhysAddr::new(0x4008)), Some(9));
        region.check().unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_has_no_memory_is_noticed() {
        let mut small = region(4);
        assert!(small.alloc_pages(5).is_err());
        assert_eq!(small.pages_left(), 4);
        let mut beyond = region(1024);
        for _ in 0..1024 {
            beyond.alloc_pages(1).unwrap();
        }
        let at = PhysAddr::new(0x4010_0000);
        assert!(matches!(beyond.check(), Err(Error::TableMemory { at: found }) if found >= at));
    }
}
