//! Lookups in tables of every layout, against what the manual's words say.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::testing::{SECOND_LEVEL_OFFSET, TABLE_BASE, World, refused};
use crate::{FirstTable, Pasid, Route, SecondTable, Space};

/// Tables of one function, as somebody else might lay them out.
#[derive(Debug, Clone)]
struct Case {
    stream: u32,
    layout: StreamLayout,
    /// `span - 1` of the pointer to the entry's leaf.
    leaf_lg2: u8,
    entry: StreamEntry,
    /// Where descriptors lie, if the entry has a stage 1.
    contexts: Space,
    descriptors: BTreeMap<u32, ContextDescriptor>,
    pasids: Vec<Option<u32>>,
    /// What reserved bits hold.
    junk: u64,
}

const STREAM_BITS: u8 = 16;
const STREAMS: u64 = TABLE_BASE + (1 << 30);
const STREAM_LEAF: u64 = TABLE_BASE + (2 << 30);
/// Descriptors, their pointers and leaves: an offset in their space, below [`SECOND_LEVEL_OFFSET`].
const CONTEXTS: u64 = 3 << 30;
const CONTEXT_LEAVES: u64 = 4 << 30;

fn cases() -> impl Strategy<Value = Case> {
    let layout = select(vec![
        StreamLayout::Linear,
        StreamLayout::TwoLevels { split: 6 },
        StreamLayout::TwoLevels { split: 8 },
        StreamLayout::TwoLevels { split: 10 },
    ]);
    let spaces = select(vec![Space::Tables, Space::Guest]);
    let streams = (0..1_u32 << STREAM_BITS, layout, 0..=11_u8, entries(), spaces);
    let index = prop_oneof![0..4_u32, 60..70_u32, 1020..1030_u32, 0..1_u32 << 20];
    let found = proptest::collection::btree_map(index.clone(), descriptors(), 0..6);
    let pasids = proptest::collection::vec(proptest::option::of(index), 1..8);
    (streams, found, pasids, any::<u64>()).prop_map(
        |((stream, layout, leaf_lg2, mut entry, contexts), descriptors, mut pasids, junk)| {
            pasids.push(None);
            pasids.extend(descriptors.keys().map(|index| Some(*index)));
            let contexts = place(&mut entry, contexts);
            Case { stream, layout, leaf_lg2, entry, contexts, descriptors, pasids, junk }
        },
    )
}

/// Moves the descriptors of `entry` to where they are wanted, as far as a second level lets choose.
fn place(entry: &mut StreamEntry, wanted: Space) -> Space {
    let (first, space) = match &mut entry.config {
        StreamConfig::Stage1(first) => (first, wanted),
        StreamConfig::Nested { first, .. } if wanted == Space::Tables => (first, wanted),
        StreamConfig::Nested { first, .. } => (first, Space::SecondLevel),
        _ => return wanted,
    };
    let base = if space == Space::Tables { TABLE_BASE } else { 0 };
    let at = PhysAddr::new(base + CONTEXTS);
    *first = Stage1::new(at, first.layout(), first.pasid_bits(), first.untagged()).unwrap();
    space
}

impl Case {
    fn first(&self) -> Option<Stage1> {
        match self.entry.config {
            StreamConfig::Stage1(first) | StreamConfig::Nested { first, .. } => Some(first),
            _ => None,
        }
    }

    fn second(&self) -> Option<Stage2> {
        match self.entry.config {
            StreamConfig::Stage2(second) | StreamConfig::Nested { second, .. } => Some(second),
            _ => None,
        }
    }

    fn root(&self) -> StreamRoot {
        StreamRoot::new(PhysAddr::new(STREAMS), STREAM_BITS, self.layout).unwrap()
    }

    fn world(&self) -> World {
        let mut world = World::default();
        let entry_at = match self.layout {
            StreamLayout::Linear => STREAMS + u64::from(self.stream) * 64,
            StreamLayout::TwoLevels { split } => {
                let below_leaf = self.junk & ((64 << self.leaf_lg2) - 1) & !0x1f;
                let pointer = (STREAM_LEAF | below_leaf) + u64::from(self.leaf_lg2) + 1;
                world.tables.write(STREAMS + u64::from(self.stream >> split) * 8, &[pointer]);
                STREAM_LEAF + u64::from(self.stream % (1 << split)) * 64
            }
        };
        world.tables.write(entry_at, &self.entry.pack());
        if let Some(first) = self.first() {
            for (number, (index, descriptor)) in (0..).zip(&self.descriptors) {
                self.write_descriptor(&mut world, &first, number, *index, descriptor);
            }
        }
        world
    }

