//! DMA translation out of shared memory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

pub mod abi;
mod conn;
mod device;
mod drain;
mod fault;
mod greet;
mod hub;
#[cfg(feature = "vm-memory")]
mod iova_memory;
mod link;
mod message;
#[cfg(test)]
mod models;
mod path;
mod pieces;
mod pin;
mod reader;
mod region;
mod section;
mod shm;
mod sync;
mod sys;
mod tlb;
mod view;
mod withdrawn;

pub use abi::{Arch, State};
pub use conn::ReaderCounters;
pub use device::{ConnectError, Device, NoFreeSlot, Notice};
pub use drain::DrainReport;
pub use fault::{AccessFault, FaultClass, FaultReason, FaultRecord};
pub use greet::MAX_CONNECTIONS_PER_ENDPOINT;
pub use hub::{Counters, DeviceEvent, Hub, HubConfig, StuckPolicy};
#[cfg(feature = "vm-memory")]
pub use iova_memory::IovaMemory;
pub use pieces::{Piece, Pieces};
pub use pin::{Pin, PinsFull};
pub use reader::{Guard, Reader, Refused};
pub use region::Region;
pub use withdrawn::Withdrawn;
