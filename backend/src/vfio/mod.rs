//! Devices of the host, assigned to the guest with VFIO: the host's IOMMU translates.
//!
//! What it is: the books of what the guest has mapped and attached, over one of two kernel interfaces:
//! [`iommufd`] or [`type1`]. What it guarantees: what is unmapped or detached
//! is out of the host's tables when the call returns; what the kernel refuses to take out is cut off with
//! all its endpoints. What it leaves out: PASIDs, bound tables, faults (the host's kernel logs those).
//!
//! # Memory
//!
//! A mapping leads to guest memory, wholly: to anything else it is refused with
//! [`HostError::Unsupported`]. Memory that the VMM takes away is unmapped at once wherever a mapping leads
//! to it, whole mappings at a time; they come back with the memory. That costs a look at every mapping, and
//! happens when a DIMM is unplugged.

mod error;
mod kernel;
mod leaving;
mod ram;
pub(crate) mod sys;
pub(crate) mod sysfs;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{Iova, IovaRange, Mapping};

use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, MemoryRegion, Output, Role,
    Target,
};
use crate::{iommufd, type1};
pub use error::VfioError;
pub use kernel::Counters;
pub(crate) use kernel::{Contents, Kernel, Place};
pub(crate) use leaving::Leaving;
pub(crate) use ram::{Piece, Ram, Region};
pub use sysfs::{PciAddress, Reserved, ReservedKind};

/// The driver that gives devices to user space.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// Devices that are ready, and what their endpoints must leave alone.
#[derive(Debug)]
pub struct Opened {
    /// The backend.
    pub vfio: Vfio,
    /// Reserved ranges of each endpoint, in ascending order.
    pub reserved: BTreeMap<EndpointId, Vec<Reserved>>,
}

/// The requests of `ioctl` that are used while the daemon serves: what a filter of system calls has to let
/// pass.
pub fn requests() -> impl Iterator<Item = u32> {
    iommufd::REQUESTS.into_iter().chain(type1::REQUESTS)
}

/// Which guest memory is pinned, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// All of it, once, when the VMM tells of it: a MAP pins nothing.
    #[default]
    Static,
    /// What is mapped, when it is mapped; all of it while an endpoint bypasses translation.
    Dynamic,
}

/// What becomes of a device that is attached to something already when the daemon starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStart {
    /// It goes where an endpoint goes that is attached to nothing.
    #[default]
    Boot,
    /// It keeps its mappings until the guest attaches it.
    Keep,
    /// It reaches nothing until the guest attaches it.
    Block,
}

/// A guest that binds tables, or tags with PASIDs, a device which cannot.
const NO_PASIDS: HostError = HostError::Unsupported("PASIDs on a VFIO device");
const NO_BINDING: HostError = HostError::Unsupported("tables bound for a VFIO device");
/// A mapping of something else than memory.
const NO_MEMORY: HostError = HostError::Unsupported("a mapping of what is not guest memory");
/// A caller that names a domain which it has not made.
const NO_DOMAIN: HostError = HostError::Unsupported("no such domain");
/// A device that the kernel has taken back.
const GONE: HostError = HostError::Unsupported("a device that was taken away");
/// A domain whose books and tables disagree.
const BROKEN: HostError = HostError::Unsupported("a domain that the kernel did not unmap");

/// One mapping of the guest's.
#[derive(Debug, Clone, Copy)]
struct Held {
    mapping: Mapping,
    /// It is in the host's tables: there is memory behind it.
    present: bool,
}

#[derive(Debug, Default)]
struct Domain {
    mappings: BTreeMap<Iova, Held>,
    /// The kernel refused to unmap: nothing enters it any more.
    broken: bool,
}

#[derive(Debug)]
struct Endpoint {
    target: Target,
    parked: bool,
    on_start: OnStart,
    /// The kernel wanted the device back, and has it.
    gone: bool,
}

/// The host's IOMMU.
#[derive(Debug)]
pub struct Vfio {
    kernel: Box<dyn Kernel>,
    ram: Ram,
    domains: BTreeMap<DomainId, Domain>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    adopted: bool,
    leaving: Option<Leaving>,
}

impl Vfio {
    /// The books over `kernel`, which has these endpoints, all of them nowhere. `leaving` tells when the
    /// kernel wants a device back; without it they are another process's, and nothing reaches the kernel
    /// before [`adopt`](Self::adopt).
    pub(crate) fn over(
        kernel: Box<dyn Kernel>,
        endpoints: impl IntoIterator<Item = EndpointId>,
        (leaving, on_start): (Option<Leaving>, OnStart),
    ) -> Self {
        let new =
            |id| (id, Endpoint { target: Target::Blocked, parked: false, on_start, gone: false });
        let endpoints = endpoints.into_iter().map(new).collect();
        let (ram, domains) = (Ram::default(), BTreeMap::new());
        Self { kernel, ram, domains, endpoints, adopted: leaving.is_some(), leaving }
    }

