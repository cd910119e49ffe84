//! The software IOMMU: real VT-d structures in the shared region, walked by device processes.
//!
//! A domain is a second-level table. An endpoint has a PASID table, whose entry 0 is what its untagged
//! traffic takes. What is withdrawn is out of use after [`HostIommu::sync`], which drains every reader.

mod budget;
mod config;
mod endpoint;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use viommu_iotlb::{DeviceEvent, Hub, State, Withdrawn};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, RootTable, SetError, Translation, lookup};
use viommu_pasid::{EndpointId, Requester, Structures};
use viommu_pgtable::{Access, Iova, MapError, Mapping, PhysAddr, Table, VtdSecond, walk};

use crate::{Capabilities, DomainId, HostError, HostIommu, Target};
use budget::Budget;
pub use config::{DevicePlace, SoftwareConfig, SoftwareError};
use endpoint::Endpoint;

/// The domain tag of pass-through entries; domains have others.
const PASS_THROUGH_TAG: u16 = 1;

/// A domain: its table, and whose DMA goes through it.
#[derive(Debug)]
struct Domain {
    table: Table<VtdSecond>,
    tag: u16,
    attached: BTreeSet<Requester>,
}

/// The software IOMMU.
#[derive(Debug)]
pub struct SoftwareIommu {
    hub: Hub,
    format: VtdSecond,
    width: AddressWidth,
    capabilities: Capabilities,
    roots: BTreeMap<u16, RootTable>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    domains: BTreeMap<DomainId, Domain>,
    attached_to: BTreeMap<Requester, DomainId>,
    next_tag: u16,
}

impl SoftwareIommu {
    /// An IOMMU without endpoints.
    ///
    /// # Errors
    /// A width or page size that VT-d does not have, or what the kernel says to the shared memory.
    pub fn new(config: SoftwareConfig) -> Result<Self, SoftwareError> {
        let (format, width, capabilities) = config.resolve()?;
        Ok(Self {
            hub: Hub::new(config.hub).map_err(SoftwareError::Region)?,
            format,
            width,
            capabilities,
            roots: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            domains: BTreeMap::new(),
            attached_to: BTreeMap::new(),
            next_tag: PASS_THROUGH_TAG,
        })
    }

    /// Adds an endpoint, blocked at first, and listens for its device process where `place` says.
    ///
    /// # Errors
    /// An endpoint that is there already, no table memory, or a socket that cannot be made.
    pub fn add_endpoint(&mut self, place: &DevicePlace) -> Result<(), SoftwareError> {
        let DevicePlace { endpoint, pasid_bits, .. } = *place;
        if self.endpoints.contains_key(&endpoint) {
            return Err(SoftwareError::TwiceThere { endpoint });
        }
        let region = self.hub.region_mut();
        let root = match self.roots.get(&endpoint.segment()) {
            Some(root) => *root,
            None => RootTable::new(region)?,
        };
        let entry = Endpoint::new(region, root, endpoint, pasid_bits)?;
        if let Some(path) = &place.socket {
            self.hub
                .listen(endpoint, Structures::Vtd { root: root.root() }, pasid_bits, path)
                .map_err(|source| SoftwareError::Listen { endpoint, path: path.clone(), source })?;
        }
        self.roots.insert(endpoint.segment(), root);
        self.endpoints.insert(endpoint, entry);
        Ok(())
    }

    /// The device processes' side, to look at its counters.
    #[must_use]
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Serves the device processes: a bounded amount of what they ask, without waiting. To be called when
    /// [`as_fd`](AsFd::as_fd) is readable; what they are owed as an answer goes out with the next
    /// [`sync`](HostIommu::sync), after the caller has acted on the events.
    pub fn dispatch(&mut self, on: &mut dyn FnMut(DeviceEvent)) {
        self.hub.dispatch(on);
    }

    /// The root table of a PCI segment, for a walk of our own.
    #[must_use]
    pub fn root(&self, segment: u16) -> Option<RootTable> {
        self.roots.get(&segment).copied()
    }

    /// Where an access of one byte leads, or `None` if it is refused: the tables, walked in process.
    #[must_use]
    pub fn translate(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        let Requester { endpoint, pasid } = requester;
        let root = self.roots.get(&endpoint.segment())?.root();
        let memory = self.hub.region();
        match lookup(memory, root, endpoint.bdf(), pasid).ok()?.translation {
            Translation::PassThrough => {
                (iova.raw() <= self.capabilities.output_last).then(|| PhysAddr::new(iova.raw()))
            }
            Translation::SecondLevel { root, .. } => {
                walk(&self.format, memory, root, iova, access).ok().map(|page| page.oa)
            }
            // this writer makes no such entry
            Translation::FirstLevel(_) | Translation::Nested { .. } => None,
        }
    }

    /// A domain tag; hardware would tag its caches with it. Unique among the last 65 thousand.
    fn take_tag(&mut self) -> u16 {
        self.next_tag = self.next_tag.checked_add(1).unwrap_or(PASS_THROUGH_TAG + 1);
        self.next_tag
    }

