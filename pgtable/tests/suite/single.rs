//! One mapping at a time, at every level.

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, FaultKind, Format, Iova, IovaRange, MapError, Mapping, PhysAddr, Purpose, Table,
    TableMemory, Translation, UnmapError, Unmapped, walk,
};

use crate::model::{Model, accesses, end, mapping};

const BASE: PhysAddr = PhysAddr::new(1 << 31);

fn setup<F: Format>(format: F) -> (HeapStore, Table<F>) {
    let mut store = HeapStore::new(BASE, 4096);
    let table = Table::new(format, &mut store).expect("room for a root");
    (store, table)
}

/// An input and an output that are multiples of every leaf size but of nothing larger.
fn place<F: Format>(format: &F) -> (u64, u64) {
    let top = 63 - format.geometry().page_size_mask().leading_zeros();
    (1 << top, 3 << top)
}

fn leaf_levels<F: Format>(format: &F) -> Vec<u8> {
    let geometry = format.geometry();
    (0..geometry.levels).filter(|level| geometry.has_leaves(*level)).collect()
}

pub(crate) fn each_leaf_size<F: Format>(format: F) {
    let geometry = format.geometry();
    for level in leaf_levels(&format) {
        for access in accesses(&format) {
            let (mut store, mut table) = setup(format);
            let empty = store.clone();
            let ((start, oa), bytes) = (place(&format), 1u64 << geometry.entry_lg2(level));
            let iova = IovaRange::with_len(Iova::new(start), bytes).unwrap();
            let one = Mapping::new(iova, PhysAddr::new(oa), access).unwrap();
            table.map(&mut store, &one).unwrap();
            let translate = |at| walk(&format, &store, table.root(), Iova::new(at), access);
            for offset in [0, 1, bytes / 2 + 5, bytes - 1] {
                let oa = PhysAddr::new(oa + offset);
                let size_lg2 = geometry.entry_lg2(level);
                assert_eq!(translate(start + offset), Ok(Translation { oa, size_lg2, access }));
            }
            for outside in [start - 1, start + bytes] {
                assert_eq!(translate(outside).unwrap_err().kind, FaultKind::NotPresent);
            }
            let unmapped = table.unmap(&mut store, iova).unwrap();
            let table_pages = Model::new(&format).table_pages();
            let levels = u64::from(geometry.root_level() - level);
            assert_eq!(unmapped, Unmapped { leaves: 1, table_pages: levels * table_pages });
            assert_eq!(store.pages_taken(), empty.pages_taken());
        }
    }
}

pub(crate) fn faults_at_each_level<F: Format>(format: F) {
    let geometry = format.geometry();
    let (mut store, mut table) = setup(format);
    let (start, oa) = place(&format);
    let one = mapping(&format, start, 1 << geometry.granule_lg2, oa);
    table.map(&mut store, &one).unwrap();
    let wanted = one.access();
    let mut at = geometry.entry_at(geometry.root_level(), table.root(), start);
    for level in (0..geometry.levels).rev() {
        let whole = store.load(at).unwrap();
        let mut check = |raw, kind| {
            store.poke(at, raw);
            let fault = walk(&format, &store, table.root(), Iova::new(start), wanted).unwrap_err();
            store.poke(at, whole);
            let seen = (fault.stage, fault.purpose, fault.input, fault.level, fault.entry_at);
            assert_eq!(seen, (F::STAGE, Purpose::Access, start, level, at));
            assert_eq!(fault.kind, kind, "{fault}");
        };
        check(0, FaultKind::NotPresent);
        if level > 0 {
            let nowhere = PhysAddr::new(1 << 30);
            store.poke(at, format.table(nowhere));
            let fault = walk(&format, &store, table.root(), Iova::new(start), wanted).unwrap_err();
            store.poke(at, whole);
            let entry_at = geometry.entry_at(level - 1, nowhere, start);
            assert_eq!((fault.level, fault.entry_at), (level - 1, entry_at));
            assert_eq!(fault.kind, FaultKind::Unreadable);
            if let viommu_pgtable::Entry::Table { next, .. } = format.decode(level, whole) {
                at = geometry.entry_at(level - 1, next, start);
            }
        }
    }
    let misaligned = PhysAddr::new(table.root().raw() + 8);
    let fault = walk(&format, &store, misaligned, Iova::new(start), wanted).unwrap_err();
    assert_eq!(fault.kind, FaultKind::RootMisaligned);
    let wide = Iova::new(end(&format));
    let fault = walk(&format, &store, table.root(), wide, wanted).unwrap_err();
    assert_eq!((fault.kind, fault.input), (FaultKind::InputTooWide, wide.raw()));
}

