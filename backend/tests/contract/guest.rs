//! A guest's memory, and a driver in it that makes page tables.

use std::cell::RefCell;
use std::collections::BTreeMap;

use viommu_iotlb::Arch;
use viommu_pasid::FirstTable;
use viommu_pasid::smmuv3::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pgtable::{
    Access, ArmStage1, Format, Granule, Iova, IovaRange, Mapping, OutOfTables, PhysAddr, Table,
    TableMemory, TableStore, VtdFirst,
};

use crate::subject::{PAGE, mapping};

/// Guest memory: what was never written is 0, and there is memory up to [`Guest::END`].
#[derive(Default)]
pub(crate) struct Guest(RefCell<BTreeMap<u64, u64>>);

impl Guest {
    pub(crate) const END: u64 = 1 << 40;

    pub(crate) fn write(&self, at: u64, word: u64) {
        self.0.borrow_mut().insert(at, word);
    }

    pub(crate) fn read(&self, at: u64) -> u64 {
        self.0.borrow().get(&at).copied().unwrap_or(0)
    }
}

impl TableMemory for Guest {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        (at.raw() < Self::END).then(|| self.read(at.raw()))
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        let found = self.load(at)?;
        if found != old {
            return Some(Err(found));
        }
        self.write(at.raw(), new);
        Some(Ok(()))
    }
}

/// A driver that makes tables in guest memory, at addresses from `next` on as it knows them. They
/// are guest-physical if `shift` is added.
pub(crate) struct Driver<'g> {
    guest: &'g Guest,
    shift: u64,
    next: u64,
    live: BTreeMap<PhysAddr, u16>,
}

impl<'g> Driver<'g> {
    pub(crate) const fn new(guest: &'g Guest, shift: u64, first: u64) -> Self {
        Self { guest, shift, next: first, live: BTreeMap::new() }
    }

    /// Where it would make the next table.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// A table of `arch` that leads pages to pages.
    pub(crate) fn table(&mut self, arch: Arch, pages: &[(u64, u64, Access)]) -> FirstTable {
        match arch {
            Arch::Vtd => {
                let format = VtdFirst::new(48, 0x4020_1000).unwrap();
                let (root, controls) = (self.fill(format, pages), FirstControls::empty());
                FirstTable::Vtd(FirstLevel { root, five_levels: false, controls })
            }
            Arch::SmmuV3 => {
                let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
                let root = self.fill(format, pages);
                arm_table(root, format)
            }
        }
    }

    /// An Arm table that leads one page of its granule to another, by addresses.
    pub(crate) fn granule(&mut self, granule: Granule, from: u64, to: u64) -> FirstTable {
        let format = ArmStage1::new(granule, 48, 48).unwrap();
        let mut table = Table::new(format, self).unwrap();
        let iova = IovaRange::with_len(Iova::new(from), 1 << granule.lg2()).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(to), Access::RW).unwrap();
        table.map(self, &mapping).unwrap();
        arm_table(table.root(), format)
    }

    fn fill<F: Format>(&mut self, format: F, pages: &[(u64, u64, Access)]) -> PhysAddr {
        let mut table = Table::new(format, self).unwrap();
        for (from, to, access) in pages {
            table.map(self, &mapping(*from, 1, *to, *access)).unwrap();
        }
        table.root()
    }
}

fn arm_table(root: PhysAddr, format: ArmStage1) -> FirstTable {
    let tables = Stage1Tables::lower_only(Stage1Table::new(root, format).unwrap());
    let controls = ContextControls::empty();
    FirstTable::Arm(ContextDescriptor { tables, asid: 0, mair: 0xff, controls })
}

impl TableMemory for Driver<'_> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        Some(self.guest.read(at.raw() + self.shift))
    }
}

impl TableStore for Driver<'_> {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.guest.write(at.raw() + self.shift, entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let start = self.next.next_multiple_of(pages.next_power_of_two() * PAGE);
        self.next = start + pages * PAGE;
        Ok(PhysAddr::new(start))
    }

    fn free_pages(&mut self, _: PhysAddr, _: u64) {}

    fn pages_left(&self) -> u64 {
        u64::MAX
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(&page).copied().unwrap_or(0)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.live.insert(page, entries);
    }
}
