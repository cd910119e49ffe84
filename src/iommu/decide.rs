//! Decide: what a request would do, or why not. Nothing here changes anything.

use viommu_backend::DomainId;
use viommu_pasid::EndpointId;
use viommu_pgtable::{IovaRange, Mapping};

use super::machine::Iommu;
use super::state::{Domain, Endpoint, Mapped, Space};
use super::store::{Gap, Inside};
use crate::protocol::{Attach, Detach, Map, Request, Status, Unmap};

/// What is to be done.
#[derive(Debug)]
pub(super) enum Plan {
    /// All is as the request wants it.
    Nothing,
    /// Move an endpoint into a domain, which is made if it does not exist.
    Attach(Attach),
    /// Take an endpoint out of its domain.
    Detach(EndpointId),
    /// Add a mapping, there.
    Map(DomainId, Mapping, Gap),
    /// Remove the mappings inside a range that splits none; they are there.
    Unmap(DomainId, IovaRange, Inside),
    /// Tell what an endpoint is like.
    Probe(EndpointId),
}

impl Iommu {
    /// The plan for `request`, or the status that refuses it.
    pub(super) fn decide(&self, request: &Request) -> Result<Plan, Status> {
        match request {
            Request::Attach(attach) => self.decide_attach(attach),
            Request::Detach(detach) => self.decide_detach(detach),
            Request::Map(map) => self.decide_map(map),
            Request::Unmap(unmap) => self.decide_unmap(unmap),
            // P2
            Request::Probe(probe) => {
                self.endpoint(probe.endpoint).map(|_| Plan::Probe(probe.endpoint))
            }
        }
    }

    fn decide_attach(&self, attach: &Attach) -> Result<Plan, Status> {
        // A3
        let endpoint = self.endpoint(attach.endpoint)?;
        if let Some(domain) = self.domains.get(&attach.domain) {
            // A5
            if domain.is_bypass() != attach.bypass {
                return Err(Status::INVAL);
            }
            if endpoint.attached == Some(attach.domain)
                && endpoint.target == domain.target(attach.domain)
            {
                return Ok(Plan::Nothing);
            }
            // A7
            if endpoint.attached != Some(attach.domain) && collides(domain, endpoint) {
                return Err(Status::UNSUPP);
            }
        } else {
            if !self.settings.domains.contains(&attach.domain.raw()) {
                return Err(Status::RANGE);
            }
            // A6: the domain that the endpoint leaves counts no more if it dies.
            let dying = usize::from(self.dies_without(endpoint).is_some());
            if self.domains.len() - dying >= self.settings.max_domains {
                return Err(Status::NOMEM);
            }
        }
        // A4, A8
        Ok(Plan::Attach(*attach))
    }

    fn decide_detach(&self, detach: &Detach) -> Result<Plan, Status> {
        // D2
        let endpoint = self.endpoint(detach.endpoint)?;
        let attached = endpoint.attached.ok_or(Status::INVAL)?;
        // D3
        if attached != detach.domain && !self.means_identity_domain(detach, attached) {
            return Err(Status::INVAL);
        }
        Ok(Plan::Detach(detach.endpoint))
    }

    /// True if `detach` is what Linux sends when it releases an endpoint of its identity domain:
    /// that domain has the first number of the range, but the request says 0. Only where 0 is no
    /// domain's number can it mean nothing else. D3 lets the device reject it; Linux would then
    /// warn.
    fn means_identity_domain(&self, detach: &Detach, attached: DomainId) -> bool {
        let named = detach.domain.raw();
        named == 0
            && !self.settings.domains.contains(&named)
            && self.domains.get(&attached).is_some_and(Domain::is_bypass)
    }

    fn decide_map(&self, map: &Map) -> Result<Plan, Status> {
        // M4, M5
        let domain = self.mapped(map.domain)?;
        // M1, O6
        let lg2 = self.settings.granule_lg2();
        if !map.iova.is_aligned(lg2) || !map.oa.is_aligned(lg2) {
            return Err(Status::RANGE);
        }
        let mapping = Mapping::new(map.iova, map.oa, map.access).map_err(|_| Status::RANGE)?;
        if !self.settings.input.covers(&map.iova) || mapping.oa_last() > self.output_last {
            return Err(Status::RANGE);
        }
        // R1, M2
        if domain.touches_reserved(&map.iova) {
            return Err(Status::INVAL);
        }
        let gap = domain.mappings.gap(&map.iova).ok_or(Status::INVAL)?;
        if domain.mappings.len() >= self.settings.max_mappings {
            return Err(Status::NOMEM);
        }
        Ok(Plan::Map(map.domain, mapping, gap))
    }

    fn decide_unmap(&self, unmap: &Unmap) -> Result<Plan, Status> {
        // U2, U3
        let domain = self.mapped(unmap.domain)?;
        // U4, U5
        let inside = domain.mappings.inside(&unmap.iova).map_err(|_| Status::RANGE)?;
        Ok(Plan::Unmap(unmap.domain, unmap.iova, inside))
    }

    /// The endpoint, or NOENT.
    fn endpoint(&self, id: EndpointId) -> Result<&Endpoint, Status> {
        self.endpoints.get(&id).ok_or(Status::NOENT)
    }

    /// The domain that MAP and UNMAP work on: NOENT if there is none, INVAL for a bypass domain.
    fn mapped(&self, id: DomainId) -> Result<&Mapped, Status> {
        match &self.domains.get(&id).ok_or(Status::NOENT)?.space {
            Space::Bypass => Err(Status::INVAL),
            Space::Mapped(mapped) => Ok(mapped),
        }
    }

    /// The domain that has no endpoint left once `endpoint` leaves it.
    pub(super) fn dies_without(&self, endpoint: &Endpoint) -> Option<DomainId> {
        let id = endpoint.attached?;
        self.domains.get(&id).is_some_and(|domain| domain.endpoints == 1).then_some(id)
    }
}

/// True if a mapping of `domain` lies over reserved memory of `endpoint`.
fn collides(domain: &Domain, endpoint: &Endpoint) -> bool {
    match &domain.space {
        Space::Bypass => false,
        Space::Mapped(mapped) => {
            endpoint.reserved.iter().any(|region| mapped.mappings.overlaps(&region.range))
        }
    }
}
