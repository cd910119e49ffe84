//! SMMUv3: domains have stage 1 and stage 2 tables, endpoints tables of context descriptors.
//!
//! A stream table entry has one stage 2, S, for all PASIDs; a context descriptor has a stage 1 only.
//! So all that is attached to an endpoint must agree on S (`docs/aux-domains.md`, section 8):
//!
//! | attached | S | what the structures say |
//! | --- | --- | --- |
//! | a domain, behind a PASID | none | descriptor: the domain's stage 1 |
//! | a table whose output is guest-physical | none | descriptor: that table |
//! | a table bound through domain X | X | descriptor: that table; stage 2 of X below |
//! | a domain, untagged | none, or the domain | descriptor 0; or S1DSS = bypass: stage 2 alone |
//! | bypass, untagged | none | S1DSS = bypass; where S is a domain, terminate |
//!
//! Stage 1 cannot allow a write without a read, so a write-only mapping can be read too there
//! (virtio 1.4, 5.13.6.5.2 lets a device do that).

mod endpoint;

use std::collections::BTreeMap;

use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, OUTPUT_BITS, Stage1Table, Stage1Tables, Stage2, StreamTable,
};
use viommu_pasid::{EndpointId, FirstTable, Requester, SetError, Structures};
use viommu_pgtable::{ArmStage1, ArmStage2, PhysAddr, TableStore};

use self::endpoint::{Endpoint, Second, Use};
use super::{
    Change, FOREIGN_TABLE, Formats, Lead, LeadError, Mapped, NO_ENDPOINT, ROOT_TOO_WIDE,
    TableFormat, UNPREPARED,
};
use crate::FirstFormat;

pub(super) use endpoint::Next;

/// Memory types: attribute 0, which all entries name, is normal memory, write-back.
const MAIR: u64 = 0xff;

/// Leaf sizes of a bound table: those of 4, 16 and 64 KiB granules.
const STAGE1_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30 | 1 << 14 | 1 << 25 | 1 << 16 | 1 << 29;

/// Widest input of a bound table, bits (`IDR5.VAX` = 0).
const STAGE1_INPUT_BITS: u8 = 48;

/// Stream tables and context descriptors.
#[derive(Debug)]
pub(in super::super) struct SmmuV3 {
    alone: ArmStage1,
    below: ArmStage2,
    streams: BTreeMap<u16, StreamTable>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Endpoints with something to be settled after the next drain.
    unsettled: Vec<EndpointId>,
}

impl SmmuV3 {
    /// Structures of domains whose tables are `alone` or `below`.
    pub(in super::super) fn new(alone: ArmStage1, below: ArmStage2) -> Self {
        let (streams, endpoints) = (BTreeMap::new(), BTreeMap::new());
        Self { alone, below, streams, endpoints, unsettled: Vec::new() }
    }

    pub(super) const fn formats(&self) -> Formats {
        Formats::SmmuV3(self.alone, self.below)
    }

    /// The table that can be bound.
    pub(super) const fn bindable() -> TableFormat {
        TableFormat {
            format: FirstFormat::ArmStage1,
            input_bits: STAGE1_INPUT_BITS,
            output_bits: OUTPUT_BITS,
            page_size_mask: STAGE1_SIZES,
        }
    }

    /// A descriptor proves its roots aligned and within 48 bits.
    pub(super) fn check_bindable(
        table: &ContextDescriptor,
        root_below: Option<PhysAddr>,
    ) -> Result<(), LeadError> {
        let wide = |root: PhysAddr| root_below.is_some_and(|end| root >= end);
        if table.tables.iter().any(|table| wide(table.root())) {
            return Err(ROOT_TOO_WIDE);
        }
        Ok(())
    }

