//! Both architectures through one question; hostile memory.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Fault, FaultKind, Granule, Iova, IovaRange, Mapping, Purpose,
    Table, TableMemory,
};

use super::*;
use crate::Memories;
use crate::smmuv3::{
    ContextControls, ContextLayout, ContextTable, Stage1, Stage1Table, Stage1Tables, StreamConfig,
    StreamEntry, StreamLayout, StreamTable, Untagged,
};
use crate::vtd::{AddressWidth, FirstControls, PasidEntry, PasidTable, RootTable};

mod writers;

const BASE: PhysAddr = PhysAddr::new(1 << 46);
const ENDPOINT: EndpointId = EndpointId::new(0x0003_0120);

/// Guest memory: some words.
#[derive(Default)]
struct Guest(BTreeMap<u64, u64>);

impl TableMemory for Guest {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.0.get(&at.raw()).copied()
    }
}

fn store() -> HeapStore {
    HeapStore::new(BASE, 2000)
}

fn pasid(raw: u32) -> Option<Pasid> {
    Pasid::new(raw)
}

#[test]
fn vtd_entries_become_routes() {
    let mut store = store();
    let root = RootTable::new(&mut store).unwrap();
    let table = PasidTable::new(&mut store, 8).unwrap();
    root.set_context(&mut store, ENDPOINT.bdf(), &table.context()).unwrap();
    let first = |root| {
        let controls = FirstControls::empty();
        FirstLevel { root: PhysAddr::new(root), five_levels: false, controls }
    };
    let second = SecondLevel { root: BASE, width: AddressWidth::Bits48 };
    let (theirs, ours) = (first(0x1000), first(BASE.raw() + 0x1000));
    // a nested root leads through the second level, whatever its number
    let translations = [
        Translation::PassThrough,
        Translation::SecondLevel { root: second.root, width: second.width },
        Translation::FirstLevel(theirs),
        Translation::FirstLevel(ours),
        Translation::Nested { first: ours, second },
    ];
    for (index, translation) in (0..).zip(translations) {
        table.set(&mut store, index, &PasidEntry { domain_tag: 1, translation }).unwrap();
    }
    let structures = Structures::Vtd { root: root.root() };
    let guest = Guest::default();
    let find =
        |tag| lookup(&Memories::new(&store, &guest, BASE), &structures, ENDPOINT, pasid(tag));
    let by_vtd = FirstTable::Vtd;
    assert_eq!(find(0), Ok(Route::PassThrough));
    assert_eq!(find(1), Ok(Route::Second(SecondTable::Vtd(second))));
    assert_eq!(find(2), Ok(Route::First { table: by_vtd(theirs), space: Space::Guest }));
    assert_eq!(find(3), Ok(Route::First { table: by_vtd(ours), space: Space::Tables }));
    let nested = Route::Nested { first: by_vtd(ours), second: SecondTable::Vtd(second) };
    assert_eq!(find(4), Ok(nested));
    let LookupFault::Vtd(fault) = find(5).unwrap_err() else { panic!("not VT-d's") };
    assert_eq!(fault.kind, vtd::LookupFaultKind::EntryNotPresent);
    assert_eq!(LookupFault::Vtd(fault).entry_at(), fault.entry_at);
}

fn descriptor(root: u64) -> ContextDescriptor {
    let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
    ContextDescriptor {
        tables: Stage1Tables::lower_only(Stage1Table::new(PhysAddr::new(root), format).unwrap()),
        asid: 1,
        mair: 0,
        controls: ContextControls::empty(),
    }
}

/// A stream table in which `config` is the endpoint's.
fn streams(store: &mut HeapStore, config: StreamConfig) -> Structures {
    let streams = StreamTable::new(store).unwrap();
    streams.set(store, ENDPOINT.bdf(), &StreamEntry { vmid: 1, config }).unwrap();
    Structures::SmmuV3(streams.root())
}

/// A second level that leads GPA 0 to 2 MiB on to 4 MiB and above.
fn second_level(store: &mut HeapStore) -> Stage2 {
    let format = ArmStage2::new(Granule::K4, 3, 39, 48).unwrap();
    let mut table = Table::new(format, store).unwrap();
    let range = IovaRange::with_len(Iova::new(0), 2 << 20).unwrap();
    let mapping = Mapping::new(range, PhysAddr::new(4 << 20), Access::RW).unwrap();
    table.map(store, &mapping).unwrap();
    Stage2::new(table.root(), format).unwrap()
}

