//! Along a route: the walk of one or two tables, whichever they are.

use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Behind, Fault, FaultKind, Format, Iova, LowTable, PhysAddr,
    Purpose, Stage, TableMemory, Translation, VtdFirst, VtdSecond, walk, walk_nested, walk_noting,
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
        self.translate_noting(route, iova, access).map(|(page, _)| page)
    }

    /// [`translate`](Self::translate), which also yields where the next walk of a page beside this one
    /// can begin, if only tables of the daemon's are on the way.
    ///
    /// # Errors
    /// As [`translate`](Self::translate).
    pub fn translate_noting(
        &self,
        route: &Route,
        iova: Iova,
        access: Access,
    ) -> Result<(Translation, Option<Shortcut>), Fault> {
        let alone = |found| (found, None);
        let (found, shortcut) = match route {
            Route::PassThrough => alone(pass_through(iova)),
            Route::First { table, space: Space::Tables } => {
                Start::of(table, iova, access)?.walk_noting(self.tables, iova, access)?
            }
            Route::First { table, .. } => {
                alone(Start::of(table, iova, access)?.walk(&self.guest, iova, access)?)
            }
            Route::Second(table) => self.second(table, iova, access)?,
            Route::Nested { first, second } => alone(self.nested(first, second, iova, access)?),
        };
        Ok((self.below_tables(found, iova)?, shortcut))
    }

    /// The end of a translation of `iova` that begins at `shortcut`, which
    /// [`translate_noting`](Self::translate_noting) gave for an address in the same span.
    ///
    /// # Errors
    /// A [`Fault`] that means nothing before a whole [`translate`](Self::translate) has found it,
    /// too: the table may have been replaced.
    #[inline]
    pub fn translate_from(
        &self,
        shortcut: &Shortcut,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        let low = &shortcut.low;
        let found = match &shortcut.format {
            LowFormat::VtdSecond(format) => low.walk(format, self.tables, iova, access),
            LowFormat::ArmStage1(format) => low.walk(format, self.tables, iova, access),
            LowFormat::ArmStage2(format) => low.walk(format, self.tables, iova, access),
        };
        self.below_tables(found?, iova)
    }

    fn second(
        &self,
        table: &SecondTable,
        iova: Iova,
        access: Access,
    ) -> Result<(Translation, Option<Shortcut>), Fault> {
        match table {
            SecondTable::Vtd(table) => {
                let bad = fault(Stage::Second, FaultKind::Malformed, iova);
                let format = table.format(LEAF_SIZES).ok_or(bad)?;
                let found = walk_noting(&format, self.tables, table.root, iova, access)?;
                Ok(Shortcut::beside(found, LowFormat::VtdSecond(format)))
            }
            SecondTable::Arm(table) => {
                let format = *table.format();
                let found = walk_noting(&format, self.tables, table.root(), iova, access)?;
                Ok(Shortcut::beside(found, LowFormat::ArmStage2(format)))
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
    #[inline]
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

/// Where a walk can begin that ends in a table of level 0 of the daemon's: at that table.
///
/// It is good as long as nothing was withdrawn that its walk went through, and what it says of an address
/// that is not mapped is not to be believed; see [`Memories::translate_from`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortcut {
    low: LowTable,
    format: LowFormat,
}

/// What the table's entries mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LowFormat {
    VtdSecond(VtdSecond),
    ArmStage1(ArmStage1),
    ArmStage2(ArmStage2),
}

impl Shortcut {
    /// `found`, with the shortcut to its table if that has this format.
    fn beside(
        (page, low): (Translation, Option<LowTable>),
        format: LowFormat,
    ) -> (Translation, Option<Self>) {
        (page, low.map(|low| Self { low, format }))
    }

    /// It is for all addresses that are the same above so many bits.
    #[must_use]
    pub fn span_lg2(&self) -> u8 {
        let geometry = match &self.format {
            LowFormat::VtdSecond(format) => format.geometry(),
            LowFormat::ArmStage1(format) => format.geometry(),
            LowFormat::ArmStage2(format) => format.geometry(),
        };
        geometry.entry_lg2(1)
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

    /// [`walk`](Self::walk), in tables of the daemon's. Those of VT-d have no shortcut: the daemon fills
    /// no first level there.
    fn walk_noting<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        iova: Iova,
        access: Access,
    ) -> Result<(Translation, Option<Shortcut>), Fault> {
        match self {
            Self::Vtd { .. } => Ok((self.walk(memory, iova, access)?, None)),
            Self::Arm { format, root, input } => {
                let found = walk_noting(format, memory, *root, *input, access)
                    .map_err(|fault| of_iova(fault, iova))?;
                Ok(Shortcut::beside(found, LowFormat::ArmStage1(*format)))
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
