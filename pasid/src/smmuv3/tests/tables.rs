//! The writer's tables, looked up by the reader.

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{Fault, OutOfTables, PhysAddr, TableMemory, TableStore};

use super::*;
use crate::{FirstTable, Pasid, Route, SetError, Space, Spaces};

const BASE: u64 = 1 << 46;
const BDF: u16 = 0x0121;

/// A reader of the store, where no guest has memory.
struct Reader<'a>(&'a HeapStore);

impl Spaces for Reader<'_> {
    type Tables = HeapStore;

    fn tables(&self) -> &HeapStore {
        self.0
    }

    fn table_base(&self) -> PhysAddr {
        PhysAddr::new(BASE)
    }

    fn load_guest(&self, _: PhysAddr) -> Option<u64> {
        None
    }

    fn load_through(&self, _: &Stage2, at: PhysAddr) -> Result<Option<u64>, Fault> {
        Err(crate::testing::refused(at))
    }
}

/// A store, its stream table, and one function with its descriptors.
fn function(pasid_bits: u8) -> (HeapStore, StreamTable, ContextTable) {
    let mut store = HeapStore::new(PhysAddr::new(BASE), 1000);
    let streams = StreamTable::new(&mut store).unwrap();
    let contexts = ContextTable::new(&mut store, pasid_bits).unwrap();
    let config = StreamConfig::Stage1(contexts.stage1(Untagged::Context0).unwrap());
    streams.set(&mut store, BDF, &StreamEntry { vmid: 0, config }).unwrap();
    (store, streams, contexts)
}

fn descriptor(asid: u16) -> ContextDescriptor {
    let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
    ContextDescriptor {
        tables: Stage1Tables::lower_only(Stage1Table::new(PhysAddr::new(BASE), format).unwrap()),
        asid,
        mair: 0xff,
        controls: ContextControls::empty(),
    }
}

/// The descriptor's tag, or what was wrong.
fn find(
    store: &HeapStore,
    streams: &StreamTable,
    bdf: u16,
    pasid: Option<u32>,
) -> Result<u16, LookupFaultKind> {
    let pasid = pasid.map(|raw| Pasid::new(raw).unwrap());
    match lookup(&Reader(store), &streams.root(), u32::from(bdf), pasid) {
        Ok(Route::First { table: FirstTable::Arm(found), space: Space::Tables }) => Ok(found.asid),
        Ok(route) => panic!("{route:?}"),
        Err(fault) => Err(fault.kind),
    }
}

#[test]
fn untagged_traffic_finds_descriptor_0_and_each_pasid_its_own() {
    let (mut store, streams, contexts) = function(20);
    for (index, asid) in [(0, 10), (1, 11), (64, 12), ((1 << 20) - 1, 13)] {
        contexts.set(&mut store, index, &descriptor(asid)).unwrap();
    }
    assert_eq!(find(&store, &streams, BDF, None), Ok(10));
    assert_eq!(find(&store, &streams, BDF, Some(1)), Ok(11));
    assert_eq!(find(&store, &streams, BDF, Some(64)), Ok(12));
    assert_eq!(find(&store, &streams, BDF, Some((1 << 20) - 1)), Ok(13));
    assert_eq!(find(&store, &streams, BDF, Some(2)), Err(LookupFaultKind::BadContext));
    assert_eq!(find(&store, &streams, BDF, Some(128)), Err(LookupFaultKind::BadSubstream));
    // a neighbour in the leaf, and one in no leaf
    assert_eq!(find(&store, &streams, BDF + 1, None), Err(LookupFaultKind::BadEntry));
    assert_eq!(find(&store, &streams, BDF + 64, None), Err(LookupFaultKind::UnknownStream));
}

#[test]
fn a_function_without_pasids_has_one_descriptor() {
    let (mut store, streams, contexts) = function(0);
    contexts.set(&mut store, 0, &descriptor(7)).unwrap();
    assert_eq!(find(&store, &streams, BDF, None), Ok(7));
    assert_eq!(find(&store, &streams, BDF, Some(1)), Err(LookupFaultKind::BadContext));
    assert_eq!(find(&store, &streams, BDF, Some(2)), Err(LookupFaultKind::BadSubstream));
    let too_wide = Err(SetError::TooWide { index: 2 });
    assert_eq!(contexts.set(&mut store, 2, &descriptor(8)), too_wide);
}

