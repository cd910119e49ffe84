//! The state machine and a naive model, driven by the same random steps.
//!
//! After each step replies must be the same, and what the host holds must be what the model says:
//! domains, mappings, tables, where each requester goes, who waits.

mod naive;

use proptest::prelude::*;
use viommu_backend::{EndpointCapabilities, Output};
use viommu_pasid::Pasid;

use self::naive::Model;
use super::*;
use crate::protocol::{
    Attribute, AuxAttach, AuxDetach, BindTable, GuestTable, Invalidate, PasidChoice, ResvKind,
    ResvMem,
};

pub(super) const ENDPOINTS: [EndpointId; 3] = [A, B, C];
const MAX_DOMAINS: usize = 3;
const MAX_MAPPINGS: usize = 6;
/// Pages that can be mapped: 1 to 40.
pub(super) const INPUT: (u64, u64) = (1, 40);

/// B has a reserved region that the others have not.
pub(super) fn reserved(endpoint: EndpointId) -> Vec<ResvMem> {
    let region = |first, last| ResvMem { kind: ResvKind::Reserved, range: pages(first, last) };
    if endpoint == B { vec![region(10, 11), region(30, 30)] } else { vec![region(30, 30)] }
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Request(Request),
    SetBypass(bool),
    Park,
    Resume,
    Reset,
    FrontEndGone,
    FunctionReset(EndpointId),
    FunctionStarted(EndpointId),
    Sync,
}

/// A has PASIDs of 2 bits, each with a second level of its own; B of 3 bits, with one second level
/// for all, and Arm's tables too; C has none, and no parents.
fn capabilities(endpoint: EndpointId) -> EndpointCapabilities {
    match endpoint {
        A => like_vtd(2),
        B => EndpointCapabilities { formats: vec![VTD_TABLES, ARM_TABLES], ..like_smmu(3) },
        _ => EndpointCapabilities { parent: false, ..like_vtd(0) },
    }
}

