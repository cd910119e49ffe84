//! Every kind of route against a composition of maps; what must not be reached.

use std::collections::BTreeMap;

use proptest::prelude::*;
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{ArmStage2, Granule, IovaRange, Mapping, Table, VtdSecond};

use super::*;
use crate::smmuv3::{Stage1Table, Stage1Tables, Stage2};
use crate::vtd::{AddressWidth, SecondLevel};

/// Where the daemon's tables begin.
const BASE: PhysAddr = PhysAddr::new(1 << 46);
/// Where the guest's tables are, as the guest sees it.
const GUEST_TABLES: u64 = 16 << 20;
const GUEST_TABLE_PAGES: u64 = 256;
/// How far memory is from where the guest sees it, under a second level.
const SHIFT: u64 = 1 << 30;
/// Pages that tests translate.
const WINDOW: u64 = 12;

/// The guest's tables, at addresses higher by `shift`.
struct Guest {
    tables: HeapStore,
    shift: u64,
}

impl Guest {
    fn new(shift: u64) -> Self {
        Self { tables: HeapStore::new(PhysAddr::new(GUEST_TABLES), GUEST_TABLE_PAGES), shift }
    }
}

impl TableMemory for Guest {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.tables.load(PhysAddr::new(at.raw().checked_sub(self.shift)?))
    }
}

/// Page numbers to page numbers.
type Pages = BTreeMap<u64, u64>;

fn mapping(from: u64, to: u64, bytes: u64) -> Mapping {
    let range = IovaRange::with_len(Iova::new(from), bytes).unwrap();
    Mapping::new(range, PhysAddr::new(to), Access::RW).unwrap()
}

/// A table of `pages` in `store`, from the page at `start` on.
fn table<F: Format>(format: F, store: &mut HeapStore, start: u64, pages: &Pages) -> Table<F> {
    let mut table = Table::new(format, store).unwrap();
    for (from, to) in pages {
        table.map(store, &mapping(start + (from << 12), to << 12, 4096)).unwrap();
    }
    table
}

fn vtd_first(store: &mut HeapStore, pages: &Pages) -> FirstTable {
    let root = table(VtdFirst::new(48, LEAF_SIZES).unwrap(), store, 0, pages).root();
    FirstTable::Vtd(FirstLevel { root, five_levels: false, controls: FirstControls::empty() })
}

/// The same pages in both halves.
fn arm_first(store: &mut HeapStore, pages: &Pages) -> FirstTable {
    let format = ArmStage1::new(Granule::K4, 39, 48).unwrap();
    let lower = Stage1Table::new(table(format, store, 0, pages).root(), format);
    let tables = Stage1Tables::new(lower, lower).unwrap();
    let controls = ContextControls::empty();
    FirstTable::Arm(ContextDescriptor { tables, asid: 0, mair: 0, controls })
}

/// A second level that also leads to the guest's tables.
fn second(arm: bool, store: &mut HeapStore, pages: &Pages) -> SecondTable {
    let tables = mapping(GUEST_TABLES, GUEST_TABLES + SHIFT, GUEST_TABLE_PAGES << 12);
    if arm {
        let format = ArmStage2::new(Granule::K4, 3, 40, 48).unwrap();
        let mut table = table(format, store, 0, pages);
        table.map(store, &tables).unwrap();
        SecondTable::Arm(Stage2::new(table.root(), format).unwrap())
    } else {
        let mut table = table(VtdSecond::new(48, LEAF_SIZES).unwrap(), store, 0, pages);
        table.map(store, &tables).unwrap();
        SecondTable::Vtd(SecondLevel { root: table.root(), width: AddressWidth::Bits48 })
    }
}

fn first_of(arm: bool, store: &mut HeapStore, pages: &Pages) -> FirstTable {
    if arm { arm_first(store, pages) } else { vtd_first(store, pages) }
}

/// Where `page` leads, or which stage refuses it.
fn outcome(
    memories: &Memories<'_, HeapStore, Guest>,
    route: &Route,
    iova: u64,
) -> Result<u64, Stage> {
    let found = memories.translate(route, Iova::new(iova), Access::RW);
    match found {
        Ok(found) => Ok(found.oa.raw()),
        Err(fault) => {
            assert_eq!(fault.kind, FaultKind::NotPresent, "{fault}");
            assert!(fault.stage == Stage::Second || fault.input == iova, "{fault}");
            Err(fault.stage)
        }
    }
}

fn pages() -> impl Strategy<Value = Pages> {
    proptest::collection::btree_map(0..WINDOW, 0..WINDOW, 0..10)
}

