//! Act and commit: the host first, then the state.
//!
//! In each plan the calls that can fail come first, and all but the last of them are undone by
//! calls that cannot. So a refusal leaves host and state as they were.
//!
//! A domain that was [prepared](HostIommu::prepare) for a call which is refused stays prepared:
//! that changes no translation.

mod aux;
mod bind;

use viommu_backend::{DomainId, HostError, HostIommu, Role, Target};
use viommu_pasid::{EndpointId, Requester};
use viommu_pgtable::{IovaRange, Mapping};

use super::decide::Plan;
use super::machine::Iommu;
use super::state::{Domain, Mapped, Space};
use super::store::{Gap, Inside};
use crate::protocol::Attach;

impl Iommu {
    /// Does what `plan` says, which [`decide`](Self::decide) has just made of this state.
    pub(super) fn act(&mut self, host: &mut dyn HostIommu, plan: &Plan) -> Result<(), HostError> {
        match plan {
            Plan::Nothing | Plan::Probe(_) | Plan::AuxAttached(_) | Plan::Value(_) => Ok(()),
            Plan::Attach(attach) => self.attach(host, attach),
            Plan::Detach(endpoint) => self.detach(host, *endpoint),
            Plan::Map(domain, mapping, gap) => self.map(host, *domain, mapping, *gap),
            Plan::Unmap(domain, range, inside) => {
                self.unmap(host, *domain, range, *inside);
                Ok(())
            }
            Plan::AuxEnable(endpoint, on) => {
                self.aux_enable(*endpoint, *on);
                Ok(())
            }
            Plan::AuxAttach(endpoint, pasid, domain) => {
                self.aux_attach(host, *endpoint, *pasid, *domain)
            }
            Plan::AuxDetach(endpoint, pasid) => self.aux_detach(host, *endpoint, *pasid),
            Plan::Bind(domain, binding) => self.bind(host, *domain, binding),
            Plan::Unbind(domain) => self.unbind(host, *domain),
            Plan::Invalidate(domain, range) => {
                host.invalidate(*domain, *range);
                Ok(())
            }
        }
    }

    /// The new domain is made and takes the endpoint before the old one ends: a DMA meets one of
    /// the two, whole.
    fn attach(&mut self, host: &mut dyn HostIommu, attach: &Attach) -> Result<(), HostError> {
        let id = attach.domain;
        let target = if attach.bypass { Target::Identity } else { Target::Domain(id) };
        let requester = Requester::rid(attach.endpoint);
        if attach.bypass {
            host.attach(requester, target)?;
            self.domains.entry(id).or_insert_with(|| Domain::new(true));
        } else {
            self.lead(host, requester, id)?;
        }
        self.move_endpoint(host, attach.endpoint, Some(id), target);
        Ok(())
    }

    /// Sends the DMA of `requester` through domain `id`, no bypass domain, which is made if it does
    /// not exist.
    fn lead(
        &mut self,
        host: &mut dyn HostIommu,
        requester: Requester,
        id: DomainId,
    ) -> Result<(), HostError> {
        self.in_domain(host, id, |iommu, host| {
            iommu.prepare_alone(host, id, requester)?;
            host.attach(requester, Target::Domain(id))
        })
    }

    /// Calls `act` for domain `id`, no bypass domain. One that does not exist is made before, and
    /// ended again if `act` fails.
    fn in_domain(
        &mut self,
        host: &mut dyn HostIommu,
        id: DomainId,
        act: impl FnOnce(&Self, &mut dyn HostIommu) -> Result<(), HostError>,
    ) -> Result<(), HostError> {
        if self.domains.contains_key(&id) {
            return act(self, host);
        }
        host.create_domain(id)?;
        if let Err(error) = act(self, host) {
            host.destroy_domain(id);
            return Err(error);
        }
        self.domains.insert(id, Domain::new(false));
        Ok(())
    }