    /// `number` keeps leaves apart.
    fn write_descriptor(
        &self,
        world: &mut World,
        first: &Stage1,
        number: u64,
        index: u32,
        descriptor: &ContextDescriptor,
    ) {
        let (memory, base) = match self.contexts {
            Space::Tables => (&mut world.tables, TABLE_BASE),
            Space::Guest => (&mut world.guest, 0),
            Space::SecondLevel => (&mut world.guest, SECOND_LEVEL_OFFSET),
        };
        let leaf_lg2 = match first.layout() {
            ContextLayout::Linear => {
                memory.write(base + CONTEXTS + u64::from(index) * 64, &descriptor.pack());
                return;
            }
            ContextLayout::Leaves4K => 6,
            ContextLayout::Leaves64K => 10,
        };
        // one leaf for each number that starts like this one
        let above = self.descriptors.keys().position(|key| key >> leaf_lg2 == index >> leaf_lg2);
        let leaf =
            CONTEXT_LEAVES + above.unwrap_or(usize::try_from(number).unwrap()) as u64 * 65536;
        // bits below the alignment of a leaf are reserved, and ignored
        let below_leaf = self.junk & ((64 << leaf_lg2) - 1);
        let link = if self.contexts == Space::Tables { base } else { 0 };
        memory.write(
            base + CONTEXTS + u64::from(index >> leaf_lg2) * 8,
            &[(link + leaf) | below_leaf | 1],
        );
        let slot = u64::from(index % (1 << leaf_lg2));
        memory.write(base + leaf + slot * 64, &descriptor.pack());
    }

    /// What the manual says of a request; `entry_at` of a fault is not modelled.
    fn expected(&self, pasid: Option<u32>) -> Result<Route, LookupFaultKind> {
        if let StreamLayout::TwoLevels { split } = self.layout {
            let is_legal = self.leaf_lg2 <= split && self.leaf_lg2 <= 10;
            if !is_legal || (self.stream % (1 << split)) >> self.leaf_lg2 != 0 {
                return Err(LookupFaultKind::UnknownStream);
            }
        }
        if self.entry.config == StreamConfig::Abort {
            return Err(LookupFaultKind::Aborted);
        }
        let second_only = match self.second() {
            Some(second) => Route::Second(SecondTable::Arm(second)),
            None => Route::PassThrough,
        };
        let index = match (self.first(), pasid) {
            (None, None) => return Ok(second_only),
            (None, Some(_)) => return Err(LookupFaultKind::BadSubstream),
            (Some(first), Some(index)) if index >= 1 << first.pasid_bits() => {
                return Err(LookupFaultKind::BadSubstream);
            }
            (Some(_), Some(index)) => index,
            (Some(first), None) => match first.untagged() {
                Untagged::Terminate => return Err(LookupFaultKind::StreamDisabled),
                Untagged::Bypass => return Ok(second_only),
                Untagged::Context0 => 0,
            },
        };
        self.expected_context(index)
    }

