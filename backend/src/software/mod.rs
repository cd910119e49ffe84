//! The software IOMMU: a real IOMMU's structures in the shared region, walked by device processes.
//!
//! VT-d's or SMMUv3's, as the hub's architecture says; `layout` knows the difference, and nothing here
//! does. What is withdrawn is out of use after [`HostIommu::sync`], which drains every reader.

mod budget;
mod config;
mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use viommu_iotlb::{DeviceEvent, Hub, State, Withdrawn};
use viommu_pasid::{
    EndpointId, FirstTable, Memories, Pasid, Requester, SetError, Structures, lookup,
};
use viommu_pgtable::{Access, Iova, IovaRange, MapError, Mapping, PhysAddr, TableMemory};

use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, Output, Role, Target,
};
use budget::Budget;
pub use config::{DevicePlace, SoftwareConfig, SoftwareError};
use layout::{DomainTable, Layout, Lead, LeadError};

/// The first domain tag: 0 and 1 are left to what goes through no domain.
const FIRST_TAG: u16 = 2;

/// Guest memory, as far as host-owned tables need it: not at all.
struct NoGuestMemory;

impl TableMemory for NoGuestMemory {
    fn load(&self, _: PhysAddr) -> Option<u64> {
        None
    }
}

/// A domain: its table, and whose DMA goes through it.
#[derive(Debug)]
struct Domain {
    table: DomainTable,
    tag: u16,
    attached: BTreeSet<Requester>,
}

/// The software IOMMU.
#[derive(Debug)]
pub struct SoftwareIommu {
    hub: Hub,
    layout: Layout,
    table_base: PhysAddr,
    capabilities: Capabilities,
    /// Width of the PASIDs of each endpoint.
    endpoints: BTreeMap<EndpointId, u8>,
    parked: BTreeSet<Requester>,
    domains: BTreeMap<DomainId, Domain>,
    attached_to: BTreeMap<Requester, DomainId>,
    next_tag: u16,
}

