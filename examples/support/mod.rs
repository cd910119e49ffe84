//! What PCI devices served over vfio-user share, whatever they do.
//!
//! | file | what it is |
//! | --- | --- |
//! | `function` | a PCI function: configuration space, MSI-X table, registers of a [`Device`] |
//! | `config_space` | header, BARs, capabilities |
//! | `express` | the capabilities of a function that tags its DMA with PASIDs |
//! | `interrupts` | INTA# and MSI-X as the VMM's eventfds |
//! | `ram` | guest memory, from DMA_MAP and DMA_UNMAP |
//! | `dma` | the way of each DMA: plain guest memory, or translated by the IOMMU's daemon |
//! | `iotlb` | the connection to that daemon |
//! | `server` | the socket: one VMM after the other |
//! | `termination` | ends with exit code 0 on SIGTERM and SIGINT |
//!
//! A device implements [`Device`], does its DMA through a [`Channel`] and raises [`Interrupts`]; it
//! sees nothing of vfio-user. What is left out: hot reset, power management, migration, and DMA
//! without bus mastering is not refused.

mod bytes;
mod config_space;
mod dma;
mod express;
mod function;
mod interrupts;
mod iotlb;
mod ram;
#[cfg(test)]
pub(crate) mod rig;
mod server;
mod termination;

pub(crate) use bytes::{merge_register, read_register};
pub(crate) use config_space::{Identity, LayoutError};
pub(crate) use dma::{Channel, DmaPort, NoAccess, StopFlag, View};
pub(crate) use function::{Device, Function, Spec};
pub(crate) use interrupts::Interrupts;
pub(crate) use server::serve;
