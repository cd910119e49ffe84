//! PASIDs: AUX_ENABLE to GET_ATTR (`docs/aux-domains.md`, 4.1 to 4.5).
//!
//! Checks come in that document's order: NOENT, UNSUPP, INVAL for the state, RANGE, NOMEM.

use viommu_backend::{DomainId, Output};
use viommu_pasid::{EndpointId, Pasid};

use super::{Plan, collides};
use crate::iommu::machine::Iommu;
use crate::iommu::state::{Domain, Endpoint};
use crate::protocol::{Attribute, AuxAttach, AuxDetach, PasidChoice, Status};

impl Iommu {
    pub(super) fn decide_aux_enable(&self, id: EndpointId, on: bool) -> Result<Plan, Status> {
        let endpoint = self.endpoint(id)?;
        if !has_pasids(endpoint) {
            return Err(Status::UNSUPP);
        }
        if endpoint.pasids.enabled == on || !endpoint.pasids.is_empty() {
            return Err(Status::INVAL);
        }
        Ok(Plan::AuxEnable(id, on))
    }

    pub(super) fn decide_aux_attach(&self, attach: &AuxAttach) -> Result<Plan, Status> {
        let endpoint = self.endpoint(attach.endpoint)?;
        let named = match attach.pasid {
            PasidChoice::This(pasid) => Some(pasid),
            PasidChoice::Any | PasidChoice::TooWide => None,
        };
        let replaced = named.and_then(|pasid| endpoint.pasids.domain(pasid));
        let domain = self.domains.get(&attach.domain);
        if attach.page_request || !self.suits_pasid(endpoint, domain, replaced) {
            return Err(Status::UNSUPP);
        }
        let too_wide = attach.pasid == PasidChoice::TooWide
            || named.is_some_and(|pasid| !endpoint.pasids.has(pasid));
        if !endpoint.pasids.enabled || too_wide || domain.is_some_and(Domain::is_bypass) {
            return Err(Status::INVAL);
        }
        if let Some(pasid) = named.filter(|pasid| is_done(endpoint, *pasid, attach.domain)) {
            return Ok(Plan::AuxAttached(pasid));
        }
        if domain.is_none() {
            self.check_number(attach.domain)?;
        }
        let pasid = named.or_else(|| endpoint.pasids.lowest_free()).ok_or(Status::NOMEM)?;
        if domain.is_none() {
            self.check_room(replaced)?;
        }
        Ok(Plan::AuxAttach(attach.endpoint, pasid, attach.domain))
    }

    pub(super) fn decide_aux_detach(&self, detach: &AuxDetach) -> Result<Plan, Status> {
        let endpoint = self.endpoint(detach.endpoint)?;
        self.domain(detach.domain)?;
        let pasid = detach.pasid.ok_or(Status::NOENT)?;
        if endpoint.pasids.domain(pasid).ok_or(Status::NOENT)? != detach.domain {
            return Err(Status::INVAL);
        }
        Ok(Plan::AuxDetach(detach.endpoint, pasid))
    }

    /// What a GET_ATTR is told. An endpoint without PASIDs says so by zeros.
    pub(super) fn attribute(&self, attribute: Attribute) -> Result<u64, Status> {
        match attribute {
            Attribute::AuxCapable(id) => self.endpoint(id).map(has_pasids).map(u64::from),
            Attribute::AuxEnabled(id) => self.endpoint(id).map(|e| u64::from(e.pasids.enabled)),
            Attribute::AuxMax(id) => self.endpoint(id).map(|e| u64::from(e.pasids.capacity())),
            Attribute::AuxId(domain, id) => {
                let endpoint = self.endpoint(id)?;
                self.domain(domain)?;
                let lowest = endpoint.pasids.lowest_of(domain).ok_or(Status::NOENT)?;
                Ok(u64::from(lowest.raw()))
            }
            Attribute::Nested(id) => Ok(match self.domain(id)?.bound.map(|bound| bound.output) {
                None => 0,
                Some(Output::Through(parent)) if parent == id => 1,
                Some(Output::Through(_)) => 2,
                Some(Output::GuestPhysical) => 3,
            }),
        }
    }

    /// The domain, or NOENT.
    pub(super) fn domain(&self, id: DomainId) -> Result<&Domain, Status> {
        self.domains.get(&id).ok_or(Status::NOENT)
    }

    /// Whether a PASID of `endpoint` can go through `domain`, which is `None` if it is to be made,
    /// in the place of the domain that is `replaced`.
    fn suits_pasid(
        &self,
        endpoint: &Endpoint,
        domain: Option<&Domain>,
        replaced: Option<DomainId>,
    ) -> bool {
        let fits = domain.is_none_or(|domain| {
            domain.bound.is_none_or(|bound| bound.fits(&endpoint.capabilities))
                && !collides(domain, endpoint)
        });
        let second_level = domain.and_then(Domain::second_level);
        let others = endpoint.pasids.second_level_but(usize::from(replaced.is_some()));
        has_pasids(endpoint)
            && fits
            && (endpoint.capabilities.own_second_level
                || others.is_none_or(|others| others == second_level)
                    && self.untagged_suits(endpoint, second_level))
    }

    /// Whether the domain of the untagged traffic of `endpoint` allows a second level for all.
    pub(super) fn untagged_suits(
        &self,
        endpoint: &Endpoint,
        second_level: Option<DomainId>,
    ) -> bool {
        let attached = endpoint.attached.and_then(|id| Some((id, self.domains.get(&id)?)));
        attached.is_none_or(|(id, domain)| domain.suits_untagged(id, second_level))
    }
}

/// True if `pasid` has that domain, and the host knows it.
fn is_done(endpoint: &Endpoint, pasid: Pasid, domain: DomainId) -> bool {
    endpoint.pasids.domain(pasid) == Some(domain) && endpoint.pasids.is_served(pasid)
}

fn has_pasids(endpoint: &Endpoint) -> bool {
    endpoint.capabilities.pasid_bits > 0
}
