//! The state machine and a naive model, driven by the same random steps.
//!
//! The model keeps lists and scans them. After each step replies must be the same, and what the
//! host holds must be what the model says: domains, mappings, where each endpoint goes, who waits.

use std::collections::BTreeMap;

use proptest::prelude::*;
use viommu_backend::State;

use super::*;
use crate::protocol::{ResvKind, ResvMem};

const ENDPOINTS: [EndpointId; 3] = [A, B, EndpointId::new(0x20)];
const MAX_DOMAINS: usize = 2;
const MAX_MAPPINGS: usize = 6;
/// Pages that can be mapped: 1 to 40.
const INPUT: (u64, u64) = (1, 40);

/// B has a reserved region that the others have not.
fn reserved(endpoint: EndpointId) -> Vec<ResvMem> {
    let region = |first, last| ResvMem { kind: ResvKind::Reserved, range: pages(first, last) };
    if endpoint == B { vec![region(10, 11), region(30, 30)] } else { vec![region(30, 30)] }
}

#[derive(Debug, Clone)]
enum Step {
    Request(Request),
    SetBypass(bool),
    Park,
    Resume,
    Reset,
    FrontEndGone,
    FunctionReset(EndpointId),
    FunctionStarted(EndpointId),
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
        1 => endpoint.prop_map(|endpoint| Request::Probe(Probe { endpoint })),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let endpoint = prop::sample::select(ENDPOINTS.to_vec());
    prop_oneof![
        40 => request().prop_map(Step::Request),
        1 => any::<bool>().prop_map(Step::SetBypass),
        2 => Just(Step::Park),
        3 => Just(Step::Resume),
        1 => Just(Step::Reset),
        1 => Just(Step::FrontEndGone),
        2 => endpoint.clone().prop_map(Step::FunctionReset),
        1 => endpoint.prop_map(Step::FunctionStarted),
    ]
}

#[derive(Debug)]
struct ModelEndpoint {
    id: EndpointId,
    attached: Option<DomainId>,
    quiesced: bool,
    lent: bool,
}

/// Kind of each domain, all mappings in one list, endpoints in another.
#[derive(Debug)]
struct Model {
    bypass: bool,
    parked: bool,
    endpoints: Vec<ModelEndpoint>,
    kinds: Vec<(DomainId, bool)>,
    mappings: Vec<(DomainId, Mapping)>,
}

impl Model {
    fn new() -> Self {
        let endpoint = |id| ModelEndpoint { id, attached: None, quiesced: false, lent: false };
        Self {
            bypass: true,
            parked: false,
            endpoints: ENDPOINTS.into_iter().map(endpoint).collect(),
            kinds: Vec::new(),
            mappings: Vec::new(),
        }
    }

    fn kind(&self, id: DomainId) -> Option<bool> {
        self.kinds.iter().find(|(known, _)| *known == id).map(|(_, bypass)| *bypass)
    }

    fn place(&self, id: EndpointId) -> Option<usize> {
        self.endpoints.iter().position(|endpoint| endpoint.id == id)
    }

    fn members(&self, id: DomainId) -> impl Iterator<Item = &ModelEndpoint> {
        self.endpoints.iter().filter(move |endpoint| endpoint.attached == Some(id))
    }

