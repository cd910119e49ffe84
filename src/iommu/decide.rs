//! Decide: what a request would do, or why not. Nothing here changes anything.
//!
//! The standard's requests are here, those of the extension in [`aux`] and [`bind`].

mod aux;
mod bind;

use viommu_backend::DomainId;
use viommu_pasid::{EndpointId, Pasid};
use viommu_pgtable::{IovaRange, Mapping};

pub(super) use self::bind::Binding;
use super::machine::Iommu;
use super::state::{Domain, Endpoint, Mapped, Space};
use super::store::{Gap, Inside};
use crate::protocol::{Attach, Detach, Map, Probe, Request, Status, Unmap};

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
    Probe(Probe),
    /// Say whether AUX_ENABLE is in force for an endpoint from now on.
    AuxEnable(EndpointId, bool),
    /// Attach a domain, which is made if it does not exist, to a PASID.
    AuxAttach(EndpointId, Pasid, DomainId),
    /// The PASID has that domain already.
    AuxAttached(Pasid),
    /// Take a PASID out of its domain.
    AuxDetach(EndpointId, Pasid),
    /// Tell an attribute.
    Value(u64),
    /// Bind a table.
    Bind(DomainId, Binding),
    /// Take the bound table away.
    Unbind(DomainId),
    /// Forget what is known of the bound table, for these inputs or all.
    Invalidate(DomainId, Option<IovaRange>),
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
            Request::Probe(probe) => self.endpoint(probe.endpoint).map(|_| Plan::Probe(*probe)),
            Request::AuxEnable(endpoint) => self.decide_aux_enable(*endpoint, true),
            Request::AuxDisable(endpoint) => self.decide_aux_enable(*endpoint, false),
            Request::AuxAttach(attach) => self.decide_aux_attach(attach),
            Request::AuxDetach(detach) => self.decide_aux_detach(detach),
            Request::GetAttr(attribute) => self.attribute(*attribute).map(Plan::Value),
            Request::BindTable(bind) => self.decide_bind(bind),
            Request::UnbindTable(domain) => self.decide_unbind(*domain),
            Request::Invalidate(invalidate) => self.decide_invalidate(invalidate),
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
            if endpoint.attached != Some(attach.domain)
                && !self.suits_untagged(endpoint, attach.domain, domain)
            {
                return Err(Status::UNSUPP);
            }
        } else {
            self.check_number(attach.domain)?;
            if shared_second_level(endpoint).flatten().is_some() {
                return Err(Status::UNSUPP);
            }
            // A6: the domain that the endpoint leaves counts no more if it ends.
            self.check_room(endpoint.attached)?;
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

    /// The domain that MAP and UNMAP work on: NOENT if there is none, INVAL for a bypass domain,
    /// and for a bound one whose output its own mappings do not translate.
    fn mapped(&self, id: DomainId) -> Result<&Mapped, Status> {
        let domain = self.domains.get(&id).ok_or(Status::NOENT)?;
        match &domain.space {
            Space::Mapped(mapped) if domain.bound.is_none_or(|b| b.second_level() == Some(id)) => {
                Ok(mapped)
            }
            Space::Bypass | Space::Mapped(_) => Err(Status::INVAL),
        }
    }

    /// RANGE for a number that no domain can have.
    fn check_number(&self, id: DomainId) -> Result<(), Status> {
        if self.settings.domains.contains(&id.raw()) { Ok(()) } else { Err(Status::RANGE) }
    }

    /// NOMEM if there is no room for another domain, once an attachment has left `left`.
    fn check_room(&self, left: Option<DomainId>) -> Result<(), Status> {
        let left = left.and_then(|id| self.domains.get(&id));
        let ending = usize::from(left.is_some_and(Domain::ends_with_one_less));
        if self.domains.len() - ending < self.settings.max_domains {
            Ok(())
        } else {
            Err(Status::NOMEM)
        }
    }

    /// A7: whether untagged traffic of `endpoint` can go through `domain`.
    fn suits_untagged(&self, endpoint: &Endpoint, id: DomainId, domain: &Domain) -> bool {
        let second_level = shared_second_level(endpoint);
        second_level.is_none_or(|second_level| domain.suits_untagged(id, second_level))
            && domain.bound.is_none_or(|bound| bound.fits(&endpoint.capabilities))
            && !collides(domain, endpoint)
    }
}

/// The second level that other traffic of `endpoint` has to agree with; `None` if each of its
/// PASIDs has its own, or none is attached.
fn shared_second_level(endpoint: &Endpoint) -> Option<Option<DomainId>> {
    if endpoint.capabilities.own_second_level {
        return None;
    }
    endpoint.pasids.second_level_but(0)
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
