//! VT-d: a domain is a second-level table, an endpoint has a PASID table.

use std::collections::BTreeMap;

use viommu_pasid::vtd::{
    AddressWidth, FirstControls, FirstLevel, PasidEntry, PasidTable, RootTable, SecondLevel,
    Translation,
};
use viommu_pasid::{EndpointId, FirstTable, Pasid, Requester, SetError, Structures};
use viommu_pgtable::{PhysAddr, TableStore, VtdSecond};

use super::{
    Change, FOREIGN_TABLE, Formats, Lead, LeadError, Mapped, NO_ENDPOINT, ROOT_TOO_WIDE,
    TableFormat, UNPREPARED,
};
use crate::FirstFormat;

/// The domain tag of pass-through entries; domains have others.
const PASS_THROUGH_TAG: u16 = 1;

/// Width of an address in an entry, bits (VT-d 5.0, 9.6 and 9.7).
const ADDRESS_BITS: u8 = 52;

/// Leaf sizes of a bound table: 4 KiB, 2 MiB, 1 GiB (CAP.FS1GP).
const FIRST_LEVEL_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

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

    pub(super) const fn formats(&self) -> Formats {
        Formats::Vtd(self.format)
    }

    /// The table that can be bound: four levels, or up to five where IOVAs have 57 bits.
    pub(super) const fn bindable(&self) -> TableFormat {
        TableFormat {
            format: FirstFormat::VtdFirst,
            input_bits: if self.has_five_levels() { 57 } else { 48 },
            output_bits: ADDRESS_BITS,
            page_size_mask: FIRST_LEVEL_SIZES,
        }
    }

    const fn has_five_levels(&self) -> bool {
        matches!(self.width, AddressWidth::Bits57)
    }

    pub(super) fn check_bindable(
        &self,
        table: &FirstLevel,
        root_below: Option<PhysAddr>,
    ) -> Result<(), LeadError> {
        let end = root_below.map_or(1 << ADDRESS_BITS, PhysAddr::raw).min(1 << ADDRESS_BITS);
        if !table.root.is_aligned(12) || table.root.raw() >= end {
            return Err(ROOT_TOO_WIDE);
        }
        if table.five_levels && !self.has_five_levels() {
            return Err(LeadError::Inexpressible("a first level of five levels"));
        }
        if table.controls != FirstControls::empty() {
            return Err(LeadError::Inexpressible("controls of a first level"));
        }
        Ok(())
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

    /// Stages what leads `group`, requesters of one endpoint.
    pub(super) fn stage<S: TableStore>(
        &self,
        store: &mut S,
        group: &[Requester],
        lead: &Lead<'_>,
        change: &mut Change,
    ) -> Result<(), LeadError> {
        let Some(first) = group.first() else { return Ok(()) };
        let pasids = self.endpoints.get(&first.endpoint).ok_or(NO_ENDPOINT)?;
        match self.entry(lead)? {
            Some(entry) => {
                pasids.stage(store, group.iter().map(index), &entry, &mut change.entries)?;
            }
            None => change.blocked.extend_from_slice(group),
        }
        Ok(())
    }

    /// The entry that leads there; `None` for none that is present.
    fn entry(&self, lead: &Lead<'_>) -> Result<Option<PasidEntry>, LeadError> {
        let (domain_tag, translation) = match lead {
            Lead::Blocked => return Ok(None),
            Lead::Identity => (PASS_THROUGH_TAG, Translation::PassThrough),
            Lead::Mappings(mapped) => {
                let SecondLevel { root, width } = self.second_level(mapped)?;
                (mapped.tag, Translation::SecondLevel { root, width })
            }
            Lead::Bound { table: FirstTable::Arm(_), .. } => return Err(FOREIGN_TABLE),
            Lead::Bound { table: FirstTable::Vtd(first), tag, below: None } => {
                (*tag, Translation::FirstLevel(*first))
            }
            // nested caches are invalidated by the tag of the second level
            Lead::Bound { table: FirstTable::Vtd(first), below: Some(below), .. } => {
                let second = self.second_level(below)?;
                (below.tag, Translation::Nested { first: *first, second })
            }
        };
        Ok(Some(PasidEntry { domain_tag, translation }))
    }

    fn second_level(&self, mapped: &Mapped<'_>) -> Result<SecondLevel, LeadError> {
        let root = mapped.tables.second_level().ok_or(UNPREPARED)?;
        Ok(SecondLevel { root, width: self.width })
    }

    pub(super) fn block<S: TableStore>(&self, store: &mut S, requester: Requester) {
        if let Some(pasids) = self.endpoints.get(&requester.endpoint) {
            pasids.clear(store, index(&requester));
        }
    }

    pub(super) fn structures(&self, segment: u16) -> Option<Structures> {
        self.roots.get(&segment).map(|root| Structures::Vtd { root: root.root() })
    }
}

/// Untagged traffic takes entry 0.
fn index(requester: &Requester) -> u32 {
    requester.pasid.map_or(0, Pasid::raw)
}
