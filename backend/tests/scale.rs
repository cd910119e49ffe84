//! What many PASIDs and domains cost, beside the table memory.
#![allow(clippy::unwrap_used, reason = "tests")]

use viommu_backend::{DevicePlace, DomainId, HostIommu, SoftwareConfig, SoftwareIommu, Target};
use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

const ENDPOINT: EndpointId = EndpointId::new(0x20);
const DOMAINS: u32 = 1 << 10;
/// Enough to see what one costs in what the kernel tells of memory.
const PASIDS: u32 = 1 << 14;
/// Requests that a guest sends at once.
const BATCH: u32 = 256;
/// The project's bound for backend and state machine together.
const MOST_BYTES: u64 = 200;

fn software(arch: Arch) -> SoftwareIommu {
    let table_base = PhysAddr::new(1 << 47);
    let hub = HubConfig { arch, table_base, ..HubConfig::default() };
    let page_size_mask = 0x4020_1000;
    let config = SoftwareConfig { input_bits: 48, page_size_mask, hub };
    let mut software = SoftwareIommu::new(config).unwrap();
    let place = DevicePlace { endpoint: ENDPOINT, pasid_bits: 20, socket: None };
    software.add_endpoint(&place).unwrap();
    software
}

/// Bytes of this process that are nobody else's: the region is not among them.
fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn tagged(pasid: u32) -> Requester {
    Requester { endpoint: ENDPOINT, pasid: Pasid::new(pasid) }
}

/// Both flavours in one test: another one's memory would be counted.
#[test]
fn an_attached_pasid_costs_less_than_its_share_beyond_its_entry() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut host = software(arch);
        for domain in 0..DOMAINS {
            host.create_domain(DomainId::new(domain)).unwrap();
        }
        let iova = IovaRange::with_len(Iova::new(0), 4096).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(0x5000), Access::RW).unwrap();
        host.map(DomainId::new(7), &mapping).unwrap();
        let before = own_bytes();
        for pasid in 1..=PASIDS {
            host.attach(tagged(pasid), Target::Domain(DomainId::new(pasid % DOMAINS))).unwrap();
            if pasid % BATCH == 0 {
                host.sync();
            }
        }
        let each = own_bytes().saturating_sub(before) / u64::from(PASIDS);
        println!("{arch:?}: {each} bytes for each attached PASID");
        assert!(each < MOST_BYTES, "{arch:?}: {each} bytes");
        for (pasid, leads) in [(7, Some(0x5000)), (DOMAINS + 7, Some(0x5000)), (PASIDS, None)] {
            let found = host.translate(tagged(pasid), Iova::new(0), Access::READ);
            assert_eq!(found.map(PhysAddr::raw), leads, "{pasid}");
        }
    }
}
