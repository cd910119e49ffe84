//! Both writers against a map: what was set is found, and nothing else, at any time.

use proptest::sample::{Index, select};
use viommu_pgtable::TableStore;

use super::*;
use crate::SetError;

/// PASID bits of the functions, whose requester ids are neighbours, in a leaf and across leaves.
const FUNCTIONS: [(u16, u8); 3] = [(0x003f, 0), (0x0040, 4), (0x0041, 20)];

/// What a step writes or clears: a function, and a PASID of it or 0.
type Place = (usize, u32);

#[derive(Debug, Clone)]
enum Step {
    Set(Place),
    /// One of those that are set.
    Replace(Index),
    Clear(Place),
    ClearSet(Index),
    /// Makes freed pages available again, as after a drain.
    Reclaim,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = prop_oneof![0..4_u32, 60..70_u32, 4090..4100_u32, (1_u32 << 20) - 2..1 << 20];
    let place = (0..FUNCTIONS.len(), index)
        .prop_map(|(function, index)| (function, index % (1 << FUNCTIONS[function].1)));
    let step = prop_oneof![
        6 => place.clone().prop_map(Step::Set),
        3 => any::<Index>().prop_map(Step::Replace),
        1 => place.prop_map(Step::Clear),
        3 => any::<Index>().prop_map(Step::ClearSet),
        1 => Just(Step::Reclaim),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The tables of an architecture.
enum Writer {
    Vtd { root: RootTable, tables: Vec<PasidTable> },
    SmmuV3 { streams: StreamTable, tables: Vec<ContextTable> },
}

impl Writer {
    fn vtd(store: &mut HeapStore) -> Self {
        let root = RootTable::new(store).unwrap();
        let tables = FUNCTIONS.map(|(bdf, bits)| {
            let table = PasidTable::new(store, bits).unwrap();
            root.set_context(store, bdf, &table.context()).unwrap();
            table
        });
        Self::Vtd { root, tables: tables.to_vec() }
    }

    fn smmuv3(store: &mut HeapStore) -> Self {
        let streams = StreamTable::new(store).unwrap();
        let tables = FUNCTIONS.map(|(bdf, bits)| {
            let table = ContextTable::new(store, bits).unwrap();
            let config = StreamConfig::Stage1(table.stage1(Untagged::Context0).unwrap());
            streams.set(store, bdf, &StreamEntry { vmid: 0, config }).unwrap();
            table
        });
        Self::SmmuV3 { streams, tables: tables.to_vec() }
    }

    fn structures(&self) -> Structures {
        match self {
            Self::Vtd { root, .. } => Structures::Vtd { root: root.root() },
            Self::SmmuV3 { streams, .. } => Structures::SmmuV3(streams.root()),
        }
    }

    /// Lets `place` lead to a root table that `tag` names.
    fn set(&self, store: &mut HeapStore, place: Place, tag: u64) -> Result<(), SetError> {
        let (function, index) = place;
        match self {
            Self::Vtd { tables, .. } => {
                let root = PhysAddr::new(BASE.raw() + (tag << 12));
                let translation = Translation::SecondLevel { root, width: AddressWidth::Bits48 };
                tables[function].set(store, index, &PasidEntry { domain_tag: 0, translation })
            }
            Self::SmmuV3 { tables, .. } => {
                tables[function].set(store, index, &descriptor(BASE.raw() + (tag << 12)))
            }
        }
    }

    fn clear(&self, store: &mut HeapStore, (function, index): Place) {
        match self {
            Self::Vtd { tables, .. } => tables[function].clear(store, index),
            Self::SmmuV3 { tables, .. } => tables[function].clear(store, index),
        }
    }

    /// What `place` leads to.
    fn find(&self, store: &HeapStore, (function, index): Place) -> Option<u64> {
        let endpoint = EndpointId::new(FUNCTIONS[function].0.into());
        let guest = Guest::default();
        let spaces = Memories::new(store, &guest, BASE);
        let root = match lookup(&spaces, &self.structures(), endpoint, pasid(index)).ok()? {
            Route::Second(SecondTable::Vtd(second)) => second.root,
            Route::First { table: FirstTable::Arm(first), .. } => first.tables.lower()?.root(),
            route => panic!("{route:?}"),
        };
        Some((root.raw() - BASE.raw()) >> 12)
    }
}

fn check(store: &mut HeapStore, writer: &Writer, steps: &[Step]) {
    let empty = store.pages_taken();
    let mut model = BTreeMap::new();
    for (tag, step) in (1..).zip(steps) {
        let set: Vec<Place> = model.keys().copied().collect();
        let pick = |index: &Index| (!set.is_empty()).then(|| set[index.index(set.len())]);
        let touched = match step {
            Step::Set(place) => Some(*place),
            Step::Replace(index) => pick(index),
            Step::Clear(place) => Some(*place),
            Step::ClearSet(index) => pick(index),
            Step::Reclaim => {
                store.reclaim();
                None
            }
        };
        let Some(place) = touched else { continue };
        if matches!(step, Step::Clear(_) | Step::ClearSet(_)) {
            writer.clear(store, place);
            model.remove(&place);
        } else {
            let free_pages = store.pages_left();
            match writer.set(store, place, tag) {
                Ok(()) => drop(model.insert(place, tag)),
                Err(SetError::OutOfTables(_)) => assert_eq!(free_pages, 0),
                Err(error) => panic!("{error}"),
            }
        }
        for probe in set.into_iter().chain([place]) {
            assert_eq!(writer.find(store, probe), model.get(&probe).copied(), "{probe:x?}");
        }
    }
    for place in model.into_keys() {
        writer.clear(store, place);
    }
    assert_eq!(store.pages_taken(), empty, "leaves without entries are left");
}

proptest! {
    #[test]
    fn what_was_set_is_found_and_nothing_else(
        steps in steps(), spare_pages in select(vec![2_u64, 8, 100]), arm in any::<bool>(),
    ) {
        let mut store = HeapStore::new(BASE, 300);
        let writer = if arm { Writer::smmuv3(&mut store) } else { Writer::vtd(&mut store) };
        while store.pages_left() > spare_pages {
            store.alloc_pages(1).unwrap();
        }
        check(&mut store, &writer, &steps);
    }
}
