//! How an architecture lays out domains and endpoints in the table memory.
//!
//! | | VT-d | SMMUv3 |
//! | --- | --- | --- |
//! | a domain that translates alone | second-level table | stage 1 table |
//! | a domain below a bound table | the same table | stage 2 table |
//! | an endpoint | context entry, PASID table | stream table entry, context descriptors |
//! | untagged traffic | PASID entry 0 | context descriptor 0, or S1DSS |
//! | bypass | PASID entry of type pass-through | S1DSS = bypass |
//! | a bound table | PASID entry of type first level or nested | context descriptor; stage 2 in the stream table entry |

mod smmuv3;
mod tables;
#[cfg(test)]
mod tests;
mod vtd;

use viommu_pasid::{EndpointId, FirstTable, Requester, SetError, Staged, Structures};
use viommu_pgtable::{PhysAddr, TableStore};

use crate::{DomainId, EndpointCapabilities, Output, TableFormat};
pub(super) use smmuv3::SmmuV3;
pub(super) use tables::{DomainTables, Form, Formats};
pub(super) use vtd::Vtd;

/// A domain's mappings, as the structures name them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapped<'a> {
    /// Whose they are.
    pub(super) domain: DomainId,
    /// The tables that hold them.
    pub(super) tables: &'a DomainTables,
    /// What hardware would mark its caches with.
    pub(super) tag: u16,
}

/// Where requesters are to be led.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lead<'a> {
    /// Nowhere.
    Blocked,
    /// To the address that they name.
    Identity,
    /// Through a domain's mappings alone.
    Mappings(Mapped<'a>),
    /// Through a table that the guest has bound.
    Bound {
        /// The table.
        table: FirstTable,
        /// What hardware would mark its caches with.
        tag: u16,
        /// What its output goes through; `None` if that is guest-physical.
        below: Option<Mapped<'a>>,
    },
}

/// Why requesters could not be led there. Where they went before, they go still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LeadError {
    /// No memory, or no such PASID.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Something replaced before is in its way until the next drain.
    #[error("what was replaced is still read")]
    Busy,
    /// The structures have no way to say it.
    #[error("{0}")]
    Inexpressible(&'static str),
}

/// A change of where requesters are led, written and not in force. To be committed or discarded.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Change {
    /// PASID entries, or context descriptors.
    entries: Staged,
    /// Stream table entries: they follow when all descriptors are there.
    streams: Staged,
    /// VT-d: who is led nowhere.
    blocked: Vec<Requester>,
    /// What the books of SMMUv3's endpoints say afterwards.
    next: Vec<(EndpointId, smmuv3::Next)>,
}

impl Change {
    /// Gives the memory back; nothing has changed.
    pub(super) fn discard<S: TableStore>(self, store: &mut S) {
        self.entries.discard(store);
        self.streams.discard(store);
    }
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
    /// What can be done for every endpoint, but for its PASIDs' width. `table_base` is where the
    /// region's addresses begin.
    pub(super) fn endpoint_capabilities(&self, table_base: PhysAddr) -> EndpointCapabilities {
        let (own_second_level, mut format) = match self {
            Self::Vtd(vtd) => (true, vtd.bindable()),
            Self::SmmuV3(_) => (false, SmmuV3::bindable()),
        };
        let below_tables = u8::try_from(table_base.raw().checked_ilog2().unwrap_or(0));
        format.output_bits = format.output_bits.min(below_tables.unwrap_or(u8::MAX));
        EndpointCapabilities {
            pasid_bits: 0,
            own_second_level,
            parent: true,
            identity: true,
            formats: vec![format],
        }
    }

    /// Formats of domains' tables.
    pub(super) const fn formats(&self) -> Formats {
        match self {
            Self::Vtd(vtd) => vtd.formats(),
            Self::SmmuV3(smmu) => smmu.formats(),
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

    /// Refuses a table that no entry can name as the guest means it: a pointer wider than its
    /// field, or a guest-physical one that would lead into the region.
    pub(super) fn check_bindable(
        &self,
        table: &FirstTable,
        output: Output,
        table_base: PhysAddr,
    ) -> Result<(), LeadError> {
        let root_below = match output {
            Output::GuestPhysical => Some(table_base),
            Output::Through(_) => None,
        };
        match (self, table) {
            (Self::Vtd(vtd), FirstTable::Vtd(table)) => vtd.check_bindable(table, root_below),
            (Self::SmmuV3(_), FirstTable::Arm(table)) => SmmuV3::check_bindable(table, root_below),
            (Self::Vtd(_), FirstTable::Arm(_)) | (Self::SmmuV3(_), FirstTable::Vtd(_)) => {
                Err(FOREIGN_TABLE)
            }
        }
    }

    /// Prepares to lead `requesters`, in order and each once, elsewhere.
    ///
    /// # Errors
    /// [`LeadError`]; nothing changes. [`Lead::Blocked`] on VT-d cannot fail.
    pub(super) fn stage<S: TableStore>(
        &mut self,
        store: &mut S,
        requesters: &[Requester],
        lead: &Lead<'_>,
    ) -> Result<Change, LeadError> {
        let mut change = Change::default();
        for group in requesters.chunk_by(|a, b| a.endpoint == b.endpoint) {
            let staged = match self {
                Self::Vtd(vtd) => vtd.stage(store, group, lead, &mut change),
                Self::SmmuV3(smmu) => smmu.stage(store, group, lead, &mut change),
            };
            if let Err(error) = staged {
                change.discard(store);
                return Err(error);
            }
        }
        Ok(change)
    }

    /// Brings a change into force: each requester's way changes at once.
    pub(super) fn commit<S: TableStore>(&mut self, store: &mut S, change: Change) {
        let Change { entries, streams, blocked, next } = change;
        entries.commit(store);
        streams.commit(store);
        match self {
            Self::Vtd(vtd) => blocked.into_iter().for_each(|requester| vtd.block(store, requester)),
            Self::SmmuV3(smmu) => smmu.commit(store, next),
        }
    }

    /// Leads a requester nowhere, without memory.
    pub(super) fn block_in_place<S: TableStore>(&mut self, store: &mut S, requester: Requester) {
        match self {
            Self::Vtd(vtd) => vtd.block(store, requester),
            Self::SmmuV3(smmu) => smmu.block_in_place(store, requester),
        }
    }

    /// Clears what no request reads any more: a drain has passed since it was replaced.
    pub(super) fn settle<S: TableStore>(&mut self, store: &mut S) {
        if let Self::SmmuV3(smmu) = self {
            smmu.settle(store);
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

/// What a domain that was not prepared for a role is called.
const UNPREPARED: LeadError = LeadError::Inexpressible("the domain is not prepared for this role");

/// What a pointer of the guest's is called that would lead into the region, or that an entry cannot
/// hold.
const ROOT_TOO_WIDE: LeadError = LeadError::Inexpressible("the root lies above guest memory");
