//! From (endpoint, PASID) to a page table, and the numbers themselves.
//!
//! What it is: PASIDs and their allocation, and the structures that lead a request to its page tables:
//! VT-d's scalable-mode root, context, PASID directory and PASID entries.
//! What it guarantees: layouts as the manuals give them, entries packed and unpacked without loss, lookups
//! that take a fixed number of loads whatever the bytes say.
//! What it leaves out: page tables (`viommu-pgtable`), virtio, the host's kernel.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

mod alloc;
mod endpoint;
mod leaf;
pub mod vtd;

pub use alloc::{Allocator, ReserveError};
pub use endpoint::{EndpointId, Pasid, Requester};
