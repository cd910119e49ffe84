//! How an architecture lays out domains and endpoints in the table memory.
//!
//! | | VT-d | SMMUv3 |
//! | --- | --- | --- |
//! | a domain | second-level table | stage 1 table |
//! | an endpoint | context entry, PASID table | stream table entry, context descriptors |
//! | untagged traffic | PASID entry 0 | context descriptor 0, or S1DSS |
//! | bypass | PASID entry of type pass-through | S1DSS = bypass |

mod smmuv3;
mod vtd;

use viommu_pasid::{EndpointId, Requester, SetError, Structures};
use viommu_pgtable::{
    ArmStage1, IovaRange, MapError, Mapping, OutOfTables, Table, TableStore, UnmapError, VtdSecond,
};

use crate::EndpointCapabilities;
pub(super) use smmuv3::SmmuV3;
pub(super) use vtd::Vtd;

/// The table of a domain.
#[derive(Debug)]
pub(super) enum DomainTable {
    /// VT-d, second level.
    Vtd(Table<VtdSecond>),
    /// Arm, 64-bit stage 1.
    SmmuV3(Table<ArmStage1>),
}

impl DomainTable {
    /// Adds a mapping, or writes nothing.
    pub(super) fn map<S: TableStore>(
        &mut self,
        store: &mut S,
        mapping: &Mapping,
    ) -> Result<(), MapError> {
        match self {
            Self::Vtd(table) => table.map(store, mapping),
            Self::SmmuV3(table) => table.map(store, &smmuv3::expressible(mapping)),
        }
    }

    /// Removes the leaves of a range that [`map`](Self::map) was given.
    pub(super) fn unmap<S: TableStore>(
        &mut self,
        store: &mut S,
        iova: IovaRange,
    ) -> Result<(), UnmapError> {
        match self {
            Self::Vtd(table) => table.unmap(store, iova).map(drop),
            Self::SmmuV3(table) => table.unmap(store, iova).map(drop),
        }
    }

    /// Gives all pages back; nothing leads to the table any more.
    pub(super) fn destroy<S: TableStore>(self, store: &mut S) {
        match self {
            Self::Vtd(table) => table.destroy(store),
            Self::SmmuV3(table) => table.destroy(store),
        }
    }
}

/// Where a requester is to be led.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lead<'a> {
    /// Nowhere.
    Blocked,
    /// To the address that it names.
    Identity,
    /// Through a table; the tag is what hardware would mark its caches with.
    Through(&'a DomainTable, u16),
}

/// Why a requester could not be led there. Where it went before, it goes still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LeadError {
    /// No memory, or no such PASID.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The structures have no way to say it.
    #[error("{0}")]
    Inexpressible(&'static str),
}

/// The structures of one architecture.
#[derive(Debug)]
pub(super) enum Layout {
    /// VT-d, scalable mode.
    Vtd(Vtd),
    /// SMMUv3.
    SmmuV3(SmmuV3),
}

impl Layout {
    /// What can be done for every endpoint, but for its PASIDs' width.
    pub(super) fn endpoint_capabilities(&self) -> EndpointCapabilities {
        let own_second_level = matches!(self, Self::Vtd(_));
        EndpointCapabilities { own_second_level, ..EndpointCapabilities::default() }
    }

    /// An empty table for a domain.
    pub(super) fn new_table<S: TableStore>(
        &self,
        store: &mut S,
    ) -> Result<DomainTable, OutOfTables> {
        match self {
            Self::Vtd(vtd) => vtd.new_table(store).map(DomainTable::Vtd),
            Self::SmmuV3(smmu) => smmu.new_table(store).map(DomainTable::SmmuV3),
        }
    }

    /// Makes room for an endpoint, which is blocked at first.
    pub(super) fn add<S: TableStore>(
        &mut self,
        store: &mut S,
        endpoint: EndpointId,
        pasid_bits: u8,
    ) -> Result<(), LeadError> {
        match self {
            Self::Vtd(vtd) => vtd.add(store, endpoint, pasid_bits),
            Self::SmmuV3(smmu) => smmu.add(store, endpoint, pasid_bits),
        }
    }

    /// Leads a requester elsewhere, atomically. [`Lead::Blocked`] needs no memory and cannot fail.
    pub(super) fn lead<S: TableStore>(
        &mut self,
        store: &mut S,
        requester: Requester,
        lead: Lead<'_>,
    ) -> Result<(), LeadError> {
        match self {
            Self::Vtd(vtd) => vtd.lead(store, requester, lead),
            Self::SmmuV3(smmu) => smmu.lead(store, requester, lead),
        }
    }

    /// Where readers of a PCI segment start.
    pub(super) fn structures(&self, segment: u16) -> Option<Structures> {
        match self {
            Self::Vtd(vtd) => vtd.structures(segment),
            Self::SmmuV3(smmu) => smmu.structures(segment),
        }
    }
}

/// What a caller that asked for an endpoint that was never added is told.
const NO_ENDPOINT: LeadError = LeadError::Inexpressible("no such endpoint");

/// What a domain of the other architecture is called; none is ever made.
const FOREIGN_TABLE: LeadError = LeadError::Inexpressible("a table of another architecture");