impl SoftwareIommu {
    /// An IOMMU without endpoints.
    ///
    /// # Errors
    /// A width, page sizes or a place of the tables that the architecture does not have, or what the
    /// kernel says to the shared memory.
    pub fn new(config: SoftwareConfig) -> Result<Self, SoftwareError> {
        let (layout, capabilities) = config.resolve()?;
        Ok(Self {
            hub: Hub::new(config.hub).map_err(SoftwareError::Region)?,
            layout,
            table_base: config.hub.table_base,
            capabilities,
            endpoints: BTreeMap::new(),
            parked: BTreeSet::new(),
            domains: BTreeMap::new(),
            attached_to: BTreeMap::new(),
            next_tag: FIRST_TAG,
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
        self.layout
            .add(self.hub.region_mut(), endpoint, pasid_bits)
            .map_err(|error| SoftwareError::NoPlace { endpoint, why: error.to_string() })?;
        let structures = self.layout.structures(endpoint.segment());
        if let (Some(path), Some(structures)) = (&place.socket, structures) {
            self.hub
                .listen(endpoint, structures, pasid_bits, path)
                .map_err(|source| SoftwareError::Listen { endpoint, path: path.clone(), source })?;
        }
        self.endpoints.insert(endpoint, pasid_bits);
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

    /// Where readers of a PCI segment start, for a walk of one's own.
    #[must_use]
    pub fn structures(&self, segment: u16) -> Option<Structures> {
        self.layout.structures(segment)
    }

    /// Where an access of one byte leads, or `None` if it is refused: the tables, walked in process.
    #[must_use]
    pub fn translate(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        let Requester { endpoint, pasid } = requester;
        let structures = self.layout.structures(endpoint.segment())?;
        let memories = Memories::new(self.hub.region(), &NoGuestMemory, self.table_base);
        let route = lookup(&memories, &structures, endpoint, pasid).ok()?;
        memories.translate(&route, iova, access).ok().map(|page| page.oa)
    }

    /// A domain tag; hardware would tag its caches with it. Unique among the last 65 thousand.
    fn take_tag(&mut self) -> u16 {
        self.next_tag = self.next_tag.checked_add(1).unwrap_or(FIRST_TAG);
        self.next_tag
    }

    /// Leads a requester elsewhere. That may copy a leaf, which needs a page; where none is free, what was
    /// freed before is drained first, so that a guest which used up all memory can still attach.
    fn lead(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        match self.try_lead(requester, target) {
            Err(HostError::OutOfTables(_)) => {
                self.sync();
                self.try_lead(requester, target)
            }
            done => done,
        }
    }

    fn try_lead(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        let lead = match target {
            Target::Blocked => Lead::Blocked,
            Target::Identity => Lead::Identity,
            Target::Domain(id) => {
                let domain = self.domains.get(&id).ok_or(NO_DOMAIN)?;
                Lead::Through(&domain.table, domain.tag)
            }
        };
        Ok(self.layout.lead(self.hub.region_mut(), requester, lead)?)
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

    /// Ends the wait of a requester. Its endpoint goes on when none of its requesters waits any more:
    /// readers wait by endpoint.
    fn unpark(&mut self, requester: Requester) {
        let endpoint = requester.endpoint;
        let first = Requester::rid(endpoint);
        let last = Requester { endpoint, pasid: Some(Pasid::MAX) };
        if self.parked.remove(&requester) && self.parked.range(first..=last).next().is_none() {
            self.hub.set_state(endpoint, State::Running);
        }
    }

    /// Cuts a requester off; needs no memory.
    fn block(&mut self, requester: Requester) {
        if let Err(error) = self.try_lead(requester, Target::Blocked) {
            log::error!("{requester:?} is not blocked: {error}");
        }
        self.note_target(requester, Target::Blocked);
        self.hub.withdraw(Withdrawn::Requester(requester));
    }
}

/// What a caller that names a domain which it has not made is told.
const NO_DOMAIN: HostError = HostError::Unsupported("no such domain");
/// What it offers no endpoint.
const NO_BINDING: HostError = HostError::Unsupported("no tables can be bound");

impl AsFd for SoftwareIommu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hub.as_fd()
    }
}

impl From<LeadError> for HostError {
    fn from(error: LeadError) -> Self {
        match error {
            LeadError::Set(SetError::OutOfTables(error)) => Self::OutOfTables(error),
            LeadError::Set(SetError::TooWide { .. }) => {
                Self::Unsupported("a PASID wider than the endpoint's")
            }
            LeadError::Inexpressible(what) => Self::Unsupported(what),
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

    fn endpoint_capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        let Some(pasid_bits) = self.endpoints.get(&endpoint) else {
            return EndpointCapabilities::default();
        };
        EndpointCapabilities { pasid_bits: *pasid_bits, ..self.layout.endpoint_capabilities() }
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        let table = self.layout.new_table(&mut Budget(self.hub.region_mut()))?;
        let tag = self.take_tag();
        self.domains.insert(domain, Domain { table, tag, attached: BTreeSet::new() });
        Ok(())
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        if let Some(domain) = self.domains.remove(&domain) {
            domain.table.destroy(self.hub.region_mut());
        }
    }

    fn prepare(
        &mut self,
        _: DomainId,
        role: Role,
        _: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        match role {
            Role::Alone(_) => Ok(()),
            Role::SecondLevel => Err(NO_BINDING),
        }
    }

    fn bind(&mut self, _: DomainId, _: &FirstTable, _: Output) -> Result<(), HostError> {
        Err(NO_BINDING)
    }

    fn unbind(&mut self, _: DomainId) -> Result<(), HostError> {
        Ok(())
    }

    fn invalidate(&mut self, _: DomainId, _: Option<IovaRange>) {}

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        self.lead(requester, target)?;
        self.note_target(requester, target);
        self.hub.withdraw(Withdrawn::Requester(requester));
        self.unpark(requester);
        Ok(())
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let domain = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
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
        self.parked.insert(requester);
        self.hub.set_state(requester.endpoint, State::Parked);
    }

    fn resume(&mut self, requester: Requester) {
        self.unpark(requester);
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
