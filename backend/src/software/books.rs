//! The books: who goes through which domain.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use viommu_iotlb::Withdrawn;
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::IovaRange;

use crate::DomainId;

/// Requesters of one endpoint and domain that are told apart when something is withdrawn from them;
/// with more, all of the endpoint's pins are waited for. One of a million PASIDs must not make an
/// UNMAP slow.
const TOLD_APART: usize = 64;

/// A relation of domains and requesters: 12 bytes for each pair.
#[derive(Debug, Default)]
struct Pairs(BTreeSet<(DomainId, EndpointId, Option<Pasid>)>);

/// Who goes through which domain. Each question is O(log n), and O(1) for each answer.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// What each requester is attached to, if that is a domain.
    domain_of: BTreeMap<Requester, DomainId>,
    /// The same by domain.
    attached: Pairs,
    /// Who goes through a domain because it is the parent of what they are attached to.
    below: Pairs,
    /// The parent of each domain whose bound table goes through another one.
    parent_of: BTreeMap<DomainId, DomainId>,
    /// The same by parent.
    children: BTreeSet<(DomainId, DomainId)>,
}

impl Pairs {
    fn insert(&mut self, domain: DomainId, requester: Requester) {
        self.0.insert((domain, requester.endpoint, requester.pasid));
    }

    fn remove(&mut self, domain: DomainId, requester: Requester) {
        self.0.remove(&(domain, requester.endpoint, requester.pasid));
    }

    /// The requesters of `domain`, in order.
    fn of(&self, domain: DomainId) -> impl Iterator<Item = Requester> {
        let all = RangeInclusive::new(EndpointId::new(0), EndpointId::new(u32::MAX));
        self.within(domain, all)
    }

    fn within(
        &self,
        domain: DomainId,
        endpoints: RangeInclusive<EndpointId>,
    ) -> impl Iterator<Item = Requester> {
        let first = (domain, *endpoints.start(), None);
        let last = (domain, *endpoints.end(), Some(Pasid::MAX));
        self.0
            .range(first..=last)
            .map(|(_, endpoint, pasid)| Requester { endpoint: *endpoint, pasid: *pasid })
    }

    /// Tells `on` what is withdrawn if `range`, or everything, of the requesters of `domain` is.
    fn withdraw(&self, domain: DomainId, range: Option<IovaRange>, on: &mut dyn FnMut(Withdrawn)) {
        let told_apart = |requester| match range {
            Some(range) => Withdrawn::Range { requester, range },
            None => Withdrawn::Requester(requester),
        };
        if self.of(domain).nth(TOLD_APART).is_none() {
            return self.of(domain).for_each(|requester| on(told_apart(requester)));
        }
        let mut next = Some(EndpointId::new(0));
        while let Some(endpoint) = next.and_then(|from| {
            let rest = RangeInclusive::new(from, EndpointId::new(u32::MAX));
            Some(self.within(domain, rest).next()?.endpoint)
        }) {
            let ours = || self.within(domain, RangeInclusive::new(endpoint, endpoint));
            if ours().nth(TOLD_APART).is_some() {
                on(Withdrawn::Endpoint(endpoint));
            } else {
                ours().for_each(|requester| on(told_apart(requester)));
            }
            next = endpoint.raw().checked_add(1).map(EndpointId::new);
        }
    }
}

impl Books {
    /// Who is attached to `domain`, in order.
    pub(super) fn attached(&self, domain: DomainId) -> impl Iterator<Item = Requester> {
        self.attached.of(domain)
    }

    /// Who goes through the mappings of `domain`, alone or below a bound table.
    pub(super) fn through(&self, domain: DomainId) -> impl Iterator<Item = Requester> {
        self.attached.of(domain).chain(self.below.of(domain))
    }

    /// Attaches `requester` to `domain`, or to none, and to no other.
    pub(super) fn attach(&mut self, requester: Requester, domain: Option<DomainId>) {
        if let Some(old) = self.domain_of.remove(&requester) {
            self.attached.remove(old, requester);
            if let Some(parent) = self.parent_of.get(&old) {
                self.below.remove(*parent, requester);
            }
        }
        if let Some(domain) = domain {
            self.domain_of.insert(requester, domain);
            self.attached.insert(domain, requester);
            if let Some(parent) = self.parent_of.get(&domain) {
                self.below.insert(*parent, requester);
            }
        }
    }

    /// `child` goes through `parent`, another domain, from now on, and with it all that is attached
    /// to it.
    pub(super) fn adopt(&mut self, parent: DomainId, child: DomainId) {
        self.parent_of.insert(child, parent);
        self.children.insert((parent, child));
        for requester in self.attached.of(child) {
            self.below.insert(parent, requester);
        }
    }

    /// Ends [`adopt`](Self::adopt), if there was one.
    pub(super) fn orphan(&mut self, child: DomainId) {
        let Some(parent) = self.parent_of.remove(&child) else { return };
        self.children.remove(&(parent, child));
        for requester in self.attached.of(child) {
            self.below.remove(parent, requester);
        }
    }

    /// True if `domain` is the parent of another.
    pub(super) fn is_parent(&self, domain: DomainId) -> bool {
        let all = (domain, DomainId::new(0))..=(domain, DomainId::new(u32::MAX));
        self.children.range(all).next().is_some()
    }

    /// Tells `on` what is withdrawn from those that are attached to `domain` if `range` of their
    /// inputs is, or everything.
    pub(super) fn withdraw_attached(
        &self,
        domain: DomainId,
        range: Option<IovaRange>,
        on: &mut dyn FnMut(Withdrawn),
    ) {
        self.attached.withdraw(domain, range, on);
    }

    /// Tells `on` what is withdrawn from those that go through `domain` as a parent, which inputs
    /// lead there is not known.
    pub(super) fn withdraw_below(&self, domain: DomainId, on: &mut dyn FnMut(Withdrawn)) {
        self.below.withdraw(domain, None, on);
    }
}