    /// Gets domain `id` ready to translate the DMA of `requester` by its mappings alone; for a
    /// bound domain there is nothing to do.
    fn prepare_alone(
        &self,
        host: &mut dyn HostIommu,
        id: DomainId,
        requester: Requester,
    ) -> Result<(), HostError> {
        if self.domains.get(&id).is_some_and(|domain| domain.bound.is_some()) {
            return Ok(());
        }
        self.prepare(host, id, Role::Alone(requester))
    }

    /// Gets domain `id` ready for a role. One that is only being made holds nothing.
    fn prepare(&self, host: &mut dyn HostIommu, id: DomainId, role: Role) -> Result<(), HostError> {
        let mapped = self.domains.get(&id).and_then(|domain| match &domain.space {
            Space::Bypass => None,
            Space::Mapped(mapped) => Some(mapped),
        });
        let mappings = mapped.into_iter().flat_map(|mapped| mapped.mappings.iter());
        host.prepare(id, role, &mut mappings.filter(reaches_host))
    }

    fn detach(&mut self, host: &mut dyn HostIommu, id: EndpointId) -> Result<(), HostError> {
        let target = self.unattached_target();
        host.attach(Requester::rid(id), target)?;
        self.move_endpoint(host, id, None, target);
        Ok(())
    }

    /// Notes that the host sends the DMA of `id` to `target` now, on behalf of domain `to`. The
    /// domain that it leaves ends with its last endpoint (D4).
    pub(super) fn move_endpoint(
        &mut self,
        host: &mut dyn HostIommu,
        id: EndpointId,
        to: Option<DomainId>,
        target: Target,
    ) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.target = target;
        let from = std::mem::replace(&mut endpoint.attached, to);
        if from == to {
            return;
        }
        if let Some(domain) = to.and_then(|to| self.domains.get_mut(&to)) {
            domain.join(id, false, &endpoint.reserved);
        }
        if let Some(from) = from {
            self.leave(host, id, from, false);
        }
    }

    /// Takes an attachment of `endpoint`, by a PASID if `tagged`, out of domain `id`.
    fn leave(
        &mut self,
        host: &mut dyn HostIommu,
        endpoint: EndpointId,
        id: DomainId,
        tagged: bool,
    ) {
        let Some(state) = self.endpoints.get(&endpoint) else { return };
        let Some(domain) = self.domains.get_mut(&id) else { return };
        domain.leave(endpoint, tagged, &state.reserved);
        self.end_if_unused(host, id);
    }

    /// Ends domain `id` unless it is in use. With a bound domain its parent may lose its last use.
    fn end_if_unused(&mut self, host: &mut dyn HostIommu, id: DomainId) {
        if self.domains.get(&id).is_none_or(Domain::is_in_use) {
            return;
        }
        if self.domains.remove(&id).is_some_and(|domain| !domain.is_bypass()) {
            host.destroy_domain(id);
        }
    }

    fn map(
        &mut self,
        host: &mut dyn HostIommu,
        id: DomainId,
        mapping: &Mapping,
        gap: Gap,
    ) -> Result<(), HostError> {
        if reaches_host(mapping) {
            host.map(id, mapping)?;
        }
        if let Some(domain) = self.mapped_mut(id) {
            domain.mappings.insert(gap, mapping);
        }
        Ok(())
    }

    fn unmap(&mut self, host: &mut dyn HostIommu, id: DomainId, range: &IovaRange, inside: Inside) {
        let Some(domain) = self.mapped_mut(id) else { return };
        domain.mappings.remove(range, inside, |mapping| {
            if reaches_host(mapping) {
                host.unmap(id, mapping);
            }
        });
    }

    fn mapped_mut(&mut self, id: DomainId) -> Option<&mut Mapped> {
        match &mut self.domains.get_mut(&id)?.space {
            Space::Bypass => None,
            Space::Mapped(mapped) => Some(mapped),
        }
    }
}

/// A mapping without READ and WRITE holds its range against other MAPs and permits nothing, which
/// is what no mapping permits: tables cannot tell the two apart, so the host is not asked.
fn reaches_host(mapping: &Mapping) -> bool {
    !mapping.access().is_empty()
}