pub(crate) fn refusals<F: Format>(format: F) {
    let geometry = format.geometry();
    let granule = 1u64 << geometry.granule_lg2;
    let (mut store, mut table) = setup(format);
    let before = store.clone();
    let (start, oa) = place(&format);
    let mut refused = |start, bytes, oa| {
        let refused = mapping(&format, start, bytes, oa);
        assert_eq!(table.pages_needed(&store, &refused), 0);
        let error = table.map(&mut store, &refused).unwrap_err();
        assert!(store == before, "{error}: something was written");
        error
    };
    for (start, bytes, oa) in
        [(start + 1, granule, oa), (start, granule - 1, oa), (start, granule, oa + granule / 2)]
    {
        assert!(matches!(refused(start, bytes, oa), MapError::Misaligned { .. }));
    }
    let input_end = end(&format);
    for (start, bytes) in [(input_end, granule), (input_end - granule, 2 * granule)] {
        let iova = IovaRange::with_len(Iova::new(start), bytes).unwrap();
        let input_bits = geometry.input_bits;
        assert_eq!(refused(start, bytes, oa), MapError::InputTooWide { iova, input_bits });
    }
    let output_end = 1u64 << geometry.output_bits;
    let last = PhysAddr::new(output_end + granule - 1);
    let output_bits = geometry.output_bits;
    let wide = MapError::OutputTooWide { last, output_bits };
    assert_eq!(refused(start, 2 * granule, output_end - granule), wide);
    let iova = IovaRange::with_len(Iova::new(start), granule).unwrap();
    for access in (0..16).map(Access::from_bits_truncate).filter(|a| !format.expresses(*a)) {
        let refused = Mapping::new(iova, PhysAddr::new(oa), access).unwrap();
        assert_eq!(table.map(&mut store, &refused), Err(MapError::Inexpressible { access }));
    }
    assert!(store == before);
}

pub(crate) fn no_replacement<F: Format>(format: F) {
    let granule = 1u64 << format.geometry().granule_lg2;
    for level in leaf_levels(&format).into_iter().filter(|level| *level > 0) {
        let (start, oa) = place(&format);
        let bytes = 1u64 << format.geometry().entry_lg2(level);
        let block = mapping(&format, start, bytes, oa);
        let page = mapping(&format, start + granule, granule, 0);
        for (first, second) in [(block, page), (page, block)] {
            let (mut store, mut table) = setup(format);
            table.map(&mut store, &first).unwrap();
            let before = store.clone();
            let at = second.iova().start();
            assert_eq!(table.map(&mut store, &second), Err(MapError::Overlap { at }));
            assert!(store == before, "level {level}");
        }
    }
}

pub(crate) fn no_split<F: Format>(format: F) {
    let geometry = format.geometry();
    for level in leaf_levels(&format) {
        let (start, oa) = place(&format);
        let (size_lg2, bytes) = (geometry.entry_lg2(level), 1u64 << geometry.entry_lg2(level));
        let (mut store, mut table) = setup(format);
        // a page on either side, so that a range can reach over both edges
        let granule = 1u64 << geometry.granule_lg2;
        table.map(&mut store, &mapping(&format, start - granule, granule, 0)).unwrap();
        table.map(&mut store, &mapping(&format, start, bytes, oa)).unwrap();
        let before = store.clone();
        for (first, last, at) in [
            (start + 1, start + bytes - 1, start + 1),
            (start, start + bytes - 2, start),
            (start - granule, start + bytes / 2, start + bytes / 2),
            (start + bytes / 2, start + 2 * bytes - 1, start + bytes / 2),
        ] {
            let range = IovaRange::new(Iova::new(first), Iova::new(last)).unwrap();
            let split = UnmapError::Split { at: Iova::new(at), size_lg2 };
            assert_eq!(table.unmap(&mut store, range), Err(split));
            assert!(store == before, "level {level}");
        }
        let wide = IovaRange::new(Iova::new(0), Iova::new(end(&format))).unwrap();
        assert!(matches!(table.unmap(&mut store, wide), Err(UnmapError::InputTooWide { .. })));
        let all = IovaRange::new(Iova::new(0), Iova::new(end(&format) - 1)).unwrap();
        assert_eq!(table.unmap(&mut store, all).unwrap().leaves, 2);
    }
}

pub(crate) fn destroy_returns_all<F: Format>(format: F) {
    let geometry = format.geometry();
    let granule = 1u64 << geometry.granule_lg2;
    let (mut store, mut table) = setup(format);
    for level in 0..geometry.levels {
        // two entries of each level, in the same table where it is small
        for (number, at) in
            [geometry.entry_lg2(level), geometry.table_lg2(level) - 2].iter().enumerate()
        {
            let page = 2 * u64::from(level) + number as u64;
            let one = mapping(&format, (1 << at) + page * granule, granule, 0);
            table.map(&mut store, &one).unwrap();
        }
    }
    let highest = end(&format) - granule;
    table.map(&mut store, &mapping(&format, highest, granule, 0)).unwrap();
    assert!(store.pages_taken() > u64::from(geometry.levels));
    table.destroy(&mut store);
    assert_eq!(store.pages_taken(), 0);
}
