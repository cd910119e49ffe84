//! The state machine's front: what others call.

use std::collections::BTreeMap;
use std::sync::Arc;

use viommu_backend::{Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, Target};
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::{IovaRange, PhysAddr};

use super::decide::Plan;
use super::pasids::Pasids;
use super::settings::{EndpointSpec, Settings, SettingsError};
use super::state::{Domain, Endpoint, Space};
use crate::protocol::{
    ConfigSpace, FaultReason, Features, Probe, Properties, Reply, Request, Status,
};

/// What the rings are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host was not told of the endpoints yet.
    Made,
    /// Requests can come.
    Running,
    /// The rings are stopped, and why is not known: a pause, or a reset.
    Parked,
}

/// The IOMMU of one guest. See the [module](super).
#[derive(Debug)]
pub struct Iommu {
    pub(super) settings: Settings,
    pub(super) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(super) domains: BTreeMap<DomainId, Domain>,
    /// What the host can do for endpoints, each kind once; known from [`Iommu::start`] on.
    pub(super) kinds: Vec<Arc<EndpointCapabilities>>,
    /// PASIDs that were detached, and whose users may not have drained yet.
    pub(super) freed: Vec<(EndpointId, Pasid)>,
    /// Highest address that a mapping may lead to; the host's word, known from [`Iommu::start`] on.
    pub(super) output_last: PhysAddr,
    pub(super) bypass: bool,
    pub(super) phase: Phase,
    /// Requests that the host refused for other reasons than room.
    refusals: u64,
}

/// A host that cannot serve the settings, or did not accept the endpoints.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Mappings would be finer than the host can make.
    #[error("page size {granule:#x} is too small: the host's smallest is {host:#x}")]
    Granule {
        /// The smallest page size of the settings, bytes.
        granule: u64,
        /// The host's, bytes.
        host: u64,
    },
    /// The guest could use addresses that the host cannot translate.
    #[error("the input range {input} is too wide: the host translates {host_bits} bits")]
    Input {
        /// The range of the settings.
        input: IovaRange,
        /// What the host translates.
        host_bits: u8,
    },
    /// A PROBE could not tell all that there is to tell of an endpoint.
    #[error(
        "endpoint {endpoint} has {bytes} bytes of properties, but a probe tells {probe_size} at most"
    )]
    Properties {
        /// Which.
        endpoint: EndpointId,
        /// What its properties take, bytes.
        bytes: usize,
        /// The settings' room for them, bytes.
        probe_size: u32,
    },
    /// The host refused an endpoint.
    #[error("endpoint {endpoint}: {source}")]
    Endpoint {
        /// Which.
        endpoint: EndpointId,
        /// Why.
        source: HostError,
    },
}

