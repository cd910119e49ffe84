//! The guest IOMMU as a library.

pub mod iommu;
pub mod protocol;
