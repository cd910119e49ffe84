//! What a daemon has built for guests that bind tables of their own: endpoints of every kind.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, ContextLayout, ContextTable, LookupFault, LookupFaultKind,
    Stage1, Stage1Table, Stage1Tables, Stage2, StreamConfig, StreamEntry, StreamTable, Untagged,
};
use viommu_pasid::vtd::{
    AddressWidth, FirstControls, FirstLevel, PasidEntry, PasidTable, RootTable, SecondLevel,
    Translation,
};
use viommu_pasid::{SecondTable, Structures};
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Format, Granule, Iova, IovaRange, Mapping, PhysAddr, Table,
    TableMemory, TableStore, VtdSecond, walk,
};

use super::memory::Hostile;

/// Where the region begins.
pub(crate) const BASE: PhysAddr = PhysAddr::new(1 << 46);

/// Endpoints 0 to 3.
pub(crate) const ENDPOINTS: u8 = 4;

/// Where guests say that their roots, and their context descriptors, are.
const GUEST_ROOT: PhysAddr = PhysAddr::new(0x1_0000);
const GUEST_CONTEXTS: PhysAddr = PhysAddr::new(0x2_0000);

const PAGE: u64 = 4096;

/// What the second level maps: input, output, length, access. No output is there twice.
const SIDES: [(u64, u64, u64, Access); 4] = [
    (0, 0x40_0000, 0x20_0000, Access::RW),
    (0x20_0000, 0x80_0000, 0x1_0000, Access::READ),
    (0x4000_0000, 0x4000_0000, 0x4000_0000, Access::RW),
    (0x1_0000_0000, BASE.raw() - 0x20_0000, 0x20_0000, Access::RW),
];

/// One architecture's endpoints.
#[derive(Debug)]
pub(crate) struct World {
    store: HeapStore,
    pub(crate) structures: Structures,
    second: SecondTable,
    /// Pages of what leads to page tables.
    structure_pages: BTreeSet<u64>,
    /// Pages that nothing leads to.
    decoys: BTreeSet<u64>,
}

/// A mapping of the second level.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    input: u64,
    pub(crate) output: Range<u64>,
    pub(crate) access: Access,
}

/// Calls `on` with VT-d's world (0) or SMMUv3's (1); each is built once a thread.
pub(crate) fn with(arch: u8, on: impl FnOnce(&World)) {
    thread_local! {
        static WORLDS: [OnceCell<World>; 2] = const { [OnceCell::new(), OnceCell::new()] };
    }
    WORLDS.with(|[vtd, smmu]| match arch {
        0 => on(vtd.get_or_init(|| World::new(vtd_structures))),
        _ => on(smmu.get_or_init(|| World::new(smmu_structures))),
    });
}

type Build = fn(&mut HeapStore) -> (Structures, SecondTable);

impl World {
    fn new(build: Build) -> Self {
        let mut store = HeapStore::new(BASE, 2000);
        let decoy = |store: &mut HeapStore| store.alloc_pages(1).unwrap().raw();
        let mut decoys: BTreeSet<u64> = (0..8).map(|_| decoy(&mut store)).collect();
        let (structures, second) = build(&mut store);
        decoys.extend((0..8).map(|_| decoy(&mut store)));
        let mut world =
            Self { store, structures, second, structure_pages: BTreeSet::new(), decoys };
        let tables: BTreeSet<u64> = SIDES
            .iter()
            .flat_map(|(input, _, len, _)| (*input..input + len).step_by(0x20_0000))
            .flat_map(|input| world.way_of(input))
            .map(page_of)
            .collect();
        let all = (0..2000).map(|page| BASE.raw() + page * PAGE);
        world.structure_pages = all
            .filter(|page| world.store.is_taken(PhysAddr::new(*page)))
            .filter(|page| !tables.contains(page) && !world.decoys.contains(page))
            .collect();
        world
    }

    /// The mapping of the second level that leads to `output`.
    pub(crate) fn side_of(output: PhysAddr) -> Option<Side> {
        let sides = SIDES.iter().map(|(input, output, len, access)| Side {
            input: *input,
            output: *output..output + len,
            access: *access,
        });
        sides.into_iter().find(|side| side.output.contains(&output.raw()))
    }

    /// The second level's input that leads to `output`.
    pub(crate) fn input_of(output: PhysAddr) -> Option<u64> {
        let side = Self::side_of(output)?;
        Some(output.raw() - side.output.start + side.input)
    }

    /// The entries of the second level on the way of `input`.
    fn way_of(&self, input: u64) -> Vec<PhysAddr> {
        let nobody = Hostile::new(Vec::new(), super::memory::Swap::IsRefused, 0);
        let region = Region::new(self, &nobody);
        let (iova, nothing) = (Iova::new(input), Access::empty());
        let _found = match &self.second {
            SecondTable::Vtd(second) => walk(&vtd_format(), &region, second.root, iova, nothing),
            SecondTable::Arm(second) => {
                walk(second.format(), &region, second.root(), iova, nothing)
            }
        };
        region.loaded.take().into_iter().map(|(at, _)| at).collect()
    }
}

const fn page_of(at: PhysAddr) -> u64 {
    at.raw() & !(PAGE - 1)
}

