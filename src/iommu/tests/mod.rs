//! The state machine against the recording backend.

mod endpoint_rows;
mod failure;
mod lifecycle;
mod mapping_rows;
mod model;
mod pasids;
mod scale;
mod store;
mod tables;
mod tables_follow;

use viommu_backend::{
    Call, Capabilities, DomainId, EndpointCapabilities, FirstFormat, HostIommu, Output, Recording,
    Role, TableFormat, Target,
};
use viommu_pasid::smmuv3::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pasid::{EndpointId, FirstTable, Pasid, Requester};
use viommu_pgtable::{Access, ArmStage1, Granule, Iova, IovaRange, Mapping, PhysAddr};

use super::{EndpointSpec, Iommu, Settings, X86_MSI_WINDOW};
use crate::protocol::{
    Attach, AuxAttach, AuxDetach, AuxProperty, BindTable, Detach, Features, GuestTable, Invalidate,
    Map, PasidChoice, Probe, Properties, Reply, Request, Status, Unmap,
};

const A: EndpointId = EndpointId::new(0x10);
const B: EndpointId = EndpointId::new(0x18);
const C: EndpointId = EndpointId::new(0x20);
const STRANGER: EndpointId = EndpointId::new(0x99);

/// What the host can do: 47 bits of output, so that an output can be too high.
const HOST: Capabilities =
    Capabilities { page_size_mask: 0x4020_1000, input_bits: 64, output_last: (1 << 47) - 1 };

/// VT-d tables of four levels, with roots below the host's 47 bits.
const VTD_TABLES: TableFormat = TableFormat {
    format: FirstFormat::VtdFirst,
    input_bits: 48,
    output_bits: 47,
    page_size_mask: HOST.page_size_mask,
};

/// Arm tables, likewise.
const ARM_TABLES: TableFormat = TableFormat { format: FirstFormat::ArmStage1, ..VTD_TABLES };

/// An endpoint each of whose PASIDs has a second level of its own.
fn like_vtd(pasid_bits: u8) -> EndpointCapabilities {
    EndpointCapabilities {
        pasid_bits,
        own_second_level: true,
        parent: true,
        identity: true,
        formats: vec![VTD_TABLES],
    }
}

/// An endpoint that has one second level for all of its traffic.
fn like_smmu(pasid_bits: u8) -> EndpointCapabilities {
    EndpointCapabilities {
        own_second_level: false,
        formats: vec![ARM_TABLES],
        ..like_vtd(pasid_bits)
    }
}

fn vtd_table(root: u64) -> GuestTable {
    GuestTable::VtdFirst { root: PhysAddr::new(root), five_levels: false }
}

fn arm_table(root: u64) -> GuestTable {
    GuestTable::ArmStage1 { root: PhysAddr::new(root), tcr: arm_format().tcr(), mair: 0xff }
}

fn arm_format() -> ArmStage1 {
    ArmStage1::new(Granule::K4, 48, 48).unwrap()
}

/// What a host is told of a table that can be bound.
fn host_table(table: &GuestTable) -> FirstTable {
    match *table {
        GuestTable::VtdFirst { root, five_levels } => {
            FirstTable::Vtd(FirstLevel { root, five_levels, controls: FirstControls::default() })
        }
        GuestTable::ArmStage1 { root, mair, .. } => {
            let table = Stage1Table::new(root, arm_format()).unwrap();
            FirstTable::Arm(ContextDescriptor {
                tables: Stage1Tables::lower_only(table),
                asid: 0,
                mair,
                controls: ContextControls::default(),
            })
        }
        GuestTable::Unknown => panic!("no host is told of it"),
    }
}

/// Settings of which the whole 64-bit space can be mapped.
fn settings() -> Settings {
    Settings { input: pages(0, u64::MAX >> 12), boot_bypass: false, ..Settings::default() }
}

/// The range from the first byte of page `first` to the last of page `last`.
fn pages(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(first << 12), Iova::new(last << 12 | 0xfff)).unwrap()
}

fn rid(endpoint: EndpointId) -> Requester {
    Requester::rid(endpoint)
}

fn pasid(raw: u32) -> Pasid {
    Pasid::new(raw).unwrap()
}

fn tagged(endpoint: EndpointId, raw: u32) -> Requester {
    Requester { endpoint, pasid: Some(pasid(raw)) }
}

fn domain(id: u32) -> DomainId {
    DomainId::new(id)
}

/// Pages `first..=last` to where 4 GiB lie above them, readable and writable.
fn rw(first: u64, last: u64) -> Mapping {
    Mapping::new(pages(first, last), output(first), Access::RW).unwrap()
}

fn output(page: u64) -> PhysAddr {
    PhysAddr::new((page << 12) + (1 << 32))
}

/// An IOMMU with the endpoints A and B, started, and its host.
struct Rig {
    iommu: Iommu,
    host: Recording,
}

