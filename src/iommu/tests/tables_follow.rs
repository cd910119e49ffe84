//! The software backend under the state machine: whatever it decides, both flavours of the tables
//! follow.
//!
//! The same random steps go to two state machines, one over the software backend and one over the
//! recording one. Replies must be the same, so the software backend refuses nothing that the state
//! machine lets pass; and its tables must lead where the record says, for untagged DMA and each PASID.

use std::time::Duration;

use proptest::prelude::*;
use viommu_backend::{DevicePlace, SoftwareConfig, SoftwareIommu};
use viommu_iotlb::{Arch, HubConfig, StuckPolicy};

use super::model::{ENDPOINTS, INPUT, Step, reserved, step};
use super::*;

/// Width of the PASIDs of A and B; C has none.
const PASID_BITS: u8 = 3;

/// One state machine and its host.
struct Half<H> {
    iommu: Iommu,
    host: H,
}

impl<H: HostIommu> Half<H> {
    fn new(mut host: H) -> Self {
        let settings = Settings {
            input: pages(INPUT.0, INPUT.1),
            max_domains: 3,
            max_mappings: 6,
            ..settings()
        };
        let specs = ENDPOINTS.map(|id| EndpointSpec { id, reserved: reserved(id) });
        let mut iommu = Iommu::new(settings, specs.to_vec()).unwrap();
        iommu.start(&mut host).unwrap();
        Self { iommu, host }
    }

    /// Takes a step; the reply to a request.
    fn take(&mut self, step: &Step) -> Option<Reply<'_>> {
        let Self { iommu, host } = self;
        match step {
            Step::Request(request) => return Some(iommu.request(host, request)),
            Step::SetBypass(on) => iommu.set_bypass(host, *on).unwrap(),
            Step::Park => iommu.park(host),
            Step::Resume => iommu.resume(host),
            Step::Reset => iommu.reset(host),
            Step::FrontEndGone => iommu.front_end_gone(host),
            Step::FunctionReset(id) => iommu.function_reset(host, *id),
            Step::FunctionStarted(id) => iommu.function_started(*id),
            Step::Sync => {
                host.sync();
                iommu.synced();
            }
        }
        None
    }
}

/// The software backend with the model's endpoints.
fn software(arch: Arch) -> SoftwareIommu {
    let table_base = PhysAddr::new(if arch == Arch::Vtd { 1 << 51 } else { 1 << 47 });
    let (stuck, policy) = (Duration::from_secs(1), StuckPolicy::Disconnect);
    let hub = HubConfig { arch, table_base, table_bytes: 16 << 20, stuck, policy };
    let page_size_mask = HOST.page_size_mask;
    let mut host =
        SoftwareIommu::new(SoftwareConfig { input_bits: 48, page_size_mask, hub }).unwrap();
    for endpoint in ENDPOINTS {
        let pasid_bits = if endpoint == C { 0 } else { PASID_BITS };
        host.add_endpoint(&DevicePlace { endpoint, pasid_bits, socket: None }).unwrap();
    }
    host
}

/// A recording backend that offers what `host` offers.
fn like(host: &SoftwareIommu) -> Recording {
    let mut recording = Recording::new(host.capabilities());
    for endpoint in ENDPOINTS {
        recording.offer(endpoint, host.endpoint_capabilities(endpoint));
    }
    recording
}

/// Whether untagged DMA has to fault although it is told to bypass: AX44.
fn is_held_back(record: &Recording, requester: Requester) -> bool {
    let state = record.state();
    let goes_below = |target: &Target| match target {
        Target::Domain(id) => {
            state.bound.get(id).is_some_and(|(_, output)| *output != Output::GuestPhysical)
        }
        Target::Blocked | Target::Identity => false,
    };
    let mut all = state.targets.iter();
    !record.endpoint_capabilities(requester.endpoint).own_second_level
        && state.targets.get(&requester) == Some(&Target::Identity)
        && all.any(|(other, to)| other.endpoint == requester.endpoint && goes_below(to))
}

/// The tables lead where the record says: each requester, a byte of each page, reading and writing.
fn same_translations(
    arch: Arch,
    software: &SoftwareIommu,
    record: &Recording,
) -> Result<(), TestCaseError> {
    let pasids = || [None].into_iter().chain((1..1 << PASID_BITS).map(|raw| Some(pasid(raw))));
    let requesters = ENDPOINTS.into_iter().flat_map(|id| pasids().map(move |pasid| (id, pasid)));
    for (endpoint, pasid) in requesters {
        let requester = Requester { endpoint, pasid };
        let held_back = is_held_back(record, requester);
        for page in 0..INPUT.1 + 4 {
            let iova = Iova::new(page << 12 | 0x123);
            let [reads, writes] = [Access::READ, Access::WRITE].map(|access| {
                let expected = record.state().translate(requester, iova, access);
                (software.translate(requester, iova, access), expected.filter(|_| !held_back))
            });
            prop_assert_eq!(writes.0, writes.1, "{:?} writes {:?}", requester, iova);
            // stage 1 lets reads pass where writes do
            if arch == Arch::Vtd || writes.1.is_none() {
                prop_assert_eq!(reads.0, reads.1, "{:?} reads {:?}", requester, iova);
            }
        }
    }
    Ok(())
}

fn follow(arch: Arch, steps: &[Step]) -> Result<(), TestCaseError> {
    let host = software(arch);
    let mut record = Half::new(like(&host));
    let mut real = Half::new(host);
    for step in steps {
        prop_assert_eq!(real.take(step), record.take(step), "{:?}", step);
        same_translations(arch, &real.host, &record.host)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn vtds_tables_follow_every_decision(steps in prop::collection::vec(step(), 1..80)) {
        follow(Arch::Vtd, &steps)?;
    }

    #[test]
    fn smmuv3s_tables_follow_every_decision(steps in prop::collection::vec(step(), 1..80)) {
        follow(Arch::SmmuV3, &steps)?;
    }
}
