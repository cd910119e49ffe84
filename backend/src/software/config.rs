//! What a software IOMMU is made from.

use std::io;
use std::path::PathBuf;

use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::EndpointId;
use viommu_pasid::vtd::AddressWidth;
use viommu_pgtable::{ArmStage1, ArmStage2, Granule, OutOfTables, VtdSecond};

use super::layout::{Layout, SmmuV3, Vtd};
use crate::Capabilities;

/// Width of an output address of the SMMU, bits: what a 4 KiB granule reaches.
const SMMU_OUTPUT_BITS: u8 = 48;

/// The shape of a software IOMMU. Its architecture is the hub's.
#[derive(Debug, Clone, Copy)]
pub struct SoftwareConfig {
    /// Width of an IOVA: 39, 48 or, for VT-d, 57 bits.
    pub input_bits: u8,
    /// Leaf sizes, one bit each: 4 KiB, and any of 2 MiB and 1 GiB.
    pub page_size_mask: u64,
    /// The shared region and how device processes are treated.
    pub hub: HubConfig,
}

/// Where the device process of an endpoint connects.
#[derive(Debug, Clone)]
pub struct DevicePlace {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Width of its PASIDs; 0: untagged traffic only.
    pub pasid_bits: u8,
    /// The socket that its device process connects to; `None`: no device process.
    pub socket: Option<PathBuf>,
}

/// Why a software IOMMU could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoftwareError {
    /// VT-d has no second level of this width.
    #[error("VT-d translates 39, 48 or 57 bits, not {bits}")]
    Width {
        /// The width asked for.
        bits: u8,
    },
    /// SMMUv3 has no stage 1 of this width.
    #[error("SMMUv3 translates 39 or 48 bits, not {bits}")]
    SmmuWidth {
        /// The width asked for.
        bits: u8,
    },
    /// There is no such set of page sizes.
    #[error("pages have 4 KiB, with or without 2 MiB and 1 GiB, not {mask:#x}")]
    PageSizes {
        /// The mask asked for.
        mask: u64,
    },
    /// The tables would lie where the architecture's pointers do not reach.
    #[error("tables of {bytes:#x} bytes at {base:#x} end above 2^{bits}")]
    TableBase {
        /// The first address of the tables.
        base: u64,
        /// Their size.
        bytes: u64,
        /// Width of a pointer, bits.
        bits: u8,
    },
    /// The endpoint was added before.
    #[error("endpoint {endpoint} is there already")]
    TwiceThere {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// The table memory is too small for the endpoints.
    #[error("table memory: {0}")]
    OutOfTables(#[from] OutOfTables),
    /// The structures have no place for the endpoint.
    #[error("endpoint {endpoint}: {why}")]
    NoPlace {
        /// The endpoint.
        endpoint: EndpointId,
        /// Why.
        why: String,
    },
    /// The shared memory could not be made.
    #[error("shared memory: {0}")]
    Region(#[source] io::Error),
    /// The socket of an endpoint could not be made.
    #[error("endpoint {endpoint}: listen on {}: {source}", path.display())]
    Listen {
        /// The endpoint.
        endpoint: EndpointId,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SoftwareConfig {
    /// The structures, and what follows for the guest.
    pub(super) fn resolve(&self) -> Result<(Layout, Capabilities), SoftwareError> {
        let mask = self.page_size_mask;
        let layout = match self.hub.arch {
            Arch::Vtd => self.vtd()?,
            Arch::SmmuV3 => self.smmuv3()?,
        };
        let pointer_bits = self.hub.arch.address_bits();
        let (base, bytes) = (self.hub.table_base.raw(), self.hub.table_bytes);
        let last = base.checked_add(bytes.saturating_sub(1));
        if last.is_none_or(|last| last >> pointer_bits != 0) {
            return Err(SoftwareError::TableBase { base, bytes, bits: pointer_bits });
        }
        // tables live from table_base on: no mapping may lead there
        let output_last = base.saturating_sub(1);
        let input_bits = self.input_bits;
        Ok((layout, Capabilities { page_size_mask: mask, input_bits, output_last }))
    }

    fn vtd(&self) -> Result<Layout, SoftwareError> {
        let (bits, mask) = (self.input_bits, self.page_size_mask);
        let width = AddressWidth::from_bits(bits).ok_or(SoftwareError::Width { bits })?;
        let format = VtdSecond::new(bits, mask).ok_or(SoftwareError::PageSizes { mask })?;
        Ok(Layout::Vtd(Vtd::new(format, width)))
    }

    /// The tables use all sizes that a 4 KiB granule has, whatever the mask; what the guest maps is
    /// a multiple of the mask's smallest.
    fn smmuv3(&self) -> Result<Layout, SoftwareError> {
        let (bits, mask) = (self.input_bits, self.page_size_mask);
        let offered = [39, 48].contains(&bits);
        let format = ArmStage1::new(Granule::K4, bits, SMMU_OUTPUT_BITS).ok();
        let format = format.filter(|_| offered).ok_or(SoftwareError::SmmuWidth { bits })?;
        // a stage 2 of 39 bits has three levels, of 48 bits four
        let levels = if bits == 39 { 3 } else { 4 };
        let below = ArmStage2::new(Granule::K4, levels, bits, SMMU_OUTPUT_BITS).ok();
        let below = below.ok_or(SoftwareError::SmmuWidth { bits })?;
        if mask.trailing_zeros() < u32::from(Granule::K4.lg2()) || mask == 0 {
            return Err(SoftwareError::PageSizes { mask });
        }
        Ok(Layout::SmmuV3(SmmuV3::new(format, below)))
    }
}
