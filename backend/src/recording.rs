//! A backend that keeps everything in maps, records what was asked, and fails when told to.
//!
//! The model of the contract: tests compare other backends with it, and the state machine's undoing
//! is tested by letting the n-th fallible call fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{IovaRange, Mapping, PhysAddr};

use crate::state::State;
use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, MemoryRegion, Output, Role,
    Target,
};

/// One call of [`HostIommu`], as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`HostIommu::create_domain`].
    CreateDomain(DomainId),
    /// [`HostIommu::destroy_domain`].
    DestroyDomain(DomainId),
    /// [`HostIommu::prepare`]; what it asked the mappings for is not recorded.
    Prepare(DomainId, Role),
    /// [`HostIommu::bind`].
    Bind(DomainId, FirstTable, Output),
    /// [`HostIommu::unbind`].
    Unbind(DomainId),
    /// [`HostIommu::invalidate`].
    Invalidate(DomainId, Option<IovaRange>),
    /// [`HostIommu::attach`].
    Attach(Requester, Target),
    /// [`HostIommu::map`].
    Map(DomainId, Mapping),
    /// [`HostIommu::unmap`].
    Unmap(DomainId, Mapping),
    /// [`HostIommu::park`].
    Park(Requester),
    /// [`HostIommu::resume`].
    Resume(Requester),
    /// [`HostIommu::withdraw_all`].
    WithdrawAll,
    /// [`HostIommu::readmit`].
    Readmit,
    /// [`HostIommu::sync`].
    Sync,
}

/// The recording backend.
#[derive(Debug)]
pub struct Recording {
    capabilities: Capabilities,
    endpoints: BTreeMap<EndpointId, EndpointCapabilities>,
    state: State,
    memory: Vec<(PhysAddr, u64)>,
    unattached: BTreeSet<Requester>,
    calls: Vec<Call>,
    fail_after: Option<u64>,
}

impl Recording {
    /// A backend without domains that never fails.
    #[must_use]
    pub const fn new(capabilities: Capabilities) -> Self {
        let state = State {
            domains: BTreeMap::new(),
            bound: BTreeMap::new(),
            targets: BTreeMap::new(),
            parked: Vec::new(),
        };
        let endpoints = BTreeMap::new();
        let memory = Vec::new();
        let unattached = BTreeSet::new();
        let calls = Vec::new();
        Self { capabilities, endpoints, state, memory, unattached, calls, fail_after: None }
    }

    /// Says what it can do for an endpoint from now on.
    pub fn offer(&mut self, endpoint: EndpointId, capabilities: EndpointCapabilities) {
        self.endpoints.insert(endpoint, capabilities);
    }

    /// Lets `successes` fallible calls pass, then fails one, once.
    pub const fn fail_after(&mut self, successes: u64) {
        self.fail_after = Some(successes);
    }

    /// True while a failure that was asked for has not happened.
    #[must_use]
    pub const fn failure_is_pending(&self) -> bool {
        self.fail_after.is_some()
    }

    /// What was asked, oldest first, failed calls left out.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Takes the record; the state stays.
    pub fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    /// What the calls have made.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The guest's memory: where each region starts, and its length, bytes.
    #[must_use]
    pub fn memory(&self) -> &[(PhysAddr, u64)] {
        &self.memory
    }

    /// Whether `requester` was last sent somewhere by [`HostIommu::send_unattached`], which is recorded as
    /// [`Call::Attach`].
    #[must_use]
    pub fn is_unattached(&self, requester: Requester) -> bool {
        self.unattached.contains(&requester)
    }