    /// The endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.endpoints.keys().copied()
    }

    /// The VMM has bound the devices and attached them: from now on they go where the guest's IOMMU says.
    ///
    /// # Errors
    /// A device cannot be found or attached. The call can be repeated.
    pub fn adopt(&mut self) -> Result<(), HostError> {
        self.kernel.adopt()?;
        self.adopted = true;
        for id in self.endpoints.keys().copied().collect::<Vec<_>>() {
            let Some(endpoint) = self.endpoints.get(&id) else { continue };
            let target = if endpoint.parked { Target::Blocked } else { endpoint.target };
            match endpoint.on_start {
                OnStart::Keep => {}
                OnStart::Block => self.move_to(id, Target::Blocked)?,
                OnStart::Boot => self.move_to(id, target)?,
            }
        }
        Ok(())
    }

    /// Readable when the kernel wants a device back: then [`dispatch`](Self::dispatch) gives it.
    #[must_use]
    pub fn leaving(&self) -> Option<BorrowedFd<'_>> {
        self.leaving.as_ref().map(AsFd::as_fd)
    }

    /// Gives back the devices that the kernel wants, without waiting. Their endpoints stay, and reach nothing.
    pub fn dispatch(&mut self) {
        let wanted = self.leaving.as_ref().map(Leaving::wanted).unwrap_or_default();
        for id in wanted {
            let Some(endpoint) = self.endpoints.get_mut(&id).filter(|e| !e.gone) else { continue };
            endpoint.gone = true;
            self.kernel.cut_off(id);
            self.kernel.release(id);
            log::warn!("the device of {id} was taken away: the endpoint reaches nothing any more");
        }
    }

    /// What was asked of the kernel so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.kernel.counters()
    }

    /// Moves an endpoint in the host.
    fn move_to(&mut self, id: EndpointId, target: Target) -> Result<(), HostError> {
        if !self.adopted {
            return Ok(());
        }
        if self.endpoint(id)?.gone {
            return if target == Target::Blocked { Ok(()) } else { Err(GONE) };
        }
        let (place, mappings) = match target {
            Target::Blocked => (Place::Nowhere, Vec::new()),
            Target::Identity => {
                let all = self.ram.regions().iter().filter_map(Region::identity);
                (Place::Identity, all.collect())
            }
            Target::Domain(domain) => {
                let held = self.domains.get(&domain).ok_or(NO_DOMAIN)?;
                if held.broken {
                    return Err(BROKEN);
                }
                let present = held.mappings.values().filter(|held| held.present);
                (Place::Domain(domain), present.map(|held| held.mapping).collect())
            }
        };
        let contents = Contents { mappings: &mappings, ram: &self.ram };
        match self.kernel.attach(id, place, contents) {
            Err(error) if place == Place::Nowhere => {
                log::warn!("{id}: {error}: cut off");
                self.kernel.cut_off(id);
                Ok(())
            }
            done => done,
        }
    }

    /// Takes a mapping out of the host's tables; where that fails, everyone out of the domain.
    fn withdraw(&mut self, id: DomainId, range: IovaRange) {
        let Err(error) = self.kernel.unmap(id, range) else { return };
        log::error!("domain {id} is cut off: unmap of {range}: {error}");
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.broken = true;
        }
        let inside =
            |(_, endpoint): &(&EndpointId, &Endpoint)| endpoint.target == Target::Domain(id);
        let cut: Vec<_> = self.endpoints.iter().filter(inside).map(|(id, _)| *id).collect();
        for endpoint in cut {
            self.kernel.cut_off(endpoint);
        }
    }

    /// Unmaps, and keeps in the books, what leads to `regions`.
    fn lose(&mut self, regions: &[Region]) {
        let mut lost = Vec::new();
        for (id, domain) in &mut self.domains {
            for held in domain.mappings.values_mut().filter(|held| held.present) {
                if regions.iter().any(|region| region.meets(&held.mapping)) {
                    held.present = false;
                    lost.push((*id, held.mapping.iova()));
                }
            }
        }
        for (id, range) in lost {
            self.withdraw(id, range);
        }
    }

    /// Maps what the books hold and there is memory for.
    fn regain(&mut self) {
        let (kernel, ram) = (&mut self.kernel, &self.ram);
        for (id, domain) in &mut self.domains {
            for held in domain.mappings.values_mut().filter(|held| !held.present) {
                if ram.pieces(&held.mapping).is_none() {
                    continue;
                }
                match kernel.map(*id, &held.mapping, ram) {
                    Ok(()) => held.present = true,
                    Err(error) => {
                        log::warn!("domain {id}: {} stays out: {error}", held.mapping.iova())
                    }
                }
            }
        }
    }

    /// Replaces regions in the kernel; on failure the old ones are back, as far as they can be.
    fn exchange(&mut self, gone: &[Region], new: &[Region]) -> Result<(), HostError> {
        for region in gone {
            self.kernel.remove_memory(region);
        }
        for (done, region) in new.iter().enumerate() {
            let Err(error) = self.kernel.add_memory(region) else { continue };
            for region in new.iter().take(done) {
                self.kernel.remove_memory(region);
            }
            for region in gone {
                if let Err(error) = self.kernel.add_memory(region) {
                    log::error!("guest memory at {}: out of reach: {error}", region.gpa());
                }
            }
            return Err(error);
        }
        Ok(())
    }

    fn endpoint(&mut self, id: EndpointId) -> Result<&mut Endpoint, HostError> {
        self.endpoints.get_mut(&id).ok_or(HostError::Unsupported("no such VFIO endpoint"))
    }
}