/// The region as a reader beside `guest` sees it.
#[derive(Debug)]
pub(crate) struct Region<'w> {
    world: &'w World,
    guest: &'w Hostile,
    /// Addresses that were loaded from, and how often guest memory had been loaded from before.
    loaded: RefCell<Vec<(PhysAddr, usize)>>,
}

impl<'w> Region<'w> {
    pub(crate) const fn new(world: &'w World, guest: &'w Hostile) -> Self {
        Self { world, guest, loaded: RefCell::new(Vec::new()) }
    }

    /// What was loaded must be the daemon's structures, as long as no guest has spoken, or entries of the
    /// second level on the way of one of `inputs`.
    pub(crate) fn only_on_the_way_of(&self, inputs: &[u64]) {
        let world = self.world;
        let way: Vec<PhysAddr> = inputs.iter().flat_map(|input| world.way_of(*input)).collect();
        for (at, guest_loads) in self.loaded.borrow().iter() {
            let page = page_of(*at);
            assert!(!world.decoys.contains(&page), "{at} is in a page that nothing leads to");
            let structure = *guest_loads == 0 && world.structure_pages.contains(&page);
            assert!(structure || way.contains(at), "{at}: a guest's pointer led into the region");
        }
    }
}

impl TableMemory for Region<'_> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.loaded.borrow_mut().push((at, self.guest.loaded().len()));
        self.world.store.load(at)
    }
}

/// The input that a second level refused when a context descriptor was looked for.
pub(crate) fn refused_input(fault: &LookupFault) -> Option<u64> {
    match &fault.kind {
        LookupFaultKind::ContextThrough(fault) => Some(fault.input),
        _ => None,
    }
}

fn second_level<F: Format>(store: &mut HeapStore, format: F) -> PhysAddr {
    let mut table = Table::new(format, store).unwrap();
    for (input, output, len, access) in SIDES {
        let range = IovaRange::with_len(Iova::new(input), len).unwrap();
        table.map(store, &Mapping::new(range, PhysAddr::new(output), access).unwrap()).unwrap();
    }
    table.root()
}

fn vtd_format() -> VtdSecond {
    VtdSecond::new(48, 1 << 12 | 1 << 21 | 1 << 30).unwrap()
}

/// Endpoints whose untagged traffic and PASIDs 1 to 4 go through a guest's first level, with and without
/// a second.
fn vtd_structures(store: &mut HeapStore) -> (Structures, SecondTable) {
    let second =
        SecondLevel { root: second_level(store, vtd_format()), width: AddressWidth::Bits48 };
    let first = |controls, five_levels| FirstLevel { root: GUEST_ROOT, five_levels, controls };
    let (plain, supervisor) = (FirstControls::empty(), FirstControls::SUPERVISOR);
    let nested = |controls, five| Translation::Nested { first: first(controls, five), second };
    let translations = [
        nested(plain, false),
        Translation::FirstLevel(first(plain, false)),
        Translation::FirstLevel(first(supervisor, true)),
        nested(supervisor, false),
        nested(plain, true),
    ];
    let root = RootTable::new(store).unwrap();
    for endpoint in 0..u16::from(ENDPOINTS) {
        let pasids = PasidTable::new(store, 4).unwrap();
        for (index, translation) in (0..).zip(translations) {
            pasids.set(store, index, &PasidEntry { domain_tag: 1, translation }).unwrap();
        }
        root.set_context(store, endpoint, &pasids.context()).unwrap();
    }
    (Structures::Vtd { root: root.root() }, SecondTable::Vtd(second))
}

/// The four ways of an SMMU: context descriptors of the guest's or of the daemon's, with and without a
/// second level.
fn smmu_structures(store: &mut HeapStore) -> (Structures, SecondTable) {
    let format = ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    let second = Stage2::new(second_level(store, format), format).unwrap();
    let theirs = |layout| Stage1::new(GUEST_CONTEXTS, layout, 8, Untagged::Context0).unwrap();
    let contexts = ContextTable::new(store, 4).unwrap();
    for (pasid, granule) in [(0, Granule::K4), (1, Granule::K16), (2, Granule::K64)] {
        let table = Stage1Table::new(GUEST_ROOT, ArmStage1::new(granule, 48, 48).unwrap()).unwrap();
        let tables = Stage1Tables::lower_only(table);
        let controls = ContextControls::empty();
        let descriptor = ContextDescriptor { tables, asid: 1, mair: 0, controls };
        contexts.set(store, pasid, &descriptor).unwrap();
    }
    let ours = contexts.stage1(Untagged::Context0).unwrap();
    let configs = [
        StreamConfig::Stage1(theirs(ContextLayout::Linear)),
        StreamConfig::Nested { first: theirs(ContextLayout::Leaves4K), second },
        StreamConfig::Stage1(ours),
        StreamConfig::Nested { first: ours, second },
    ];
    let streams = StreamTable::new(store).unwrap();
    for (endpoint, config) in (0..).zip(configs) {
        streams.set(store, endpoint, &StreamEntry { vmid: 1, config }).unwrap();
    }
    (Structures::SmmuV3(streams.root()), SecondTable::Arm(second))
}
