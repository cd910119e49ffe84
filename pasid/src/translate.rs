//! Along a route: the walk of one or two tables, whichever they are.

use viommu_pgtable::{
    Access, ArmStage1, Behind, Fault, FaultKind, Format, Iova, PhysAddr, Purpose, Stage,
    TableMemory, Translation, VtdFirst, walk, walk_nested,
};

use crate::lookup::{FirstTable, Route, SecondTable};
use crate::smmuv3::{ContextControls, ContextDescriptor};
use crate::space::{Memories, Space};
use crate::vtd::{FirstControls, FirstLevel};

/// Leaf sizes of VT-d's tables: 4 KiB, 2 MiB, 1 GiB.
const LEAF_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// What passes through is told of in blocks of this size, log2, where they fit below the tables.
const PASS_THROUGH_LG2: u8 = 30;

/// Tables begin at a multiple of 4 KiB.
const SMALLEST_LG2: u8 = 12;

impl<T: TableMemory + ?Sized, G: TableMemory + ?Sized> Memories<'_, T, G> {
    /// Follows `iova` along `route`, which a lookup in these memories found.
    ///
    /// What it yields is guest-physical: below the tables, with its whole page. Tables of the guest
    /// are read from the guest's memory only, and their accessed and dirty flags are set there.
    ///
    /// # Errors
    /// The [`Fault`] of the table that ended it. An output at or above the tables is
    /// [`OutputTooWide`](FaultKind::OutputTooWide), an address that no table is for
    /// [`InputTooWide`](FaultKind::InputTooWide), and a control that cannot be honoured
    /// [`Malformed`](FaultKind::Malformed).
    pub fn translate(
        &self,
        route: &Route,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        let found = match route {
            Route::PassThrough => pass_through(iova),
            Route::First { table, space: Space::Tables } => {
                Start::of(table, iova, access)?.walk(self.tables, iova, access)?
            }
            Route::First { table, .. } => {
                Start::of(table, iova, access)?.walk(&self.guest, iova, access)?
            }
            Route::Second(table) => self.second(table, iova, access)?,
            Route::Nested { first, second } => self.nested(first, second, iova, access)?,
        };
        self.below_tables(found, iova)
    }

    fn second(
        &self,
        table: &SecondTable,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        match table {
            SecondTable::Vtd(table) => {
                let bad = fault(Stage::Second, FaultKind::Malformed, iova);
                walk(&table.format(LEAF_SIZES).ok_or(bad)?, self.tables, table.root, iova, access)
            }
            SecondTable::Arm(table) => {
                walk(table.format(), self.tables, table.root(), iova, access)
            }
        }
    }

    fn nested(
        &self,
        first: &FirstTable,
        second: &SecondTable,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        let (start, guest) = (Start::of(first, iova, access)?, &self.guest);
        match second {
            SecondTable::Vtd(table) => {
                let bad = fault(Stage::Second, FaultKind::Malformed, iova);
                let format = table.format(LEAF_SIZES).ok_or(bad)?;
                let behind = Behind::new(format, self.tables, table.root, guest);
                start.walk_behind(&behind, iova, access)
            }
            SecondTable::Arm(table) => {
                let behind = Behind::new(*table.format(), self.tables, table.root(), guest);
                start.walk_behind(&behind, iova, access)
            }
        }
    }

    /// The part of the page of `found` around its address that lies below the tables.
    fn below_tables(&self, found: Translation, iova: Iova) -> Result<Translation, Fault> {
        let ends_below = |lg2: u8| {
            let last = found.oa.raw() | ((1 << lg2) - 1);
            last < self.table_base.raw()
        };
        match (SMALLEST_LG2..=found.size_lg2).rev().find(|lg2| ends_below(*lg2)) {
            Some(size_lg2) => Ok(Translation { size_lg2, ..found }),
            None => Err(fault(Stage::Second, FaultKind::OutputTooWide, iova)),
        }
    }
}

const fn pass_through(iova: Iova) -> Translation {
    let oa = PhysAddr::new(iova.raw());
    Translation { oa, size_lg2: PASS_THROUGH_LG2, access: Access::all() }
}

/// Where a walk of a first level starts.
enum Start {
    Vtd { format: VtdFirst, root: PhysAddr },
    Arm { format: ArmStage1, root: PhysAddr, input: Iova },
}

impl Start {
    fn of(table: &FirstTable, iova: Iova, access: Access) -> Result<Self, Fault> {
        let start = match table {
            FirstTable::Vtd(table) => Self::of_vtd(table, access),
            FirstTable::Arm(descriptor) => Self::of_arm(descriptor, iova),
        };
        start.map_err(|kind| fault(Stage::First, kind, iova))
    }

    fn of_vtd(table: &FirstLevel, access: Access) -> Result<Self, FaultKind> {
        let has = |control| table.controls.contains(control);
        if access.contains(Access::PRIVILEGED) && !has(FirstControls::SUPERVISOR) {
            return Err(FaultKind::Denied { granted: Access::empty(), wanted: access });
        }
        if has(FirstControls::EXTENDED_ACCESSED) {
            return Err(FaultKind::Malformed);
        }
        let format = table.format(LEAF_SIZES).ok_or(FaultKind::Malformed)?;
        Ok(Self::Vtd { format, root: table.root })
    }

    fn of_arm(descriptor: &ContextDescriptor, iova: Iova) -> Result<Self, FaultKind> {
        if descriptor.controls.intersects(ContextControls::BEYOND_FORMAT) {
            return Err(FaultKind::Malformed);
        }
        let (table, input) = descriptor.table_for(iova).ok_or(FaultKind::InputTooWide)?;
        Ok(Self::Arm { format: *table.format(), root: table.root(), input })
    }

    fn walk<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        match self {
            Self::Vtd { format, root } => walk(format, memory, *root, iova, access),
            Self::Arm { format, root, input } => {
                walk(format, memory, *root, *input, access).map_err(|fault| of_iova(fault, iova))
            }
        }
    }

    fn walk_behind<F: Format, T: TableMemory + ?Sized, M: TableMemory + ?Sized>(
        &self,
        behind: &Behind<'_, F, T, M>,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        match self {
            Self::Vtd { format, root } => walk_nested(format, *root, behind, iova, access),
            Self::Arm { format, root, input } => walk_nested(format, *root, behind, *input, access)
                .map_err(|fault| of_iova(fault, iova)),
        }
    }
}

/// `fault`, of the address that the endpoint put on the bus: the table was asked for a part of it.
fn of_iova(fault: Fault, iova: Iova) -> Fault {
    match fault.stage {
        Stage::First => Fault { input: iova.raw(), ..fault },
        Stage::Second => fault,
    }
}

/// A fault of no entry.
const fn fault(stage: Stage, kind: FaultKind, iova: Iova) -> Fault {
    let (purpose, entry_at) = (Purpose::Access, PhysAddr::new(0));
    Fault { stage, purpose, input: iova.raw(), level: 0, entry_at, kind }
}

#[cfg(test)]
mod tests;
