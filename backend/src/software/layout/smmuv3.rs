//! SMMUv3: a domain is a stage 1 table, an endpoint has a table of context descriptors.
//!
//! Untagged traffic takes descriptor 0, bypasses, or is aborted, as S1DSS in the stream table entry says:
//! an entry changes only when that does. Stage 1 cannot allow a write without a read, so a write-only
//! mapping can be read too (virtio 1.4, 5.13.6.5.2 lets a device do that).

use std::collections::BTreeMap;

use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, ContextTable, Stage1Table, Stage1Tables, StreamConfig,
    StreamEntry, StreamTable, Untagged,
};
use viommu_pasid::{EndpointId, Requester, SetError, Structures};
use viommu_pgtable::{Access, ArmStage1, Mapping, OutOfTables, Table, TableStore};

use super::{DomainTable, FOREIGN_TABLE, Lead, LeadError, NO_ENDPOINT};

/// Memory types: attribute 0, which all entries name, is normal memory, write-back.
const MAIR: u64 = 0xff;

/// An endpoint: its descriptors, and what its stream table entry says of untagged traffic.
#[derive(Debug, Clone, Copy)]
struct Endpoint {
    contexts: ContextTable,
    /// `None`: the stream table entry is not valid.
    untagged: Option<Untagged>,
}

/// Stream tables and context descriptors.
#[derive(Debug)]
pub(in super::super) struct SmmuV3 {
    format: ArmStage1,
    streams: BTreeMap<u16, StreamTable>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
}

impl SmmuV3 {
    pub(in super::super) const fn new(format: ArmStage1) -> Self {
        Self { format, streams: BTreeMap::new(), endpoints: BTreeMap::new() }
    }

    pub(super) fn new_table<S: TableStore>(
        &self,
        store: &mut S,
    ) -> Result<Table<ArmStage1>, OutOfTables> {
        Table::new(self.format, store)
    }

    pub(super) fn add<S: TableStore>(
        &mut self,
        store: &mut S,
        endpoint: EndpointId,
        pasid_bits: u8,
    ) -> Result<(), LeadError> {
        let stream = match self.streams.get(&endpoint.segment()) {
            Some(stream) => *stream,
            None => StreamTable::new(store).map_err(SetError::OutOfTables)?,
        };
        let contexts = ContextTable::new(store, pasid_bits).map_err(SetError::OutOfTables)?;
        let mut new = Endpoint { contexts, untagged: None };
        new.set_untagged(store, stream, endpoint, Untagged::Terminate)?;
        self.streams.insert(endpoint.segment(), stream);
        self.endpoints.insert(endpoint, new);
        Ok(())
    }

    pub(super) fn lead<S: TableStore>(
        &mut self,
        store: &mut S,
        requester: Requester,
        lead: Lead<'_>,
    ) -> Result<(), LeadError> {
        let id = requester.endpoint;
        let stream = *self.streams.get(&id.segment()).ok_or(NO_ENDPOINT)?;
        let endpoint = self.endpoints.get_mut(&id).ok_or(NO_ENDPOINT)?;
        let contexts = endpoint.contexts;
        match (requester.pasid, lead) {
            (Some(pasid), Lead::Blocked) => contexts.clear(store, pasid.raw()),
            (Some(_), Lead::Identity) => {
                return Err(LeadError::Inexpressible("bypass behind a PASID"));
            }
            (Some(pasid), Lead::Through(table, tag)) => {
                contexts.set(store, pasid.raw(), &descriptor(table, tag)?)?;
            }
            (None, Lead::Blocked) => endpoint.block_untagged(store, stream, id),
            (None, Lead::Identity) => {
                endpoint.set_untagged(store, stream, id, Untagged::Bypass)?;
                contexts.clear(store, 0);
            }
            (None, Lead::Through(table, tag)) => {
                contexts.set(store, 0, &descriptor(table, tag)?)?;
                if let Err(error) = endpoint.set_untagged(store, stream, id, Untagged::Context0) {
                    // the entry did not lead to descriptor 0 before, or there was nothing to change
                    contexts.clear(store, 0);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(super) fn structures(&self, segment: u16) -> Option<Structures> {
        self.streams.get(&segment).map(|stream| Structures::SmmuV3(stream.root()))
    }
}

impl Endpoint {
    /// Writes the stream table entry, unless it says this already.
    fn set_untagged<S: TableStore>(
        &mut self,
        store: &mut S,
        stream: StreamTable,
        id: EndpointId,
        untagged: Untagged,
    ) -> Result<(), LeadError> {
        if self.untagged == Some(untagged) {
            return Ok(());
        }
        let above = LeadError::Inexpressible("context descriptors above 2^48");
        let config = StreamConfig::Stage1(self.contexts.stage1(untagged).ok_or(above)?);
        stream.set(store, id.bdf(), &StreamEntry { vmid: 0, config })?;
        self.untagged = Some(untagged);
        Ok(())
    }

    /// Blocks untagged traffic. Where it bypasses and no page is left for another stream table entry, the
    /// entry goes, and the endpoint's PASIDs with it: fewer accesses, never more.
    fn block_untagged<S: TableStore>(
        &mut self,
        store: &mut S,
        stream: StreamTable,
        id: EndpointId,
    ) {
        let bypasses = self.untagged == Some(Untagged::Bypass);
        if bypasses && self.set_untagged(store, stream, id, Untagged::Terminate).is_err() {
            stream.clear(store, id.bdf());
            self.untagged = None;
        }
        self.contexts.clear(store, 0);
    }
}

/// The descriptor that leads through a domain's table.
fn descriptor(table: &DomainTable, tag: u16) -> Result<ContextDescriptor, LeadError> {
    let DomainTable::SmmuV3(table) = table else { return Err(FOREIGN_TABLE) };
    let table = Stage1Table::new(table.root(), *table.format())
        .ok_or(LeadError::Inexpressible("a table above 2^48"))?;
    Ok(ContextDescriptor {
        tables: Stage1Tables::lower_only(table),
        asid: tag,
        mair: MAIR,
        controls: ContextControls::empty(),
    })
}

/// The mapping as stage 1 can say it: what may be written may be read.
pub(super) fn expressible(mapping: &Mapping) -> Mapping {
    let access = mapping.access().union(Access::READ);
    // the same ranges: they fitted before
    Mapping::new(mapping.iova(), mapping.oa(), access).unwrap_or(*mapping)
}
