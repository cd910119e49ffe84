//! Random maps and unmaps, compared with the model after each.

use proptest::prelude::*;
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    FaultKind, Format, Geometry, Iova, IovaRange, MapError, Mapping, OutOfTables, PhysAddr, Table,
    TableStore, UnmapError, walk,
};

use crate::model::{Leaf, Model, accesses, end, pick_leaves};

/// Most leaves of one mapping: enough to fill a table of 4 KiB; more only cost time.
const MAX_LEAVES: usize = 600;

const BASE: PhysAddr = PhysAddr::new(1 << 31);

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Map(Mapping),
    Unmap(IovaRange),
}

/// A range that begins or ends near a place where an entry of some level begins.
fn range(geometry: Geometry, end: u64) -> impl Strategy<Value = IovaRange> {
    let granule = 1u64 << geometry.granule_lg2;
    let level = 0..geometry.levels;
    (level.clone(), 0u64..4, 0u64..5, level, 0u64..3, 0u64..5).prop_map(
        move |(anchor, times, before, span, spans, more)| {
            let anchor = (times << geometry.entry_lg2(anchor)) % end;
            let start = anchor.wrapping_sub(before * granule) % end;
            let bytes = (spans << geometry.entry_lg2(span)) + (more + 1) * granule;
            let last = start.saturating_add(bytes - 1).min(end - 1);
            IovaRange::new(Iova::new(start), Iova::new(last)).expect("ordered")
        },
    )
}

pub(crate) fn op<F: Format>(format: &F) -> impl Strategy<Value = Op> + use<F> {
    let (geometry, end) = (format.geometry(), end(format));
    let unit = 0..geometry.levels;
    let map = (range(geometry, end), unit, 0u64..8, prop::sample::select(accesses(format)));
    let map =
        map.prop_filter_map("too many leaves or too wide", move |(iova, unit, apart, access)| {
            // input and output differ by a multiple of one level's size
            let oa = iova.start().raw().wrapping_add(apart << geometry.entry_lg2(unit));
            let oa = PhysAddr::new(oa & ((1 << (geometry.output_bits - 2)) - 1));
            let mapping = Mapping::new(iova, oa, access).ok()?;
            let fits = mapping.oa_last().raw() >> geometry.output_bits == 0;
            let few = || pick_leaves(geometry, mapping).take(MAX_LEAVES + 1).count() <= MAX_LEAVES;
            (fits && few()).then_some(Op::Map(mapping))
        });
    prop_oneof![3 => map, 2 => range(geometry, end).prop_map(Op::Unmap)]
}

/// Checks what the table says at the edges of `touched`.
fn check<F: Format>(table: &Table<F>, store: &HeapStore, model: &Model, touched: &IovaRange) {
    let (start, last) = (touched.start().raw(), touched.last().raw());
    let leaves = model.touched(touched);
    let edges = leaves.iter().flat_map(|(at, leaf)| [*at, at + ((1 << leaf.size_lg2) - 1)]);
    let outside = [start.saturating_sub(1), start, last, last.saturating_add(1)];
    for at in edges.chain(outside).filter(|at| *at < model.end) {
        let iova = Iova::new(at);
        let expected = model.translate(iova);
        let wanted = expected.map_or(accesses(table.format())[0], |(_, leaf)| leaf.access);
        match (walk(table.format(), store, table.root(), iova, wanted), expected) {
            (Ok(found), Some((oa, Leaf { size_lg2, access, .. }))) => {
                assert_eq!((found.oa, found.size_lg2, found.access), (oa, size_lg2, access));
            }
            (Err(fault), None) => assert_eq!(fault.kind, FaultKind::NotPresent, "{fault}"),
            (found, expected) => panic!("at {iova}: {found:?}, model {expected:?}"),
        }
    }
}

