//! From (endpoint, PASID) to its tables, and through them. Formats and structures are
//! `viommu_pasid`'s and `viommu_pgtable`'s; what faults mean to a device is decided here.

use viommu_pasid::smmuv3::LookupFaultKind as Smmu;
use viommu_pasid::vtd::LookupFaultKind as Vtd;
use viommu_pasid::{EndpointId, LookupFault, Memories, Pasid, Route, Structures, lookup};
use viommu_pgtable::{Access, Iova, PhysAddr, TableMemory};

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

/// Guest memory of a reader that reads none of the guest's tables: there is nothing at any address.
#[derive(Debug)]
struct NoGuestMemory;

impl TableMemory for NoGuestMemory {
    fn load(&self, _: PhysAddr) -> Option<u64> {
        None
    }
}

const fn memories(view: &View) -> Memories<'_, View, NoGuestMemory> {
    Memories::new(view, &NoGuestMemory, view.table_base())
}

/// Finds the route of (`endpoint`, `pasid`), starting at its segment's `structures`.
pub(crate) fn find(
    view: &View,
    structures: &Structures,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
) -> Result<Route, FaultReason> {
    lookup(&memories(view), structures, endpoint, pasid).map_err(|fault| match fault {
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

/// Follows `iova` along `route`.
pub(crate) fn follow(
    view: &View,
    route: &Route,
    iova: u64,
    access: Access,
) -> Result<Leaf, FaultReason> {
    let found = memories(view).translate(route, Iova::new(iova), access);
    let found = found.map_err(|fault| match route {
        Route::PassThrough => FaultReason::OutOfRange,
        Route::First { .. } | Route::Second(_) | Route::Nested { .. } => {
            FaultReason::Mapping(fault)
        }
    })?;
    let access = match route {
        Route::PassThrough | Route::Second(_) => found.access,
        // a first level may have a dirty flag, which only a walk for a write has set
        Route::First { .. } | Route::Nested { .. } if access.contains(Access::WRITE) => {
            found.access
        }
        Route::First { .. } | Route::Nested { .. } => found.access.difference(Access::WRITE),
    };
    Ok(Leaf { oa: found.oa.raw(), size_lg2: found.size_lg2.into(), access })
}
