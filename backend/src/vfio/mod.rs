//! Devices of the host, assigned to the guest with VFIO: the host's IOMMU translates.
//!
//! What it is: the books of what the guest has mapped and attached, over one of two kernel interfaces:
//! [`iommufd`] or [`type1`]. What it guarantees: what is unmapped or detached
//! is out of the host's tables when the call returns; what the kernel refuses to take out is cut off with
//! all its endpoints. What it leaves out: PASIDs, bound tables, faults (the host's kernel logs those).
//!
//! # Memory
//!
//! A mapping leads to guest memory, wholly, or to registers of a device, wholly: to anything else it is
//! refused with [`HostError::Unsupported`](crate::HostError::Unsupported). Memory that the VMM takes away is
//! unmapped at once wherever a mapping leads to it, whole mappings at a time; they come back with the memory.
//! That costs a look at every mapping, and happens when a DIMM is unplugged.
//!
//! # Registers
//!
//! Where the guest sees a device's registers, mappings for another device may lead there: peer-to-peer DMA.
//! For devices of ours [`BarWindow`] says where that is; a VMM that shares its own has them in the address
//! space that we copy from. Such a mapping is made when the guest asks for it and not before, whatever
//! [`Pin`] says, for a device's reset takes it away for good. What leads to a device's registers goes before
//! the device does.

mod books;
mod error;
mod guest;
mod kernel;
mod leaving;
mod ram;
mod reach;
mod registers;
pub(crate) mod sys;
pub(crate) mod sysfs;

use std::collections::BTreeMap;

use viommu_pasid::EndpointId;

use crate::{iommufd, type1};
pub(crate) use books::Start;
pub use books::Vfio;
pub use error::VfioError;
pub(crate) use guest::{Guest, Leads};
pub use kernel::Counters;
pub(crate) use kernel::{Contents, Kernel, NOWHERE, Place, refused};
pub(crate) use leaving::Leaving;
pub(crate) use ram::{Piece, Ram, Region};
pub(crate) use reach::Reach;
pub use registers::BarWindow;
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