impl Iommu {
    /// An IOMMU for these endpoints; nothing is attached. [`start`](Self::start) comes next.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings, endpoints: Vec<EndpointSpec>) -> Result<Self, SettingsError> {
        settings.check()?;
        let mut by_id = BTreeMap::new();
        for spec in endpoints {
            spec.check(settings.probe_size)?;
            if by_id.insert(spec.id, Endpoint::new(spec.reserved)).is_some() {
                return Err(SettingsError::EndpointTwice(spec.id));
            }
        }
        Ok(Self {
            bypass: settings.boot_bypass,
            settings,
            endpoints: by_id,
            domains: BTreeMap::new(),
            kinds: Vec::new(),
            freed: Vec::new(),
            output_last: PhysAddr::new(u64::MAX),
            phase: Phase::Made,
            refusals: 0,
        })
    }

    /// Learns what the host can do and sends each endpoint's DMA where `boot_bypass` says.
    ///
    /// # Errors
    /// [`StartError`]. The host may have been told of some endpoints; the IOMMU answers no request.
    pub fn start(&mut self, host: &mut dyn HostIommu) -> Result<(), StartError> {
        self.check_host(&host.capabilities())?;
        self.learn_capabilities(host)?;
        let target = self.unattached_target();
        for (&endpoint, state) in &mut self.endpoints {
            host.send_unattached(Requester::rid(endpoint), target)
                .map_err(|source| StartError::Endpoint { endpoint, source })?;
            state.target = target;
        }
        self.output_last = PhysAddr::new(host.capabilities().output_last);
        self.phase = Phase::Running;
        Ok(())
    }

    /// The host can do less than at the [`start`](Self::start), for it has learnt what its devices are:
    /// the input range is cut to that. The guest does not run yet.
    ///
    /// # Errors
    /// [`StartError`]: what is left is not enough for the settings.
    pub fn narrow(&mut self, host: &dyn HostIommu) -> Result<(), StartError> {
        let capabilities = host.capabilities();
        self.settings.narrow(capabilities.input_bits);
        self.check_host(&capabilities)
    }

    /// Answers a request: see the [module](super) for what wins where several statuses fit.
    ///
    /// DEVERR, and nothing happens, before [`start`](Self::start) and between [`park`](Self::park)
    /// and [`resume`](Self::resume) or [`reset`](Self::reset): which of the two the rings' restart
    /// was, has to be said first.
    pub fn request(&mut self, host: &mut dyn HostIommu, request: &Request) -> Reply<'_> {
        if self.phase != Phase::Running {
            return Status::DEVERR.into();
        }
        let plan = match self.decide(request) {
            Ok(plan) => plan,
            Err(status) => return status.into(),
        };
        match self.act(host, &plan) {
            Ok(()) => self.reply(&plan),
            Err(error) => self.refused(request, &error).into(),
        }
    }

    /// What the device offers a driver: the standard's features, and those of the extension that an
    /// endpoint can make use of. The same at every call once [`start`](Self::start) is done.
    #[must_use]
    pub fn features(&self) -> Features {
        let with_pasids = || self.kinds.iter().filter(|kind| kind.pasid_bits > 0);
        let mut features = Features::STANDARD;
        features.set(Features::AUX, with_pasids().next().is_some());
        features.set(Features::BIND_TABLE, with_pasids().any(|kind| !kind.formats.is_empty()));
        features
    }

    /// Has the memory fetched that a MAP or UNMAP will need; changes nothing. For requests that are known
    /// before it is their turn: the waits for their memory are one wait then.
    pub fn look_ahead(&self, host: &dyn HostIommu, request: &Request) {
        let (domain, start) = match request {
            Request::Map(map) => (map.domain, map.iova.start()),
            Request::Unmap(unmap) => (unmap.domain, unmap.iova.start()),
            _ => return,
        };
        let Some(Domain { space: Space::Mapped(mapped), .. }) = self.domains.get(&domain) else {
            return;
        };
        if mapped.mappings.look_ahead(start) {
            host.look_ahead(domain, start);
        }
    }

    /// What the configuration space says now.
    #[must_use]
    pub fn config(&self) -> ConfigSpace {
        ConfigSpace {
            page_size_mask: self.settings.page_size_mask,
            input: self.settings.input,
            domains: self.settings.domains.clone(),
            probe_size: self.settings.probe_size,
            bypass: self.bypass,
        }
    }

    /// Whether DMA of an endpoint that is attached to nothing goes where it says.
    #[must_use]
    pub const fn bypass(&self) -> bool {
        self.bypass
    }

    /// Why the host refused an access of `requester`: it is attached to nothing, or what it is
    /// attached to does not lead there. `None` for an endpoint that does not exist.
    #[must_use]
    pub fn fault_reason(&self, requester: Requester) -> Option<FaultReason> {
        let endpoint = self.endpoints.get(&requester.endpoint)?;
        let attached = match requester.pasid {
            None => endpoint.attached.is_some(),
            Some(pasid) => endpoint.pasids.is_served(pasid),
        };
        let through_domain = attached && !endpoint.lent_to_firmware;
        Some(if through_domain { FaultReason::Mapping } else { FaultReason::Domain })
    }

    /// PASIDs that are attached, of all endpoints.
    #[must_use]
    pub fn pasid_count(&self) -> usize {
        self.endpoints.values().map(|endpoint| endpoint.pasids.len()).sum()
    }

    /// Domains that exist, bypass domains too.
    #[must_use]
    pub fn domain_count(&self) -> usize {
        self.domains.len()
    }

    /// Mappings that exist, of all domains.
    #[must_use]
    pub fn mapping_count(&self) -> usize {
        let mapped = |domain: &Domain| match &domain.space {
            Space::Bypass => 0,
            Space::Mapped(mapped) => mapped.mappings.len(),
        };
        self.domains.values().map(mapped).sum()
    }

    /// Where DMA of an endpoint that is attached to nothing goes.
    pub(super) const fn unattached_target(&self) -> Target {
        if self.bypass { Target::Identity } else { Target::Blocked }
    }

    /// The status of what the host refused. A guest may bring a host to refuse without end: the log
    /// gets a line for the first time, the second, the fourth and so on.
    fn refused(&mut self, request: &Request, error: &HostError) -> Status {
        let status = status_of(error);
        if status == Status::NOMEM {
            log::debug!("{request:?}: {error}");
            return status;
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals.is_power_of_two() {
            log::warn!("the host refused {request:?} (refusal {}): {error}", self.refusals);
        }
        status
    }

    /// The answer to a request for which `plan` is done.
    fn reply(&self, plan: &Plan) -> Reply<'_> {
        match *plan {
            Plan::Probe(probe) => self.properties(probe),
            Plan::AuxAttach(_, pasid, _) | Plan::AuxAttached(pasid) => Reply::pasid(pasid),
            Plan::Value(value) => Reply::value(value),
            _ => Status::OK.into(),
        }
    }

    fn properties(&self, probe: Probe) -> Reply<'_> {
        let Some(endpoint) = self.endpoints.get(&probe.endpoint) else {
            return Status::NOENT.into();
        };
        let all = endpoint.properties();
        Reply::properties(Properties {
            aux: all.aux.filter(|_| probe.aux),
            formats: if probe.formats { all.formats } else { &[] },
            ..all
        })
    }

    /// Asks the host what it can do for each endpoint.
    fn learn_capabilities(&mut self, host: &dyn HostIommu) -> Result<(), StartError> {
        let probe_size = self.settings.probe_size;
        for (&id, endpoint) in &mut self.endpoints {
            let capabilities = host.endpoint_capabilities(id);
            let known = self.kinds.iter().find(|kind| ***kind == capabilities);
            endpoint.capabilities = known.map_or_else(|| Arc::new(capabilities), Arc::clone);
            endpoint.pasids = Pasids::new(endpoint.capabilities.pasid_bits);
            if !self.kinds.iter().any(|kind| Arc::ptr_eq(kind, &endpoint.capabilities)) {
                self.kinds.push(Arc::clone(&endpoint.capabilities));
            }
            let bytes = endpoint.properties().bytes();
            if u32::try_from(bytes).is_ok_and(|bytes| bytes <= probe_size) {
                continue;
            }
            return Err(StartError::Properties { endpoint: id, bytes, probe_size });
        }
        Ok(())
    }

    fn check_host(&self, host: &Capabilities) -> Result<(), StartError> {
        let lowest_bit = |mask: u64| mask & mask.wrapping_neg();
        let (granule, least) =
            (lowest_bit(self.settings.page_size_mask), lowest_bit(host.page_size_mask));
        if granule < least {
            return Err(StartError::Granule { granule, host: least });
        }
        let input = self.settings.input;
        let past_last = u32::from(host.input_bits);
        if input.last().raw().checked_shr(past_last).is_some_and(|above| above != 0) {
            return Err(StartError::Input { input, host_bits: host.input_bits });
        }
        Ok(())
    }
}

/// The one place where a host's refusal becomes a status.
fn status_of(error: &HostError) -> Status {
    match error {
        HostError::OutOfTables(_) | HostError::OutOfMappings => Status::NOMEM,
        HostError::Unsupported(_) => Status::UNSUPP,
        _ => Status::IOERR,
    }
}
