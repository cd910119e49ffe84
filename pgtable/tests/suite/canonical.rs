//! The upper half of a canonical address space, which the suite's model leaves out.

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, FaultKind, Format, Iova, IovaRange, MapError, Mapping, PhysAddr, Table, UnmapError,
    Unmapped, VtdFirst, walk,
};

use crate::ALL_SIZES;

fn ranges_at_the_hole(bits: u8) -> (Iova, Iova) {
    let half = 1u64 << (bits - 1);
    (Iova::new(half - 1), Iova::new(half.wrapping_neg()))
}

#[test]
fn the_upper_half_maps_up_to_the_last_address() {
    for bits in [48, 57] {
        let format = VtdFirst::new(bits, ALL_SIZES).unwrap();
        let mut store = HeapStore::new(PhysAddr::new(1 << 31), 64);
        let mut table = Table::new(format, &mut store).unwrap();
        let (_, upper) = ranges_at_the_hole(bits);
        let root_only = store.pages_taken();
        for start in [upper.raw(), 0xffff_ffff_ffe0_0000] {
            let range = IovaRange::with_len(Iova::new(start), 0x20_0000).unwrap();
            let one = Mapping::new(range, PhysAddr::new(0x60_0000), Access::RW).unwrap();
            table.map(&mut store, &one).unwrap();
            assert_eq!(table.map(&mut store, &one), Err(MapError::Overlap { at: range.start() }));
            let found = walk(&format, &store, table.root(), range.last(), Access::WRITE).unwrap();
            assert_eq!((found.oa, found.size_lg2), (PhysAddr::new(0x7f_ffff), 21));
            let below = Iova::new(range.last().raw() & ((1 << bits) - 1));
            let fault = walk(&format, &store, table.root(), below, Access::WRITE).unwrap_err();
            assert_eq!(fault.kind, FaultKind::InputTooWide, "an alias");
            let table_pages = u64::from(format.geometry().root_level()) - 1;
            let unmapped = table.unmap(&mut store, range).unwrap();
            assert_eq!(unmapped, Unmapped { leaves: 1, table_pages });
        }
        assert_eq!(store.pages_taken(), root_only);
    }
}

#[test]
fn a_range_across_the_hole_is_refused() {
    let format = VtdFirst::new(48, ALL_SIZES).unwrap();
    let mut store = HeapStore::new(PhysAddr::new(1 << 31), 64);
    let mut table = Table::new(format, &mut store).unwrap();
    let (below, above) = ranges_at_the_hole(48);
    let start = Iova::new(below.raw() - 0xfff);
    let input_bits = 48;
    for last in [Iova::new(below.raw() + 0x1000), Iova::new(above.raw() + 0xfff)] {
        let iova = IovaRange::new(start, last).unwrap();
        let refused = Mapping::new(iova, PhysAddr::new(0), Access::RW).unwrap();
        let wide = MapError::InputTooWide { iova, input_bits };
        assert_eq!(table.map(&mut store, &refused), Err(wide));
        let wide = UnmapError::InputTooWide { iova, input_bits };
        assert_eq!(table.unmap(&mut store, iova), Err(wide));
    }
}