    pub(super) fn add<S: TableStore>(
        &mut self,
        store: &mut S,
        id: EndpointId,
        pasid_bits: u8,
    ) -> Result<(), LeadError> {
        let stream = match self.streams.get(&id.segment()) {
            Some(stream) => *stream,
            None => StreamTable::new(store).map_err(SetError::OutOfTables)?,
        };
        let endpoint = Endpoint::new(store, stream, id, pasid_bits)?;
        self.streams.insert(id.segment(), stream);
        self.endpoints.insert(id, endpoint);
        Ok(())
    }

    /// Stages what leads `group`, requesters of one endpoint.
    pub(super) fn stage<S: TableStore>(
        &mut self,
        store: &mut S,
        group: &[Requester],
        lead: &Lead<'_>,
        change: &mut Change,
    ) -> Result<(), LeadError> {
        let Some(first) = group.first() else { return Ok(()) };
        let endpoint = self.endpoints.get_mut(&first.endpoint).ok_or(NO_ENDPOINT)?;
        let next = endpoint.stage(store, group, use_of(lead)?, change)?;
        change.next.push((first.endpoint, next));
        Ok(())
    }

    /// Keeps the books of a change that has come into force, and takes out what it left over.
    pub(super) fn commit<S: TableStore>(&mut self, store: &mut S, next: Vec<(EndpointId, Next)>) {
        for (id, next) in next {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                let unsettled = endpoint.commit(store, next);
                self.unsettled.extend(unsettled.then_some(id));
            }
        }
    }

    /// Clears what no request reads any more: a drain has passed.
    pub(super) fn settle<S: TableStore>(&mut self, store: &mut S) {
        for id in self.unsettled.drain(..) {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.settle(store);
            }
        }
    }

    /// Blocks a requester without memory.
    pub(super) fn block_in_place<S: TableStore>(&mut self, store: &mut S, requester: Requester) {
        if let Some(endpoint) = self.endpoints.get_mut(&requester.endpoint) {
            endpoint.block_in_place(store, requester.pasid);
        }
    }

    pub(super) fn structures(&self, segment: u16) -> Option<Structures> {
        self.streams.get(&segment).map(|stream| Structures::SmmuV3(stream.root()))
    }
}

/// What `lead` is to an endpoint.
fn use_of(lead: &Lead<'_>) -> Result<Use, LeadError> {
    Ok(match lead {
        Lead::Blocked => Use::Blocked,
        Lead::Identity => Use::Identity,
        Lead::Mappings(mapped) => {
            Use::Mappings { domain: mapped.domain, descriptor: descriptor(mapped)? }
        }
        Lead::Bound { table: FirstTable::Vtd(_), .. } => return Err(FOREIGN_TABLE),
        Lead::Bound { table: FirstTable::Arm(table), tag, below } => Use::Bound {
            descriptor: ContextDescriptor { asid: *tag, ..*table },
            second: below.as_ref().map(second).transpose()?,
        },
    })
}

/// The descriptor that leads through a domain's stage 1.
fn descriptor(mapped: &Mapped<'_>) -> Result<ContextDescriptor, LeadError> {
    let (root, format) = mapped.tables.stage1().ok_or(UNPREPARED)?;
    let table = Stage1Table::new(root, format).ok_or(TABLE_TOO_HIGH)?;
    Ok(ContextDescriptor {
        tables: Stage1Tables::lower_only(table),
        asid: mapped.tag,
        mair: MAIR,
        controls: ContextControls::empty(),
    })
}

/// The second level that is a domain's stage 2.
fn second(mapped: &Mapped<'_>) -> Result<Second, LeadError> {
    let (root, format) = mapped.tables.stage2().ok_or(UNPREPARED)?;
    let table = Stage2::new(root, format).ok_or(TABLE_TOO_HIGH)?;
    Ok(Second { domain: mapped.domain, table, vmid: mapped.tag })
}

/// Where no SMMU finds a table; a configuration that leads there is refused.
const TABLE_TOO_HIGH: LeadError = LeadError::Inexpressible("a table above 2^48");