    /// What the PASID entry of a requester that goes to `target` says; `None`: not present.
    fn entry_for(&self, target: Target) -> Result<Option<PasidEntry>, HostError> {
        match target {
            Target::Blocked => Ok(None),
            Target::Identity => Ok(Some(PasidEntry {
                domain_tag: PASS_THROUGH_TAG,
                translation: Translation::PassThrough,
            })),
            Target::Domain(id) => {
                let domain =
                    self.domains.get(&id).ok_or(HostError::Unsupported("no such domain"))?;
                let translation =
                    Translation::SecondLevel { root: domain.table.root(), width: self.width };
                Ok(Some(PasidEntry { domain_tag: domain.tag, translation }))
            }
        }
    }

    /// Stores the entry. A replaced leaf needs one page; where none is free, what was freed before is
    /// drained first, so that a guest which used up all memory can still detach.
    fn set_entry(
        &mut self,
        requester: Requester,
        entry: Option<&PasidEntry>,
    ) -> Result<(), HostError> {
        let endpoint = self.endpoint(requester.endpoint)?;
        match endpoint.set(self.hub.region_mut(), requester.pasid, entry) {
            Err(SetError::OutOfTables(_)) => {
                self.sync();
                Ok(endpoint.set(self.hub.region_mut(), requester.pasid, entry)?)
            }
            done => Ok(done?),
        }
    }

    /// Keeps the books of who goes through which domain.
    fn note_target(&mut self, requester: Requester, target: Target) {
        let old = match target {
            Target::Domain(id) => self.attached_to.insert(requester, id),
            Target::Blocked | Target::Identity => self.attached_to.remove(&requester),
        };
        if let Some(domain) = old.and_then(|id| self.domains.get_mut(&id)) {
            domain.attached.remove(&requester);
        }
        if let Target::Domain(id) = target
            && let Some(domain) = self.domains.get_mut(&id)
        {
            domain.attached.insert(requester);
        }
    }

    /// Cuts a requester off; needs no memory.
    fn block(&mut self, requester: Requester) {
        if let Ok(endpoint) = self.endpoint(requester.endpoint) {
            // clearing an entry cannot fail
            let _ = endpoint.set(self.hub.region_mut(), requester.pasid, None);
        }
        self.note_target(requester, Target::Blocked);
        self.hub.withdraw(Withdrawn::Requester(requester));
    }

    fn endpoint(&self, id: EndpointId) -> Result<Endpoint, HostError> {
        self.endpoints.get(&id).copied().ok_or(HostError::Unsupported("no such endpoint"))
    }
}

impl AsFd for SoftwareIommu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hub.as_fd()
    }
}

impl From<SetError> for HostError {
    fn from(error: SetError) -> Self {
        match error {
            SetError::OutOfTables(error) => Self::OutOfTables(error),
            SetError::TooWide { .. } => Self::Unsupported("a PASID wider than the endpoint's"),
        }
    }
}

impl From<MapError> for HostError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfTables(error) => Self::OutOfTables(error),
            _ => Self::Unsupported("a mapping that the page tables cannot express"),
        }
    }
}

impl HostIommu for SoftwareIommu {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        let table = Table::new(self.format, &mut Budget(self.hub.region_mut()))?;
        let tag = self.take_tag();
        self.domains.insert(domain, Domain { table, tag, attached: BTreeSet::new() });
        Ok(())
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        if let Some(domain) = self.domains.remove(&domain) {
            domain.table.destroy(self.hub.region_mut());
        }
    }

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        let entry = self.entry_for(target)?;
        self.set_entry(requester, entry.as_ref())?;
        self.note_target(requester, target);
        self.hub.withdraw(Withdrawn::Requester(requester));
        self.hub.set_state(requester.endpoint, State::Running);
        Ok(())
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let domain =
            self.domains.get_mut(&domain).ok_or(HostError::Unsupported("no such domain"))?;
        Ok(domain.table.map(&mut Budget(self.hub.region_mut()), mapping)?)
    }

    fn unmap(&mut self, domain: DomainId, mapping: &Mapping) {
        let Some(domain) = self.domains.get_mut(&domain) else { return };
        let removed = domain.table.unmap(self.hub.region_mut(), mapping.iova());
        for requester in &domain.attached {
            let (requester, range) = (*requester, mapping.iova());
            self.hub.withdraw(Withdrawn::Range { requester, range });
        }
        if let Err(error) = removed {
            // the caller's books and our tables disagree: whoever goes through them is cut off
            log::error!("domain blocked: unmap of {}: {error}", mapping.iova());
            for requester in domain.attached.clone() {
                self.block(requester);
            }
        }
    }

    fn park(&mut self, requester: Requester) {
        self.hub.set_state(requester.endpoint, State::Parked);
    }

    fn resume(&mut self, requester: Requester) {
        self.hub.set_state(requester.endpoint, State::Running);
    }

    fn withdraw_all(&mut self) {
        self.hub.withdraw(Withdrawn::Everything);
    }

    fn readmit(&mut self) {
        self.hub.readmit_all();
    }

    fn sync(&mut self) {
        self.hub.drain();
    }
}