#[test]
fn the_daemons_descriptors_may_name_tables_of_both_sides() {
    let mut store = store();
    let contexts = ContextTable::new(&mut store, 4).unwrap();
    let (ours, theirs) = (descriptor(BASE.raw()), descriptor(0x1000));
    contexts.set(&mut store, 1, &ours).unwrap();
    contexts.set(&mut store, 2, &theirs).unwrap();
    let first = contexts.stage1(Untagged::Bypass).unwrap();
    let structures = streams(&mut store, StreamConfig::Stage1(first));
    let guest = Guest::default();
    let spaces = Memories::new(&store, &guest, BASE);
    let find = |tag| lookup(&spaces, &structures, ENDPOINT, pasid(tag));
    assert_eq!(find(0), Ok(Route::PassThrough));
    let table = FirstTable::Arm(ours);
    assert_eq!(find(1), Ok(Route::First { table, space: Space::Tables }));
    let table = FirstTable::Arm(theirs);
    assert_eq!(find(2), Ok(Route::First { table, space: Space::Guest }));
}

#[test]
fn the_guests_descriptors_lie_behind_the_second_level() {
    let mut store = store();
    let second = second_level(&mut store);
    // one leaf at 0x3000, whose descriptor 1 names a table at an address of the region
    let first = Stage1::new(PhysAddr::new(0x2000), ContextLayout::Leaves4K, 6, Untagged::Terminate);
    let nested = StreamConfig::Nested { first: first.unwrap(), second };
    let structures = streams(&mut store, nested);
    let hostile = descriptor(BASE.raw());
    let mut guest = Guest::default();
    guest.0.insert((4 << 20) + 0x2000, 0x3001);
    let words = hostile.pack();
    guest.0.extend(((4 << 20) + 0x3040..).step_by(8).zip(words));
    // even if the guest's memory has something where tables begin
    guest.0.insert(BASE.raw(), 1);
    let spaces = Memories::new(&store, &guest, BASE);
    assert_eq!(spaces.load_guest(BASE), None);
    let find = |tag| lookup(&spaces, &structures, ENDPOINT, pasid(tag));
    let (first, second) = (FirstTable::Arm(hostile), SecondTable::Arm(second));
    assert_eq!(find(1), Ok(Route::Nested { first, second }));
    // no memory at descriptor 2
    let LookupFault::SmmuV3(fault) = find(2).unwrap_err() else { panic!("not SMMUv3's") };
    let at = PhysAddr::new(0x3080);
    let kind = smmuv3::LookupFaultKind::ContextFetch;
    assert_eq!(fault, smmuv3::LookupFault { kind, entry_at: at });
}

#[test]
fn descriptors_that_the_second_level_does_not_map_fault_there() {
    let mut store = store();
    let second = second_level(&mut store);
    let at = PhysAddr::new(2 << 20);
    let first = Stage1::new(at, ContextLayout::Linear, 0, Untagged::Context0).unwrap();
    let structures = streams(&mut store, StreamConfig::Nested { first, second });
    let guest = Guest::default();
    let fault = lookup(&Memories::new(&store, &guest, BASE), &structures, ENDPOINT, None);
    let LookupFault::SmmuV3(fault) = fault.unwrap_err() else { panic!("not SMMUv3's") };
    let smmuv3::LookupFaultKind::ContextThrough(Fault { kind, purpose, input, .. }) = fault.kind
    else {
        panic!("{fault}")
    };
    let seen = (kind, purpose, input, fault.entry_at);
    assert_eq!(seen, (FaultKind::NotPresent, Purpose::TableEntry, 2 << 20, at));
}

/// Memory in which every 64 bytes are some entry, often a broken one, as a seed decides.
struct Garbage {
    seed: u64,
    pool: Vec<[u64; 8]>,
    loads: Cell<u32>,
    /// True once something was loaded that the guest wrote.
    guest_spoke: Cell<bool>,
}

/// Entries of all kinds, with pointers to both sides of `base`.
fn pool(base: u64) -> Vec<[u64; 8]> {
    let format = ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    let second = Stage2::new(PhysAddr::new(base), format).unwrap();
    let (low, high) = (PhysAddr::new(0x40_0000), PhysAddr::new(base));
    let stage1 = |at, layout| Stage1::new(at, layout, 6, Untagged::Context0).unwrap();
    let nested = |first| StreamConfig::Nested { first, second };
    let streams = [
        StreamConfig::Bypass,
        StreamConfig::Stage2(second),
        StreamConfig::Stage1(stage1(low, ContextLayout::Leaves4K)),
        StreamConfig::Stage1(stage1(high, ContextLayout::Linear)),
        nested(stage1(low, ContextLayout::Leaves64K)),
        nested(stage1(high, ContextLayout::Leaves4K)),
    ];
    let controls = FirstControls::empty();
    let first = |root| FirstLevel { root, five_levels: false, controls };
    let second = SecondLevel { root: high, width: AddressWidth::Bits48 };
    let pasids = [
        Translation::PassThrough,
        Translation::SecondLevel { root: second.root, width: second.width },
        Translation::FirstLevel(first(low)),
        Translation::FirstLevel(first(high)),
        Translation::Nested { first: first(high), second },
    ];
    let context =
        vtd::ContextEntry { directory: low, directory_lg2: 14, pasid_enable: true, rid_pasid: 0 };
    let [word0, word1] = context.pack();
    let contexts = [word0, word1, 0, 0, word0, word1, 0, 0];
    let pointers = [[base | 1; 8], [base | 7; 8], [low.raw() | 1; 8], contexts, contexts];
    let streams = streams.map(|config| StreamEntry { vmid: 0, config }.pack());
    let pasids = pasids.map(|translation| PasidEntry { domain_tag: 0, translation }.pack());
    let descriptors = [descriptor(base).pack(), descriptor(0).pack()];
    [&pointers[..], &streams, &pasids, &descriptors, &descriptors].concat()
}

