//! Tables of the guest's are bound and unbound.

use viommu_backend::{DomainId, HostError, HostIommu, Output, Role};
use viommu_pasid::Requester;

use crate::iommu::decide::Binding;
use crate::iommu::machine::Iommu;
use crate::iommu::state::Domain;

impl Iommu {
    pub(super) fn bind(
        &mut self,
        host: &mut dyn HostIommu,
        id: DomainId,
        binding: &Binding,
    ) -> Result<(), HostError> {
        let output = binding.bound.output;
        self.in_domain(host, id, |iommu, host| {
            if let Output::Through(parent) = output {
                iommu.prepare(host, parent, Role::SecondLevel)?;
            }
            host.bind(id, &binding.table, output)
        })?;
        let Some(domain) = self.domains.get_mut(&id) else { return Ok(()) };
        domain.bound = Some(binding.bound);
        if let Some(parent) = self.parent_of(id).and_then(|parent| self.domains.get_mut(&parent)) {
            parent.children += 1;
        }
        self.note_second_level(id);
        Ok(())
    }

    /// An attached domain goes on by its mappings alone. Another ends: the table was its last use.
    pub(super) fn unbind(
        &mut self,
        host: &mut dyn HostIommu,
        id: DomainId,
    ) -> Result<(), HostError> {
        if self.domains.get(&id).is_some_and(Domain::is_attached) {
            self.prepare_unbound(host, id)?;
            host.unbind(id)?;
        }
        self.forget_table(host, id);
        Ok(())
    }

    /// Notes that nothing is bound to domain `id`, and ends it and its parent if that was their
    /// last use: the child first, for a host ends no domain that tables go through.
    pub(in crate::iommu) fn forget_table(&mut self, host: &mut dyn HostIommu, id: DomainId) {
        let parent = self.parent_of(id);
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.bound = None;
        }
        self.note_second_level(id);
        self.end_if_unused(host, id);
        let Some(parent) = parent else { return };
        if let Some(domain) = self.domains.get_mut(&parent) {
            domain.children -= 1;
        }
        self.end_if_unused(host, parent);
    }

    /// Gets a bound domain ready to translate by its mappings alone. A host's form of them is the
    /// same for all PASIDs of an endpoint, so one of them stands for all.
    fn prepare_unbound(&self, host: &mut dyn HostIommu, id: DomainId) -> Result<(), HostError> {
        let Some(domain) = self.domains.get(&id) else { return Ok(()) };
        for (&endpoint, member) in &domain.members {
            if member.untagged {
                self.prepare(host, id, Role::Alone(Requester::rid(endpoint)))?;
            }
            let pasids = self.endpoints.get(&endpoint).map(|endpoint| &endpoint.pasids);
            if let Some(pasid) = pasids.and_then(|pasids| pasids.lowest_of(id)) {
                let requester = Requester { endpoint, pasid: Some(pasid) };
                self.prepare(host, id, Role::Alone(requester))?;
            }
        }
        Ok(())
    }

    /// The domain, another than `id`, whose mappings translate the output of the table bound to it.
    fn parent_of(&self, id: DomainId) -> Option<DomainId> {
        self.domains.get(&id)?.second_level().filter(|parent| *parent != id)
    }

    /// Tells the endpoints of domain `id`, whose table has changed, what their PASIDs go through.
    fn note_second_level(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get(&id) else { return };
        let second_level = domain.second_level();
        for (endpoint, _) in domain.members.iter().filter(|(_, member)| member.pasids > 0) {
            if let Some(endpoint) = self.endpoints.get_mut(endpoint) {
                endpoint.pasids.change_second_level(second_level);
            }
        }
    }
}