    fn may_fail(&mut self, call: &'static str) -> Result<(), HostError> {
        match self.fail_after {
            Some(0) => {
                self.fail_after = None;
                Err(HostError::Refused { call, source: io::Error::other("told to fail") })
            }
            Some(left) => {
                self.fail_after = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl HostIommu for Recording {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn endpoint_capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        self.endpoints.get(&endpoint).cloned().unwrap_or_default()
    }

    fn set_memory(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), HostError> {
        if !regions.is_empty() {
            self.may_fail("set_memory")?;
        }
        self.memory = regions.iter().map(|region| (region.gpa, region.bytes)).collect();
        Ok(())
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        self.may_fail("create_domain")?;
        self.calls.push(Call::CreateDomain(domain));
        let before = self.state.domains.insert(domain, BTreeMap::new());
        debug_assert_eq!(before, None, "domain {domain} made twice");
        Ok(())
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        let attached = self.state.targets.values().any(|target| *target == Target::Domain(domain));
        debug_assert!(!attached, "domain {domain} ended while attached");
        let parent = self
            .state
            .bound
            .iter()
            .any(|(child, (_, output))| *child != domain && *output == Output::Through(domain));
        debug_assert!(!parent, "domain {domain} ended while tables go through it");
        self.calls.push(Call::DestroyDomain(domain));
        self.state.domains.remove(&domain);
        self.state.bound.remove(&domain);
    }

    fn prepare(
        &mut self,
        domain: DomainId,
        role: Role,
        _: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        self.may_fail("prepare")?;
        self.calls.push(Call::Prepare(domain, role));
        Ok(())
    }

    fn bind(
        &mut self,
        domain: DomainId,
        table: &FirstTable,
        output: Output,
    ) -> Result<(), HostError> {
        self.may_fail("bind")?;
        self.calls.push(Call::Bind(domain, *table, output));
        let before = self.state.bound.insert(domain, (*table, output));
        debug_assert_eq!(before, None, "domain {domain} bound twice");
        Ok(())
    }

    fn unbind(&mut self, domain: DomainId) -> Result<(), HostError> {
        if self.state.targets.values().any(|target| *target == Target::Domain(domain)) {
            self.may_fail("unbind")?;
        }
        self.calls.push(Call::Unbind(domain));
        self.state.bound.remove(&domain);
        Ok(())
    }

    fn invalidate(&mut self, domain: DomainId, range: Option<IovaRange>) {
        self.calls.push(Call::Invalidate(domain, range));
    }

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        if target != Target::Blocked {
            self.may_fail("attach")?;
        }
        self.calls.push(Call::Attach(requester, target));
        self.unattached.remove(&requester);
        self.state.parked.retain(|parked| *parked != requester);
        match target {
            Target::Blocked => self.state.targets.remove(&requester),
            Target::Identity | Target::Domain(_) => self.state.targets.insert(requester, target),
        };
        Ok(())
    }

    fn send_unattached(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        self.attach(requester, target)?;
        self.unattached.insert(requester);
        Ok(())
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        self.may_fail("map")?;
        self.calls.push(Call::Map(domain, *mapping));
        let mappings = self.state.domains.entry(domain).or_default();
        mappings.insert(mapping.iova().start(), *mapping);
        Ok(())
    }

    fn unmap(&mut self, domain: DomainId, mapping: &Mapping) {
        self.calls.push(Call::Unmap(domain, *mapping));
        if let Some(mappings) = self.state.domains.get_mut(&domain) {
            let removed = mappings.remove(&mapping.iova().start());
            debug_assert_eq!(removed.as_ref(), Some(mapping), "unmapped what was not mapped");
        }
    }

    fn park(&mut self, requester: Requester) {
        self.calls.push(Call::Park(requester));
        if !self.state.parked.contains(&requester) {
            self.state.parked.push(requester);
        }
    }

    fn resume(&mut self, requester: Requester) {
        self.calls.push(Call::Resume(requester));
        self.state.parked.retain(|parked| *parked != requester);
    }

    fn withdraw_all(&mut self) {
        self.calls.push(Call::WithdrawAll);
    }

    fn readmit(&mut self) {
        self.calls.push(Call::Readmit);
    }

    fn sync(&mut self) {
        self.calls.push(Call::Sync);
    }
}
