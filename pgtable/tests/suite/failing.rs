//! A store that promises pages and does not keep it: what contiguous tables can meet.

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    FaultKind, Format, Iova, MapError, OutOfTables, PhysAddr, Table, TableMemory, TableStore, walk,
};

use crate::model::mapping;

/// Fails the allocation number `fails_at`, from 0.
struct Failing {
    heap: HeapStore,
    fails_at: u64,
}

const BROKEN: OutOfTables = OutOfTables { needed_pages: 7, free_pages: 0 };

impl TableMemory for Failing {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.heap.load(at)
    }
}

impl TableStore for Failing {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.heap.store(at, entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        self.fails_at = self.fails_at.checked_sub(1).ok_or(BROKEN)?;
        self.heap.alloc_pages(pages)
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        self.heap.free_pages(start, pages);
    }

    fn pages_left(&self) -> u64 {
        self.heap.pages_left()
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.heap.live(page)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.heap.set_live(page, entries);
    }
}

/// Maps a few granules around the place where two entries of the root meet, beside one that is mapped
/// already: fails at each table that this takes, until it succeeds.
pub(crate) fn every_failed_allocation_is_undone<F: Format>(format: F) {
    let geometry = format.geometry();
    let granule = 1u64 << geometry.granule_lg2;
    let middle = 1u64 << geometry.entry_lg2(geometry.root_level());
    let start = middle.saturating_sub(4 * granule);
    let neighbour = mapping(&format, start, granule, 0);
    let wide = mapping(&format, start + granule, 2 * (middle - start), 2 * granule);
    let access = wide.access();
    for fails_at in 0.. {
        let mut store =
            Failing { heap: HeapStore::new(PhysAddr::new(1 << 31), 4096), fails_at: 99 };
        let mut table = Table::new(format, &mut store).unwrap();
        table.map(&mut store, &neighbour).unwrap();
        let (taken, needed) = (store.heap.pages_taken(), table.pages_needed(&store, &wide));
        store.fails_at = fails_at;
        let mapped = table.map(&mut store, &wide);
        let translate = |at| walk(&format, &store, table.root(), Iova::new(at), access);
        assert_eq!(translate(start).unwrap().oa, PhysAddr::new(0), "the neighbour stays");
        let (first, last) = (wide.iova().start().raw(), wide.iova().last().raw());
        if mapped.is_ok() {
            assert_eq!(store.heap.pages_taken(), taken + needed);
            assert_eq!(translate(last).unwrap().oa, wide.oa_last());
            break;
        }
        assert_eq!(mapped, Err(MapError::OutOfTables(BROKEN)));
        assert_eq!(store.heap.pages_taken(), taken, "allocation {fails_at}");
        for at in (first..=last).step_by(4096) {
            assert_eq!(translate(at).unwrap_err().kind, FaultKind::NotPresent, "{at:#x}");
        }
    }
}