impl HostIommu for Vfio {
    fn capabilities(&self) -> Capabilities {
        self.kernel.capabilities()
    }

    fn endpoint_capabilities(&self, _: EndpointId) -> EndpointCapabilities {
        EndpointCapabilities::default()
    }

    fn set_memory(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), HostError> {
        let new = Ram::new(regions)?;
        let (gone, come) = (self.ram.without(&new), new.without(&self.ram));
        self.lose(&gone);
        let done = self.exchange(&gone, &come);
        if done.is_ok() {
            self.ram = new;
        }
        self.regain();
        done
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        self.kernel.create(domain)?;
        self.domains.insert(domain, Domain::default());
        Ok(())
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        self.kernel.destroy(domain);
        self.domains.remove(&domain);
    }

    fn prepare(
        &mut self,
        _: DomainId,
        role: Role,
        _: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        match role {
            Role::Alone(Requester { pasid: None, .. }) => Ok(()),
            Role::Alone(_) => Err(NO_PASIDS),
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
        let Requester { endpoint: id, pasid } = requester;
        if pasid.is_some() {
            return if target == Target::Blocked { Ok(()) } else { Err(NO_PASIDS) };
        }
        // What decides is `on_start`, until the guest says more than that the machine has started.
        let waits = self.endpoint(id)?.on_start != OnStart::Boot;
        if !waits || matches!(target, Target::Domain(_)) {
            self.move_to(id, target)?;
            self.endpoint(id)?.on_start = OnStart::Boot;
        }
        let endpoint = self.endpoint(id)?;
        endpoint.target = target;
        endpoint.parked = false;
        Ok(())
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let held = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
        if held.broken {
            return Err(BROKEN);
        }
        if self.ram.pieces(mapping).is_none() {
            return Err(NO_MEMORY);
        }
        self.kernel.map(domain, mapping, &self.ram)?;
        held.mappings.insert(mapping.iova().start(), Held { mapping: *mapping, present: true });
        Ok(())
    }

    fn unmap(&mut self, domain: DomainId, mapping: &Mapping) {
        let Some(held) = self.domains.get_mut(&domain) else { return };
        let Some(held) = held.mappings.remove(&mapping.iova().start()) else { return };
        if held.present {
            self.withdraw(domain, mapping.iova());
        }
    }

    fn park(&mut self, requester: Requester) {
        let id = requester.endpoint;
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        if !std::mem::replace(&mut endpoint.parked, true)
            && let Err(error) = self.move_to(id, Target::Blocked)
        {
            log::error!("{id} is not parked: {error}");
        }
    }

    fn resume(&mut self, requester: Requester) {
        let id = requester.endpoint;
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let target = endpoint.target;
        if std::mem::replace(&mut endpoint.parked, false)
            && let Err(error) = self.move_to(id, target)
        {
            log::error!("{id} stays blocked: {error}");
        }
    }

    fn withdraw_all(&mut self) {
        // The memory table's change comes through `set_memory`, which unmaps what is gone.
    }

    fn readmit(&mut self) {}

    fn sync(&mut self) {
        // The kernel has flushed before it returned.
    }
}
