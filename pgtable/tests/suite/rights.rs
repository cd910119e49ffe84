//! Rights of a path: what a table entry takes away stays away, whatever is below.

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, ArmStage1, Entry, FaultKind, Format, Granule, Iova, IovaRange, Mapping, PhysAddr,
    Table, TableMemory, VtdFirst, VtdSecond, walk,
};

use crate::ALL_SIZES;

const IOVA: u64 = 0x12_3456_7000;

/// A page that allows `access`, behind table entries of which the one at each level in turn is changed by
/// `edit`: what is granted to a read, and how an access that does `denied` ends.
fn restricted<F: Format>(
    format: F,
    access: Access,
    edit: impl Fn(u64) -> u64,
    (granted, denied): (Access, Access),
) {
    let geometry = format.geometry();
    let mut store = HeapStore::new(PhysAddr::new(1 << 31), 64);
    let mut table = Table::new(format, &mut store).unwrap();
    let iova = IovaRange::with_len(Iova::new(IOVA), 4096).unwrap();
    table.map(&mut store, &Mapping::new(iova, PhysAddr::new(0x5000), access).unwrap()).unwrap();
    let mut at = geometry.entry_at(geometry.root_level(), table.root(), IOVA);
    for level in (1..geometry.levels).rev() {
        let whole = store.load(at).unwrap();
        store.poke(at, edit(whole));
        let translate =
            |store: &HeapStore, wanted| walk(&format, store, table.root(), Iova::new(IOVA), wanted);
        if !granted.is_empty() {
            assert_eq!(translate(&store, granted).unwrap().access, granted, "level {level}");
        }
        let fault = translate(&store, denied).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Denied { granted, wanted: denied }, "level {level}");
        assert_eq!(fault.level, if F::TABLES_DENY { level } else { 0 });
        store.poke(at, whole);
        assert!(translate(&store, denied).is_ok());
        let Entry::Table { next, .. } = format.decode(level, whole) else {
            panic!("no table at level {level}");
        };
        at = geometry.entry_at(level - 1, next, IOVA);
    }
}

#[test]
fn vtd_second_level_tables_restrict_reading_and_writing() {
    let format = VtdSecond::new(48, ALL_SIZES).unwrap();
    restricted(format, Access::RW, |raw| raw & !2, (Access::READ, Access::WRITE));
    restricted(format, Access::RW, |raw| raw & !1, (Access::WRITE, Access::READ));
}

#[test]
fn vtd_first_level_tables_restrict_writing_fetching_and_everybody() {
    let format = VtdFirst::new(48, ALL_SIZES).unwrap();
    let exec = Access::READ | Access::EXEC;
    restricted(format, Access::RWX, |raw| raw & !2, (exec, Access::WRITE));
    restricted(format, Access::RWX, |raw| raw | 1 << 63, (Access::RW, Access::EXEC));
    restricted(format, Access::RWX, |raw| raw & !4, (Access::empty(), Access::READ));
    let privileged = Access::PRIVILEGED;
    let strict = format.with_write_protect(true);
    let denied = Access::WRITE | privileged;
    restricted(strict, Access::RWX, |raw| raw & !2, (exec | privileged, denied));
}

#[test]
fn arm_stage_1_tables_restrict_what_the_leaf_allows() {
    let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
    let exec = Access::READ | Access::EXEC;
    restricted(format, Access::RWX, |raw| raw | 1 << 62, (exec, Access::WRITE));
    restricted(format, Access::RWX, |raw| raw | 1 << 60, (Access::RW, Access::EXEC));
    restricted(format, Access::RWX, |raw| raw | 1 << 61, (Access::EXEC, Access::READ));
    let privileged = Access::PRIVILEGED;
    let kernel = Access::RWX | privileged;
    let denied = Access::EXEC | privileged;
    restricted(format, kernel, |raw| raw | 1 << 59, (Access::RW | privileged, denied));
}
