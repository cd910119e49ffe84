//! Accessed and dirty flags: set before the access is granted, by compare-and-exchange.

use std::cell::{Cell, RefCell};

use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, Behind, Entry, FaultKind, Format, Iova, MARK_ATTEMPTS, PhysAddr, Purpose, Stage, Table,
    TableMemory, VtdFirst, VtdSecond, walk, walk_nested,
};

use crate::ALL_SIZES;
use crate::model::mapping;

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Ignored in every entry.
const SOFTWARE: u64 = 1 << 9;

const IOVA: u64 = 0x1234_5678_9000;
const OA: u64 = 0x4_2000;

/// A driver's table in memory that a walk may write, and a driver that writes at the wrong moment.
struct Driver {
    store: RefCell<HeapStore>,
    root: PhysAddr,
    exchanges: Cell<u32>,
    /// Called with the entry just before an exchange: what it becomes first.
    meddle: Box<dyn Fn(u32, u64) -> u64>,
}

impl TableMemory for Driver {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.store.borrow().load(at)
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        let count = self.exchanges.replace(self.exchanges.get() + 1);
        let found = (self.meddle)(count, self.load(at)?);
        let matches = found == old;
        self.store.borrow_mut().poke(at, if matches { new } else { found });
        Some(if matches { Ok(()) } else { Err(found) })
    }
}

fn format() -> VtdFirst {
    VtdFirst::new(48, ALL_SIZES).unwrap()
}

/// Entries on the way to [`IOVA`], from the root down: where, and what.
fn entries(driver: &Driver) -> Vec<(PhysAddr, u64)> {
    let (geometry, mut table) = (format().geometry(), driver.root);
    let entry = |level| {
        let at = geometry.entry_at(level, table, IOVA);
        let raw = driver.load(at).unwrap();
        if let Entry::Table { next, .. } = format().decode(level, raw) {
            table = next;
        }
        (at, raw)
    };
    (0..4).rev().map(entry).collect()
}

fn flags(driver: &Driver) -> Vec<u64> {
    entries(driver).iter().map(|(_, raw)| raw & (ACCESSED | DIRTY)).collect()
}

fn driver(meddle: impl Fn(u32, u64) -> u64 + 'static) -> Driver {
    let mut store = HeapStore::new(PhysAddr::new(1 << 31), 64);
    let mut table = Table::new(format(), &mut store).unwrap();
    let one = mapping(&format(), IOVA, 4096, OA);
    let one = viommu_pgtable::Mapping::new(one.iova(), one.oa(), Access::RW).unwrap();
    table.map(&mut store, &one).unwrap();
    let (root, exchanges) = (table.root(), Cell::new(0));
    let meddle = Box::new(meddle);
    let driver = Driver { store: RefCell::new(store), root, exchanges, meddle };
    for (at, raw) in entries(&driver) {
        driver.store.borrow_mut().poke(at, raw & !(ACCESSED | DIRTY));
    }
    driver
}

fn access(driver: &Driver, access: Access) -> Result<PhysAddr, FaultKind> {
    let found = walk(&format(), driver, driver.root, Iova::new(IOVA + 8), access);
    found.map(|translation| translation.oa).map_err(|fault| fault.kind)
}

const FOUND: Result<PhysAddr, FaultKind> = Ok(PhysAddr::new(OA + 8));

#[test]
fn a_read_marks_each_level_accessed_and_none_dirty() {
    let driver = driver(|_, raw| raw);
    assert_eq!(access(&driver, Access::READ), FOUND);
    assert_eq!(flags(&driver), [ACCESSED; 4]);
    assert_eq!(access(&driver, Access::READ), FOUND);
    assert_eq!(driver.exchanges.get(), 4, "marked entries are not written again");
}

#[test]
fn a_write_after_a_read_marks_the_leaf_dirty() {
    let driver = driver(|_, raw| raw);
    assert_eq!(access(&driver, Access::READ), FOUND);
    assert_eq!(access(&driver, Access::WRITE), FOUND);
    assert_eq!(flags(&driver), [ACCESSED, ACCESSED, ACCESSED, ACCESSED | DIRTY]);
    assert_eq!(driver.exchanges.get(), 5);
}

#[test]
fn an_access_that_an_entry_denies_does_not_mark_it() {
    let driver = driver(|_, raw| raw);
    let denied = Access::READ | Access::EXEC;
    let granted = Access::RW;
    assert_eq!(access(&driver, denied), Err(FaultKind::Denied { granted, wanted: denied }));
    assert_eq!(flags(&driver), [ACCESSED, ACCESSED, ACCESSED, 0]);
}

#[test]
fn an_entry_that_changed_meanwhile_is_judged_again() {
    let still = driver(|count, raw| if count == 3 { raw | SOFTWARE } else { raw });
    assert_eq!(access(&still, Access::WRITE), FOUND);
    assert_eq!(entries(&still)[3].1 & (SOFTWARE | DIRTY), SOFTWARE | DIRTY);
    let gone = driver(|count, raw| if count == 3 { 0 } else { raw });
    assert_eq!(access(&gone, Access::WRITE), Err(FaultKind::NotPresent));
    assert_eq!(entries(&gone)[3].1, 0, "nothing is written back");
}

#[test]
fn an_entry_that_never_stands_still_ends_the_walk() {
    let driver = driver(|_, raw| raw ^ SOFTWARE);
    assert_eq!(access(&driver, Access::READ), Err(FaultKind::NotUpdated));
    assert_eq!(driver.exchanges.get(), MARK_ATTEMPTS);
}

#[test]
fn memory_that_cannot_be_written_faults_unless_marked_already() {
    let driver = driver(|_, raw| raw);
    let read_only = driver.store.borrow().clone();
    let found = walk(&format(), &read_only, driver.root, Iova::new(IOVA), Access::READ);
    assert_eq!(found.unwrap_err().kind, FaultKind::NotUpdated);
    assert_eq!(access(&driver, Access::WRITE), FOUND);
    let read_only = driver.store.borrow().clone();
    assert!(walk(&format(), &read_only, driver.root, Iova::new(IOVA), Access::RW).is_ok());
}

#[test]
fn marking_through_a_second_level_needs_its_right_to_write() {
    let driver = driver(|_, raw| raw);
    let second = VtdSecond::new(48, ALL_SIZES).unwrap();
    let mut over = HeapStore::new(PhysAddr::new(1 << 40), 64);
    let mut table = Table::new(second, &mut over).unwrap();
    let tables = mapping(&second, 1 << 31, 1 << 20, 1 << 31);
    let tables = viommu_pgtable::Mapping::new(tables.iova(), tables.oa(), Access::READ).unwrap();
    table.map(&mut over, &tables).unwrap();
    let behind = Behind::new(second, &over, table.root(), &driver);
    let fault = walk_nested(&format(), driver.root, &behind, Iova::new(IOVA), Access::READ);
    let fault = fault.unwrap_err();
    assert_eq!((fault.stage, fault.purpose), (Stage::Second, Purpose::TableEntry));
    assert_eq!(fault.input, entries(&driver)[0].0.raw());
    let denied = FaultKind::Denied { granted: Access::READ, wanted: Access::RW };
    assert_eq!(fault.kind, denied);
    assert_eq!(flags(&driver), [0; 4]);
}