impl Rig {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: Settings) -> Self {
        Self::with_endpoints(settings, vec![EndpointSpec::x86(A), EndpointSpec::x86(B)])
    }

    fn with_endpoints(settings: Settings, endpoints: Vec<EndpointSpec>) -> Self {
        let plain = |spec| (spec, EndpointCapabilities::default());
        Self::with_capabilities(settings, endpoints.into_iter().map(plain))
    }

    /// The same for endpoints for which the host can do more.
    fn with_capabilities(
        settings: Settings,
        endpoints: impl IntoIterator<Item = (EndpointSpec, EndpointCapabilities)>,
    ) -> Self {
        let mut host = Recording::new(HOST);
        let offer = |(spec, capabilities): (EndpointSpec, _)| {
            host.offer(spec.id, capabilities);
            spec
        };
        let endpoints = endpoints.into_iter().map(offer).collect();
        let mut iommu = Iommu::new(settings, endpoints).unwrap();
        iommu.start(&mut host).unwrap();
        host.take_calls();
        Self { iommu, host }
    }

    /// A is attached to domain 1, which has the mappings of pages 0..=9 and 20..=29.
    fn attached() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.attach(A, 1), Status::OK);
        assert_eq!(rig.map(1, 0, 9), Status::OK);
        assert_eq!(rig.map(1, 20, 29), Status::OK);
        rig.calls();
        rig
    }

    /// Takes the record of the calls, [`Call::Prepare`] left out: it changes no translation.
    fn calls(&mut self) -> Vec<Call> {
        let mut calls = self.host.take_calls();
        calls.retain(|call| !matches!(call, Call::Prepare(..)));
        calls
    }

    fn request(&mut self, request: &Request) -> Status {
        self.iommu.request(&mut self.host, request).status()
    }

    fn attach(&mut self, endpoint: EndpointId, id: u32) -> Status {
        self.request(&attach(endpoint, id, false))
    }

    fn attach_bypass(&mut self, endpoint: EndpointId, id: u32) -> Status {
        self.request(&attach(endpoint, id, true))
    }

    fn detach(&mut self, endpoint: EndpointId, id: u32) -> Status {
        self.request(&Request::Detach(Detach { domain: domain(id), endpoint }))
    }

    fn map(&mut self, id: u32, first: u64, last: u64) -> Status {
        self.request(&map(id, pages(first, last), output(first)))
    }

    fn unmap(&mut self, id: u32, first: u64, last: u64) -> Status {
        self.request(&unmap(id, pages(first, last)))
    }

    fn aux_attach(&mut self, endpoint: EndpointId, id: u32, raw: u32) -> Status {
        self.request(&aux_attach(endpoint, id, PasidChoice::This(pasid(raw))))
    }

    fn aux_detach(&mut self, endpoint: EndpointId, id: u32, raw: u32) -> Status {
        let pasid = Some(pasid(raw));
        self.request(&Request::AuxDetach(AuxDetach { domain: domain(id), endpoint, pasid }))
    }

    fn probe(&mut self, endpoint: EndpointId) -> Reply<'_> {
        self.iommu.request(&mut self.host, &probe(endpoint))
    }

    /// Everything that there is to compare of before and after.
    fn snapshot(&self) -> (String, viommu_backend::State) {
        let Iommu { endpoints, domains, bypass, phase, freed, .. } = &self.iommu;
        let state = format!("{endpoints:?} {domains:?} {bypass} {phase:?} {freed:?}");
        (state, self.host.state().clone())
    }

    /// Asserts that `request` is refused with `status`, and that nothing at all changes.
    fn refuses(&mut self, request: &Request, status: Status) {
        let before = self.snapshot();
        let calls = self.host.calls().len();
        assert_eq!(self.request(request), status, "{request:?}");
        assert_eq!(self.snapshot(), before, "{request:?}");
        assert_eq!(
            self.host.calls().len(),
            calls,
            "{request:?} was refused before the host saw it"
        );
    }
}

fn attach(endpoint: EndpointId, id: u32, bypass: bool) -> Request {
    Request::Attach(Attach { domain: domain(id), endpoint, bypass })
}

fn aux_attach(endpoint: EndpointId, id: u32, pasid: PasidChoice) -> Request {
    let page_request = false;
    Request::AuxAttach(AuxAttach { domain: domain(id), endpoint, pasid, page_request })
}

/// As a driver without the extension asks.
fn probe(endpoint: EndpointId) -> Request {
    Request::Probe(Probe { endpoint, aux: false, formats: false })
}

fn map(id: u32, iova: IovaRange, oa: PhysAddr) -> Request {
    Request::Map(Map { domain: domain(id), iova, oa, access: Access::RW, mmio: false })
}

fn unmap(id: u32, iova: IovaRange) -> Request {
    Request::Unmap(Unmap { domain: domain(id), iova })
}

fn attached_call(endpoint: EndpointId, target: Target) -> Call {
    Call::Attach(rid(endpoint), target)
}