    fn expected_context(&self, index: u32) -> Result<Route, LookupFaultKind> {
        let leaf_lg2 = match self.first().unwrap().layout() {
            ContextLayout::Linear => 20,
            ContextLayout::Leaves4K => 6,
            ContextLayout::Leaves64K => 10,
        };
        let Some(descriptor) = self.descriptors.get(&index) else {
            let has_leaf = self.descriptors.keys().any(|key| key >> leaf_lg2 == index >> leaf_lg2);
            return Err(if has_leaf || leaf_lg2 == 20 {
                LookupFaultKind::BadContext
            } else {
                LookupFaultKind::BadSubstream
            });
        };
        let table = FirstTable::Arm(*descriptor);
        if let Some(second) = self.second() {
            return Ok(Route::Nested { first: table, second: SecondTable::Arm(second) });
        }
        let tables = descriptor.tables;
        let mut roots = tables.lower().into_iter().chain(tables.upper()).map(Stage1Table::root);
        let ours = self.contexts == Space::Tables && roots.all(|root| root.raw() >= TABLE_BASE);
        Ok(Route::First { table, space: if ours { Space::Tables } else { Space::Guest } })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn lookups_in_tables_of_any_layout_find_what_the_manual_says(case in cases()) {
        let world = case.world();
        for raw in case.pasids.iter().copied().filter(|raw| *raw != Some(0)) {
            let pasid = raw.map(|raw| Pasid::new(raw).unwrap());
            world.loads.borrow_mut().clear();
            let found = lookup(&world, &case.root(), case.stream, pasid);
            let found = found.map_err(|fault| fault.kind);
            prop_assert_eq!(found, case.expected(raw), "pasid {:?}", raw);
            prop_assert!(world.loads.borrow().len() <= 10);
        }
        let unknown = lookup(&world, &case.root(), 1 << STREAM_BITS, None).unwrap_err();
        prop_assert_eq!(unknown.kind, LookupFaultKind::UnknownStream);
    }
}

#[test]
fn a_descriptor_that_the_second_level_refuses_is_its_fault() {
    let format = ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    let second = Stage2::new(PhysAddr::new(TABLE_BASE), format);
    let at = PhysAddr::new(SECOND_LEVEL_OFFSET);
    let first = Stage1::new(at, ContextLayout::Linear, 0, Untagged::Context0).unwrap();
    let config = StreamConfig::Nested { first, second: second.unwrap() };
    let entry = StreamEntry { vmid: 0, config };
    let mut world = World::default();
    world.tables.write(STREAMS, &entry.pack());
    let root = StreamRoot::new(PhysAddr::new(STREAMS), 16, StreamLayout::Linear).unwrap();
    let fault = lookup(&world, &root, 0, None).unwrap_err();
    let kind = LookupFaultKind::ContextThrough(refused(at));
    assert_eq!(fault, LookupFault { kind, entry_at: at });
    assert_eq!(fault.kind.event(), Some(0x10));
}

#[test]
fn missing_memory_is_a_fetch_fault_of_the_structure() {
    let none = StreamRoot::new(PhysAddr::new(1 << 50), 16, StreamLayout::Linear).unwrap();
    let fault = lookup(&World::default(), &none, 1, None).unwrap_err();
    assert_eq!(fault.kind, LookupFaultKind::EntryFetch);
    assert_eq!(fault.entry_at, PhysAddr::new((1 << 50) + 64));

    // descriptors at the last guest address: the guest has no memory from TABLE_BASE on
    let at = PhysAddr::new(TABLE_BASE - 64 * 2);
    let first = Stage1::new(at, ContextLayout::Leaves4K, 6, Untagged::Context0).unwrap();
    let entry = StreamEntry { vmid: 0, config: StreamConfig::Stage1(first) };
    let mut world = World::default();
    world.tables.write(STREAMS, &entry.pack());
    world.guest.write(at.raw(), &[TABLE_BASE | 1]);
    let root = StreamRoot::new(PhysAddr::new(STREAMS), 16, StreamLayout::Linear).unwrap();
    let fault = lookup(&world, &root, 0, None).unwrap_err();
    let expected =
        LookupFault { kind: LookupFaultKind::ContextFetch, entry_at: PhysAddr::new(TABLE_BASE) };
    assert_eq!(fault, expected);
}

#[test]
fn a_leaf_of_descriptors_beyond_the_output_is_no_substream() {
    let at = PhysAddr::new(TABLE_BASE + CONTEXTS);
    let first = Stage1::new(at, ContextLayout::Leaves4K, 6, Untagged::Context0).unwrap();
    let entry = StreamEntry { vmid: 0, config: StreamConfig::Stage1(first) };
    let mut world = World::default();
    world.tables.write(STREAMS, &entry.pack());
    world.tables.write(at.raw(), &[1 << 48 | 1]);
    let root = StreamRoot::new(PhysAddr::new(STREAMS), 16, StreamLayout::Linear).unwrap();
    let fault = lookup(&world, &root, 0, Pasid::new(1)).unwrap_err();
    assert_eq!(fault, LookupFault { kind: LookupFaultKind::BadSubstream, entry_at: at });
}
