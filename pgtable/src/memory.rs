//! Where tables live: nothing in this crate knows what is behind an address.

use core::fmt;

use crate::PhysAddr;

/// Memory that tables are read from, one 64-bit entry at a time, by value.
///
/// One implementor stands for one address space (the table region, guest memory, guest memory seen
/// through a second level): a pointer found in it is followed in it.
pub trait TableMemory {
    /// The entry at `at`, little-endian, loaded once and as a whole; `None` where there is no memory.
    ///
    /// `at` is a multiple of 8. Loads are ordered by data dependency at least (Acquire, or stronger):
    /// what was written to a table before a pointer to it was stored is seen through that pointer.
    /// Never blocks, never panics.
    fn load(&self, at: PhysAddr) -> Option<u64>;

    /// Replaces the entry at `at` by `new` if it is `old`, in one atomic step; the inner error is what
    /// was found instead. `None` where there is no memory, or none that a walk may write: then an access
    /// that must set an accessed or dirty flag faults.
    ///
    /// `at` is a multiple of 8. Ordered both ways (AcqRel, or stronger): the flag is set before the
    /// access that it announces. Never blocks, never panics, never fails without a reason.
    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        let _ = (at, old, new);
        None
    }
}

/// There are not enough free table pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfTables {
    /// Pages needed.
    pub needed_pages: u64,
    /// Pages free.
    pub free_pages: u64,
}

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} table pages needed, {} free", self.needed_pages, self.free_pages)
    }
}

impl core::error::Error for OutOfTables {}

/// Memory that tables are written to: the daemon's side.
///
/// A table page is 4 KiB ([`TableStore::PAGE_BYTES`]). Pages carry one small number for the mapper
/// (`live`: entries in use), kept beside the pages and not in them.
pub trait TableStore: TableMemory {
    /// Bytes of a table page.
    const PAGE_BYTES: u64 = 4096;

    /// Stores the whole entry at once, after everything stored before it (Release).
    ///
    /// `at` lies in a page that [`alloc_pages`](Self::alloc_pages) gave.
    fn store(&mut self, at: PhysAddr, entry: u64);

    /// Takes `pages` contiguous table pages, all zero, naturally aligned to their total size if that
    /// is a power of two, with `live` 0. What is freed and not yet reclaimed is not available.
    ///
    /// # Errors
    /// If there are not enough; nothing changes.
    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables>;

    /// Gives `pages` pages from `start` back. They are withdrawn: no table leads to them any more, but
    /// readers may still be inside. They are handed out again only after the store's owner has drained
    /// all readers.
    fn free_pages(&mut self, start: PhysAddr, pages: u64);

    /// [`free_pages`](Self::free_pages), of pages in which every word is zero: a store need not clear them
    /// again before it hands them out.
    fn free_clean_pages(&mut self, start: PhysAddr, pages: u64) {
        self.free_pages(start, pages);
    }

    /// The entry at `at` is loaded or stored soon: a store may have it fetched meanwhile, but does not wait
    /// for it. Changes nothing; `at` may be any address.
    #[inline]
    fn prefetch(&self, at: PhysAddr) {
        let _ = at;
    }

    /// Single pages that can be taken right now.
    fn pages_left(&self) -> u64;

    /// Entries in use in the table page at `page`.
    fn live(&self, page: PhysAddr) -> u16;

    /// Sets the number of entries in use in the table page at `page`.
    fn set_live(&mut self, page: PhysAddr, entries: u16);
}
