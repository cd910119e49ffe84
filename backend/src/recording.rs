//! A backend that keeps everything in maps, records what was asked, and fails when told to.
//!
//! The model of the contract: tests compare other backends with it, and the state machine's undoing is
//! tested by letting the n-th fallible call fail.

use std::collections::BTreeMap;
use std::io;

use viommu_pasid::Requester;
use viommu_pgtable::{Access, Iova, Mapping, PhysAddr};

use crate::{Capabilities, DomainId, HostError, HostIommu, Target};

/// One call of [`HostIommu`], as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`HostIommu::create_domain`].
    CreateDomain(DomainId),
    /// [`HostIommu::destroy_domain`].
    DestroyDomain(DomainId),
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

/// The state that the calls so far have made: what two backends, or two moments, are compared by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The mappings of each domain, by first IOVA.
    pub domains: BTreeMap<DomainId, BTreeMap<Iova, Mapping>>,
    /// Where each requester goes; one that is missing is blocked.
    pub targets: BTreeMap<Requester, Target>,
    /// Whose accesses wait.
    pub parked: Vec<Requester>,
}

impl State {
    /// Where an access of one byte leads, or `None` if it is refused.
    #[must_use]
    pub fn translate(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        match self.targets.get(&requester)? {
            Target::Blocked => None,
            Target::Identity => Some(PhysAddr::new(iova.raw())),
            Target::Domain(domain) => {
                let (_, mapping) = self.domains.get(domain)?.range(..=iova).next_back()?;
                let usable = mapping.iova().contains(iova) && mapping.access().permits(access);
                let offset = iova.raw().checked_sub(mapping.iova().start().raw())?;
                usable.then(|| mapping.oa().checked_add(offset))?
            }
        }
    }
}

/// The recording backend.
#[derive(Debug)]
pub struct Recording {
    capabilities: Capabilities,
    state: State,
    calls: Vec<Call>,
    fail_after: Option<u64>,
}

impl Recording {
    /// A backend without domains that never fails.
    #[must_use]
    pub const fn new(capabilities: Capabilities) -> Self {
        let state =
            State { domains: BTreeMap::new(), targets: BTreeMap::new(), parked: Vec::new() };
        Self { capabilities, state, calls: Vec::new(), fail_after: None }
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
        self.calls.push(Call::DestroyDomain(domain));
        self.state.domains.remove(&domain);
    }

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        if target != Target::Blocked {
            self.may_fail("attach")?;
        }
        self.calls.push(Call::Attach(requester, target));
        self.state.parked.retain(|parked| *parked != requester);
        match target {
            Target::Blocked => self.state.targets.remove(&requester),
            Target::Identity | Target::Domain(_) => self.state.targets.insert(requester, target),
        };
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