proptest! {
    #[test]
    fn routes_lead_where_their_maps_lead(upper in pages(), lower in pages(), arm in any::<bool>()) {
        let (mut store, mut guest) = (HeapStore::new(BASE, 1000), Guest::new(0));
        let table = first_of(arm, &mut guest.tables, &upper);
        let in_guest = Route::First { table, space: Space::Guest };
        let mut shifted = Guest::new(SHIFT);
        let behind = first_of(arm, &mut shifted.tables, &upper);
        let table = first_of(arm, &mut store, &upper);
        let in_tables = Route::First { table, space: Space::Tables };
        let second = second(arm, &mut store, &lower);
        let nested = Route::Nested { first: behind, second };
        let second = Route::Second(second);
        let direct = Memories::new(&store, &guest, BASE);
        let through = Memories::new(&store, &shifted, BASE);
        for page in 0..WINDOW {
            let iova = page << 12 | 0x123;
            let after = |map: &Pages, page: u64, stage| map.get(&page).copied().ok_or(stage);
            let first = after(&upper, page, Stage::First);
            let both = first.and_then(|page| after(&lower, page, Stage::Second));
            let oa = |page: Result<u64, Stage>| page.map(|page| page << 12 | 0x123);
            prop_assert_eq!(outcome(&direct, &in_guest, iova), oa(first));
            prop_assert_eq!(outcome(&direct, &in_tables, iova), oa(first));
            let low = after(&lower, page, Stage::Second);
            prop_assert_eq!(outcome(&direct, &second, iova), oa(low));
            prop_assert_eq!(outcome(&through, &nested, iova), oa(both));
            if arm {
                let upper_half = iova | !((1 << 39) - 1);
                prop_assert_eq!(outcome(&through, &nested, upper_half), oa(both));
            }
        }
    }
}

#[test]
fn a_guests_table_is_never_read_from_the_region() {
    for arm in [false, true] {
        let (mut store, guest) = (HeapStore::new(BASE, 1000), Guest::new(0));
        let map = Pages::from([(0, 1)]);
        let table = first_of(arm, &mut store, &map);
        let memories = Memories::new(&store, &guest, BASE);
        let walk = |space| {
            let found =
                memories.translate(&Route::First { table, space }, Iova::new(0), Access::RW);
            found.map(|found| found.oa.raw()).map_err(|fault| fault.kind)
        };
        assert_eq!(walk(Space::Tables), Ok(0x1000));
        assert_eq!(walk(Space::Guest), Err(FaultKind::Unreadable));
    }
}

#[test]
fn outputs_stop_where_tables_begin() {
    let base = PhysAddr::new((5 << 30) + 0x3000);
    let (mut store, mut guest) = (HeapStore::new(BASE, 100), Guest::new(0));
    let format = VtdFirst::new(48, LEAF_SIZES).unwrap();
    let mut large = Table::new(format, &mut guest.tables).unwrap();
    large.map(&mut guest.tables, &mapping(0, 4 << 30, 2 << 30)).unwrap();
    let (root, controls) = (large.root(), FirstControls::empty());
    let table = FirstTable::Vtd(FirstLevel { root, five_levels: false, controls });
    let theirs = Route::First { table, space: Space::Guest };
    let page = Pages::from([(0, base.raw() >> 12)]);
    let ours = Route::Second(second(false, &mut store, &page));
    let memories = Memories::new(&store, &guest, base);
    let walk = |route, iova| {
        let found = memories.translate(route, Iova::new(iova), Access::READ);
        found.map(|found| (found.oa.raw(), found.size_lg2)).map_err(|fault| fault.kind)
    };
    let too_wide = Err(FaultKind::OutputTooWide);
    assert_eq!(walk(&Route::PassThrough, 0x1234), Ok((0x1234, 30)));
    assert_eq!(walk(&Route::PassThrough, base.raw() - 1), Ok((base.raw() - 1, 12)));
    assert_eq!(walk(&Route::PassThrough, base.raw()), too_wide);
    assert_eq!(walk(&Route::PassThrough, u64::MAX), too_wide);
    assert_eq!(walk(&theirs, 0x1000), Ok(((4 << 30) + 0x1000, 30)));
    assert_eq!(walk(&theirs, (1 << 30) + 0x1000), Ok(((5 << 30) + 0x1000, 13)));
    assert_eq!(walk(&theirs, (1 << 30) + 0x3000), too_wide);
    assert_eq!(walk(&ours, 0), too_wide);
}

#[test]
fn controls_that_cannot_be_honoured_refuse() {
    let (mut store, guest) = (HeapStore::new(BASE, 100), Guest::new(0));
    let map = Pages::from([(0, 1)]);
    let (vtd, arm) = (vtd_first(&mut store, &map), arm_first(&mut store, &map));
    let (FirstTable::Vtd(level), FirstTable::Arm(descriptor)) = (vtd, arm) else { panic!() };
    let memories = Memories::new(&store, &guest, BASE);
    let walk = |table, access| {
        let route = Route::First { table, space: Space::Tables };
        let found = memories.translate(&route, Iova::new(0), access);
        found.map(|found| found.oa.raw()).map_err(|fault| fault.kind)
    };
    let privileged = Access::READ | Access::PRIVILEGED;
    let denied = FaultKind::Denied { granted: Access::empty(), wanted: privileged };
    assert_eq!(walk(vtd, privileged), Err(denied));
    let supervisor = FirstLevel { controls: FirstControls::SUPERVISOR, ..level };
    assert_eq!(walk(FirstTable::Vtd(supervisor), privileged), Ok(0x1000));
    let extended = FirstLevel { controls: FirstControls::EXTENDED_ACCESSED, ..level };
    assert_eq!(walk(FirstTable::Vtd(extended), Access::READ), Err(FaultKind::Malformed));
    for control in ContextControls::all().iter() {
        let table = FirstTable::Arm(ContextDescriptor { controls: control, ..descriptor });
        let is_beyond = ContextControls::BEYOND_FORMAT.contains(control);
        let expected = if is_beyond { Err(FaultKind::Malformed) } else { Ok(0x1000) };
        assert_eq!(walk(table, Access::READ), expected, "{control:?}");
    }
}
