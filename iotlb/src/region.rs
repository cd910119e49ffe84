//! The daemon's side of the region: table pages that device processes walk.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use crate::abi::{self, Arch, PAGE_BYTES, PAGE_LEN, RegionHeader};
use crate::prefetch::prefetch;
use crate::section;
use crate::shm::{self, Mapping, Rights, Shared};

/// Runs of 2^0 to 2^`RUN_CLASSES - 1` pages are kept apart for reuse as runs of their size. The
/// longest that any structure needs is a PASID directory for 20 bits: 32 pages.
const RUN_CLASSES: usize = 6;

/// Most pages of a region: page numbers are 32 bits wide (16 TiB).
const MAX_PAGES: u64 = 1 << 32;

/// Some pages in a row, by their number in the file.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u32,
    pages: u32,
    /// Every word is zero.
    clean: bool,
}

/// The memfd that tables live in, mapped writable once, here.
///
/// It is sparse: an untouched page costs nothing. Pages that were touched stay: they are recycled,
/// never given back. A freed page rests until the next [`Hub::drain`](crate::Hub::drain).
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    header: Shared<RegionHeader>,
    arch: Arch,
    table_base: u64,
    bytes: u64,
    epoch: u64,
    /// Pages from here to the end were never handed out.
    next: u64,
    /// Free runs that were handed out before, by the logarithm of their length.
    free: [Vec<u32>; RUN_CLASSES],
    /// Free single pages in which every word is zero: tables that were left empty. They are taken first.
    clean: Vec<u32>,
    /// Freed, and perhaps still read.
    limbo: Vec<Run>,
    pages_left: u64,
    /// One count for each page ever handed out; private, because devices read what is shared.
    live: Vec<u16>,
}

