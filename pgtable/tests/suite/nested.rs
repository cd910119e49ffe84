//! Two stages against the two walks that they are made of.

use std::collections::HashMap;

use proptest::prelude::*;
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, Behind, Entry, Fault, FaultKind, Format, Iova, IovaRange, Mapping, PhysAddr, Purpose,
    Stage, Table, TableMemory, TableStore, Translation, walk, walk_nested,
};

use crate::entries::Noise;
use crate::model::{end, mapping};

const PAGE: u64 = 1 << 16;
/// Where the software under the second level sees its tables.
const UNDER: u64 = 1 << 28;
/// Where the second level's tables are; the software underneath has other things at these addresses.
const OVER: u64 = 1 << 31;
const TABLE_PAGES: u64 = 128;

/// What is behind the second level: the first level's tables, 64 KiB pieces scattered in reverse.
struct Scattered {
    under: HeapStore,
    pieces: HashMap<u64, u64>,
}

impl TableMemory for Scattered {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let piece = self.pieces.get(&(at.raw() / PAGE))?;
        self.under.load(PhysAddr::new(piece * PAGE + at.raw() % PAGE))
    }
}

struct Stages<F, G> {
    first: Table<F>,
    second: Table<G>,
    over: HeapStore,
    memory: Scattered,
}

/// Where the second level leads the piece of memory at `at`.
const fn scattered(at: u64) -> u64 {
    UNDER * 3 - (at - UNDER) - PAGE
}

impl<F: Format, G: Format> Stages<F, G> {
    /// A second level that leads to all of the first level's tables.
    fn new(first: F, second: G) -> Self {
        let mut under = HeapStore::new(PhysAddr::new(UNDER), TABLE_PAGES * 16);
        let mut over = HeapStore::new(PhysAddr::new(OVER), 4096);
        let first = Table::new(first, &mut under).unwrap();
        let mut second = Table::new(second, &mut over).unwrap();
        let mut pieces = HashMap::new();
        for at in (0..TABLE_PAGES).map(|piece| UNDER + piece * PAGE) {
            second.map(&mut over, &mapping(second.format(), at, PAGE, scattered(at))).unwrap();
            pieces.insert(scattered(at) / PAGE, at / PAGE);
        }
        Self { first, second, over, memory: Scattered { under, pieces } }
    }

    fn nested(&self, iova: u64, access: Access) -> Result<Translation, Fault> {
        let (format, root) = (*self.second.format(), self.second.root());
        let behind = Behind::new(format, &self.over, root, &self.memory);
        walk_nested(self.first.format(), self.first.root(), &behind, Iova::new(iova), access)
    }

    fn upper(&self, iova: u64, access: Access) -> Result<Translation, Fault> {
        let (format, root) = (self.first.format(), self.first.root());
        walk(format, &self.memory.under, root, Iova::new(iova), access)
    }

    fn lower(&self, at: u64, access: Access) -> Result<Translation, Fault> {
        walk(self.second.format(), &self.over, self.second.root(), Iova::new(at), access)
    }

    fn cut(&mut self, at: u64) {
        let start = Iova::new(at / PAGE * PAGE);
        let piece = IovaRange::with_len(start, PAGE).unwrap();
        self.second.unmap(&mut self.over, piece).unwrap();
    }
}

/// What two stages should do, from what each does.
fn combined<F: Format, G: Format>(
    stages: &Stages<F, G>,
    iova: u64,
    access: Access,
) -> Result<Translation, Fault> {
    let upper = stages.upper(iova, access)?;
    let lower = stages.lower(upper.oa.raw(), access)?;
    let size_lg2 = upper.size_lg2.min(lower.size_lg2);
    Ok(Translation { oa: lower.oa, size_lg2, access: upper.access & lower.access })
}

/// One mapping, by units of 64 KiB.
fn map<H: Format, S: TableStore>(
    table: &mut Table<H>,
    store: &mut S,
    (start, units, oa, bits): (u64, u64, u64, u8),
) {
    let rights = [Access::RW, Access::READ, Access::RWX, Access::READ | Access::PRIVILEGED];
    let access = rights[usize::from(bits % 4)];
    let access = if table.format().expresses(access) { access } else { Access::READ };
    let iova = IovaRange::with_len(Iova::new(start * PAGE), units * PAGE).unwrap();
    // overlaps are refused: then the earlier one counts
    let _ = table.map(store, &Mapping::new(iova, PhysAddr::new(oa * PAGE), access).unwrap());
}

