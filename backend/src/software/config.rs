//! What a software IOMMU is made from.

use std::io;
use std::path::PathBuf;

use viommu_iotlb::HubConfig;
use viommu_pasid::EndpointId;
use viommu_pasid::vtd::AddressWidth;
use viommu_pgtable::{OutOfTables, VtdSecond};

use crate::Capabilities;

/// The shape of a software IOMMU.
#[derive(Debug, Clone, Copy)]
pub struct SoftwareConfig {
    /// Width of an IOVA: 39, 48 or 57 bits.
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
    /// VT-d has no such set of page sizes.
    #[error("VT-d has pages of 4 KiB, with or without 2 MiB and 1 GiB, not {mask:#x}")]
    PageSizes {
        /// The mask asked for.
        mask: u64,
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
    /// The format, the width of its PASID entries, and what follows for the guest.
    pub(super) fn resolve(&self) -> Result<(VtdSecond, AddressWidth, Capabilities), SoftwareError> {
        let bits = self.input_bits;
        let width = AddressWidth::from_bits(bits).ok_or(SoftwareError::Width { bits })?;
        let mask = self.page_size_mask;
        let format = VtdSecond::new(bits, mask).ok_or(SoftwareError::PageSizes { mask })?;
        // tables live from table_base on: no mapping may lead there
        let output_last = self.hub.table_base.raw().saturating_sub(1);
        Ok((format, width, Capabilities { page_size_mask: mask, input_bits: bits, output_last }))
    }
}