fn extension() -> impl Strategy<Value = Request> {
    let endpoint = prop_oneof![19 => prop::sample::select(ENDPOINTS[..2].to_vec()), 1 => Just(C),
                               1 => Just(STRANGER)];
    let id = || (0..4_u32).prop_map(domain);
    let number = || (1..8_u32).prop_map(|raw| Pasid::new(raw).unwrap());
    let pasid = prop_oneof![
        4 => Just(PasidChoice::Any),
        4 => number().prop_map(PasidChoice::This),
        1 => Just(PasidChoice::TooWide),
    ];
    let wanted = prop_oneof![
        (id(), endpoint.clone()).prop_map(|(id, endpoint)| Attribute::AuxId(id, endpoint)),
        endpoint.clone().prop_map(Attribute::AuxCapable),
        endpoint.clone().prop_map(Attribute::AuxEnabled),
        endpoint.clone().prop_map(Attribute::AuxMax),
        id().prop_map(Attribute::Nested),
    ];
    let table = prop_oneof![
        8 => Just(vtd_table(0x7000)),
        4 => Just(arm_table(0x7000)),
        1 => Just(vtd_table(0x7008)),
        1 => Just(vtd_table(1 << 47)),
        1 => Just(GuestTable::VtdFirst { root: PhysAddr::new(0x7000), five_levels: true }),
        1 => Just(GuestTable::Unknown),
    ];
    let output = prop_oneof![1 => Just(Output::GuestPhysical), 2 => id().prop_map(Output::Through)];
    let range = prop::option::of(Just(pages(3, 4)));
    prop_oneof![
        3 => endpoint.clone().prop_map(Request::AuxEnable),
        1 => endpoint.clone().prop_map(Request::AuxDisable),
        12 => (id(), endpoint.clone(), pasid, prop::bool::weighted(0.05)).prop_map(
            |(domain, endpoint, pasid, page_request)| {
                Request::AuxAttach(AuxAttach { domain, endpoint, pasid, page_request })
            }
        ),
        4 => (id(), endpoint, prop::option::weighted(0.95, number())).prop_map(
            |(domain, endpoint, pasid)| Request::AuxDetach(AuxDetach { domain, endpoint, pasid })
        ),
        3 => wanted.prop_map(Request::GetAttr),
        6 => (id(), table, output).prop_map(|(domain, table, output)| {
            Request::BindTable(BindTable { domain, table, output })
        }),
        3 => id().prop_map(Request::UnbindTable),
        1 => (id(), range)
            .prop_map(|(domain, range)| Request::Invalidate(Invalidate { domain, range })),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let endpoint = prop_oneof![9 => prop::sample::select(ENDPOINTS.to_vec()), 1 => Just(STRANGER)];
    let id = 0..4_u32;
    let range = (0..44_u64, prop_oneof![4 => 0..4_u64, 1 => 0..44_u64])
        .prop_map(|(first, more)| pages(first, first + more));
    let ragged = (0..0x2_c000_u64, 0..0x3000_u64)
        .prop_map(|(start, more)| IovaRange::new(Iova::new(start), Iova::new(start + more)));
    let range = prop_oneof![9 => range, 1 => ragged.prop_map(Option::unwrap)];
    let access = (0..4_u8).prop_map(Access::from_bits_truncate);
    let oa = prop_oneof![
        8 => (0..64_u64).prop_map(output),
        1 => Just(PhysAddr::new(HOST.output_last - 0xfff)),
        1 => Just(PhysAddr::new(u64::MAX - 0xfff)),
        1 => Just(PhysAddr::new(0x800)),
    ];
    prop_oneof![
        3 => (endpoint.clone(), id.clone(), prop::bool::weighted(0.2))
            .prop_map(|(endpoint, id, bypass)| attach(endpoint, id, bypass)),
        1 => (endpoint.clone(), id.clone())
            .prop_map(|(endpoint, id)| Request::Detach(Detach { domain: domain(id), endpoint })),
        6 => (id.clone(), range.clone(), oa, access).prop_map(|(id, iova, oa, access)| {
            Request::Map(Map { domain: domain(id), iova, oa, access, mmio: false })
        }),
        4 => (id, range).prop_map(|(id, iova)| unmap(id, iova)),
        1 => endpoint.prop_map(probe),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let endpoint = prop::sample::select(ENDPOINTS.to_vec());
    prop_oneof![
        40 => request().prop_map(Step::Request),
        40 => extension().prop_map(Step::Request),
        3 => Just(Step::Sync),
        1 => any::<bool>().prop_map(Step::SetBypass),
        2 => Just(Step::Park),
        3 => Just(Step::Resume),
        1 => Just(Step::Reset),
        1 => Just(Step::FrontEndGone),
        2 => endpoint.clone().prop_map(Step::FunctionReset),
        1 => endpoint.prop_map(Step::FunctionStarted),
    ]
}

fn rig() -> Rig {
    let settings = Settings {
        input: pages(INPUT.0, INPUT.1),
        max_domains: MAX_DOMAINS,
        max_mappings: MAX_MAPPINGS,
        boot_bypass: true,
        ..settings()
    };
    let spec = |id| (EndpointSpec { id, reserved: reserved(id) }, capabilities(id));
    Rig::with_capabilities(settings, ENDPOINTS.map(spec))
}

/// Takes `step` on both; the statuses of a request must agree.
fn take(rig: &mut Rig, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match step {
        Step::Request(request @ Request::Probe(_)) => {
            prop_assert_eq!(rig.request(request), model.request(request).status());
        }
        Step::Request(request) => {
            let reply = rig.iommu.request(&mut rig.host, request);
            prop_assert_eq!(reply, model.request(request), "{:?}", request);
        }
        Step::Sync => {
            rig.host.sync();
            rig.iommu.synced();
            model.synced();
        }
        Step::SetBypass(on) => {
            rig.iommu.set_bypass(&mut rig.host, *on).unwrap();
            model.bypass = *on;
        }
        Step::Park => {
            rig.iommu.park(&mut rig.host);
            model.park();
        }
        Step::Resume => {
            rig.iommu.resume(&mut rig.host);
            model.resume();
        }
        Step::Reset => {
            rig.iommu.reset(&mut rig.host);
            model.reset();
        }
        Step::FrontEndGone => {
            rig.iommu.front_end_gone(&mut rig.host);
            model.bypass = true;
            model.reset();
        }
        Step::FunctionReset(id) => {
            rig.iommu.function_reset(&mut rig.host, *id);
            model.function_reset(*id);
        }
        Step::FunctionStarted(id) => {
            rig.iommu.function_started(*id);
            model.function_started(*id);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn state_machine_and_model_agree(steps in prop::collection::vec(step(), 1..200)) {
        let (mut rig, mut model) = (rig(), Model::new());
        for step in &steps {
            take(&mut rig, &mut model, step)?;
            let mut host = rig.host.state().clone();
            host.parked.sort();
            prop_assert_eq!(host, model.host(), "after {:?}", step);
            prop_assert_eq!(rig.iommu.domain_count(), model.kinds.len());
            prop_assert_eq!(rig.iommu.mapping_count(), model.mappings.len());
            prop_assert_eq!(rig.iommu.pasid_count(), model.pasid_count());
        }
    }

    #[test]
    fn a_refused_request_after_any_history_changes_nothing(
        steps in prop::collection::vec(step(), 1..60),
        last in prop_oneof![request(), extension()],
        nth in 0..5_u64,
    ) {
        let (mut rig, mut model) = (rig(), Model::new());
        for step in &steps {
            take(&mut rig, &mut model, step)?;
        }
        let before = rig.snapshot();
        rig.host.fail_after(nth);
        let status = rig.request(&last);
        if rig.host.failure_is_pending() {
            prop_assert_eq!(status, model.request(&last).status());
        } else {
            prop_assert_eq!(status, Status::IOERR);
            prop_assert_eq!(rig.snapshot(), before);
        }
    }
}
