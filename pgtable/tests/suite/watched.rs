//! What a reader sees between two stores of the mapper.

use std::cell::RefCell;

use proptest::prelude::*;
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Fault, FaultKind, Format, Iova, OutOfTables, PhysAddr, Table, TableMemory, TableStore,
    Translation, walk,
};

use crate::model::Leaf;
use crate::sequences::{Op, op};

/// A store in which somebody walks after every change.
struct Watched<F> {
    heap: HeapStore,
    format: F,
    root: Option<PhysAddr>,
    /// Leaves that the mapper is adding or removing, and all others.
    changing: Vec<(u64, Leaf)>,
    steady: Vec<(u64, Leaf)>,
    walks: RefCell<u64>,
    /// How many of `changing` were there after each store.
    seen: Vec<usize>,
}

impl<F: Format> Watched<F> {
    fn translate(&self, at: u64, leaf: &Leaf) -> Result<Translation, Fault> {
        let root = self.root.unwrap_or_default();
        *self.walks.borrow_mut() += 1;
        walk(&self.format, self, root, Iova::new(at), leaf.access)
    }

    fn watch(heap: HeapStore, format: F) -> (Self, Table<F>) {
        let (changing, steady, seen) = (Vec::new(), Vec::new(), Vec::new());
        let walks = RefCell::new(0);
        let mut store = Self { heap, format, root: None, changing, steady, walks, seen };
        let table = Table::new(format, &mut store).unwrap();
        store.root = Some(table.root());
        (store, table)
    }

    fn look(&mut self) {
        if self.root.is_none() {
            return;
        }
        let there = |(at, leaf): &&(u64, Leaf)| self.translate(*at, leaf).is_ok();
        self.seen.push(self.changing.iter().filter(there).count());
        let whole = |leaf: &Leaf| {
            let Leaf { size_lg2, access, oa } = *leaf;
            Ok(Translation { oa: PhysAddr::new(oa), size_lg2, access })
        };
        for (at, leaf) in &self.steady {
            assert_eq!(self.translate(*at, leaf), whole(leaf), "at {at:#x}");
        }
        for (at, leaf) in &self.changing {
            match self.translate(*at, leaf) {
                Err(fault) => assert_eq!(fault.kind, FaultKind::NotPresent, "{fault}"),
                found => assert_eq!(found, whole(leaf), "at {at:#x}"),
            }
        }
    }
}

impl<F: Format> TableMemory for Watched<F> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        assert!(self.heap.is_taken(at), "a table leads to the withdrawn page at {at}");
        self.heap.load(at)
    }
}

impl<F: Format> TableStore for Watched<F> {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.heap.store(at, entry);
        self.look();
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        self.heap.alloc_pages(pages)
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        self.heap.free_pages(start, pages);
        self.look();
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

/// Keeps a few of `leaves`: both ends and some between.
fn sample(leaves: Vec<(u64, Leaf)>) -> Vec<(u64, Leaf)> {
    let step = leaves.len() / 6 + 1;
    let last = leaves.last().copied();
    leaves.into_iter().step_by(step).chain(last).collect()
}

pub(crate) fn every_state_is_consistent<F: Format>(format: F) {
    let ops = prop::collection::vec(op(&format), 1..6);
    let config = ProptestConfig { cases: 12, ..ProptestConfig::default() };
    proptest!(config, |(ops in ops)| {
        let heap = HeapStore::new(PhysAddr::new(1 << 31), 1 << 16);
        let (mut store, mut table) = Watched::watch(heap, format);
        let mut model = crate::model::Model::new(&format);
        for op in &ops {
            match op {
                Op::Map(mapping) => {
                    if !model.touched(&mapping.iova()).is_empty() {
                        continue;
                    }
                    let added = model.leaves_of(mapping);
                    store.steady = sample(model.leaves.iter().map(|(a, l)| (*a, *l)).collect());
                    store.changing = sample(added.clone());
                    table.map(&mut store, mapping).unwrap();
                    model.leaves.extend(added);
                }
                Op::Unmap(range) => {
                    let inside = model.touched(range);
                    let mut left = model.clone();
                    inside.iter().for_each(|(at, _)| {
                        left.leaves.remove(at);
                    });
                    store.steady = sample(left.leaves.iter().map(|(a, l)| (*a, *l)).collect());
                    store.changing = sample(inside);
                    if table.unmap(&mut store, *range).is_ok() {
                        model = left;
                    }
                }
            }
            store.look();
        }
        let leaves = model.leaves.len() as u64;
        prop_assert!(leaves == 0 || *store.walks.borrow() > 0);
    });
}

/// Maps granules on both sides of the place where two tables of level 0 meet, in one entry of the root:
/// one store makes them all visible.
pub(crate) fn new_tables_appear_whole<F: Format>(format: F) {
    let geometry = format.geometry();
    let granule = 1u64 << geometry.granule_lg2;
    if geometry.levels == 1 {
        return;
    }
    let heap = HeapStore::new(PhysAddr::new(1 << 31), 4096);
    let (mut store, mut table) = Watched::watch(heap, format);
    let meet = match geometry.levels {
        2 => granule * 2,
        _ => 1 << geometry.table_lg2(0),
    };
    let mapping = crate::model::mapping(&format, meet - 2 * granule, 4 * granule, granule);
    let leaves = crate::model::Model::new(&format).leaves_of(&mapping);
    store.changing.clone_from(&leaves);
    table.map(&mut store, &mapping).unwrap();
    let (last, before) = store.seen.split_last().unwrap();
    assert_eq!(*last, leaves.len());
    assert!(before.len() >= leaves.len() && before.iter().all(|seen| *seen == 0), "{before:?}");
}
