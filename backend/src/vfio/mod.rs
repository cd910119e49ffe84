//! Devices of the host, assigned to the guest with VFIO: the host's IOMMU translates.
//!
//! What it is: the books of what the guest has mapped and attached, over one of two kernel interfaces:
//! [`iommufd`] or [`type1`]. What it guarantees: what is unmapped or detached
//! is out of the host's tables when the call returns; what the kernel refuses to take out is cut off with
//! all its endpoints. What it leaves out: PASIDs, bound tables, faults (the host's kernel logs those).
//!
//! # Memory
//!
//! A mapping leads to guest memory, wholly: to anything else it is refused with
//! [`HostError::Unsupported`]. Memory that the VMM takes away is unmapped at once wherever a mapping leads
//! to it, whole mappings at a time; they come back with the memory. That costs a look at every mapping, and
//! happens when a DIMM is unplugged.

mod books;
mod error;
mod kernel;
mod leaving;
mod ram;
pub(crate) mod sys;
pub(crate) mod sysfs;

use std::collections::BTreeMap;

use viommu_pasid::EndpointId;

use crate::{iommufd, type1};
pub use books::Vfio;
pub use error::VfioError;
pub use kernel::Counters;
pub(crate) use kernel::{Contents, Kernel, Place};
pub(crate) use leaving::Leaving;
pub(crate) use ram::{Piece, Ram, Region};
pub use sysfs::{PciAddress, Reserved, ReservedKind};

/// The driver that gives devices to user space.
pub(crate) const VFIO_PCI: &str = "vfio-pci";

/// Devices that are ready, and what their endpoints must leave alone.
#[derive(Debug)]
pub struct Opened {
    /// The backend.
    pub vfio: Vfio,
    /// Reserved ranges of each endpoint, in ascending order.
    pub reserved: BTreeMap<EndpointId, Vec<Reserved>>,
}

/// The requests of `ioctl` that are used while the daemon serves: what a filter of system calls has to let
/// pass.
pub fn requests() -> impl Iterator<Item = u32> {
    iommufd::REQUESTS.into_iter().chain(type1::REQUESTS)
}

/// Which guest memory is pinned, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pin {
    /// All of it, once, when the VMM tells of it: a MAP pins nothing.
    #[default]
    Static,
    /// What is mapped, when it is mapped; all of it while an endpoint bypasses translation.
    Dynamic,
}

/// What becomes of a device that is attached to something already when the daemon starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStart {
    /// It goes where an endpoint goes that is attached to nothing.
    #[default]
    Boot,
    /// It keeps its mappings until the guest attaches it.
    Keep,
    /// It reaches nothing until the guest attaches it.
    Block,
}
