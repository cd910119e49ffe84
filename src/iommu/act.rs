//! Act and commit: the host first, then the state.
//!
//! In each plan the calls that can fail come first, and all but the last of them are undone by
//! calls that cannot. So a refusal leaves host and state as they were.

use viommu_backend::{DomainId, HostError, HostIommu, Target};
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
            Plan::Nothing | Plan::Probe(_) => Ok(()),
            Plan::Attach(attach) => self.attach(host, attach),
            Plan::Detach(endpoint) => self.detach(host, *endpoint),
            Plan::Map(domain, mapping, gap) => self.map(host, *domain, mapping, *gap),
            Plan::Unmap(domain, range, inside) => {
                self.unmap(host, *domain, range, *inside);
                Ok(())
            }
        }
    }

    /// The new domain is made and takes the endpoint before the old one ends: a DMA meets one of
    /// the two, whole.
    fn attach(&mut self, host: &mut dyn HostIommu, attach: &Attach) -> Result<(), HostError> {
        let id = attach.domain;
        let made = (!self.domains.contains_key(&id)).then(|| Domain::new(attach.bypass));
        let target = if attach.bypass { Target::Identity } else { Target::Domain(id) };
        let made_for_host = made.is_some() && !attach.bypass;
        if made_for_host {
            host.create_domain(id)?;
        }
        if let Err(error) = host.attach(Requester::rid(attach.endpoint), target) {
            if made_for_host {
                host.destroy_domain(id);
            }
            return Err(error);
        }
        if let Some(domain) = made {
            self.domains.insert(id, domain);
        }
        self.move_endpoint(host, attach.endpoint, Some(id), target);
        Ok(())
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
            domain.join(&endpoint.reserved);
        }
        let Some(from) = from else { return };
        let Some(domain) = self.domains.get_mut(&from) else { return };
        domain.leave(&endpoint.reserved);
        if domain.endpoints == 0 {
            self.end_domain(host, from);
        }
    }

    /// Ends a domain that nothing is attached to.
    fn end_domain(&mut self, host: &mut dyn HostIommu, id: DomainId) {
        let ended = self.domains.remove(&id);
        if ended.is_some_and(|domain| !domain.is_bypass()) {
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