fn map<F: Format>(
    table: &mut Table<F>,
    store: &mut HeapStore,
    model: &mut Model,
    mapping: &Mapping,
) {
    let (needed, taken) = (table.pages_needed(store, mapping), store.pages_taken());
    let added = model.leaves_of(mapping);
    if !model.touched(&mapping.iova()).is_empty() {
        let before = store.clone();
        let error = table.map(store, mapping).unwrap_err();
        assert!(matches!(error, MapError::Overlap { .. }), "{error}");
        assert!(*store == before, "something was written");
        return;
    }
    assert_eq!(needed, model.pages_needed(&added), "{mapping:?}");
    table.map(store, mapping).unwrap();
    assert_eq!(store.pages_taken() - taken, needed, "{mapping:?}");
    model.leaves.extend(added);
}

fn unmap<F: Format>(
    table: &mut Table<F>,
    store: &mut HeapStore,
    model: &mut Model,
    range: &IovaRange,
) {
    let leaves = model.touched(range);
    let splits = |(at, leaf): &(u64, Leaf)| {
        *at < range.start().raw() || at + ((1 << leaf.size_lg2) - 1) > range.last().raw()
    };
    if leaves.iter().any(splits) {
        let before = store.clone();
        assert!(matches!(table.unmap(store, *range), Err(UnmapError::Split { .. })));
        assert!(*store == before, "something was written");
        return;
    }
    let taken = store.pages_taken();
    let unmapped = table.unmap(store, *range).unwrap();
    assert_eq!(unmapped.leaves, leaves.len() as u64);
    assert_eq!(unmapped.table_pages, taken - store.pages_taken());
    leaves.iter().for_each(|(at, _)| {
        model.leaves.remove(at);
    });
    store.reclaim();
}

pub(crate) fn agree_with_the_model<F: Format>(format: F) {
    let ops = prop::collection::vec(op(&format), 1..24);
    let config = ProptestConfig { cases: 48, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops)| {
        let mut store = HeapStore::new(BASE, 1 << 16);
        let mut table = Table::new(format, &mut store).unwrap();
        let mut model = Model::new(&format);
        for op in &ops {
            let touched = match op {
                Op::Map(mapping) => {
                    map(&mut table, &mut store, &mut model, mapping);
                    mapping.iova()
                }
                Op::Unmap(range) => {
                    unmap(&mut table, &mut store, &mut model, range);
                    *range
                }
            };
            check(&table, &store, &model, &touched);
            prop_assert_eq!(store.pages_taken(), model.pages());
        }
        let all = IovaRange::new(Iova::new(0), Iova::new(model.end - 1));
        unmap(&mut table, &mut store, &mut model, &all.unwrap());
        prop_assert_eq!(store.pages_taken(), model.pages(), "only the root is left");
        table.destroy(&mut store);
        prop_assert_eq!(store.pages_taken(), 0);
    });
}

pub(crate) fn out_of_tables_changes_nothing<F: Format>(format: F) {
    let ops = prop::collection::vec(op(&format), 1..8);
    let config = ProptestConfig { cases: 48, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops)| {
        let root_pages = Model::new(&format).pages();
        // as many pages as two mappings of one granule take
        let limit = root_pages + 2 * u64::from(format.geometry().root_level());
        let mut store = HeapStore::new(BASE, limit);
        let mut table = Table::new(format, &mut store).unwrap();
        let mut model = Model::new(&format);
        for op in &ops {
            let Op::Map(mapping) = op else { continue };
            let (before, pages_before) = (store.clone(), store.pages_taken());
            let added = model.leaves_of(mapping);
            match table.map(&mut store, mapping) {
                Ok(()) => model.leaves.extend(added),
                Err(MapError::OutOfTables(OutOfTables { needed_pages, free_pages })) => {
                    prop_assert!(needed_pages > free_pages || model.table_pages() > 1);
                    if model.table_pages() == 1 {
                        prop_assert_eq!(needed_pages, table.pages_needed(&store, mapping));
                        prop_assert_eq!(free_pages, store.pages_left());
                        prop_assert!(store == before, "something was written");
                    }
                    prop_assert_eq!(store.pages_taken(), pages_before);
                }
                Err(error) => prop_assert!(matches!(error, MapError::Overlap { .. }), "{}", error),
            }
            check(&table, &store, &model, &mapping.iova());
            prop_assert_eq!(store.pages_taken(), model.pages());
        }
    });
}
