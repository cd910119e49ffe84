//! All PASIDs of an endpoint over 64 Ki domains: the time of an attach as they grow, and the memory.
//!
//! `cargo bench -p viommu-backend --bench scale`. Each domain holds one mapping.
#![allow(clippy::unwrap_used, reason = "a bench")]

use std::time::Instant;

use viommu_backend::{DevicePlace, DomainId, HostIommu, SoftwareConfig, SoftwareIommu, Target};
use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

const ENDPOINT: EndpointId = EndpointId::new(0x20);
const DOMAINS: u32 = 1 << 16;
const PASIDS: u32 = (1 << 20) - 1;
/// Requests that a guest sends at once.
const BATCH: u32 = 256;

fn software(arch: Arch) -> SoftwareIommu {
    let (table_base, table_bytes) = (PhysAddr::new(1 << 46), 4 << 30);
    let hub = HubConfig { arch, table_base, table_bytes, ..HubConfig::default() };
    let config = SoftwareConfig { input_bits: 48, page_size_mask: 0x4020_1000, hub };
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

fn main() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut host = software(arch);
        let iova = IovaRange::with_len(Iova::new(0), 4096).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(0x5000), Access::RW).unwrap();
        for domain in 0..DOMAINS {
            host.create_domain(DomainId::new(domain)).unwrap();
            host.map(DomainId::new(domain), &mapping).unwrap();
        }
        let (before, mut since, mut last) = (own_bytes(), Instant::now(), 0);
        for pasid in 1..=PASIDS {
            let requester = Requester { endpoint: ENDPOINT, pasid: Pasid::new(pasid) };
            host.attach(requester, Target::Domain(DomainId::new(pasid % DOMAINS))).unwrap();
            if pasid % BATCH == 0 {
                host.sync();
            }
            if pasid.is_power_of_two() && pasid >= 1 << 14 || pasid == PASIDS {
                let each = since.elapsed() / (pasid - last);
                println!("{arch:?}: up to {pasid} PASIDs: {each:?} an attach");
                (since, last) = (Instant::now(), pasid);
            }
        }
        let each = (own_bytes() - before) / u64::from(PASIDS);
        println!("{arch:?}: {each} bytes for each attached PASID");
    }
}