/// Stirs a number.
fn stir(number: u64) -> u64 {
    let number = (number ^ number >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (number ^ number >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl Garbage {
    const BASE: u64 = 1 << 46;

    fn new(seed: u64) -> Self {
        let (loads, guest_spoke) = (Cell::new(0), Cell::new(false));
        Self { seed, pool: pool(Self::BASE), loads, guest_spoke }
    }

    fn word(&self, at: PhysAddr) -> Option<u64> {
        self.loads.set(self.loads.get() + 1);
        let entry = stir(self.seed ^ at.raw() >> 6);
        let chance = stir(entry ^ at.raw()) >> 8;
        let word = self.pool[usize::try_from(entry >> 8).unwrap() % self.pool.len()]
            [usize::try_from(at.raw() >> 3 & 7).unwrap()];
        match chance % 64 {
            0 => None,
            1..4 => Some(stir(chance)),
            4..12 => Some(word ^ 1 << (chance >> 8 & 63)),
            _ => Some(word),
        }
    }
}

impl TableMemory for Garbage {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        assert!(!self.guest_spoke.get(), "load of {at} from the tables, where the guest led");
        self.word(at)
    }
}

impl Spaces for Garbage {
    type Tables = Self;

    fn tables(&self) -> &Self {
        self
    }

    fn table_base(&self) -> PhysAddr {
        PhysAddr::new(Self::BASE)
    }

    fn load_guest(&self, at: PhysAddr) -> Option<u64> {
        self.guest_spoke.set(true);
        self.word(at)
    }

    fn load_through(&self, _: &Stage2, at: PhysAddr) -> Result<Option<u64>, Fault> {
        match self.load_guest(at) {
            None if at.raw() & 8 == 0 => Err(crate::testing::refused(at)),
            word => Ok(word),
        }
    }
}

fn roots() -> impl Strategy<Value = Structures> {
    let layouts = prop_oneof![
        Just(StreamLayout::Linear),
        Just(StreamLayout::TwoLevels { split: 6 }),
        Just(StreamLayout::TwoLevels { split: 8 }),
        Just(StreamLayout::TwoLevels { split: 10 }),
    ];
    prop_oneof![
        (any::<u64>(), layouts).prop_map(|(base, layout)| {
            Structures::SmmuV3(StreamRoot::new(PhysAddr::new(base & !7), 16, layout).unwrap())
        }),
        any::<u64>().prop_map(|root| Structures::Vtd { root: PhysAddr::new(root & !0xfff) }),
    ]
}

/// Says which outcomes a run has seen, so that a run that sees nothing but one is noticed.
fn outcome(found: &Result<Route, LookupFault>) -> usize {
    match found {
        Err(_) => 0,
        Ok(Route::PassThrough) => 1,
        Ok(Route::First { .. }) => 2,
        Ok(Route::Second(_)) => 3,
        Ok(Route::Nested { .. }) => 4,
    }
}

fn survive(garbage: &Garbage, structures: &Structures, bdf: u16, tag: u32) -> usize {
    let endpoint = EndpointId::new(bdf.into());
    let found = lookup(garbage, structures, endpoint, pasid(tag));
    assert!(garbage.loads.get() <= 14, "{} loads", garbage.loads.get());
    if let (Ok(Route::First { space, .. }), true) = (&found, garbage.guest_spoke.get()) {
        assert_eq!(*space, Space::Guest, "the guest's entry leads into the tables");
    }
    outcome(&found)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn garbage_ends_after_bounded_loads_and_guests_lead_nowhere_into_the_tables(
        seed in any::<u64>(), structures in roots(), bdf in any::<u16>(), tag in 0..1_u32 << 20,
    ) {
        survive(&Garbage::new(seed), &structures, bdf, tag);
    }
}

#[test]
fn a_long_run_of_garbage_sees_every_kind_of_route() {
    let (mut seen, mut garbage) = ([0; 5], Garbage::new(0));
    for run in 0..100_000_u32 {
        (garbage.seed, garbage.loads) = (stir(run.into()), Cell::new(0));
        garbage.guest_spoke.set(false);
        let base = PhysAddr::new(Garbage::BASE);
        let structures = match run % 2 {
            0 => Structures::Vtd { root: base },
            _ => Structures::SmmuV3(StreamRoot::new(base, 16, StreamLayout::Linear).unwrap()),
        };
        seen[survive(&garbage, &structures, 0x0120, run % 3)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}
