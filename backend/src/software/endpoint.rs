//! An endpoint's place in the tables.

use viommu_pasid::vtd::{PasidEntry, PasidTable, RootTable, SetError};
use viommu_pasid::{EndpointId, Pasid};
use viommu_pgtable::{OutOfTables, TableStore};

/// The PASID table of one endpoint, reachable from its segment's root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endpoint {
    pasids: PasidTable,
}

impl Endpoint {
    /// Makes the table and links it under `root`; everything is blocked.
    pub(super) fn new<S: TableStore>(
        store: &mut S,
        root: RootTable,
        id: EndpointId,
        pasid_bits: u8,
    ) -> Result<Self, OutOfTables> {
        let pasids = PasidTable::new(store, pasid_bits)?;
        root.set_context(store, id.bdf(), &pasids.context())?;
        Ok(Self { pasids })
    }

    /// Sets or clears the entry of `pasid`; `None` is the untagged traffic's. Clearing cannot fail.
    pub(super) fn set<S: TableStore>(
        &self,
        store: &mut S,
        pasid: Option<Pasid>,
        entry: Option<&PasidEntry>,
    ) -> Result<(), SetError> {
        let index = pasid.map_or(0, Pasid::raw);
        match entry {
            Some(entry) => self.pasids.set(store, index, entry),
            None => {
                self.pasids.clear(store, index);
                Ok(())
            }
        }
    }
}
