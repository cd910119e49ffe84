//! Tables of the guest's: BIND_TABLE, UNBIND_TABLE, INVALIDATE (`docs/aux-domains.md`, 4.6 to 4.8).

use viommu_backend::{DomainId, EndpointCapabilities, Output};
use viommu_pasid::{EndpointId, FirstTable};

use super::Plan;
use crate::iommu::bound::{Bound, Needs, first_table};
use crate::iommu::machine::Iommu;
use crate::iommu::state::{Domain, Member, Space};
use crate::protocol::{BindTable, Invalidate, Status};

/// A table that is to be bound.
#[derive(Debug)]
pub(in crate::iommu) struct Binding {
    /// As the host is told.
    pub(in crate::iommu) table: FirstTable,
    /// As requests are judged by it.
    pub(in crate::iommu) bound: Bound,
}

impl Iommu {
    pub(super) fn decide_bind(&self, bind: &BindTable) -> Result<Plan, Status> {
        let id = bind.domain;
        let domain = self.domains.get(&id);
        let parent = match bind.output {
            Output::Through(parent) if parent != id => Some(self.domain(parent)?),
            Output::Through(_) | Output::GuestPhysical => None,
        };
        let bound = self.bound(bind, domain).ok_or(Status::UNSUPP)?;
        if domain.is_some_and(|domain| !can_be_bound(domain, id, &bound))
            || parent.is_some_and(|parent| parent.is_bypass() || parent.bound.is_some())
        {
            return Err(Status::INVAL);
        }
        let table = first_table(&bind.table, bound.output_bits)?;
        if domain.is_none() {
            self.check_number(id)?;
            self.check_room(None)?;
        }
        Ok(Plan::Bind(id, Binding { table, bound }))
    }

    pub(super) fn decide_unbind(&self, id: DomainId) -> Result<Plan, Status> {
        let domain = self.domain(id)?;
        let bound = domain.bound.ok_or(Status::INVAL)?;
        if domain.is_attached() && bound.second_level() != Some(id) {
            return Err(Status::INVAL);
        }
        Ok(Plan::Unbind(id))
    }

    pub(super) fn decide_invalidate(&self, invalidate: &Invalidate) -> Result<Plan, Status> {
        match self.domain(invalidate.domain)?.bound {
            Some(_) => Ok(Plan::Invalidate(invalidate.domain, invalidate.range)),
            None => Err(Status::INVAL),
        }
    }

    /// What would be bound to `domain`; `None` if an endpoint that is attached to it cannot use
    /// that, or, where none is attached, if no endpoint can.
    fn bound(&self, bind: &BindTable, domain: Option<&Domain>) -> Option<Bound> {
        let needs = Needs::of(&bind.table)?;
        let bound_for = |endpoint: &EndpointCapabilities| {
            let output_bits = needs.met_by(endpoint, bind.output)?.output_bits;
            Some(Bound { needs, output_bits, output: bind.output })
        };
        let Some(domain) = domain.filter(|domain| domain.is_attached()) else {
            return self.kinds.iter().find_map(|kind| bound_for(kind));
        };
        let mut narrowest: Option<Bound> = None;
        for member in domain.members.keys().filter_map(|id| self.endpoints.get(id)) {
            let bound = bound_for(&member.capabilities)?;
            let is_narrower = |least: Bound| bound.output_bits < least.output_bits;
            if narrowest.is_none_or(is_narrower) {
                narrowest = Some(bound);
            }
        }
        let bound = narrowest?;
        let agrees = |(id, member): (&EndpointId, &Member)| {
            self.member_agrees(*id, member, bind.domain, &bound)
        };
        domain.members.iter().all(agrees).then_some(bound)
    }

    /// Whether the other traffic of a member of domain `id` can have the second level that the
    /// domain is about to get.
    fn member_agrees(
        &self,
        endpoint: EndpointId,
        member: &Member,
        id: DomainId,
        bound: &Bound,
    ) -> bool {
        let Some(endpoint) = self.endpoints.get(&endpoint) else { return true };
        if endpoint.capabilities.own_second_level {
            return true;
        }
        let second_level = bound.second_level();
        let others = endpoint.pasids.second_level_but(member.pasids);
        others.is_none_or(|others| others == second_level)
            && (member.untagged
                || endpoint.attached == Some(id)
                || self.untagged_suits(endpoint, second_level))
    }
}

/// Whether the domain's kind and what it holds allow a table with this output. A parent's own
/// mappings end what its children translate, so it stays without a table.
fn can_be_bound(domain: &Domain, id: DomainId, bound: &Bound) -> bool {
    let Space::Mapped(mapped) = &domain.space else { return false };
    let keeps_mappings = bound.second_level() == Some(id);
    domain.bound.is_none() && domain.children == 0 && (keeps_mappings || mapped.mappings.len() == 0)
}
