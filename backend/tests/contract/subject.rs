//! What the contract is held against: each backend, and where an access leads behind it.

use viommu_backend::{
    DevicePlace, DomainId, HostIommu, Recording, SoftwareConfig, SoftwareError, SoftwareIommu,
};
use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::{EndpointId, Pasid, Requester, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, TableMemory};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PASID_BITS: u8 = 10;
pub(crate) const ENDPOINTS: [EndpointId; 3] =
    [EndpointId::new(0x20), EndpointId::new(0x28), EndpointId::new(0x1_0108)];

/// A backend that can be asked where an access leads.
pub(crate) trait Subject: HostIommu {
    fn leads_to(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr>;

    /// The same, through tables in `guest` memory as well.
    fn leads_with(
        &self,
        guest: &dyn TableMemory,
        requester: Requester,
        iova: Iova,
        access: Access,
    ) -> Option<PhysAddr>;

    /// Itself, to be called.
    fn as_host(&mut self) -> &mut dyn HostIommu;

    /// Whether a write-only mapping cannot be read. Arm's stage 1 has no way to say that (M6).
    fn forbids_reads(&self) -> bool;
}

impl Subject for Recording {
    fn leads_to(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        self.state().translate(requester, iova, access)
    }

    fn leads_with(
        &self,
        guest: &dyn TableMemory,
        requester: Requester,
        iova: Iova,
        access: Access,
    ) -> Option<PhysAddr> {
        self.state().translate_with(guest, requester, iova, access)
    }

    fn as_host(&mut self) -> &mut dyn HostIommu {
        self
    }

    fn forbids_reads(&self) -> bool {
        true
    }
}

impl Subject for SoftwareIommu {
    fn leads_to(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        self.translate(requester, iova, access)
    }

    fn leads_with(
        &self,
        guest: &dyn TableMemory,
        requester: Requester,
        iova: Iova,
        access: Access,
    ) -> Option<PhysAddr> {
        self.translate_with(guest, requester, iova, access)
    }

    fn as_host(&mut self) -> &mut dyn HostIommu {
        self
    }

    fn forbids_reads(&self) -> bool {
        matches!(self.structures(0), Some(Structures::Vtd { .. }))
    }
}

pub(crate) fn try_software(arch: Arch, table_bytes: u64) -> Result<SoftwareIommu, SoftwareError> {
    let table_base = PhysAddr::new(match arch {
        Arch::SmmuV3 => 1 << 47,
        Arch::Vtd => 1 << 51,
    });
    let hub = HubConfig { arch, table_base, table_bytes, ..HubConfig::default() };
    let page_size_mask = 0x4020_1000;
    let mut software = SoftwareIommu::new(SoftwareConfig { input_bits: 48, page_size_mask, hub })?;
    for endpoint in ENDPOINTS {
        software.add_endpoint(&DevicePlace { endpoint, pasid_bits: PASID_BITS, socket: None })?;
    }
    Ok(software)
}

pub(crate) fn software_of(arch: Arch, table_bytes: u64) -> SoftwareIommu {
    try_software(arch, table_bytes).unwrap()
}

pub(crate) fn software(table_bytes: u64) -> SoftwareIommu {
    software_of(Arch::Vtd, table_bytes)
}

pub(crate) fn smmuv3(table_bytes: u64) -> SoftwareIommu {
    software_of(Arch::SmmuV3, table_bytes)
}

pub(crate) fn recording() -> Recording {
    let capabilities = software(2 << 20).capabilities();
    Recording::new(capabilities)
}

pub(crate) fn all() -> [Box<dyn Subject>; 3] {
    [Box::new(recording()), Box::new(software(1 << 26)), Box::new(smmuv3(1 << 26))]
}

pub(crate) fn rid(n: usize) -> Requester {
    Requester::rid(ENDPOINTS[n])
}

pub(crate) fn pasid(n: usize, pasid: u32) -> Requester {
    Requester { endpoint: ENDPOINTS[n], pasid: Pasid::new(pasid) }
}

pub(crate) fn mapping(page: u64, pages: u64, to_page: u64, access: Access) -> Mapping {
    let iova = IovaRange::with_len(Iova::new(page * PAGE), pages * PAGE).unwrap();
    Mapping::new(iova, PhysAddr::new(to_page * PAGE), access).unwrap()
}

pub(crate) const ONE: DomainId = DomainId::new(1);
pub(crate) const TWO: DomainId = DomainId::new(2);
