//! From (endpoint, PASID) to a page table, and the numbers themselves.
//!
//! # What it is
//!
//! PASIDs and their allocation ([`Allocator`]), and the structures that lead a request to its page
//! tables, for two architectures:
//!
//! | | [`vtd`] | [`smmuv3`] |
//! | --- | --- | --- |
//! | a function's entry | root table, context entry | stream table entry |
//! | a PASID's entry | PASID directory, PASID entry | context descriptor |
//! | second level | one for each PASID | one for each function |
//!
//! [`lookup`] is the one question for both: it yields a [`Route`], what a request goes through, and
//! [`Memories::translate`] takes an address along it. The
//! [`Space`] that a table's pointers lead into comes with it; what reads memory for a lookup
//! implements [`Spaces`].
//!
//! # What it guarantees
//!
//! Layouts are the manuals', and entries are packed and unpacked without loss. A lookup takes a
//! bounded number of loads, whatever the bytes say, and no load of the daemon's structures at an
//! address that the guest wrote. An entry that may be in use changes by one 64-bit store, or not at
//! all; several that belong together are [`Staged`] first.
//!
//! # What it leaves out
//!
//! Page tables (`viommu-pgtable`), virtio, the host's kernel, and the waiting for readers: a freed
//! leaf is used again when the store's owner says so.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

mod alloc;
mod endpoint;
mod leaf;
mod lookup;
pub mod smmuv3;
mod space;
#[cfg(test)]
mod testing;
mod translate;
pub mod vtd;

pub use alloc::{Allocator, ReserveError};
pub use endpoint::{EndpointId, Pasid, Requester};
pub use leaf::{SetError, Staged};
pub use lookup::{FirstTable, LookupFault, Route, SecondTable, Structures, lookup};
pub use space::{Memories, Space, Spaces};
pub use translate::Shortcut;
