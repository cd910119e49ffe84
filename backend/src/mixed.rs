//! Two backends as one: each endpoint belongs to one of them, a domain to each that has an endpoint of it.
//!
//! A domain is made in a backend when the first of its endpoints gets ready to enter it, and what was
//! mapped before is mapped there then. It stays there until it ends.

use std::collections::{BTreeMap, BTreeSet};

use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{Iova, IovaRange, Mapping};

use crate::vfio::{Ram, Region};
use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, MemoryRegion, Output, Role,
    Target,
};

/// A domain that met the second backend's endpoints before anyone said what it maps.
const UNPREPARED: HostError = HostError::Unsupported("a domain that was not prepared");
/// The second backend takes mappings only.
const BOUND_ELSEWHERE: HostError =
    HostError::Unsupported("a bound table for an endpoint of another kind");

/// Backend `A` for all endpoints but those that belong to `B`.
///
/// [`bind`](HostIommu::bind) is `A`'s alone: a domain that has an endpoint of `B` cannot be bound. It can
/// be the parent of one that is.
#[derive(Debug)]
pub struct Mixed<A, B> {
    first: A,
    second: Option<Second<B>>,
}

/// The other backend, and what has to be known once there are two.
#[derive(Debug)]
struct Second<B> {
    host: B,
    endpoints: BTreeSet<EndpointId>,
    domains: BTreeMap<DomainId, Members>,
    /// What the first backend gets back if the second one refuses another.
    memory: Ram,
}

/// Which backends have a domain.
#[derive(Debug, Clone, Copy, Default)]
struct Members {
    first: bool,
    second: bool,
    /// It holds mappings: who enters has to be told of them.
    mapped: usize,
    bound: bool,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

impl<A: HostIommu, B: HostIommu> Mixed<A, B> {
    /// `first` alone, at no cost.
    #[must_use]
    pub const fn new(first: A) -> Self {
        Self { first, second: None }
    }

    /// `endpoints` belong to `second`, all others to `first`.
    #[must_use]
    pub fn with(first: A, second: B, endpoints: impl IntoIterator<Item = EndpointId>) -> Self {
        let endpoints = endpoints.into_iter().collect();
        let (domains, memory) = (BTreeMap::new(), Ram::default());
        let second = Second { host: second, endpoints, domains, memory };
        Self { first, second: Some(second) }
    }

    /// The first backend.
    #[must_use]
    pub const fn first(&self) -> &A {
        &self.first
    }

    /// The first backend, for what is not a [`HostIommu`]'s.
    pub const fn first_mut(&mut self) -> &mut A {
        &mut self.first
    }

    /// The second backend, if there is one.
    #[must_use]
    pub const fn second(&self) -> Option<&B> {
        match &self.second {
            Some(second) => Some(&second.host),
            None => None,
        }
    }

    /// The second backend, if there is one, for what is not a [`HostIommu`]'s.
    pub const fn second_mut(&mut self) -> Option<&mut B> {
        match &mut self.second {
            Some(second) => Some(&mut second.host),
            None => None,
        }
    }

    /// The backend of an endpoint.
    fn host_of(&mut self, endpoint: EndpointId) -> &mut dyn HostIommu {
        match &mut self.second {
            Some(second) if second.endpoints.contains(&endpoint) => &mut second.host,
            _ => &mut self.first,
        }
    }
}

impl<B: HostIommu> Second<B> {
    fn side(&self, endpoint: EndpointId) -> Side {
        if self.endpoints.contains(&endpoint) { Side::Second } else { Side::First }
    }

    fn members(&self, domain: DomainId) -> Members {
        self.domains.get(&domain).copied().unwrap_or_default()
    }

    /// Makes the domain in a backend that does not have it yet, with what it holds.
    fn join(
        &mut self,
        first: &mut dyn HostIommu,
        (domain, side): (DomainId, Side),
        mappings: &[Mapping],
    ) -> Result<(), HostError> {
        let members = self.domains.entry(domain).or_default();
        let (host, member): (&mut dyn HostIommu, _) = match side {
            Side::First => (first, &mut members.first),
            Side::Second => (&mut self.host, &mut members.second),
        };
        if *member {
            return Ok(());
        }
        host.create_domain(domain)?;
        for mapping in mappings {
            if let Err(error) = host.map(domain, mapping) {
                host.destroy_domain(domain);
                return Err(error);
            }
        }
        *member = true;
        Ok(())
    }

    /// The same for a domain of which the caller says nothing: it has to be empty.
    fn join_empty(
        &mut self,
        first: &mut dyn HostIommu,
        domain: DomainId,
        side: Side,
    ) -> Result<(), HostError> {
        let members = self.members(domain);
        let known = match side {
            Side::First => members.first,
            Side::Second => members.second,
        };
        if !known && members.mapped != 0 {
            return Err(UNPREPARED);
        }
        self.join(first, (domain, side), &[])
    }

    /// Refuses what only the first backend can do.
    fn only_first(&self, domain: DomainId) -> Result<(), HostError> {
        if self.members(domain).second { Err(BOUND_ELSEWHERE) } else { Ok(()) }
    }
}

impl<A: HostIommu, B: HostIommu> HostIommu for Mixed<A, B> {
    fn capabilities(&self) -> Capabilities {
        let one = self.first.capabilities();
        let Some(second) = &self.second else { return one };
        let other = second.host.capabilities();
        // Below the coarser granule nothing can be mapped in both.
        let granule = lowest_bit(one.page_size_mask).max(lowest_bit(other.page_size_mask));
        Capabilities {
            page_size_mask: one.page_size_mask & other.page_size_mask | granule,
            input_bits: one.input_bits.min(other.input_bits),
            output_last: one.output_last.min(other.output_last),
        }
    }