impl Region {
    /// A region of `bytes` bytes, header included, whose first byte has address `table_base`.
    ///
    /// # Errors
    /// `InvalidInput` if an argument is not a multiple of 4096, there is no room for a table, or
    /// the region would end above [`Arch::address_bits`]; otherwise what the kernel says.
    pub fn new(arch: Arch, table_base: PhysAddr, bytes: u64) -> io::Result<Self> {
        let limit = 1 << arch.address_bits();
        let end = table_base.checked_add(bytes).filter(|end| end.raw() <= limit);
        let aligned = table_base.is_aligned(12) && bytes.is_multiple_of(PAGE_BYTES);
        let fits = bytes >= 2 * PAGE_BYTES && bytes / PAGE_BYTES <= MAX_PAGES;
        let len = usize::try_from(bytes).ok().filter(|_| aligned && fits && end.is_some());
        let Some(len) = len else {
            let text = format!("no table region of {bytes:#x} bytes fits at {table_base}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let fd = shm::create("viommu-tables", len)?;
        let mapping = Arc::new(Mapping::map(&fd, len, Rights::ReadWrite)?);
        shm::seal(&fd, true)?;
        let header = Shared::new(Arc::clone(&mapping)).ok_or(io::ErrorKind::InvalidInput)?;
        let region = Self {
            fd,
            mapping,
            header,
            arch,
            table_base: table_base.raw(),
            bytes,
            epoch: section::FIRST_EPOCH,
            next: 1,
            free: Default::default(),
            clean: Vec::new(),
            limbo: Vec::new(),
            pages_left: bytes / PAGE_BYTES - 1,
            live: Vec::new(),
        };
        region.write_header();
        Ok(region)
    }

    /// Relaxed: nobody else has the memory yet; sending its descriptor orders the stores.
    fn write_header(&self) {
        let header = &*self.header;
        header.magic.store(abi::MAGIC, Ordering::Relaxed);
        header.version.store(u64::from(abi::VERSION), Ordering::Relaxed);
        header.arch.store(self.arch.raw(), Ordering::Relaxed);
        header.table_base.store(self.table_base, Ordering::Relaxed);
        header.size.store(self.bytes, Ordering::Relaxed);
        header.epoch.store(self.epoch, Ordering::Relaxed);
    }

    /// Whose structures it holds.
    #[must_use]
    pub const fn arch(&self) -> Arch {
        self.arch
    }

    /// Address of the region's first byte. Nothing else may have addresses from here on.
    #[must_use]
    pub const fn table_base(&self) -> PhysAddr {
        PhysAddr::new(self.table_base)
    }

    /// Bytes of the region.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pages that are in use or wait for the next drain.
    #[must_use]
    pub const fn pages_used(&self) -> u64 {
        self.bytes / PAGE_BYTES - 1 - self.pages_left
    }

    /// True if freed pages wait for a drain.
    pub(crate) const fn has_limbo(&self) -> bool {
        !self.limbo.is_empty()
    }

    /// Begins a new epoch and returns it: see [`section`].
    pub(crate) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        section::publish(&self.header.epoch, self.epoch);
        self.epoch
    }

    /// Makes freed pages usable again. No reader is inside a section older than their release.
    pub(crate) fn reclaim(&mut self) {
        while let Some(run) = self.limbo.pop() {
            self.put_free(run);
        }
    }

    /// Files a run under the sizes that it can serve.
    fn put_free(&mut self, run: Run) {
        self.pages_left += u64::from(run.pages);
        let class = usize::try_from(run.pages.trailing_zeros()).unwrap_or(usize::MAX);
        if run.clean && run.pages == 1 {
            self.clean.push(run.first);
        } else if run.pages.is_power_of_two()
            && let Some(list) = self.free.get_mut(class)
        {
            list.push(run.first);
        } else if let Some(list) = self.free.first_mut() {
            list.extend(run.first..run.first + run.pages);
        }
    }

    /// A recycled run of exactly `1 << class` pages, cut from a longer one if need be.
    fn take_free(&mut self, class: usize) -> Option<u32> {
        if class == 0
            && let Some(first) = self.clean.pop()
        {
            debug_assert!(self.is_zero(first), "page {first} was freed as clean and is not");
            return Some(first);
        }
        let found = (class..RUN_CLASSES).find(|c| self.free.get(*c).is_some_and(|l| !l.is_empty()));
        let mut at = found?;
        let first = self.free.get_mut(at)?.pop()?;
        while at > class {
            at -= 1;
            self.free.get_mut(at)?.push(first + (1 << at));
        }
        self.clear(first, 1 << class);
        Some(first)
    }

    /// Fresh pages; what alignment skips becomes free single pages.
    fn take_fresh(&mut self, pages: u64) -> Option<u32> {
        let align = if pages.is_power_of_two() { pages } else { 1 };
        let first = self.next.checked_next_multiple_of(align)?;
        let end = first.checked_add(pages).filter(|end| *end <= self.bytes / PAGE_BYTES)?;
        let skipped = u32::try_from(self.next).ok()?..u32::try_from(first).ok()?;
        self.free.first_mut()?.extend(skipped);
        self.next = end;
        self.live.resize(usize::try_from(end).ok()?, 0);
        u32::try_from(first).ok()
    }

    /// Zeroes recycled pages. Relaxed: no table leads to them until a later store (Release) does.
    fn clear(&mut self, first: u32, pages: u32) {
        for page in first..first + pages {
            let words = self.mapping.page(u64::from(page) * PAGE_BYTES);
            words.into_iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
            if let Some(live) = self.live.get_mut(page as usize) {
                *live = 0;
            }
        }
    }

    fn is_zero(&self, page: u32) -> bool {
        let words = self.mapping.page(u64::from(page) * PAGE_BYTES);
        words.is_some_and(|words| words.iter().all(|word| word.load(Ordering::Relaxed) == 0))
    }

    /// Puts pages where they wait for the next drain.
    fn rest(&mut self, start: PhysAddr, pages: u64, clean: bool) {
        let first = u32::try_from(self.index(start));
        if let (Ok(first), Ok(pages)) = (first, u32::try_from(pages)) {
            self.limbo.push(Run { first, pages, clean });
        }
    }

    /// Number of the page at `page`; callers pass what `alloc_pages` gave.
    fn index(&self, page: PhysAddr) -> usize {
        let offset = page.raw().wrapping_sub(self.table_base);
        usize::try_from(offset).unwrap_or(usize::MAX) / PAGE_LEN
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TableMemory for Region {
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        // Acquire is not needed: this thread wrote the tables
        let offset = at.raw().checked_sub(self.table_base)?;
        self.mapping.word(offset).map(|word| word.load(Ordering::Relaxed))
    }
}

impl TableStore for Region {
    /// # Panics
    /// If `at` is not inside the region: the caller's mistake, which nobody outside can bring
    /// about.
    #[inline]
    fn store(&mut self, at: PhysAddr, entry: u64) {
        let offset = at.raw().wrapping_sub(self.table_base);
        let Some(word) = self.mapping.word(offset).filter(|_| offset >= PAGE_BYTES) else {
            panic!("table entry at {at}, outside the region");
        };
        // Release: pairs with the acquire fence of `View::load`
        word.store(entry, Ordering::Release);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let refused = OutOfTables { needed_pages: pages, free_pages: self.pages_left };
        if pages == 0 || pages > self.pages_left {
            return Err(refused);
        }
        let class = usize::try_from(pages.next_power_of_two().trailing_zeros());
        let exact = class.ok().filter(|c| pages.is_power_of_two() && *c < RUN_CLASSES);
        let recycled = exact.and_then(|class| self.take_free(class));
        let first = recycled.or_else(|| self.take_fresh(pages)).ok_or(refused)?;
        self.pages_left -= pages;
        Ok(PhysAddr::new(self.table_base + u64::from(first) * PAGE_BYTES))
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        self.rest(start, pages, false);
    }

    fn free_clean_pages(&mut self, start: PhysAddr, pages: u64) {
        self.rest(start, pages, true);
    }

    #[inline]
    fn prefetch(&self, at: PhysAddr) {
        if let Some(word) = self.mapping.word(at.raw().wrapping_sub(self.table_base)) {
            prefetch(word);
        }
    }

    fn pages_left(&self) -> u64 {
        self.pages_left
    }

    #[inline]
    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(self.index(page)).copied().unwrap_or(0)
    }

    #[inline]
    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        let index = self.index(page);
        if let Some(live) = self.live.get_mut(index) {
            *live = entries;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 1 << 40;

    fn region(pages: u64) -> Region {
        Region::new(Arch::Vtd, PhysAddr::new(BASE), (pages + 1) * PAGE_BYTES).unwrap()
    }

    fn page(number: u64) -> PhysAddr {
        PhysAddr::new(BASE + number * PAGE_BYTES)
    }

    #[test]
    fn what_is_taken_is_zero_and_what_is_left_is_exact() {
        let mut region = region(3);
        for number in 1..=3 {
            assert_eq!(region.pages_left(), 4 - number);
            assert_eq!(region.alloc_pages(1), Ok(page(number)));
            assert_eq!(region.load(page(number)), Some(0));
            region.store(PhysAddr::new(page(number).raw() + 4088), 7);
        }
        let refused = OutOfTables { needed_pages: 1, free_pages: 0 };
        assert_eq!(region.alloc_pages(1), Err(refused));
        assert_eq!(region.load(PhysAddr::new(page(3).raw() + 4088)), Some(7));
        assert_eq!(region.load(page(4)), None);
        assert_eq!(region.load(PhysAddr::new(0)), None);
    }

    #[test]
    fn a_freed_page_comes_back_after_the_drain_zeroed_and_not_before() {
        let mut region = region(1);
        let taken = region.alloc_pages(1).unwrap();
        region.store(taken, 7);
        region.set_live(taken, 1);
        region.free_pages(taken, 1);
        assert!(region.alloc_pages(1).is_err());
        assert_eq!(region.load(taken), Some(7), "readers may still be in it");
        region.reclaim();
        assert_eq!(region.alloc_pages(1), Ok(taken));
        assert_eq!((region.load(taken), region.live(taken)), (Some(0), 0));
    }

    #[test]
    fn pages_freed_clean_come_back_first_and_are_as_many_as_before() {
        let mut region = region(3);
        let [dirty, clean] = [(); 2].map(|()| region.alloc_pages(1).unwrap());
        region.store(dirty, 7);
        region.free_clean_pages(clean, 1);
        region.free_pages(dirty, 1);
        assert!(region.has_limbo() && region.pages_left() == 1);
        region.reclaim();
        assert_eq!(region.pages_left(), 3);
        let again = [(); 3].map(|()| region.alloc_pages(1).unwrap());
        assert_eq!(again, [clean, dirty, page(3)]);
        assert_eq!(again.map(|at| region.load(at)), [Some(0); 3]);
        assert!(region.alloc_pages(1).is_err());
    }

    #[test]
    fn runs_are_aligned_to_their_size_and_what_that_skips_is_not_lost() {
        let mut region = region(15);
        assert_eq!(region.alloc_pages(1), Ok(page(1)));
        assert_eq!(region.alloc_pages(4), Ok(page(4)));
        assert_eq!(region.alloc_pages(3), Ok(page(8)), "not a power of two: not aligned");
        assert_eq!(region.pages_left(), 7);
        let singles: Vec<_> = (0..7).map(|_| region.alloc_pages(1).unwrap()).collect();
        let mut numbers: Vec<_> = singles.iter().map(|at| (at.raw() - BASE) / PAGE_BYTES).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [2, 3, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_freed_run_serves_again_as_a_run_or_in_parts() {
        let mut region = region(8);
        assert_eq!(region.alloc_pages(4), Ok(page(4)));
        for _ in 0..2 {
            region.free_pages(page(4), 4);
            region.reclaim();
            assert_eq!(region.alloc_pages(4), Ok(page(4)));
        }
        region.free_pages(page(4), 4);
        region.reclaim();
        let mut all: Vec<_> = (0..8).map(|_| region.alloc_pages(1).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=8).map(page).collect::<Vec<_>>());
        assert!(region.alloc_pages(1).is_err());
    }

    #[test]
    fn a_prefetch_of_any_address_changes_nothing_and_harms_nobody() {
        let mut region = region(1);
        let taken = region.alloc_pages(1).unwrap();
        region.store(taken, 7);
        for at in [0, BASE - 8, BASE, taken.raw(), taken.raw() + 1, BASE + 8192, u64::MAX] {
            region.prefetch(PhysAddr::new(at));
        }
        assert_eq!((region.load(taken), region.pages_left()), (Some(7), 0));
    }

    #[test]
    fn a_region_that_cannot_be_is_refused() {
        for (base, bytes) in
            [(BASE + 8, 8192), (BASE, 8193), (BASE, 4096), (BASE, 0), ((1 << 52) - 4096, 8192)]
        {
            let error = Region::new(Arch::Vtd, PhysAddr::new(base), bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{base:#x} {bytes:#x}");
        }
    }

    #[test]
    fn a_region_of_a_gibibyte_costs_nothing_until_it_is_used() {
        let region = region(1 << 18);
        let blocks = rustix::fs::fstat(&region).unwrap().st_blocks;
        assert!(blocks * 512 <= 8192, "{blocks} blocks");
        assert!(region.live.capacity() == 0);
    }
}
