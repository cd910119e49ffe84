//! Where translations take effect: the trait [`HostIommu`] and what implements it.
//!
//! What it is: the door between the state machine, which decides, and the places where DMA really happens.
//! What it guarantees: every call either takes effect as a whole or changes nothing; what a call withdrew
//! is out of use once [`HostIommu::sync`] has returned, and not before.
//! What it leaves out: virtio's rules. Who calls has checked them: ranges do not overlap, domains exist.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

mod host;
mod ioctl;
pub mod iommufd;
mod mixed;
mod recording;
pub mod software;
mod state;
pub mod type1;
pub mod vfio;

pub use host::{
    Capabilities, DomainId, EndpointCapabilities, FirstFormat, HostError, HostIommu, MemoryRegion,
    Output, Role, TableFormat, Target,
};
pub use mixed::Mixed;
pub use recording::{Call, Recording};
pub use software::{DevicePlace, SoftwareConfig, SoftwareError, SoftwareIommu};
pub use state::State;