    fn endpoint_capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        match &self.second {
            Some(second) if second.endpoints.contains(&endpoint) => {
                second.host.endpoint_capabilities(endpoint)
            }
            _ => self.first.endpoint_capabilities(endpoint),
        }
    }

    fn set_memory(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), HostError> {
        let Some(second) = &mut self.second else { return self.first.set_memory(regions) };
        let memory = Ram::new(regions)?;
        self.first.set_memory(regions)?;
        if let Err(error) = second.host.set_memory(regions) {
            let before: Vec<_> = second.memory.regions().iter().map(Region::told).collect();
            if let Err(error) = self.first.set_memory(&before) {
                log::error!("device processes are without the guest's memory of before: {error}");
            }
            return Err(error);
        }
        second.memory = memory;
        Ok(())
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        let Some(second) = &mut self.second else { return self.first.create_domain(domain) };
        second.domains.insert(domain, Members::default());
        Ok(())
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        let Some(second) = &mut self.second else { return self.first.destroy_domain(domain) };
        let members = second.domains.remove(&domain).unwrap_or_default();
        if members.first {
            self.first.destroy_domain(domain);
        }
        if members.second {
            second.host.destroy_domain(domain);
        }
    }

    fn prepare(
        &mut self,
        domain: DomainId,
        role: Role,
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        let Some(second) = &mut self.second else {
            return self.first.prepare(domain, role, mappings);
        };
        let side = match role {
            Role::Alone(requester) => second.side(requester.endpoint),
            Role::SecondLevel => Side::First,
        };
        let members = second.members(domain);
        let known = match side {
            Side::First => members.first,
            Side::Second if members.bound => return Err(BOUND_ELSEWHERE),
            Side::Second => members.second,
        };
        if !known {
            let all: Vec<_> = mappings.collect();
            second.join(&mut self.first, (domain, side), &all)?;
            return self.prepare_known(domain, (role, side), &mut all.into_iter());
        }
        self.prepare_known(domain, (role, side), mappings)
    }

    fn bind(
        &mut self,
        domain: DomainId,
        table: &FirstTable,
        output: Output,
    ) -> Result<(), HostError> {
        let Some(second) = &mut self.second else { return self.first.bind(domain, table, output) };
        second.only_first(domain)?;
        if let Output::Through(parent) = output
            && parent != domain
        {
            second.join_empty(&mut self.first, parent, Side::First)?;
        }
        second.join_empty(&mut self.first, domain, Side::First)?;
        self.first.bind(domain, table, output)?;
        second.domains.entry(domain).or_default().bound = true;
        Ok(())
    }

    fn unbind(&mut self, domain: DomainId) -> Result<(), HostError> {
        self.first.unbind(domain)?;
        if let Some(members) = self.second.as_mut().and_then(|s| s.domains.get_mut(&domain)) {
            members.bound = false;
        }
        Ok(())
    }

    fn invalidate(&mut self, domain: DomainId, range: Option<IovaRange>) {
        self.first.invalidate(domain, range);
    }

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        if let (Some(second), Target::Domain(domain)) = (&mut self.second, target) {
            let side = second.side(requester.endpoint);
            if side == Side::Second && second.members(domain).bound {
                return Err(BOUND_ELSEWHERE);
            }
            second.join_empty(&mut self.first, domain, side)?;
        }
        self.host_of(requester.endpoint).attach(requester, target)
    }

    fn send_unattached(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        self.host_of(requester.endpoint).send_unattached(requester, target)
    }

    fn look_ahead(&self, domain: DomainId, iova: Iova) {
        self.first.look_ahead(domain, iova);
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let Some(second) = &mut self.second else { return self.first.map(domain, mapping) };
        let members = second.domains.entry(domain).or_default();
        if members.second {
            second.host.map(domain, mapping)?;
        }
        if members.first
            && let Err(error) = self.first.map(domain, mapping)
        {
            if members.second {
                second.host.unmap(domain, mapping);
            }
            return Err(error);
        }
        members.mapped += 1;
        Ok(())
    }

    fn unmap(&mut self, domain: DomainId, mapping: &Mapping) {
        let Some(second) = &mut self.second else { return self.first.unmap(domain, mapping) };
        let members = second.domains.entry(domain).or_default();
        members.mapped = members.mapped.saturating_sub(1);
        if members.first {
            self.first.unmap(domain, mapping);
        }
        if members.second {
            second.host.unmap(domain, mapping);
        }
    }

    fn park(&mut self, requester: Requester) {
        self.host_of(requester.endpoint).park(requester);
    }

    fn resume(&mut self, requester: Requester) {
        self.host_of(requester.endpoint).resume(requester);
    }

    fn withdraw_all(&mut self) {
        self.first.withdraw_all();
        if let Some(second) = &mut self.second {
            second.host.withdraw_all();
        }
    }

    fn readmit(&mut self) {
        self.first.readmit();
        if let Some(second) = &mut self.second {
            second.host.readmit();
        }
    }

    fn sync(&mut self) {
        self.first.sync();
        if let Some(second) = &mut self.second {
            second.host.sync();
        }
    }
}

impl<A: HostIommu, B: HostIommu> Mixed<A, B> {
    fn prepare_known(
        &mut self,
        domain: DomainId,
        (role, side): (Role, Side),
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        match (side, &mut self.second) {
            (Side::Second, Some(second)) => second.host.prepare(domain, role, mappings),
            _ => self.first.prepare(domain, role, mappings),
        }
    }
}

/// The smallest page of a mask.
const fn lowest_bit(mask: u64) -> u64 {
    mask & mask.wrapping_neg()
}

#[cfg(test)]
mod tests;