/// The words that differ, but for those of the leaf that the pointer at `pointer_at` leads to now.
fn changed(before: &HeapStore, after: &HeapStore, pointer_at: u64) -> Vec<u64> {
    let word = |store: &HeapStore, at| store.load(PhysAddr::new(at)).unwrap_or(0);
    let leaf = word(after, pointer_at) >> 12;
    let words = (BASE..BASE + 100 * 4096).step_by(8).filter(|at| at >> 12 != leaf);
    words.filter(|at| word(before, *at) != word(after, *at)).collect()
}

#[test]
fn a_set_touches_one_pointer_and_no_page_that_readers_are_in() {
    let (mut store, streams, contexts) = function(20);
    contexts.set(&mut store, 5, &descriptor(1)).unwrap();
    let pointer = contexts.stage1(Untagged::Context0).unwrap().contexts().raw();
    let before = store.clone();
    contexts.set(&mut store, 5, &descriptor(2)).unwrap();
    assert_eq!(changed(&before, &store, pointer), [pointer]);
    assert_eq!(find(&store, &streams, BDF, Some(5)), Ok(2));

    let pointer = streams.root().base().raw() + u64::from(BDF >> 6) * 8;
    let before = store.clone();
    let entry = StreamEntry { vmid: 0, config: StreamConfig::Abort };
    streams.set(&mut store, BDF, &entry).unwrap();
    assert_eq!(changed(&before, &store, pointer), [pointer]);
    assert_eq!(find(&store, &streams, BDF, Some(5)), Err(LookupFaultKind::Aborted));
}

#[test]
fn clearing_all_gives_back_all_leaves() {
    let (mut store, streams, contexts) = function(20);
    let empty = store.pages_taken();
    for index in [0, 1, 64, 1000] {
        contexts.set(&mut store, index, &descriptor(1)).unwrap();
    }
    assert_eq!(store.pages_taken(), empty + 3);
    contexts.clear(&mut store, 1);
    contexts.clear(&mut store, 1);
    assert_eq!(find(&store, &streams, BDF, Some(1)), Err(LookupFaultKind::BadContext));
    assert_eq!(find(&store, &streams, BDF, None), Ok(1));
    for index in [0, 64, 1000, 1 << 20] {
        contexts.clear(&mut store, index);
    }
    assert_eq!(store.pages_taken(), empty);
    streams.clear(&mut store, BDF);
    streams.clear(&mut store, BDF);
    assert_eq!(store.pages_taken(), empty - 1);
    assert_eq!(find(&store, &streams, BDF, None), Err(LookupFaultKind::UnknownStream));
}

#[test]
fn without_memory_a_set_changes_nothing_and_a_clear_still_works() {
    let (mut store, streams, contexts) = function(20);
    contexts.set(&mut store, 5, &descriptor(1)).unwrap();
    let free_pages = store.pages_left();
    for _ in 0..free_pages {
        store.alloc_pages(1).unwrap();
    }
    let error = SetError::OutOfTables(OutOfTables { needed_pages: 1, free_pages: 0 });
    assert_eq!(contexts.set(&mut store, 5, &descriptor(2)), Err(error));
    assert_eq!(find(&store, &streams, BDF, Some(5)), Ok(1));
    contexts.clear(&mut store, 5);
    assert_eq!(find(&store, &streams, BDF, Some(5)), Err(LookupFaultKind::BadSubstream));
}

#[test]
fn the_registers_say_where_the_table_is() {
    let (_, streams, _) = function(0);
    let root = streams.root();
    // 6.3.24: LOG2SIZE = 16, SPLIT = 6, FMT = 0b01
    assert_eq!(root.base_config(), 0x1_0190);
    let again = StreamRoot::new(root.base(), 16, StreamLayout::TwoLevels { split: 6 });
    assert_eq!(again, Some(root));
    assert_eq!(StreamRoot::from_registers(root.base(), root.base_config()), Some(root));
    let linear = StreamRoot::new(root.base(), 8, StreamLayout::Linear).unwrap();
    assert_eq!(StreamRoot::from_registers(root.base(), linear.base_config()), Some(linear));
    for reserved in [0x2_0190, 0x3_0190, 0x1_01d0, 0x1_01a1, 0x21] {
        assert_eq!(StreamRoot::from_registers(root.base(), reserved), None, "{reserved:#x}");
    }
    assert_eq!(StreamRoot::new(root.base(), 33, StreamLayout::Linear), None);
    assert_eq!(StreamRoot::new(root.base(), 16, StreamLayout::TwoLevels { split: 7 }), None);
}
