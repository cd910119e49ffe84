//! A guest's requests, from their bytes to what devices find in the tables.

use viommu::iommu::{EndpointSpec, Iommu, Settings, X86_MSI_WINDOW};
use viommu::protocol::{Decoded, Features, Request, Status, decode};
use viommu_backend::{DevicePlace, HostIommu, SoftwareConfig, SoftwareIommu};
use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::{EndpointId, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use super::guest_model::{Model, Rules};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "state_machine",
    claim: "whatever a guest asks: the statuses are a naive model's, and so is what devices find",
    longest: 1 << 10,
    run,
};

const ENDPOINTS: [EndpointId; 3] =
    [EndpointId::new(0x08), EndpointId::new(0x10), EndpointId::new(0x18)];

/// Nobody's.
const STRANGER: u32 = 0x99;

/// 256 table pages: a few large mappings of 4 KiB pages use them up.
const TABLE_BYTES: u64 = 1 << 20;

/// Table pages that are spoken for before the guest's mappings, at most.
const OTHER_PAGES: u64 = 128;

const PAGE: u64 = 4096;

/// Where pages are mapped: side by side, beside the interrupts' window, at the ends.
const STARTS: [u64; 8] =
    [0, 0x1000, 0x20_0000, 0x4000_0000, 0xfede_f000, 0xfeff_0000, 0x7fff_ffff_f000, 1 << 48];

/// Pages of a mapping.
const LENGTHS: [u64; 8] = [1, 1, 2, 16, 512, 513, 0x1000, 0x1_0000_0000];

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new(if input.u8() & 1 == 0 { Arch::Vtd } else { Arch::SmmuV3 });
    while !input.is_empty() {
        rig.step(&mut input, trace);
    }
}

/// A machine, and what it should be.
struct Rig {
    iommu: Iommu,
    host: SoftwareIommu,
    model: Model,
    /// Pages were freed that cannot be used before a sync.
    synced: bool,
}

impl Rig {
    fn new(arch: Arch) -> Self {
        let table_base = PhysAddr::new(1 << if arch == Arch::Vtd { 51 } else { 47 });
        let hub = HubConfig { arch, table_base, table_bytes: TABLE_BYTES, ..HubConfig::default() };
        let page_size_mask = Settings::DEFAULT_PAGE_SIZES;
        let config = SoftwareConfig { input_bits: 48, page_size_mask, hub };
        let mut host = SoftwareIommu::new(config).unwrap();
        for endpoint in ENDPOINTS {
            let place = DevicePlace { endpoint, pasid_bits: 0, socket: None };
            host.add_endpoint(&place).unwrap();
        }
        let settings = Settings { max_domains: 2, max_mappings: 6, ..Settings::default() };
        let specs = ENDPOINTS.into_iter().map(EndpointSpec::x86).collect();
        let rules = Rules {
            endpoints: ENDPOINTS.to_vec(),
            reserved: X86_MSI_WINDOW.range,
            input: settings.input,
            output_last: host.capabilities().output_last,
            max_domains: settings.max_domains,
            max_mappings: settings.max_mappings,
            writes_read: arch == Arch::SmmuV3,
        };
        let mut iommu = Iommu::new(settings, specs).unwrap();
        iommu.start(&mut host).unwrap();
        Self { iommu, host, model: Model::new(rules), synced: true }
    }

    fn step(&mut self, input: &mut Input<'_>, trace: &mut Trace) {
        match input.u8() % 16 {
            0 => self.sync(),
            1 => {
                let on = input.u8() & 1 != 0;
                if self.iommu.set_bypass(&mut self.host, on).is_ok() {
                    self.model.bypass = on;
                }
            }
            2 => {
                self.iommu.reset(&mut self.host);
                self.model.reset();
                self.synced = false;
            }
            _ => self.request(&wire(input), trace),
        }
        assert_eq!(self.iommu.domain_count(), self.model.domain_count());
        assert_eq!(self.iommu.mapping_count(), self.model.mappings().count());
    }

    fn sync(&mut self) {
        self.host.sync();
        self.synced = true;
    }

