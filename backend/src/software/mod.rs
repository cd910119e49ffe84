//! The software IOMMU: a real IOMMU's structures in the shared region, walked by device processes.
//!
//! VT-d's or SMMUv3's, as the hub's architecture says; `layout` knows the difference, and nothing
//! else here does. What is withdrawn is out of use after [`HostIommu::sync`], which drains every
//! reader.

mod books;
mod budget;
mod config;
mod domain;
mod effects;
mod layout;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use viommu_iotlb::{DeviceEvent, Hub, State, Withdrawn};
use viommu_pasid::{EndpointId, Memories, Pasid, Requester, SetError, Structures, lookup};
use viommu_pgtable::{Access, Iova, MapError, PhysAddr, TableMemory};

use crate::{Capabilities, DomainId, HostError, HostIommu, Output, Target};
use books::Books;
pub use config::{DevicePlace, SoftwareConfig, SoftwareError};
use domain::Domain;
use layout::{Layout, Lead, LeadError};

/// The first domain tag: 0 and 1 are left to what goes through no domain.
const FIRST_TAG: u16 = 2;

/// Guest memory, as far as host-owned tables need it: not at all.
struct NoGuestMemory;

impl TableMemory for NoGuestMemory {
    fn load(&self, _: PhysAddr) -> Option<u64> {
        None
    }
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
    books: Books,
    next_tag: u16,
}

impl SoftwareIommu {
    /// An IOMMU without endpoints.
    ///
    /// # Errors
    /// A width, page sizes or a place of the tables that the architecture does not have, or what
    /// the kernel says to the shared memory.
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
            books: Books::default(),
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

    /// Serves the device processes: a bounded amount of what they ask, without waiting. To be
    /// called when [`as_fd`](AsFd::as_fd) is readable; what they are owed as an answer goes out
    /// with the next [`sync`](HostIommu::sync), after the caller has acted on the events.
    pub fn dispatch(&mut self, on: &mut dyn FnMut(DeviceEvent)) {
        self.hub.dispatch(on);
    }

    /// Where readers of a PCI segment start, for a walk of one's own.
    #[must_use]
    pub fn structures(&self, segment: u16) -> Option<Structures> {
        self.layout.structures(segment)
    }

    /// Where an access of one byte leads, or `None` if it is refused: the tables, walked in
    /// process. Tables of the guest's are not read: an access through one is refused.
    #[must_use]
    pub fn translate(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        self.translate_with(&NoGuestMemory, requester, iova, access)
    }

    /// [`translate`](Self::translate), through tables in `guest` memory as well. Their accessed and
    /// dirty flags are set there.
    #[must_use]
    pub fn translate_with(
        &self,
        guest: &dyn TableMemory,
        requester: Requester,
        iova: Iova,
        access: Access,
    ) -> Option<PhysAddr> {
        let Requester { endpoint, pasid } = requester;
        let structures = self.layout.structures(endpoint.segment())?;
        let memories = Memories::new(self.hub.region(), guest, self.table_base);
        let route = lookup(&memories, &structures, endpoint, pasid).ok()?;
        memories.translate(&route, iova, access).ok().map(|page| page.oa)
    }

    /// A domain tag; hardware would tag its caches with it. Unique among the last 65 thousand.
    fn take_tag(&mut self) -> u16 {
        self.next_tag = self.next_tag.checked_add(1).unwrap_or(FIRST_TAG);
        self.next_tag
    }

    /// Leads `requesters`, in order and each once, elsewhere, all or none. That copies leaves,
    /// which needs pages; where none is free, what was freed before is drained first, so that a
    /// guest which used up all memory can still attach.
    fn lead(&mut self, requesters: &[Requester], target: Target) -> Result<(), HostError> {
        let mut led = self.try_lead(requesters, target);
        if let Err(LeadError::Set(SetError::OutOfTables(_)) | LeadError::Busy) = led {
            self.sync();
            led = self.try_lead(requesters, target);
        }
        if led.is_err() {
            // copies that were made serve again
            self.sync();
        }
        Ok(led?)
    }

    fn try_lead(&mut self, requesters: &[Requester], target: Target) -> Result<(), LeadError> {
        let lead = lead_to(&self.domains, target)?;
        let store = self.hub.region_mut();
        let change = self.layout.stage(store, requesters, &lead)?;
        self.layout.commit(store, change);
        Ok(())
    }

    /// Ends the wait of a requester. Its endpoint goes on when none of its requesters waits any
    /// more: readers wait by endpoint.
    fn unpark(&mut self, requester: Requester) {
        let endpoint = requester.endpoint;
        let first = Requester::rid(endpoint);
        let last = Requester { endpoint, pasid: Some(Pasid::MAX) };
        if self.parked.remove(&requester) && self.parked.range(first..=last).next().is_none() {
            self.hub.set_state(endpoint, State::Running);
        }
    }

    /// Cuts a requester off; does not fail.
    fn block(&mut self, requester: Requester) {
        if self.lead(&[requester], Target::Blocked).is_err() {
            self.layout.block_in_place(self.hub.region_mut(), requester);
        }
        self.books.attach(requester, None);
        self.hub.withdraw(Withdrawn::Requester(requester));
    }
}

/// Where `target` is, in terms of tables.
fn lead_to(domains: &BTreeMap<DomainId, Domain>, target: Target) -> Result<Lead<'_>, LeadError> {
    let id = match target {
        Target::Blocked => return Ok(Lead::Blocked),
        Target::Identity => return Ok(Lead::Identity),
        Target::Domain(id) => id,
    };
    let get = |id| domains.get(&id).ok_or(LeadError::Inexpressible("no such domain"));
    let domain = get(id)?;
    let Some(bound) = domain.bound else { return Ok(Lead::Mappings(domain.mapped(id))) };
    let below = match bound.output {
        Output::GuestPhysical => None,
        Output::Through(parent) => Some(get(parent)?.mapped(parent)),
    };
    Ok(Lead::Bound { table: bound.table, tag: domain.tag, below })
}

/// What a caller that names a domain which it has not made is told.
const NO_DOMAIN: HostError = HostError::Unsupported("no such domain");

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
            // a drain has just passed
            LeadError::Busy => Self::Unsupported("what was replaced is still read"),
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
