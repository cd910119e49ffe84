//! VT-d: a domain is a second-level table, an endpoint has a PASID table.

use std::collections::BTreeMap;

use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Pasid, Requester, SetError, Structures};
use viommu_pgtable::{OutOfTables, Table, TableStore, VtdSecond};

use super::{DomainTable, FOREIGN_TABLE, Lead, LeadError, NO_ENDPOINT};

/// The domain tag of pass-through entries; domains have others.
const PASS_THROUGH_TAG: u16 = 1;

/// Root tables and PASID tables.
#[derive(Debug)]
pub(in super::super) struct Vtd {
    format: VtdSecond,
    width: AddressWidth,
    roots: BTreeMap<u16, RootTable>,
    endpoints: BTreeMap<EndpointId, PasidTable>,
}

impl Vtd {
    pub(in super::super) const fn new(format: VtdSecond, width: AddressWidth) -> Self {
        Self { format, width, roots: BTreeMap::new(), endpoints: BTreeMap::new() }
    }

    pub(super) fn new_table<S: TableStore>(
        &self,
        store: &mut S,
    ) -> Result<Table<VtdSecond>, OutOfTables> {
        Table::new(self.format, store)
    }

    pub(super) fn add<S: TableStore>(
        &mut self,
        store: &mut S,
        endpoint: EndpointId,
        pasid_bits: u8,
    ) -> Result<(), LeadError> {
        let root = match self.roots.get(&endpoint.segment()) {
            Some(root) => *root,
            None => RootTable::new(store).map_err(SetError::OutOfTables)?,
        };
        let pasids = PasidTable::new(store, pasid_bits).map_err(SetError::OutOfTables)?;
        root.set_context(store, endpoint.bdf(), &pasids.context())
            .map_err(SetError::OutOfTables)?;
        self.roots.insert(endpoint.segment(), root);
        self.endpoints.insert(endpoint, pasids);
        Ok(())
    }

    pub(super) fn lead<S: TableStore>(
        &self,
        store: &mut S,
        requester: Requester,
        lead: Lead<'_>,
    ) -> Result<(), LeadError> {
        let pasids = self.endpoints.get(&requester.endpoint).ok_or(NO_ENDPOINT)?;
        let index = requester.pasid.map_or(0, Pasid::raw);
        let (domain_tag, translation) = match lead {
            Lead::Blocked => {
                pasids.clear(store, index);
                return Ok(());
            }
            Lead::Identity => (PASS_THROUGH_TAG, Translation::PassThrough),
            Lead::Through(DomainTable::Vtd(table), tag) => {
                (tag, Translation::SecondLevel { root: table.root(), width: self.width })
            }
            Lead::Through(DomainTable::SmmuV3(_), _) => return Err(FOREIGN_TABLE),
        };
        Ok(pasids.set(store, index, &PasidEntry { domain_tag, translation })?)
    }

    pub(super) fn structures(&self, segment: u16) -> Option<Structures> {
        self.roots.get(&segment).map(|root| Structures::Vtd { root: root.root() })
    }
}
