//! PASIDs join and leave domains.

use viommu_backend::{DomainId, HostError, HostIommu, Target};
use viommu_pasid::{EndpointId, Pasid, Requester};

use crate::iommu::machine::Iommu;

impl Iommu {
    pub(super) fn aux_enable(&mut self, endpoint: EndpointId, on: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.pasids.enabled = on;
        }
    }

    /// What the PASID was attached to is replaced: a DMA meets the old domain or the new one.
    pub(super) fn aux_attach(
        &mut self,
        host: &mut dyn HostIommu,
        endpoint: EndpointId,
        pasid: Pasid,
        id: DomainId,
    ) -> Result<(), HostError> {
        self.lead(host, Requester { endpoint, pasid: Some(pasid) }, id)?;
        let Some(state) = self.endpoints.get_mut(&endpoint) else { return Ok(()) };
        let Some(domain) = self.domains.get_mut(&id) else { return Ok(()) };
        let from = state.pasids.attach(pasid, id, domain.second_level());
        if from == Some(id) {
            return Ok(());
        }
        domain.join(endpoint, true, &state.reserved);
        if let Some(from) = from {
            self.leave(host, endpoint, from, true);
        }
        Ok(())
    }

    /// The PASID stays taken until its users have drained.
    pub(in crate::iommu) fn aux_detach(
        &mut self,
        host: &mut dyn HostIommu,
        endpoint: EndpointId,
        pasid: Pasid,
    ) -> Result<(), HostError> {
        host.attach(Requester { endpoint, pasid: Some(pasid) }, Target::Blocked)?;
        let Some(state) = self.endpoints.get_mut(&endpoint) else { return Ok(()) };
        let Some(from) = state.pasids.domain(pasid) else { return Ok(()) };
        state.pasids.detach(pasid);
        self.freed.push((endpoint, pasid));
        self.leave(host, endpoint, from, true);
        Ok(())
    }

    /// The caller's [`HostIommu::sync`] has returned: nobody uses any more what was withdrawn
    /// before it. PASIDs that were detached before it are free from now on.
    ///
    /// Without this call no PASID is ever given out twice.
    pub fn synced(&mut self) {
        for (endpoint, pasid) in self.freed.drain(..) {
            if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
                endpoint.pasids.release(pasid);
            }
        }
    }
}
