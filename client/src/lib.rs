//! The driver's side of virtio-iommu with auxiliary domains, for programs that are no kernel: in a VMM
//! that plays the guest, or inside a guest.
//!
//! It knows nothing of the device: no code is shared with the daemon, and the numbers of the wire are
//! written down here a second time, from the specification. So it checks that specification, too.
//!
//! ```no_run
//! use viommu_client::{Iommu, PasidChoice, Rights, features};
//! # use viommu_client::{Error, Transport};
//!
//! # fn private_pasid(transport: impl Transport, endpoint: u32, buffer: u64) -> Result<(), Error> {
//! let mut iommu = Iommu::start(transport, features::STANDARD | features::AUX)?;
//! iommu.aux_enable(endpoint)?;
//! // a domain of one's own, behind a PASID that the device chooses
//! let pasid = iommu.aux_attach(7, endpoint, PasidChoice::Any)?;
//! iommu.map(7, 0x1000..=0x1fff, buffer, Rights::ReadWrite)?;
//! // ... DMA tagged with `pasid` at 0x1000 reaches `buffer` ...
//! iommu.unmap(7, 0x1000..=0x1fff)?;
//! // ... and now nothing: the answer to UNMAP came when no device used it any more
//! iommu.aux_detach(7, endpoint, pasid)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Parts
//!
//! | part | what it is |
//! | --- | --- |
//! | [`Iommu`] | the driver: one method for each request, and the fault events |
//! | [`Request`], [`Answer`], [`Status`] | requests as values and as bytes, for tests of any of them |
//! | [`Property`], [`Fault`] | what PROBE and the event queue tell |
//! | [`Ring`] | a split virtqueue (virtio 1.4, 2.7) in pages of a [`Memory`] |
//! | [`Transport`], [`Memory`] | how the device is reached, and memory that it reaches |
//! | `vmm` (feature) | played by a VMM: vhost-user to the IOMMU, vfio-user to a PCI device |
//! | `sysfs` (feature) | inside a guest: virtio-pci and PCI functions through sysfs, pinned pages |
//! | [`engine`] | a driver for the DMA engine of the examples, whose queues have PASIDs |
//!
//! # What it guarantees
//!
//! A request is answered or fails within [`PATIENCE`]; nothing that the device answers makes it panic. A
//! reply counts only if its used length is that of the whole reply.
//!
//! # What it leaves out
//!
//! Interrupts: it looks at the used ring until something is there. Several requests at a time. Packed
//! rings. Page requests. The device is trusted as far as its memory goes: addresses are those of the
//! driver.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

mod bytes;
mod driver;
pub mod engine;
mod error;
mod event;
pub mod features;
mod function;
mod memory;
mod property;
mod request;
mod ring;
#[cfg(feature = "sysfs")]
pub mod sysfs;
mod transport;
#[cfg(feature = "vmm")]
pub mod vmm;

pub use driver::{Iommu, PATIENCE, PasidChoice, Rights};
pub use error::Error;
pub use event::Fault;
pub use function::Function;
pub use memory::{Memory, PAGE_BYTES};
pub use property::{AuxFlags, Property};
pub use request::{
    Answer, Attribute, BindTable, Invalidate, Output, PASID_ANY, Request, Scope, Status,
    TableFormat,
};
pub use ring::{Buffer, QUEUE_SIZE, QueuePlaces, Ring, Used};
pub use transport::{CONFIG_BYTES, Queue, Transport};
