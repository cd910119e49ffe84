//! The guest IOMMU as a library.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod device;
pub mod iommu;
pub mod protocol;
pub mod sandbox;
pub mod viot;