    fn request(&mut self, bytes: &[u8], trace: &mut Trace) {
        let decoded = decode(bytes, 4096, Features::STANDARD, Settings::DEFAULT_PROBE_SIZE);
        let Decoded::Request { kind, reply_bytes, request } = decoded else { return };
        let Ok(request) = request else { return };
        let reply = self.iommu.request(&mut self.host, &request);
        let mut answer = vec![0xff; reply_bytes];
        reply.encode(&mut answer);
        let status = reply.status();
        let tail = answer.last_chunk::<4>().copied();
        assert_eq!(tail, Some([status.raw(), 0, 0, 0]), "{request:?}");
        trace.reached((kind, status.raw(), self.iommu.domain_count(), self.iommu.mapping_count()));

        let before = self.model.clone();
        let expected = self.model.request(&request);
        if status == Status::NOMEM && expected != status {
            assert!(self.tables_may_be_full(), "NOMEM, but {expected:?} was to be expected");
            self.model = before;
        } else {
            assert_eq!(status, expected, "{request:?}");
        }
        self.synced &=
            !matches!(request, Request::Unmap(_) | Request::Detach(_) | Request::Attach(_));
        self.devices_find(&edges(&request));
    }

    /// Whether the mappings and the one that was just refused can need all table pages: each of them a
    /// page for 2 MiB, and three above at either end.
    fn tables_may_be_full(&self) -> bool {
        let pages = |mapping: &Mapping| mapping.iova().len_minus_one() / (512 * PAGE) + 8;
        let needed: u64 = self.model.mappings().map(pages).sum();
        !self.synced || needed + OTHER_PAGES > TABLE_BYTES / PAGE
    }

    /// The walks of all endpoints lead where the model says, at these addresses.
    fn devices_find(&self, iovas: &[u64]) {
        for (endpoint, iova) in
            ENDPOINTS.iter().flat_map(|e| iovas.iter().map(move |iova| (*e, *iova)))
        {
            for access in [Access::READ, Access::WRITE] {
                let found = self.host.translate(Requester::rid(endpoint), Iova::new(iova), access);
                let expected = self.model.translate(endpoint, iova, access);
                let found = found.map(PhysAddr::raw);
                assert_eq!(found, expected, "{access:?} of {endpoint} at {iova:#x}");
            }
        }
    }
}

/// Addresses at the ends of what a request is about.
fn edges(request: &Request) -> Vec<u64> {
    let of = |range: &IovaRange| {
        let (first, last) = (range.start().raw(), range.last().raw());
        vec![first.wrapping_sub(1), first, first + (last - first) / 2, last, last.wrapping_add(1)]
    };
    match request {
        Request::Map(map) => of(&map.iova),
        Request::Unmap(unmap) => of(&unmap.iova),
        _ => vec![0, 0x1000, 0x4000_0000],
    }
}

/// The bytes of a request, most of them sensible.
fn wire(input: &mut Input<'_>) -> Vec<u8> {
    let kind = 1 + input.u8() % 5;
    let mut bytes = vec![kind, 0, 0, 0];
    let domain = u32::from(input.u8() % 4);
    let endpoint = ENDPOINTS.map(EndpointId::raw).into_iter().chain([STRANGER]);
    let endpoint = endpoint.collect::<Vec<_>>()[usize::from(input.u8() % 4)];
    match kind {
        1 => words(&mut bytes, &[domain, endpoint, u32::from(input.u8().is_multiple_of(4)), 0]),
        2 => words(&mut bytes, &[domain, endpoint, 0, 0]),
        3 => {
            words(&mut bytes, &[domain]);
            let (first, last) = range(input);
            let output = (u64::from(input.u8()) << 12) | u64::from(input.u8()) << 40;
            [first, last, output].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            words(&mut bytes, &[u32::from(input.u8() % 4)]);
        }
        4 => {
            words(&mut bytes, &[domain]);
            let (first, last) = range(input);
            [first, last].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            words(&mut bytes, &[0]);
        }
        _ => {
            words(&mut bytes, &[endpoint]);
            bytes.extend([0; 64]);
        }
    }
    // now and then not sensible at all
    if input.u8() == 0xff {
        let place = usize::from(input.u8()) % bytes.len();
        bytes[place] ^= input.u8();
    }
    bytes
}

fn words(bytes: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
}

/// First and last address.
fn range(input: &mut Input<'_>) -> (u64, u64) {
    let first = input.pick(&STARTS) + u64::from(input.u8() % 8) * PAGE;
    (first, first.wrapping_add(input.pick(&LENGTHS) * PAGE).wrapping_sub(1))
}