    fn mappings_of(&self, id: DomainId) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(move |(owner, _)| *owner == id).map(|(_, mapping)| mapping)
    }

    fn bury_the_dead(&mut self) {
        let alive = |id: DomainId| self.endpoints.iter().any(|e| e.attached == Some(id));
        self.kinds.retain(|(id, _)| alive(*id));
        self.mappings.retain(|(id, _)| alive(*id));
    }

    fn request(&mut self, request: &Request) -> Status {
        if self.parked {
            return Status::DEVERR;
        }
        match request {
            Request::Attach(attach) => self.attach(attach),
            Request::Detach(detach) => self.detach(detach),
            Request::Map(map) => self.map(map),
            Request::Unmap(unmap) => self.unmap(unmap),
            Request::Probe(probe) => match self.place(probe.endpoint) {
                Some(_) => Status::OK,
                None => Status::NOENT,
            },
        }
    }

    fn attach(&mut self, attach: &Attach) -> Status {
        let Some(place) = self.place(attach.endpoint) else { return Status::NOENT };
        let old = self.endpoints[place].attached;
        match self.kind(attach.domain) {
            Some(bypass) if bypass != attach.bypass => return Status::INVAL,
            Some(_) if old == Some(attach.domain) => return Status::OK,
            Some(_) => {
                let hits = |region: ResvMem| {
                    self.mappings_of(attach.domain).any(|m| m.iova().overlaps(&region.range))
                };
                if reserved(attach.endpoint).into_iter().any(hits) {
                    return Status::UNSUPP;
                }
            }
            None => {
                let stay = |(id, _): &&(DomainId, bool)| {
                    self.members(*id).any(|member| member.id != attach.endpoint)
                };
                if self.kinds.iter().filter(stay).count() >= MAX_DOMAINS {
                    return Status::NOMEM;
                }
                self.kinds.push((attach.domain, attach.bypass));
            }
        }
        self.endpoints[place].attached = Some(attach.domain);
        self.bury_the_dead();
        Status::OK
    }

    fn detach(&mut self, detach: &Detach) -> Status {
        let Some(place) = self.place(detach.endpoint) else { return Status::NOENT };
        if self.endpoints[place].attached != Some(detach.domain) {
            return Status::INVAL;
        }
        self.endpoints[place].attached = None;
        self.bury_the_dead();
        Status::OK
    }

    fn map(&mut self, map: &Map) -> Status {
        match self.kind(map.domain) {
            None => return Status::NOENT,
            Some(true) => return Status::INVAL,
            Some(false) => {}
        }
        let (start, last) = (u128::from(map.iova.start().raw()), u128::from(map.iova.last().raw()));
        let oa = u128::from(map.oa.raw());
        let ragged = [start, last + 1, oa].iter().any(|at| at % 4096 != 0);
        let outside = start < u128::from(INPUT.0 << 12) || last >= u128::from((INPUT.1 + 1) << 12);
        if ragged || outside || oa + (last - start) > u128::from(HOST.output_last) {
            return Status::RANGE;
        }
        let regions = self.members(map.domain).flat_map(|member| reserved(member.id));
        let taken = regions.map(|region| region.range);
        let taken = taken.chain(self.mappings_of(map.domain).map(Mapping::iova));
        if taken.into_iter().any(|range| range.overlaps(&map.iova)) {
            return Status::INVAL;
        }
        if self.mappings_of(map.domain).count() >= MAX_MAPPINGS {
            return Status::NOMEM;
        }
        let mapping = Mapping::new(map.iova, map.oa, map.access).unwrap();
        self.mappings.push((map.domain, mapping));
        Status::OK
    }

    fn unmap(&mut self, unmap: &Unmap) -> Status {
        match self.kind(unmap.domain) {
            None => return Status::NOENT,
            Some(true) => return Status::INVAL,
            Some(false) => {}
        }
        let touched = |m: &Mapping| m.iova().overlaps(&unmap.iova);
        if self.mappings_of(unmap.domain).any(|m| touched(m) && !unmap.iova.covers(&m.iova())) {
            return Status::RANGE;
        }
        self.mappings.retain(|(id, mapping)| *id != unmap.domain || !touched(mapping));
        Status::OK
    }

    fn reset(&mut self) {
        self.parked = false;
        for endpoint in &mut self.endpoints {
            (endpoint.attached, endpoint.lent) = (None, false);
        }
        self.bury_the_dead();
    }

    fn park(&mut self) {
        if !self.parked {
            self.parked = true;
            for endpoint in &mut self.endpoints {
                endpoint.lent = endpoint.quiesced && endpoint.attached.is_some();
            }
        }
    }

    fn resume(&mut self) {
        self.parked = false;
        self.endpoints.iter_mut().for_each(|endpoint| endpoint.lent = false);
    }

    fn function_reset(&mut self, id: EndpointId) {
        let parked = self.parked;
        for endpoint in self.endpoints.iter_mut().filter(|endpoint| endpoint.id == id) {
            endpoint.quiesced = true;
            endpoint.lent |= parked && endpoint.attached.is_some();
        }
    }

    /// What the host has to hold.
    fn host(&self) -> State {
        let mut state = State::default();
        for (id, _) in self.kinds.iter().filter(|(_, bypass)| !bypass) {
            let usable = self.mappings_of(*id).filter(|mapping| !mapping.access().is_empty());
            let by_start: BTreeMap<_, _> = usable.map(|m| (m.iova().start(), *m)).collect();
            state.domains.insert(*id, by_start);
        }
        for endpoint in &self.endpoints {
            let through = endpoint.attached.filter(|_| !endpoint.lent);
            let target = match through.map(|id| (id, self.kind(id).unwrap())) {
                Some((id, false)) => Target::Domain(id),
                Some((_, true)) => Target::Identity,
                None if self.bypass => Target::Identity,
                None => continue,
            };
            state.targets.insert(rid(endpoint.id), target);
        }
        let waits = |endpoint: &&ModelEndpoint| {
            self.parked && endpoint.attached.is_some() && !endpoint.lent
        };
        state.parked = self.endpoints.iter().filter(waits).map(|e| rid(e.id)).collect();
        state
    }
}

fn rig() -> Rig {
    let settings = Settings {
        input: pages(INPUT.0, INPUT.1),
        max_domains: MAX_DOMAINS,
        max_mappings: MAX_MAPPINGS,
        boot_bypass: true,
        ..settings()
    };
    let spec = |id| EndpointSpec { id, reserved: reserved(id) };
    Rig::with_endpoints(settings, ENDPOINTS.into_iter().map(spec).collect())
}

/// Takes `step` on both; the statuses of a request must agree.
fn take(rig: &mut Rig, model: &mut Model, step: &Step) -> Result<(), TestCaseError> {
    match step {
        Step::Request(request) => prop_assert_eq!(rig.request(request), model.request(request)),
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
            model.endpoints.iter_mut().filter(|e| e.id == *id).for_each(|e| e.quiesced = false);
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
        }
    }

    #[test]
    fn a_refused_request_after_any_history_changes_nothing(
        steps in prop::collection::vec(step(), 1..60),
        last in request(),
        nth in 0..3_u64,
    ) {
        let (mut rig, mut model) = (rig(), Model::new());
        for step in &steps {
            take(&mut rig, &mut model, step)?;
        }
        let before = rig.snapshot();
        rig.host.fail_after(nth);
        let status = rig.request(&last);
        if rig.host.failure_is_pending() {
            prop_assert_eq!(status, model.request(&last));
        } else {
            prop_assert_eq!(status, Status::IOERR);
            prop_assert_eq!(rig.snapshot(), before);
        }
    }
}
