//! What mappings may use of the table memory: all but a reserve.

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

/// Pages that only attachments may use. Replacing a PASID entry copies its leaf, and a guest that
/// has mapped until nothing is left must still be able to attach elsewhere: one page would do after
/// a drain, more spare that drain.
const RESERVE_PAGES: u64 = 64;

/// A store that ends [`RESERVE_PAGES`] before its memory does.
#[derive(Debug)]
pub(super) struct Budget<'a, S>(pub(super) &'a mut S);

impl<S: TableStore> TableMemory for Budget<'_, S> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.0.load(at)
    }
}

impl<S: TableStore> TableStore for Budget<'_, S> {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.0.store(at, entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let free_pages = self.pages_left();
        if pages > free_pages {
            return Err(OutOfTables { needed_pages: pages, free_pages });
        }
        self.0.alloc_pages(pages)
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        self.0.free_pages(start, pages);
    }

    fn free_clean_pages(&mut self, start: PhysAddr, pages: u64) {
        self.0.free_clean_pages(start, pages);
    }

    fn pages_left(&self) -> u64 {
        self.0.pages_left().saturating_sub(RESERVE_PAGES)
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.0.live(page)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.0.set_live(page, entries);
    }
}
