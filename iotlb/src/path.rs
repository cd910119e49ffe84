//! From (endpoint, PASID) to its tables, and through them. Formats and structures are
//! `viommu_pasid`'s and `viommu_pgtable`'s; what faults mean to a device is decided here.

use viommu_pasid::smmuv3::LookupFaultKind as Smmu;
use viommu_pasid::vtd::LookupFaultKind as Vtd;
use viommu_pasid::{
    EndpointId, FirstTable, LookupFault, Memories, Pasid, Route, Shortcut, Space, Structures,
    lookup,
};
use viommu_pgtable::{Access, Iova, Stage, TableMemory, Translation};

use crate::fault::FaultReason;
use crate::view::View;

/// Where a page of IOVAs leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Where the address itself leads.
    pub(crate) oa: u64,
    /// Size of the page, bytes.
    pub(crate) size_lg2: u32,
    /// What accesses may be answered by this, without another look at the tables.
    pub(crate) access: Access,
}

impl From<Translation> for Leaf {
    #[inline]
    fn from(page: Translation) -> Self {
        Self { oa: page.oa.raw(), size_lg2: page.size_lg2.into(), access: page.access }
    }
}

/// The tables of the daemon, and those of the guest in `guest`.
pub(crate) type Tables<'a, T = View> = Memories<'a, T, dyn TableMemory + 'a>;

pub(crate) const fn tables<'a>(view: &'a View, guest: &'a dyn TableMemory) -> Tables<'a> {
    Memories::new(view, guest, view.table_base())
}

/// Finds the route of (`endpoint`, `pasid`), starting at its segment's `structures`.
pub(crate) fn find<T: TableMemory + ?Sized>(
    tables: &Tables<'_, T>,
    structures: &Structures,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
) -> Result<Route, FaultReason> {
    lookup(tables, structures, endpoint, pasid).map_err(|fault| match fault {
        LookupFault::Vtd(fault) => vtd_reason(fault.kind),
        LookupFault::SmmuV3(fault) => smmu_reason(&fault.kind),
    })
}

const fn vtd_reason(kind: Vtd) -> FaultReason {
    match kind {
        Vtd::NoMemory
        | Vtd::RootMalformed
        | Vtd::ContextMalformed
        | Vtd::DirectoryMalformed
        | Vtd::EntryMalformed => FaultReason::Malformed,
        Vtd::RootNotPresent
        | Vtd::ContextNotPresent
        | Vtd::PasidNotEnabled
        | Vtd::PasidTooWide
        | Vtd::DirectoryNotPresent
        | Vtd::EntryNotPresent => FaultReason::NotAttached,
    }
}

/// SMMUv3 does not tell an entry that is not valid from one that is illegal; the daemon writes none
/// of the latter.
const fn smmu_reason(kind: &Smmu) -> FaultReason {
    match kind {
        Smmu::EntryFetch | Smmu::ContextFetch | Smmu::ContextThrough(_) => FaultReason::Malformed,
        Smmu::UnknownStream
        | Smmu::BadEntry
        | Smmu::Aborted
        | Smmu::StreamDisabled
        | Smmu::BadSubstream
        | Smmu::BadContext => FaultReason::NotAttached,
    }
}

/// Follows `iova` along `route`: where it leads, and where the next walk of its neighbours can
/// begin.
pub(crate) fn follow<T: TableMemory + ?Sized>(
    tables: &Tables<'_, T>,
    route: &Route,
    iova: u64,
    access: Access,
) -> Result<(Leaf, Option<Shortcut>), FaultReason> {
    let found = tables.translate_noting(route, Iova::new(iova), access);
    let (page, shortcut) = found.map_err(|fault| match route {
        Route::PassThrough => FaultReason::OutOfRange,
        Route::Nested { .. } if fault.stage == Stage::Second => FaultReason::SecondLevel(fault),
        Route::First { .. } | Route::Second(_) | Route::Nested { .. } => {
            FaultReason::Mapping(fault)
        }
    })?;
    let mut leaf = Leaf::from(page);
    if !access.contains(Access::WRITE) && has_dirty_flags(route) {
        // only a walk for a write has set the flag
        leaf.access.remove(Access::WRITE);
    }
    Ok((leaf, shortcut))
}

/// Where `iova` leads from a shortcut that was noted in the same epoch; `None` if that is for a
/// whole walk to say.
#[inline]
pub(crate) fn follow_from<T: TableMemory + ?Sized>(
    tables: &Tables<'_, T>,
    shortcut: &Shortcut,
    iova: u64,
    access: Access,
) -> Option<Leaf> {
    // only host-owned tables have shortcuts: their entries carry dirty flags preset
    tables.translate_from(shortcut, Iova::new(iova), access).ok().map(Leaf::from)
}

/// True if a write through `route` must find a dirty flag set: in VT-d's first level, if the guest
/// owns it. Host-owned entries carry it preset, and Arm's tables have none here.
const fn has_dirty_flags(route: &Route) -> bool {
    match route {
        Route::First { table: FirstTable::Vtd(_), space } => !matches!(space, Space::Tables),
        Route::Nested { first: FirstTable::Vtd(_), .. } => true,
        _ => false,
    }
}
