//! The guest IOMMU as a library.

pub mod device;
pub mod iommu;
pub mod protocol;
