//! What the state machine asks for.

use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{IovaRange, Mapping};

use super::{BROKEN, Domain, Held, NO_DOMAIN, Vfio};
use crate::vfio::{OnStart, Ram};
use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, MemoryRegion, Output, Role,
    Target,
};

/// A guest that binds tables, or tags with PASIDs, a device which cannot.
const NO_PASIDS: HostError = HostError::Unsupported("PASIDs on a VFIO device");
const NO_BINDING: HostError = HostError::Unsupported("tables bound for a VFIO device");
/// Memory and registers at one address.
const COLLISION: HostError =
    HostError::Unsupported("guest memory where a device's registers are said to be");

impl HostIommu for Vfio {
    fn capabilities(&self) -> Capabilities {
        self.kernel.capabilities()
    }

    fn endpoint_capabilities(&self, _: EndpointId) -> EndpointCapabilities {
        EndpointCapabilities::default()
    }

    fn set_memory(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), HostError> {
        let new = Ram::new(regions)?;
        if self.guest.collides(&new) {
            return Err(COLLISION);
        }
        let (gone, come) = (self.guest.ram().without(&new), new.without(self.guest.ram()));
        self.lose(&gone);
        let done = self.exchange(&gone, &come);
        if done.is_ok() {
            self.guest.set_ram(new);
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
        self.move_to(id, target)?;
        let endpoint = self.endpoint(id)?;
        endpoint.on_start = OnStart::Boot;
        endpoint.target = target;
        endpoint.parked = false;
        Ok(())
    }

    fn send_unattached(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        let endpoint = self.endpoint(requester.endpoint)?;
        if endpoint.on_start == OnStart::Boot {
            return self.attach(requester, target);
        }
        endpoint.target = target;
        Ok(())
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let held = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
        if held.broken {
            return Err(BROKEN);
        }
        self.kernel.map(domain, mapping, &self.guest.leads(mapping))?;
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