pub(crate) fn stages_combine<F: Format, G: Format>(first: F, second: G) {
    // input and output often in step, so that pages of 2 MiB (32 units) and more come up on both levels
    let place = || {
        let units = prop_oneof![1u64..40, Just(64u64), Just(512u64)];
        let apart = prop_oneof![0u64..1024, (0u64..32).prop_map(|pages| pages * 32)];
        (0u64..32, 0u64..32, units, apart, 0u8..4).prop_map(|(large, small, units, apart, bits)| {
            let start = large * 32 + if bits % 2 == 0 { 0 } else { small };
            (start, units, (start + apart) % 1024, bits)
        })
    };
    let maps = || prop::collection::vec(place(), 1..12);
    let config = ProptestConfig { cases: 48, ..ProptestConfig::default() };
    proptest!(config, |(upper in maps(), lower in maps(), at in prop::collection::vec((0u64..1600, 0u64..PAGE), 64), wanted in 1u8..16)| {
        let mut stages = Stages::new(first, second);
        for one in upper {
            map(&mut stages.first, &mut stages.memory.under, one);
        }
        for one in lower {
            map(&mut stages.second, &mut stages.over, one);
        }
        let wanted = Access::from_bits_truncate(wanted);
        for (unit, offset) in at {
            let iova = unit * PAGE + offset;
            let found = stages.nested(iova, wanted);
            prop_assert_eq!(found, combined(&stages, iova, wanted));
            if let Ok(translation) = found {
                prop_assert!(translation.access.permits(wanted));
            }
        }
    });
}

/// Takes the way to each table of the first level away, one at a time.
pub(crate) fn each_table_access_is_translated<F: Format, G: Format>(first: F, second: G) {
    let geometry = first.geometry();
    let iova = end(&first) - (1 << geometry.granule_lg2);
    for level in (0..geometry.levels).rev() {
        let mut stages = Stages::new(first, second);
        // each table in a piece of its own
        let one = mapping(&first, iova, 1 << geometry.granule_lg2, 0);
        let filler = |stages: &mut Stages<F, G>| {
            while !stages.memory.under.pages_taken().is_multiple_of(PAGE / 4096) {
                stages.memory.under.alloc_pages(1).unwrap();
            }
        };
        filler(&mut stages);
        stages.first.map(&mut stages.memory.under, &one).unwrap();
        let mut table = stages.first.root();
        for above in (level + 1..geometry.levels).rev() {
            let at = geometry.entry_at(above, table, iova);
            let raw = stages.memory.under.load(at).unwrap();
            let Entry::Table { next, .. } = first.decode(above, raw) else {
                panic!("no table at level {above}");
            };
            table = next;
        }
        let entry = geometry.entry_at(level, table, iova).raw();
        stages.cut(entry);
        let fault = stages.nested(iova, one.access()).unwrap_err();
        assert_eq!((fault.stage, fault.purpose), (Stage::Second, Purpose::TableEntry), "{fault}");
        assert_eq!(fault.kind, FaultKind::NotPresent);
        // a higher table may lie in the same piece: then that one's entry faults first
        assert_eq!(fault.input / PAGE, entry / PAGE);
    }
}

/// An address that the software underneath wrote is looked up behind the second level, whatever lies at
/// that number in the second level's own memory.
pub(crate) fn no_pointer_resolves_among_the_second_levels_tables<F: Format, G: Format>(
    first: F,
    second: G,
) {
    let mut stages = Stages::new(first, second);
    let root = stages.first.root();
    let top = first.geometry().root_level();
    // the entry leads to the second level's root table, by its number in the second level's memory
    let over = stages.second.root().raw();
    let aligned = over >> first.geometry().granule_lg2 << first.geometry().granule_lg2;
    let raw = first.table(PhysAddr::new(aligned));
    stages.memory.under.poke(first.geometry().entry_at(top, root, 0), raw);
    let fault = stages.nested(0, Access::READ).unwrap_err();
    assert_eq!((fault.stage, fault.purpose), (Stage::Second, Purpose::TableEntry), "{fault}");
    assert_eq!((fault.input, fault.kind), (aligned, FaultKind::NotPresent));
    assert!(stages.over.load(PhysAddr::new(aligned)).is_some(), "something is at that number");
}

pub(crate) fn walks_are_bounded<F: Format, G: Format>(first: F, second: G) {
    let (upper, lower) = (first.geometry(), second.geometry());
    let memories = (Noise::like(&first), Noise::like(&second));
    proptest!(|((under, over) in memories, iova: u64, wanted in 0u8..16)| {
        let iova = Iova::new(iova & (end(&first) - 1));
        let wanted = Access::from_bits_truncate(wanted);
        let behind = Behind::new(second, &over, PhysAddr::new(0), &under);
        if let Ok(translation) = walk_nested(&first, PhysAddr::new(0), &behind, iova, wanted) {
            prop_assert!(translation.access.permits(wanted));
        }
        let (n, m) = (u32::from(upper.levels), u32::from(lower.levels));
        prop_assert!(under.loads.get() <= n);
        // words without flags are marked: the way to the entry is walked once more for each, in vain
        prop_assert!(over.loads.get() <= m * (n + 2));
    });
}
